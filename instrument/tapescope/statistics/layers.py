"""Of layers: what one replica's outputs and their gradients say, from tensors to numbers, as `tapescope.statistics.tensors` does it.

Letters: B bins, K statistics, L layers, M elements of a unit, n tensors, U units.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tapescope.capture.activations import SATURATED_SHARE, Activation
from tapescope.capture.layer_hooks import Call
from tapescope.failsafe import blaming
from tapescope.statistics import histograms
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.batched_ops import (
    Group,
    R,
    again,
    axes,
    chunks,
    concat,
    constant,
    different,
    elements,
    first_unit,
    grouped,
    in_order,
    joined,
    settled,
    spread,
)
from tensorboard_plugin_tapescope.metadata import BINS

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

_CANCELLED = 1 / 256
"""A variance below this part of the mean square has lost too many digits as a difference of the two."""


def by_unit(output: tf.Tensor) -> tf.Tensor:
    """A layer's output with its units along the last axis; a scalar or a vector over the batch is one unit."""
    return output if output.shape.rank is not None and output.shape.rank > 1 else tf.reshape(output, [-1, 1])


Measured = tuple[Call, Sequence[tf.Tensor | None]]
"""A call, and the gradients of the loss with respect to its a, z and input."""


def layer_rows(measured: Sequence[Measured], histogram: bool = False) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """LAYER_ROWS of each call, float32 [K, L]; UNIT_ROWS of all their units, float32 [K, sum U]; counts over bins if
    asked, int32 [L, B].

    The pre-activation z is not read where the output tells as much: a second reader would keep TensorFlow from fusing
    the activation into the matrix product, whose rounding differs, and a measured step must train to the same bits.
    """
    if not measured:
        return tf.zeros([len(LAYER_ROWS), 0]), tf.zeros([len(UNIT_ROWS), 0]), tf.zeros([0, BINS], tf.int32)
    calls = [call for call, _ in measured]
    outputs = [tf.cast(_output(call), tf.float32) for call in calls]
    kinds = [id(call) if call.activation.function else call.activation for call in calls]
    groups = grouped(outputs, True, kinds)
    parts = [_outputs(chunk, calls) for chunk in chunks(groups)]
    rows, sums = (concat(part, 1) for part in zip(*parts, strict=True))
    flags = _flags(groups, calls)
    units = [int(a.shape[-1] or 0) for a in outputs]
    of_layer = np.repeat(np.arange(len(calls)), [units[i] for group in groups for i in group.indices])
    counts = R.Pack(values=[flags[0], flags[2] + flags[3]], axis=1)
    counts = R.UnsortedSegmentSum(data=counts, segment_ids=constant(of_layer), num_segments=constant(len(calls)))
    zero, saturated = tf.unstack(counts, axis=1)
    defined = [0.0 if calls[i].activation.defined else np.nan for group in groups for i in group.indices]
    sizes = elements(groups)
    bins = None
    if histogram:
        counted = histograms.folded(histograms.codes(groups), groups, sizes - rows[0])
        bins = tf.transpose(in_order(counted, groups))
    rows = in_order(concat([sizes[None], rows, R.Pack(values=[zero, saturated + defined])], 0), groups)
    by_unit_ = in_order(concat([sums, R.Pack(values=flags)], 0), groups, units)
    lengths, bad = _deltas(measured)
    given = constant(0.0) if calls[0].given is None else _nonfinite(tf.cast(calls[0].given, tf.float32))
    first = calls[0].read
    examples = tf.cast(tf.shape(first_unit(first)[0])[0], tf.float32) if first.shape.rank else constant(1.0)
    inputs = tf.pad(tf.stack([[given], [examples]]), constant([[0, 0], [0, len(calls) - 1]]))
    return concat([rows, lengths, bad[None], inputs], 0), by_unit_, bins


def _output(call: Call) -> tf.Tensor:
    """Of a function that is differentiated at z its value there: such a function (SiLU, GELU) ends in a product, which
    TensorFlow merges with what a dropout multiplies by only where nothing else reads it.
    """
    z, function = _z(call), call.activation.function
    return by_unit(call.read) if z is None or function is None else tf.convert_to_tensor(function(z))


def _z(call: Call) -> tf.Tensor | None:
    """The z at which the function is to be differentiated, with the units along the second axis.

    By a name that TensorFlow keeps: on a processor it makes one operation of SiLU, which bears no mark of ours, and
    would take that for the step's own where both are of the same tensor.
    """
    if not call.differentiated:
        return None
    z = tf.reshape(call.read, [-1, by_unit(call.a).shape[-1]])
    return R.EnsureShape(input=z, shape=z.shape)


def _nonfinite(x: tf.Tensor) -> tf.Tensor:
    """How many elements are NaN or Inf, float32 []."""
    return tf.cast(tf.reduce_sum(tf.cast(~tf.math.is_finite(x), tf.int32)), tf.float32)


def _outputs(groups: Sequence[Group], calls: Sequence[Call]) -> Sequence[tf.Tensor]:
    """Non-finite elements, mean, m2, smallest and largest of each output, `[5, n]`; absolute sums `[1, sum U]`."""
    inner, first, second, end = axes(groups), constant([0]), constant([1]), constant([-1])
    across = [second if group.many else first for group in groups]
    sums = [R.Sum(input=g.x, axis=axis) for g, axis in zip(groups, across, strict=True)]
    total = joined([R.Sum(input=s, axis=end) for s in sums], groups)
    highest = joined([R.Max(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    lowest = joined([R.Min(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    square = tensor_statistics.squares(groups)
    mean = total / elements(groups)
    m2 = square - total * mean
    same = R.Equal(x=highest, y=lowest)
    good = same | (m2 > _CANCELLED * square) & tensor_statistics.in_range(square)
    quick = R.Pack(values=[0 * square, mean, R.SelectV2(condition=same, t=0 * square, e=m2), lowest, highest])
    for i, (group, axis) in enumerate(zip(groups, across, strict=True)):
        if not calls[group.indices[0]].activation.nonnegative:
            sums[i] = R.Sum(input=settled(R.Abs(x=group.x)), axis=axis)
    return again(good, [quick, _by_unit(sums)[None]], groups, _safe_output)


def _by_unit(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """`[sum U]` from `[U]` or `[n, U]` of each group."""
    return concat([p if p.shape.rank == 1 else R.Reshape(tensor=p, shape=constant([-1])) for p in parts], 0)


def _safe_output(x: tf.Tensor) -> Sequence[tf.Tensor]:
    """As `_outputs`, of one group, `[n, M, U]`: of the finite elements, in two passes."""
    inner, mask = constant([1, 2]), R.IsFinite(x=x)
    values, largest, bad = tensor_statistics.finite(x, mask, inner)
    sane = R.Sub(x=constant(1.0), y=bad)
    total, number, nonfinite = (R.Sum(input=t, axis=inner, keep_dims=True) for t in (values, sane, bad))
    mean = R.DivNoNan(x=total, y=number)
    m2 = R.Sum(input=settled(R.Square(x=(values - mean) * sane)), axis=inner, keep_dims=True) * largest * largest
    lowest, highest = (settled(R.SelectV2(condition=mask, t=x, e=end)) for end in (np.inf, -np.inf))
    lowest, highest = R.Min(input=lowest, axis=inner, keep_dims=True), R.Max(input=highest, axis=inner, keep_dims=True)
    rows = R.Pack(values=[nonfinite, mean * largest, m2, lowest, highest])
    absolute = R.Sum(input=settled(R.Abs(x=values)), axis=constant([1]), keep_dims=True) * largest
    return R.Reshape(tensor=rows, shape=constant([5, -1])), R.Reshape(tensor=absolute, shape=constant([1, -1]))


def _flags(groups: Sequence[Group], calls: Sequence[Call]) -> list[tf.Tensor]:
    """The UNIT_ROWS but the first: how many elements of each unit are 0, flat, saturated low and high, `[sum U]`."""
    first, second, zero, found = constant([0]), constant([1]), constant(0.0), []
    for group in groups:
        call, x = calls[group.indices[0]], group.x
        nothing = tf.zeros([*[len(group.indices)] * group.many, x.shape[-1]])

        def counted(where: tf.Tensor | None, many: bool = group.many, none: tf.Tensor = nothing) -> tf.Tensor:
            if where is None:
                return none
            return R.Sum(input=settled(R.Cast(x=where, DstT=tf.float32)), axis=second if many else first)

        with blaming(call.name):
            zeros = counted(R.Equal(x=x, y=zero))
            low, high = saturation_masks(call.activation, _z(call), x)
            relu = call.activation.nonnegative and call.activation.saturated[0] == 0  # its saturated low are its zeros
            flat = flat_mask(call.activation, x)
        found.append((zeros, counted(flat), zeros if relu else counted(low), counted(high)))
    return [_by_unit(row) for row in zip(*found, strict=True)]


def saturation_masks(
    activation: Activation, z: tf.Tensor | None, a: tf.Tensor
) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """Return which elements of `a` are saturated low and which high.

    Args:
      activation: the function that made `a`.
      z: its argument, of the shape of `a`; needed only where `activation.function` is set.
      a: the layer's output, float32 [..., U].

    Returns:
      Two boolean tensors of the shape of `a`. One of them is None where no element can be saturated on that side.
    """
    if activation.function is not None and z is not None:
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = activation.function(z)
        slope = tf.cast(tf.convert_to_tensor(tape.gradient(value, z)), tf.float32)
        small = tf.abs(slope) < SATURATED_SHARE * activation.largest
        return small & (z < 0), small & (z >= 0)
    low, high = activation.saturated
    return (a <= low if low > -np.inf else None), (a >= high if high < np.inf else None)


def flat_mask(activation: Activation, a: tf.Tensor) -> tf.Tensor | None:
    """Return where the derivative of a bounded function is exactly 0: bool, of the shape of `a`; else None."""
    if activation.flat is None:
        return None
    low, high = activation.flat
    return (a <= low) | (a >= high)


def _deltas(measured: Sequence[Measured]) -> tuple[tf.Tensor, tf.Tensor]:
    """L2 norms of the gradients with respect to a, z and input, [3, L], NaN where there is none; and the number of
    their non-finite elements, [L].
    """
    deltas = [delta for _, of_call in measured for delta in of_call]
    # Along a chain, that of a layer's output is that of the next one's input: one tensor.
    there = different(deltas)
    if not there:
        return tf.fill([3, len(measured)], np.nan), tf.zeros([len(measured)])
    groups = grouped(there)
    rows = in_order(tensor_statistics.lengths(groups), groups)
    lengths, bad = (spread(rows[i : i + 1], deltas, absent) for i, absent in ((0, np.nan), (2, 0.0)))
    return tf.transpose(tf.reshape(lengths, [-1, 3])), tf.reduce_sum(tf.reshape(bad, [-1, 3]), 1)
