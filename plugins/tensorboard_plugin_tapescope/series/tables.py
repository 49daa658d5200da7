"""Records to arrays: what a tag's tensors say, as a table that figures can draw. Pure functions of arrays."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Column, Family

SEVERITIES = ("error", "warning", "info")

DERIVED = {
    c.name: c
    for c in (
        Column("dead_share", "share of the layer's units that never fired in the last full window", "", "fraction"),
        Column("dormant_share", "share of units whose mean output is below 2.5 % of the layer's", "", "fraction"),
    )
}
"""Columns that no record holds: a count of units over the units of the layer."""

COLUMNS = {**metadata.COLUMNS, **DERIVED}

# Of these a small value is the bad one; of activation_mean one far from 0; of every other a large one.
LOW_IS_BAD = {
    *("gradient_norm", "applied_norm", "delta_norm", "update_ratio", "activation_std", "activation_min"),
    *("flow_gate", "flow_weight", "replica_cosine", "replica_sign"),
}

WHOLE = ("units", "gradient_histogram", "activation_histogram")
"""Families of whole numbers: states and counts."""


class Datum(Protocol):
    """A record of one tag, as TensorBoard's data provider gives it."""

    step: int
    wall_time: float
    numpy: np.ndarray


class Table(NamedTuple):
    """All records of one tag."""

    family: Family
    steps: np.ndarray
    """int64 [T], ascending."""
    seconds: np.ndarray
    """float64 [T], wall time since 1970."""
    values: np.ndarray
    """[T, ...]: the tensors, shaped as `metadata` says."""


def shape(family: Family) -> tuple[int, ...] | None:
    """The shape of one tensor of the family; None where it may vary."""
    rows, names = len(family.columns), len(family.names)
    shapes = {
        "variables": (rows, names),
        "layers": (rows, names),
        "step": (rows,),
        "gradient_histogram": (names, metadata.BINS),
        "activation_histogram": (names, metadata.BINS),
        "replicas": (rows * replicas(family), names),
        "units": (sum(units(family)),),
    }
    return shapes.get(family.family)


def table(family: Family, data: Iterable[Datum]) -> Table:
    """The records as arrays. Those that are no numbers of the family's shape are left out: they can't be named."""
    expected, kinds = shape(family), "iu" if family.family in WHOLE else "fiu"
    kept = [d for d in data if expected is None or (d.numpy.shape == expected and d.numpy.dtype.kind in kinds)]
    steps = np.array([d.step for d in kept], np.int64)
    seconds = np.array([d.wall_time if math.isfinite(d.wall_time) else 0.0 for d in kept], np.float64)
    if expected is not None:
        return Table(family, steps, seconds, np.stack([d.numpy for d in kept]) if kept else _none(expected))
    values = np.empty(len(kept), object)
    values[:] = [d.numpy for d in kept]
    return Table(family, steps, seconds, values)


def _none(shape: tuple[int, ...]) -> np.ndarray:
    """No tensor of the shape."""
    return np.zeros((0, *shape), np.float32)


def joined(first: Table, more: Table) -> Table:
    """Two tables of a tag, the second's steps all after the first's."""
    return Table(first.family, *(np.concatenate([getattr(first, f), getattr(more, f)]) for f in Table._fields[1:]))


def between(data: Table, first: int, last: int) -> Table:
    """The records of the steps from first to last, both included; nothing is copied."""
    inside = slice(*np.searchsorted(data.steps, [first, last + 1]))
    return Table(data.family, data.steps[inside], data.seconds[inside], data.values[inside])


def units(family: Family) -> list[int]:
    """Units of each layer; zeros where the family doesn't say."""
    counts = family.details.get("units")
    if not isinstance(counts, list) or len(counts) != len(family.names):
        return [0] * len(family.names)
    return [n if isinstance(n, int) and 0 <= n < 2**31 else 0 for n in counts]


def activations(family: Family) -> list[str]:
    """What stands before "layer" in a sentence: `"sigmoid "` for a layer whose activation has a name, else nothing."""
    kinds = family.details.get("activations")
    if not isinstance(kinds, list) or len(kinds) != len(family.names):
        return [""] * len(family.names)
    named = [isinstance(kind, str) and kind.isidentifier() and kind not in ("linear", "unknown") for kind in kinds]
    return [f"{kind} " if has else "" for kind, has in zip(kinds, named, strict=True)]


def replicas(family: Family) -> int:
    """Replicas of a `replicas` family, 0 where it doesn't say."""
    number = family.details.get("replicas")
    return number if isinstance(number, int) and 0 < number < 2**16 else 0


def own_variables(family: Family, layer: str) -> list[int]:
    """Indices of a layer's own variables, from the `layers` family."""
    owned = family.details.get("variables")
    index = family.names.index(layer)
    mine = owned[index] if isinstance(owned, list) and index < len(owned) else []
    return [i for i in mine if isinstance(i, int)] if isinstance(mine, list) else []


def backward_path(family: Family) -> list[int]:
    """Layers from the last back towards the first, each followed by the last of those that feed it.

    The layer at the end is left out: what its own gate and weights take is not lost on the way to it. A family that
    does not say what feeds a layer is a chain.
    """
    sources = family.details.get("sources")
    at, path = len(family.names) - 1, []
    while at > 0:
        fed = sources[at] if isinstance(sources, list) and at < len(sources) else [at - 1]
        before = [i for i in fed if isinstance(i, int) and 0 <= i < at] if isinstance(fed, list) else []
        if not before:
            break
        path.append(at)
        at = max(before)
    return path


def column_names(family: Family) -> tuple[str, ...]:
    """Names of the columns that a table of the family can give, those derived with them."""
    derived = tuple(name for name in DERIVED if _count_of(name) in family.columns and any(units(family)))
    return tuple(c for c in family.columns if c in COLUMNS) + derived


def column(data: Table, name: str) -> np.ndarray:
    """float32 [T, N] (or [T] of the `step` family): one column of a table. ValueError where it has none."""
    columns = data.family.columns
    if name in DERIVED and _count_of(name) in columns:
        sizes = np.array(units(data.family), np.float32)
        return data.values[:, columns.index(_count_of(name))] / np.where(sizes > 0, sizes, np.nan)
    if name not in columns:
        raise ValueError(f"{name} is not among the columns of {data.family.tag}")
    return data.values[:, columns.index(name)]


def replica_column(data: Table, name: str) -> np.ndarray:
    """[T, R, V]: one column of the `replicas` family."""
    number = replicas(data.family)
    start = data.family.columns.index(name) * number
    return data.values[:, start : start + number]


def _count_of(name: str) -> str:
    return {"dead_share": "units_dead", "dormant_share": "units_dormant"}[name]


def badness(name: str, latest: np.ndarray) -> np.ndarray:
    """[N] larger is worse: the latest value of each row, seen from the column's bad side; an absent one is best."""
    values = np.asarray(latest, np.float64)
    values = -values if name in LOW_IS_BAD else np.abs(values) if name == "activation_mean" else values
    nonfinite = np.isinf(np.asarray(latest, np.float64))
    return np.where(nonfinite, np.inf, np.nan_to_num(values, nan=-np.inf))


def worst_first(name: str, values: np.ndarray) -> np.ndarray:
    """[N] row numbers of [T, N], the worst latest value first; rows equally bad stay in forward order."""
    return np.argsort(-badness(name, values[-1]), kind="stable") if len(values) else np.arange(values.shape[1])


def as_of(steps: np.ndarray, other: Table, values: np.ndarray) -> np.ndarray:
    """`values` [T', N] of `other` at each of `steps`: its last record at or before the step, NaN before its first."""
    index = np.searchsorted(other.steps, steps, side="right") - 1
    found = values[np.clip(index, 0, None)] if len(values) else np.full((len(steps), values.shape[1]), np.nan)
    return np.where((index >= 0)[:, None], found, np.nan)


def texts(data: Table) -> list[str]:
    """The strings of the last record of a text family."""
    last = np.ravel(data.values[-1]) if len(data.values) else []
    return [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in last]


def status(data: Table) -> dict[str, Any]:
    """The last status; empty where there is none that can be read."""
    for text in texts(data):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(fields, dict):
            return fields
    return {}


def findings(data: Table) -> tuple[list[dict[str, Any]], int]:
    """All findings, the most severe first and then by step, and how many could not be read."""
    good = []
    for text in (read := texts(data)):
        try:
            good.append(_finding(json.loads(text)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    good.sort(key=lambda f: (SEVERITIES.index(f["severity"]), f["step"]))
    return good, len(read) - len(good)


def _finding(raw: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise TypeError("a finding is an object")
    evidence = raw.get("evidence")
    pairs = evidence.items() if isinstance(evidence, dict) else ()
    numbers = {str(k): float(v) for k, v in pairs if isinstance(v, int | float)}
    return {
        "rule": str(raw["rule"]),
        "severity": raw["severity"] if raw["severity"] in SEVERITIES else "info",
        "layer": None if raw.get("layer") is None else str(raw["layer"]),
        "step": int(raw["step"]),
        "message": str(raw["message"]),
        "evidence": {k: v if np.isfinite(v) else str(v) for k, v in numbers.items()},
        "advice": str(raw.get("advice") or ""),
    }


def count(severities: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many findings of each severity."""
    return {s: sum(f["severity"] == s for f in severities) for s in SEVERITIES}
