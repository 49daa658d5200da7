"""The notebook in examples/ runs from top to bottom, shows what its text says, and is kept without output.

There is no kernel: a cell is compiled as IPython compiles it, and the value of its last expression must be displayable.
"""

import ast
import json
import pathlib
from typing import Any, NamedTuple

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "examples" / "vanishing_gradient.ipynb"


def code_cells():
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def run_cell(path, source, names):
    """Run a cell and return the value of its last expression, or None.

    The source is in a file, because AutoGraph reads it from there.
    """
    path.write_text(source)
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, path, "exec"), names)
    return eval(compile(ast.Expression(last.value), path, "eval"), names) if last else None


class Executed(NamedTuple):
    """The notebook after all cells ran."""

    broken: Any
    """The run of the network that does not learn."""
    fixed: Any
    outputs: list[Any]
    """The values of the cells that have one."""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("notebook")
    names: dict[str, Any] = {}
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for i, cell in enumerate(code_cells()):
            outputs.append(run_cell(directory / f"cell_{i}.py", "".join(cell["source"]), names))
    return Executed(names["broken"], names["fixed"], [value for value in outputs if value is not None])


def severities(run, rule):
    return [finding["severity"] for finding in run.findings if finding["rule"] == rule]


def gradient_at_first_layer(run):
    """Return the last gradient norm at the first layer, relative to the last hidden layer."""
    return run["delta_norm"][-1, 0] / run["delta_norm"][-1, -2]


def test_the_notebook_is_kept_without_output():
    assert [cell for cell in code_cells() if cell["outputs"] or cell["execution_count"] is not None] == []


pytestmark = pytest.mark.slow


def test_at_least_eight_cells_show_something(executed):
    assert len(executed.outputs) >= 8


def test_every_output_is_displayed_as_html_or_a_number(executed):
    assert [value for value in executed.outputs if not (hasattr(value, "_repr_html_") or hasattr(value, "dtype"))] == []


def test_the_vanishing_gradient_is_found(executed):
    assert severities(executed.broken, "vanishing") == ["error"]


def test_the_fixed_network_has_no_warning(executed):
    assert [finding for finding in executed.fixed.findings if finding["severity"] != "info"] == []


def test_the_broken_network_does_not_learn(executed):
    assert executed.broken["loss"][-1] > 2.2


def test_the_fixed_network_learns(executed):
    assert executed.fixed["loss"][-1] < 0.5


def test_a_twenty_thousandth_of_the_gradient_reaches_the_first_layer(executed):
    assert gradient_at_first_layer(executed.broken) < 2e-4


def test_in_the_fixed_network_the_gradient_reaches_the_first_layer(executed):
    assert 0.1 < gradient_at_first_layer(executed.fixed) < 100


def test_each_sigmoid_costs_six_tenths_of_a_decade(executed):
    assert executed.broken["flow_gate"][-1, 1:8].mean() == pytest.approx(-0.62, abs=0.05)


def test_the_sigmoids_are_not_saturated(executed):
    """The output layer is a softmax, for which saturation is NaN."""
    assert executed.broken["saturated"][-1, :8].max() < 0.01
