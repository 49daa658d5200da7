"""The index of a run: `index.json` and `index.md` in its directory, for programs, agents and people in a hurry.

It holds the state, the loss, the findings with their evidence and advice, the worst layers, and where to look further.
The recorder's thread rewrites both files now and then. `tapescope status` makes the same from the event files where
the files are missing or old. No TensorFlow is needed.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from absl import logging

from tapescope.rules import causes
from tapescope.rules.finding import SEVERITIES, Finding, from_json
from tapescope.storage.printable import describe_error, one_line, to_json
from tapescope.storage.run import Run, columns_by_name
from tapescope.storage.text_file import check_regular, write_whole
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import spikes, tables
from tensorboard_plugin_tapescope.series.findings import at_least, count_severities
from tensorboard_plugin_tapescope.series.spikes import RunSpikes
from tensorboard_plugin_tapescope.series.worst_layers import FIRST_NONFINITE, NORM, Reason, rank_layers

JSON_NAME = "index.json"
MARKDOWN_NAME = "index.md"
FORMAT = 1
"""Format of index.json. Fields may be added to a format; one that changes its meaning gets a new number."""
REWRITE_SECONDS = 10.0
"""Shortest time between two indexes of a run, unless its state or its findings have changed."""
WORST_LAYERS = 5
MAX_GAPS = 50
"""Gaps between records that are kept."""
_NUMBERS_OF_A_LAYER = ("delta_norm", "activation_std", "saturated", "units_dead")


class IndexFile:
    """The index files of a run that is being recorded. Not thread-safe.

    An index that cannot be written is left for the next time: the records matter more.

    Args:
      logdir: the run's directory.
    """

    def __init__(self, logdir: str):
        self.progress = Progress()
        self._logdir = logdir
        self._written = -math.inf
        self._failed = False

    def update(
        self,
        status: Mapping[str, Any],
        findings: Sequence[Finding],
        layers: Sequence[str],
        units: Sequence[int],
        *,
        now: bool = False,
    ) -> None:
        """Rewrite the files if they are older than REWRITE_SECONDS, or `now`; see `describe` for the arguments."""
        if not now and time.monotonic() - self._written < REWRITE_SECONDS:
            return
        self._written = time.monotonic()
        try:
            write_index(self._logdir, describe(self._logdir, status, self.progress, findings, layers, units))
        except Exception as error:  # an index must not cost records
            if not self._failed:
                logging.warning("tapescope: the index of %s cannot be written: %s", self._logdir, describe_error(error))
            self._failed = True


class Progress(NamedTuple):
    """Step, loss, scalars and last columns of a run so far."""

    records: int = 0
    step: int | None = None
    """The last recorded step."""
    wall_time: float = math.nan
    """When it was recorded, seconds since 1970."""
    gaps: tuple[float, ...] = ()
    """Seconds between the last records."""
    first_loss: float = math.nan
    lowest_loss: float = math.nan
    lowest_step: int | None = None
    scalars: Mapping[str, float] = {}
    """The last value of each scalar that the program recorded."""
    columns: Mapping[str, np.ndarray] = {}
    """Of the last record, by name."""

    def add(self, step: int, wall_time: float, scalars: Mapping[str, float], columns: Mapping[str, Any]) -> "Progress":
        """Return the progress with one more record.

        Args:
          step: its number.
          wall_time: seconds since 1970.
          scalars: what the program recorded with it.
          columns: by name; empty for a record of scalars only.
        """
        progress = self._replace(scalars={**self.scalars, **scalars})
        if not columns:
            return progress
        loss = float(columns.get("loss", math.nan))
        gaps = (*self.gaps[-MAX_GAPS + 1 :], wall_time - self.wall_time) if self.records else ()
        progress = progress._replace(
            records=self.records + 1, step=step, wall_time=wall_time, gaps=gaps, columns=columns
        )
        if math.isfinite(loss) and math.isnan(self.first_loss):
            progress = progress._replace(first_loss=loss)
        if math.isfinite(loss) and not loss >= self.lowest_loss:
            progress = progress._replace(lowest_loss=loss, lowest_step=step)
        return progress


def read_progress(run: Run) -> Progress:
    """Return the progress of a recorded run."""
    progress = Progress()
    losses = run["loss"] if "loss" in run.columns else np.full(len(run.steps), np.nan)
    for step, wall_time, loss in zip(run.steps.tolist(), run.wall_times.tolist(), losses.tolist(), strict=False):
        progress = progress.add(step, wall_time, {}, {"loss": loss})
    if not progress.records:
        return progress
    columns = {name: values[-1] for name, values in columns_by_name(run).items()}
    if not columns.keys() >= set(spikes.COLUMNS.values()):  # written before there were such columns
        columns |= {spikes.COLUMNS[name]: np.array(share) for name, share in read_spikes(run).shares.items()}
    return progress._replace(columns=columns)


def read_spikes(run: Run) -> RunSpikes:
    """Return the spikes of a recorded run."""
    return spikes.count_spikes({name: run[name] for name in spikes.NEEDED if name in run.columns})


def describe_run(run: Run) -> dict[str, Any]:
    """Return the index of a recorded run, from its event files."""
    findings = [from_json(found) for found in run.findings]
    units = tables.units(Family("layers", names=run.layers, details=run.details))
    return describe(run.logdir, run.status, read_progress(run), findings, run.layers, units)


def describe(
    logdir: str,
    status: Mapping[str, Any],
    progress: Progress,
    findings: Sequence[Finding],
    layers: Sequence[str],
    units: Sequence[int],
) -> dict[str, Any]:
    """Return the index of a run. docs/programs.md describes its fields.

    Args:
      logdir: the run's directory.
      status: its last one.
      progress: of its records.
      findings: so far.
      layers: names of the L layers.
      units: number of units of each layer.
    """
    ordered = causes.by_cause(findings)
    worst = worst_layers(layers, units, progress.columns, [found for found, _ in ordered])
    path = os.path.abspath(logdir)
    last_step = tables.count(status.get("last_step"), largest=2**53)  # also of scalars, and as old as the status
    median_gap = float(np.median(progress.gaps)) if progress.gaps else math.nan
    return {
        "format": FORMAT,
        "run": path,
        "updated": time.time(),
        "state": str(status.get("state") or "unknown"),
        "reason": str(status.get("reason") or ""),
        "started": _number(status.get("started")),
        "step": progress.step,
        "last_step": max((step for step in (progress.step, last_step) if step is not None), default=None),
        "steps": tables.count(status.get("steps"), largest=2**53),
        "records": progress.records,
        "last_record": progress.wall_time,
        "seconds_between_records": median_gap,
        "replicas": tables.count(status.get("replicas")),
        "loss": {
            "first": progress.first_loss,
            "last": _at(progress.columns, "loss"),
            "lowest": progress.lowest_loss,
            "lowest_step": progress.lowest_step,
        },
        "spikes": {name: _at(progress.columns, column) for name, column in spikes.COLUMNS.items()},
        "scalars": {tag: float(value) for tag, value in progress.scalars.items()},
        "measure_ms": _at(progress.columns, "measure_ms"),
        "step_ms": _at(progress.columns, "step_ms"),
        "lost": int(_number(status.get("lost")) or 0),
        "left_out": int(_number(status.get("left_out")) or 0),
        "first_nonfinite": {
            direction: _layer_at(layers, _at(progress.columns, f"first_nonfinite_{direction}"))
            for direction in ("forward", "backward")
        },
        "counts": count_severities(found.severity for found in findings),
        "findings": [
            found._asdict() | {"follows_from": cause and cause.rule, "link": f"docs/rules.md#{found.rule}"}
            for found, cause in ordered
        ],
        "worst_layers": worst,
        "look": _where_to_look(path, worst),
    }


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _at(columns: Mapping[str, np.ndarray], name: str, index: int | None = None) -> float:
    values = np.asarray(columns.get(name, np.nan), np.float64)
    if index is None:
        return float(values) if values.ndim == 0 else math.nan
    return float(values[index]) if values.ndim == 1 and index < len(values) else math.nan


def _layer_at(layers: Sequence[str], index: float) -> str | None:
    return layers[int(index)] if 0 <= index < len(layers) else None


def worst_layers(
    layers: Sequence[str], units: Sequence[int], columns: Mapping[str, np.ndarray], findings: Sequence[Finding]
) -> list[dict[str, Any]]:
    """Return the first WORST_LAYERS layers of `rank_layers`, with why and their last numbers.

    Args:
      layers: names of the L layers.
      units: number of units of each.
      columns: of the last record.
      findings: the most important first.
    """
    reasons = rank_layers(
        layers,
        [(found.layer, Reason(found.rule, found.severity)) for found in findings],
        [_at(columns, column) for column in FIRST_NONFINITE],
        np.asarray(columns.get(NORM, np.zeros(0)), np.float64),
    )
    indices = {name: index for index, name in enumerate(layers)}
    return [
        {"layer": name, "reason": reason, "severity": severity, "units": int(units[indices[name]])}
        | {column: _at(columns, column, indices[name]) for column in _NUMBERS_OF_A_LAYER}
        for name, (reason, severity) in list(reasons.items())[:WORST_LAYERS]
    ]


def _where_to_look(path: str, worst: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    look = [
        {"what": "all findings, again from the records", "how": f"tapescope check {path} --json"},
        {"what": "what a column means", "how": "tapescope columns"},
        {"what": "the figures, in the tab Gradients", "how": f"tensorboard --logdir {os.path.dirname(path)}"},
    ]
    if worst:
        plot = f"tapescope.Run({path!r}).plot('activation_histogram', {worst[0]['layer']!r})"
        look.append({"what": f"the distribution of the worst layer, {worst[0]['layer']}", "how": plot})
    return look


def to_markdown(index: Mapping[str, Any]) -> str:
    """Return an index as a page of Markdown."""
    state = " ".join(part for part in (index["state"], index["reason"]) if part)
    steps = f" of {index['steps']}" if index["steps"] else ""
    loss = index["loss"]
    last = "none yet" if index["last_step"] is None else index["last_step"]
    lines = [
        f"# {os.path.basename(index['run'])}",
        "",
        f"- state: {state}",
        f"- step: {last}{steps}, {index['records']} records",
        "- loss: " + ", ".join(f"{name} {format_number(loss[name])}" for name in ("first", "last", "lowest")),
        f"- spikes: {spikes.describe_shares(index['spikes']) or 'too few records'}",
        *(f"- {tag}: {format_number(value)}" for tag, value in index["scalars"].items() if tag != "loss"),
        "",
        "## Findings",
        "",
        *(_finding_line(found) for found in index["findings"]),
        *([] if index["findings"] else ["None."]),
        "",
        "## Worst layers",
        "",
        *(
            f"- `{layer['layer']}`: {layer['reason'].replace('_', ' ')}; "
            + ", ".join(f"{name} {format_number(layer[name])}" for name in _NUMBERS_OF_A_LAYER)
            for layer in index["worst_layers"]
        ),
        "",
        "## Where to look",
        "",
        *(f"- {item['what']}: `{item['how']}`" for item in index["look"]),
    ]
    return "\n".join(one_line(line) for line in lines) + "\n"


def format_number(value: Any) -> str:
    """Return a number of an index with four digits; `?` where it is unknown."""
    if value is None or value != value:
        return "?"
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _finding_line(found: Mapping[str, Any]) -> str:
    place = f" in `{found['layer']}`" if found["layer"] else ""
    evidence = ", ".join(f"{name} {format_number(value)}" for name, value in found["evidence"].items())
    cause = f" Follows from {found['follows_from']}." if found["follows_from"] else ""
    return (
        f"- **{found['severity']}** {found['rule']}{place}, step {found['step']}: {found['message']} ({evidence})."
        f"{cause} {found['advice']}"
    )


def write_index(directory: str, index: Mapping[str, Any]) -> None:
    """Write index.json and index.md; a reader sees the old file or the new one.

    Raises:
      OSError: a file cannot be written. The old one stays.
    """
    for name, text in ((JSON_NAME, to_json(index) + "\n"), (MARKDOWN_NAME, to_markdown(index))):
        write_whole(os.path.join(directory, name), text)


def read_index(directory: str) -> dict[str, Any] | None:
    """Return the index of a run as it was written last; None where there is none of this format that can be read."""
    try:
        with open(check_regular(os.path.join(directory, JSON_NAME)), encoding="utf-8") as file:
            index: Any = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(index, dict):
        return None
    fields = cast("dict[str, Any]", index)
    return fields if fields.get("format") == FORMAT and _is_whole(fields) else None


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "run": str,
    "updated": (int, float),
    "state": str,
    "reason": str,
    "records": int,
    "loss": dict,
    "counts": dict,
    "findings": list,
    "worst_layers": list,
}


def _is_whole(index: Mapping[str, Any]) -> bool:
    if not all(isinstance(index.get(name), kind) for name, kind in _TYPES.items()):
        return False
    layers: list[Any] = index["worst_layers"]
    if not all(isinstance(layer, dict) and {"layer", "reason"} <= layer.keys() for layer in layers):
        return False
    counts = cast("Mapping[str, Any]", index["counts"])
    return all(isinstance(counts.get(severity), int) for severity in SEVERITIES)


def count_at_least(index: Mapping[str, Any], severity: str) -> int:
    """Return the number of findings that are at least as severe."""
    return sum(index["counts"][name] for name in at_least(severity))
