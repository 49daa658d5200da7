"""The Reading of one measured step over the global batch, made of the Partials of all replicas.

A Partial has what one replica can reduce alone, and may be made inside XLA. `complete` merges them and finishes the
columns. With one replica it only computes; with several it holds two collectives: the gradients' sum, and a small one
for all other numbers.

Letters: B bins, C columns, D data rows, H attention heads, K statistics, L layers, P points of the residual stream,
R replicas, S sampled elements, U units, V variables.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture.selection import Names
from tapescope.statistics import partial as partials
from tapescope.statistics import reductions, replicas, single_pass
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.batched_ops import constant
from tapescope.statistics.histograms import scale_counts
from tapescope.statistics.layer_columns import layer_columns
from tapescope.statistics.partial import Partial
from tapescope.statistics.tensors import Gradient
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import flow_path

UNIT_COLUMNS = ("units_dead", "units_dormant", "units_saturated", "units_revived")
"""The layers' columns that no single step can give: the recorder's ledger fills them."""
LAYER_COLUMNS = tuple(c.name for c in metadata.LAYER_COLUMNS if c.name not in UNIT_COLUMNS)
VARIABLE_COLUMNS = tuple(c.name for c in metadata.VARIABLE_COLUMNS)
STEP_COLUMNS = ("examples", "first_nonfinite_forward", "first_nonfinite_backward", "noise_scale_total", "loss")

NAN = float("nan")
ByName = Mapping[Any, tf.Tensor]
"""Statistics by name."""


class Reading(NamedTuple):
    """The numbers of one step over the global batch, the same on every replica.

    All fields are tensors, empty where there is nothing to record, so that a reading may be a loop variable in a graph.
    Under `tf.debugging.enable_check_numerics`, which would end the program at the first NaN, those of float32 hold the
    bits of their numbers as int32; `column` returns numbers.
    """

    variables: tf.Tensor
    """VARIABLE_COLUMNS by variable, float32 [C, V]."""
    layers: tf.Tensor
    """LAYER_COLUMNS by layer, float32 [C, L]."""
    step: tf.Tensor
    """STEP_COLUMNS, float32 [C]."""
    sizes: tf.Tensor
    """Number of elements of each output and of each gradient, float32 [L + V]; NaN where there is no gradient."""
    units: tf.Tensor
    """`layers.UNIT_ROWS` by unit, the layers' one after another, float32 [K, sum U]."""
    gradient_counts: tf.Tensor
    """Counts over bins of the elements of each gradient, of a large one of those in a sample, int32 [V, B]; empty where
    the probe takes no histograms."""
    activation_counts: tf.Tensor
    """The same of each output, [L, B]."""
    replicas: tf.Tensor
    """`metadata.REPLICA_COLUMNS`, float32 [C, R, V], or [C, R, 1] of many replicas; empty with one."""
    data: tf.Tensor
    """`data.DATA_ROWS` by input, target and output, float32 [..., K, D]: of each replica and small batch."""
    heads: tf.Tensor
    """`attention.HEAD_ROWS` by attention head, float32 [..., K, H]: of each replica and small batch."""
    residual: tf.Tensor
    """`attention.RESIDUAL_ROWS` by point of the residual stream, float32 [..., K, P], likewise."""
    layout: tf.Tensor
    """Which of the Probe's programs made it, int32 []: programs of one Probe may have other variables and layers."""
    gradient_sample: tf.Tensor
    """Elements of each gradient at fixed places, float32 [S, V], NaN where there are fewer: for `gradient_cosine`."""

    @property
    def elements(self) -> Any:
        """Number of elements of each output, float32 [L]."""
        return floats(self.sizes)[: self.layers.shape[1]]

    @property
    def gradient_histogram(self) -> Any:
        """Counts of all elements of each gradient over bins, int32 [V, B]; None where there are none."""
        elements = floats(self.sizes)[self.layers.shape[1] :]
        return _histogram(self.gradient_counts, elements - self.column("gradient_nonfinite"))

    @property
    def activation_histogram(self) -> Any:
        """Counts of all elements of each output over bins, int32 [L, B]; None where there are none."""
        return _histogram(self.activation_counts, self.elements - self.column("activation_nonfinite"))

    def column(self, name: str) -> Any:
        """Return one column.

        Args:
          name: of the column on the wire, such as "gradient_norm".

        Returns:
          The column in the shape of its family: [V], [L] or [].

        Raises:
          ValueError: a reading has no such column.
        """
        for columns, values in (
            (VARIABLE_COLUMNS, self.variables),
            (LAYER_COLUMNS, self.layers),
            (STEP_COLUMNS, self.step),
        ):
            if name in columns:
                return floats(values)[columns.index(name)]
        known = ", ".join((*VARIABLE_COLUMNS, *LAYER_COLUMNS, *STEP_COLUMNS))
        raise ValueError(f"`name` must be a column of a reading; got {name!r}, the columns are: {known}")


def _histogram(counts: Any, finite: Any) -> Any:
    return None if counts is None or len(counts.shape) < 2 else scale_counts(counts, finite)


BIT_FIELDS = (
    "variables",
    "layers",
    "step",
    "sizes",
    "units",
    "replicas",
    "data",
    "heads",
    "residual",
    "gradient_sample",
)
"""The fields of a Reading with float32."""


def as_bits(reading: Reading) -> Reading:
    """Return a reading whose float32 fields are their bits, int32: no check of numbers sees a NaN in them."""
    return reading._replace(**{name: tf.bitcast(getattr(reading, name), tf.int32) for name in BIT_FIELDS})


def floats(field: Any) -> Any:
    """Return a float32 field of a reading, which may be bits, as numbers: outside of a graph as a NumPy array."""
    if isinstance(field, np.ndarray) or field.dtype != tf.int32:
        return field
    return field.numpy().view(np.float32) if hasattr(field, "numpy") else tf.bitcast(field, tf.float32)


def _norms(gradients: Sequence[Gradient] | None) -> reductions.Reduction[tf.Tensor | None]:
    return None if gradients is None else (yield from tensor_statistics.norms(gradients))


def complete(
    partial: Partial,
    gradients: Sequence[Any],
    aggregated: Sequence[Any] | None,
    applied: Sequence[Any] | None,
    weights: Sequence[tf.Tensor],
    names: Names,
    layout: int,
) -> Reading:
    """Return the Reading. All gradients are from `to_reduce`, and unscaled; on replicas they are dense.

    Args:
      partial: of this replica.
      gradients: this replica's, of the V variables.
      aggregated: their sum over replicas and accumulated batches, where it is known.
      applied: what the optimizer got, where it differs; summed over replicas if `aggregated` is given.
      weights: the V variables after the update.
      names: of the rows.
      layout: index of the rows' layout.
    """
    histograms = partial.activation_counts is not None
    replica_columns = squares = None
    context, count = replicas.context()
    if context is not None and count > 1:
        if aggregated is None:
            aggregated = replicas.all_reduce(context, gradients)
            applied = None if applied is None else replicas.all_reduce(context, applied)
        updated = [tensor_statistics.as_float32(weight) for weight in weights]
        rows, squares = replicas.replica_rows(gradients, aggregated, updated, count)
        partial, rows, squares = partials.merge_replicas(context, partial, rows, squares)
        replica_columns = replicas.replica_columns(rows)
    recorded = None
    if aggregated is not None or partial.gradient_rows is None:
        recorded = gradients if aggregated is None else aggregated

    def reduce() -> tuple[Any, Any, Any]:
        return reductions.run(
            reductions.join(
                partials.gradient_rows(recorded, histograms),
                _norms(applied),
                tensor_statistics.weight_rows(partial.weights, weights),
            )
        )

    (rows, counts, sample), applied_norm, weight_rows = single_pass.compiled(reduce)
    if recorded is not None:
        partial = partial._replace(gradient_rows=rows, gradient_counts=counts, gradient_sample=sample)
    layers = layer_columns(partial.layer_rows, flow_path.followed_sources(names.sources, len(names.layers)))
    gradient = dict(zip(tensor_statistics.GRADIENT_ROWS, tf.unstack(partial.gradient_rows), strict=True))
    examples = layers["examples"][0] if names.layers else constant(NAN)
    if squares is None:
        noise = constant([NAN] * len(names.variables))
        noise_total = constant(NAN)
    else:
        noise, noise_total = replicas.noise_scale(squares, gradient["norm"], examples, count)
    weight = dict(zip(tensor_statistics.WEIGHT_ROWS, tf.unstack(weight_rows), strict=True))
    variables = _variable_columns(gradient, applied_norm, weight, noise)
    first = _first_nonfinite(layers, weight, gradient, names)
    step = {
        "examples": examples,
        "first_nonfinite_forward": first[0],
        "first_nonfinite_backward": first[1],
        "noise_scale_total": noise_total,
        "loss": partial.loss,
    }
    return Reading(
        variables=tf.stack([variables[name] for name in VARIABLE_COLUMNS]),
        layers=tf.stack([layers[name] for name in LAYER_COLUMNS]),
        step=tf.stack([step[name] for name in STEP_COLUMNS]),
        sizes=tf.concat([layers["elements"], gradient["elements"]], 0),
        units=partial.units,
        gradient_counts=_or_empty(partial.gradient_counts, tf.int32),
        activation_counts=_or_empty(partial.activation_counts, tf.int32),
        replicas=_or_empty(replica_columns, tf.float32),
        data=partial.data_rows,
        heads=partial.head_rows,
        residual=partial.residual_rows,
        layout=tf.constant(layout, tf.int32),
        gradient_sample=_or_empty(partial.gradient_sample, tf.float32),
    )


def _variable_columns(
    gradient: ByName, applied_norm: tf.Tensor | None, weight: ByName, noise_scale: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Return VARIABLE_COLUMNS by name, each [V]."""
    return {
        "gradient_norm": gradient["norm"],
        "applied_norm": gradient["norm"] if applied_norm is None else applied_norm,
        "weight_norm": weight["norm"],
        "gradient_max": gradient["max"],
        "gradient_zero": gradient["zero"],
        "gradient_nonfinite": gradient["nonfinite"],
        "update_ratio": weight["change"] / weight["norm"],
        "noise_scale": noise_scale,
        "update_norm": weight["change"],
    }


def _or_empty(tensor: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    return tf.zeros([0], dtype) if tensor is None else tensor


def _count_variables(counts: tf.Tensor, layer_variables: Sequence[Sequence[int]]) -> tf.Tensor:
    """Return how many of each layer's own variables have a count above 0, from float32 [K, V] to [K, L].

    A variable without a gradient has the count NaN, and is not one of them.
    """
    most = max(map(len, layer_variables), default=0)
    if not most:
        return tf.zeros([counts.shape[0], len(layer_variables)])
    absent: Any = counts.shape[1]
    places = [[*variables, *[absent] * (most - len(variables))] for variables in layer_variables]
    present = tf.raw_ops.Cast(x=tf.raw_ops.Greater(x=counts, y=constant(0.0)), DstT=tf.float32)
    present = tf.raw_ops.Pad(input=present, paddings=constant([[0, 0], [0, 1]]))
    return tf.raw_ops.Sum(
        input=tf.raw_ops.GatherV2(params=present, indices=constant(places), axis=constant(1)), axis=constant([2])
    )


def _first_nonfinite(layers: ByName, weight: ByName, gradient: ByName, names: Names) -> tf.Tensor:
    """Return the first layer with a NaN or Inf in the forward pass, and in the backward pass: float32 [2].

    The backward pass goes through the layers from the last one on. Without a NaN or Inf the result is -1. The input and
    the weights of a layer count as well as its output: ReLU turns NaN into 0.

    Args:
      layers: columns by name, [L].
      weight: rows by name, [V].
      gradient: rows by name, [V].
      names: which variables each layer has.
    """
    of_layers = tf.stack([layers["activation_nonfinite"] + layers["input_nonfinite"], layers["delta_nonfinite"]])
    of_variables = tf.stack([weight["nonfinite"], gradient["nonfinite"]])
    counts = of_layers + _count_variables(of_variables, names.layer_variables)
    count = counts.shape[1] or 0
    rank = np.stack([np.arange(count, 0, -1), np.arange(1, count + 1)])  # the largest of a row is found first
    found = tf.raw_ops.Cast(x=tf.raw_ops.Greater(x=counts, y=constant(0.0)), DstT=tf.float32)
    largest = tf.raw_ops.Max(input=found * constant(rank, tf.float32), axis=constant([1]))
    index = constant([count, -1.0]) + constant([-1.0, 1.0]) * largest
    return tf.raw_ops.SelectV2(condition=tf.raw_ops.Greater(x=largest, y=constant(0.0)), t=index, e=constant(-1.0))
