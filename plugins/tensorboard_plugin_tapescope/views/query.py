"""Parameters of a request, checked, and the error for a request that cannot be answered."""

import re
from collections.abc import Collection
from typing import NamedTuple

from werkzeug import datastructures

from tensorboard_plugin_tapescope.data.table_cache import LAST_STEP, Snapshot
from tensorboard_plugin_tapescope.figures import basic
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.smoothing import MAX_WEIGHT

MAX_RUNS = 64

Arguments = datastructures.MultiDict[str, str]


class RequestError(ValueError):
    """A request that cannot be answered: an HTTP status code, and a sentence with the reason."""

    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.code = code


class Query(NamedTuple):
    """The parameters of a view."""

    runs: tuple[str, ...]
    column: str = ""
    layer: str = ""
    variable: str = ""
    order: str = "forward"
    first: int | None = None
    last: int | None = None
    step: int | None = None
    """Step that is marked with a line."""
    since: int | None = None
    """First step of the part that is sent."""
    smoothing: float = 0.0
    """Weight with which noisy series are smoothed, see `series.smoothing`."""
    dark: bool = False
    max_steps: int = basic.MAX_STEPS
    """Most steps that a heatmap draws."""

    @property
    def has_range(self) -> bool:
        """True if only some of the steps are asked for."""
        return self.first is not None or self.last is not None


def select_steps(snapshot: Snapshot, query: Query) -> Snapshot:
    """Return the snapshot of the steps asked for.

    Raises:
      RequestError: the first run has no record of these steps.
    """
    if not query.has_range:
        return snapshot
    first = query.first or 0
    selected = snapshot.between(first, LAST_STEP if query.last is None else query.last)
    recorded = (selected.table(query.runs[0], family) for family in ("variables", "layers", "step"))
    if not any(table is not None and len(table.steps) for table in recorded):
        end = "on" if query.last is None else f"to {query.last:,}"
        raise RequestError(404, f"No step from {first:,} {end} was recorded in {quote(query.runs[0])}.")
    return selected


def quote(text: str, limit: int = 80) -> str:
    """Return a name for an error message: quoted, on one line, and shortened."""
    return repr(text if len(text) <= limit else text[:limit] + "…")


def parse_choice(args: Arguments, name: str, allowed: Collection[str], default: str, code: int = 400) -> str:
    """Return a parameter that must be one of a few values.

    Raises:
      RequestError: it has another value; `code` is the error's.
    """
    value = args.get(name, default) or default
    if value not in allowed:
        choices = f": it must be one of {', '.join(allowed)}" if len(allowed) < 12 else ""
        raise RequestError(code, f"{name} {quote(value)} is unknown{choices}.")
    return value


def parse_query(args: Arguments, snapshot: Snapshot) -> Query:
    """Return the parameters of a request.

    Raises:
      RequestError: a parameter has an impossible value, or there is no such run.
    """
    runs = tuple(dict.fromkeys(args.getlist("run")))
    if not runs:
        raise RequestError(400, "run is missing: name at least one run.")
    if len(runs) > MAX_RUNS:
        raise RequestError(400, f"{len(runs)} runs were named; at most {MAX_RUNS} can be shown together.")
    for run in runs:
        if run not in snapshot.runs:
            raise RequestError(404, f"There is no run {quote(run)} with records of tapescope.")
    first = _parse_step(args, "first")
    last = _parse_step(args, "last")
    if first is not None and last is not None and first > last:
        raise RequestError(400, f"first ({first}) must not be after last ({last}).")
    return Query(
        runs=runs,
        column=parse_choice(args, "column", tables.COLUMNS, "", 404) if args.get("column", "") else "",
        layer=args.get("layer", ""),
        variable=args.get("variable", ""),
        order=parse_choice(args, "order", ("forward", "worst"), "forward"),
        first=first,
        last=last,
        step=_parse_step(args, "step"),
        since=_parse_step(args, "since"),
        smoothing=_parse_smoothing(args),
        dark=parse_choice(args, "dark", ("0", "1"), "0") == "1",
    )


def _parse_step(args: Arguments, name: str) -> int | None:
    text = args.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise RequestError(400, f"{name} must be a step, a whole number from 0; got {quote(text)}.")
    return int(text)


def _parse_smoothing(args: Arguments) -> float:
    text = args.get("smoothing", "") or "0"
    if not re.fullmatch(r"[0-9]?(\.[0-9]{1,6})?", text, re.ASCII) or not float(text) <= MAX_WEIGHT:
        raise RequestError(400, f"smoothing must be a number from 0 to {MAX_WEIGHT}; got {quote(text)}.")
    return float(text)
