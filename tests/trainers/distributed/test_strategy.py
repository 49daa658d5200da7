"""Strategies and devices; the tests' process has four logical CPU devices and no GPU."""

import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored
from tensorflow.python.data.ops import multi_device_iterator_ops

from tapescope_trainers.distributed import strategy
from tapescope_trainers.distributed.cluster import Cluster

make = strategy.make  # before conftest.py replaces it


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_mirrored_has_one_replica_a_device(replicas):
    made = make("mirrored", f"cpu:{replicas}")
    assert isinstance(made, tf.distribute.MirroredStrategy)
    assert made.num_replicas_in_sync == replicas


def test_mirrored_over_all_devices_uses_the_cpu_without_a_gpu():
    (device,) = make("mirrored", "all").extended.worker_devices
    assert device.endswith("CPU:0")


def test_one_device():
    assert isinstance(make("one_device", "cpu"), tf.distribute.OneDeviceStrategy)


def test_default_is_tensorflows_own():
    assert make("default", "all") is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("mirrored", "gpu", "--devices=gpu: TensorFlow sees 0 GPUs here: .*--devices=cpu:N"),
        ("mirrored", "gpu:2", "--devices=gpu:2: TensorFlow sees 0 GPUs"),
        ("mirrored", "cpu:9", "--devices=cpu:9: .*4 logical CPU devices"),
        ("one_device", "cpu:2", "--devices=cpu:2 with --strategy=one_device would .* add --strategy=mirrored"),
        ("default", "cpu:4", "--devices=cpu:4 with --strategy=default would .* add --strategy=mirrored"),
    ],
)
def test_unavailable_devices_are_refused(name, devices, message):
    tf.config.list_logical_devices()  # the devices are in use from here on
    with pytest.raises(ValueError, match=message):
        make(name, devices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("multi_worker", "cpu:2", "auto", Cluster(("a:1",), 0)), "a worker on CPUs has one replica"),
        (("mirrored", "cpu:2", "nccl"), "--collective=nccl works between GPUs, and no GPU is used here"),
        (("mirrored", "cpu:2", "ring"), "--collective=ring is between machines"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)


@pytest.mark.parametrize("arguments", [(8, 4), (16, 4, 2)])
def test_a_batch_that_can_be_divided_is_accepted(arguments):
    strategy.check_batch(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 4, 2), "20 cannot be divided among 4 replicas in --accumulate_steps=2 parts each: use 16"),
        ((10, 4), "--batch_size=10 cannot be divided among 4 replicas: use 8"),
        ((3, 4), "use 4"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        strategy.check_batch(*arguments)


def test_datasets_of_devices_have_no_autotune_thread(monkeypatch):
    made: list[tf.data.Dataset] = []
    unchanged = multi_device_iterator_ops._create_device_dataset
    with strategy.device_datasets_without_autotune():
        changed = multi_device_iterator_ops._create_device_dataset
        record = lambda *arguments: made.append(changed(*arguments)) or made[-1]  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(multi_device_iterator_ops, "_create_device_dataset", record)
            next(iter(mirrored(4).experimental_distribute_dataset(tf.data.Dataset.range(8).batch(4))))
    assert [dataset.options().autotune.enabled for dataset in made] == [False] * 4
    assert multi_device_iterator_ops._create_device_dataset is unchanged
