"""The tests on several versions of TensorFlow, each in an environment of its own.

    python scripts/matrix.py [--directory=DIR] [--keep] [VERSION ...]

`make matrix` runs all of MATRIX and writes the table of docs/compatibility.md. With VERSIONs (such as 2.19) only their
rows are written. An environment takes about 2 GB in DIR, and is deleted after its tests unless `--keep` is given.
"""

import argparse
import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
TESTS = ("tests/instrument", "tests/plugin")
PYTEST = ("-q", "-n", "2", "-p", "no:cacheprovider")
MARKERS = "not process and not browser and not slow and not nightly"
COLUMNS = ("TensorFlow", "Keras", "TensorBoard", "plotly", "Python", "passed", "failed", "skipped", "seconds")
DISTRIBUTIONS = ("keras", "tensorboard", "plotly")
REPLACED = ("tensorflow", "tf_keras", *DISTRIBUTIONS)
"""Requirements of setup.cfg that an environment chooses itself."""


class Environment(NamedTuple):
    """The requirements of one row. The packages `tensorflow-cpu` hold the same modules as `tensorflow`, and no CUDA."""

    tensorflow: str
    keras: str
    tensorboard: str
    plotly: str


MATRIX = (
    Environment("tensorflow-cpu==2.16.2", "keras==3.6.0", "tensorboard==2.16.*", "plotly==6.*"),
    Environment("tensorflow-cpu==2.18.1", "keras==3.8.0", "tensorboard==2.18.*", "plotly==6.*"),
    Environment("tensorflow-cpu==2.19.1", "keras==3.10.0", "tensorboard==2.19.*", "plotly==6.*"),
    Environment("tensorflow-cpu==2.20.0", "keras==3.12.*", "tensorboard==2.20.*", "plotly==7.*"),
    Environment("tensorflow-cpu==2.21.0", "keras==3.15.*", "tensorboard==2.21.*", "plotly==7.*"),
    Environment("tensorflow==2.22.0rc0", "keras-nightly", "tensorboard==2.21.*", "plotly==7.*"),
)
"""Each TensorFlow with a Keras that was current in its time. The release candidate asks for Keras' nightly build."""


def other_requirements(setup: str) -> list[str]:
    """Return what the tests need besides the packages of an Environment.

    Args:
      setup: the text of setup.cfg.
    """
    config = configparser.ConfigParser()
    config.read_string(setup)
    lines = (config["options"]["install_requires"] + config["options.extras_require"]["test"]).split("\n")
    return sorted({line for line in lines if line and re.split(r"[<>=]", line)[0] not in REPLACED})


def install(environment: Environment, directory: pathlib.Path) -> str:
    """Make a virtual environment, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = str(directory / "bin" / "python")
    others = other_requirements((ROOT / "setup.cfg").read_text())
    subprocess.run([python, "-m", "pip", "install", "--quiet", *environment, *others], check=True)
    # It would bring `tensorflow` beside `tensorflow-cpu`. There is none for a release candidate: its tests are skipped.
    minor = ".".join(re.findall(r"\d+", environment.tensorflow)[:2])
    legacy = [python, "-m", "pip", "install", "--quiet", "--no-deps", f"tf_keras=={minor}.*"]
    subprocess.run(legacy, check=False)
    return python


def run_tests(python: str, directory: pathlib.Path) -> list[str]:
    """Run the tests with a Python, and return a row of the table."""
    report = directory / "report.xml"
    roots = [str(ROOT), *(str(ROOT / name) for name in ("instrument", "trainers", "plugins"))]
    command = [python, "-m", "pytest", *PYTEST, "-m", MARKERS, f"--junitxml={report}", *TESTS]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)}, check=False)
    seconds = time.monotonic() - began
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - failed - skipped
    return [*versions(python), *(str(n) for n in (passed, failed, skipped)), f"{seconds:.0f}"]


def versions(python: str) -> list[str]:
    """Return the versions of TensorFlow, of DISTRIBUTIONS and of a Python, as its modules say them."""
    code = (
        "import json, platform, keras, tensorflow, tensorboard, plotly; "
        "modules = tensorflow, keras, tensorboard, plotly; "
        "print(json.dumps([*(m.__version__ for m in modules), platform.python_version()]))"
    )
    printed = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(printed.splitlines()[-1])


def with_row(page: str, row: Sequence[str]) -> str:
    """Return the page with a row added to its table, in place of one of the same TensorFlow and minor Python.

    Args:
      page: Markdown with a table whose columns are COLUMNS.
      row: its cells.
    """
    heading = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}\n"
    before, after = page.split(heading)
    table = re.match(r"(\|.*\n)*", after)
    lines = table.group().splitlines() if table else []
    rows = {_key(cells): cells for cells in (line.strip("| ").split(" | ") for line in lines)}
    rows[_key(row)] = list(row)
    body = "".join(f"| {' | '.join(rows[key])} |\n" for key in sorted(rows))
    return before + heading + body + after[len(table.group()) if table else 0 :]


def _key(row: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return what a row is sorted and replaced by."""
    return tuple(tuple(map(int, re.findall(r"\d+", row[COLUMNS.index(name)])[:2])) for name in ("TensorFlow", "Python"))


def main() -> None:
    """Run the environments that the command line names, and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="of TensorFlow; all of MATRIX by default")
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "matrix")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and use those that are there")
    options = parser.parse_args()
    for environment in MATRIX:
        version = environment.tensorflow.partition("==")[2]
        if options.versions and not any(version.startswith(wanted) for wanted in options.versions):
            continue
        directory = options.directory / f"{version}-{sys.version_info.major}.{sys.version_info.minor}"
        python = str(directory / "bin" / "python")
        if not (options.keep and os.path.exists(python)):
            python = install(environment, directory)
        row = run_tests(python, directory)
        PAGE.write_text(with_row(PAGE.read_text(), row))
        print(" | ".join(row), flush=True)
        if not options.keep:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
