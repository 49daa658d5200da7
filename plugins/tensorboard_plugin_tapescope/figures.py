"""Arrays to plotly figures: series over steps, layers x steps in colour. Shown in the tab, report and notebook.

A figure is a dict that `plotly.graph_objects.Figure` and `Plotly.react` both take. Arrays travel in Plotly's
typed-array encoding, names as text: what looks like a tag in one is shown as it is.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.look import (
    PALETTE,
    Figure,
    colour_bar,
    labels,
    layout,
    title,
    typed,
    wrapped,
)
from tensorboard_plugin_tapescope.metadata import Column

BUCKETS = 512
"""Most steps that a heatmap draws; more are thinned, see `thin`."""

_DIVERGING = {
    False: ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"],
    True: ["#6fb7ff", "#3d87c9", "#2c4a66", "#2b2c30", "#6b3f33", "#cf6a4c", "#ff9a76"],
}


def thin(steps: np.ndarray, values: np.ndarray, column: Column, most: int = BUCKETS) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` of the records: the last of each bucket, for counts the bucket's largest.

    A bucket holds 2^k records, so that while a run goes on the earlier ones stay as they are.
    """
    stride = 1
    while len(steps) > most * stride:
        stride *= 2
    if stride == 1:
        return steps, values
    starts = np.arange(0, len(steps), stride)
    ends = np.minimum(starts + stride, len(steps)) - 1
    kept = np.fmax.reduceat(values, starts, axis=0) if column.scale == "count" else values[ends]
    return steps[ends], kept


def span(column: Column, *values: np.ndarray) -> tuple[float, float]:
    """The range of colour for all of these: whole decades of log10, 0 to 1, 0 to the largest, or even about 0."""
    flat = np.concatenate([v[np.isfinite(v)].ravel() for v in values]) if values else np.zeros(0)
    if column.scale == "fraction":
        return 0.0, 1.0
    if column.scale == "log":
        flat = np.log10(flat[flat > 0])
        low, high = np.percentile(flat, [0.5, 99.5]) if flat.size else (-1.0, 0.0)
        low = math.floor(low)
        return low, max(math.ceil(high), low + 1)
    if column.scale == "diverging":
        reach = float(np.percentile(np.abs(flat), 99)) if flat.size else 0.0
        return -(reach or 1.0), reach or 1.0
    return 0.0, max(float(flat.max()) if flat.size else 0.0, 1.0)


def heatmap(
    steps: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    column: Column,
    dark: bool = False,
    most: int = BUCKETS,
    colours: tuple[float, float] | None = None,
) -> Figure:
    """`values` [T, N] as colour, a row a name in the order given, the first at the top.

    Exactly 0 on a logarithmic scale takes the lowest colour; what is absent has none. `colours` is the range where
    several figures share one.
    """
    steps, values = thin(steps, values, column, most)
    low, high = colours or span(column, values)
    raw = np.ascontiguousarray(values.T, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.log10(raw) if column.scale == "log" else raw
    z = np.clip(z, low, high).astype(np.float32) if column.scale == "log" else z
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": labels(names),
        "z": typed(z),
        "meta": {"rows": list(names), "value": "customdata" if column.scale == "log" else "z"},
        "zmin": low,
        "zmax": high,
        "colorscale": _scale(column, dark),
        "colorbar": colour_bar(title(column), dark, **_ticks(column, low, high)),
        "hovertemplate": f"<b>%{{y}}</b><br>step %{{x}}<br>{title(column)} <b>{_value(column)}</b>"
        f"<br><br>{wrapped(column.definition)}<extra></extra>",
    }
    if column.scale == "log":
        trace["customdata"] = typed(raw)
    row = 15 if len(names) <= 60 else 4
    return {
        "data": [trace],
        "layout": layout(
            dark,
            height=int(min(max(row * len(names) + 110, 260), 640)),
            xaxis={"title": "step", "showgrid": False, "zeroline": False},
            yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "title": ""},
            margin={"l": 56, "r": 8, "t": 8, "b": 44},
        ),
    }


def series(
    steps: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    column: Column,
    dark: bool = False,
    most: int = 2 * BUCKETS,
    colours: Sequence[str] = PALETTE,
) -> Figure:
    """`values` [T, N] as a line a name."""
    steps, values = thin(steps, values, column, most)
    if column.scale == "log":  # what is not above 0 has no place on the axis, and leaves a gap
        values = np.where(values > 0, values, np.nan)
    gaps = not np.isfinite(values).all()
    hover = f"step %{{x}}<br>{title(column)} <b>%{{y:.4g}}</b><br><br>{wrapped(column.definition)}"
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if gaps or len(steps) == 1 else "lines",
            "marker": {"size": 4},
            "name": label,
            "meta": names[i],
            "x": typed(steps),
            "y": typed(values[:, i]),
            "line": {"color": colours[i % len(colours)], "width": 1.6},
            "hovertemplate": f"<b>{label}</b><br>{hover}<extra></extra>",
        }
        for i, label in enumerate(labels(names))
    ]
    axis: dict[str, Any] = {"title": title(column), "rangemode": "tozero"}
    if column.scale == "log":
        axis = {"title": title(column), "type": "log", **_log_ticks(values)}
    elif column.scale == "fraction":
        axis |= {"tickformat": ".0%", "range": [-0.02, 1.02]}
    elif column.scale == "diverging":
        axis = {"title": title(column)}
    shown_legend = len(names) > 1
    return {
        "data": traces,
        "layout": layout(dark, height=250, xaxis={"title": "step"}, yaxis=axis, showlegend=shown_legend),
    }


def marked(figure: Figure, step: int, dark: bool = False) -> Figure:
    """The figure with a line at a step, where its x axis is of steps."""
    if figure["layout"]["xaxis"]["title"]["text"] != "step":
        return figure
    line = {"type": "line", "xref": "x", "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1}
    line |= {"line": {"color": "#ff5252" if dark else "#d50000", "width": 1.5, "dash": "dot"}}
    return {**figure, "layout": {**figure["layout"], "shapes": [line]}}


def _log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Powers of ten where the values cover at least a decade and a half, whole numbers where less."""
    good = values[np.isfinite(values) & (values > 0)].astype(np.float64)
    decades = math.log10(good.max() / good.min()) if good.size else 0.0
    if decades < 1.5:
        return {"tickformat": "~g", "dtick": "D1" if 0.1 < decades < 0.5 else "D2"}
    return {"exponentformat": "power", "dtick": max(1, math.ceil(decades / 6))}


def _scale(column: Column, dark: bool) -> Any:
    if column.scale == "diverging":
        stops = _DIVERGING[dark]
        return [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]
    return "Viridis" if column.scale == "log" else "Cividis"


def _ticks(column: Column, low: float, high: float) -> dict[str, Any]:
    """The colour bar's ticks: decades as powers of ten, shares in percent."""
    if column.scale == "fraction":
        return {"tickformat": ".0%"}
    if column.scale != "log":
        return {}
    stride = max(1, math.ceil((high - low) / 8))
    decades = list(range(int(low), int(high) + 1, stride))
    return {"tickvals": decades, "ticktext": [f"10<sup>{d}</sup>" for d in decades]}


def _value(column: Column) -> str:
    if column.scale == "log":
        return "%{customdata:.3~g}"
    return "%{z:.1%}" if column.scale == "fraction" else "%{z:.4~g}"
