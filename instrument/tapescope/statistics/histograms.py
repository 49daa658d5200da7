"""Histograms of a tensor's elements over half octaves, without a logarithm: the top 10 bits of a float32 are the bin.

Large tensors are sampled. Of 98,352 elements and more, every k-th block of 16 neighbours is counted. k is the largest
prime up to 13 that leaves at least 32,768 elements and does not divide their number, so that no unit, row or position
is left out. `scale_counts` then scales the counts to the number of finite elements. The standard error of a share p is
sqrt(p (1 - p) / 32768), at most 0.28 %, where neighbours are independent. Where the neighbours in a block are all equal
it is four times that. Counts of smaller tensors are exact. The total is exact for all. On a GPU the least sample is
8,192 elements, the largest error 0.55 %, and k any prime.

Letters: B bins, n tensors.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import (
    SAMPLE_BLOCK,
    Group,
    concat,
    concat_parts,
    constant,
    for_gpu,
    fusion_barrier,
    neighbors,
    reduction_axes,
)
from tensorboard_plugin_tapescope.metadata import BINS, BINS_PER_OCTAVE, LOW_EXPONENT, SIDE_BINS

CODES = 1024
"""Values of a float32's sign, exponent and first mantissa bit."""
MOST_COUNTED = 1 << 22
"""Most elements of the tensors whose samples are counted together on a GPU: they are in memory until then."""
_ROUNDING = 1e-6
"""Relative difference of two numbers of elements that may be float32's rounding."""
_ZERO_CODES = (0, 1, 512, 513)
"""Codes of 0 and of subnormal numbers, with which TensorFlow computes as if they were 0."""


def _bin_of_code() -> np.ndarray:
    """Return the wire's bin of each code, int32 [CODES]; -1 for the codes of NaN and Inf."""
    code = np.arange(CODES // 2)
    magnitude = np.clip(code - (127 + LOW_EXPONENT) * BINS_PER_OCTAVE + 1, 0, SIDE_BINS)
    nonfinite = code >= 255 * BINS_PER_OCTAVE
    sides = [np.where(nonfinite, -1, SIDE_BINS + sign * magnitude) for sign in (1, -1)]
    return np.concatenate(sides).astype(np.int32)


def count_codes(groups: Sequence[Group]) -> tf.Tensor:
    """Return how many elements of each tensor have each code, int32 [n, CODES]; of a large one, how many sampled."""
    if for_gpu():
        runs = neighbors([group.tensor for group in groups], MOST_COUNTED)
        return concat([count_bins([groups[i] for i in run]) for run in runs], 1)
    size = constant(CODES)
    weights = constant([], tf.int32)
    parts = []
    for group in groups:
        code = _codes(_sample(group))
        shape = [len(group.indices), -1] if group.stacked else [-1]
        if code.shape.rank != len(shape):
            code = tf.raw_ops.Reshape(tensor=code, shape=constant(shape))
        parts.append(tf.raw_ops.DenseBincount(input=code, size=size, weights=weights, binary_output=False))
    return concat_parts(parts, groups)


def _codes(x: tf.Tensor) -> tf.Tensor:
    """Return the code of each element, int32."""
    bits = tf.raw_ops.Bitcast(input=x, type=tf.uint32)
    return tf.raw_ops.Bitcast(input=tf.raw_ops.RightShift(x=bits, y=constant(22, tf.uint32)), type=tf.int32)


def count_bins(groups: Sequence[Group]) -> tf.Tensor:
    """Return how many elements of each tensor's sample are in each of the wire's bins, int32 [B, n].

    All tensors are counted together, on a GPU by one scatter.
    """
    # Addresses are float32, exact up to 2^24: TensorFlow does int32 arithmetic of a GPU's step on the host.
    total = sum(len(group.indices) for group in groups)
    bin_of_code = constant(np.where(_bin_of_code() < 0, BINS * total, _bin_of_code()), tf.float32)
    # A barrier keeps XLA from making a constant of all elements' offsets.
    first_of_tensor = fusion_barrier(constant(BINS * np.arange(total)[:, None], tf.float32))
    samples = []
    offsets = []
    for group, first in zip(groups, tf.split(first_of_tensor, [len(group.indices) for group in groups]), strict=True):
        sample = tf.raw_ops.Reshape(tensor=_sample(group), shape=constant([len(group.indices), -1]))
        samples.append(tf.raw_ops.Reshape(tensor=sample, shape=constant([-1])))
        offsets.append(tf.raw_ops.Reshape(tensor=tf.broadcast_to(first, tf.shape(sample)), shape=constant([-1])))
    bins = tf.raw_ops.GatherV2(params=bin_of_code, indices=_codes(concat(samples, 0)), axis=constant(0))
    counts = tf.raw_ops.DenseBincount(
        input=tf.raw_ops.Cast(x=bins + concat(offsets, 0), DstT=tf.int32),
        size=constant(BINS * total),
        weights=constant([], tf.int32),
        binary_output=False,
    )
    return tf.transpose(tf.reshape(counts, [total, BINS]))


def _sample(group: Group) -> tf.Tensor:
    """Return a group's tensor; of a large one every `stride`-th block, [rows, SAMPLE_BLOCK]."""
    if group.stride == 1:
        return group.tensor
    width = group.stride * SAMPLE_BLOCK
    rows = (group.tensor.shape.num_elements() or 0) // width
    flat = group.tensor
    if flat.shape.rank != 1:
        flat = tf.raw_ops.Reshape(tensor=flat, shape=constant([-1]))
    whole_rows = tf.raw_ops.Slice(input=flat, begin=constant([0]), size=constant([rows * width]))
    table = tf.raw_ops.Reshape(tensor=whole_rows, shape=constant([rows, width]))
    return tf.raw_ops.Slice(input=table, begin=constant([0, 0]), size=constant([rows, SAMPLE_BLOCK]))


def fold_into_bins(counts: tf.Tensor) -> tf.Tensor:
    """Sum counts by code to counts over the wire's bins.

    Args:
      counts: from `count_codes`, int32 [n, CODES]; on a GPU from `count_bins`.

    Returns:
      int32 [B, n].
    """
    if for_gpu():
        return counts
    by_code = tf.raw_ops.Transpose(x=counts, perm=constant([1, 0]))
    # NaN and Inf have bin -1, and a segment below 0 is left out of the sum.
    return tf.raw_ops.UnsortedSegmentSum(
        data=by_code, segment_ids=constant(_bin_of_code()), num_segments=constant(BINS)
    )


def scale_counts(counts: Any, finite: Any) -> Any:
    """Scale the counts of sampled tensors to the number of their finite elements; others are returned as they are.

    Args:
      counts: int32 [n, B], arrays or tensors.
      finite: number of finite elements, float32 [n].

    Returns:
      int32 [n, B].
    """
    xp: Any = np
    if not isinstance(counts, np.ndarray):
        xp = tf.experimental.numpy
    elif np.all(np.abs(counts.sum(1) - finite) <= _ROUNDING * finite):
        return counts
    cumulative = xp.cumsum(counts, axis=1, dtype=np.float64)
    total = cumulative[:, -1:]
    # The cumulative counts are scaled and rounded, not each bin: so the total is exact.
    finite = xp.asarray(finite, np.float64)[:, None]
    factor = xp.where(total > 0, finite, total) / xp.maximum(total, 1.0)
    scaled = xp.rint(cumulative * factor)
    differences = xp.concatenate([scaled[:, :1], scaled[:, 1:] - scaled[:, :-1]], axis=1)
    return xp.where(xp.abs(factor - 1) > _ROUNDING, differences, xp.asarray(counts, np.float64)).astype(np.int32)


def add_zeros(bins: tf.Tensor, zeros: tf.Tensor) -> tf.Tensor:
    """Add a number of zeros to each tensor's counts: int32 [B, n] and [n] to [B, n]."""
    return bins + constant(np.arange(BINS)[:, None] == SIDE_BINS, tf.int32) * zeros


def zero_share_of_counts(counts: tf.Tensor) -> tf.Tensor:
    """Return the share of each tensor's elements that are 0, float32 [n], from the counts by code [n, CODES]."""
    zeros = tf.raw_ops.GatherV2(params=counts, indices=constant(_ZERO_CODES), axis=constant(1))
    part, whole = (
        tf.raw_ops.Cast(x=tf.raw_ops.Sum(input=c, axis=constant([1])), DstT=tf.float32) for c in (zeros, counts)
    )
    return tf.raw_ops.RealDiv(x=part, y=whole)


def zero_share(groups: Sequence[Group]) -> tf.Tensor:
    """Return the share of each tensor's elements that are 0, float32 [n], where no histogram is counted."""
    parts = []
    zero = constant(0.0)
    for group, axes in zip(groups, reduction_axes(groups), strict=True):
        x = _sample(group)
        sample_axes = axes if group.stride == 1 else constant([0, 1])
        is_zero = fusion_barrier(tf.raw_ops.Cast(x=tf.raw_ops.Equal(x=x, y=zero), DstT=tf.float32))
        parts.append(tf.raw_ops.Mean(input=is_zero, axis=sample_axes))
    return concat_parts(parts, groups)
