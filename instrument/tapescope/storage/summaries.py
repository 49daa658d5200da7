"""The summaries of one step, from a Reading: tapescope's own families, and those for TensorBoard's own tabs."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture.objective import DataTensors
from tapescope.capture.selection import Names
from tapescope.capture.training_mode import LayerModes
from tapescope.statistics import attention
from tapescope.statistics import reading as readings
from tapescope.statistics.data import DATA_COLUMNS, data_columns
from tapescope.statistics.reading import Reading
from tapescope.statistics.replicas import are_few
from tapescope.storage import event_values
from tapescope.storage.event_values import Value
from tapescope.storage.rows import RunRows
from tapescope.storage.unit_ledger import Verdict
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import precision, spikes
from tensorboard_plugin_tapescope.series.spikes import RunSpikes

MAX_ROWS_IN_BUILTIN_TABS = 50
"""Layers, and variables, that TensorBoard's own tabs show. One tag each makes it slow with more."""


class Step(NamedTuple):
    """The host's part of a record."""

    number: int
    loss: float = math.nan
    examples_seen: float = math.nan
    """Up to and with this step; NaN where it is not known."""
    step_ms: float = math.nan
    measure_ms: float = math.nan
    is_closer: bool = False
    """Whether the step was measured because of a finding."""
    optimizer_called: bool = False
    """Whether one of Keras' optimizers was called in the measured step."""
    gradient_cosine_total: float = math.nan
    validation_loss: float = math.nan


def to_host(reading: Reading) -> Any:
    """Return a reading as NumPy arrays, with None for the parts that are empty.

    The rows of data, heads and residual stream become columns, and counts are those of all elements. The parts of a
    replicated reading are the same on all replicas; the first replica's are returned.
    """
    parts: dict[str, Any] = {name: first_replica(part).numpy() for name, part in reading._asdict().items()}
    parts |= {name: parts[name].view(np.float32) for name in readings.BIT_FIELDS}
    parts["layout"] = int(parts["layout"])
    parts["data"] = data_columns(parts["data"])
    parts["heads"] = attention.head_columns(parts["heads"])
    parts["residual"] = attention.residual_columns(parts["residual"])
    for name in ("gradient_counts", "activation_counts", "replicas"):
        if not parts[name].size:
            parts[name] = None
    reading = Reading(**parts)
    return reading._replace(gradient_counts=reading.gradient_histogram, activation_counts=reading.activation_histogram)


def first_replica(value: Any) -> Any:
    """Return the first replica's value of what `strategy.run` returned. Other values are returned unchanged."""
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value


# Families. `reading` is from `to_host` and has all rows of the run. `names` are those of the run's first record, which
# describes each tag. `verdict` is that of the last closed window.


def variables_family(reading: Any, names: Names, further: Mapping[str, np.ndarray]) -> Value:
    """Return the columns of the variables; `further` has those that are not in the reading, [V] by name."""
    unknown = np.full(reading.variables.shape[1], np.nan)
    derived = {column.name: unknown for column in metadata.DERIVED_VARIABLE_COLUMNS}
    derived |= precision.columns_of(
        "gradient", reading.gradient_counts, reading.column("gradient_zero"), reading.column("gradient_nonfinite")
    )
    derived |= further
    columns = (*readings.VARIABLE_COLUMNS, *derived)
    return _make_family("variables", columns, names.variables, _with_rows(reading.variables, derived.values()))


def layers_family(
    reading: Any,
    names: Names,
    verdict: Verdict | None,
    skipped: Mapping[str, str],
    modes: LayerModes,
) -> Value:
    """Return the columns of the layers.

    Args:
      reading: from `to_host`.
      names: of the rows.
      verdict: of the last closed window.
      skipped: reason by the name of each layer that could not be measured.
      modes: the layers that act otherwise in training.
    """
    unknown = np.full(reading.layers.shape[1], np.nan, np.float32)
    counts = {column: verdict.counts[column] if verdict else unknown for column in readings.UNIT_COLUMNS}
    further = counts | _derived_layer_columns(reading)
    details = {
        "units": names.units,
        "activations": names.activations,
        "variables": names.layer_variables,
        "sources": names.sources,
        "skipped": dict(skipped),
        "inference_layers": modes.inference_layers,
        "dropouts": modes.dropouts,
    }
    columns = (*readings.LAYER_COLUMNS, *further)
    return _make_family("layers", columns, names.layers, _with_rows(reading.layers, further.values()), details)


def units_family(names: Names, verdict: Verdict) -> Value:
    """Return the states of all units in a window that has just closed."""
    return _make_family("units", (), names.layers, verdict.state, {"units": names.units})


def histogram_families(reading: Any, names: Names) -> list[Value]:
    """Return the histograms of gradients and activations; none where the probe takes none."""
    values = []
    if reading.gradient_counts is not None:
        values.append(_make_family("gradient_histogram", (), names.variables, reading.gradient_counts))
    if reading.activation_counts is not None:
        values.append(_make_family("activation_histogram", (), names.layers, reading.activation_counts))
    return values


def replicas_family(reading: Any, names: Names, faults: Sequence[Sequence[Any]]) -> Value:
    """Return the columns of several replicas; `faults` is what Keras does differently with them."""
    columns = tuple(c.name for c in metadata.REPLICA_COLUMNS)
    by_replica = reading.replicas.reshape(-1, reading.replicas.shape[-1])
    details = {"replicas": reading.replicas.shape[1], "faults": faults}
    compared = names.variables if are_few(reading.replicas.shape[1]) else (metadata.ALL_VARIABLES,)
    return _make_family("replicas", columns, compared, by_replica, details)


def data_family(reading: Any, data: DataTensors) -> Value:
    """Return the columns of inputs, targets and outputs, with what the program says about them."""
    details = {
        "data_rows": [row._asdict() for row in data.rows],
        "objectives": data.objectives,
        "repeated_activation": data.repeated_activation,
        "compares_all_pairs": data.compares_all_pairs,
        "taken_for_probabilities": data.taken_for_probabilities,
    }
    return _make_family("data", DATA_COLUMNS, [row.name for row in data.rows], reading.data, details)


def heads_family(reading: Any, names: Names) -> Value:
    """Return the columns of the attention heads."""
    return _make_family("heads", attention.HEAD_COLUMNS, names.heads, reading.heads)


def residual_family(reading: Any, names: Names) -> Value:
    """Return the columns of the points of the residual stream."""
    return _make_family("residual", attention.RESIDUAL_COLUMNS, names.residual, reading.residual)


def _with_rows(array: np.ndarray, rows: Iterable[np.ndarray]) -> np.ndarray:
    """Return an array of columns with further ones, [C, N]."""
    return np.concatenate([array, np.array(list(rows), array.dtype).reshape(-1, array.shape[1])])


def _derived_layer_columns(reading: Any) -> dict[str, np.ndarray]:
    """Return the layers' columns that follow from others and from the histogram, [L] by name."""
    names = ("mean", "std", "min", "max", "zero", "nonfinite")
    mean, std, low, high, zero, nonfinite = (reading.column(f"activation_{name}") for name in names)
    counts = reading.activation_counts
    unknown = np.full(len(mean), np.nan)
    return {
        "activation_rms": precision.root_mean_square(mean, std),
        "activation_kurtosis": unknown if counts is None else precision.kurtosis(counts, mean, std, low, high),
        **precision.columns_of("activation", counts, zero, nonfinite),
    }


def _make_family(
    name: str, columns: Sequence[str], names: Sequence[str], array: np.ndarray, details: dict[str, Any] | None = None
) -> Value:
    family = Family(family=name, columns=tuple(columns), names=tuple(names), details=details or {})
    return event_values.tensor(family, array)


def is_skipped(reading: Any) -> bool:
    """Return whether the optimizer left all weights as they were because of a gradient that is not finite."""
    return bool(reading.column("gradient_nonfinite").any() and not np.any(reading.column("update_ratio") > 0))


def step_family(step: Step, reading: Any, verdict: Verdict | None, run_spikes: RunSpikes) -> Value:
    """Return the columns of the step. `run_spikes` takes its loss and its gradient."""
    row = {
        "examples_seen": step.examples_seen,
        "window_examples": verdict.examples if verdict else math.nan,
        "measure_ms": step.measure_ms,
        "step_ms": step.step_ms,
        "skipped": float(is_skipped(reading)),
        "optimizer_called": float(step.optimizer_called),
        "closer_look": float(step.is_closer),
        "gradient_cosine_total": step.gradient_cosine_total,
        "validation_loss": step.validation_loss,
        **{column: reading.column(column) for column in readings.STEP_COLUMNS if column != "examples"},
    }
    if math.isnan(row["loss"]):  # the program has not given the batch's own one to the reading
        row["loss"] = step.loss
    run_spikes.add(row["loss"], reading.column("gradient_norm"), row["skipped"])
    row |= {spikes.COLUMNS[name]: share for name, share in run_spikes.shares.items()}
    return _make_family("step", tuple(row), (), np.array(list(row.values()), np.float64))


def make_builtin(reading: Any, rows: RunRows, names: Names, verdict: Verdict | None) -> list[Value]:
    """Return scalars and histograms for TensorBoard's own tabs.

    Args:
      reading: from `to_host`, with all rows of the run.
      rows: of the run; at most MAX_ROWS_IN_BUILTIN_TABS layers and variables are shown.
      names: the rows of this step; the others are left out.
      verdict: of the last closed window.
    """
    norms = reading.column("gradient_norm")
    global_norm = float(spikes.total_norm(norms))
    variables = _shown(rows.first.variables, rows.names.variables, names.variables)
    layers = _shown(rows.first.layers, rows.names.layers, names.layers)
    names = rows.names
    values = [event_values.scalar("gradient_norm_global", global_norm)]
    values += [event_values.scalar(f"gradient_norm/{names.variables[v]}", float(norms[v])) for v in variables]
    if verdict:
        dead = verdict.counts["units_dead"]
        values += [event_values.scalar(f"units_dead/{names.layers[i]}", float(dead[i])) for i in layers]
    if reading.gradient_counts is not None:
        counts = reading.gradient_counts
        values += [event_values.histogram(f"gradient/{names.variables[v]}", counts[v]) for v in variables]
    if reading.activation_counts is not None:
        counts = reading.activation_counts
        values += [event_values.histogram(f"activation/{names.layers[i]}", counts[i]) for i in layers]
    return values


def _shown(first: Sequence[str], everything: Sequence[str], present: Sequence[str]) -> list[int]:
    """Return the indices of those rows of a step that TensorBoard's own tabs show."""
    shown = [*thin_out(len(first)), *range(len(first), min(len(everything), MAX_ROWS_IN_BUILTIN_TABS))]
    if everything is present or everything == present:
        return shown
    in_step = set(present)
    return [i for i in shown if everything[i] in in_step]


@functools.cache
def thin_out(rows: int) -> tuple[int, ...]:
    """Return the indices of the rows that TensorBoard's own tabs show: all, or evenly spaced ones."""
    return tuple(sorted({round(i) for i in np.linspace(0, rows - 1, min(rows, MAX_ROWS_IN_BUILTIN_TABS))}))
