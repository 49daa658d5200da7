"""Four logical CPU devices and no GPU for every test of this process, set before TensorFlow starts."""

import gc
import os
import pathlib
import shutil
import subprocess
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import hypothesis  # noqa: F401  (before gc.freeze, which hides the referrers that it looks for)
import keras  # noqa: F401
import pytest
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.autograph.pyct import inspect_utils

gc.freeze()  # half a million objects of these modules are not looked at again by each full collection

# Half the time of converting a function: AutoGraph looks through all modules for one that functools.wraps has hidden.
inspect_utils._fix_linecache_record = lambda function: None

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(autouse=True, scope="module")
def _forgotten_garbage():
    """Leave what earlier modules made as it is: to find and free the graphs of a whole suite takes up to a minute."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh_names():
    """Restart Keras' numbering of layer names, so that it does not depend on the tests before."""
    tf.keras.backend.clear_session(free_memory=False)  # freeing memory would take longer than most tests
    yield
    # A tape that is still open would record everything that follows in this process.
    assert pywrap_tfe.TFE_Py_TapeSetIsEmpty(), "a tf.GradientTape was left open"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build the wheel of the working tree, committed or not."""
    root = pathlib.Path(__file__).parents[1]
    directory = tmp_path_factory.mktemp("wheel")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and not name.startswith(("docs/", "tests/")) and (root / name).is_file():
            copy = directory / "tree" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, copy)
    build = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", directory, directory / "tree"], check=True, timeout=200)
    (wheel,) = directory.glob("tapescope-*.whl")
    return wheel
