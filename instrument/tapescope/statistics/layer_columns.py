"""The columns of layers over the global batch, from the rows of all replicas and small batches.

Letters: J sums, K statistics, L layers, M small batches of an accumulated step, R replicas.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import constant
from tapescope.statistics.layers import LAYER_ROWS

_NORMS = ("delta_norm", "z_norm", "input_norm")
_MOMENTS = ("mean", "m2")
_COUNTS = tuple(name for name in LAYER_ROWS if name not in (*_NORMS, *_MOMENTS, "min", "max"))
_NAN = float("nan")


def layer_columns(rows: tf.Tensor, sources: Sequence[int]) -> dict[str, tf.Tensor]:
    """Return the layers' columns over the global batch, each [L], and a few rows more that `complete` needs.

    Means and variances are merged by Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.

    Args:
      rows: `layers.LAYER_ROWS`, of all replicas and small batches [..., K, L].
      sources: for each layer the index of the one that feeds it, or -1.
    """
    if all(size == 1 for size in rows.shape[:-2]):
        row = dict(zip(LAYER_ROWS, tf.unstack(tf.reshape(rows, rows.shape[-2:])), strict=True))
    else:
        row = _merge_rows(_by_name(rows))
    finite = row["elements"] - row["nonfinite"]
    has_finite = tf.raw_ops.Greater(x=finite, y=constant(0.0))
    std = tf.raw_ops.Sqrt(x=tf.raw_ops.DivNoNan(x=row["m2"], y=finite))
    moments = {"mean": row["mean"], "std": std, "min": row["min"], "max": row["max"]}
    return {
        **{
            f"activation_{name}": tf.raw_ops.SelectV2(condition=has_finite, t=value, e=constant(_NAN))
            for name, value in moments.items()
        },
        "activation_zero": row["zero"] / row["elements"],
        "activation_nonfinite": row["nonfinite"],
        "input_nonfinite": row["input_nonfinite"],
        "saturated": row["saturated"] / row["elements"],
        "delta_norm": row["delta_norm"],
        **_flow_columns(row["delta_norm"], row["z_norm"], row["input_norm"], sources),
        "elements": row["elements"],
        "delta_nonfinite": row["delta_nonfinite"],
        "examples": row["examples"],
    }


def _merge_rows(rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return each row over all replicas, [R, L] to [L]."""
    rows, finite = _known_moments(rows)
    mean = tf.math.divide_no_nan(tf.reduce_sum(finite * rows["mean"], 0), tf.reduce_sum(finite, 0))
    merged = {
        "mean": mean,
        "m2": tf.reduce_sum(rows["m2"] + finite * tf.square(rows["mean"] - mean), 0),
        "min": tf.reduce_min(rows["min"], 0),
        "max": tf.reduce_max(rows["max"], 0),
    }
    for name in _NORMS:
        merged[name] = _norm_of_norms(rows[name])
    return {name: merged[name] if name in merged else tf.reduce_sum(row, 0) for name, row in rows.items()}


def _known_moments(rows: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Return rows with mean and deviations 0 where there is no finite element, and the number of those."""
    finite = rows["elements"] - rows["nonfinite"]
    empty = finite == 0  # the mean of a replica whose share of the batch is empty is NaN
    return rows | {name: tf.where(empty, tf.zeros_like(finite), rows[name]) for name in _MOMENTS}, finite


def extremes(rows: tf.Tensor) -> tf.Tensor:
    """Return the smallest and the largest element of each layer, [2, L], from [..., K, L] of one replica."""
    row = _by_name(rows)
    return tf.stack([tf.reduce_min(row["min"], 0), tf.reduce_max(row["max"], 0)])


def layer_sums(rows: tf.Tensor) -> tf.Tensor:
    """Return sums from which `rows_of_sums` has the rows of many replicas.

    Float64 holds the squares of all float32. A variance that is the difference of two sums keeps 8 digits of it where
    the mean is 10,000 times as large.

    Args:
      rows: `layers.LAYER_ROWS` of one replica, or of its small batches, [..., K, L].

    Returns:
      Counts, the first two moments times the number of finite elements, and squared norms, float64 [J, L].
    """
    row, finite = _known_moments({name: tf.cast(x, tf.float64) for name, x in _by_name(rows).items()})
    first = finite * row["mean"]
    parts = [*(row[name] for name in _COUNTS), first, row["m2"] + first * row["mean"]]
    return tf.reduce_sum(tf.stack([*parts, *(tf.square(row[name]) for name in _NORMS)]), 1)


def rows_of_sums(sums: tf.Tensor, extremes_of_replicas: tf.Tensor) -> tf.Tensor:
    """Return `layers.LAYER_ROWS` over all replicas, float32 [K, L].

    Args:
      sums: of `layer_sums` over replicas, float64 [J, L].
      extremes_of_replicas: of `extremes`, float32 [R, 2, L].
    """
    row = dict(zip((*_COUNTS, *_MOMENTS, *_NORMS), tf.unstack(sums), strict=True))
    finite = row["elements"] - row["nonfinite"]
    mean = tf.math.divide_no_nan(row["mean"], finite)
    row |= {"mean": mean, "m2": tf.maximum(row["m2"] - row["mean"] * mean, tf.zeros_like(mean))}
    row |= {name: tf.sqrt(row[name]) for name in _NORMS}
    row = {name: tf.cast(x, tf.float32) for name, x in row.items()}
    row |= {"min": tf.reduce_min(extremes_of_replicas[:, 0], 0), "max": tf.reduce_max(extremes_of_replicas[:, 1], 0)}
    return tf.stack([row[name] for name in LAYER_ROWS])


def _by_name(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Return [..., K, L] as [M, L] by name."""
    parts = tf.reshape(rows, [-1, *rows.shape[-2:]])
    return dict(zip(LAYER_ROWS, tf.unstack(parts, axis=1), strict=True))


def _norm_of_norms(norms: tf.Tensor) -> tf.Tensor:
    """Return the L2 norm over axis 0, [R, L] to [L], without overflow; NaN where one of them is NaN."""
    return tf.cast(tf.sqrt(tf.reduce_sum(tf.square(tf.cast(norms, tf.float64)), 0)), tf.float32)


def _flow_columns(
    delta_norm: tf.Tensor, z_norm: tf.Tensor, input_norm: tf.Tensor, sources: Sequence[int]
) -> dict[str, tf.Tensor]:
    """Return the gradient's gain in decades, each [L], in three parts.

    They lead from a layer's output to z, from z to its input, and from there to the output of the layer that feeds it.
    """
    norms = tf.raw_ops.Pack(values=[delta_norm, z_norm, input_norm])
    delta, z, inputs = tf.unstack(tf.raw_ops.Mul(x=tf.raw_ops.Log(x=norms), y=constant(1 / np.log(10))))
    before = tf.where(tf.math.is_nan(inputs), tf.where(tf.math.is_nan(z), delta, z), inputs)
    source = np.asarray(sources, np.int32)
    after = tf.raw_ops.GatherV2(params=delta, indices=constant(np.maximum(source, 0)), axis=constant(0))
    after += constant(np.where(source >= 0, 0.0, _NAN))
    return {"flow_gate": z - delta, "flow_weight": inputs - z, "flow_between": after - before}
