"""Comparison of two runs, number by number: the first difference, its layer, and by how much all others differ."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from tapescope.storage.printable import to_json
from tapescope.storage.run import Run, check_runs
from tapescope.storage.run_index import read_spikes
from tensorboard_plugin_tapescope.metadata import SLOW_COLUMNS, Family
from tensorboard_plugin_tapescope.series import matching, spikes, tables

FORWARD = ("activation_mean", "activation_std", "activation_min", "activation_max", "activation_zero", "saturated")
"""Columns that differ if the forward pass does."""
BACKWARD = ("delta_norm", "gradient_norm", "gradient_max")
"""Columns that differ if the backward pass does."""
_OF_EARLIER_RECORDS = (
    *("units_dead", "units_dormant", "units_saturated", "units_revived", "gradient_cosine"),
    *(column.name for column in SLOW_COLUMNS),
)
"""Columns that also depend on which steps before were measured."""
_FLOOR = 1e-6
"""Differences are relative to the larger of two values, or to this share of the column's largest if both are below."""
_LISTED_RATIOS = 8


class Deviation(NamedTuple):
    """A number of two runs that differs by more than the tolerance."""

    column: str
    name: str
    """Layer or variable; without the model's name where the two models have different names."""
    step: int
    """Of the first run."""
    first: float
    second: float
    relative: float
    """Difference, relative to the larger value."""


class Comparison(NamedTuple):
    """Result of comparing two runs."""

    aligned: int
    """Number of records compared."""
    unmatched: tuple[str, ...]
    """Layers and variables that only one of the two runs has."""
    ratios: dict[str, dict[str, float]]
    """By column and name: the median over the records of the second run's value over the first's."""
    largest: float
    """The largest relative difference of all."""
    forward: Deviation | None
    """At the first step with a deviation in the forward pass: its first layer in forward order."""
    backward: Deviation | None
    """At the first step with a deviation in the backward pass: its first layer or variable on the way back."""
    beyond: int
    """Number of values that differ by more than the tolerance, over all columns."""
    spikes: dict[str, dict[str, float]]
    """Shares of steps with a spike, of "loss" and "gradient", by run, "first" and "second"; NaN where unknown."""

    @property
    def equal(self) -> bool:
        """True if no value differs by more than the tolerance."""
        return self.beyond == 0


class _MatchedRows(NamedTuple):
    """Rows of one column that both runs have."""

    names: list[str]
    first: list[int]
    """Row numbers in the first run."""
    second: list[int]
    """Row numbers in the second run."""


def compare(first: Run, second: Run, tolerance: float = 1e-3, by: Literal["step", "examples"] = "step") -> Comparison:
    """Compare every column that both runs have, over the records that both have.

    Variables are matched without the names of their models, as in the tab. States of units, cosines of consecutive
    gradients and slow columns are left out if the runs did not measure the same steps.

    Args:
      first: one run.
      second: the other run.
      tolerance: largest relative difference that counts as equal.
      by: "step" aligns records of the same step; "examples" aligns those after the same number of examples.

    Raises:
      ValueError: an argument is not valid, or the runs have no record or no row in common.
    """
    check_runs(first, second)
    if not 0 < tolerance < math.inf:
        raise ValueError(f"`tolerance` must be a positive relative difference, such as 1e-3; got {tolerance}")
    if by not in ("step", "examples"):
        raise ValueError(f'`by` must be "step" or "examples"; got {by!r}')
    first_at, second_at = _align(first, second, by)
    ratios: dict[str, dict[str, float]] = {}
    deviations: list[tuple[int, Deviation]] = []  # with the row in the first run
    largest = 0.0
    beyond = 0
    unmatched: dict[str, None] = {}
    for column in _comparable_columns(first, second, _measured_the_same(first_at, second_at)):
        rows = _match_rows(first, second, column)
        unmatched.update(dict.fromkeys(_unmatched_names(first, second, column, rows)))
        if not rows.names:
            continue
        a = np.asarray(first[column], np.float64)[first_at][:, rows.first]
        b = np.asarray(second[column], np.float64)[second_at][:, rows.second]
        relative = _relative_difference(a, b)
        differs = relative > tolerance
        largest = max(largest, float(relative.max()))
        beyond += int(differs.sum())
        with np.errstate(all="ignore"):
            quotient = np.where(a == b, 1.0, b / a)
        ratios[column] = {name: _finite_median(quotient[:, i]) for i, name in enumerate(rows.names)}
        if column in FORWARD + BACKWARD and differs.any():
            t = int(np.argmax(differs.any(axis=1)))  # a later record cannot be the first one
            for i in np.flatnonzero(differs[t]):
                deviation = Deviation(
                    column=column,
                    name=rows.names[i],
                    step=int(first.steps[first_at[t]]),
                    first=float(a[t, i]),
                    second=float(b[t, i]),
                    relative=float(relative[t, i]),
                )
                deviations.append((rows.first[i], deviation))
    if not any(column in ratios for column in FORWARD + BACKWARD):  # data have the same names in all runs
        raise ValueError(f"{first.logdir} and {second.logdir} have no layer or variable in common")
    return Comparison(
        aligned=len(first_at),
        unmatched=tuple(unmatched),
        ratios=ratios,
        largest=largest,
        forward=_first_forward(deviations),
        backward=_first_backward(deviations),
        beyond=beyond,
        spikes={name: read_spikes(run).shares for name, run in (("first", first), ("second", second))},
    )


def _first_forward(deviations: list[tuple[int, Deviation]]) -> Deviation | None:
    forward = [(d.step, row, i) for i, (row, d) in enumerate(deviations) if d.column in FORWARD]
    return deviations[min(forward)[-1]][1] if forward else None


def _first_backward(deviations: list[tuple[int, Deviation]]) -> Deviation | None:
    backward = [
        (d.step, d.column != "delta_norm", -row, i) for i, (row, d) in enumerate(deviations) if d.column in BACKWARD
    ]
    return deviations[min(backward)[-1]][1] if backward else None


def _align(first: Run, second: Run, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the records that both runs have."""
    keys = [run.steps if by == "step" else run["examples_seen"] for run in (first, second)]
    _, first_at, second_at = np.intersect1d(keys[0], keys[1], return_indices=True)
    if not first_at.size:
        other = "examples" if by == "step" else "step"
        raise ValueError(f"{first.logdir} and {second.logdir} have no record at the same {by}; try `by` {other}")
    return first_at, second_at


def _measured_the_same(first_at: np.ndarray, second_at: np.ndarray) -> bool:
    """Return whether neither run has records before or between those that both have, given their indices."""
    return all(np.array_equal(at, np.arange(len(at))) for at in (first_at, second_at))


def columns_left_out(first: Run, second: Run, by: str) -> list[str]:
    """Return the columns of both runs that `compare` leaves out because they measured other steps."""
    if _measured_the_same(*_align(first, second, by)):
        return []
    return [name for name in _OF_EARLIER_RECORDS if name in first.columns and name in second.columns]


def _comparable_columns(first: Run, second: Run, same_records: bool) -> list[str]:
    """Return the columns of layers and variables that mean the same in both runs.

    The noise scale is estimated from the replicas' shares of the batch, so it depends on their number. `same_records`
    is whether neither run has records between those that both have.
    """
    excluded = {"unit_state", "gradient_histogram", "activation_histogram"}
    if not same_records:
        excluded.update(_OF_EARLIER_RECORDS)
    if _replica_count(first) != _replica_count(second):
        excluded.add("noise_scale")
    common = [name for name in first.columns if name in second.columns and name not in excluded]
    return [name for name in common if first[name].ndim == second[name].ndim == 2]


def _replica_count(run: Run) -> int:
    return run["replica_norm"].shape[1] if "replica_norm" in run.columns else 1


def _match_rows(first: Run, second: Run, column: str) -> _MatchedRows:
    first_names = first.rows(column)
    second_names = second.rows(column)
    pairs = matching.match_rows(first_names, _owners(first, column), second_names, _owners(second, column))
    keys = matching.matching_keys(first_names, _owners(first, column))
    names = [first_names[i] if first_names[i] == second_names[j] else keys[i] for i, j in pairs]
    return _MatchedRows(names, [i for i, _ in pairs], [j for _, j in pairs])


def _owners(run: Run, column: str) -> tuple[str, ...]:
    """Return the layer of each row of a column."""
    names = run.rows(column)
    if names != run.variables:
        return names
    layers = Family("layers", names=run.layers, details=run.details)
    return matching.row_owners(names, run.layers, tables.owned_variables(layers))


def _unmatched_names(first: Run, second: Run, column: str, rows: _MatchedRows) -> list[str]:
    matched = set(rows.first), set(rows.second)
    only_first = [name for i, name in enumerate(first.rows(column)) if i not in matched[0]]
    only_second = [name for i, name in enumerate(second.rows(column)) if i not in matched[1]]
    return sorted({*only_first, *only_second})


def _relative_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return |a - b| over the larger; 0 where both are equal or NaN, Inf where only one is finite."""
    finite = np.concatenate([np.abs(x[np.isfinite(x)]) for x in (a, b)])
    floor = _FLOOR * finite.max(initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)
        relative = np.where(scale > 0, np.abs(a - b) / scale, 0.0)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(a) & np.isfinite(b), relative, np.inf))


def _finite_median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


def comparison_text(comparison: Comparison, tolerance: float, left_out: Sequence[str] = ()) -> str:
    """Return a few lines about a comparison for a person.

    Args:
      comparison: the comparison.
      tolerance: that it was made with.
      left_out: names of the columns that were not compared.
    """
    records = "1 record" if comparison.aligned == 1 else f"{comparison.aligned} records"
    absent = "" if math.isfinite(comparison.largest) else " (only one of the two numbers is finite)"
    lines = [f"{records} compared, largest relative difference {comparison.largest:.2g}{absent}"]
    shares = {name: spikes.describe_shares(shares) for name, shares in comparison.spikes.items()}
    if any(shares.values()):
        lines.append("spikes: " + "; ".join(f"{name} run {share or 'unknown'}" for name, share in shares.items()))
    if comparison.unmatched:
        lines.append(f"only in one of the two runs: {matching.list_names(comparison.unmatched)}")
    if left_out:
        lines.append(f"not compared, because the runs measured other steps before: {', '.join(left_out)}")
    if comparison.equal:
        where = ", in what both runs have" if comparison.unmatched else ""
        return "\n".join([*lines, f"equal within {tolerance:g}{where}"])
    lines.append(f"{comparison.beyond} numbers differ by more than {tolerance:g}")
    for order, deviation in (("forward", comparison.forward), ("backward", comparison.backward)):
        if deviation:
            lines.append(
                f"first in {order} order: {deviation.name} at step {deviation.step}, {deviation.column} "
                f"{deviation.first:.6g} and {deviation.second:.6g}"
            )
    changed = [
        (abs(math.log(ratio)), column, name, ratio)
        for column, by_name in comparison.ratios.items()
        for name, ratio in by_name.items()
        if ratio > 0 and ratio != 1
    ]
    changed.sort(reverse=True)
    for _, column, name, ratio in changed[:_LISTED_RATIOS]:
        lines.append(f"  {name} {column}: second over first {ratio:.4g}")
    return "\n".join(lines)


def comparison_json(comparison: Comparison) -> str:
    """Return a comparison as one JSON object, with null for numbers that are not finite."""
    plain = comparison._asdict() | {"equal": comparison.equal}
    for part in ("forward", "backward"):
        plain[part] = plain[part] and plain[part]._asdict()
    return to_json(plain)
