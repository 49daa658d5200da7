"""Statistics that need several replicas: one small collective a measured step, and how replicas' gradients differ.

A layer's statistics are of different kinds (sums, extremes, means), so they are gathered, not reduced. Each replica
writes its vector into its own row of [R, K] zeros, and one SUM all-reduce gives all rows to all replicas. Statistics of
units are sums, and are summed in the same call. So are histograms, as two float32 parts of 12 and 19 bits, so that
counts stay exact.
See docs/decisions/0003-one-collective-per-measured-step.md.

The collective also has a checksum and a few elements of each weight: replicas must have equal weights. See
docs/decisions/0060-weights-of-replicas.md. Where there are many replicas, what is compared is of all variables
together: see docs/decisions/0067-many-replicas.md.

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
FEW = 32
"""Most replicas that send all of their rows. Of more, gradients and weights are compared as a whole, not by variable,
and statistics of layers are summed."""
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
    strategy = find_strategy(variables)
    return strategy is None or bool(strategy.extended.should_save_summary)


def find_strategy(variables: Sequence[Any]) -> Any:
    """Return the strategy that variables were made under; None without one."""
    values = [getattr(v, "value", v) for v in variables]  # of a Keras variable
    return next((s for v in values if (s := getattr(v, "distribute_strategy", None)) is not None), None)


def is_single_worker(variables: Sequence[Any]) -> bool:
    """Return whether no other process takes part in the steps that train these variables, as far as is known."""
    strategy = find_strategy(variables)
    return strategy is None or isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy))


def has_other_workers(variables: Sequence[Any]) -> bool:
    """Return whether other processes run the steps that train these variables, and must run the same program."""
    strategy = find_strategy(variables)
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec()
    return sum(cluster.num_tasks(job) for job in cluster.jobs if job in ("chief", "worker")) > 1


def are_few(replica_count: int) -> bool:
    """Return whether so many replicas send all of their rows."""
    return replica_count <= FEW


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
    gradients: Sequence[tf.Tensor | None],
    summed: Sequence[tf.Tensor | None],
    weights: Sequence[tf.Tensor],
    replica_count: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return what to compare of this replica.

    Args:
      gradients: this replica's part of each gradient, V of them; None where a variable has no gradient.
      summed: their sums over replicas.
      weights: V variables after the update, float32.
      replica_count: R.

    Returns:
      The rows of `gradient_columns` and 1 + S of the weights, float32 [K, V], or [K, 1] of all variables together if
      R is above FEW. And the squares of the gradients' norms, float32 [V].
    """
    sums = gradient_sums(gradients, summed)
    by_variable = are_few(replica_count)
    rows_of_weights = checksum_rows(weights) if by_variable else checksum_row_of_all(weights)
    columns = gradient_columns(sums if by_variable else _total(sums))
    return concat([columns, rows_of_weights], 0), tf.cast(sums[_SQUARES], tf.float32)


_SQUARES = 1
"""Index of the squared norm in `gradient_sums`."""
COMPARED = ("norm", "cosine", "equal_sign", "nonfinite")
"""Columns of `gradient_columns`."""


def gradient_sums(gradients: Sequence[tf.Tensor | None], summed: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Return sums that compare this replica's part of each gradient with the sum over replicas.

    Args:
      gradients: of this replica, V of them; None where a variable has no gradient.
      summed: their sums over replicas.

    Returns:
      The product of both, the square of each, the elements of equal sign, those of this replica that are finite, and
      all elements, float64 [6, V]. NaN where there is no gradient.
    """
    pairs = {id(x): (x, y) for x, y in zip(gradients, summed, strict=True) if x is not None and y is not None}
    if not pairs:
        return tf.fill([6, len(gradients)], constant(float("nan"), tf.float64))
    sums = [y for _, y in pairs.values()]
    rows = []
    groups = group_by_shape([x for x, _ in pairs.values()])
    for group in groups:
        group_sums = [sums[i] for i in group.indices]
        other = tf.raw_ops.Pack(values=group_sums) if group.stacked else group_sums[0]
        shape = constant([len(group_sums), -1])
        own = tf.raw_ops.Reshape(tensor=group.tensor, shape=shape)
        rows.append(_sums_of_pair(own, tf.raw_ops.Reshape(tensor=other, shape=shape)))
    present = [x if x is not None and id(x) in pairs else None for x in gradients]
    return expand_columns(restore_order(concat(rows, 1), groups), present)


def _sums_of_pair(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return six sums of two [n, N], float64 [6, n]: the product of two gradients of 1e-25 is not a float32."""
    last = constant([1])
    zero = constant(0.0)
    is_finite = tf.raw_ops.IsFinite(x=x)
    x = tf.raw_ops.SelectV2(condition=is_finite, t=x, e=zero)
    y = tf.raw_ops.SelectV2(condition=tf.raw_ops.IsFinite(x=y), t=y, e=zero)
    equal_sign = tf.raw_ops.Equal(x=tf.raw_ops.Sign(x=x), y=tf.raw_ops.Sign(x=y))
    a, b, equal, finite = (tf.raw_ops.Cast(x=t, DstT=tf.float64) for t in (x, y, equal_sign, is_finite))
    products = [tf.raw_ops.Mul(x=p, y=q) for p, q in ((a, b), (a, a), (b, b))]
    sums = [tf.raw_ops.Sum(input=product, axis=last) for product in (*products, equal, finite)]
    elements = tf.fill([x.shape[0] or 0], tf.cast(tf.shape(x)[1], tf.float64))
    return tf.raw_ops.Pack(values=[*sums, elements])


def _total(sums: tf.Tensor) -> tf.Tensor:
    """Return `gradient_sums` of all variables together, [6, 1]. Those without a gradient count nothing."""
    return tf.reduce_sum(tf.where(tf.math.is_nan(sums), constant(0.0, tf.float64), sums), 1, keepdims=True)


def gradient_columns(sums: tf.Tensor) -> tf.Tensor:
    """Return columns of this replica's gradient from `gradient_sums`, float32 [len(COMPARED), N].

    They are L2 norm, cosine to the sum, share of elements of equal sign, and number of NaN and Inf elements. The cosine
    is NaN where a norm is 0.
    """
    product, square, square_of_sum, equal, finite, elements = tf.unstack(sums)
    norm = tf.sqrt(square)
    cosine = product / (norm * tf.sqrt(square_of_sum))
    return tf.cast(tf.stack([norm, cosine, equal / elements, elements - finite]), tf.float32)


def checksum_rows(weights: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return what to compare of this replica's weights.

    The checksum is of the sum of all bits, so it does not depend on the order of an addition. It reads each weight
    once, as pairs of float32 taken for int64.

    Args:
      weights: V variables after the update, float32.

    Returns:
      A checksum, a whole number below 2^CHECKSUM_BITS, and S evenly spaced elements, float32 [1 + S, V].
    """
    sums, samples = _weight_sums(weights)
    return concat([_checksum(sums)[None], samples], 0)


def checksum_row_of_all(weights: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return a checksum of all weights and an element of each of S evenly spaced variables, float32 [1 + S, 1]."""
    sums, samples = _weight_sums(weights)
    number = len(weights)
    # Odd factors: no bit is lost, and two variables that are exchanged are seen.
    factors = constant(np.arange(1, 2 * number, 2), tf.int64)
    variables = np.linspace(0, number - 1, SAMPLED_WEIGHTS).astype(np.int32)
    places = constant(np.arange(SAMPLED_WEIGHTS, dtype=np.int32) * number + variables)
    chosen = tf.gather(tf.reshape(samples, [-1]), places)
    return concat([_checksum(tf.reduce_sum(sums * factors))[None], chosen], 0)[:, None]


def _checksum(sums: tf.Tensor) -> tf.Tensor:
    hashed = tf.bitwise.right_shift(sums * constant(CHECKSUM_FACTOR, tf.int64), constant(64 - CHECKSUM_BITS, tf.int64))
    return tf.cast(tf.bitwise.bitwise_and(hashed, constant((1 << CHECKSUM_BITS) - 1, tf.int64)), tf.float32)


def _weight_sums(weights: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sums of all bits of V variables, int64 [V], and S evenly spaced elements of each, float32 [S, V]."""
    groups = group_by_shape(weights)
    sums = concat_parts([_sum_of_bits(group) for group in groups], groups)
    samples = tf.transpose(concat_parts([_evenly_spaced(group) for group in groups], groups))
    return restore_order(sums[None], groups)[0], restore_order(samples, groups)


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


def replica_columns(rows: tf.Tensor) -> tf.Tensor:
    """Return `metadata.REPLICA_COLUMNS`, float32 [C, R, V], from `replica_rows` of all replicas, [R, K, V].

    The columns of the weights are their checksum and the difference from replica 0.
    """
    count = len(COMPARED)
    *gradient, nonfinite = tf.unstack(rows[:, :count], axis=1)
    checksum = rows[:, count]
    samples = rows[:, count + 1 :]
    difference = tf.reduce_max(tf.abs(samples - samples[:1]), 1)
    return tf.stack([*gradient, checksum, difference, nonfinite])


def noise_scale(
    sums_of_squares: tf.Tensor, gradient_norms: tf.Tensor, examples: tf.Tensor, replica_count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Estimate the gradient noise scale of one step, in examples.

    The small batch is a replica's, the large one the global batch. One step's estimate is noisy and may be negative.
    `tensorboard_plugin_tapescope.series.noise_scale` has the formula, its source, and the estimate over a run.

    Args:
      sums_of_squares: of the L2 norms of the replicas' parts of the gradient, over replicas, float32 [V].
      gradient_norms: L2 norms of their sum, float32 [V].
      examples: the global batch, float32 [].
      replica_count: R.

    Returns:
      The noise scale of each variable, float32 [V], and over all of them, float32 [].
    """
    big = examples
    small = examples / replica_count
    small_squares = replica_count * sums_of_squares  # a replica's part is 1/R of its own mean gradient
    big_squares = tf.square(gradient_norms)

    present = tf.math.logical_not(tf.math.is_nan(big_squares))
    small_sum = tf.reduce_sum(tf.where(present, small_squares, 0.0))
    big_sum = tf.reduce_sum(tf.where(present, big_squares, 0.0))
    trace, squared_norm = trace_and_squared_norm(small_squares, big_squares, small, big)
    by_variable = trace / squared_norm
    trace, squared_norm = trace_and_squared_norm(small_sum, big_sum, small, big)
    return by_variable, trace / squared_norm
