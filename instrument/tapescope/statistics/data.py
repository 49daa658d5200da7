"""Statistics of the data of a step: the inputs of the model, its targets and its outputs.

They answer whether the data suit the network and the loss: the scale, the range, whether targets are whole numbers, and
whether their rows are distributions. A large tensor is represented by its first examples, so the cost has a limit.

Letters: C columns, D tensors, K statistics, R replicas.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.statistics import single_pass
from tapescope.statistics.batched_ops import constant, for_gpu, fusion_barrier
from tapescope.statistics.reductions import Piece, Reduction, Rows
from tensorboard_plugin_tapescope import metadata

COUNTS = ("finite", "nonfinite", "zero", "whole", "negative", "above_one", "below_minus_one")
"""Numbers of elements. Those of examples of weight 0 are in none but `zero` and `whole`, as are the non-finite ones."""
BOUNDS = ("min", "max", "row_sum_min", "row_sum_max", "class_min", "class_max")
DATA_ROWS = (*COUNTS, "size", "mean", "deviations", *BOUNDS)
"""What one replica computes of each tensor. `deviations` is the sum of the squared ones."""
DATA_COLUMNS = tuple(c.name for c in metadata.DATA_COLUMNS)
MAX_ELEMENTS = 1 << 16
"""Elements of a tensor that are looked at, in whole examples."""


class DataTensor(NamedTuple):
    """An input, target or output."""

    tensor: tf.Tensor
    """Numeric, batch first."""
    weights: tf.Tensor | None
    """Of the examples, [batch]: one of weight 0 is left out. None where all count."""
    has_classes: bool
    """Whether the last axis may be one of classes, so that its rows are looked at."""


def data_rows(tensors: Sequence[DataTensor]) -> Reduction[tf.Tensor]:
    """Return the statistics of one replica, float32 [K, D]."""
    if not tensors:
        return tf.zeros([len(DATA_ROWS), 0])
    if for_gpu():
        return (yield from _data_rows_on_gpu(tensors))
    return tf.stack([_rows_of(_first_examples(d.tensor), d.weights, d.has_classes) for d in tensors], 1)


def _data_rows_on_gpu(tensors: Sequence[DataTensor]) -> Reduction[tf.Tensor]:
    """Return what `data_rows` does, with all elements of a tensor in one kernel."""
    sums: dict[str, list[Piece]] = {name: [] for name in ("moments", "first", "last")}
    highest: dict[str, list[Piece]] = {"negative_min": [], "max": []}
    zero = constant(0.0)
    low = constant(float("-inf"))
    pack = single_pass.pack_counts
    for each in tensors:
        tensor = tf.cast(_first_examples(fusion_barrier(each.tensor)), tf.float32)
        x, lengths = single_pass.in_rows(tensor)
        used = finite = tf.math.is_finite(x)
        nonfinite = tf.logical_not(finite)
        if each.weights is not None:
            counts = tf.reshape(each.weights[: tf.shape(tensor)[0]] > 0, [-1, *[1] * (len(tensor.shape) - 1)])
            counted = tf.reshape(tf.broadcast_to(counts, tf.shape(tensor)), tf.shape(x))
            used, nonfinite = (tf.logical_and(mask, counted) for mask in (used, nonfinite))
        x = tf.where(used, x, zero)
        one = constant(1.0)
        wide = tf.cast(x, tf.float64)
        summands = {
            "moments": tf.complex(wide, tf.square(wide)),
            "first": tf.complex(pack(used, nonfinite), pack(x == zero, tf.floor(x) == x)),
            "last": tf.complex(pack(x < zero, x > one), tf.cast(x < -one, tf.float64)),
        }
        for name, values in summands.items():
            sums[name].append(Piece(single_pass.sum_rows(values), lengths))
        for name, values in (("negative_min", -x), ("max", x)):
            highest[name].append(Piece(single_pass.highest_of_rows(tf.where(used, values, low)), lengths))
    found = yield Rows(sums, highest)
    total, square = single_pass.split_complex(found["moments"])
    first, last = (single_pass.split_complex(found[name]) for name in ("first", "last"))
    counts = [count for packed in (*first, last[0]) for count in single_pass.unpack_counts(packed)]
    counts.append(last[1])
    mean = tf.math.divide_no_nan(total, counts[0])
    deviations = tf.maximum(square - mean * total, constant(0.0, tf.float64))
    moments = [mean, deviations, -found["negative_min"], found["max"]]
    known = tf.stack([single_pass.as_float(row) for row in (*counts, *moments)])
    bounds = tf.stack([tf.stack(_row_bounds(each)) for each in tensors], 1)
    sizes = tf.stack([tf.cast(tf.size(_first_examples(d.tensor)), tf.float32) for d in tensors])
    return tf.concat([known[: len(COUNTS)], sizes[None], known[len(COUNTS) :], bounds], 0)


def _row_bounds(each: DataTensor) -> list[tf.Tensor]:
    x = tf.cast(_first_examples(each.tensor), tf.float32)
    if not _has_rows(x, each.has_classes):
        return [constant(float("nan"))] * 4
    used = tf.math.is_finite(x)
    if each.weights is not None:
        used &= tf.reshape(each.weights[: tf.shape(x)[0]] > 0, [-1, *[1] * (len(x.shape) - 1)])
    return _bounds(tf.where(used, x, 0.0), used, each.has_classes)[2:]


def _has_rows(x: tf.Tensor, has_classes: bool) -> bool:
    return has_classes and len(x.shape) > 1 and (x.shape[-1] or 0) > 1


def _first_examples(tensor: tf.Tensor) -> tf.Tensor:
    """Return as many whole examples as MAX_ELEMENTS allows, at least one; all where their size is not known."""
    size = tensor.shape[1:].num_elements() if tensor.shape.rank else None
    if size is None or (tensor.shape[0] is not None and tensor.shape[0] * size <= MAX_ELEMENTS):
        return tensor
    return tensor[: max(1, MAX_ELEMENTS // max(1, size))]


def _rows_of(tensor: tf.Tensor, weights: tf.Tensor | None, has_classes: bool) -> tf.Tensor:
    """Return DATA_ROWS of one tensor, float32 [K]."""
    x = tf.cast(tensor, tf.float32)
    used = tf.math.is_finite(x)
    nonfinite = tf.logical_not(used)
    if weights is not None:
        counts = tf.reshape(weights[: tf.shape(x)[0]] > 0, [-1, *[1] * (len(x.shape) - 1)])
        used = tf.logical_and(used, counts)
        nonfinite = tf.logical_and(nonfinite, counts)
    zero = constant(0.0)
    one = constant(1.0)
    x = tf.where(used, x, zero)
    masks = tf.stack([used, nonfinite, x == zero, tf.floor(x) == x, x < zero, x > one, x < -one])
    counts = tf.reduce_sum(tf.cast(tf.reshape(masks, [len(COUNTS), -1]), tf.float32), 1)
    mean = tf.math.divide_no_nan(tf.reduce_sum(x), counts[0])
    deviations = tf.reduce_sum(tf.where(used, tf.square(x - mean), zero))
    size = tf.cast(tf.size(x), tf.float32)
    return tf.concat([counts, tf.stack([size, mean, deviations, *_bounds(x, used, has_classes)])], 0)


def _bounds(x: tf.Tensor, used: tf.Tensor, has_classes: bool) -> list[tf.Tensor]:
    """Return the smallest and largest elements, sums of rows, and classes: BOUNDS.

    The last four are NaN where the last axis is not one of classes.
    """
    low = constant(float("inf"))
    high = constant(float("-inf"))
    bounds = [tf.reduce_min(tf.where(used, x, low)), tf.reduce_max(tf.where(used, x, high))]
    if not _has_rows(x, has_classes):
        return [*bounds, *[constant(float("nan"))] * 4]
    is_used = tf.reduce_any(used, -1)
    for values in (tf.reduce_sum(x, -1), tf.cast(tf.argmax(x, -1), tf.float32)):
        bounds.append(tf.reduce_min(tf.where(is_used, values, low)))
        bounds.append(tf.reduce_max(tf.where(is_used, values, high)))
    return bounds


def data_columns(rows: np.ndarray) -> np.ndarray:
    """Return the columns over the global batch, float32 [C, D].

    Args:
      rows: DATA_ROWS of every replica and small batch, float32 [..., K, D].
    """
    if not rows.size:  # a step whose data are not known
        return np.zeros([len(DATA_COLUMNS), 0], np.float32)
    parts = rows.astype(np.float64).reshape(math.prod(rows.shape[:-2]), *rows.shape[-2:])
    row = dict(zip(DATA_ROWS, parts.swapaxes(0, 1), strict=True))
    total = {name: row[name].sum(0) for name in (*COUNTS, "size")}
    unused = total["size"] - total["finite"]  # these were taken for 0
    with np.errstate(all="ignore"):
        mean = (row["finite"] * row["mean"]).sum(0) / total["finite"]
        spread = row["deviations"] + row["finite"] * np.square(row["mean"] - mean)
        std = np.sqrt(spread.sum(0) / total["finite"])
        known = {name: total[name] / total["finite"] for name in ("negative", "above_one", "below_minus_one")}
        known |= {name: (total[name] - unused) / total["finite"] for name in ("zero", "whole")}
        known |= {"rms": np.hypot(mean, std), "mean": mean, "std": std}
        for name in BOUNDS:
            known[name] = (np.min if name.endswith("min") else np.max)(row[name], axis=0)
        known = {name: np.where(total["finite"] > 0, values, np.nan) for name, values in known.items()}
    known |= {"elements": total["finite"] + total["nonfinite"], "nonfinite": total["nonfinite"]}
    return np.stack([known[name.removeprefix("data_")] for name in DATA_COLUMNS]).astype(np.float32)
