"""The documentation agrees with the program: its Python runs, its definitions and thresholds are the program's.

`make docs` checks that it builds, and that no link is broken.
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

import tapescope
from tapescope.rules import engine
from tapescope_trainers import flags
from tensorboard_plugin_tapescope import metadata

pytestmark = pytest.mark.timeout(600)

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    ROOT / "docs" / "recipes.md",
    README,
    ROOT / "docs" / "quickstart.md",
    ROOT / "docs" / "wire.md",
    ROOT / "docs" / "replay.md",
]
"""The pages with Python, in this order: the first sets up the devices, and that of the wire reads a run of the one
before."""

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
    """Return the text below each section of a page whose title is a name in code, by that name."""
    return dict(re.findall(r"^### `(\w+)`\n\n(.*?)(?=^#|\Z)", page.read_text(), re.DOTALL | re.MULTILINE))


def test_every_page_with_python_is_run():
    have = {page for page in (README, *(ROOT / "docs").rglob("*.md")) if blocks(page, "python")}
    assert have == set(PAGES)


@pytest.fixture(scope="module")
def executed(wheel, tmp_path_factory):
    """Run the Python of all pages; return the finished process and its working directory.

    The environment has tapescope from its wheel only, and the other packages from this one.
    """
    directory = tmp_path_factory.mktemp("docs")
    clean = directory / "clean"
    venv.create(clean, with_pip=False)
    (packages,) = (clean / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", packages, wheel]
    subprocess.run(install, check=True, timeout=100)
    # A path that a .pth file adds comes last, and the .pth files in it, such as the one of this checkout, are not read.
    (packages / "needs.pth").write_text(str(pathlib.Path(pytest.__file__).parents[1]))
    programs = []
    for page in PAGES:
        programs.append(directory / f"{page.stem}.py")  # a file, because AutoGraph reads the source of what it converts
        programs[-1].write_text("\n".join(blocks(page, "python")))
    quiet = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [clean / "bin" / "python", "-c", RUN, *programs]
    done = subprocess.run(command, cwd=directory, env=quiet, capture_output=True, text=True, timeout=500, check=False)
    return done, directory


@pytest.mark.process
def test_the_python_runs_from_the_wheel(executed):
    done, _ = executed
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.process
def test_autograph_converts_the_documented_steps(executed):
    done, _ = executed
    assert "AutoGraph could not" not in done.stderr


@pytest.mark.process
def test_the_readme_records_every_tenth_step(executed):
    run = tapescope.Run(executed[1] / "runs" / "mine")
    assert run.steps.tolist() == list(range(0, 500, 10))


@pytest.mark.process
def test_the_network_of_the_readme_learns(executed):
    run = tapescope.Run(executed[1] / "runs" / "mine")
    assert run["loss"][-1] < run["loss"][0] / 4


@pytest.mark.process
def test_the_quick_start_finds_a_vanishing_gradient(executed):
    run = tapescope.Run(executed[1] / "runs" / "sigmoids")
    assert "vanishing" in [finding["rule"] for finding in run.findings]


@pytest.mark.process
def test_the_recipes_write_four_runs(executed):
    assert len(tapescope.runs(executed[1] / "runs" / "recipes")) == 4


@pytest.mark.parametrize(
    "page", [*PAGES, *(ROOT / "docs" / f"{name}.md" for name in ("distributed", "trainer"))], ids=lambda p: p.stem
)
def test_flags_on_a_page_exist(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("my.npz").touch()
    text = page.read_text()
    for line in re.findall(r"^tapescope-train .*$", text, re.MULTILINE):
        flags.parse(line.replace("'", "").split())
    of_others = {"help", "logdir", "severity", "output", "json"}
    assert set(re.findall(r"--(\w+)", text)) - of_others <= set(flags.Options._fields)


def test_every_column_has_the_definition_of_the_wire():
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
    assert len(families) == 13
    assert tags == families


def rule_names():
    """Return the names of all rules: the texts in the argument `rule` of each `Finding` in the package."""
    names = set()
    for path in (ROOT / "instrument" / "tapescope" / "rules").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                values = [argument.value for argument in node.keywords if argument.arg == "rule"]
                names |= {n.value for v in values for n in ast.walk(v) if isinstance(n, ast.Constant)}
    return names | {rule.__name__ for rule in engine.OBJECTIVE_RULES}


def test_every_rule_is_documented():
    names = rule_names()
    assert len(names) >= 15
    assert set(entries(ROOT / "docs" / "rules.md")) == names


def test_documented_thresholds_are_those_of_the_rules():
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| (\S+) \|", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE)
    assert len(rows) >= 15
    for module, name, value in rows:
        assert repr(getattr(importlib.import_module(f"tapescope.rules.{module}"), name)) == value, name


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "api.md").read_text()
    assert all(f"::: tapescope.{name}\n" in text for name in tapescope.__all__)


def test_costs_in_the_readme_are_those_of_the_benchmark():
    benchmark = json.loads((ROOT / "docs" / "overhead.json").read_text())
    section = README.read_text().split("## What it costs")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    documented = {description: figures for description, *figures in rows[2:]}
    measured = {}
    for name, description in benchmark["networks"].items():
        step = benchmark["results"][f"steps {name} float32"]
        loop = benchmark["results"].get(f"loops {name} float32")
        if loop is None:  # not in the README
            continue
        ratios = [step["lean"]["ratio"], step["all"]["ratio"], loop["default"]["ratio"]]
        measured[description] = [f"{step['plain']['ms']:.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
    assert len(measured) == 4
    assert documented == measured


DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


def test_every_decision_is_in_the_index():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    assert re.findall(r"^\| \[\d+\]\((.+?)\)", index, re.MULTILINE) == [page.name for page in DECISIONS]


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_every_decision_has_the_same_headings(page):
    headings = re.findall(r"^## (.+)", page.read_text(), re.MULTILINE)
    assert headings == ["Context", "Decision", "Alternatives", "Consequences", "Status"]
