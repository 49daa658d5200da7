"""Data sets as arrays, and deterministic `tf.data` pipelines of their batches."""

import gzip
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.storage.printable import describe_error
from tapescope.storage.text_file import check_regular

VALIDATION_SHARE = 0.2
"""Share of the examples held out for validation if a data set has no test part."""
DOWNLOAD_TIMEOUT_S = 20.0
"""Longest silence of a server in seconds; Keras by itself would wait forever."""
MAX_CLASSES = 1_000_000
"""More would fill the memory: labels are one-hot, and the last layer has a row for each class."""
_NAMES: tuple[str, ...] = ("x_train", "y_train", "x_test", "y_test")


class Data(NamedTuple):
    """A data set in training and validation examples."""

    x_train: np.ndarray
    """uint8 or floating [N, ...]."""
    y_train: np.ndarray
    """Labels, int32 [N]."""
    x_valid: np.ndarray
    y_valid: np.ndarray
    scale: float
    """Factor that brings the examples to about 0 to 1."""
    classes: int
    rows: np.ndarray | None = None
    """Index of each training example in the arrays that were loaded, [N]; None where it is the same."""

    @property
    def count(self) -> int:
        """Number of training examples."""
        return len(self.x_train)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x_train.shape[1:]


def load(name: str, data_dir: str | None = None, seed: int = 0) -> Data:
    """Load a data set.

    Args:
        name: A name from `flags.DATASETS`, or `npz:PATH`.
        data_dir: Directory with a copy; by default the data set is downloaded.
        seed: Fixes the split of a data set without a test part.

    Raises:
        ValueError: The data cannot be found or used; the message says what to do.
    """
    try:
        if name == "digits":
            return _split(name, _digits(), scale=1 / 16, seed=seed)
        if name.startswith("npz:"):
            arrays = _read_npz(name.removeprefix("npz:"))
        elif data_dir:
            arrays = _read_directory(name, data_dir)
        else:
            arrays = _download(name)
        return _split(name, arrays, scale=None, seed=seed)
    except ValueError:
        raise
    except Exception as error:  # the boundary of a file: each kind of damage raises another type
        raise ValueError(
            f"data {name} cannot be used ({describe_error(error)}): copy the file again, or write it with numpy.savez"
        ) from None


def from_arrays(name: str, arrays: Any) -> Data:
    """Return data that a function of the user has loaded, for a preset.

    Args:
        name: Where it comes from.
        arrays: A `user_data.UserData`.

    Raises:
        ValueError: It is not examples [N, ...] with labels [N].
    """
    if any(isinstance(part, dict) for part in arrays):
        raise ValueError(f"data {name}: a preset takes one array of examples and one of labels; use --model for others")
    fields = dict(zip(_NAMES, arrays, strict=False))
    return _split(name, fields, scale=None, seed=0)._replace(rows=arrays.rows)


def _split(name: str, arrays: dict[str, np.ndarray], scale: float | None, seed: int) -> Data:
    """Check the arrays and split them into training and validation examples."""
    scalars = [part for part, array in arrays.items() if not array.ndim]
    if scalars:
        raise ValueError(f"data {name}: {scalars[0]} must be an array; got one number")
    x = arrays["x_train"]
    y = arrays["y_train"].reshape(-1)
    x_valid = x[:0]
    y_valid = y[:0]
    has_test = "x_test" in arrays and "y_test" in arrays
    if has_test:
        x_valid = arrays["x_test"]
        y_valid = arrays["y_test"].reshape(-1)
    for examples, labels in ((x, y), (x_valid, y_valid)):
        if len(examples) != len(labels) or examples.ndim < 2 or examples.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"data {name}: examples must be [N, ...] and labels [N]; got {examples.shape} and {labels.shape}"
            )
        is_integer = np.issubdtype(labels.dtype, np.integer)
        if not is_integer or (labels.size and labels.min() < 0):
            got = labels.min() if is_integer else f"type {labels.dtype}"
            raise ValueError(
                f"data {name}: labels must be integers from 0; got {got}: number the classes from 0, such as with "
                f"numpy.unique(y, return_inverse=True)"
            )
        if labels.size and labels.max() >= MAX_CLASSES:
            raise ValueError(
                f"data {name}: labels must be below {MAX_CLASSES:,}; got {labels.max()}: number the classes from 0, "
                f"such as with numpy.unique(y, return_inverse=True)"
            )
        if examples.dtype.kind not in "uif":
            raise ValueError(f"data {name}: examples must be uint8 or floating; got type {examples.dtype}")
    rows = None
    if not has_test:
        order = np.random.default_rng(seed).permutation(len(x))
        held_out = max(1, round(len(x) * VALIDATION_SHARE))
        x_valid = x[order[:held_out]]
        y_valid = y[order[:held_out]]
        rows = order[held_out:]
        x = x[rows]
        y = y[rows]
    if not len(x) or not len(x_valid):
        raise ValueError(
            f"data {name}: one or more training and validation examples are needed; got {len(x)} and {len(x_valid)}"
        )
    if scale is None:
        scale = 1 / 255 if x.dtype == np.uint8 else 1.0
    return Data(
        x_train=x,
        y_train=y.astype(np.int32),
        x_valid=x_valid,
        y_valid=y_valid.astype(np.int32),
        scale=scale,
        classes=1 + int(max(y.max(), y_valid.max())),
        rows=rows,
    )


def _digits() -> dict[str, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError("data digits comes with scikit-learn: pip install 'tapescope[trainers]'") from None
    digits: Any = load_digits()
    return {"x_train": digits.images.astype(np.uint8), "y_train": digits.target}


def _read_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with open(check_regular(path), "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _NAMES if name in file}
            names = ", ".join(file.files)
    except Exception as error:  # the boundary of a file: each kind of damage raises another type
        raise ValueError(
            f"data {path} must be an npz file ({describe_error(error)}): write it with numpy.savez"
        ) from None
    if not {"x_train", "y_train"} <= arrays.keys():
        raise ValueError(
            f"data {path} must have x_train and y_train, and may have x_test and y_test; got {names or 'nothing'}"
        )
    return arrays


def _read_directory(name: str, directory: str) -> dict[str, np.ndarray]:
    """Read NAME.npz, or for MNIST and Fashion-MNIST the four files as they are distributed."""
    npz = os.path.join(directory, f"{name}.npz")
    if os.path.isfile(npz):
        return _read_npz(npz)
    distributed = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    paths = [os.path.join(directory, f"{part}-ubyte.gz") for part in distributed]
    if name != "cifar10" and all(map(os.path.isfile, paths)):
        return dict(zip(_NAMES, map(_read_idx, paths), strict=True))
    alternative = "" if name == "cifar10" else " or the four *-ubyte.gz files"
    raise ValueError(
        f"--data_dir={directory} has no {name}.npz{alternative}: put it there (arrays {', '.join(_NAMES)}), or leave "
        f"--data_dir out to download it"
    )


def _read_idx(path: str) -> np.ndarray:
    """Read an MNIST file: two zero bytes, type, rank, sizes as big-endian int32, then the bytes."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
        rank = raw[3]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(np.frombuffer(raw, ">i4", rank, 4))
    except Exception as error:  # the boundary of a file: each kind of damage raises another type
        raise ValueError(f"{path} is damaged ({describe_error(error)}): copy it again") from None


def _download(name: str) -> dict[str, np.ndarray]:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        (x, y), (x_test, y_test) = getattr(tf.keras.datasets, name).load_data()
    except Exception as error:  # Keras raises a bare Exception for a failure of the network or the disk
        raise ValueError(
            f"data {name} cannot be downloaded ({' '.join(str(error).split())}): put {name}.npz into a directory and "
            f"pass --data_dir=DIRECTORY, or use --data=digits, which needs no network"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}


def batches(data: Data, batch_size: int, seed: int, skip: int = 0) -> tf.data.Dataset:
    """Return an endless pipeline of training batches.

    Every epoch has another order, which depends on the seed only. All batches are whole, so that shapes are static for
    XLA and replicas get equal shares: the last `N % batch_size` examples of an epoch's order are left out.

    Args:
        data: The examples.
        batch_size: Examples in a batch.
        seed: Seed of the orders.
        skip: Number of batches to leave out at the beginning, for a training that continues.

    Returns:
        A dataset of `(float32 [batch_size, pixels], one-hot float32 [batch_size, classes])`.

    Raises:
        ValueError: There are fewer examples than a batch has.
    """
    return _examples(order(data.count, batch_size, seed, skip), data.x_train, data.y_train, data)


def order(count: int, batch_size: int, seed: int, skip: int) -> tf.data.Dataset:
    """Return an endless pipeline of the indices of training batches, int64 [batch_size].

    Raises:
        ValueError: There are fewer examples than a batch has.
    """
    check_batch_size(count, batch_size)
    indices = tf.data.Dataset.range(count).shuffle(count, seed=seed, reshuffle_each_iteration=True)
    # Skipped before the examples are gathered: 100,000 batches of 64 take 3 seconds on one core.
    return indices.batch(batch_size, drop_remainder=True).repeat().skip(skip)


def check_batch_size(count: int, batch_size: int) -> None:
    """Raise ValueError if there are fewer training examples than a batch has."""
    if batch_size > count:
        raise ValueError(f"--batch_size={batch_size} is more than the {count} training examples: lower it")


def validation_batches(data: Data, batch_size: int) -> tf.data.Dataset:
    """Return a pipeline of all validation examples, once and in order; the last batch may be smaller."""
    order = tf.data.Dataset.range(len(data.x_valid)).batch(batch_size)
    return _examples(order, data.x_valid, data.y_valid, data)


def chosen_batches(data: Data, indices: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Return a pipeline of chosen training examples, once and in order, as `(x, y), indices`."""
    order = tf.data.Dataset.from_tensor_slices(indices).batch(batch_size, drop_remainder=True)
    return tf.data.Dataset.zip(_examples(order, data.x_train, data.y_train, data), order)


def _examples(order: tf.data.Dataset, x: np.ndarray, y: np.ndarray, data: Data) -> tf.data.Dataset:
    """Gather whole batches by index, so that uint8 examples are converted to float32 one batch at a time."""
    xs = tf.constant(x.reshape(len(x), -1))
    ys = tf.constant(y)

    def gather(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(tf.gather(xs, index), tf.float32) * data.scale, tf.one_hot(tf.gather(ys, index), data.classes)

    return pipeline(order, gather)


def pipeline(order: tf.data.Dataset, gather: Callable[[tf.Tensor], Any]) -> tf.data.Dataset:
    """Return the batches that `gather` makes of the indices in `order`."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    options.autotune.enabled = False  # its thread may sleep for a minute after the end, and there is nothing to tune
    return order.map(gather, num_parallel_calls=2).with_options(options).prefetch(2)
