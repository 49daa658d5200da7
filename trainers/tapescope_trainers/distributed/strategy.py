"""The `tf.distribute.Strategy` of --strategy and --devices. Logical CPU devices make replicas on one machine."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from tapescope_trainers.distributed.cluster import Cluster

AGREE_EVERY_S = 1.0
"""About how often the workers agree on whether to stop, in seconds."""


def make(
    strategy: str, devices: str, collective: str = "auto", cluster: Cluster | None = None
) -> tf.distribute.Strategy:
    """Return a strategy. Call this before anything uses a device.

    Args:
        strategy: A value of --strategy.
        devices: A value of --devices.
        collective: A value of --collective.
        cluster: The workers; needed for multi_worker.

    Raises:
        ValueError: There are no such devices, or the arguments do not fit each other.
    """
    if strategy == "tpu":
        return _tpu()
    names = _device_names(devices)
    if collective == "nccl" and "cpu" in names[0]:
        raise ValueError("--collective=nccl works between GPUs, and no GPU is used here: use --collective=auto")
    if strategy == "multi_worker":
        return _multi_worker(names, devices, collective, cluster)
    if strategy == "mirrored":
        if collective == "ring":
            raise ValueError("--collective=ring is between machines: with --strategy=mirrored use auto or nccl")
        return tf.distribute.MirroredStrategy(names, tf.distribute.NcclAllReduce() if collective == "nccl" else None)
    if len(names) > 1 and devices != "all":
        raise ValueError(
            f"--devices={devices} with --strategy={strategy} would leave devices idle: add --strategy=mirrored"
        )
    return tf.distribute.OneDeviceStrategy(names[0]) if strategy == "one_device" else tf.distribute.get_strategy()


@contextlib.contextmanager
def device_datasets_without_autotune() -> Iterator[None]:
    """Switch off autotuning in the datasets that TensorFlow makes for the devices of a distributed one.

    They do not get the options of the dataset itself. Each has a thread that may sleep for a minute after its end, and
    the main thread waits for one after the other: see docs/decisions/0027-tf-data-without-autotuning.md.
    """
    make_dataset = getattr(multi_device_iterator_ops, "_create_device_dataset", None)
    if make_dataset is None:  # another version of TensorFlow: the end may take longer
        yield
        return

    def make_without_autotune(*args: Any, **kwargs: Any) -> tf.data.Dataset:
        options = tf.data.Options()
        options.autotune.enabled = False
        return make_dataset(*args, **kwargs).with_options(options)

    multi_device_iterator_ops._create_device_dataset = make_without_autotune
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = make_dataset


def check_batch(batch_size: int, replicas: int, accumulate_steps: int = 1) -> None:
    """Raise ValueError unless every replica gets the same share of a batch, in equal parts."""
    parts = replicas * accumulate_steps
    if batch_size % parts:
        nearest = max(parts, batch_size - batch_size % parts)
        among = f"among {replicas} replicas"
        if accumulate_steps > 1:
            among += f" in --accumulate_steps={accumulate_steps} parts each"
        raise ValueError(f"--batch_size={batch_size} cannot be divided {among}: use {nearest}, for example")


def stop_agreement(strategy: tf.distribute.Strategy) -> Callable[[int, bool], bool]:
    """Return `should_stop(done, wish)`, which says on all workers alike whether any of them wishes to stop.

    It is called after every step, and communicates about once in AGREE_EVERY_S: each time the workers also agree on the
    step of the next exchange.
    """

    @tf.function
    def total(mine):
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(mine,)), axis=None)

    last_time = time.monotonic()
    last_step = 0
    next_step = 0

    def should_stop(done: int, wish: bool) -> bool:
        nonlocal last_time, last_step, next_step
        if done < next_step:
            return False
        seconds_per_step = (time.monotonic() - last_time) / max(1, done - last_step)
        mine = tf.constant([float(wish), seconds_per_step, 1.0])
        everyones = total(strategy.experimental_distribute_values_from_function(lambda _: mine))
        wishes, sum_of_seconds, replicas = everyones.numpy()
        last_time = time.monotonic()
        last_step = done
        next_step = done + max(1, min(100, int(AGREE_EVERY_S * replicas / max(sum_of_seconds, 1e-6))))
        return wishes > 0

    return should_stop


def _multi_worker(
    names: list[str], devices: str, collective: str, cluster: Cluster | None
) -> tf.distribute.MultiWorkerMirroredStrategy:
    if cluster is None:
        raise ValueError("`cluster` must be a Cluster for --strategy=multi_worker; got None")
    if "cpu" in names[0] and len(names) > 1:
        raise ValueError(f"--devices={devices}: a worker on CPUs has one replica: start more workers instead")
    implementations = tf.distribute.experimental.CommunicationImplementation
    implementation = {
        "ring": implementations.RING,
        "nccl": implementations.NCCL,
        "auto": implementations.AUTO,
    }[collective]
    os.environ["TF_CONFIG"] = cluster.tf_config()  # TensorFlow reads it, also if the cluster came from elsewhere
    options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except (tf.errors.OpError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{cluster.name(cluster.index)} cannot take part ({reason}): is its port free?") from None


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", ""))
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # a socket's, or any of TensorFlow's
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--strategy=tpu finds no TPU ({reason}): set TPU_NAME, or use another strategy") from None


def _device_names(devices: str) -> list[str]:
    """Return the names of the logical devices of a value of --devices."""
    gpus = tf.config.list_physical_devices("GPU")
    kind, _, number = devices.partition(":")
    if kind == "cpu":
        return _cpu_names(int(number or 1))
    if kind == "all" and not gpus:
        return ["/cpu:0"]
    count = int(number) if number else len(gpus)
    if count > len(gpus) or not gpus:
        raise ValueError(
            f"--devices={devices}: TensorFlow sees {len(gpus)} GPUs here: use fewer, or --devices=cpu:N for N logical "
            f"devices of the processor"
        )
    with contextlib.suppress(RuntimeError):  # the devices are in use, and keep their configuration
        tf.config.set_visible_devices(gpus[:count], "GPU")
        for gpu in gpus[:count]:  # by default TensorFlow reserves all of its memory
            tf.config.experimental.set_memory_growth(gpu, True)
    return [f"/gpu:{n}" for n in range(count)]


def _cpu_names(count: int) -> list[str]:
    """Return the names of `count` logical CPU devices, which are created if there are fewer."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = len(tf.config.get_logical_device_configuration(cpu) or [])
    try:
        tf.config.set_visible_devices([], "GPU")
        if configured < count:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # the devices are in use, and their number is fixed
        available = max(1, configured)
        if available < count:
            raise ValueError(
                f"--devices=cpu:{count}: TensorFlow already runs with {available} logical CPU devices in this process: "
                f"use no more, or start a new process"
            ) from None
    return [f"/cpu:{n}" for n in range(count)]
