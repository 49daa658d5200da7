"""The numbers of a figure as CSV, one line a point."""

import csv as csv_module
import html
import io
from collections.abc import Iterable, Iterator
from typing import Any

from tensorboard_plugin_tapescope.figures.encoding import decode
from tensorboard_plugin_tapescope.figures.style import Figure

EVERY_STEP = 1 << 40
"""As `max_steps` of a figure: leave no step out."""

FORMULA_STARTS = tuple("=+-@＝＋－＠")  # noqa: RUF001 (spreadsheets take the wide ones as well)
CONTROL_CHARACTERS = ("\t", "\r", "\n")


def csv(figure: Figure) -> str:
    """Return the CSV of a figure: title of the x axis, row and value for heatmaps; series, x and y for the rest."""
    out = io.StringIO()
    writer = csv_module.writer(out)  # lines end with CR LF, so a name with either is quoted, as in RFC 4180
    titles = [figure["layout"].get(axis, {}).get("title", {}).get("text") for axis in ("xaxis", "yaxis")]
    if any(trace["type"] == "heatmap" for trace in figure["data"]):
        writer.writerow([titles[0], "row", "value"])
        for trace in figure["data"]:
            writer.writerows(_heatmap_lines(trace))
    else:
        writer.writerow(["series", titles[0] or "x", titles[1] or "y"])
        for trace in figure["data"]:
            writer.writerows(_trace_lines(trace))
    return out.getvalue().encode("utf-8", "replace").decode()  # a name may hold a lone surrogate


def _heatmap_lines(trace: dict[str, Any]) -> Iterator[tuple]:
    """Yield lines row by row; of a logarithmic heatmap the values themselves, not their logarithms."""
    meta = trace.get("meta", {"rows": decode(trace["y"]).tolist(), "value": "z"})
    steps = decode(trace["x"]).tolist()
    for name, row in zip(map(escape_formula, meta["rows"]), decode(trace[meta["value"]]), strict=True):
        yield from ((_whole(step), name, _number(value)) for step, value in zip(steps, row.tolist(), strict=True))


def _trace_lines(trace: dict[str, Any]) -> Iterable[tuple]:
    name = escape_formula(trace.get("meta", html.unescape(trace.get("name", ""))))
    points = zip(decode(trace["x"]).tolist(), decode(trace["y"]).tolist(), strict=True)
    return ((name, _whole(escape_formula(x)), _number(y)) for x, y in points)


def escape_formula(cell: Any) -> Any:
    """Return a cell such that no spreadsheet takes it for a formula; a number is returned unchanged."""
    if not isinstance(cell, str):
        return cell
    cell = cell.replace("\0", "")  # which ends the file for some readers
    dangerous = cell[:1] in CONTROL_CHARACTERS or cell.lstrip()[:1] in FORMULA_STARTS
    return f"'{cell}" if dangerous else cell


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: float) -> str:
    return f"{value:.7g}"
