"""Statistics that need several replicas: one small collective a measured step, and how replicas' gradients differ.

A layer's statistics are of different kinds (sums, extremes, means), so they are gathered, not reduced. Each replica
writes its vector into its own row of [R, K] zeros, and one SUM all-reduce gives all rows to all replicas. Statistics of
units are sums, and are summed in the same call. So are histograms, as two float32 parts of 12 and 19 bits, so that
counts stay exact.
See docs/decisions/0003-one-collective-per-measured-step.md.

The collective also has a checksum and a few elements of each weight: replicas must have equal weights. See
docs/decisions/0060-weights-of-replicas.md.

Letters: K statistics, M sums, N elements, n tensors, R replicas, S sampled elements, V variables.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import (
    Group,
    concat,
    concat_parts,
    constant,
    expand_columns,
    group_by_shape,
    restore_order,
)
from tensorboard_plugin_tapescope.series.noise_scale import trace_and_squared_norm

_COUNT_BASE = 4096
"""Counts are sent as quotient and remainder: below 2^31 / 4096 and 4096, with room for their sums in float32's 2^24."""
SAMPLED_WEIGHTS = 16
"""Elements of each variable that are compared between replicas, S."""
CHECKSUM_BITS = 24
"""Bits of a checksum: as many as float32 holds."""
CHECKSUM_FACTOR = 0x9E3779B97F4A7C15 - (1 << 64)
"""Odd, so that no bit of a sum is lost: multiplicative hashing, Knuth, The Art of Computer Programming, 6.4."""


def context() -> tuple[tf.distribute.ReplicaContext | None, int]:
    """Return the replica context that this code runs in, or None, and the number of replicas R."""
    replica_context = tf.distribute.get_replica_context()
    return replica_context, (replica_context.num_replicas_in_sync if replica_context is not None else 1)


def should_write(variables: Sequence[Any]) -> bool:
    """Return whether this process writes records: of the workers that share `variables`, the chief alone does."""
    strategy = _strategy(variables)
    return strategy is None or bool(strategy.extended.should_save_summary)


def _strategy(variables: Sequence[Any]) -> Any:
    values = [getattr(v, "value", v) for v in variables]  # of a Keras variable
    return next((getattr(v, "distribute_strategy", None) for v in values), None)


def is_single_worker(variables: Sequence[Any]) -> bool:
    """Return whether no other process takes part in the steps that train these variables, as far as is known."""
    strategy = _strategy(variables)
    return strategy is None or isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy))


def gather(
    replica_context: tf.distribute.ReplicaContext, vector: tf.Tensor, summands: tf.Tensor, counts: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gather a vector over replicas, and sum numbers and counts, in one collective.

    Args:
      replica_context: of this replica.
      vector: float32 [K].
      summands: float32 [M].
      counts: int32 [N].

    Returns:
      All replicas' vectors, float32 [R, K], and the sums, float32 [M] and int32 [N].
    """
    replicas = replica_context.num_replicas_in_sync
    is_own_row = tf.range(replicas) == tf.cast(replica_context.replica_id_in_sync_group, tf.int32)
    rows = tf.where(is_own_row[:, None], vector[None, :], 0.0)
    quotient = tf.math.floordiv(counts, _COUNT_BASE)
    remainder = tf.math.floormod(counts, _COUNT_BASE)
    parts = [tf.reshape(rows, [-1]), summands, tf.cast(quotient, tf.float32), tf.cast(remainder, tf.float32)]
    packed = replica_context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat(parts, 0))
    rows, sums, quotient, remainder = tf.split(packed, [tf.size(part) for part in parts])
    rows = tf.reshape(rows, [replicas, vector.shape[0]])
    return rows, sums, tf.cast(quotient, tf.int32) * _COUNT_BASE + tf.cast(remainder, tf.int32)


def all_reduce(
    replica_context: tf.distribute.ReplicaContext, gradients: Sequence[tf.Tensor | None]
) -> list[tf.Tensor | None]:
    """Return the sum over replicas of each gradient, in one batched collective; None stays None."""
    summed = iter(replica_context.all_reduce(tf.distribute.ReduceOp.SUM, [g for g in gradients if g is not None]))
    return [None if g is None else next(summed) for g in gradients]


def replica_rows(
    replica_gradients: Sequence[tf.Tensor | None], summed_gradients: Sequence[tf.Tensor | None]
) -> tf.Tensor:
    """Compare this replica's part of each gradient with the sum over replicas.

    Args:
      replica_gradients: of this replica, V of them; None where a variable has no gradient.
      summed_gradients: their sums over replicas.

    Returns:
      The first three of `metadata.REPLICA_COLUMNS`, float32 [3, V]: L2 norm, cosine to the sum, share of elements of
      equal sign. NaN where there is no gradient. The cosine is NaN where a norm is 0.
    """
    pairs = {
        id(x): (x, y)
        for x, y in zip(replica_gradients, summed_gradients, strict=True)
        if x is not None and y is not None
    }
    if not pairs:
        return tf.fill([3, len(replica_gradients)], float("nan"))
    sums = [y for _, y in pairs.values()]
    rows = []
    groups = group_by_shape([x for x, _ in pairs.values()])
    for group in groups:
        group_sums = [sums[i] for i in group.indices]
        other = tf.raw_ops.Pack(values=group_sums) if group.stacked else group_sums[0]
        shape = constant([len(group_sums), -1])
        own = tf.raw_ops.Reshape(tensor=group.tensor, shape=shape)
        rows.append(_compare(own, tf.raw_ops.Reshape(tensor=other, shape=shape)))
    present = [x if x is not None and id(x) in pairs else None for x in replica_gradients]
    return expand_columns(restore_order(concat(rows, 1), groups), present)


def _compare(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return norm of `x`, cosine and share of equal signs, float32 [3, n], of two [n, N].

    Sums are float64: the product of two gradients of 1e-25 is below the smallest float32.
    """
    last = constant([1])
    zero = constant(0.0)
    x, y = (tf.raw_ops.SelectV2(condition=tf.raw_ops.IsFinite(x=t), t=t, e=zero) for t in (x, y))
    equal_sign = tf.raw_ops.Equal(x=tf.raw_ops.Sign(x=x), y=tf.raw_ops.Sign(x=y))
    sign_share = tf.raw_ops.Mean(input=tf.raw_ops.Cast(x=equal_sign, DstT=tf.float32), axis=last)
    a, b = (tf.raw_ops.Cast(x=t, DstT=tf.float64) for t in (x, y))
    product, square_x, square_y = (
        tf.raw_ops.Sum(input=tf.raw_ops.Mul(x=p, y=q), axis=last) for p, q in ((a, b), (a, a), (b, b))
    )
    norm = tf.raw_ops.Sqrt(x=square_x)
    cosine = product / (norm * tf.raw_ops.Sqrt(x=square_y))  # 0 / 0 is NaN
    norm, cosine = (tf.raw_ops.Cast(x=t, DstT=tf.float32) for t in (norm, cosine))
    return tf.raw_ops.Pack(values=[norm, cosine, sign_share])


def weight_rows(weights: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return what to compare of this replica's weights.

    The checksum is of the sum of all bits, so it does not depend on the order of an addition. It reads each weight
    once, as pairs of float32 taken for int64.

    Args:
      weights: V variables after the update, float32.

    Returns:
      A checksum, a whole number below 2^CHECKSUM_BITS, and S evenly spaced elements, float32 [1 + S, V].
    """
    groups = group_by_shape(weights)
    sums = concat_parts([_sum_of_bits(group) for group in groups], groups)
    hashed = tf.bitwise.right_shift(sums * constant(CHECKSUM_FACTOR, tf.int64), constant(64 - CHECKSUM_BITS, tf.int64))
    checksums = tf.cast(tf.bitwise.bitwise_and(hashed, constant((1 << CHECKSUM_BITS) - 1, tf.int64)), tf.float32)
    samples = tf.transpose(concat_parts([_evenly_spaced(group) for group in groups], groups))
    return restore_order(concat([checksums[None], samples], 0), groups)


def _sum_of_bits(group: Group) -> tf.Tensor:
    """Return the sum of pairs of elements taken for integers, modulo 2^64: int64 [], or [n] of a stack."""
    x = group.tensor
    if (x.shape[-1] or 0) % 2:
        ends = [[0, 0]] * (x.shape.rank - 1) + [[0, 1]]
        x = tf.raw_ops.Pad(input=x, paddings=constant(ends))
    pairs = tf.raw_ops.Reshape(tensor=x, shape=constant([*x.shape[:-1], -1, 2]))
    return tf.raw_ops.Sum(input=tf.raw_ops.Bitcast(input=pairs, type=tf.int64), axis=constant([-1]))


def _evenly_spaced(group: Group) -> tf.Tensor:
    """Return S elements of each tensor of a group, from the first to the last: [S], or [n, S] of a stack."""
    size = group.tensor.shape[-1] or 0
    if not size:
        return tf.zeros([*group.tensor.shape[:-1], SAMPLED_WEIGHTS])
    indices = np.linspace(0, size - 1, SAMPLED_WEIGHTS).astype(np.int32)
    axis = constant(len(group.tensor.shape) - 1)
    return tf.raw_ops.GatherV2(params=group.tensor, indices=constant(indices), axis=axis)


def weight_columns(rows: tf.Tensor) -> tf.Tensor:
    """Return the columns of the replicas' weights, float32 [2, R, V]: checksum, and difference from replica 0.

    Args:
      rows: `weight_rows` of all replicas, float32 [R, 1 + S, V].
    """
    samples = rows[:, 1:]
    return tf.stack([rows[:, 0], tf.reduce_max(tf.abs(samples - samples[:1]), 1)])


def noise_scale(
    replica_norms: tf.Tensor, gradient_norms: tf.Tensor, examples: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Estimate the gradient noise scale of one step, in examples.

    The small batch is a replica's, the large one the global batch. One step's estimate is noisy and may be negative.
    `tensorboard_plugin_tapescope.series.noise_scale` has the formula, its source, and the estimate over a run.

    Args:
      replica_norms: L2 norms of the replicas' parts of the gradient, float32 [R, V].
      gradient_norms: L2 norms of their sum, float32 [V].
      examples: the global batch, float32 [].

    Returns:
      The noise scale of each variable, float32 [V], and over all of them, float32 [].
    """
    replicas = tf.cast(tf.shape(replica_norms)[0], tf.float32)
    big = examples
    small = examples / replicas
    # A replica's part is 1/R of its own mean gradient.
    small_squares = tf.reduce_mean(tf.square(replica_norms * replicas), 0)
    big_squares = tf.square(gradient_norms)

    present = tf.math.logical_not(tf.math.is_nan(big_squares))
    small_sum = tf.reduce_sum(tf.where(present, small_squares, 0.0))
    big_sum = tf.reduce_sum(tf.where(present, big_squares, 0.0))
    trace, squared_norm = trace_and_squared_norm(small_squares, big_squares, small, big)
    by_variable = trace / squared_norm
    trace, squared_norm = trace_and_squared_norm(small_sum, big_sum, small, big)
    return by_variable, trace / squared_norm
