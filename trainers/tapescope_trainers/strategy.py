"""From `--strategy` and `--devices` to a `tf.distribute.Strategy`; logical CPU devices make replicas on one machine."""

import tensorflow as tf


def make(strategy: str, devices: str) -> tf.distribute.Strategy:
    """The strategy; call it before anything touches a device. Raises ValueError where there are no such devices."""
    names = _devices(devices)
    if strategy == "mirrored":
        return tf.distribute.MirroredStrategy(names)
    if len(names) > 1 and devices != "all":
        raise ValueError(
            f"--devices={devices} with --strategy={strategy} would leave devices idle: add --strategy=mirrored"
        )
    return tf.distribute.OneDeviceStrategy(names[0]) if strategy == "one_device" else tf.distribute.get_strategy()


def check_batch(batch_size: int, replicas: int) -> None:
    """Every replica gets the same share of a batch."""
    if batch_size % replicas:
        near = max(replicas, batch_size - batch_size % replicas)
        raise ValueError(
            f"--batch_size={batch_size} cannot be divided among {replicas} replicas: take {near}, for example"
        )


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
