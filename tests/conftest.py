"""Two logical CPU devices and no GPU for every test in this process; set before TensorFlow wakes up."""

import os
import pathlib
import shutil
import subprocess
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import pytest
import tensorflow as tf
from tensorflow.python import pywrap_tfe

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(autouse=True)
def _fresh_names():
    """Keras numbers layer names per process; every test starts again at `dense`."""
    tf.keras.backend.clear_session(free_memory=False)  # collecting garbage would take longer than most tests
    yield
    # A tape that is still open would record all that follows in this process.
    assert pywrap_tfe.TFE_Py_TapeSetIsEmpty(), "a tf.GradientTape was left open"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of the working tree as it is, committed or not."""
    root, made = pathlib.Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and not name.startswith(("docs/", "tests/")) and (root / name).is_file():
            (made / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, made / "tree" / name)
    build = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "-w", made, made / "tree"]
    subprocess.run(build, check=True, timeout=200)
    (found,) = made.glob("tapescope-*.whl")
    return found
