"""From what each replica says of its layers to the columns of the global batch, on vectors of L layers.

Letters: K statistics, L layers, R replicas.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import R, constant
from tapescope.statistics.layers import LAYER_ROWS


def layers(rows: tf.Tensor, sources: Sequence[int]) -> dict[str, tf.Tensor]:
    """The columns of the layers over the global batch, each [L], from every replica's LAYER_ROWS `[R, K, L]`.

    `sources` has for each layer the index of the one that feeds it, or -1; see `tapescope.capture.layer_graph`.
    Means and variances are merged by Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    if rows.shape[0] == 1:
        of = dict(zip(LAYER_ROWS, tf.unstack(rows[0]), strict=True))
    else:
        of = _merged(dict(zip(LAYER_ROWS, tf.unstack(rows, axis=1), strict=True)))
    sane = of["elements"] - of["nonfinite"]
    there = R.Greater(x=sane, y=constant(0.0))
    std = R.Sqrt(x=R.DivNoNan(x=of["m2"], y=sane))
    columns = {"mean": of["mean"], "std": std, "min": of["min"], "max": of["max"]}
    return {
        **{f"activation_{k}": R.SelectV2(condition=there, t=v, e=constant(np.nan)) for k, v in columns.items()},
        "activation_zero": of["zero"] / of["elements"],
        "activation_nonfinite": of["nonfinite"],
        "input_nonfinite": of["input_nonfinite"],
        "saturated": of["saturated"] / of["elements"],
        "delta_norm": of["delta_norm"],
        **_flow(of["delta_norm"], of["z_norm"], of["input_norm"], sources),
        "elements": of["elements"],
        "delta_nonfinite": of["delta_nonfinite"],
        "examples": of["examples"],
    }


def _hypot(parts: tf.Tensor) -> tf.Tensor:
    """L2 norm over axis 0 of norms, `[R, ...]` to `[...]`, without overflow. NaN where a part is NaN."""
    return tf.cast(tf.sqrt(tf.reduce_sum(tf.square(tf.cast(parts, tf.float64)), 0)), tf.float32)


def _merged(of: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Each row [L], from those of all replicas, [R, L]."""
    sane = of["elements"] - of["nonfinite"]
    mean = tf.math.divide_no_nan(tf.reduce_sum(sane * of["mean"], 0), tf.reduce_sum(sane, 0))
    special = {
        "mean": mean,
        "m2": tf.reduce_sum(of["m2"] + sane * tf.square(of["mean"] - mean), 0),
        "min": tf.reduce_min(of["min"], 0),
        "max": tf.reduce_max(of["max"], 0),
        **{name: _hypot(of[name]) for name in ("delta_norm", "z_norm", "input_norm")},
    }
    return {name: special[name] if name in special else tf.reduce_sum(row, 0) for name, row in of.items()}


def _flow(delta: tf.Tensor, z: tf.Tensor, given: tf.Tensor, sources: Sequence[int]) -> dict[str, tf.Tensor]:
    """In decades, each [L]: what the gradient gains from a layer's output to z, from z to its input, and from there to
    the output of the layer that feeds it.
    """
    logs = R.Mul(x=R.Log(x=R.Pack(values=[delta, z, given])), y=constant(1 / np.log(10)))
    delta, z, given = tf.unstack(logs)
    before = tf.where(tf.math.is_nan(given), tf.where(tf.math.is_nan(z), delta, z), given)
    fed = np.asarray(sources, np.int32)
    after = R.GatherV2(params=delta, indices=constant(np.maximum(fed, 0)), axis=constant(0))
    after += constant(np.where(fed >= 0, 0.0, np.nan))
    return {"flow_gate": z - delta, "flow_weight": given - z, "flow_between": after - before}


def first(mask: tf.Tensor) -> tf.Tensor:
    """Index of the first true element of `[L]`, float32 []; -1 where none is."""
    count = mask.shape[0] or 0
    left = _largest(mask, np.arange(count, 0, -1))  # it and those behind it
    return R.SelectV2(condition=R.Greater(x=left, y=constant(0.0)), t=constant(float(count)) - left, e=constant(-1.0))


def last(mask: tf.Tensor) -> tf.Tensor:
    """Index of the last true element of `[L]`, float32 []; -1 where none is."""
    return _largest(mask, np.arange(1, 1 + (mask.shape[0] or 0))) - constant(1.0)


def _largest(mask: tf.Tensor, values: np.ndarray) -> tf.Tensor:
    """The largest of `values` where `mask` is true, or 0."""
    found = R.Mul(x=R.Cast(x=mask, DstT=tf.float32), y=constant(values, tf.float32))
    return R.Relu(features=R.Max(input=found, axis=constant([0])))  # of no element the largest is -inf
