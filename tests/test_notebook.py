"""The notebooks in examples/ run from top to bottom, show what they say, and are kept without their output.

Without a kernel: a cell is compiled as IPython does it, and what its last expression gives must be able to show itself.
"""

import ast
import json
import pathlib

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def run(path, source, names):
    """Runs a cell, from a file so that AutoGraph finds its source; what its last line gives, or None."""
    path.write_text(source)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, path, "exec"), names)
    return eval(compile(ast.Expression(last.value), path, "eval"), names) if last else None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_output(notebook):
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(notebook))


def test_the_vanishing_gradient_is_found_and_mended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (notebook,) = NOTEBOOKS
    names, shown = {}, []
    for i, cell in enumerate(cells(notebook)):
        shown.append(run(tmp_path / f"cell_{i}.py", "".join(cell["source"]), names))
    assert all(hasattr(value, "_repr_html_") for value in shown if value is not None and not hasattr(value, "dtype"))
    assert sum(value is not None for value in shown) >= 8
    broken, mended = names["broken"], names["mended"]
    assert ("vanishing", "error") in [(f["rule"], f["severity"]) for f in broken.findings]
    assert not [f for f in mended.findings if f["severity"] != "info"]
    assert broken["loss"][-1] > 2.2
    assert mended["loss"][-1] < 0.5
    share = [run["delta_norm"][-1, 0] / run["delta_norm"][-1, -2] for run in (broken, mended)]
    assert share[0] < 2e-4
    assert 0.1 < share[1] < 100
    assert abs(broken["flow_gate"][-1, 1:8].mean() + 0.62) < 0.05
    assert broken["saturated"][-1, :8].max() < 0.01  # of softmax it is NaN
