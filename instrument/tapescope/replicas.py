"""What replicas know of each other: one small collective a measured step, and what they disagree on.

A replica's statistics differ from the next one's in kind (sums, extremes, means), so they are not reduced but gathered:
each replica adds its vector into a row of its own of `[R, K]` zeros, and one SUM all-reduce gives all rows to all.
Histograms are summed in the same call, as two float32 halves of 12 and 19 bits, so that counts stay exact.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tapescope import stats

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
    rows = []
    for mine, all_ in zip(own, total, strict=True):
        if mine is None or all_ is None:
            rows.append(tf.fill([3], float("nan")))
            continue
        x, y = stats.finite(mine)[0], stats.finite(all_)[0]
        length, length_all = stats.norm(x), stats.norm(y)
        # Both scaled to length 1 first: the product of two gradients of 1e-25 is below the smallest float32.
        unit = tf.math.divide_no_nan(x, length), tf.math.divide_no_nan(y, length_all)
        cosine = tf.where(length * length_all > 0, tf.reduce_sum(unit[0] * unit[1]), float("nan"))
        same = tf.reduce_mean(tf.cast(tf.sign(x) == tf.sign(y), tf.float32))
        rows.append(tf.stack([length, cosine, same]))
    return tf.stack(rows, axis=1)


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
