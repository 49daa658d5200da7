"""A figure's numbers as CSV: one line a point, whatever the figure is."""

import base64
import csv as csv_module
import html
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.figures.style import Figure

EVERY_STEP = 1 << 40
"""As `most`: leaves no step out."""
FORMULAS = tuple("=+-@＝＋－＠")  # noqa: RUF001 (spreadsheets take the wide ones as well)
CONTROLS = ("\t", "\r", "\n")


def array(value: Any) -> np.ndarray:
    """A figure's array: Plotly's typed encoding or a list."""
    if not isinstance(value, dict):
        return np.asarray(value)
    flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
    return flat.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else flat


def csv(figure: Figure) -> str:
    """Columns name, x, y and value for heatmaps; name, x and y for the rest."""
    out = io.StringIO()
    writer = csv_module.writer(out)  # lines end with CR LF: a name with either is quoted, as RFC 4180 has it
    heat = any(trace["type"] == "heatmap" for trace in figure["data"])
    axes = [figure["layout"].get(axis, {}).get("title", {}).get("text") or axis[0] for axis in ("xaxis", "yaxis")]
    writer.writerow(["step", "row", "value"] if heat else ["series", *axes])
    for trace in figure["data"]:
        writer.writerows(_heat(trace) if heat else _line(trace))
    return out.getvalue()


def _heat(trace: dict[str, Any]) -> Iterator[tuple]:
    """Row by row; of a logarithmic heatmap the values themselves, not their logarithms."""
    meta = trace.get("meta", {"rows": array(trace["y"]).tolist(), "value": "z"})
    x, values = array(trace["x"]).tolist(), array(trace[meta["value"]])
    for name, row in zip(map(plain, meta["rows"]), values, strict=True):
        yield from ((_whole(step), name, _short(value)) for step, value in zip(x, row.tolist(), strict=True))


def _line(trace: dict[str, Any]) -> Iterable[tuple]:
    name = plain(trace.get("meta", html.unescape(trace.get("name", ""))))
    x, y = array(trace["x"]).tolist(), array(trace["y"]).tolist()
    return ((name, _whole(plain(a)), _short(b)) for a, b in zip(x, y, strict=True))


def plain(text: Any) -> Any:
    """A name that no spreadsheet takes for a formula."""
    if not isinstance(text, str):
        return text
    text = text.replace("\0", "")  # which ends the file for some readers
    return f"'{text}" if text[:1] in CONTROLS or text.lstrip()[:1] in FORMULAS else text


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(value: float) -> str:
    return f"{value:.7g}"
