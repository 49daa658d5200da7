"""A machine that only looks: an environment of TensorBoard, plotly and the wheel, without TensorFlow and Keras.

docs/installing.md says how to make it. Here the installed packages are linked into it, so that no network is needed.
"""

import configparser
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.request

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from scripts import page

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "schema_2"

pytestmark = [pytest.mark.process, pytest.mark.slow]


def requirements(names):
    """Return the distributions that pip would install for these names, by canonical name."""
    found = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        needed = map(Requirement, found[name].requires or [])
        waiting += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def documented_packages():
    (names,) = re.findall(r"^pip install (tensorboard [\w ]+?) +#", (ROOT / "docs/installing.md").read_text(), re.M)
    return names.split()


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Return the Python of such an environment."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / "lib" / version / "site-packages"
    for distribution in requirements(documented_packages()).values():
        for file in distribution.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    command = [sys.executable, "-m", "pip", "-q", "--python", directory, "install", "--no-deps", "--no-index", wheel]
    # With the checkout on the path, pip takes the wheel for installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, timeout=200, env=environment, cwd=directory)
    return str(directory / "bin" / "python")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a directory of two runs."""
    directory = tmp_path_factory.mktemp("runs")
    for name in ("first", "second"):
        (directory / name).mkdir()
        for path in GOLDEN.iterdir():
            (directory / name / path.name).write_bytes(path.read_bytes())
    return directory


def run(python, *arguments, cwd):
    environment = {"PATH": str(pathlib.Path(python).parent), "HOME": str(cwd)}
    return subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_documented_packages_bring_all_requirements_but_tensorflow_and_keras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = {re.split(r"[<>=]", line)[0] for line in config["options"]["install_requires"].split()}
    assert needed - requirements(documented_packages()).keys() == {"tensorflow", "keras"}


def test_the_environment_has_no_tensorflow(python, tmp_path):
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('tensorflow', 'keras', 'tqdm', 'sklearn')])"
    assert run(python, "-c", code, cwd=tmp_path).stdout == "[None, None, None, None]\n"


@pytest.mark.parametrize(
    "command",
    [
        ("check", "first"),
        ("compare", "first", "second"),
        ("scaling", "first", "second"),
        ("report", "first", "second"),
        ("status", ".", "--severity=error"),
        ("columns", "loss"),
    ],
    ids=lambda command: command[0],
)
def test_each_command_works(python, runs, command):
    done = run(python, "-m", "tapescope", *command, cwd=runs)
    assert done.stderr == ""
    assert done.returncode == (1 if command[0] == "status" else 0)
    assert done.stdout


def test_a_run_is_read_and_drawn(python, runs):
    code = (
        "import tapescope; run = tapescope.Run('first'); print(run['gradient_norm'].shape, len(tapescope.runs('.')), "
        "run.plot('gradient_norm').data[0].type)"
    )
    assert run(python, "-c", code, cwd=runs).stdout == "(3, 4) 2 heatmap\n"


def test_what_trains_says_that_it_needs_tensorflow(python, tmp_path):
    done = run(python, "-c", "import tapescope; tapescope.Monitor", cwd=tmp_path)
    assert "tapescope.Monitor needs TensorFlow and Keras; this environment has no " in done.stderr.splitlines()[-1]
    assert "pip install tensorflow" in done.stderr


def test_the_trainer_says_that_it_needs_tensorflow(python, tmp_path):
    done = run(python, "-m", "tapescope_trainers.train", "--logdir=x", "--preset=mlp", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "is missing: pip install" in done.stderr


def test_tensorboard_loads_the_tab(python, runs):
    with page.tensorboard(runs, python=python) as (address, _):
        with urllib.request.urlopen(f"{address}data/plugins_listing", timeout=20) as answer:
            listing = json.load(answer)
        names = [found["name"] for found in page.fetch_json(address, "runs")["runs"]]
    assert listing["tapescope"]["tab_name"] == "Gradients"
    assert sorted(names) == ["first", "second"]
