"""Statistics of layers: one replica's outputs, and the gradients of the loss with respect to them.

As in `tapescope.statistics.tensors`, there is a fast path and an exact path. An *output* is what a layer's activation
returns, a. Its *pre-activation* z is the activation's argument.

Letters: B bins, K statistics, L layers, M elements of a unit, n tensors, U units.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope.capture.activations import SATURATED_SHARE, Activation
from tapescope.capture.layer_hooks import LayerCall
from tapescope.failsafe import attribute_errors_to
from tapescope.statistics import histograms, single_pass
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.batched_ops import (
    Group,
    chunks,
    concat,
    concat_parts,
    constant,
    distinct_tensors,
    element_counts,
    expand_columns,
    first_unit,
    for_gpu,
    fusion_barrier,
    group_by_shape,
    reduction_axes,
    restore_order,
    with_exact_fallback,
)
from tapescope.statistics.reductions import Reduction, join
from tensorboard_plugin_tapescope.metadata import BINS

LAYER_ROWS = (
    "elements",
    "nonfinite",
    "mean",
    "m2",  # sum of squared differences from the mean: replicas' are merged without cancellation
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
"""Statistics of a layer, over the finite elements of its output: sums and extremes that `reading` can merge.

`zero`, `saturated` and `*nonfinite` are counts of elements. `input_nonfinite` and `examples` are of the first layer.
"""
UNIT_ROWS = ("absolute_sum", "zero", "flat", "low", "high")
"""Statistics of a unit over the batch: sum of magnitudes, and counts of the elements that are 0, flat, or saturated."""

_CANCELLATION = 1 / 256
"""A variance below this share of the mean square has lost 8 bits and more, as the difference of two sums."""


def by_unit(output: tf.Tensor) -> tf.Tensor:
    """Return a layer's output with its units along the last axis; a scalar or a vector over the batch is one unit."""
    return output if output.shape.rank is not None and output.shape.rank > 1 else tf.reshape(output, [-1, 1])


Examples = int | Callable[[tf.Tensor], Any] | None
"""How many examples a batch has, or a function from the shape of the first layer's output to it; see `Probe`."""


def layer_rows(
    calls: Sequence[LayerCall], histogram: bool = False, examples: Examples = None
) -> Reduction[tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]]:
    """Return the statistics of all layers and of all their units.

    The pre-activation z is not read where the output determines saturation. A second consumer would keep Grappler from
    fusing the activation into the matrix product, and the step's rounding would change.

    Args:
      calls: the calls of the L layers, with their gradients.
      histogram: whether elements of the outputs are counted over bins.
      examples: see `tapescope.Probe`.

    Returns:
      LAYER_ROWS, float32 [K, L]; UNIT_ROWS of the units of all layers in order, float32 [K, sum U]; and the counts,
      int32 [L, B], or None if not asked for.
    """
    if not calls:
        return tf.zeros([len(LAYER_ROWS), 0]), tf.zeros([len(UNIT_ROWS), 0]), tf.zeros([0, BINS], tf.int32)
    outputs = [tf.cast(_output(call), tf.float32) for call in calls]
    # A derivative needs the z or the gradients of its own call, so such an output is not stacked with others.
    needs_own = [call.activation.function is not None or call.activation.from_gradients for call in calls]
    keys = [id(call) if own else call.activation for call, own in zip(calls, needs_own, strict=True)]
    groups = group_by_shape(outputs, keep_units=True, keys=keys)
    widths = [int(a.shape[-1] or 0) for a in outputs]
    of_outputs, (norms, nonfinite) = yield from join(
        _output_rows(groups, calls, widths), _delta_rows([call.deltas for call in calls])
    )
    moments, zero, saturated, absolute_sums, unit_counts = of_outputs
    nan_if_undefined = [0.0 if _has_saturation(calls[i]) else np.nan for group in groups for i in group.indices]
    sizes = element_counts(groups)
    bins = None
    if histogram:
        bins = tf.transpose(restore_order(histograms.fold_into_bins(histograms.count_codes(groups)), groups))
    rows = concat([sizes[None], moments, tf.raw_ops.Pack(values=[zero, saturated + nan_if_undefined])], 0)
    rows = restore_order(rows, groups)
    units = restore_order(concat([absolute_sums, tf.raw_ops.Pack(values=unit_counts)], 0), groups, widths)
    first_input = _first_input_rows(calls, examples)
    return concat([rows, norms, nonfinite[None], first_input], 0), units, bins


def _output_rows(
    groups: Sequence[Group], calls: Sequence[LayerCall], widths: Sequence[int]
) -> Reduction[tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]]:
    """Return all statistics of the outputs, in the order of the groups.

    Returns:
      What `_moments` returns first, number of zeros and of saturated elements, each [n], what `_moments` returns
      second, and what `_unit_counts` returns.
    """
    if for_gpu():
        return (yield from _output_rows_on_gpu(groups, calls))
    parts = [_moments(chunk, calls) for chunk in chunks(groups)]
    moments, absolute_sums = (concat(part, 1) for part in zip(*parts, strict=True))
    unit_counts = _unit_counts(groups, calls)
    return moments, *_sum_by_layer(unit_counts, groups, widths), absolute_sums, unit_counts


def _output_rows_on_gpu(
    groups: Sequence[Group], calls: Sequence[LayerCall]
) -> Reduction[tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]]:
    """Return what `_output_rows` does, in one pass over each output."""
    units = []
    saturated = []
    zero = constant(0.0)
    for group in groups:
        masks = _unit_masks(group, calls)
        x = group.tensor
        magnitude = tf.raw_ops.SelectV2(condition=tf.raw_ops.IsFinite(x=x), t=tf.raw_ops.Abs(x=x), e=zero)
        present = {id(mask): tf.cast(mask, tf.float32) for mask in masks if mask is not None}
        summed = single_pass.unit_sums(group, [magnitude, *present.values()])
        counts = dict(zip(present, summed[1:], strict=True))
        none = tf.zeros_like(summed[0])
        units.append((summed[0], *(none if mask is None else counts[id(mask)] for mask in masks)))
        saturated.append(functools.partial(_is_saturated, calls[group.indices[0]], masks))
    moments = yield from single_pass.moments(groups, saturated)
    absolute_sums, *unit_counts = (_concat_units(row) for row in zip(*units, strict=True))
    rows = tf.raw_ops.Pack(values=[moments[name] for name in ("nonfinite", "mean", "m2", "min", "max")])
    return rows, moments["zero"], moments["saturated"], absolute_sums[None], unit_counts


def _is_saturated(call: LayerCall, masks: Sequence[tf.Tensor | None], x: tf.Tensor) -> tf.Tensor | None:
    """Return which elements of `x` are saturated; `masks` are of the same elements in another shape."""
    if call.activation.function is None and not call.activation.from_gradients:
        low, high = saturation_masks(call.activation, None, x)
    else:
        low, high = (None if mask is None else tf.reshape(mask, tf.shape(x)) for mask in masks[2:])
    return high if low is None else low if high is None else low | high


def _sum_by_layer(
    unit_counts: Sequence[tf.Tensor], groups: Sequence[Group], widths: Sequence[int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return how many elements of each layer are 0 and how many saturated, each [L], in the order of the groups."""
    zero, _, low, high = unit_counts
    layers = len(widths)
    layer_of_unit = np.repeat(np.arange(layers), [widths[i] for group in groups for i in group.indices])
    counts = tf.raw_ops.Pack(values=[zero, low + high], axis=1)
    sums = tf.raw_ops.UnsortedSegmentSum(
        data=counts, segment_ids=constant(layer_of_unit), num_segments=constant(layers)
    )
    zeros, saturated = tf.unstack(sums, axis=1)
    return zeros, saturated


def _first_input_rows(calls: Sequence[LayerCall], examples: Examples) -> tf.Tensor:
    """Return the last two LAYER_ROWS, float32 [2, L]: in the first column those of the first layer, else 0."""
    first = calls[0]
    nonfinite = (
        constant(0.0) if first.measured_input is None else _count_nonfinite(tf.cast(first.measured_input, tf.float32))
    )
    count = tf.cast(_count_examples(first.measured, examples), tf.float32)
    return tf.pad(tf.stack([[nonfinite], [count]]), constant([[0, 0], [0, len(calls) - 1]]))


def _count_examples(output: tf.Tensor, examples: Examples) -> Any:
    if isinstance(examples, int):
        return examples
    if not output.shape.rank:
        return 1 if examples is None else examples(tf.shape(output))
    slice_, units = first_unit(output)
    shape = tf.shape(slice_)
    return shape[0] if examples is None else examples(tf.concat([shape[:-1], shape[-1:] * units], 0))


def _output(call: LayerCall) -> tf.Tensor:
    """Return a layer's output with its units last; of a function that is differentiated at z, its value at z.

    Such a function (SiLU, GELU) ends in a product. Grappler merges that product with the one of a dropout behind it
    only if it has no other consumer.
    """
    z = _pre_activation(call)
    function = call.activation.function
    return by_unit(call.measured) if z is None or function is None else tf.convert_to_tensor(function(z))


def _pre_activation(call: LayerCall) -> tf.Tensor | None:
    """Return z with its units along the second axis, [M, U]; None where it is not differentiated.

    oneDNN makes one operation of SiLU, which loses the mark of measuring. Common-subexpression elimination would then
    share it with the step if both read the same tensor, hence an `EnsureShape` between, which Grappler keeps.
    """
    if not call.differentiated:
        return None
    z = tf.reshape(call.measured, [-1, by_unit(call.a).shape[-1]])
    return tf.raw_ops.EnsureShape(input=z, shape=z.shape)


def _count_nonfinite(x: tf.Tensor) -> tf.Tensor:
    """Return how many elements are NaN or Inf, float32 []."""
    return tf.reduce_sum(tf.cast(~tf.math.is_finite(x), tf.float32))


def _moments(groups: Sequence[Group], calls: Sequence[LayerCall]) -> Sequence[tf.Tensor]:
    """Return the moments of one chunk's outputs, and the units' sums of magnitudes.

    The fast path takes m2 = sum(x^2) - sum(x)^2 / N.

    Returns:
      Number of non-finite elements, mean, m2, min and max, float32 [5, n]; and the sums, float32 [1, sum U].
    """
    axes = reduction_axes(groups)
    batch_axis = constant([0])
    batch_axis_of_stack = constant([1])
    last_axis = constant([-1])
    batch_axes = [batch_axis_of_stack if group.stacked else batch_axis for group in groups]
    unit_sums = [tf.raw_ops.Sum(input=g.tensor, axis=axis) for g, axis in zip(groups, batch_axes, strict=True)]
    total = concat_parts([tf.raw_ops.Sum(input=s, axis=last_axis) for s in unit_sums], groups)
    highest = concat_parts([tf.raw_ops.Max(input=g.tensor, axis=a) for g, a in zip(groups, axes, strict=True)], groups)
    lowest = concat_parts([tf.raw_ops.Min(input=g.tensor, axis=a) for g, a in zip(groups, axes, strict=True)], groups)
    square = tensor_statistics.sums_of_squares(groups)
    mean = total / element_counts(groups)
    m2 = square - total * mean
    is_constant = tf.raw_ops.Equal(x=highest, y=lowest)
    valid = is_constant | (m2 > _CANCELLATION * square) & tensor_statistics.is_in_range(square)
    no_nonfinite = 0 * square
    m2 = tf.raw_ops.SelectV2(condition=is_constant, t=0 * square, e=m2)
    fast = tf.raw_ops.Pack(values=[no_nonfinite, mean, m2, lowest, highest])
    absolute_sums = []
    for group, axis, unit_sum in zip(groups, batch_axes, unit_sums, strict=True):
        if not calls[group.indices[0]].activation.nonnegative:
            unit_sum = tf.raw_ops.Sum(input=fusion_barrier(tf.raw_ops.Abs(x=group.tensor)), axis=axis)
        absolute_sums.append(unit_sum)
    return with_exact_fallback(valid, [fast, _concat_units(absolute_sums)[None]], groups, _exact_moments)


def _concat_units(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """Concatenate one part of each group, [U] or stacked [n, U], to [sum U]."""
    return concat([p if p.shape.rank == 1 else tf.raw_ops.Reshape(tensor=p, shape=constant([-1])) for p in parts], 0)


def _exact_moments(x: tf.Tensor) -> Sequence[tf.Tensor]:
    """Return what `_moments` does, of one group [n, M, U]: over the finite elements, m2 in two passes."""
    axes = constant([1, 2])
    mask = tf.raw_ops.IsFinite(x=x)
    values, largest, nonfinite = tensor_statistics.scale_finite(x, mask, axes)
    finite = tf.raw_ops.Sub(x=constant(1.0), y=nonfinite)
    total, number, bad = (tf.raw_ops.Sum(input=t, axis=axes, keep_dims=True) for t in (values, finite, nonfinite))
    mean = tf.raw_ops.DivNoNan(x=total, y=number)
    difference = (values - mean) * finite
    scaled_m2 = tf.raw_ops.Sum(input=fusion_barrier(tf.raw_ops.Square(x=difference)), axis=axes, keep_dims=True)
    m2 = scaled_m2 * largest * largest
    no_high = fusion_barrier(tf.raw_ops.SelectV2(condition=mask, t=x, e=np.inf))
    no_low = fusion_barrier(tf.raw_ops.SelectV2(condition=mask, t=x, e=-np.inf))
    lowest = tf.raw_ops.Min(input=no_high, axis=axes, keep_dims=True)
    highest = tf.raw_ops.Max(input=no_low, axis=axes, keep_dims=True)
    rows = tf.raw_ops.Pack(values=[bad, mean * largest, m2, lowest, highest])
    magnitude = fusion_barrier(tf.raw_ops.Abs(x=values))
    absolute_sums = tf.raw_ops.Sum(input=magnitude, axis=constant([1]), keep_dims=True) * largest
    return (
        tf.raw_ops.Reshape(tensor=rows, shape=constant([5, -1])),
        tf.raw_ops.Reshape(tensor=absolute_sums, shape=constant([1, -1])),
    )


def _unit_counts(groups: Sequence[Group], calls: Sequence[LayerCall]) -> list[tf.Tensor]:
    """Return all UNIT_ROWS but the first, in their order: counts of each unit's elements, each float32 [sum U]."""
    batch_axis = constant([0])
    batch_axis_of_stack = constant([1])
    counts = []
    for group in groups:
        axis = batch_axis_of_stack if group.stacked else batch_axis
        units = group.tensor.shape[-1]
        none = tf.zeros([len(group.indices), units] if group.stacked else [units])
        masks = _unit_masks(group, calls)
        distinct = {id(mask): _count(mask, axis, none) for mask in masks}
        counts.append([distinct[id(mask)] for mask in masks])
    return [_concat_units(row) for row in zip(*counts, strict=True)]


def _unit_masks(group: Group, calls: Sequence[LayerCall]) -> tuple[tf.Tensor | None, ...]:
    """Return for each of UNIT_ROWS but the first which elements it counts; None where there can be none."""
    call = calls[group.indices[0]]
    x = group.tensor
    with attribute_errors_to(call.name):
        zeros = tf.raw_ops.Equal(x=x, y=constant(0.0))
        if call.activation.from_gradients:
            low, high = _masks_from_gradients(call, x)
        else:
            low, high = saturation_masks(call.activation, _pre_activation(call), x)
        flat = flat_mask(call.activation, x)
    # What is saturated low of a ReLU are its zeros.
    is_relu = call.activation.nonnegative and call.activation.saturated[0] == 0
    return zeros, flat, zeros if is_relu else low, high


def _count(mask: tf.Tensor | None, axis: tf.Tensor, none: tf.Tensor) -> tf.Tensor:
    """Return how many elements are true along `axis`, float32; `none` without a mask."""
    if mask is None:
        return none
    return tf.raw_ops.Sum(input=fusion_barrier(tf.raw_ops.Cast(x=mask, DstT=tf.float32)), axis=axis)


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


def _gradient_pair(call: LayerCall) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Return the gradients with respect to z and a, if there are both and the activation keeps the shape."""
    delta_a, delta_z, _ = call.deltas
    if delta_a is None or delta_z is None or delta_a.shape.as_list() != delta_z.shape.as_list():
        return None
    return delta_z, delta_a


def _has_saturation(call: LayerCall) -> bool:
    """Return whether it is known which elements are saturated: not without gradients where the function is unknown."""
    return call.activation.defined and not (call.activation.from_gradients and _gradient_pair(call) is None)


def _masks_from_gradients(call: LayerCall, a: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """Return what `saturation_masks` does, for a function of which only the gradients are known.

    |f'| is |dL/dz| / |dL/da|. An element to which no gradient comes tells nothing, and does not count as saturated. The
    saturated ones below the mean output are the low ones.
    """
    pair = _gradient_pair(call)
    if pair is None:
        return None, None
    delta_z, delta_a = (tf.reshape(tf.abs(delta), tf.shape(a)) for delta in pair)
    slope = tf.math.divide_no_nan(delta_z, delta_a)
    largest = tf.reduce_max(tf.where(tf.math.is_finite(slope), slope, 0.0))
    small = (slope < SATURATED_SHARE * largest) & (delta_a > 0)
    low = a < tf.reduce_mean(a)
    return small & low, small & tf.math.logical_not(low)


def flat_mask(activation: Activation, a: tf.Tensor) -> tf.Tensor | None:
    """Return where the derivative of a bounded function is exactly 0: bool, of the shape of `a`; else None."""
    if activation.flat is None:
        return None
    low, high = activation.flat
    return (a <= low) | (a >= high)


def _delta_rows(deltas: Sequence[Sequence[tf.Tensor | None]]) -> Reduction[tuple[tf.Tensor, tf.Tensor]]:
    """Return L2 norms and non-finite elements of the gradients with respect to a, z and input of L calls.

    Returns:
      The norms, float32 [3, L], NaN where there is no gradient; and the number of non-finite elements, summed over the
      three, float32 [L].
    """
    flat = [delta for of_call in deltas for delta in of_call]
    # Along a chain a layer's output is the next one's input, so the gradient is one tensor and reduced once.
    distinct = distinct_tensors(flat)
    if not distinct:
        return tf.fill([3, len(deltas)], np.nan), tf.zeros([len(deltas)])
    groups = group_by_shape(distinct)
    rows = yield from tensor_statistics.norm_rows(groups, most_joined=single_pass.MOST_JOINED_OF_LAYERS)
    norms, nonfinite = (restore_order(row[None], groups) for row in rows)
    norms = expand_columns(norms, flat)
    nonfinite = expand_columns(nonfinite, flat, absent=0.0)
    return tf.transpose(tf.reshape(norms, [-1, 3])), tf.reduce_sum(tf.reshape(nonfinite, [-1, 3]), 1)
