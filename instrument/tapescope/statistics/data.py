"""Statistics of the data of a step: the inputs of the model, its targets and its outputs.

They answer whether the data suit the network and the loss: the scale, the range, whether targets are whole numbers, and
whether their rows are distributions. A large tensor is represented by its first examples, so the cost has a limit.
Sums are float64: inputs may be addresses of 3e9 or an offset of 1e6, of which float32 would keep no variance.

Letters: C columns, D tensors, K statistics, R replicas.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tensorboard_plugin_tapescope import metadata

DATA_ROWS = (
    "elements",
    "nonfinite",
    "mean",
    "variance",
    "min",
    "max",
    "zero",
    "whole",
    "negative",
    "above_one",
    "below_minus_one",
    "row_sum_min",
    "row_sum_max",
    "class_min",
    "class_max",
)
"""What one replica computes of each tensor. `elements` and the counts leave out examples of weight 0."""
DATA_COLUMNS = tuple(c.name for c in metadata.DATA_COLUMNS)
MAX_ELEMENTS = 1 << 20
"""Elements of a tensor that are looked at, in whole examples."""

_COUNTS = ("nonfinite", "zero", "whole", "negative", "above_one", "below_minus_one")
_INF = float("inf")


def data_rows(tensors: Sequence[tuple[tf.Tensor, tf.Tensor | None]]) -> tf.Tensor:
    """Return the statistics of one replica, float32 [K, D].

    Args:
      tensors: D numeric tensors, batch first, each with the weights of its examples [batch], or None. An example of
        weight 0 is left out.
    """
    columns = [_rows_of(_first_examples(tensor), weights) for tensor, weights in tensors]
    return tf.stack(columns, 1) if columns else tf.zeros([len(DATA_ROWS), 0])


def _first_examples(tensor: tf.Tensor) -> tf.Tensor:
    """Return as many whole examples as MAX_ELEMENTS allows, at least one; all where their size is not known."""
    size = tensor.shape[1:].num_elements() if tensor.shape.rank else None
    return tensor if size is None else tensor[: max(1, MAX_ELEMENTS // max(1, size))]


def _rows_of(tensor: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """Return DATA_ROWS of one tensor, float32 [K]."""
    x = tf.cast(tensor, tf.float64)
    used = None
    if weights is not None and x.shape.rank:
        used = tf.reshape(weights[: tf.shape(x)[0]] > 0, [-1, *[1] * (x.shape.rank - 1)])
        used = tf.logical_or(used, tf.zeros_like(x, tf.bool))
    finite = tf.math.is_finite(x)
    is_nonfinite = tf.logical_not(finite)
    if used is not None:
        finite = tf.logical_and(finite, used)
        is_nonfinite = tf.logical_and(is_nonfinite, used)
    values = tf.where(finite, x, tf.zeros([], tf.float64))
    count = _count(finite)
    mean = tf.math.divide_no_nan(tf.reduce_sum(values), count)
    deviations = tf.where(finite, values - mean, tf.zeros([], tf.float64))
    rows = {
        "elements": count + _count(is_nonfinite),
        "nonfinite": _count(is_nonfinite),
        "mean": mean,
        "variance": tf.math.divide_no_nan(tf.reduce_sum(tf.square(deviations)), count),
        "min": tf.reduce_min(tf.where(finite, values, tf.constant(_INF, tf.float64))),
        "max": tf.reduce_max(tf.where(finite, values, tf.constant(-_INF, tf.float64))),
        "zero": _count(tf.logical_and(finite, values == 0)),
        "whole": _count(tf.logical_and(finite, tf.floor(values) == values)),
        "negative": _count(values < 0),
        "above_one": _count(values > 1),
        "below_minus_one": _count(values < -1),
        **_rows_of_last_axis(values, used),
    }
    return tf.stack([tf.cast(rows[name], tf.float32) for name in DATA_ROWS])


def _count(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.float64))


def _rows_of_last_axis(values: tf.Tensor, used: tf.Tensor | None) -> dict[str, Any]:
    """Return what is known of rows along the last axis; NaN for a tensor whose last axis is not longer than 1."""
    names = ("row_sum_min", "row_sum_max", "class_min", "class_max")
    if (values.shape.rank or 0) < 2 or (values.shape[-1] or 0) < 2:
        return dict.fromkeys(names, tf.constant(float("nan"), tf.float64))
    sums = tf.reduce_sum(values, -1)
    classes = tf.cast(tf.argmax(values, -1), tf.float64)
    is_used = tf.ones_like(sums, tf.bool) if used is None else tf.reduce_any(used, -1)
    low = tf.constant(_INF, tf.float64)
    high = tf.constant(-_INF, tf.float64)
    return {
        "row_sum_min": tf.reduce_min(tf.where(is_used, sums, low)),
        "row_sum_max": tf.reduce_max(tf.where(is_used, sums, high)),
        "class_min": tf.reduce_min(tf.where(is_used, classes, low)),
        "class_max": tf.reduce_max(tf.where(is_used, classes, high)),
    }


def data_columns(rows: tf.Tensor) -> tf.Tensor:
    """Return the columns over the global batch, float32 [C, D].

    Args:
      rows: DATA_ROWS of every replica or small batch, float32 [R, K, D].
    """
    row = dict(zip(DATA_ROWS, tf.unstack(tf.cast(rows, tf.float64), axis=1), strict=True))
    finite = row["elements"] - row["nonfinite"]
    total = tf.reduce_sum(finite, 0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(finite * row["mean"], 0), total)
    spread = row["variance"] + tf.square(row["mean"] - mean)
    variance = tf.math.divide_no_nan(tf.reduce_sum(finite * spread, 0), total)
    sums = {name: tf.reduce_sum(row[name], 0) for name in ("elements", *_COUNTS)}
    extremes = {
        **{name: tf.reduce_min(row[name], 0) for name in ("min", "row_sum_min", "class_min")},
        **{name: tf.reduce_max(row[name], 0) for name in ("max", "row_sum_max", "class_max")},
    }
    nan = tf.constant(float("nan"), tf.float64)
    known = {
        "data_rms": tf.sqrt(variance + tf.square(mean)),
        "data_mean": mean,
        "data_std": tf.sqrt(variance),
        **{f"data_{name}": sums[name] / total for name in _COUNTS if name != "nonfinite"},
        **{f"data_{name}": value for name, value in extremes.items()},
    }
    columns = {name: tf.where(total > 0, value, nan) for name, value in known.items()}
    columns |= {"data_elements": sums["elements"], "data_nonfinite": sums["nonfinite"]}
    return tf.stack([tf.cast(columns[name], tf.float32) for name in DATA_COLUMNS])
