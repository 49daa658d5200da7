"""The state of many runs: from their indexes, and from their event files where an index is missing or old."""

import glob
import os
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from tapescope.storage import run_index
from tapescope.storage.printable import describe_error, one_line
from tapescope.storage.run import Run, runs
from tapescope.storage.run_index import REWRITE_SECONDS, format_number
from tensorboard_plugin_tapescope.series import tables

_TITLES = ("run", "state", "step", "loss", "spikes", "error", "warning", "info", "worst layer", "reason")
_MAX_REASON = 60


def read_status(logdir: str | os.PathLike[str], now: float | None = None) -> list[dict[str, Any]]:
    """Return the index of each run at and below a directory, sorted by directory.

    The field `state` is "training", "stalled", "ended" or "unknown", and `name` is the run's directory below `logdir`.
    A run that cannot be read has the state "unreadable", with the reason.

    Args:
      logdir: a directory.
      now: the time in seconds since 1970; this moment if None.

    Raises:
      FileNotFoundError: `logdir` is not a directory.
      ValueError: there is no run in it.
    """
    directories = runs(logdir)
    if not directories:
        raise ValueError(f"LOGDIR must hold a run with records of tapescope; {os.fspath(logdir)} has none")
    return [_read_one(os.fspath(logdir), directory, time.time() if now is None else now) for directory in directories]


def _read_one(logdir: str, directory: str, now: float) -> dict[str, Any]:
    name = os.path.relpath(directory, os.path.expanduser(logdir))
    try:
        changed = max(map(os.path.getmtime, glob.glob(os.path.join(glob.escape(directory), "*.tfevents.*"))))
        index = _current_index(directory, changed, now)
        state = index["state"]
        if state == "training" and now - changed > _patience(index):
            state = "stalled"
        return index | {"name": name, "state": state, "run": os.path.abspath(directory)}
    except Exception as error:  # the boundary of a run: a damaged one must not cost the others their lines
        reason = str(error) if isinstance(error, (OSError, ValueError)) else describe_error(error)
        return {"name": name, "state": "unreadable", "reason": one_line(reason), "run": os.path.abspath(directory)}


def _current_index(directory: str, changed: float, now: float) -> dict[str, Any]:
    """Return a run's index as it was written, or from its event files where those say more.

    An index may be some seconds behind while its run trains. One that is still behind after that was left by a program
    that was killed.
    """
    index = run_index.read_index(directory)
    if index is not None and (changed <= index["updated"] or now - changed < 2 * REWRITE_SECONDS):
        return index
    described = run_index.describe_run(Run(directory))
    return described | {"scalars": index["scalars"]} if index else described


def _patience(index: Mapping[str, Any]) -> float:
    """Return the longest silence of a run that trains, in seconds."""
    return max(tables.STALL_SECONDS, tables.STALL_GAPS * float(index.get("seconds_between_records") or 0.0))


def needs_attention(index: Mapping[str, Any], severity: str) -> bool:
    """Return whether a run has a finding of this severity or above, has stalled, or cannot be read."""
    return index["state"] in ("stalled", "unreadable") or run_index.count_at_least(index, severity) > 0


def is_live(index: Mapping[str, Any]) -> bool:
    """Return whether more records of a run can be expected."""
    return index["state"] == "training"


def table(indexes: Sequence[Mapping[str, Any]]) -> str:
    """Return runs as the lines of a table, the names cut nowhere."""
    rows = [_TITLES, *map(_row, indexes)]
    widths = [max(_width(row[column]) for row in rows) for column in range(len(_TITLES))]
    padded = ("  ".join(_pad(cell, width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Return the columns of a terminal that a text takes: a Chinese or Japanese character or an emoji takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _row(index: Mapping[str, Any]) -> tuple[str, ...]:
    reason = one_line(index["reason"])
    reason = reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 1] + "…"
    if index["state"] == "unreadable":
        return (one_line(index["name"]), index["state"], *["?"] * (len(_TITLES) - 3), reason)
    last = index.get("last_step", index["step"])  # an index of an earlier version has the measured step only
    step = "-" if last is None else str(last)
    worst = index["worst_layers"][:1]
    return (
        one_line(index["name"]),
        one_line(index["state"]),
        f"{step}/{index['steps']}" if index.get("steps") else step,
        format_number(index["loss"].get("last")),
        _spikes(index.get("spikes")),
        *(str(index["counts"][severity]) for severity in ("error", "warning", "info")),
        one_line(f"{worst[0]['layer']}: {str(worst[0]['reason']).replace('_', ' ')}") if worst else "-",
        reason,
    )


def _spikes(shares: Any) -> str:
    """Return the larger share of spikes, of the loss and of the gradient, as an index of any version has it."""
    values = shares.values() if isinstance(shares, Mapping) else ()
    known = [v for v in values if isinstance(v, int | float) and v == v]
    return f"{100 * max(known):.2g} %" if known else "?"
