"""Two logical CPU devices and no GPU for every test in this process; set before TensorFlow wakes up."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(autouse=True)
def _fresh_names():
    """Keras numbers layer names per process; every test starts again at `dense`."""
    tf.keras.backend.clear_session(free_memory=False)  # collecting garbage would take longer than most tests
