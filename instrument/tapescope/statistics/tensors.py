"""Statistics of gradients and weights: pure functions, in eager steps, `tf.function`, XLA and replicas alike.

All arithmetic is float32 or better whatever the tensor's dtype. NaN and Inf elements are counted and then left out, so
that one of them does not hide the rest. Norms are accurate from 1e-38 to 1e38. Both need the exact path of
`tapescope.statistics.batched_ops`, which is taken only where the fast path may be wrong.

Letters: B bins, K statistics, N elements, n tensors, S sampled elements, V variables.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture import private_api
from tapescope.statistics import histograms, replicas, single_pass
from tapescope.statistics.batched_ops import (
    Group,
    chunks,
    concat,
    concat_parts,
    constant,
    distinct_tensors,
    element_counts,
    expand_columns,
    for_gpu,
    fusion_barrier,
    group_by_shape,
    reduction_axes,
    restore_order,
    with_exact_fallback,
)
from tapescope.statistics.reductions import Reduction, join
from tensorboard_plugin_tapescope.metadata import BINS

GRADIENT_ROWS = ("norm", "max", "zero", "nonfinite", "elements")
WEIGHT_ROWS = ("norm", "change", "nonfinite")
SPARSE_ROWS = 1 << 16
"""Rows of a table, such as an embedding, from which on its gradient is not made dense to be measured."""
SAMPLED_ELEMENTS = 1024
"""Elements of a gradient that are compared with those of the step before, S."""
LEAST_SAMPLED = 64
"""The same in a model of very many variables."""
MAX_SAMPLE = 1 << 18
"""Elements of all gradients that are compared, about: 1 MiB in each reading."""
SAMPLED_BLOCK = 4
"""Neighbouring elements that are sampled together."""
_SQUARE_DECADES = 30
"""A sum of squares outside 1e-30 to 1e30 may have lost digits, or be 0 although no element is."""


class SparseGradient(NamedTuple):
    """The gradient of a table of which the step reads few rows. All other elements are 0."""

    values: tf.Tensor
    """Rows of the table, float32 [rows, ...]."""
    size: int
    """Number of elements of the table."""


Gradient = tf.Tensor | SparseGradient | None


def stays_sparse(gradient: tf.IndexedSlices) -> bool:
    """Return whether a gradient is measured by its rows alone: on a CPU, outside XLA and with one replica."""
    shape = None if gradient.dense_shape is None else tf.get_static_value(gradient.dense_shape)
    if shape is None or shape[0] < SPARSE_ROWS or not gradient.dtype.is_floating:
        return False
    return replicas.context()[1] == 1 and not private_api.in_xla_context() and not for_gpu()


def sum_duplicates(gradient: tf.IndexedSlices) -> SparseGradient:
    """Return the rows of a gradient, each once, duplicates summed, and one row of 0 in case there is none."""
    rows, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(as_float32(gradient.values), positions, tf.size(rows) + 1)
    shape: Any = tf.get_static_value(gradient.dense_shape)
    return SparseGradient(values, math.prod(shape.tolist()))


def _split(gradients: Sequence[Gradient]) -> tuple[list[tf.Tensor | None], dict[int, int]]:
    """Return the gradients as tensors, and by identity of a sparse one's values the size of its table."""
    sparse = {id(g.values): g.size for g in gradients if isinstance(g, SparseGradient)}
    return [g.values if isinstance(g, SparseGradient) else g for g in gradients], sparse


def sums_of_squares(groups: Sequence[Group]) -> tf.Tensor:
    """Return the sum of squares of each tensor, float32 [n]. Outside XLA a single tensor takes one pass, by L2Loss."""
    pairs = zip(groups, reduction_axes(groups), strict=True)
    if private_api.in_xla_context():
        parts = [tf.raw_ops.Sum(input=fusion_barrier(tf.raw_ops.Square(x=g.tensor)), axis=axes) for g, axes in pairs]
        return concat_parts(parts, groups)
    parts = [
        tf.raw_ops.Sum(input=tf.raw_ops.Square(x=g.tensor), axis=axes) if g.stacked else tf.raw_ops.L2Loss(t=g.tensor)
        for g, axes in pairs
    ]
    factors = [1.0 if g.stacked else 2.0 for g in groups for _ in g.indices]  # L2Loss is half of the sum
    return concat_parts(parts, groups) * constant(factors)


def scale_finite(x: tf.Tensor, mask: tf.Tensor, axes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Divide a tensor by the largest magnitude of its finite elements, such that no square overflows or underflows.

    Args:
      x: float32 [n, ...].
      mask: bool, of the shape of `x`: whether an element is finite.
      axes: all axes but the first.

    Returns:
      The scaled elements, 0 where not finite, of the shape of `x`; the largest magnitudes, [n, 1, ...], 0 of no
      elements; and 1 for each element that is not finite, else 0, of the shape of `x`.
    """
    values = fusion_barrier(tf.raw_ops.SelectV2(condition=mask, t=x, e=0.0))
    largest = tf.raw_ops.Max(input=fusion_barrier(tf.raw_ops.Abs(x=values)), axis=axes, keep_dims=True)
    largest = tf.raw_ops.Maximum(x=largest, y=constant(0.0))  # that of no elements is -Inf
    scaled = tf.raw_ops.DivNoNan(x=values, y=largest)
    nonfinite = fusion_barrier(tf.raw_ops.Cast(x=tf.raw_ops.LogicalNot(x=mask), DstT=tf.float32))
    return scaled, largest, nonfinite


def is_in_range(square: tf.Tensor) -> tf.Tensor:
    """Return whether float32 keeps all digits of a sum of squares, bool [n]; False for 0, NaN and Inf."""
    return tf.raw_ops.Less(x=tf.raw_ops.Abs(x=tf.raw_ops.Log(x=square)), y=constant(_SQUARE_DECADES * np.log(10)))


def _exact_norm_rows(x: tf.Tensor) -> Sequence[tf.Tensor]:
    """Return L2 norm and largest magnitude of the finite elements, and how many are not: [n, N] to [3, n]."""
    axes = constant([1])
    values, largest, nonfinite = scale_finite(x, tf.raw_ops.IsFinite(x=x), axes)
    square = tf.raw_ops.Sum(input=fusion_barrier(tf.raw_ops.Square(x=values)), axis=axes, keep_dims=True)
    norm = tf.raw_ops.Sqrt(x=square) * largest
    rows = tf.raw_ops.Pack(values=[norm, largest, tf.raw_ops.Sum(input=nonfinite, axis=axes, keep_dims=True)])
    return (tf.raw_ops.Reshape(tensor=rows, shape=constant([3, -1])),)


def norm_rows(
    groups: Sequence[Group],
    is_valid: Callable[[tf.Tensor], tf.Tensor] = is_in_range,
    most_joined: float = single_pass.MOST_JOINED,
) -> Reduction[tuple[tf.Tensor, tf.Tensor]]:
    """Return L2 norm and number of non-finite elements of each tensor, each float32 [n], in the order of the groups.

    Args:
      groups: n tensors, flat.
      is_valid: from sums of squares [n] to whether the fast path is right, bool [n].
      most_joined: elements that one kernel of a GPU reduces.
    """
    if for_gpu():
        norm, nonfinite = yield from single_pass.norm_rows(groups, ("norm", "nonfinite"), most_joined)
        return norm, nonfinite
    rows = []
    for chunk in chunks(groups):
        square = sums_of_squares(chunk)
        norm = tf.raw_ops.Sqrt(x=square)
        # The exact path's second row is the largest magnitude, which nobody here asks for: any row of its shape serves.
        fast = tf.raw_ops.Pack(values=[norm, norm, tf.raw_ops.ZerosLike(x=norm)])
        rows += with_exact_fallback(is_valid(square), [fast], chunk, _exact_norm_rows)
    norm, _, nonfinite = tf.unstack(concat(rows, 1))
    return norm, nonfinite


def norms(gradients: Sequence[Gradient]) -> Reduction[tf.Tensor]:
    """Return the L2 norm of the finite elements of each gradient, float32 [n]; NaN for None."""
    tensors, _ = _split(gradients)
    groups = group_by_shape(distinct_tensors(tensors))
    norm = yield from _only_norms(groups, is_in_range)
    return expand_columns(restore_order(norm[None], groups), tensors)[0]


def _only_norms(groups: Sequence[Group], is_valid: Callable[[tf.Tensor], tf.Tensor]) -> Reduction[tf.Tensor]:
    """Return the first row of `norm_rows`."""
    if for_gpu():
        return (yield from single_pass.norm_rows(groups, ("norm",)))[0]
    return (yield from norm_rows(groups, is_valid))[0]


def gradient_rows(
    gradients: Sequence[Gradient], histogram: bool = False
) -> Reduction[tuple[tf.Tensor, tf.Tensor | None, tf.Tensor]]:
    """Return the statistics of each variable's gradient.

    Args:
      gradients: V of them, float32; None where a variable has no gradient.
      histogram: whether elements are counted over bins.

    Returns:
      GRADIENT_ROWS, float32 [K, V], NaN for None; the counts, of a large gradient those of a sample, int32 [V, B], 0
      for None, or None if not asked for; and elements at fixed places, float32 [S, V], NaN for None, for a sparse
      gradient, and beyond those of a small one.
    """
    tensors, sparse = _split(gradients)
    if for_gpu():
        tensors = _in_memory_order(tensors)
    distinct = distinct_tensors(tensors)
    if not distinct:
        no_counts = tf.zeros([len(gradients), BINS], tf.int32) if histogram else None
        return tf.fill([len(GRADIENT_ROWS), len(gradients)], np.nan), no_counts, tf.fill([1, len(gradients)], np.nan)
    groups = group_by_shape(distinct)
    bins = None
    counts = histograms.count_codes(groups) if histogram else None
    if for_gpu():
        norm, nonfinite, largest, zero = yield from single_pass.norm_rows(groups)
    else:
        norm, largest, nonfinite = tf.unstack(concat([_norm_max_nonfinite(chunk) for chunk in chunks(groups)], 1))
        zero = histograms.zero_share(groups) if counts is None else histograms.zero_share_of_counts(counts)
    elements = element_counts(groups)
    absent = _absent_elements(groups, distinct, sparse) if sparse else None
    if counts is not None:
        folded = histograms.fold_into_bins(counts)
        folded = folded if absent is None else histograms.add_zeros(folded, absent)
        bins = tf.transpose(expand_columns(restore_order(folded, groups), tensors, absent=0))
    if absent is not None:
        zeros = tf.cast(absent, tf.float32)
        zero = (zero * elements + zeros) / (elements + zeros)
        elements += zeros
    rows = tf.raw_ops.Pack(values=[norm, largest, zero, nonfinite, elements])
    is_sparse = [id(distinct[group.indices[0]]) in sparse for group in groups]
    sample = expand_columns(restore_order(_sample(groups, is_sparse), groups), tensors)
    return expand_columns(restore_order(rows, groups), tensors), bins, sample


def _in_memory_order(tensors: Sequence[Any]) -> list[Any]:
    """Return tensors such that those of convolutions have their axes as they lie in a GPU's memory.

    XLA computes the gradient of a kernel [height, width, in, out] as [out, height, width, in]. To read its elements in
    the first order it would be transposed by a kernel of its own.
    """
    moved: dict[int, tf.Tensor] = {}
    for tensor in distinct_tensors(tensors):
        rank = tensor.shape.rank
        is_kernel = rank is not None and rank >= 4
        moved[id(tensor)] = tf.transpose(tensor, [rank - 1, *range(rank - 2), rank - 2]) if is_kernel else tensor
    return [None if tensor is None else moved[id(tensor)] for tensor in tensors]


def sample_places(size: int, count: int) -> np.ndarray:
    """Return `count` of `size` places, ascending: one in each of as many equal parts, spread by the golden ratio."""
    parts = np.arange(count)
    within = np.modf(parts * 0.6180339887498949)[0]
    return np.minimum((parts + within) * (size / count), size - 1).astype(np.int64)


def _sample(groups: Sequence[Group], is_sparse: Sequence[bool]) -> tf.Tensor:
    """Return elements of each tensor at fixed places, float32 [S, n], in the order of the groups.

    All elements of a small tensor are taken, and those of a large one in blocks of neighbours, which is faster.
    """
    count = sum(len(group.indices) for group in groups)
    most = max(LEAST_SAMPLED, min(SAMPLED_ELEMENTS, MAX_SAMPLE // count))
    most -= most % SAMPLED_BLOCK
    sizes = [(group.tensor.shape.num_elements() or 0) // len(group.indices) for group in groups]
    sizes = [0 if sparse else min(size, tf.int32.max) for size, sparse in zip(sizes, is_sparse, strict=True)]
    width = max(1, min(most, max(sizes)))
    parts = [_sample_group(group, size, width) for group, size in zip(groups, sizes, strict=True)]
    return tf.transpose(concat_parts(parts, groups))


def _sample_group(group: Group, size: int, width: int) -> tf.Tensor:
    """Return `width` of the `size` elements of each tensor of a group, [width] or stacked [n, width]."""
    leading: list[int] = [len(group.indices)] if group.stacked else []
    if not size:
        return constant(np.full([*leading, width], np.nan))
    if size == width:
        return group.tensor
    if size < width:
        paddings = constant([*[[0, 0] for _ in leading], [0, width - size]])
        absent = constant(np.nan)
        return tf.raw_ops.PadV2(input=group.tensor, paddings=paddings, constant_values=absent)
    block = 1 if size % SAMPLED_BLOCK else SAMPLED_BLOCK
    blocks = tf.raw_ops.Reshape(tensor=group.tensor, shape=constant([*leading, size // block, block]))
    places = constant(sample_places(size // block, width // block))
    sampled = tf.raw_ops.GatherV2(params=blocks, indices=places, axis=constant(len(leading)))
    return tf.raw_ops.Reshape(tensor=sampled, shape=constant([*leading, width]))


def _absent_elements(groups: Sequence[Group], tensors: Sequence[tf.Tensor], sparse: Mapping[int, int]) -> tf.Tensor:
    """Return how many elements of each table are not among the rows of its gradient, int32 [n]; 0 for other tensors."""
    counts = []
    for group in groups:
        for i in group.indices:
            size = sparse.get(id(tensors[i]))
            counts.append(constant(0) if size is None else min(size, tf.int32.max) - tf.size(tensors[i]))
    return tf.stack(counts)


def _norm_max_nonfinite(groups: Sequence[Group]) -> tf.Tensor:
    """Return L2 norm, largest magnitude and number of non-finite elements of one chunk's tensors, float32 [3, n]."""
    axes = reduction_axes(groups)
    square = sums_of_squares(groups)
    highest = concat_parts([tf.raw_ops.Max(input=g.tensor, axis=a) for g, a in zip(groups, axes, strict=True)], groups)
    lowest = concat_parts([tf.raw_ops.Min(input=g.tensor, axis=a) for g, a in zip(groups, axes, strict=True)], groups)
    largest = tf.raw_ops.Maximum(x=highest, y=tf.raw_ops.Neg(x=lowest))
    norm = tf.raw_ops.Sqrt(x=square)
    fast = tf.raw_ops.Pack(values=[norm, largest, tf.raw_ops.ZerosLike(x=norm)])
    # A gradient that is 0 everywhere has the sum of squares 0, which is right: 1 is tested in its place.
    all_zero = tf.raw_ops.Cast(x=tf.raw_ops.Equal(x=largest, y=constant(0.0)), DstT=tf.float32)
    (rows,) = with_exact_fallback(is_in_range(square + all_zero), [fast], groups, _exact_norm_rows)
    return rows


def as_float32(tensor: tf.Tensor) -> tf.Tensor:
    """Return a tensor as float32; complex numbers as their real and imaginary parts, along a new last axis."""
    if tensor.dtype.is_complex:
        tensor = tf.bitcast(tensor, tensor.dtype.real_dtype)
    return tf.cast(tensor, tf.float32)


def _subtract(after: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """Return the change of a variable; of one whose size may have changed, that of the rows that it has kept."""
    if not after.shape.is_fully_defined() and after.shape.rank:
        kept = tf.minimum(tf.shape(after)[0], tf.shape(before)[0])
        after, before = after[:kept], before[:kept]
    return tf.raw_ops.Sub(x=after, y=before)


def weight_rows(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> Reduction[tf.Tensor]:
    """Return the statistics of each variable and of its change in a step.

    The exact path is taken for NaN and Inf only. Squares that underflow are left: a weight of 1e-16 is as good as 0.

    Args:
      before: V variables before the optimizer's step.
      after: the same ones after it.

    Returns:
      WEIGHT_ROWS, float32 [K, V]: L2 norm before, L2 norm of the change, number of non-finite elements before.
    """
    start = [as_float32(v) for v in before]
    end = [as_float32(v) for v in after]
    old = group_by_shape(start)
    # A change of float64 weights may be less than float32 resolves of them: it is taken first.
    wide = [i for i, v in enumerate(before) if v.dtype.real_dtype.size > tf.float32.size]
    for i in wide:
        end[i] = as_float32(after[i] - before[i])
        start[i] = tf.zeros_like(end[i])
    if for_gpu():
        # A change that is read later than the optimizer's kernel would keep a copy of the weights before it.
        change = [_subtract(n, o) for o, n in zip(start, end, strict=True)]
        change = group_by_shape(_in_memory_order(change))
    else:
        start_groups = group_by_shape(start) if wide else old
        change = [
            o._replace(tensor=_subtract(n.tensor, o.tensor))
            for o, n in zip(start_groups, group_by_shape(end), strict=True)
        ]
    # The weights before the step are in memory anyway.
    (norm, nonfinite), change_norm = yield from join(
        norm_rows(old, tf.math.is_finite, most_joined=math.inf), _only_norms(change, tf.math.is_finite)
    )
    return restore_order(tf.raw_ops.Pack(values=[norm, change_norm, nonfinite]), old)
