"""Pure functions from tensors to numbers: no Keras, no state. Run in eager, `tf.function`, XLA and replicas alike.

All arithmetic is float32 or better whatever the tensor's dtype. A NaN or Inf element is counted and then left out, so
one of them does not hide the rest. Letters: B bins, K statistics, L layers, R replicas, U units, V variables.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tapescope import activations
from tapescope.capture import Call
from tensorboard_plugin_tapescope.metadata import BINS, BINS_PER_OCTAVE, LOW_EXPONENT, SIDE_BINS

GRADIENT_ROWS = ("norm", "max", "zero", "nonfinite")
LAYER_ROWS = (
    "elements",
    "nonfinite",
    "input_nonfinite",
    "mean",
    "m2",  # sum of squared differences from the mean: what merges without cancellation
    "min",
    "max",
    "zero",
    "saturated",
    "delta_norm",
    "z_norm",
    "input_norm",
    "delta_nonfinite",
    "examples",
)
UNIT_ROWS = ("absolute_sum", "zero", "flat", "low", "high")


class Finite(NamedTuple):
    """A tensor as float32 with 0 in place of its NaN and Inf elements."""

    values: tf.Tensor
    mask: tf.Tensor
    nonfinite: tf.Tensor
    """How many were replaced, float32 []."""


def finite(x: tf.Tensor) -> Finite:
    x = tf.cast(x, tf.float32)
    mask = tf.math.is_finite(x)
    return Finite(tf.where(mask, x, 0.0), mask, count(~mask))


def count(mask: tf.Tensor, axis: Sequence[int] | None = None) -> tf.Tensor:
    """Number of true elements over `axis` (all axes), float32; summed in int32, so exact while float32 can hold it."""
    return tf.cast(tf.reduce_sum(tf.cast(mask, tf.int32), axis), tf.float32)


def norm(values: tf.Tensor, largest: tf.Tensor | None = None) -> tf.Tensor:
    """L2 norm, float32 [], of finite values. Scaled by the largest magnitude, so that neither 1e-30 nor 1e30 is lost
    when it is squared (the scheme of BLAS' nrm2).
    """
    largest = tf.reduce_max(tf.abs(values)) if largest is None else largest
    return largest * tf.sqrt(tf.reduce_sum(tf.square(tf.math.divide_no_nan(values, largest))))


def hypot(parts: tf.Tensor) -> tf.Tensor:
    """L2 norm over axis 0 of norms, `[R, ...]` to `[...]`, without overflow. NaN where a part is NaN."""
    largest = tf.reduce_max(parts, 0)
    return largest * tf.sqrt(tf.reduce_sum(tf.square(tf.math.divide_no_nan(parts, largest)), 0))


def histogram(x: Finite) -> tf.Tensor:
    """Counts of finite elements over the wire's signed logarithmic bins, int32 [B]. Their sum is exact.

    A float's exponent and first mantissa bit are its half octave: no logarithm is taken.
    """
    bits = tf.bitcast(tf.reshape(x.values, [-1]), tf.int32)
    half_octave = tf.bitwise.right_shift(bits & 0x7FFFFFFF, 22) - (127 + LOW_EXPONENT) * BINS_PER_OCTAVE
    magnitude = tf.clip_by_value(half_octave + 1, 0, SIDE_BINS)
    index = tf.where(bits < 0, SIDE_BINS - magnitude, SIDE_BINS + magnitude)
    counts = tf.raw_ops.DenseBincount(input=index, size=BINS, weights=tf.zeros([0], tf.int32), binary_output=False)
    middle = tf.one_hot(SIDE_BINS, BINS, dtype=tf.int32)
    return counts - middle * tf.cast(x.nonfinite, tf.int32)


def gradient_row(x: Finite) -> tf.Tensor:
    """GRADIENT_ROWS of one variable's gradient, float32 [K]; `zero` is a share of all elements."""
    largest = tf.reduce_max(tf.abs(x.values))
    zero = count((x.values == 0) & x.mask) / tf.cast(tf.size(x.values), tf.float32)
    return tf.stack([norm(x.values, largest), largest, zero, x.nonfinite])


class LayerStats(NamedTuple):
    """What one replica knows of one layer."""

    row: tf.Tensor
    """LAYER_ROWS, float32 [K]."""
    units: tf.Tensor
    """UNIT_ROWS by unit, float32 [K, U]: sum of |a| and counts of elements."""
    histogram: tf.Tensor | None
    """int32 [B]."""


def by_unit(output: tf.Tensor) -> tf.Tensor:
    """A layer's output with its units along the last axis; a scalar or a vector over the batch is one unit."""
    return output if output.shape.rank is not None and output.shape.rank > 1 else tf.reshape(output, [-1, 1])


def layer_stats(call: Call, deltas: Sequence[tf.Tensor | None], histograms: bool, check_input: bool) -> LayerStats:
    """Statistics of one call; `deltas` are the gradients of the loss with respect to a, z and the input.

    z itself is not looked at where the output tells as much: a second reader of it would keep TensorFlow from fusing
    the activation into the matrix product, whose rounding differs, and the measured step must train to the same bits.
    """
    a, z = by_unit(call.a), None if call.z is None else by_unit(call.z)
    x = finite(a)
    elements = tf.cast(tf.size(a), tf.float32)
    sane = elements - x.nonfinite
    mean = tf.math.divide_no_nan(tf.reduce_sum(x.values), sane)
    m2 = tf.reduce_sum(tf.where(x.mask, tf.square(x.values - mean), 0.0))

    over = list(range(len(a.shape) - 1))
    none = tf.zeros([a.shape[-1]])
    low, high = activations.saturation(call.activation, z, a)
    flat = activations.flat(call.activation, a)
    low, high, flat = (none if m is None else count(m & x.mask, over) for m in (low, high, flat))
    zero = count(a == 0, over)
    units = tf.stack([tf.reduce_sum(tf.abs(x.values), over), zero, flat, low, high])

    norms, bad = [], tf.constant(0.0)
    for delta in deltas:
        if delta is None:
            norms.append(tf.constant(float("nan")))
        else:
            safe = finite(delta)
            norms.append(norm(safe.values))
            bad += safe.nonfinite
    row = [
        elements,
        x.nonfinite,
        count(~tf.math.is_finite(call.input)) if check_input and call.input is not None else tf.constant(0.0),
        mean,
        m2,
        tf.reduce_min(tf.where(x.mask, x.values, float("inf"))),
        tf.reduce_max(tf.where(x.mask, x.values, float("-inf"))),
        tf.reduce_sum(zero),
        tf.reduce_sum(low + high) if call.activation.defined else tf.constant(float("nan")),
        *norms,
        bad,
        tf.cast(tf.shape(call.a)[0], tf.float32) if call.a.shape.rank else tf.constant(1.0),
    ]
    return LayerStats(tf.stack(row), units, histogram(x) if histograms else None)


def merge_layers(rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """The columns of the layers over the global batch, each [L], from every replica's LAYER_ROWS `[R, K, L]`.

    Means and variances are merged by Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    of = dict(zip(LAYER_ROWS, tf.unstack(rows, axis=1), strict=True))
    elements = tf.reduce_sum(of["elements"], 0)
    sane = of["elements"] - of["nonfinite"]
    total = tf.reduce_sum(sane, 0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(sane * of["mean"], 0), total)
    m2 = tf.reduce_sum(of["m2"] + sane * tf.square(of["mean"] - mean), 0)
    delta, z, given = (hypot(of[name]) for name in ("delta_norm", "z_norm", "input_norm"))
    none = tf.fill(tf.shape(mean), float("nan"))
    return {
        "activation_mean": tf.where(total > 0, mean, none),
        "activation_std": tf.where(total > 0, tf.sqrt(tf.math.divide_no_nan(m2, total)), none),
        "activation_min": tf.where(total > 0, tf.reduce_min(of["min"], 0), none),
        "activation_max": tf.where(total > 0, tf.reduce_max(of["max"], 0), none),
        "activation_zero": tf.reduce_sum(of["zero"], 0) / elements,
        "activation_nonfinite": elements - total,
        "input_nonfinite": tf.reduce_sum(of["input_nonfinite"], 0),
        "saturated": tf.reduce_sum(of["saturated"], 0) / elements,
        "delta_norm": delta,
        "flow_gate": _decades(z, delta),
        "flow_weight": _decades(given, z),
        "elements": elements,
        "delta_nonfinite": tf.reduce_sum(of["delta_nonfinite"], 0),
        "examples": tf.reduce_sum(of["examples"], 0),
    }


def _decades(after: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    return (tf.math.log(after) - tf.math.log(before)) / tf.math.log(10.0)


def first(mask: tf.Tensor) -> tf.Tensor:
    """Index of the first true element of `[L]`, float32 []; -1 where none is."""
    indices = tf.where(mask, tf.range(tf.size(mask)), tf.int32.max)
    return tf.where(tf.reduce_any(mask), tf.cast(tf.reduce_min(indices), tf.float32), -1.0)


def last(mask: tf.Tensor) -> tf.Tensor:
    """Index of the last true element of `[L]`, float32 []; -1 where none is."""
    return tf.cast(tf.reduce_max(tf.concat([[-1], tf.where(mask, tf.range(tf.size(mask)), -1)], 0)), tf.float32)
