"""What replicas know of each other: one small collective a measured step, and what they disagree on.

A replica's statistics differ from the next one's in kind (sums, extremes, means), so they are not reduced but gathered:
each replica adds its vector into a row of its own of `[R, K]` zeros, and one SUM all-reduce gives all rows to all.
Histograms are summed in the same call, as two float32 halves of 12 and 19 bits, so that counts stay exact.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tapescope.statistics.batched_ops import R, concat, constant, grouped, in_order, spread

_HALF = 4096


def context() -> tuple[tf.distribute.ReplicaContext | None, int]:
    """The replica context that this code runs in, if any, and the number of replicas R."""
    here = tf.distribute.get_replica_context()
    return here, (here.num_replicas_in_sync if here is not None else 1)


def speaks_for_all(variables: Sequence[Any]) -> bool:
    """Whether this process is the one that writes: False on all workers but the chief, of those that share these."""
    values = [getattr(v, "value", v) for v in variables]  # of a Keras variable
    strategy = next((getattr(v, "distribute_strategy", None) for v in values), None)
    return strategy is None or bool(strategy.extended.should_save_summary)


def gather(here: tf.distribute.ReplicaContext, vector: tf.Tensor, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Every replica's float32 `vector`, `[K]` to `[R, K]`, and the sum of the int32 `counts` `[N]` over replicas."""
    replicas = here.num_replicas_in_sync
    mine = tf.range(replicas) == tf.cast(here.replica_id_in_sync_group, tf.int32)
    rows = tf.where(mine[:, None], vector[None, :], 0.0)
    halves = [tf.cast(half, tf.float32) for half in (tf.math.floordiv(counts, _HALF), tf.math.floormod(counts, _HALF))]
    packed = tf.concat([tf.reshape(rows, [-1]), *halves], 0)
    summed = here.all_reduce(tf.distribute.ReduceOp.SUM, packed)
    rows, high, low = tf.split(summed, [tf.size(rows), tf.size(counts), tf.size(counts)])
    rows = tf.reshape(rows, [replicas, vector.shape[0]])
    return rows, tf.cast(high, tf.int32) * _HALF + tf.cast(low, tf.int32)


def all_reduce(here: tf.distribute.ReplicaContext, parts: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
    """The sum over replicas of each gradient, in one batched collective; None stays None."""
    summed = iter(here.all_reduce(tf.distribute.ReduceOp.SUM, [p for p in parts if p is not None]))
    return [None if p is None else next(summed) for p in parts]


def lens(own: Sequence[tf.Tensor | None], total: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """How one replica's gradients stand to the aggregate, `[3, V]`: L2 norm, cosine, share of elements of equal sign.

    NaN where there is no gradient, and for the cosine where a norm is 0.
    """
    pairs = {id(x): (x, y) for x, y in zip(own, total, strict=True) if x is not None and y is not None}
    if not pairs:
        return tf.fill([3, len(own)], float("nan"))
    totals, rows = [y for _, y in pairs.values()], []
    groups = grouped([x for x, _ in pairs.values()])
    for group in groups:
        others = [totals[i] for i in group.indices]
        pair = group.x, R.Pack(values=others) if group.many else others[0]
        shape = constant([len(others), -1])
        rows.append(_compared(*(R.Reshape(tensor=t, shape=shape) for t in pair)))
    there = [x if x is not None and id(x) in pairs else None for x in own]
    return spread(in_order(concat(rows, 1), groups), there)


def _compared(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """`[3, n]` of two `[n, N]`; in float64: the product of two gradients of 1e-25 is below the smallest float32."""
    last, none = constant([1]), constant(0.0)
    x, y = (R.SelectV2(condition=R.IsFinite(x=t), t=t, e=none) for t in (x, y))
    same = R.Mean(input=R.Cast(x=R.Equal(x=R.Sign(x=x), y=R.Sign(x=y)), DstT=tf.float32), axis=last)
    a, b = (R.Cast(x=t, DstT=tf.float64) for t in (x, y))
    inner, length, length_all = (R.Sum(input=R.Mul(x=p, y=q), axis=last) for p, q in ((a, b), (a, a), (b, b)))
    length = R.Sqrt(x=length)
    cosine = inner / (length * R.Sqrt(x=length_all))  # 0 / 0 is NaN
    return R.Pack(values=[*(R.Cast(x=t, DstT=tf.float32) for t in (length, cosine)), same])


def noise_scale(own: tf.Tensor, total: tf.Tensor, examples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The simple noise scale tr(S) / |G|^2 in examples: per variable `[V]`, and over all of them `[]`.

    `own` [R, V] are the norms of the replicas' parts of the gradient, whose sum has norms `total` [V]; `examples` is
    the global batch. Unbiased estimates of numerator and denominator from two batch sizes: McCandlish, Kaplan, Amodei,
    "An Empirical Model of Large-Batch Training", 2018, appendix A.1. One step's value is noisy and may be negative.
    """
    replicas = tf.cast(tf.shape(own)[0], tf.float32)
    big, small = examples, examples / replicas
    # A replica's part is 1/R of its own mean gradient.
    norm2_small = tf.reduce_mean(tf.square(own * replicas), 0)
    norm2_big = tf.square(total)

    def ratio(small2: tf.Tensor, big2: tf.Tensor) -> tf.Tensor:
        trace = (small2 - big2) / (1 / small - 1 / big)
        gradient2 = (big * big2 - small * small2) / (big - small)
        return trace / gradient2

    present = tf.math.logical_not(tf.math.is_nan(norm2_big))
    sums = [tf.reduce_sum(tf.where(present, x, 0.0)) for x in (norm2_small, norm2_big)]
    return ratio(norm2_small, norm2_big), ratio(*sums)
