"""What README.md shows is run as it is printed."""

import pathlib
import re

import tapescope
from tapescope_trainers import flags

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) >= 2
    run = tapescope.Run("runs/mine")
    assert run.steps.tolist() == list(range(0, 500, 10))
    assert run["loss"][-1] < run["loss"][0] / 4
    assert capsys.readouterr().out.startswith("('dense', 'dense_1')")


def test_the_command_lines_are_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my.npz").touch()
    lines = re.findall(r"^tapescope-train .*$", README, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        flags.parse(line.replace("'", "").split())


def test_every_flag_it_names_exists():
    named = set(re.findall(r"--(\w+)", README)) - {"help", "logdir"}
    assert named - set(flags.Options._fields) == set()
