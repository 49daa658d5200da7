"""Counts of a tensor's elements over half octaves, by the top 10 bits of a float32: no logarithm, one pass that counts.

A large tensor is not counted in full: of 98,304 elements and more every k-th is, k the largest prime up to 13 that
leaves at least 32,768 of them and does not divide their number, so that no unit, row or position is left out. The
counts are then scaled to the number of finite elements. A share p of the elements comes out with a standard error of at
most sqrt(p (1 - p) / 32768), 0.28 % at most, as for elements drawn at random. What smaller tensors have is exact, and
so are the sum and the number of zeros of all.

Letters: B bins, n tensors.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tapescope.groups import Group, R, axes, concat, constant, joined
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
        x = group.x if group.stride == 1 else _every(group.x, group.stride)
        code = R.Bitcast(input=R.RightShift(x=R.Bitcast(input=x, type=tf.uint32), y=shift), type=tf.int32)
        if code.shape.rank != 1 + group.many:
            code = R.Reshape(tensor=code, shape=constant([len(group.indices), -1] if group.many else [-1]))
        parts.append(R.DenseBincount(input=code, size=size, weights=weights, binary_output=False))
    return joined(parts, groups)


def _every(x: tf.Tensor, stride: int) -> tf.Tensor:
    """Every so manieth element. As the first column of a matrix: half the time of a strided slice."""
    rows = (x.shape.num_elements() or 0) // stride
    flat = x if x.shape.rank == 1 else R.Reshape(tensor=x, shape=constant([-1]))
    head = R.Slice(input=flat, begin=constant([0]), size=constant([rows * stride]))
    table = R.Reshape(tensor=head, shape=constant([rows, stride]))
    return R.Slice(input=table, begin=constant([0, 0]), size=constant([rows, 1]))


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


def zeros(counts: tf.Tensor, groups: Sequence[Group]) -> tf.Tensor:
    """Elements that are 0 of each tensor, float32 [n]: by their codes where all are counted."""
    large = sum(group.stride > 1 for group in groups)  # the first of them
    rest = counts[large:] if large else counts
    found = R.GatherV2(params=rest, indices=constant(_ZERO_CODES), axis=constant(1))
    found = R.Cast(x=R.Sum(input=found, axis=constant([1])), DstT=tf.float32)
    return concat([compared(groups[:large]), found], 0) if large else found


def compared(groups: Sequence[Group]) -> tf.Tensor:
    """Elements that are 0 of each tensor, float32 [n]."""
    zero = constant(0.0)
    hits = [R.Cast(x=R.Equal(x=g.x, y=zero), DstT=tf.int32) for g in groups]
    pairs = zip(hits, axes(groups), strict=True)
    return R.Cast(x=joined([R.Sum(input=h, axis=i) for h, i in pairs], groups), DstT=tf.float32)
