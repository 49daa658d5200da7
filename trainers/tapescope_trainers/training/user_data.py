"""Data of the user as arrays, or dicts of arrays, and deterministic pipelines of their batches."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope_trainers import user_code
from tapescope_trainers.training import data
from tapescope_trainers.training.data import VALIDATION_SHARE, Data

WANTED = "arrays (x, y), ((x, y), (x_test, y_test)), or a tf.data.Dataset of examples (x, y), not of batches"
_KEYS = {"x_train", "y_train", "x_test", "y_test"}


class UserData(NamedTuple):
    """Training and validation examples: arrays [N, ...], or dicts of arrays, all with the same N."""

    x_train: Any
    y_train: Any
    x_valid: Any
    y_valid: Any
    rows: np.ndarray | None = None
    """Index of each training example in the arrays that were loaded, [N]; None where it is the same."""

    @property
    def count(self) -> int:
        """Number of training examples."""
        return count(self.x_train)


def count(arrays: Any) -> int:
    """Return the number of examples in arrays."""
    return len(tf.nest.flatten(arrays)[0])


def load(reference: str, seed: int) -> UserData:
    """Return the data that a function of the user loads.

    Args:
        reference: `package.module:function` or `path/to/file.py:function`.
        seed: Fixes the split of data without a test part.

    Raises:
        ValueError: It fails, or returns something else.
    """
    loaded = user_code.call("data", reference)
    where = f"--data={reference}"
    if isinstance(loaded, dict) and {"x_train", "y_train"} <= loaded.keys() <= _KEYS:
        has_test = loaded.keys() == _KEYS
        pairs = [(loaded["x_train"], loaded["y_train"])]
        pairs += [(loaded["x_test"], loaded["y_test"])] if has_test else []
    elif isinstance(loaded, tf.data.Dataset):
        pairs = [_read_dataset(where, loaded)]
    elif isinstance(loaded, tuple | list) and len(loaded) == 2:
        is_split = all(isinstance(part, tuple | list) and len(part) == 2 for part in loaded)
        pairs = [tuple(part) for part in loaded] if is_split else [tuple(loaded)]
    else:
        raise ValueError(f"{where} must return {WANTED}; got {type(loaded).__name__}")
    checked = [_check(where, x, y) for x, y in pairs]
    rows = None
    if len(checked) == 1:
        rows, held_out = _split(count(checked[0][0]), seed)
        checked = [_take(pair, part) for pair, part in zip(checked * 2, (rows, held_out), strict=True)]
    (x, y), (x_valid, y_valid) = checked
    if not count(x) or not count(x_valid):
        raise ValueError(
            f"{where}: one or more training and validation examples are needed; got {count(x)} and {count(x_valid)}"
        )
    return UserData(x, y, x_valid, y_valid, rows)


def _read_dataset(where: str, dataset: tf.data.Dataset) -> tuple[Any, Any]:
    """Return a dataset's examples as arrays, so that every epoch has another order and a run can continue exactly."""
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{where} must return a finite dataset; got one that repeats: leave out .repeat()")
    spec = dataset.element_spec
    if not isinstance(spec, tuple | list) or len(spec) != 2:
        raise ValueError(f"{where} must return a dataset of pairs (x, y); got elements of {spec}")
    try:
        examples = list(dataset.as_numpy_iterator())
    except tf.errors.OpError as error:  # of a generator or a map function
        raise ValueError(f"{where} failed while its dataset was read: {user_code.describe(error)}") from error
    if not examples:
        raise ValueError(f"{where} returned an empty dataset")
    try:
        return tf.nest.map_structure(lambda *parts: np.stack(parts), *examples)
    except ValueError:
        raise ValueError(
            f"{where} must return a dataset whose examples have one shape; got elements of {spec}: use .unbatch() if "
            "they are batches, or pad them"
        ) from None


def _check(where: str, x: Any, y: Any) -> tuple[Any, Any]:
    """Return examples and targets as arrays of the same length."""
    arrays = [
        tf.nest.map_structure(np.asarray, part if isinstance(part, dict) else np.asarray(part)) for part in (x, y)
    ]
    leaves = tf.nest.flatten(arrays)
    if any(leaf.dtype == object for leaf in leaves):
        raise ValueError(f"{where} must return arrays of numbers or text; got ragged lists or objects: pad them")
    for leaf in leaves:
        try:
            tf.as_dtype(leaf.dtype)
        except TypeError:
            raise ValueError(
                f"{where} must return arrays of numbers or text; got type {leaf.dtype}: convert it"
            ) from None
    if any(leaf.ndim == 0 for leaf in leaves) or len({len(leaf) for leaf in leaves}) > 1:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(f"{where} must return as many examples as targets; got arrays of shape {shapes}")
    # TensorFlow's own width: a model of float32 would cast float64 in every step.
    narrow = tf.nest.map_structure(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, arrays)
    return narrow[0], narrow[1]


def _split(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the validation examples."""
    order = np.random.default_rng(seed).permutation(examples)
    held_out = max(1, round(len(order) * VALIDATION_SHARE))
    return order[held_out:], order[:held_out]


def _take(pair: tuple[Any, Any], rows: np.ndarray) -> tuple[Any, Any]:
    x, y = (tf.nest.map_structure(lambda array: array[rows], arrays) for arrays in pair)
    return x, y


def from_builtin(examples: Data) -> UserData:
    """Return one of the trainer's own data sets for a model of the user: float32 of about 0 to 1, and int32 labels."""
    x_train, x_valid = (
        (x.astype(np.float32) * np.float32(examples.scale)) for x in (examples.x_train, examples.x_valid)
    )
    return UserData(x_train, examples.y_train, x_valid, examples.y_valid, examples.rows)


def batches(examples: UserData, batch_size: int, seed: int, skip: int = 0) -> tf.data.Dataset:
    """Return an endless pipeline of training batches; see `data.batches`.

    Raises:
        ValueError: There are fewer examples than a batch has.
    """
    return _gather(data.order(examples.count, batch_size, seed, skip), examples.x_train, examples.y_train)


def validation_batches(examples: UserData, batch_size: int) -> tf.data.Dataset:
    """Return a pipeline of all validation examples, once and in order; the last batch may be smaller."""
    order = tf.data.Dataset.range(count(examples.x_valid)).batch(batch_size)
    return _gather(order, examples.x_valid, examples.y_valid)


def chosen_batches(examples: UserData, indices: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Return a pipeline of chosen training examples, once and in order, as `(x, y), indices`."""
    order = tf.data.Dataset.from_tensor_slices(indices).batch(batch_size, drop_remainder=True)
    return tf.data.Dataset.zip(_gather(order, examples.x_train, examples.y_train), order)


def _gather(order: tf.data.Dataset, x: Any, y: Any) -> tf.data.Dataset:
    arrays = tf.nest.map_structure(tf.constant, (x, y))

    def gather(index: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda array: tf.gather(array, index), arrays)

    return data.pipeline(order, gather)
