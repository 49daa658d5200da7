"""Of gradients and weights: pure functions from tensors to numbers, in eager, `tf.function`, XLA and replicas alike.

All arithmetic is float32 or better whatever the tensor's dtype. A NaN or Inf element is counted and then left out, so
that one of them does not hide the rest; norms keep their digits from 1e-38 to 1e38. Both cost several passes over the
data, so everything is first computed the quick way, which reads each tensor a few times and writes little. If a sum
comes out that the quick way could have got wrong, the tensors it belongs to are done again the safe way: masked, and
divided by their largest magnitude. See `tapescope.statistics.batched_ops` for how many tensors are reduced by few nodes.

Letters: B bins, K statistics, N elements, n tensors, V variables.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tapescope.statistics import histograms
from tapescope.statistics.batched_ops import (
    Group,
    R,
    again,
    axes,
    chunks,
    compiled,
    concat,
    constant,
    different,
    elements,
    grouped,
    in_order,
    joined,
    settled,
    spread,
)
from tensorboard_plugin_tapescope.metadata import BINS

GRADIENT_ROWS = ("norm", "max", "zero", "nonfinite")
WEIGHT_ROWS = ("norm", "change", "nonfinite")
_DECADES = 30
"""A sum of squares outside of 1e-30 to 1e30 may have lost digits, or be 0 though no element is."""


def squares(groups: Sequence[Group]) -> tf.Tensor:
    """Sum of squares of each tensor, float32 [n], in one pass where it lies alone."""
    pairs = zip(groups, axes(groups), strict=True)
    if compiled():
        return joined([R.Sum(input=settled(R.Square(x=g.x)), axis=axis) for g, axis in pairs], groups)
    parts = [R.Sum(input=R.Square(x=g.x), axis=axis) if g.many else R.L2Loss(t=g.x) for g, axis in pairs]
    return joined(parts, groups) * constant([2.0 - g.many for g in groups for _ in g.indices])


def _safe_rows(x: tf.Tensor) -> Sequence[tf.Tensor]:
    """L2 norm and largest magnitude of the finite elements, and the number of the others: `[n, N]` to `[3, n]`."""
    inner = constant([1])
    values, largest, bad = finite(x, R.IsFinite(x=x), inner)
    length = R.Sqrt(x=R.Sum(input=settled(R.Square(x=values)), axis=inner, keep_dims=True)) * largest
    rows = R.Pack(values=[length, largest, R.Sum(input=bad, axis=inner, keep_dims=True)])
    return (R.Reshape(tensor=rows, shape=constant([3, -1])),)


def finite(x: tf.Tensor, mask: tf.Tensor, inner: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A tensor divided by the largest magnitude of its finite elements, which `mask` says, with 0 for the others; that
    magnitude, over the axes `inner`, which are kept; and 1 for the others, 0 for the finite. No square of what is
    within 1 leaves float32.
    """
    values = settled(R.SelectV2(condition=mask, t=x, e=0.0))
    largest = R.Max(input=settled(R.Abs(x=values)), axis=inner, keep_dims=True)
    return R.DivNoNan(x=values, y=largest), largest, settled(R.Cast(x=R.LogicalNot(x=mask), DstT=tf.float32))


def in_range(square: tf.Tensor) -> tf.Tensor:
    """Whether a sum of squares lies where float32 keeps its digits, bool [n]; False for NaN."""
    return R.Less(x=R.Abs(x=R.Log(x=square)), y=constant(_DECADES * np.log(10)))


def lengths(groups: Sequence[Group], good: Callable[[tf.Tensor], tf.Tensor] = in_range) -> tf.Tensor:
    """L2 norm (twice) and number of non-finite elements of each tensor, `[3, n]` in the order of `groups`."""
    rows = []
    for chunk in chunks(groups):
        square = squares(chunk)
        length = R.Sqrt(x=square)
        quick = R.Pack(values=[length, length, R.ZerosLike(x=length)])
        rows += again(good(square), [quick], chunk, _safe_rows)
    return concat(rows, 1)


def norms(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """L2 norm of the finite elements of each, float32 [n]; NaN for None."""
    groups = grouped(different(tensors))
    return spread(in_order(lengths(groups), groups)[:1], tensors)[0]


def gradient_rows(gradients: Sequence[tf.Tensor | None], histogram: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
    """GRADIENT_ROWS of each variable's gradient, float32 [K, V], NaN where there is none; counts over bins if asked,
    int32 [V, B], 0 where there is none.
    """
    there = different(gradients)
    if not there:
        nothing = tf.zeros([len(gradients), BINS], tf.int32) if histogram else None
        return tf.fill([len(GRADIENT_ROWS), len(gradients)], np.nan), nothing
    groups = grouped(there)
    rows = concat([_gradients(c) for c in chunks(groups)], 1)
    length, largest, nonfinite = tf.unstack(rows)
    if histogram:
        counts = histograms.codes(groups)
        zeros = histograms.zeros(counts)
        bins = in_order(histograms.folded(counts, groups, elements(groups) - nonfinite), groups)
        bins = tf.transpose(spread(bins, gradients, 0))
    else:
        zeros, bins = histograms.compared(groups), None
    rows = R.Pack(values=[length, largest, zeros, nonfinite])
    return spread(in_order(rows, groups), gradients), bins


def _gradients(groups: Sequence[Group]) -> tf.Tensor:
    inner = axes(groups)
    square = squares(groups)
    highest = joined([R.Max(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    lowest = joined([R.Min(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    largest = R.Maximum(x=highest, y=R.Neg(x=lowest))
    length = R.Sqrt(x=square)
    quick = R.Pack(values=[length, largest, R.ZerosLike(x=length)])
    nothing = R.Cast(x=R.Equal(x=largest, y=constant(0.0)), DstT=tf.float32)
    return again(in_range(square + nothing), [quick], groups, _safe_rows)[0]


def weight_rows(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> tf.Tensor:
    """WEIGHT_ROWS of each variable, float32 [K, V]. A weight of 1e-16 is as good as 0."""
    old, new = (grouped([tf.cast(v, tf.float32) for v in values]) for values in (before, after))
    change = [g._replace(x=R.Sub(x=m.x, y=g.x)) for g, m in zip(old, new, strict=True)]
    (length, _, nonfinite), (moved, _, _) = (tf.unstack(lengths(groups, tf.math.is_finite)) for groups in (old, change))
    return in_order(R.Pack(values=[length, moved, nonfinite]), old)
