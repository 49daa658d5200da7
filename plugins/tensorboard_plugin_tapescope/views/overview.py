"""The overview: for each run its state, findings, loss, worst layer and what measuring costs, as JSON."""

import logging
import math
import time
import zlib
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.data.listing import Run
from tensorboard_plugin_tapescope.data.table_cache import SMALL_READ_RUNS, Snapshot
from tensorboard_plugin_tapescope.series import findings, spikes, tables
from tensorboard_plugin_tapescope.series.tables import Table
from tensorboard_plugin_tapescope.series.worst_layers import FIRST_NONFINITE, NORM, Reason, describe_norm, rank_layers
from tensorboard_plugin_tapescope.views.grid import GRID_FAMILIES

logger = logging.getLogger(__name__)

CLOCK_ERROR_SECONDS = 24 * 3600.0
"""Largest difference between the clocks of two machines."""

RECENT_GAPS = 20
"""Last gaps between records that say how often a run records: a run may begin with a record every step."""
SPARKLINE_POINTS = 60


def summarize_runs(snapshot: Snapshot, now: float | None = None) -> list[dict[str, Any]]:
    """Return the summary of every run; `now` is the time in seconds since 1970."""
    time_now = time.time() if now is None else now
    cached = {name: snapshot.cached_summary(name) for name in snapshot.runs}
    missing = [name for name, summary in cached.items() if summary is None]
    for start in range(0, len(missing), SMALL_READ_RUNS):
        part = missing[start : start + SMALL_READ_RUNS]
        snapshot.preload(part, ("step",), "sample")
        snapshot.preload(part, ("step", "status", "findings", "layers"), "last record")
        for name in part:
            cached[name] = snapshot.cache_summary(name, _summarize_any_run(snapshot, name, time_now))
    return [summary for summary in cached.values() if summary is not None]


def _summarize_any_run(snapshot: Snapshot, name: str, now: float) -> dict[str, Any]:
    """Return the summary of a run, or of a run without content that has the reason among its problems."""
    try:
        return summarize_run(snapshot, name, now)
    except Exception as error:  # the boundary of a run: it must not cost the others their summaries
        logger.exception("tapescope: the run %r cannot be summarized", name)
        run = Run({}, (*snapshot.runs[name].problems, f"it cannot be summarized ({type(error).__name__}: {error})"))
        return summarize_run(snapshot.with_run(name, run), name, now)


def summarize_run(snapshot: Snapshot, name: str, now: float) -> dict[str, Any]:
    """Return the summary of one run, whose fields http_api.md documents; unknown numbers are None."""
    run = snapshot.runs[name]
    step = snapshot.sample(name, "step")
    validation = _last_value(step, "validation_loss")
    status_table = snapshot.last_record(name, "status")
    status = tables.last_object(status_table) if status_table is not None else {}
    findings_table = snapshot.last_record(name, "findings")
    found = []
    unreadable = 0
    if findings_table is not None:
        found, unreadable = findings.parse_findings(tables.texts(findings_table))
    return {
        "name": name,
        "version": run.version,
        "offers": zlib.crc32(repr([tag.family for _, tag in sorted(run.tags.items())]).encode()),
        "state": run_state(run, status, step, now, time.monotonic() - snapshot.changed[name]),
        "reason": str(status.get("reason") or ""),
        "step": max((tag.last_step for tag in run.tags.values()), default=None),
        "steps": tables.count(status.get("steps"), largest=2**53),
        "replicas": tables.count(status.get("replicas")),
        "loss": _last_value(step, "loss"),
        "losses": _sparkline(_values(step, "loss")),
        "validation_loss": None if validation == "nan" else validation,
        "profile": gradient_profile(snapshot, name),
        "overhead": measuring_overhead(step),
        "measure_ms": measuring_cost(step),
        "spikes": spikes.recorded_shares(step),
        "looked": findings_table is not None,
        "findings": findings.count_severities(finding["severity"] for finding in found),
        "headline": found[0] if found else None,
        "worst": worst_layer(snapshot, name, found),
        "problems": [*run.problems, *([f"{unreadable} findings cannot be read"] if unreadable else [])],
        "seconds": max((tag.last_seconds for tag in run.tags.values()), default=None),
    }


def run_state(run: Run, status: dict[str, Any], step: Table | None, now: float, silent: float) -> str:
    """Return `training`, `ended`, `stalled`, or `unknown` if the run has no status.

    The clock of the program that writes may differ from this one's. So a run has stalled if nothing new came while the
    tab was looking. Only an age that no clock is wrong by counts at once.

    Args:
      run: the run.
      status: its last status.
      step: its records.
      now: the time in seconds since 1970.
      silent: seconds since its newest record was first seen.
    """
    if status.get("state") != "training":
        return "ended" if status.get("state") == "ended" else "unknown"
    last = max(tag.last_seconds for tag in run.tags.values())
    gaps = np.diff(step.seconds[-50:]) if step is not None and len(step.seconds) > 1 else np.zeros(1)
    limit = max(tables.STALL_SECONDS, tables.STALL_GAPS * usual_gap(gaps[-RECENT_GAPS:], 25))
    return "stalled" if silent > limit or now - last > max(limit, CLOCK_ERROR_SECONDS) else "training"


def usual_gap(gaps: np.ndarray, percentile: float) -> float:
    """Return the usual gap between two records, of which TensorBoard may have dropped some at random.

    It is a low percentile: the median grows with the number of dropped records, and the smallest gap may be from a
    start with a record every step.
    """
    return float(np.percentile(gaps, percentile))


def measuring_cost(step: Table | None) -> float | None:
    """Return the median time of measuring a step in ms, None if unknown. Below 0, the estimate is noise about 0."""
    measure_ms = _median(step, "measure_ms")
    return None if measure_ms is None else max(0.0, measure_ms)


def measuring_overhead(step: Table | None) -> float | None:
    """Return the time of measuring a step over that of all unmeasured steps between two records, None if unknown."""
    measure_ms = measuring_cost(step)
    step_ms = _median(step, "step_ms")
    if measure_ms is None or not step_ms or step is None:
        return None
    return measure_ms / (step_ms * steps_between_records(step.steps, _values(step, "closer_look") == 1))


def steps_between_records(steps: np.ndarray, is_closer: np.ndarray) -> float:
    """Return the usual number of steps from one record to the next, at least 1, in the second half of the run.

    A run begins with a record every step, and many of all its records may be from there.

    Args:
      steps: of the records, [T].
      is_closer: whether a record is one of every step after a finding, [T]; empty if that is not known.
    """
    regular = steps[~is_closer] if len(is_closer) == len(steps) else steps
    late = regular[regular >= regular[-1] / 2] if len(regular) else regular
    gaps = np.diff(late if len(late) > 1 else regular)
    return max(1.0, usual_gap(gaps[-RECENT_GAPS:], 10)) if len(gaps) else 1.0


def worst_layer(snapshot: Snapshot, name: str, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the layer that deserves a look first, see `rank_layers`.

    Returns:
      A dict of `layer`, `words` (the reason), `step` and `column`; None if the run has no layers.
    """
    last = snapshot.last_record(name, "layers")
    if last is None:
        return None
    layers = last.family.names
    norms = _last_norms(last)
    reasons = rank_layers(
        layers,
        [(finding["layer"], Reason(finding["rule"], finding["severity"])) for finding in found],
        _first_nonfinite(snapshot.last_record(name, "step")),
        norms,
    )
    if not reasons:
        return None
    layer, reason = next(iter(reasons.items()))
    if reason.name == "smallest_gradient":
        words = describe_norm(norms[layers.index(layer)], norms)
        return {"layer": layer, "words": words, "step": int(last.steps[-1]), "column": NORM}
    steps = [finding["step"] for finding in found if (finding["layer"], finding["rule"]) == (layer, reason.name)]
    words = "first NaN or Inf" if reason.name == "first_nonfinite" else reason.name.replace("_", " ")
    return {"layer": layer, "words": words, "step": min(steps, default=int(last.steps[-1])), "column": None}


def _last_norms(layers: Table) -> np.ndarray:
    """Return the gradient norm at each layer's output in the last record, [L]; empty if it is not known."""
    if not len(layers.values) or NORM not in layers.family.columns:
        return np.zeros(0)
    return tables.column(layers, NORM)[-1].astype(np.float64)


def _first_nonfinite(step: Table | None) -> list[float]:
    """Return the numbers of the first layers with a NaN or Inf in the last record, -1 for none."""
    return [float(values[-1]) for name in FIRST_NONFINITE if len(values := _values(step, name))]


def describe_run(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """Return what can be selected for a run: its layers, variables and columns; and all its findings."""
    tags = snapshot.runs[name].tags
    findings_table = snapshot.last_record(name, "findings")
    columns = [tables.column_names(tags[family].family) for family in GRID_FAMILIES if family in tags]
    return {
        "layers": list(tags["layers"].family.names) if "layers" in tags else [],
        "variables": list(tags["variables"].family.names) if "variables" in tags else [],
        "columns": [column for names in columns for column in names],
        "heads": list(tags["heads"].family.names) if "heads" in tags else [],
        "head_columns": list(tables.column_names(tags["heads"].family)) if "heads" in tags else [],
        "findings": None if findings_table is None else findings.parse_findings(tables.texts(findings_table))[0],
        "problems": list(snapshot.runs[name].problems),
    }


def all_findings(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the findings of all runs with the name of each one's run, the most severe first.

    `has_layer` is whether the layer has a page: a finding may also name a variable. A run that cannot be read has none.
    """
    found: list[dict[str, Any]] = []
    names = list(snapshot.runs)
    for start in range(0, len(names), SMALL_READ_RUNS):
        part = names[start : start + SMALL_READ_RUNS]
        snapshot.preload(part, ("findings",), "last record")
        for name in part:
            try:
                run = describe_run(snapshot, name)
            except Exception:  # the boundary of a run
                logger.exception("tapescope: the findings of the run %r cannot be read", name)
                continue
            layers = set(run["layers"])
            found += [{**f, "run": name, "has_layer": f["layer"] in layers} for f in run["findings"] or []]
    return sorted(found, key=lambda finding: findings.severity_rank(finding["severity"]))


def _values(step: Table | None, name: str) -> np.ndarray:
    if step is None or name not in step.family.columns:
        return np.zeros(0)
    return tables.column(step, name).astype(np.float64)


def _last_value(step: Table | None, name: str) -> float | str | None:
    """Return the last value; NaN and infinity as text, because JSON has no number for them."""
    values = _values(step, name)
    if not len(values):
        return None
    return float(values[-1]) if math.isfinite(values[-1]) else str(values[-1])


def _median(step: Table | None, name: str) -> float | None:
    values = _values(step, name)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def gradient_profile(snapshot: Snapshot, name: str) -> list[float]:
    """Return log10 of the gradient norm at each layer's output at the last step, without those that are 0 or absent."""
    last = snapshot.last_record(name, "layers")
    norms = np.zeros(0) if last is None else _last_norms(last)
    return _sparkline(np.log10(norms[norms > 0]))


def _sparkline(values: np.ndarray) -> list[float]:
    """Return at most SPARKLINE_POINTS of the finite values, evenly chosen."""
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    return values[np.linspace(0, len(values) - 1, min(SPARKLINE_POINTS, len(values))).astype(int)].tolist()
