"""The Partial: what one replica can say alone of a measured step, from its tensors; and its merge over all replicas.

Letters: B bins, D data rows, H attention heads, K statistics, L layers, M small batches of an accumulated step,
P points of the residual stream, R replicas, S sampled elements, U units, V variables.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tapescope.capture.attention import AttentionCall
from tapescope.capture.layer_hooks import LayerCall
from tapescope.statistics import attention, data, reductions, replicas, single_pass
from tapescope.statistics import layers as layer_statistics
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.batched_ops import constant
from tapescope.statistics.layer_columns import extremes, layer_sums, rows_of_sums
from tapescope.statistics.tensors import Gradient

NAN = float("nan")


class Partial(NamedTuple):
    """The statistics of one replica, before it has heard of the others; merged, those of all replicas."""

    layer_rows: tf.Tensor
    """`layers.LAYER_ROWS`, float32 [K, L]; of an accumulated step [M, K, L]; merged [R, ..., K, L]."""
    units: tf.Tensor
    """`layers.UNIT_ROWS`, float32 [K, sum U]."""
    activation_counts: tf.Tensor | None
    """int32 [L, B]."""
    weights: tuple[tf.Tensor, ...]
    """The V variables before the update."""
    gradient_rows: tf.Tensor | None
    """`tensors.GRADIENT_ROWS`, float32 [K, V], NaN where a variable has no gradient; None until the sum is known."""
    gradient_counts: tf.Tensor | None
    """int32 [V, B]."""
    gradient_sample: tf.Tensor | None
    """float32 [S, V]; None until the sum is known."""
    data_rows: tf.Tensor
    """`data.DATA_ROWS`, float32 [K, D]; of an accumulated step [M, K, D]; merged [R, ..., K, D]."""
    head_rows: tf.Tensor
    """`attention.HEAD_ROWS`, float32 [K, H], likewise."""
    residual_rows: tf.Tensor
    """`attention.RESIDUAL_ROWS`, float32 [K, P], likewise."""
    loss: tf.Tensor
    """This replica's part of the batch's loss, where the caller knows it, float32 []; else NaN."""
    layout: tf.Tensor
    """int32 [index, 0]. The shape is the number of the rows' layout, as it is known outside of a compiled function."""


def accumulate(partials: Sequence[Partial]) -> Partial:
    """Return the statistics of a step that goes through its batch in M parts, without those of the gradient's sum."""
    counts = [p.activation_counts for p in partials if p.activation_counts is not None]
    return partials[0]._replace(
        layer_rows=tf.stack([p.layer_rows for p in partials]),
        units=tf.add_n([p.units for p in partials]),
        activation_counts=tf.add_n(counts) if counts else None,
        gradient_rows=None,
        gradient_counts=None,
        gradient_sample=None,
        data_rows=tf.stack([p.data_rows for p in partials]),
        head_rows=tf.stack([p.head_rows for p in partials]),
        residual_rows=tf.stack([p.residual_rows for p in partials]),
        loss=constant(NAN),
    )


def dense(gradient: Any) -> tf.Tensor | None:
    """Return a gradient as one float32 tensor; duplicate rows of IndexedSlices are summed."""
    return None if gradient is None else tensor_statistics.as_float32(tf.convert_to_tensor(gradient))


def to_reduce(gradient: Any) -> Gradient:
    """Return a gradient as `gradient_rows` takes it. That of few rows of a large table stays sparse."""
    if isinstance(gradient, tf.IndexedSlices) and tensor_statistics.stays_sparse(gradient):
        return tensor_statistics.sum_duplicates(gradient)
    return dense(gradient)


def measure(
    calls: Sequence[LayerCall],
    gradients: Sequence[Gradient] | None,
    weights: Sequence[tf.Tensor],
    histograms: bool,
    examples: layer_statistics.Examples = None,
    tensors: Sequence[data.DataTensor] = (),
    heads: Sequence[AttentionCall] = (),
    stream: Sequence[tf.Tensor] = (),
    loss: Any = None,
    layout: int = 0,
) -> Partial:
    """Return the statistics of one replica.

    Args:
      calls: of L layers, with their gradients unscaled.
      gradients: of the V variables, from `to_reduce`, unscaled; None where the one to record is known only later.
      weights: the V variables before the update.
      histograms: whether to count elements into bins.
      examples: see `tapescope.Probe`.
      tensors: inputs, targets and outputs.
      heads: calls of attention layers.
      stream: the P points of the residual stream.
      loss: of the batch, where the program says it.
      layout: index of the rows' layout.
    """

    def reduce() -> tuple[Any, ...]:
        parts = reductions.join(
            layer_statistics.layer_rows(calls, histograms, examples),
            gradient_rows(gradients, histograms),
            data.data_rows(tensors),
            attention.residual_rows(stream),
        )
        return *reductions.run(parts), attention.head_rows(heads)

    (rows, units, counts), of_gradients, data_rows, residual_rows, head_rows = single_pass.compiled(reduce)
    of_each, gradient_counts, gradient_sample = of_gradients
    return Partial(
        layer_rows=rows,
        units=units,
        activation_counts=counts if calls else None,
        weights=tuple(weights),
        gradient_rows=of_each,
        gradient_counts=gradient_counts,
        gradient_sample=gradient_sample,
        data_rows=data_rows,
        head_rows=head_rows,
        residual_rows=residual_rows,
        loss=constant(NAN) if loss is None else tf.cast(loss, tf.float32),
        layout=tf.zeros([layout, 0], tf.int32),
    )


def gradient_rows(gradients: Sequence[Gradient] | None, histograms: bool) -> reductions.Reduction[tuple[Any, ...]]:
    """Return what `tensors.gradient_rows` does, and three times None for None."""
    if gradients is None:
        return None, None, None
    return (yield from tensor_statistics.gradient_rows(gradients, histograms))


def merge_replicas(
    context: tf.distribute.ReplicaContext, partial: Partial, replica_rows: tf.Tensor, squares: tf.Tensor
) -> tuple[Partial, tf.Tensor, tf.Tensor]:
    """Return the partial merged over R replicas, their rows [R, K, V] from this one's [K, V], and the sums of [V]."""
    by_replica = replicas.are_few(context.num_replicas_in_sync)
    mine = (
        partial.layer_rows if by_replica else extremes(partial.layer_rows),
        *(replica_rows, partial.data_rows, partial.head_rows, partial.residual_rows),
        partial.loss,
    )
    histogram = partial.activation_counts
    counts = tf.zeros([0], tf.int32) if histogram is None else tf.reshape(histogram, [-1])
    vector = tf.concat([tf.reshape(t, [-1]) for t in mine], 0)
    summands = tf.concat([tf.reshape(partial.units, [-1]), squares], 0)
    vectors, sums, counts = replicas.gather(context, vector, summands, counts)
    units, squares = tf.split(sums, [t.shape.num_elements() for t in (partial.units, squares)])
    parts = tf.split(vectors, [t.shape.num_elements() for t in mine], axis=1)
    layer_rows, rows, data_rows, head_rows, residual_rows, loss = (
        tf.reshape(p, [context.num_replicas_in_sync, *t.shape]) for p, t in zip(parts, mine, strict=True)
    )
    if not by_replica:
        layer_part = context.all_reduce(tf.distribute.ReduceOp.SUM, layer_sums(partial.layer_rows))
        layer_rows = rows_of_sums(layer_part, layer_rows)[None]
    merged = partial._replace(
        layer_rows=layer_rows,
        units=tf.reshape(units, partial.units.shape),
        activation_counts=None if histogram is None else tf.reshape(counts, histogram.shape),
        data_rows=data_rows,
        head_rows=head_rows,
        residual_rows=residual_rows,
        loss=tf.reduce_sum(loss),
    )
    return merged, rows, squares
