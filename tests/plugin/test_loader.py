"""The loader: TensorBoard works whatever is missing, and the built wheel works without TensorFlow."""

import argparse
import contextlib
import logging
import os
import pathlib
import subprocess
import sys
import time
import urllib.request
import venv

import pytest
from scripts import page
from tensorboard.plugins.base_plugin import TBContext

from tensorboard_plugin_tapescope import loader, metadata
from tensorboard_plugin_tapescope.loader import Loader

NEEDED = (
    *(
        "tensorboard",
        "tensorboard_data_server",
        "numpy",
        "numpy.libs",
        "plotly",
        "_plotly_utils",
        "narwhals",
        "google",
        "grpc",
    ),
    *("werkzeug", "markdown", "markupsafe", "absl", "packaging", "PIL", "pillow.libs", "typing_extensions.py"),
    *("setuptools", "pkg_resources", "_distutils_hack"),
)
"""Packages of TensorBoard and plotly that are linked into the test's environment."""


def test_the_loader_s_name_is_the_contract_s():
    assert loader.NAME == metadata.PLUGIN_NAME


@pytest.mark.parametrize(
    ("given", "kept"), [({}, loader.KEPT_RECORDS), ({"tapescope": 7}, 7), ({"images": 3}, loader.KEPT_RECORDS)]
)
def test_more_records_are_kept_unless_the_user_gives_a_number(given, kept):
    flags = argparse.Namespace(samples_per_plugin=dict(given))
    Loader().fix_flags(flags)
    assert flags.samples_per_plugin["tapescope"] == kept


def test_flags_of_a_tensorboard_without_samples_per_plugin_stay():
    flags = argparse.Namespace(logdir="runs")
    Loader().fix_flags(flags)
    assert flags == argparse.Namespace(logdir="runs")


@pytest.mark.parametrize("missing", ["plotly", "numpy", "tensorboard_plugin_tapescope.plugin"])
def test_a_missing_module_is_logged_and_the_tab_left_out(missing, monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith("tensorboard_plugin_tapescope.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level(logging.WARNING):
        assert Loader().load(TBContext()) is None
    assert "The Gradients tab (tapescope) is off" in caplog.text
    assert missing in caplog.text


def test_loading_imports_neither_tensorflow_nor_tapescope():
    program = (
        "import sys, warnings; from tensorboard_plugin_tapescope.loader import Loader;"
        "assert 'numpy' not in sys.modules;"
        "warnings.simplefilter('ignore'); sys.modules['tensorflow'] = sys.modules['tapescope'] = None;"
        "from tensorboard.plugins.base_plugin import TBContext; assert Loader().load(TBContext()) is not None"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


@pytest.mark.process
def test_the_wheel_alone_gives_tensorboard_the_tab(tmp_path, wheel):
    """A clean environment that has tensorboard, numpy and plotly from here, and tapescope from its wheel alone."""
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    python = clean / "bin" / "python"
    (packages,) = (clean / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", packages, wheel]
    subprocess.run(install, check=True, timeout=100)
    here = pathlib.Path(pytest.__file__).parents[1]
    for name in NEEDED:
        for found in (*here.glob(name), *here.glob(f"{name}-*.dist-info")):
            os.symlink(found, packages / found.name)
    port, logdir = page.free_port(), tmp_path / "empty"
    logdir.mkdir()
    command = [python, "-m", "tensorboard.main", "--logdir", logdir, "--port", str(port), "--host", "127.0.0.1"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        listing, deadline = b"", time.monotonic() + 60
        while not listing and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                listing = urllib.request.urlopen(f"http://127.0.0.1:{port}/data/plugins_listing", timeout=5).read()
            time.sleep(0.2)
        assert b'"tapescope"' in listing, (tmp_path / "log").read_text()
        for route in ("runs", "static/index.js", "plotly.js"):
            url = f"http://127.0.0.1:{port}/data/plugin/tapescope/{route}"
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert answer.status == 200
    finally:
        process.terminate()
        process.wait(20)
    missing = subprocess.run([python, "-c", "import tensorflow"], capture_output=True, text=True)
    assert "No module named 'tensorflow'" in missing.stderr
