"""Pure functions from tensors to numbers: no Keras, no state. Run in eager, `tf.function`, XLA and replicas alike.

All arithmetic is float32 or better whatever the tensor's dtype. A NaN or Inf element is counted and then left out, so
that one of them does not hide the rest; norms keep their digits from 1e-33 to 1e38. Both cost several passes over the
data, so everything is first computed the quick way, which reads each tensor a few times and writes little. If a sum
comes out that the quick way could have got wrong, the chunk of tensors it belongs to is done again the `safe` way.

Letters: B bins, K statistics, L layers, N elements, R replicas, U units, V variables.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope import activations
from tapescope.capture import Call
from tensorboard_plugin_tapescope.metadata import BINS, BINS_PER_OCTAVE, LOW_EXPONENT, SIDE_BINS

GRADIENT_ROWS = ("norm", "max", "zero", "nonfinite")
WEIGHT_ROWS = ("norm", "change", "nonfinite")
LAYER_ROWS = (
    "elements",
    "nonfinite",
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
    "input_nonfinite",
    "examples",
)
UNIT_ROWS = ("absolute_sum", "zero", "flat", "low", "high")


CHUNK = 16
"""Tensors that are done again together; what the quick way needs must stay in memory until then."""

_TINY = 1e-30
"""A sum of squares below this has lost digits, or is 0 though no element is."""

Numbers = list[tf.Tensor]


def chunked(items: Sequence[Any], compute: Callable[[Sequence[Any], bool], tuple[Numbers, Numbers]]) -> list[Numbers]:
    """`compute(chunk, safe)` for all items, in chunks; for each chunk its numbers.

    `compute` returns its numbers and its suspects: values that lie between 1e-30 and infinity where the quick way was
    good enough. Where one does not, the chunk is computed again with `safe`.
    """
    results = []
    for start in range(0, len(items), CHUNK):
        chunk = items[start : start + CHUNK]
        quick, suspects = compute(chunk, False)
        suspect = tf.stack(suspects)
        good = tf.reduce_all(tf.math.is_finite(suspect) & (suspect > _TINY))
        results.append(tf.cond(good, lambda q=quick: q, lambda c=chunk: compute(c, True)[0]))
    return results


def count(mask: tf.Tensor, axis: Sequence[int] | None = None) -> tf.Tensor:
    """Number of true elements over `axis` (all axes), float32; summed in int32, so exact while float32 can hold it."""
    return tf.cast(tf.reduce_sum(tf.cast(mask, tf.int32), axis), tf.float32)


def norm(x: tf.Tensor) -> tf.Tensor:
    """L2 norm, float32 [], of finite values. Scaled by the largest magnitude, so that neither 1e-30 nor 1e30 is lost
    when it is squared (the scheme of BLAS' nrm2).
    """
    largest = tf.reduce_max(tf.abs(x))
    return largest * tf.sqrt(tf.reduce_sum(tf.square(tf.math.divide_no_nan(x, largest))))


def hypot(parts: tf.Tensor) -> tf.Tensor:
    """L2 norm over axis 0 of norms, `[R, ...]` to `[...]`, without overflow. NaN where a part is NaN."""
    largest = tf.reduce_max(parts, 0)
    return largest * tf.sqrt(tf.reduce_sum(tf.square(tf.math.divide_no_nan(parts, largest)), 0))


def finite(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`x` with 0 in place of its NaN and Inf elements, and how many there were, float32 []."""
    mask = tf.math.is_finite(x)
    return tf.where(mask, x, 0.0), count(~mask)


def _norm(x: tf.Tensor, safe: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """L2 norm of the finite elements, number of the others, and the sum of squares as a suspect."""
    if safe:
        values, nonfinite = finite(x)
        return norm(values), nonfinite, tf.constant(1.0)
    square = 2 * tf.nn.l2_loss(x)
    return tf.sqrt(square), tf.constant(0.0), square


_CODES = 1024
"""Values of a float32's sign, exponent and first mantissa bit: its half octave, found without a logarithm."""


def _bin_of_code() -> np.ndarray:
    """The wire's bin of each code, int32 [_CODES]; BINS for the codes of NaN and Inf."""
    code = np.arange(_CODES // 2)
    magnitude = np.clip(code - (127 + LOW_EXPONENT) * BINS_PER_OCTAVE + 1, 0, SIDE_BINS)
    nonfinite = code >= 255 * BINS_PER_OCTAVE
    sides = [np.where(nonfinite, BINS, SIDE_BINS + sign * magnitude) for sign in (1, -1)]
    return np.concatenate(sides).astype(np.int32)


def codes(x: tf.Tensor) -> tf.Tensor:
    """How many elements have each code, int32 [_CODES]: one pass, and one that counts. Exact."""
    bits = tf.bitcast(tf.reshape(x, [-1]), tf.uint32)
    code = tf.bitcast(tf.bitwise.right_shift(bits, tf.constant(22, tf.uint32)), tf.int32)
    return tf.raw_ops.DenseBincount(input=code, size=_CODES, weights=tf.zeros([0], tf.int32), binary_output=False)


def histograms(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Counts of the finite elements over the wire's signed logarithmic bins, int32 [len(tensors), B]; 0 for None."""
    counts = tf.stack([tf.zeros([_CODES], tf.int32) if x is None else codes(x) for x in tensors], axis=1)
    return tf.transpose(tf.math.unsorted_segment_sum(counts, _bin_of_code(), BINS + 1)[:BINS])


def gradient_rows(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """GRADIENT_ROWS of each variable's gradient, float32 [K, V]; NaN where there is none."""
    there = [g for g in gradients if g is not None]
    numbers = iter([row for chunk in chunked(there, _gradient_chunk) for row in chunk])
    absent = tf.fill([len(GRADIENT_ROWS)], float("nan"))
    return tf.stack([absent if g is None else next(numbers) for g in gradients], axis=1)


def _gradient_chunk(gradients: Sequence[tf.Tensor], safe: bool) -> tuple[Numbers, Numbers]:
    rows, suspects = [], []
    for g in gradients:
        length, nonfinite, square = _norm(g, safe)
        x = finite(g)[0] if safe else g
        largest = tf.maximum(tf.reduce_max(x), -tf.reduce_min(x))
        zero = count(g == 0) / tf.cast(tf.size(g), tf.float32)
        rows.append(tf.stack([length, largest, zero, nonfinite]))
        suspects.append(tf.where(largest == 0, 1.0, square))
    return rows, suspects


def weight_rows(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> tf.Tensor:
    """WEIGHT_ROWS of each variable, float32 [K, V]."""
    pairs = list(zip(before, after, strict=True))
    return tf.stack([row for chunk in chunked(pairs, _weight_chunk) for row in chunk], axis=1)


def _weight_chunk(pairs: Sequence[tuple[tf.Tensor, tf.Tensor]], safe: bool) -> tuple[Numbers, Numbers]:
    rows, suspects = [], []
    for old, new in pairs:
        old, new = tf.cast(old, tf.float32), tf.cast(new, tf.float32)
        length, nonfinite, square = _norm(old, safe)
        change, _, square_of_change = _norm(new - old, safe)
        rows.append(tf.stack([length, change, nonfinite]))
        suspects.append(1 + 0 * (square + square_of_change))  # a weight of 1e-16 is as good as 0
    return rows, suspects


def by_unit(output: tf.Tensor) -> tf.Tensor:
    """A layer's output with its units along the last axis; a scalar or a vector over the batch is one unit."""
    return output if output.shape.rank is not None and output.shape.rank > 1 else tf.reshape(output, [-1, 1])


Measured = tuple[Call, Sequence[tf.Tensor | None], bool]
"""A call, the gradients of the loss with respect to its a, z and input, and whether its input is to be checked."""


def layer_rows(measured: Sequence[Measured]) -> tuple[tf.Tensor, tf.Tensor]:
    """LAYER_ROWS of each call, float32 [K, L], and UNIT_ROWS of all their units, float32 [K, sum U].

    The pre-activation z is not read where the output tells as much: a second reader would keep TensorFlow from fusing
    the activation into the matrix product, whose rounding differs, and a measured step must train to the same bits.
    """
    if not measured:
        return tf.zeros([len(LAYER_ROWS), 0]), tf.zeros([len(UNIT_ROWS), 0])
    numbers = [t for chunk in chunked(measured, _layer_chunk) for t in chunk]
    return tf.stack(numbers[::2], axis=1), tf.concat(numbers[1::2], axis=1)


def _layer_chunk(measured: Sequence[Measured], safe: bool) -> tuple[Numbers, Numbers]:
    numbers, suspects = [], []
    for call, deltas, check_input in measured:
        row, of_units, suspect = _layer(call, safe)
        norms, bad = [], tf.constant(0.0)
        for delta in deltas:
            if delta is None:
                norms.append(tf.constant(float("nan")))
            else:
                length, nonfinite, square = _norm(delta, safe)
                norms.append(length)
                bad += nonfinite
                suspect.append(square)
        given = count(~tf.math.is_finite(call.input)) if check_input and call.input is not None else tf.constant(0.0)
        examples = tf.cast(tf.shape(call.a)[0], tf.float32) if call.a.shape.rank else tf.constant(1.0)
        numbers += [tf.stack([*row, *norms, bad, given, examples]), of_units]
        suspects += suspect
    return numbers, suspects


def _layer(call: Call, safe: bool) -> tuple[Numbers, tf.Tensor, Numbers]:
    """The LAYER_ROWS that are of the output, the units' rows, and the suspects."""
    a, z = tf.cast(by_unit(call.a), tf.float32), None if call.z is None else by_unit(call.z)
    over = list(range(len(a.shape) - 1))
    elements, nonfinite, mask, x = tf.cast(tf.size(a), tf.float32), tf.constant(0.0), None, a
    if safe:
        mask = tf.math.is_finite(a)
        x, nonfinite = finite(a)

    def counted(where: tf.Tensor | None) -> tf.Tensor:
        if where is None:
            return tf.zeros([a.shape[-1]])
        return count(where if mask is None else where & mask, over)

    sums = tf.reduce_sum(x, over)
    total, sane = tf.reduce_sum(sums), elements - nonfinite
    mean = tf.math.divide_no_nan(total, sane)
    squares = tf.math.squared_difference(x, mean)
    m2 = tf.reduce_sum(squares if mask is None else tf.where(mask, squares, 0.0))
    zero = counted(a == 0)
    low, high = activations.saturation(call.activation, z, a)
    relu = call.activation.nonnegative and call.activation.saturated[0] == 0  # its saturated low are its zeros
    low, high = zero if relu else counted(low), counted(high)
    flat = counted(activations.flat(call.activation, a))
    row = [
        elements,
        nonfinite,
        mean,
        m2,
        tf.reduce_min(x if mask is None else tf.where(mask, x, np.inf)),
        tf.reduce_max(x if mask is None else tf.where(mask, x, -np.inf)),
        tf.reduce_sum(zero),
        tf.reduce_sum(low + high) if call.activation.defined else tf.constant(np.nan),
    ]
    absolute = sums if call.activation.nonnegative else tf.reduce_sum(tf.abs(x), over)
    return row, tf.stack([absolute, zero, flat, low, high]), [1 + 0 * (total + m2)]


def merge_layers(rows: tf.Tensor, sources: Sequence[int]) -> dict[str, tf.Tensor]:
    """The columns of the layers over the global batch, each [L], from every replica's LAYER_ROWS `[R, K, L]`.

    `sources` has for each layer the index of the one that feeds it, or -1; see `tapescope.flow`.
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
    feeds = tf.constant(sources, tf.int32)
    before = tf.where(tf.math.is_nan(given), tf.where(tf.math.is_nan(z), delta, z), given)
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
        "flow_between": _decades(tf.where(feeds >= 0, tf.gather(delta, tf.maximum(feeds, 0)), np.nan), before),
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
