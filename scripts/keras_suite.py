"""Keras' own tests of `fit`, run plainly and with a Monitor in every fit, and the difference between both.

    git clone --depth=1 --branch=v3.15.1 https://github.com/keras-team/keras /tmp/keras
    python scripts/keras_suite.py /tmp/keras [--jobs=2] [--every=2] [TEST...]

The checkout must be of the Keras version that is installed. Both runs are of the same tests in the same checkout. The
second loads this file as a plugin of pytest, which adds a Monitor to the callbacks of every `fit`. The exit code is 1
if a test passes without Monitor and not with it, unless `ALLOWED` names it.
"""

import argparse
import concurrent.futures
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
TESTS = ("keras/src/trainers/trainer_test.py", "keras/src/callbacks/*_test.py", "keras/src/models/*_test.py")
ALLOWED = {"TestTrainer::test_retracing": "it counts traces, and a measured step is one more"}
"""Tests that fail with Monitor, by a part of their name, and the reason."""

_OUTCOMES = "TAPESCOPE_KERAS_OUTCOMES"
_EVERY = "TAPESCOPE_KERAS_EVERY"


# What follows runs inside of pytest.

_outcomes: dict[str, list[str]] = {}
_fits = [0, 0]
"""Fits with a Monitor, and those of them that recorded a step."""


def pytest_configure(config: Any) -> None:
    """Add a Monitor to every fit, if the environment says so.

    A file of Keras' tests imports JAX, for tests that are skipped here: without JAX it gets an empty module.
    """
    if importlib.util.find_spec("jax") is None:
        sys.modules["jax"] = types.ModuleType("jax")
    if not int(os.environ.get(_EVERY, "0")):
        return
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    import tapescope

    original = TensorFlowTrainer.fit
    logdir = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path(os.environ[_OUTCOMES]).parent))

    def fit(model: Any, x: Any = None, y: Any = None, batch_size: Any = None, epochs: Any = 1, **options: Any) -> Any:
        monitor = tapescope.Monitor(logdir / str(_fits[0]), tapescope.every(int(os.environ[_EVERY])))
        _fits[0] += 1
        options["callbacks"] = _with_monitor(model, options.get("callbacks"), monitor)
        try:
            return original(model, x, y, batch_size, epochs, **options)
        finally:
            _fits[1] += monitor.recorder is not None and not monitor._probe.failure  # type: ignore[union-attr]

    TensorFlowTrainer.fit = fit  # type: ignore[method-assign]


def _with_monitor(model: Any, callbacks: Any, monitor: Any) -> Any:
    """Return the callbacks of a fit and the monitor, in the form that they have."""
    if hasattr(callbacks, "callbacks"):  # a CallbackList
        monitor.set_model(model)
        monitor.set_params(callbacks.params)
        callbacks.append(monitor)
        return callbacks
    if callbacks is None:
        return [monitor]
    return [*(callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]), monitor]


def pytest_runtest_logreport(report: Any) -> None:
    """Keep a test's outcome, and the end of its failure."""
    if report.when == "call" or report.outcome != "passed":
        error = "" if report.passed else str(report.longrepr)
        _outcomes[report.nodeid] = [report.outcome, error[-2000:]]


def pytest_collectreport(report: Any) -> None:
    """Keep a file that cannot be imported as a failed test."""
    if report.failed:
        _outcomes[report.nodeid] = ["not collected", str(report.longrepr)[-2000:]]


def pytest_sessionfinish(session: Any) -> None:
    """Write the outcomes."""
    pathlib.Path(os.environ[_OUTCOMES]).write_text(json.dumps({"tests": _outcomes, "fits": _fits}))


# What follows is the command.


def run_tests(checkout: pathlib.Path, tests: list[str], every: int, directory: pathlib.Path) -> dict[str, Any]:
    """Run Keras' tests in a process, and return their outcomes.

    Args:
      checkout: of Keras.
      tests: files, or tests, below `checkout`.
      every: which batches a Monitor measures; 0 for no Monitor.
      directory: for the outcomes and the records.

    Returns:
      `tests`: outcome and message by the test's name; `fits`: the number of fits, and of those that were recorded.
    """
    outcomes = directory / "outcomes.json"
    directory.mkdir()
    paths = [str(ROOT), str(ROOT / "instrument"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        _OUTCOMES: str(outcomes),
        _EVERY: str(every),
        "KERAS_BACKEND": "tensorflow",
        "KERAS_HOME": str(directory / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "scripts.keras_suite"]
    command += ["--continue-on-collection-errors", *tests]
    with open(directory / "log", "wb") as log:
        subprocess.run(command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
    found = json.loads(outcomes.read_text()) if outcomes.exists() else {"tests": {}}
    if not any(outcome == "passed" for outcome, _ in found["tests"].values()):
        raise RuntimeError(f"a test of Keras must pass; none did: {(directory / 'log').read_text()[-2000:]}")
    return found


def lost(plain: dict[str, list[str]], monitored: dict[str, list[str]]) -> dict[str, str]:
    """Return the message of each test that passes in the first run and not in the second, by its name."""
    passed = [name for name, (outcome, _) in plain.items() if outcome == "passed"]
    return {
        name: monitored.get(name, ["", "it did not run"])[1]
        for name in passed
        if monitored.get(name, ["missing"])[0] != "passed"
    }


def main() -> int:
    """Run both, print the difference, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=pathlib.Path, help="a work tree of Keras, of the version that is installed")
    parser.add_argument("tests", nargs="*", help="files or tests below the checkout; those of the docstring by default")
    parser.add_argument("--jobs", type=int, default=2, choices=(1, 2), help="processes at the same time")
    parser.add_argument("--every", type=int, default=2, help="which batches are measured")
    arguments = parser.parse_intermixed_args()
    version_file = arguments.checkout / "keras/src/version.py"
    if not version_file.exists():
        parser.error(f"`checkout` must be a work tree of Keras; got {arguments.checkout}")
    version = re.findall(r'__version__ = "(.+)"', version_file.read_text())[0]
    installed = importlib.metadata.version("keras")
    if version != installed:
        parser.error(f"`checkout` must be of Keras {installed}, which is installed; it is of {version}")
    tests = arguments.tests or [
        str(path.relative_to(arguments.checkout))
        for pattern in TESTS
        for path in sorted(arguments.checkout.glob(pattern))
    ]
    with tempfile.TemporaryDirectory() as directory:
        places = pathlib.Path(directory) / "plain", pathlib.Path(directory) / "monitor"
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            runs = [
                pool.submit(run_tests, arguments.checkout.resolve(), tests, every, place)
                for every, place in zip((0, arguments.every), places, strict=True)
            ]
            plain, monitored = (run.result() for run in runs)
    for name, run in (("without Monitor", plain), ("with Monitor", monitored)):
        outcomes = [outcome for outcome, _ in run["tests"].values()]
        print(f"{name}: {', '.join(f'{outcomes.count(o)} {o}' for o in sorted(set(outcomes)))}")
    print("Keras {}: {} fits had a Monitor, {} of them recorded".format(version, *monitored["fits"]))
    unexpected = 0
    for name, message in lost(plain["tests"], monitored["tests"]).items():
        reason = next((why for part, why in ALLOWED.items() if part in name), None)
        unexpected += reason is None
        print(f"\n{name}: {reason or message}")
    print(f"\n{unexpected} tests lost that may not be")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
