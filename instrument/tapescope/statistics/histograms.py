"""Counts of a tensor's elements over half octaves, by the top 10 bits of a float32: no logarithm, one pass that counts.

A large tensor is not looked at in full: of 98,352 elements and more, every k-th block of 16 neighbours is, k the
largest prime up to 13 that leaves at least 32,768 elements and does not divide their number, so that no unit, row or
position is left out. What is counted is then scaled to the number of finite elements. A share p comes out with a
standard error of sqrt(p (1 - p) / 32768), 0.28 % at most, where neighbours do not depend on each other; where they are
all alike it is four times that. What smaller tensors have is exact, and so is the sum of all.

Letters: B bins, n tensors.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import BLOCK, Group, R, axes, constant, joined, settled
from tensorboard_plugin_tapescope.metadata import BINS, BINS_PER_OCTAVE, LOW_EXPONENT, SIDE_BINS

CODES = 1024
"""Values of a float32's sign, exponent and first mantissa bit."""
_ZERO_CODES = (0, 1, 512, 513)
"""0, and what is too small for a normal float32: TensorFlow computes with it as 0."""


def _bin_of_code() -> np.ndarray:
    """The wire's bin of each code, int32 [CODES]; -1 for the codes of NaN and Inf."""
    code = np.arange(CODES // 2)
    magnitude = np.clip(code - (127 + LOW_EXPONENT) * BINS_PER_OCTAVE + 1, 0, SIDE_BINS)
    nonfinite = code >= 255 * BINS_PER_OCTAVE
    sides = [np.where(nonfinite, -1, SIDE_BINS + sign * magnitude) for sign in (1, -1)]
    return np.concatenate(sides).astype(np.int32)


def codes(groups: Sequence[Group]) -> tf.Tensor:
    """How many elements of each tensor have each code, int32 [n, CODES]; of a large one, of those that are counted."""
    shift, size, weights, parts = constant(22, tf.uint32), constant(CODES), constant([], tf.int32), []
    for group in groups:
        x = _looked_at(group)
        code = R.Bitcast(input=R.RightShift(x=R.Bitcast(input=x, type=tf.uint32), y=shift), type=tf.int32)
        if code.shape.rank != 1 + group.many:
            code = R.Reshape(tensor=code, shape=constant([len(group.indices), -1] if group.many else [-1]))
        parts.append(R.DenseBincount(input=code, size=size, weights=weights, binary_output=False))
    return joined(parts, groups)


def _looked_at(group: Group) -> tf.Tensor:
    """A group's tensor; of a large one every so manieth block."""
    if group.stride == 1:
        return group.x
    width = group.stride * BLOCK
    rows = (group.x.shape.num_elements() or 0) // width
    flat = group.x if group.x.shape.rank == 1 else R.Reshape(tensor=group.x, shape=constant([-1]))
    whole = R.Slice(input=flat, begin=constant([0]), size=constant([rows * width]))
    table = R.Reshape(tensor=whole, shape=constant([rows, width]))
    return R.Slice(input=table, begin=constant([0, 0]), size=constant([rows, BLOCK]))


def folded(counts: tf.Tensor, groups: Sequence[Group], finite: tf.Tensor) -> tf.Tensor:
    """Counts over the wire's bins, int32 [B, n], from those by code; they add up to `finite`, float32 [n]."""
    by_code = R.Transpose(x=counts, perm=constant([1, 0]))
    # Those of no bin have an index below 0, which the sum leaves out.
    bins = R.UnsortedSegmentSum(data=by_code, segment_ids=constant(_bin_of_code()), num_segments=constant(BINS))
    if all(group.stride == 1 for group in groups):
        return bins
    # What lies below each bin's end is scaled and rounded, not each bin: so the sum is exact.
    below = tf.cumsum(tf.cast(bins, tf.float64))
    scaled = tf.round(below * tf.math.divide_no_nan(tf.cast(finite, tf.float64), below[-1]))
    return tf.cast(scaled - tf.pad(scaled[:-1], [[1, 0], [0, 0]]), tf.int32)


def zeros(counts: tf.Tensor) -> tf.Tensor:
    """The share of each tensor that is 0, float32 [n], from the counts by code."""
    found = R.GatherV2(params=counts, indices=constant(_ZERO_CODES), axis=constant(1))
    part, whole = (R.Cast(x=R.Sum(input=c, axis=constant([1])), DstT=tf.float32) for c in (found, counts))
    return R.RealDiv(x=part, y=whole)


def compared(groups: Sequence[Group]) -> tf.Tensor:
    """The share of each tensor that is 0, float32 [n], where nothing is counted."""
    parts, zero = [], constant(0.0)
    for group, axis in zip(groups, axes(groups), strict=True):
        x = _looked_at(group)
        axis = axis if group.stride == 1 else constant([0, 1])
        parts.append(R.Mean(input=settled(R.Cast(x=R.Equal(x=x, y=zero), DstT=tf.float32)), axis=axis))
    return joined(parts, groups)
