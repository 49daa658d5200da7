"""Tables: all records of one tag as arrays, and what their description says of the rows."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeGuard, cast

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Column, Family

DERIVED = {
    c.name: c
    for c in (
        Column("dead_share", "share of the layer's units that never fired in the last full window", "", "fraction"),
        Column("dormant_share", "share of units whose mean output is below 2.5 % of the layer's", "", "fraction"),
    )
}
"""Columns that no record holds: a count of units over the units of the layer."""

_COUNT_OF_SHARE = {"dead_share": "units_dead", "dormant_share": "units_dormant"}
NORMS = ("gradient_norm", "applied_norm", "gradient_max", "weight_norm", "update_norm")
"""Columns of variables that are of the finite elements: 0 where there is none."""

COLUMNS = {**metadata.COLUMNS, **DERIVED}

LOW_IS_BAD = {
    *("gradient_norm", "applied_norm", "delta_norm", "update_ratio", "activation_std", "activation_min"),
    *("flow_gate", "flow_weight", "replica_cosine", "replica_sign", "attention_entropy"),
    *("update_norm", "gradient_cosine", "gradient_cosine_total", "stable_rank"),
}
"""Columns of which a small value is the bad one. Of activation_mean it is one far from 0, of all others a large one."""

INTEGER_FAMILIES = ("units", "gradient_histogram", "activation_histogram")
"""Families of integers: states and counts."""

TEXT_FAMILIES = ("findings", "status", "rows")
"""Families of JSON texts."""


MAX_WIDE = 1 << 24
"""Most elements of a tensor to which rows of a run are added."""
STALL_SECONDS = 60.0
STALL_GAPS = 10
"""A run that trains has stalled if no record came for STALL_SECONDS and for STALL_GAPS times the usual gap."""


class Datum(Protocol):
    """A record of one tag, as TensorBoard's data provider returns it."""

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
    """Return the shape of one tensor of the family; None where it may vary."""
    rows = len(family.columns)
    names = len(family.names)
    shapes = {
        "variables": (rows, names),
        "layers": (rows, names),
        "step": (rows,),
        "data": (rows, names),
        "heads": (rows, names),
        "residual": (rows, names),
        "gradient_histogram": (names, metadata.BINS),
        "activation_histogram": (names, metadata.BINS),
        "replicas": (rows * replicas(family), names),
        "units": (sum(units(family)),),
    }
    return shapes.get(family.family)


_ROWS_OF = {
    "variables": "variables",
    "gradient_histogram": "variables",
    "replicas": "variables",
    "layers": "layers",
    "activation_histogram": "layers",
    "units": "layers",
    "heads": "heads",
    "residual": "residual",
}
"""Which of the names in the family `rows` those of a family are."""


def extend(family: Family, rows: Mapping[str, Any]) -> Family:
    """Return a family with all rows of its run.

    Args:
      family: as its first event describes it.
      rows: the last content of the family `rows`, which may be damaged; empty where the run has none.
    """
    names = tuple(json_array(rows.get(_ROWS_OF.get(family.family, ""))))
    if names[: len(family.names)] != family.names or not all(isinstance(name, str) for name in names):
        return family
    details = dict(family.details)
    if family.family in ("layers", "units"):
        details["units"] = rows.get("units")
    if family.family == "layers":
        details |= {key: rows.get(key) for key in ("activations", "sources", "skipped")}
        details["variables"] = rows.get("layer_variables")
    return family._replace(names=names, details=details)


def widen(family: Family, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor with all rows of its family: those added later are NaN, or 0 where it holds counts or states.

    It is left as it is where that would be more than MAX_WIDE elements: a damaged file may claim any number of units.
    """
    expected = shape(family)
    axis = 0 if family.family in INTEGER_FAMILIES else 1
    if expected is None or tensor.ndim != len(expected) or axis >= tensor.ndim or tensor.dtype.kind not in "iuf":
        return tensor
    missing = expected[axis] - tensor.shape[axis]
    if missing <= 0 or math.prod(expected) > MAX_WIDE:
        return tensor
    padding = [(0, missing if i == axis else 0) for i in range(tensor.ndim)]
    return np.pad(tensor, padding, constant_values=np.nan if tensor.dtype.kind == "f" else 0)


def check_tensor(family: Family, tensor: np.ndarray) -> None:
    """Raise ValueError if a tensor is not of the type and shape that its family declares."""
    expected = shape(family)
    if family.family in TEXT_FAMILIES:
        kinds = "OSU"
    elif expected is None:
        return
    else:
        kinds = "iu" if family.family in INTEGER_FAMILIES else "fiu"
    if tensor.dtype.kind not in kinds or (expected is not None and tensor.shape != expected):
        declared = "text" if expected is None else f"numbers of shape {expected}"
        raise ValueError(f"{family.tag} must hold {declared}; got {tensor.dtype} of shape {tensor.shape}")


def _is_valid(family: Family, tensor: np.ndarray) -> bool:
    try:
        check_tensor(family, tensor)
    except ValueError:
        return False
    return True


def table(family: Family, data: Iterable[Datum]) -> Table:
    """Return the records as arrays, in the order of their steps, which a damaged file may not have.

    Records that are not of the family's type and shape are left out.
    """
    expected = shape(family)
    records = [(d.step, d.wall_time, widen(family, d.numpy)) for d in sorted(data, key=lambda d: d.step)]
    kept = [record for record in records if _is_valid(family, record[2])]
    steps = np.array([step for step, _, _ in kept], np.int64)
    seconds = np.array([seconds if math.isfinite(seconds) else 0.0 for _, seconds, _ in kept], np.float64)
    if expected is not None:
        values = np.stack([tensor for _, _, tensor in kept]) if kept else np.zeros((0, *expected), np.float32)
        return Table(family, steps, seconds, values)
    values = np.empty(len(kept), object)
    values[:] = [tensor for _, _, tensor in kept]
    return Table(family, steps, seconds, values)


def joined(first: Table, second: Table) -> Table:
    """Return two tables of a tag as one; the second's steps are all after the first's."""
    return Table(
        family=first.family,
        steps=np.concatenate([first.steps, second.steps]),
        seconds=np.concatenate([first.seconds, second.seconds]),
        values=np.concatenate([first.values, second.values]),
    )


def narrow(data: Table, name: str) -> Table:
    """Return a table with only the column that `column` needs for `name`, as a copy."""
    source = name if name in data.family.columns else _COUNT_OF_SHARE.get(name, name)
    values = np.ascontiguousarray(column(data, source)[:, None])
    return Table(data.family._replace(columns=(source,)), data.steps, data.seconds, values)


def between(data: Table, first: int, last: int) -> Table:
    """Return the records of the steps from `first` to `last`, both included, as views."""
    inside = slice(*np.searchsorted(data.steps, [first, last + 1]))
    return Table(data.family, data.steps[inside], data.seconds[inside], data.values[inside])


def units(family: Family) -> list[int]:
    """Return the number of units of each layer; zeros where the family does not say."""
    counts = _detail_for_each_name(family, "units")
    return [int(n) if is_index(n) and n < 2**31 else 0 for n in counts]


def activations(family: Family) -> list[str]:
    """Return the name of each layer's activation; "unknown" where the family does not say."""
    return [kind if isinstance(kind, str) else "unknown" for kind in _detail_for_each_name(family, "activations")]


def activation_adjectives(family: Family) -> list[str]:
    """Return what stands before "layer" in a sentence: `"sigmoid "` for an activation with a name, else nothing."""
    named = [kind.isidentifier() and kind not in ("linear", "unknown") for kind in activations(family)]
    return [f"{kind} " if has else "" for kind, has in zip(activations(family), named, strict=True)]


def owned_variables(family: Family) -> list[list[int]]:
    """Return for each layer of the `layers` family the indices of its own variables."""
    owned = json_array(family.details.get("variables"))[: len(family.names)]
    owned += [[]] * (len(family.names) - len(owned))
    return [[int(i) for i in json_array(indices) if is_index(i)] for indices in owned]


def replicas(family: Family) -> int:
    """Return the number of replicas of a `replicas` family, 0 where it does not say."""
    number = family.details.get("replicas")
    return int(number) if is_index(number) and number < 2**16 else 0


def _detail_for_each_name(family: Family, detail: str) -> list[Any]:
    """Return a list of the family's details; None for each name where it is damaged."""
    values = json_array(family.details.get(detail))
    return values if len(values) == len(family.names) else [None] * len(family.names)


def json_array(value: Any) -> list[Any]:
    """Return the elements of a JSON array, or of a tuple; an empty list for anything else."""
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else []


def is_index(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number, 0 or larger, and not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and cast("int", value) >= 0


def column_names(family: Family) -> tuple[str, ...]:
    """Return the names of the columns that `column` knows for a table of the family, derived ones included."""
    derived = tuple(name for name in DERIVED if _COUNT_OF_SHARE[name] in family.columns and any(units(family)))
    return tuple(c for c in family.columns if c in COLUMNS) + derived


def column(data: Table, name: str) -> np.ndarray:
    """Return one column of a table.

    Returns:
      float32 [T, N]; [T] for the `step` family, [T, R, V] for the replicas'. A norm is NaN where no element of the
      gradient is finite: to be drawn as 0, it would look as if the gradient had vanished.

    Raises:
      ValueError: the table has no such column.
    """
    if name in DERIVED and _COUNT_OF_SHARE[name] in data.family.columns:
        sizes = np.array(units(data.family), np.float32)
        return unpack_column(data.family, data.values, _COUNT_OF_SHARE[name]) / np.where(sizes > 0, sizes, np.nan)
    values = unpack_column(data.family, data.values, name)
    if name in NORMS and "gradient_nonfinite" in data.family.columns:
        return hide_norms_of_none(values, unpack_column(data.family, data.values, "gradient_nonfinite"))
    return values


def hide_norms_of_none(norms: np.ndarray, nonfinite: np.ndarray) -> np.ndarray:
    """Return one of NORMS with NaN where no element is finite, given the numbers of elements that are not."""
    is_of_none = (norms == 0) & (nonfinite > 0)
    return np.where(is_of_none, np.nan, norms) if is_of_none.any() else norms


def unpack_column(family: Family, values: np.ndarray, name: str) -> np.ndarray:
    """Return one column of stacked tensors. The `replicas` family has R consecutive rows for each column.

    Args:
      family: what the tensors are.
      values: the tensors, [T, C, ...], or [T, C R, V] of the `replicas` family.
      name: of the column.

    Returns:
      [T, ...], or [T, R, V] for the `replicas` family.

    Raises:
      ValueError: the family has no such column, or the tensors have too few rows for it.
    """
    if name not in family.columns:
        raise ValueError(f"{name} is not among the columns of {family.tag}: {', '.join(family.columns)}")
    index = family.columns.index(name)
    if family.family == "replicas":
        count = replicas(family)
        rows = slice(index * count, (index + 1) * count)
    else:
        count = 1
        rows = index
    if values.ndim < 2 or not count or values.shape[1] < (index + 1) * count:
        raise ValueError(
            f"{family.tag} must have {len(family.columns)} columns of {count or 'several'} row(s); got tensors of "
            f"shape {values.shape[1:]}: the file is damaged"
        )
    return values[:, rows]


def finite_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean over one axis of the finite values, in float64; NaN where there is none."""
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    return np.where(finite, values, 0.0).sum(axis=axis) / np.where(count > 0, count, np.nan)


def badness(name: str, latest: np.ndarray) -> np.ndarray:
    """Return the latest value of each row, [N], such that larger is worse. An absent value is the best."""
    latest = np.asarray(latest, np.float64)
    if name in LOW_IS_BAD:
        values = -latest
    elif name == "activation_mean":
        values = np.abs(latest)
    else:
        values = latest
    return np.where(np.isinf(latest), np.inf, np.nan_to_num(values, nan=-np.inf))


def worst_first(name: str, values: np.ndarray) -> np.ndarray:
    """Return the row numbers of `values` [T, N], the worst latest value first; equal rows stay in forward order."""
    if not len(values):
        return np.arange(int(values.shape[1]))
    return np.argsort(-badness(name, values[-1]), kind="stable")


def as_of(steps: np.ndarray, other: Table, values: np.ndarray) -> np.ndarray:
    """Return `values` [T', N] of `other` at each of `steps`: its last record so far, NaN before its first."""
    index = np.searchsorted(other.steps, steps, side="right") - 1
    found = values[np.clip(index, 0, None)] if len(values) else np.full((len(steps), values.shape[1]), np.nan)
    return np.where((index >= 0)[:, None], found, np.nan)


def texts(data: Table) -> list[str]:
    """Return the strings of the last record of a text family."""
    return decode_texts(data.values[-1]) if len(data.values) else []


def decode_texts(tensor: np.ndarray) -> list[str]:
    """Return the strings of a tensor; bytes that are not UTF-8 are replaced."""
    return [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in np.ravel(tensor)]


def last_object(data: Table) -> dict[str, Any]:
    """Return the JSON object in the last record of a text family; empty where none can be read."""
    return first_object(texts(data))


def first_object(texts: Iterable[str]) -> dict[str, Any]:
    """Return the first text that is a JSON object; empty if none is."""
    for text in texts:
        try:
            fields: Any = json.loads(text)
        except Exception:  # the boundary of a text, which may be nested too deeply or claim too large a number
            continue
        if isinstance(fields, dict):
            return cast("dict[str, Any]", fields)
    return {}


def count(value: Any, largest: int = 2**31) -> int | None:
    """Return a number of things from a status; None if it is not a whole number from 1 to `largest`."""
    return int(value) if is_index(value) and 0 < value <= largest else None
