"""The documentation says what the program does: its code is run, its definitions and thresholds are the program's.

That it builds, with no link broken, is for `make docs`.
"""

import ast
import importlib
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import venv

import pytest
from bench.cost import networks

import tapescope
from tapescope.rules import gradient_flow, replica_issues
from tapescope.rules import layers as layer_rules
from tapescope.rules import training as training_rules
from tapescope_trainers import flags
from tensorboard_plugin_tapescope import metadata

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [ROOT / "docs" / "recipes.md", README, ROOT / "docs" / "quickstart.md", ROOT / "docs" / "wire.md"]
"""Those that have Python. The first sets the devices up, the last reads a run of the one before."""

RUN = """
import runpy, sys, warnings
import tensorflow, tapescope
assert tapescope.__file__.startswith(sys.prefix), tapescope.__file__
warnings.simplefilter("error")
for page in sys.argv[1:]:
    print(page, flush=True)
    runpy.run_path(page)
"""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def entries(page):
    """The sections of a page whose title is a name in code: the text below it."""
    return dict(re.findall(r"^### `(\w+)`\n\n(.*?)(?=^#|\Z)", page.read_text(), re.DOTALL | re.MULTILINE))


def test_all_pages_with_python_are_run():
    have = {page for page in (README, *(ROOT / "docs").glob("*.md")) if blocks(page, "python")}
    assert have == set(PAGES)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_python_runs_from_the_wheel(wheel, tmp_path):
    """In an environment that has what tapescope needs from here, and tapescope itself from its wheel alone."""
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    (packages,) = (clean / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", packages, wheel]
    subprocess.run(install, check=True, timeout=100)
    # A path that a .pth adds comes last, and its own .pth files, the one of this checkout among them, are not read.
    (packages / "needs.pth").write_text(str(pathlib.Path(pytest.__file__).parents[1]))
    programs = []
    for page in PAGES:
        programs.append(tmp_path / f"{page.stem}.py")  # in a file: AutoGraph reads the source of what it rewrites
        programs[-1].write_text("\n".join(blocks(page, "python")))
    quiet = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [clean / "bin" / "python", "-c", RUN, *programs]
    done = subprocess.run(command, cwd=tmp_path, env=quiet, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AutoGraph could not" not in done.stderr
    run = tapescope.Run(tmp_path / "runs" / "mine")
    assert run.steps.tolist() == list(range(0, 500, 10))
    assert run["loss"][-1] < run["loss"][0] / 4
    found = [finding["rule"] for finding in tapescope.Run(tmp_path / "runs" / "sigmoids").findings]
    assert "vanishing" in found, "the quick start says so"
    assert len(tapescope.runs(tmp_path / "runs" / "recipes")) == 4


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / "docs" / f"{name}.md" for name in ("distributed", "trainer"))], ids=lambda p: p.stem
)
def test_its_flags_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my.npz").touch()
    text = page.read_text()
    for line in re.findall(r"^tapescope-train .*$", text, re.MULTILINE):
        flags.parse(line.replace("'", "").split())
    of_others = {"help", "logdir", "severity", "output"}
    assert set(re.findall(r"--(\w+)", text)) - of_others <= set(flags.Options._fields)


def test_every_column_is_defined_in_the_words_of_the_wire():
    found = entries(ROOT / "docs" / "definitions.md")
    assert list(found) == list(metadata.COLUMNS)
    for column in metadata.COLUMNS.values():
        sentence = f"*{column.definition[0].upper()}{column.definition[1:]}.*"
        sentence += f" In {column.unit}." if column.unit else ""
        assert found[column.name].startswith(f"{sentence}\n"), column.name


def test_every_state_of_a_unit_is_defined():
    text = (ROOT / "docs" / "definitions.md").read_text()
    assert all(f"`{state}`" in text for state in metadata.UNIT_STATES)


def test_every_family_is_on_the_page_of_the_wire():
    families = re.findall(r"^    (\w+) +(?:float|int|uint|string)", inspect.getdoc(metadata) or "", re.MULTILINE)
    tags = re.findall(r"^\| `tapescope/(\w+)`", (ROOT / "docs" / "wire.md").read_text(), re.MULTILINE)
    assert len(families) == 9
    assert tags == families


def test_every_rule_is_told_of():
    """A rule's name is a text within the first argument of `Finding`."""
    rules = set()
    for module in (gradient_flow, layer_rules, training_rules):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                rules |= {n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)}
    assert len(rules) >= 15
    assert set(entries(ROOT / "docs" / "rules.md")) == rules | replica_issues.NAMES


def test_thresholds_are_those_of_the_rules():
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (\S+) \|", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE)
    assert len(rows) >= 15
    for module, name, value in rows:
        assert repr(getattr(importlib.import_module(f"tapescope.{module}"), name)) == value, name


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    assert all(f"::: tapescope.{name}\n" in text for name in tapescope.__all__)


def test_what_measuring_costs_is_what_was_measured():
    """The README's table has the figures of `make bench`."""
    measured = json.loads((ROOT / "docs" / "overhead.json").read_text())["results"]
    section = README.read_text().split("## What it costs")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    found = {name: figures for name, *figures in rows[2:]}
    for name, about in networks.ABOUT.items():
        step, loop = measured[f"steps {name} float32"], measured[f"loops {name} float32"]
        ratios = [step["lean"]["ratio"], step["all"]["ratio"], loop["default"]["ratio"]]
        assert found[about] == [f"{step['plain']['ms']:.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
