"""From the tensors of one measured step to a Reading of the global batch, in two parts.

`measure` is what one replica can say alone, and may run inside XLA. `complete` merges what all replicas said: with one
replica it only computes; with several it holds the two collectives, the gradients' and one small one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture.layer_hooks import Call
from tapescope.statistics import layers as layer_statistics
from tapescope.statistics import merging, replicas
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.batched_ops import constant
from tensorboard_plugin_tapescope import metadata

UNIT_COLUMNS = ("units_dead", "units_dormant", "units_saturated", "units_revived")
"""The layers' columns that no single step can give: the recorder's ledger fills them."""
LAYER_COLUMNS = tuple(c.name for c in metadata.LAYER_COLUMNS if c.name not in UNIT_COLUMNS)
VARIABLE_COLUMNS = tuple(c.name for c in metadata.VARIABLE_COLUMNS)
STEP_COLUMNS = ("examples", "first_nonfinite_forward", "first_nonfinite_backward", "noise_scale_total")

NAN = float("nan")


class Reading(NamedTuple):
    """What one step showed, over the global batch: the same on every replica. All are tensors, empty where there is
    nothing to say, so that a reading may be the variable of a loop in a graph.
    """

    variables: tf.Tensor
    """VARIABLE_COLUMNS by variable, float32 [C, V]."""
    layers: tf.Tensor
    """LAYER_COLUMNS by layer, float32 [C, L]."""
    step: tf.Tensor
    """STEP_COLUMNS, float32 [C]."""
    elements: tf.Tensor
    """Number of output elements, float32 [L]."""
    units: tf.Tensor
    """`outputs.UNIT_ROWS` by unit, the layers' one after another, float32 [K, sum U]."""
    gradient_histogram: tf.Tensor
    """int32 [V, B]; empty where the probe takes no histograms."""
    activation_histogram: tf.Tensor
    """int32 [L, B]."""
    replicas: tf.Tensor
    """`metadata.REPLICA_COLUMNS` of each replica's own gradients, float32 [3, R, V]; empty with one replica."""

    def column(self, name: str) -> Any:
        """One column by its name on the wire, in the shape that its family has: [V], [L] or []."""
        for columns, values in (
            (VARIABLE_COLUMNS, self.variables),
            (LAYER_COLUMNS, self.layers),
            (STEP_COLUMNS, self.step),
        ):
            if name in columns:
                return values[columns.index(name)]
        known = ", ".join((*VARIABLE_COLUMNS, *LAYER_COLUMNS, *STEP_COLUMNS))
        raise ValueError(f"`name` ({name!r}) is no column of a reading; there are: {known}")


class GradientStats(NamedTuple):
    """The statistics of a list of gradients."""

    rows: tf.Tensor
    """`stats.GRADIENT_ROWS`, float32 [K, V]; NaN where a variable has no gradient."""
    histogram: tf.Tensor | None
    """int32 [V, B]."""


class Partial(NamedTuple):
    """What one replica knows before it has heard of the others."""

    rows: tf.Tensor
    """`outputs.LAYER_ROWS`, float32 [K, L]; of an accumulated step [M, K, L]."""
    units: tf.Tensor
    """`outputs.UNIT_ROWS`, float32 [K, sum U]."""
    activation_histogram: tf.Tensor | None
    """int32 [L, B]."""
    weights: tuple[tf.Tensor, ...]
    """The variables before the update."""
    gradients: GradientStats | None
    """None with several replicas: their sum is not known yet."""


def accumulated(partials: Sequence[Partial]) -> Partial:
    """Of a step that goes through its batch in M parts, what all of them showed; but for the gradient, their sum."""
    counts = [p.activation_histogram for p in partials if p.activation_histogram is not None]
    return partials[0]._replace(
        rows=tf.stack([p.rows for p in partials]),
        units=tf.add_n([p.units for p in partials]),
        activation_histogram=tf.add_n(counts) if counts else None,
        gradients=None,
    )


def dense(gradient: Any) -> tf.Tensor | None:
    """A gradient as one float32 tensor; duplicate rows of IndexedSlices are summed."""
    return None if gradient is None else tf.cast(tf.convert_to_tensor(gradient), tf.float32)


def gradient_stats(gradients: Sequence[tf.Tensor | None], histograms: bool) -> GradientStats:
    """Statistics of a list of V dense gradients."""
    return GradientStats(*tensor_statistics.gradient_rows(gradients, histograms))


def measure(
    calls: Sequence[Call],
    deltas: Sequence[Sequence[tf.Tensor | None]],
    gradients: Sequence[tf.Tensor | None],
    weights: Sequence[tf.Tensor],
    histograms: bool,
) -> Partial:
    """What one replica can say. `deltas` are the gradients with respect to a, z and input of each call, unscaled."""
    rows, units, bins = layer_statistics.layer_rows(list(zip(calls, deltas, strict=True)), histograms)
    _, count = replicas.context()
    return Partial(
        rows=rows,
        units=units,
        activation_histogram=bins if calls else None,
        weights=tuple(weights),
        gradients=gradient_stats(gradients, histograms) if count == 1 else None,
    )


class _Merged(NamedTuple):
    """The same as a Partial, over all R replicas."""

    rows: tf.Tensor
    """[R, K, L], or [R, M, K, L]."""
    units: tf.Tensor
    activation_histogram: tf.Tensor | None
    gradients: GradientStats
    applied: tf.Tensor | None
    """L2 norms of the gradients that the optimizer was given, [V]; None where they are the same."""
    lens: tf.Tensor | None
    """[3, R, V]."""


def complete(
    partial: Partial,
    own: Sequence[tf.Tensor | None],
    aggregated: Sequence[tf.Tensor | None] | None,
    applied: Sequence[tf.Tensor | None] | None,
    weights: Sequence[tf.Tensor],
    layer_variables: np.ndarray,
    sources: Sequence[int],
) -> Reading:
    """The Reading. Gradients are dense and unscaled; `applied` is aggregated where `aggregated` is given.

    Args:
      partial: of this replica.
      own: this replica's gradients, V of them.
      aggregated: their sum over replicas and accumulated batches, where it is known.
      applied: what the optimizer was given, where it is not the same.
      weights: the variables after the update.
      layer_variables: which variables are a layer's own, bool [L, V].
      sources: the layer that feeds each one, or -1.
    """
    here, count = replicas.context()
    if here is None or count == 1:
        merged = _alone(partial, own, aggregated, applied)
    else:
        merged = _together(here, partial, own, aggregated, applied)

    layers = merging.layers(tf.reshape(merged.rows, [-1, *partial.rows.shape[-2:]]), sources)
    gradient = dict(zip(tensor_statistics.GRADIENT_ROWS, tf.unstack(merged.gradients.rows), strict=True))
    examples = layers["examples"][0] if partial.rows.shape[-1] else constant(NAN)
    if merged.lens is None:
        noise, noise_total = constant([NAN] * len(own)), constant(NAN)
    else:
        noise, noise_total = replicas.noise_scale(merged.lens[0], gradient["norm"], examples)
    weight = dict(
        zip(
            tensor_statistics.WEIGHT_ROWS,
            tf.unstack(tensor_statistics.weight_rows(partial.weights, weights)),
            strict=True,
        )
    )
    variables = {
        "gradient_norm": gradient["norm"],
        "applied_norm": gradient["norm"] if merged.applied is None else merged.applied,
        "weight_norm": weight["norm"],
        "gradient_max": gradient["max"],
        "gradient_zero": gradient["zero"],
        "gradient_nonfinite": gradient["nonfinite"],
        "update_ratio": weight["change"] / weight["norm"],
        "noise_scale": noise,
    }
    # A layer counts if its output does, and also if what it works on does: ReLU makes a 0 of a NaN.
    spoiled = tf.stack([gradient["nonfinite"], weight["nonfinite"]], 1) > 0
    bad_gradient, bad_weight = tf.unstack(tf.reduce_any(layer_variables[:, :, None] & spoiled, 1), axis=1)
    bad = layers["activation_nonfinite"] + layers["input_nonfinite"] > 0
    step = {
        "examples": examples,
        "first_nonfinite_forward": merging.first(bad | bad_weight),
        "first_nonfinite_backward": merging.last((layers["delta_nonfinite"] > 0) | bad_gradient),
        "noise_scale_total": noise_total,
    }
    return Reading(
        variables=tf.stack([variables[name] for name in VARIABLE_COLUMNS]),
        layers=tf.stack([layers[name] for name in LAYER_COLUMNS]),
        step=tf.stack([step[name] for name in STEP_COLUMNS]),
        elements=layers["elements"],
        units=merged.units,
        gradient_histogram=_or_empty(merged.gradients.histogram, tf.int32),
        activation_histogram=_or_empty(merged.activation_histogram, tf.int32),
        replicas=_or_empty(merged.lens, tf.float32),
    )


def _or_empty(tensor: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    return tf.zeros([0], dtype) if tensor is None else tensor


def _alone(
    partial: Partial,
    own: Sequence[tf.Tensor | None],
    aggregated: Sequence[tf.Tensor | None] | None,
    applied: Sequence[tf.Tensor | None] | None,
) -> _Merged:
    gradients = partial.gradients
    if aggregated is not None or gradients is None:
        gradients = gradient_stats(aggregated or own, partial.activation_histogram is not None)
    return _Merged(
        partial.rows[None], partial.units, partial.activation_histogram, gradients, _norms(applied), lens=None
    )


def _together(
    here: tf.distribute.ReplicaContext,
    partial: Partial,
    own: Sequence[tf.Tensor | None],
    aggregated: Sequence[tf.Tensor | None] | None,
    applied: Sequence[tf.Tensor | None] | None,
) -> _Merged:
    if aggregated is None:
        aggregated = replicas.all_reduce(here, own)
        applied = None if applied is None else replicas.all_reduce(here, applied)
    lens = replicas.lens(own, aggregated)
    mine = (partial.rows, partial.units, lens)
    histogram = partial.activation_histogram
    counts = tf.zeros([0], tf.int32) if histogram is None else tf.reshape(histogram, [-1])
    everyone, counts = replicas.gather(here, tf.concat([tf.reshape(t, [-1]) for t in mine], 0), counts)
    parts = tf.split(everyone, [t.shape.num_elements() for t in mine], axis=1)
    rows, units, lenses = (tf.reshape(p, [-1, *t.shape]) for p, t in zip(parts, mine, strict=True))
    return _Merged(
        rows,
        tf.reduce_sum(units, 0),
        None if histogram is None else tf.reshape(counts, histogram.shape),
        gradient_stats(aggregated, histogram is not None),
        _norms(applied),
        tf.transpose(lenses, [1, 0, 2]),
    )


def _norms(gradients: Sequence[tf.Tensor | None] | None) -> tf.Tensor | None:
    return None if gradients is None else tensor_statistics.norms(gradients)
