"""Imports at run time: reading a run needs neither TensorFlow nor Keras, and printing help needs no NumPy."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest
from scripts.testbed import synthetic
from scripts.testbed.synthetic import Spec

import tapescope

READERS = {
    "tapescope": "",
    "Resume": "tapescope.Resume",
    "Finding": "tapescope.Finding",
    "every": "tapescope.every(10)",
    "runs": "tapescope.runs(FIRST)",
    "Run": "run = tapescope.Run(FIRST)",
    "columns": "[run[column] for column in run.columns]",
    "repr": "repr(run), run._repr_html_()",
    "check": "tapescope.check(run)",
    "compare": "tapescope.compare(run, tapescope.Run(SECOND))",
    "noise_scale": "tapescope.noise_scale(run)",
    "scaling": "tapescope.scaling([run])",
    "frame": "run.frame('loss')",
    "plot": "run.plot('loss')",
    "write_report": "tapescope.write_report([run], FIRST + '.html')",
    "tapescope check": "cli.main(['check', FIRST])",
    "tapescope compare": "cli.main(['compare', FIRST, SECOND])",
    "tapescope scaling": "cli.main(['scaling', FIRST, SECOND])",
    "tapescope report": "cli.main(['report', FIRST, '--output', FIRST + '.html'])",
}
"""Statements by name, run one after another in one process."""

_PROGRAM = """
import contextlib, io, json, sys
FIRST, SECOND, statements = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
import tapescope
from tapescope import cli
loaded = {}
for name, statement in statements.items():
    with contextlib.redirect_stdout(io.StringIO()):
        exec(statement)
    loaded[name] = sorted({"numpy", "pandas", "plotly", "tensorflow", "keras"} & set(sys.modules))
print(json.dumps(loaded))
"""


def run_program(first, second, statements):
    command = [sys.executable, "-c", _PROGRAM, str(first), str(second), json.dumps(statements)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        synthetic.write(root / name, Spec(depth=2, units=2, replicas=2), range(5))
    return root / "first", root / "second"


@pytest.fixture(scope="module")
def loaded(runs):
    """Modules of interest that are loaded after each statement of READERS."""
    return run_program(*runs, READERS)


@pytest.mark.process
@pytest.mark.parametrize("name", READERS)
def test_reading_loads_neither_tensorflow_nor_keras(loaded, name):
    assert not {"tensorflow", "keras"} & set(loaded[name])


@pytest.mark.process
def test_checking_loads_neither_pandas_nor_plotly(loaded):
    assert loaded["check"] == ["numpy"]


@pytest.mark.process
def test_writing_loads_tensorflow(runs):
    assert "tensorflow" in run_program(*runs, {"Recorder": "tapescope.Recorder"})["Recorder"]


def test_help_loads_no_numpy(runs):
    assert run_program(*runs, {"help": "cli.make_parser().format_help()"}) == {"help": []}


def _type_checking_imports():
    """Return the module of each name that `tapescope/__init__.py` imports for type checkers."""
    tree = ast.parse(pathlib.Path(tapescope.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname: node.module.removeprefix("tapescope.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_know_every_lazy_name():
    assert _type_checking_imports() == tapescope._MODULES


@pytest.mark.parametrize("name", tapescope.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(tapescope, name).__module__ == f"tapescope.{tapescope._MODULES[name]}"


def test_dir_lists_every_public_name():
    assert set(tapescope.__all__) <= set(dir(tapescope))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tapescope' has no attribute 'Oscilloscope'"):
        tapescope.Oscilloscope  # noqa: B018
