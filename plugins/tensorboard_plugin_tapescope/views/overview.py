"""A run in words and a few numbers: its state, what was found, its worst layer and what measuring cost."""

import math
import time
import zlib
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.data.listing import Run
from tensorboard_plugin_tapescope.data.table_cache import LAST, SEEN, Snapshot
from tensorboard_plugin_tapescope.series import findings, tables
from tensorboard_plugin_tapescope.series.tables import Table

QUIET_SECONDS = 60.0
QUIET_RECORDS = 10
"""A run that says "training" has stalled where nothing came for 60 seconds and for ten times the usual gap."""


def runs(snapshot: Snapshot, now: float | None = None) -> list[dict[str, Any]]:
    """Every run's row of the overview."""
    at = time.time() if now is None else now
    said = {name: snapshot.row(name) for name in snapshot.runs}
    news = [name for name, of in said.items() if of is None]
    snapshot.preload(news, ("step",), SEEN)
    snapshot.preload(news, ("step", "status", "findings", "variables", "layers"), LAST)
    return [of or snapshot.keep_row(name, row(snapshot, name, at)) for name, of in said.items()]


def row(snapshot: Snapshot, name: str, now: float) -> dict[str, Any]:
    """One run's row: numbers as JSON can hold them, None for those unknown."""
    run = snapshot.runs[name]
    step, status = snapshot.seen(name, "step"), snapshot.last(name, "status")
    said = tables.status(status) if status is not None else {}
    raw = snapshot.last(name, "findings")
    found, unread = findings.parse_findings(tables.texts(raw)) if raw is not None else ([], 0)
    steps = said.get("steps")
    return {
        "name": name,
        "version": run.version,
        "offers": zlib.crc32(repr([tag.family for _, tag in sorted(run.tags.items())]).encode()),
        "state": state(run, said, step, now),
        "reason": str(said.get("reason") or ""),
        "step": max((t.last_step for t in run.tags.values()), default=None),
        "steps": steps if isinstance(steps, int) and steps > 0 else None,
        "replicas": said.get("replicas") if isinstance(said.get("replicas"), int) else None,
        "loss": _last(step, "loss"),
        "losses": _spark(_values(step, "loss")),
        "profile": profile(snapshot, name),
        "overhead": overhead(step),
        "measure_ms": _median(step, "measure_ms"),
        "looked": raw is not None,
        "findings": findings.count_severities(f["severity"] for f in found),
        "headline": found[0] if found else None,
        "worst": worst_layer(snapshot, name, found),
        "problems": [*run.problems, *([f"{unread} findings can't be read"] if unread else [])],
        "seconds": max((t.last_seconds for t in run.tags.values()), default=None),
    }


def state(run: Run, said: dict[str, Any], step: Table | None, now: float) -> str:
    """`training`, `ended`, `stalled`, or `unknown` where the run doesn't say."""
    if said.get("state") != "training":
        return "ended" if said.get("state") == "ended" else "unknown"
    last = max(t.last_seconds for t in run.tags.values())
    gaps = np.diff(step.seconds[-50:]) if step is not None and len(step.seconds) > 1 else np.zeros(1)
    return "stalled" if now - last > max(QUIET_SECONDS, QUIET_RECORDS * usual(gaps, 25)) else "training"


def usual(gaps: np.ndarray, percent: float) -> float:
    """The gap between two records, where TensorBoard may have dropped some of those in between, at random.

    A percentile: the median grows with what was dropped, and the least may be from a start with a record a step.
    """
    return float(np.percentile(gaps, percent))


def overhead(step: Table | None) -> float | None:
    """What measuring costs, over what training costs without it: measure_ms / (step_ms x steps between records)."""
    cost, plain = _median(step, "measure_ms"), _median(step, "step_ms")
    if cost is None or not plain or step is None:
        return None
    between = usual(np.diff(step.steps), 10) if len(step.steps) > 1 else 1.0
    return cost / (plain * max(between, 1.0))


def worst_layer(snapshot: Snapshot, name: str, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The layer of the most severe finding; without one, that of the smallest gradient at the last step, in words."""
    for finding in found:
        if finding["layer"] and finding["severity"] != "info":
            words = finding["rule"].replace("_", " ")
            return {"layer": finding["layer"], "words": words, "step": finding["step"], "column": None}
    last = snapshot.last(name, "variables")
    if last is None or not len(last.values) or "gradient_norm" not in last.family.columns:
        return None
    norms = tables.column(last, "gradient_norm")[-1].astype(np.float64)
    norms[norms < 0] = np.nan  # of a run that says so
    if not len(norms) or np.isnan(norms).all():
        return None
    index = int(tables.worst_first("gradient_norm", norms[None])[0])
    fact = {"layer": _owner(snapshot, name, index), "step": int(last.steps[-1]), "column": "gradient_norm"}
    largest = float(np.nanmax(norms[np.isfinite(norms)], initial=0))
    if not math.isfinite(norms[index]):
        return {**fact, "words": "its gradient is not finite"}
    if norms[index] == 0:
        return {**fact, "words": "its gradient is exactly 0"}
    below = math.log10(largest / norms[index])
    return {**fact, "words": f"smallest gradient, {below:.1f} decades below the largest"}


def _owner(snapshot: Snapshot, name: str, variable: int) -> str:
    from tensorboard_plugin_tapescope.views.flow import owners

    return owners(snapshot, name, "variables")[variable]


def about(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """What the pickers offer for a run: layers, variables and columns; and every finding."""
    tags = snapshot.runs[name].tags
    raw = snapshot.last(name, "findings")
    held = {family: tables.column_names(tags[family].family) for family in ("variables", "layers") if family in tags}
    return {
        "layers": list(tags["layers"].family.names) if "layers" in tags else [],
        "variables": list(tags["variables"].family.names) if "variables" in tags else [],
        "columns": [c for columns in held.values() for c in columns],
        "findings": findings.parse_findings(tables.texts(raw))[0] if raw is not None else None,
        "problems": list(snapshot.runs[name].problems),
    }


def _values(step: Table | None, name: str) -> np.ndarray:
    if step is None or name not in step.family.columns:
        return np.zeros(0)
    return tables.column(step, name).astype(np.float64)


def _last(step: Table | None, name: str) -> float | str | None:
    """The last value; `NaN`, `Infinity` as text, since JSON has no number for it."""
    values = _values(step, name)
    if not len(values):
        return None
    return float(values[-1]) if math.isfinite(values[-1]) else str(values[-1])


def _median(step: Table | None, name: str) -> float | None:
    values = _values(step, name)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def profile(snapshot: Snapshot, name: str) -> list[float]:
    """log10 of the gradient's norm at each layer's output at the last step, in forward order; 0 and absent left out."""
    last = snapshot.last(name, "layers")
    if last is None or not len(last.values) or "delta_norm" not in last.family.columns:
        return []
    norms = tables.column(last, "delta_norm")[-1].astype(np.float64)
    return _spark(np.log10(norms[norms > 0]))


def _spark(values: np.ndarray, points: int = 60) -> list[float]:
    """About 60 of the values for a line the size of a word; those not finite left out."""
    values = values[np.isfinite(values)]
    return values[np.linspace(0, len(values) - 1, min(points, len(values))).astype(int)].tolist() if len(values) else []
