"""From a Reading to the summaries of one step: tapescope's own families, and what TensorBoard's own tabs show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture.selection import Names
from tapescope.statistics import reading
from tapescope.statistics.reading import Reading
from tapescope.storage import event_file, unit_ledger
from tapescope.storage.event_file import Value
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

LAYERS_IN_BUILTIN_TABS = 50


class Step(NamedTuple):
    """What the host knows of a step."""

    number: int
    loss: float = math.nan
    examples_seen: float = math.nan
    """NaN: (number + 1) times the examples of this step."""
    step_ms: float = math.nan
    measure_ms: float = math.nan


def on_host(read: Reading) -> Any:
    """The reading as NumPy arrays, with None for what is empty; of a replicated one the first replica's: they are all
    the same.
    """
    parts: dict[str, Any] = {name: first_replica(part).numpy() for name, part in read._asdict().items()}
    for name in ("gradient_histogram", "activation_histogram", "replicas"):
        parts[name] = parts[name] if parts[name].size else None
    return Reading(**parts)


def first_replica(value: Any) -> Any:
    """The first replica's value of what `strategy.run` returned; anything else is returned as it is."""
    return value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value


def families(
    step: Step,
    read: Any,
    names: Names,
    ledger: unit_ledger.Ledger,
    skipped: Mapping[str, str],
    faults: Sequence[Sequence[Any]] | None = None,
) -> list[Value]:
    """The step's tensors under tapescope's own tags. `read` is `on_host`; the ledger takes in its units."""
    examples = read.column("examples")
    closes = bool(names.layers) and ledger.add(read.units, read.elements, int(examples))
    verdict = ledger.verdict
    values = [
        _family("variables", reading.VARIABLE_COLUMNS, names.variables, read.variables),
        _step(step, read, examples, verdict),
    ]
    if names.layers:
        unknown = np.full(len(names.layers), np.nan, np.float32)
        counts = [verdict.counts[column] if verdict else unknown for column in reading.UNIT_COLUMNS]
        details = {
            "units": names.units,
            "activations": names.activations,
            "variables": names.layer_variables,
            "sources": names.sources,
            "skipped": dict(skipped),
        }
        columns = (*reading.LAYER_COLUMNS, *reading.UNIT_COLUMNS)
        values.append(_family("layers", columns, names.layers, np.concatenate([read.layers, counts]), details))
    if closes and verdict:
        values.append(_family("units", (), names.layers, verdict.state, {"units": names.units}))
    if read.gradient_histogram is not None:
        values.append(_family("gradient_histogram", (), names.variables, read.gradient_histogram))
    if read.activation_histogram is not None:
        values.append(_family("activation_histogram", (), names.layers, read.activation_histogram))
    if read.replicas is not None:
        columns = tuple(c.name for c in metadata.REPLICA_COLUMNS)
        rows = read.replicas.reshape(-1, len(names.variables))
        about = {"replicas": read.replicas.shape[1], "faults": faults or ()}
        values.append(_family("replicas", columns, names.variables, rows, about))
    return values


def _family(
    name: str, columns: Sequence[str], names: Sequence[str], array: np.ndarray, details: dict[str, Any] | None = None
) -> Value:
    return event_file.tensor(Family(name, tuple(columns), tuple(names), details or {}), array)


def skipped(read: Any) -> bool:
    """Whether the optimizer left all weights as they were because of a gradient that was not finite."""
    return bool(read.column("gradient_nonfinite").any() and not np.any(read.column("update_ratio") > 0))


def _step(step: Step, read: Any, examples: float, verdict: unit_ledger.Verdict | None) -> Value:
    row = {
        "loss": step.loss,
        "examples_seen": (step.number + 1) * examples if math.isnan(step.examples_seen) else step.examples_seen,
        "window_examples": verdict.examples if verdict else math.nan,
        "measure_ms": step.measure_ms,
        "step_ms": step.step_ms,
        "skipped": float(skipped(read)),
        **{column: read.column(column) for column in reading.STEP_COLUMNS if column != "examples"},
    }
    return _family("step", tuple(row), (), np.array(list(row.values()), np.float64))


def for_builtin_tabs(read: Any, names: Names, verdict: unit_ledger.Verdict | None) -> list[Value]:
    """Scalars and histograms for the tabs that TensorBoard has of its own, of at most LAYERS_IN_BUILTIN_TABS layers."""
    norms = read.column("gradient_norm")
    values = [event_file.scalar("gradient_norm_global", float(np.sqrt(np.nansum(np.square(norms, dtype=np.float64)))))]
    variables, layers = thinned(len(names.variables)), thinned(len(names.layers))
    values += [event_file.scalar(f"gradient_norm/{names.variables[v]}", float(norms[v])) for v in variables]
    if verdict:
        dead = verdict.counts["units_dead"]
        values += [event_file.scalar(f"units_dead/{names.layers[i]}", float(dead[i])) for i in layers]
    if read.gradient_histogram is not None:
        counts = read.gradient_histogram
        values += [event_file.histogram(f"gradient/{names.variables[v]}", counts[v]) for v in variables]
    if read.activation_histogram is not None:
        counts = read.activation_histogram
        values += [event_file.histogram(f"activation/{names.layers[i]}", counts[i]) for i in layers]
    return values


def thinned(rows: int) -> list[int]:
    """The rows that TensorBoard's own tabs show: all, or evenly spaced ones."""
    return sorted({round(i) for i in np.linspace(0, rows - 1, min(rows, LAYERS_IN_BUILTIN_TABS))})
