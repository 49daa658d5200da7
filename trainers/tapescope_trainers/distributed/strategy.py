"""From `--strategy` and `--devices` to a `tf.distribute.Strategy`; logical CPU devices make replicas on one machine."""

import contextlib
import os
import time
from collections.abc import Callable

import tensorflow as tf

from tapescope_trainers.distributed.cluster import Cluster

LOOK_EVERY_S = 1.0
"""How often the workers agree on whether to end."""


def make(
    strategy: str, devices: str, collective: str = "auto", cluster: Cluster | None = None
) -> tf.distribute.Strategy:
    """The strategy; call it before anything touches a device. Raises ValueError where there are no such devices.

    `cluster` is needed for multi_worker.
    """
    if strategy == "tpu":
        return _tpu()
    names = _devices(devices)
    if collective == "nccl" and "cpu" in names[0]:
        raise ValueError("--collective=nccl works between GPUs, and none is used here: take --collective=auto")
    if strategy == "multi_worker":
        return _multi_worker(names, devices, collective, cluster)
    if strategy == "mirrored":
        if collective == "ring":
            raise ValueError("--collective=ring is between machines: with --strategy=mirrored take auto or nccl")
        return tf.distribute.MirroredStrategy(names, tf.distribute.NcclAllReduce() if collective == "nccl" else None)
    if len(names) > 1 and devices != "all":
        raise ValueError(
            f"--devices={devices} with --strategy={strategy} would leave devices idle: add --strategy=mirrored"
        )
    return tf.distribute.OneDeviceStrategy(names[0]) if strategy == "one_device" else tf.distribute.get_strategy()


def check_batch(batch_size: int, replicas: int, accumulate_steps: int = 1) -> None:
    """Every replica gets the same share of a batch, in equal parts."""
    parts = replicas * accumulate_steps
    if batch_size % parts:
        near = max(parts, batch_size - batch_size % parts)
        among = f"among {replicas} replicas"
        if accumulate_steps > 1:
            among += f" in --accumulate_steps={accumulate_steps} parts each"
        raise ValueError(f"--batch_size={batch_size} cannot be divided {among}: take {near}, for example")


def agreement(strategy: tf.distribute.Strategy) -> Callable[[int, bool], bool]:
    """`ends(done, wish)`: whether any worker wishes to end after `done` steps; the same answer on all of them.

    Asked after every step, it asks the others about once in LOOK_EVERY_S: they agree on the step of the next question.
    """

    @tf.function
    def total(mine):
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(mine,)), axis=None)

    last, due, before = time.monotonic(), 0, 0

    def ends(done: int, wish: bool) -> bool:
        nonlocal last, due, before
        if done < due:
            return False
        now = time.monotonic()
        seconds = (now - last) / max(1, done - before)
        mine = tf.constant([float(wish), seconds, 1.0])
        wishes, seconds, replicas = total(strategy.experimental_distribute_values_from_function(lambda _: mine)).numpy()
        last, before = time.monotonic(), done
        due = done + max(1, min(100, int(LOOK_EVERY_S * replicas / max(seconds, 1e-6))))
        return wishes > 0

    return ends


def _multi_worker(
    names: list[str], devices: str, collective: str, cluster: Cluster | None
) -> tf.distribute.MultiWorkerMirroredStrategy:
    if cluster is None:
        raise ValueError("a cluster is needed for --strategy=multi_worker")
    if "cpu" in names[0] and len(names) > 1:
        raise ValueError(f"--devices={devices}: a worker has one replica on processors: start more workers instead")
    kinds = {"ring": "RING", "nccl": "NCCL", "auto": "AUTO"}
    how = getattr(tf.distribute.experimental.CommunicationImplementation, kinds[collective])
    os.environ["TF_CONFIG"] = cluster.tf_config()  # also where Slurm or Kubernetes told
    options = tf.distribute.experimental.CommunicationOptions(implementation=how)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except (tf.errors.OpError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"{cluster.name(cluster.index)} cannot take part ({why}): is its port free?") from None


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get("TPU_NAME", ""))
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # anything from a socket's to TensorFlow's own
        why = str(error).strip().partition("\n")[0]
        raise ValueError(f"--strategy=tpu finds no TPU ({why}): set TPU_NAME, or take another strategy") from None


def _devices(devices: str) -> list[str]:
    """Names of the logical devices that `devices` stands for."""
    gpus = tf.config.list_physical_devices("GPU")
    kind, _, number = devices.partition(":")
    if kind == "cpu":
        return _cpus(int(number or 1))
    if kind == "all" and not gpus:
        return ["/cpu:0"]
    count = int(number) if number else len(gpus)
    if count > len(gpus) or not gpus:
        raise ValueError(
            f"--devices={devices}: TensorFlow sees {len(gpus)} GPUs here: ask for no more, or take --devices=cpu:N, N "
            f"logical devices of the processor"
        )
    with contextlib.suppress(RuntimeError):  # devices are in use: they stay as they are
        tf.config.set_visible_devices(gpus[:count], "GPU")
        for gpu in gpus[:count]:  # or TensorFlow takes all of its memory
            tf.config.experimental.set_memory_growth(gpu, True)
    return [f"/gpu:{n}" for n in range(count)]


def _cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    made = tf.config.get_logical_device_configuration(cpu) or []
    try:
        tf.config.set_visible_devices([], "GPU")
        if len(made) < count:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:  # devices are in use: what there is must do
        if max(1, len(made)) < count:
            raise ValueError(
                f"--devices=cpu:{count}: TensorFlow already runs with {max(1, len(made))} logical CPU devices in this "
                f"process: ask for no more, or start a fresh one"
            ) from None
    return [f"/cpu:{n}" for n in range(count)]
