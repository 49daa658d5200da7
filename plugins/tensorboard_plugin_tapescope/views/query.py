"""What the page may ask, checked: every parameter of a request, and the refusal of what can't be answered."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from werkzeug import datastructures

from tensorboard_plugin_tapescope.data.table_cache import LATEST, Snapshot
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.series import tables

MOST_RUNS = 64

Arguments = datastructures.MultiDict[str, str]


class Refused(ValueError):
    """A request that can't be answered: an HTTP status code, and a sentence that says why."""

    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.code = code


class Panel(NamedTuple):
    """One figure of a view with its words; without a figure, `empty` says why there is none."""

    key: str
    title: str
    figure: style.Figure | None = None
    note: str = ""
    empty: str = ""
    rows: Sequence[str] = ()
    """Layers behind a heatmap's rows, the first at the top: a click on a row opens its layer."""
    wide: bool = False


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
    """Marked with a line."""
    since: int | None = None
    """Only what is new is sent: from this step on."""
    dark: bool = False
    max_steps: int = basic.MAX_STEPS
    """Most steps that a heatmap draws."""

    @property
    def ranged(self) -> bool:
        """Whether only some steps are asked for."""
        return self.first is not None or self.last is not None


def within(snapshot: Snapshot, query: Query) -> Snapshot:
    """The snapshot of the steps asked for. Refused where the first run has recorded none of them."""
    if not query.ranged:
        return snapshot
    first, last = query.first or 0, LATEST - 1 if query.last is None else query.last
    inside = snapshot.within(first, last)
    held = (inside.table(query.runs[0], family) for family in ("variables", "layers", "step"))
    if not any(table is not None and len(table.steps) for table in held):
        upto = "on" if query.last is None else f"to {last:,}"
        raise Refused(404, f"No step from {first:,} {upto} was recorded in {quoted(query.runs[0])}.")
    return inside


def quoted(text: str, most: int = 80) -> str:
    """A name in an error message: on one line, not too long."""
    return repr(text if len(text) <= most else text[:most] + "…")


def choice(args: Arguments, name: str, allowed: Collection[str], default: str, code: int = 400) -> str:
    """A parameter that has to be one of a few; Refused otherwise."""
    value = args.get(name, default) or default
    if value not in allowed:
        few = f": it must be one of {', '.join(allowed)}" if len(allowed) < 12 else ""
        raise Refused(code, f"{name} {quoted(value)} is unknown{few}.")
    return value


def parse(args: Arguments, snapshot: Snapshot) -> Query:
    """The parameters of a request. Refused names the first that can't be used."""
    runs = tuple(dict.fromkeys(args.getlist("run")))
    if not runs:
        raise Refused(400, "run is missing: name at least one run.")
    if len(runs) > MOST_RUNS:
        raise Refused(400, f"{len(runs)} runs were named; at most {MOST_RUNS} can be shown together.")
    for run in runs:
        if run not in snapshot.runs:
            raise Refused(404, f"There is no run {quoted(run)} with tapescope's records.")
    first, last = _step(args, "first"), _step(args, "last")
    if first is not None and last is not None and first > last:
        raise Refused(400, f"first ({first}) must not be after last ({last}).")
    return Query(
        runs,
        choice(args, "column", tables.COLUMNS, "", 404) if args.get("column", "") else "",
        args.get("layer", ""),
        args.get("variable", ""),
        choice(args, "order", ("forward", "worst"), "forward"),
        first,
        last,
        _step(args, "step"),
        _step(args, "since"),
        choice(args, "dark", ("0", "1"), "0") == "1",
    )


def _step(args: Arguments, name: str) -> int | None:
    text = args.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise Refused(400, f"{name} {quoted(text)} must be a step: a whole number from 0.")
    return int(text)
