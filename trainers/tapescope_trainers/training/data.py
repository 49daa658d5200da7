"""Data sets as arrays, and their batches as deterministic `tf.data` pipelines."""

import gzip
import os
import socket
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

HELD_SHARE = 0.2
"""Share of the examples that validate, where a data set has no test part of its own."""


DOWNLOAD_TIMEOUT_SECONDS = 20.0
"""Without an answer; keras itself would wait for ever."""


class Data(NamedTuple):
    """Examples `x` are uint8 or floating [N, ...], `scale` brings them to about 0..1; labels `y` are integers [N]."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    scale: float
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x_train.shape[1:]


def load(name: str, data_dir: str | None = None, seed: int = 0) -> Data:
    """The data set `name`; `seed` fixes the split of one without a test part. Raises ValueError with the cure."""
    if name == "digits":
        return _data("digits", _digits(), scale=1 / 16, seed=seed)
    if name.startswith("npz:"):
        return _data(name, _npz(name[4:]), scale=None, seed=seed)
    arrays = _from_folder(name, data_dir) if data_dir else _download(name)
    return _data(name, arrays, scale=None, seed=seed)


def _data(name: str, arrays: dict[str, np.ndarray], scale: float | None, seed: int) -> Data:
    x, y = arrays["x_train"], arrays["y_train"].reshape(-1)
    tested = "x_test" in arrays and "y_test" in arrays
    x_valid, y_valid = (arrays["x_test"], arrays["y_test"].reshape(-1)) if tested else (x[:0], y[:0])
    for images, labels in ((x, y), (x_valid, y_valid)):
        if len(images) != len(labels) or images.ndim < 2 or images.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"data {name}: {images.shape} examples do not fit {labels.shape} labels; both need [N, ...]"
            )
        if not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
            raise ValueError(f"data {name}: labels of type {labels.dtype} must be integers from 0")
        if images.dtype.kind not in "uif":
            raise ValueError(f"data {name}: examples of type {images.dtype} must be uint8 or floating")
    if not tested:
        order = np.random.default_rng(seed).permutation(len(x))
        held = max(1, round(len(x) * HELD_SHARE))
        x_valid, y_valid, x, y = x[order[:held]], y[order[:held]], x[order[held:]], y[order[held:]]
    if not len(x) or not len(x_valid):
        raise ValueError(
            f"data {name}: {len(x)} training and {len(x_valid)} validation examples; both need one or more"
        )
    classes = 1 + int(max(y.max(), y_valid.max()))
    if scale is None:
        scale = 1 / 255 if x.dtype == np.uint8 else 1.0
    return Data(x, y.astype(np.int32), x_valid, y_valid.astype(np.int32), scale, classes)


def _digits() -> dict[str, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("data digits comes with scikit-learn: pip install 'tapescope[trainers]'") from None
    digits: Any = load_digits()
    return {"x_train": digits.images.astype(np.uint8), "y_train": digits.target}


def _npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test") if name in file}
            found = ", ".join(file.files)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"data {path} is no readable npz file ({error}): write it with numpy.savez") from None
    if not {"x_train", "y_train"} <= arrays.keys():
        raise ValueError(f"data {path} has {found or 'nothing'}: it needs x_train and y_train (x_test, y_test if any)")
    return arrays


def _from_folder(name: str, folder: str) -> dict[str, np.ndarray]:
    """A copy on disk: NAME.npz, or for the MNIST family the four files as they are distributed."""
    path = os.path.join(folder, f"{name}.npz")
    if os.path.isfile(path):
        return _npz(path)
    parts = {"x_train": "train-images-idx3", "y_train": "train-labels-idx1", "x_test": "t10k-images-idx3"}
    parts["y_test"] = "t10k-labels-idx1"
    files = {key: os.path.join(folder, f"{part}-ubyte.gz") for key, part in parts.items()}
    if name != "cifar10" and all(map(os.path.isfile, files.values())):
        return {key: _idx(path) for key, path in files.items()}
    idx = "" if name == "cifar10" else " or the four *-ubyte.gz files"
    raise ValueError(
        f"--data_dir={folder} has no {name}.npz{idx}: put it there (arrays x_train, y_train, x_test, y_test), or leave "
        f"--data_dir out to download it"
    )


def _idx(path: str) -> np.ndarray:
    """The format of the MNIST files: two zero bytes, type, rank, sizes as big-endian int32, then the bytes."""
    with gzip.open(path) as file:
        raw = file.read()
    rank = raw[3]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(np.frombuffer(raw, ">i4", rank, 4))


def _download(name: str) -> dict[str, np.ndarray]:
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        (x, y), (x_test, y_test) = getattr(tf.keras.datasets, name).load_data()
    except Exception as error:  # keras raises a bare Exception where the network or the disk does not serve
        raise ValueError(
            f"data {name} cannot be downloaded ({' '.join(str(error).split())}): put {name}.npz into a folder and pass "
            f"--data_dir=FOLDER, or take --data=digits, which needs no network"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}


def batches(data: Data, batch_size: int, seed: int, skip: int = 0) -> tf.data.Dataset:
    """Endless training batches `(float32 [batch_size, pixels], one-hot float32 [batch_size, classes])`.

    Every epoch is a new order, the same for the same seed. Only whole batches, so that shapes are static (XLA, and
    equal shares for the replicas): an epoch's last `N % batch_size` examples, other ones each time, are left out. The
    first `skip` batches are left out too: where a training goes on.
    """
    count = len(data.x_train)
    if batch_size > count:
        raise ValueError(f"--batch_size={batch_size} is more than the {count} training examples: lower it")
    order = tf.data.Dataset.range(count).shuffle(count, seed=seed, reshuffle_each_iteration=True)
    # Skipped before the examples are gathered: 100,000 batches of 64 take 3 seconds on one core.
    order = order.batch(batch_size, drop_remainder=True).repeat().skip(skip)
    return _examples(order, data.x_train, data.y_train, data).prefetch(2)


def validation(data: Data, batch_size: int) -> tf.data.Dataset:
    """All validation examples once, in order; the last batch may be smaller."""
    order = tf.data.Dataset.range(len(data.x_valid)).batch(batch_size)
    return _examples(order, data.x_valid, data.y_valid, data).prefetch(2)


def _examples(order: tf.data.Dataset, x: np.ndarray, y: np.ndarray, data: Data) -> tf.data.Dataset:
    """Gathers whole batches by index: nothing is copied before it is needed, uint8 stays uint8 until then."""
    xs, ys = tf.constant(x.reshape(len(x), -1)), tf.constant(y)

    def gather(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(tf.gather(xs, index), tf.float32) * data.scale, tf.one_hot(tf.gather(ys, index), data.classes)

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.autotune.enabled = False  # there is nothing to tune, and its thread may sleep on for a minute when done
    return order.map(gather, num_parallel_calls=2).with_options(options)
