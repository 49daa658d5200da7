"""Strategies and devices; the tests' process has four logical CPU devices and no GPU."""

import pytest
import tensorflow as tf

from tapescope_trainers.distributed import strategy

make = strategy.make  # before conftest.py replaces it


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_mirrored_has_one_replica_a_device(replicas):
    made = make("mirrored", f"cpu:{replicas}")
    assert isinstance(made, tf.distribute.MirroredStrategy)
    assert made.num_replicas_in_sync == replicas


def test_mirrored_over_all_there_is_takes_the_processor_where_there_is_no_gpu():
    (device,) = make("mirrored", "all").extended.worker_devices
    assert device.endswith("CPU:0")


def test_one_device():
    made = make("one_device", "cpu")
    assert isinstance(made, tf.distribute.OneDeviceStrategy)


def test_default_is_tensorflows_own():
    assert make("default", "all") is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("mirrored", "gpu", "--devices=gpu: TensorFlow sees 0 GPUs here: .*take --devices=cpu:N"),
        ("mirrored", "gpu:2", "--devices=gpu:2: TensorFlow sees 0 GPUs"),
        ("mirrored", "cpu:9", "--devices=cpu:9: .*4 logical CPU devices"),
        ("one_device", "cpu:2", "--devices=cpu:2 with --strategy=one_device would .* add --strategy=mirrored"),
        ("default", "cpu:4", "--devices=cpu:4 with --strategy=default would .* add --strategy=mirrored"),
    ],
)
def test_devices_that_do_not_serve(name, devices, message):
    tf.config.list_logical_devices()  # the devices are in use from here on
    with pytest.raises(ValueError, match=message):
        make(name, devices)


def test_a_batch_is_shared_out_evenly():
    strategy.check_batch(8, 4)
    strategy.check_batch(16, 4, 2)
    with pytest.raises(
        ValueError, match="20 cannot be divided among 4 replicas in --accumulate_steps=2 parts each: take 16"
    ):
        strategy.check_batch(20, 4, 2)
    with pytest.raises(ValueError, match="--batch_size=10 cannot be divided among 4 replicas: take 8"):
        strategy.check_batch(10, 4)
    with pytest.raises(ValueError, match="take 4"):
        strategy.check_batch(3, 4)
