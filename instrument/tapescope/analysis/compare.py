"""Two runs compared number by number: where they part first, by which layer, and by how much."""

import math
from typing import Any, NamedTuple

import numpy as np

from tapescope.storage.run import Run

FORWARD = ("activation_mean", "activation_std", "activation_min", "activation_max", "activation_zero", "saturated")
"""Columns that differ where the forward pass does."""
BACKWARD = ("delta_norm", "gradient_norm", "gradient_max")
"""Columns that differ where the backward pass does."""
_FLOOR = 1e-6
"""Differences are relative to the larger value, or to this share of the column's largest where both are smaller."""


class Deviation(NamedTuple):
    """A number of two runs that differs by more than the tolerance."""

    column: str
    name: str
    """Of the layer or variable."""
    step: int
    """Of the first run."""
    first: float
    second: float
    relative: float


class Comparison(NamedTuple):
    """What two runs have in common, and where they part."""

    aligned: int
    """Records compared."""
    unmatched: tuple[str, ...]
    """Layers and variables that only one of the two has."""
    ratios: dict[str, dict[str, float]]
    """By column and name: the median over the records of the second run's value over the first's."""
    largest: float
    """The largest relative difference of all."""
    forward: Deviation | None
    """At the first step with one, the first layer in forward order whose output is beyond the tolerance."""
    backward: Deviation | None
    """At the first step with one, the first layer or variable on the way back whose gradient is."""
    beyond: int
    """How many numbers are, over all columns."""

    @property
    def equal(self) -> bool:
        return self.beyond == 0


def compare(first: Run, second: Run, tolerance: float = 1e-3, by: str = "step") -> Comparison:
    """Compares every column that both have, over the records that both have.

    Args:
      first: one run.
      second: the other.
      tolerance: largest relative difference that counts as equal.
      by: "step" aligns records of the same step; "examples" those after the same number of examples.

    Raises ValueError where nothing can be compared.
    """
    if not tolerance > 0:
        raise ValueError(f"`tolerance` ({tolerance}) must be a positive relative difference, such as 1e-3")
    if by not in ("step", "examples"):
        raise ValueError(f'`by` ({by!r}) must be "step" or "examples"')
    keys = [run.steps if by == "step" else run["examples_seen"] for run in (first, second)]
    _, mine, theirs = np.intersect1d(keys[0], keys[1], return_indices=True)
    if not mine.size:
        raise ValueError(f"{first.logdir} and {second.logdir} have no record at the same {by}; try by the other")
    ratios: dict[str, dict[str, float]] = {}
    found: list[Deviation] = []
    beyond, largest = 0, 0.0
    unmatched: dict[str, None] = {}
    replicas = [run["replica_norm"].shape[1] if "replica_norm" in run.columns else 1 for run in (first, second)]
    # An estimate from how the batch is shared out: with another number of replicas it is another number.
    own = {"unit_state"} | ({"noise_scale"} if replicas[0] != replicas[1] else set())
    for column in (c for c in first.columns if c in second.columns and c not in own):
        values = [np.asarray(run[column], np.float64) for run in (first, second)]
        if values[0].ndim != 2:
            continue
        names = [n for n in first.rows(column) if n in second.rows(column)]
        unmatched.update(dict.fromkeys(sorted(set(first.rows(column)) ^ set(second.rows(column)))))
        if not names:
            continue
        a, b = (
            v[at][:, [run.rows(column).index(n) for n in names]]
            for v, at, run in zip(values, (mine, theirs), (first, second), strict=True)
        )
        relative = _relative(a, b)
        largest = max(largest, float(relative.max()))
        beyond += int((relative > tolerance).sum())
        with np.errstate(all="ignore"):
            quotient = np.where(a == b, 1.0, b / a)
        ratios[column] = {n: _median(quotient[:, i]) for i, n in enumerate(names)}
        apart = relative > tolerance
        if column in FORWARD + BACKWARD and apart.any():
            t = int(np.argmax(apart.any(axis=1)))  # of later records none can be the first
            step = int(first.steps[mine[t]])
            found += [
                Deviation(column, names[i], step, float(a[t, i]), float(b[t, i]), float(relative[t, i]))
                for i in np.flatnonzero(apart[t])
            ]
    if not ratios:
        raise ValueError(f"{first.logdir} and {second.logdir} have no layer or variable of the same name")
    order = {name: i for i, name in enumerate((*first.layers, *first.variables))}
    forward = [d for d in found if d.column in FORWARD]
    backward = [d for d in found if d.column in BACKWARD]
    return Comparison(
        len(mine),
        tuple(unmatched),
        ratios,
        largest,
        min(forward, key=lambda d: (d.step, order[d.name]), default=None),
        min(backward, key=lambda d: (d.step, d.column != "delta_norm", -order[d.name]), default=None),
        beyond,
    )


def _relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| over the larger; 0 where both are NaN or equal, Inf where one alone is not finite."""
    known = np.concatenate([np.abs(x[np.isfinite(x)]) for x in (a, b)])
    floor = _FLOOR * known.max(initial=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), floor)
        relative = np.where(scale > 0, np.abs(a - b) / scale, 0.0)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(a) & np.isfinite(b), relative, np.inf))


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan


def comparison_text(comparison: Comparison, tolerance: float) -> str:
    """A few lines for a person."""
    lines = [f"{comparison.aligned} records compared, largest relative difference {comparison.largest:.2g}"]
    if comparison.unmatched:
        lines.append(f"only in one of the two: {', '.join(comparison.unmatched)}")
    if comparison.equal:
        return "\n".join([*lines, f"equal within {tolerance:g}"])
    lines.append(f"{comparison.beyond} numbers differ by more than {tolerance:g}")
    for words, deviation in (("forward", comparison.forward), ("backward", comparison.backward)):
        if deviation:
            d = deviation
            lines.append(
                f"first in {words} order: {d.name} at step {d.step}, {d.column} {d.first:.6g} against {d.second:.6g}"
            )
    changed = sorted(
        ((abs(math.log(r)), c, n, r) for c, of in comparison.ratios.items() for n, r in of.items() if r > 0 and r != 1),
        reverse=True,
    )
    lines += [f"  {name} {column}: second over first {ratio:.4g}" for _, column, name, ratio in changed[:8]]
    return "\n".join(lines)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The same as plain data; what is not finite is null."""
    plain = comparison._asdict() | {"equal": comparison.equal}
    for part in ("forward", "backward"):
        plain[part] = plain[part] and plain[part]._asdict()
    return _finite(plain)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
