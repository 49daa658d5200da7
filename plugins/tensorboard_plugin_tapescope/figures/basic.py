"""Arrays to plotly figures: series over steps, layers x steps in colour. Shown in the tab, report and notebook.

A figure is a dict that `plotly.graph_objects.Figure` and `Plotly.react` both take. Arrays travel in Plotly's
typed-array encoding, names as text: what looks like a tag in one is shown as it is.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorboard_plugin_tapescope.figures.style import (
    CIVIDIS,
    PALETTE,
    VIRIDIS,
    Figure,
    colour_bar,
    evenly,
    labels,
    layout,
    title,
    typed,
    wrapped,
)
from tensorboard_plugin_tapescope.metadata import Column

BUCKETS = 512
"""Most steps that a heatmap draws; more are thinned, see `thin`."""

ZERO = "#ff7ab6"
"""Colour of exact zeros on a logarithmic scale."""
ABSENT = {False: "#bfc4ca", True: "#4b4e54"}
"""Behind a heatmap: what was not recorded, or is no number."""

_DIVERGING = {
    False: ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"],
    True: ["#6fb7ff", "#3d87c9", "#2c4a66", "#2b2c30", "#6b3f33", "#cf6a4c", "#ff9a76"],
}


class Span(NamedTuple):
    """The values that the colours of a heatmap run over."""

    low: float
    high: float
    zero: bool = False
    """Of a logarithmic scale: whether exact zeros have a band of their own, one decade wide, below `low`."""


def thin(
    steps: np.ndarray, values: np.ndarray, column: Column, most: int = BUCKETS, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` of the records: the last of each bucket of steps, for counts the bucket's largest.

    Buckets are 2^k times the steps between records wide, so that while a run goes on the earlier ones stay as they
    are. With `even` each bucket stands at its own last step, and one without a record repeats the one before it: a
    browser draws evenly spaced columns ten times faster than others.
    """
    if len(steps) <= most:
        return steps, values
    width = bucket_steps(steps, most)
    place = (steps - steps[0]) // width
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ends = np.append(starts[1:], len(steps)) - 1
    kept = np.fmax.reduceat(values, starts, axis=0) if column.scale == "count" else values[ends]
    if not even:
        return steps[ends], kept
    every = np.arange(place[-1] + 1)
    filled = np.searchsorted(place[ends], every, side="right") - 1
    return steps[0] + (every + 1) * width - 1, kept[filled]


def bucket_steps(steps: np.ndarray, most: int = BUCKETS) -> int:
    """How many steps a bucket of `thin` covers; 1 where every record is drawn."""
    if len(steps) <= most:
        return 1
    width = max(1, int(np.gcd.reduce(np.diff(steps))))
    while (steps[-1] - steps[0]) // width >= most:
        width *= 2
    return width


def hovered(steps: np.ndarray, most: int = BUCKETS) -> str:
    """What a hover text calls the x of a column drawn by `thin`."""
    return f"{'step' if bucket_steps(steps, most) == 1 else 'up to step'} %{{x:,}}"


def span(column: Column, *values: np.ndarray) -> Span:
    """The range of colour for all of these: whole decades of log10, 0 to 1, 0 to the largest, or even about 0."""
    flat = np.concatenate([v[np.isfinite(v)].ravel() for v in values]) if values else np.zeros(0)
    if column.scale == "fraction":
        return Span(0.0, 1.0)
    if column.scale == "log":
        zero, flat = bool((flat == 0).any()), np.log10(flat[flat > 0])
        low, high = np.percentile(flat, [0.5, 99.5]) if flat.size else (-1.0, 0.0)
        low = math.floor(low)
        return Span(low, max(math.ceil(high), low + 1), zero)
    if column.scale == "diverging":
        reach = float(np.percentile(np.abs(flat), 99)) if flat.size else 0.0
        return Span(-(reach or 1.0), reach or 1.0)
    return Span(0.0, max(float(flat.max()) if flat.size else 0.0, 1.0))


def heatmap(
    steps: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    column: Column,
    dark: bool = False,
    most: int = BUCKETS,
    colours: Span | None = None,
) -> Figure:
    """`values` [T, N] as colour, a row a name in the order given, the first at the top.

    Exactly 0 on a logarithmic scale has a colour of its own; what is absent is grey. `colours` is the range where
    several figures share one.
    """
    when = hovered(steps, most)
    steps, values = thin(steps, values, column, most, even=True)
    colours = colours or span(column, values)
    low, high = colours.low, colours.high
    raw = z = np.ascontiguousarray(values.T, np.float32)
    if column.scale == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(raw == 0, low - 0.5, np.clip(np.log10(raw), low, high)).astype(np.float32)
    texts = labels(names)
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": texts,
        "z": typed(z),
        "meta": {"rows": list(names), "value": "customdata" if column.scale == "log" else "z"},
        "zmin": low - colours.zero,
        "zmax": high,
        "colorscale": _scale(column, dark, colours),
        "colorbar": colour_bar(title(column), dark, **_ticks(column, colours)),
        "hovertemplate": f"<b>%{{y}}</b><br>{when}<br>{title(column)} <b>{_value(column)}</b>"
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
            xaxis={"title": "step", "showgrid": False, "zeroline": False, "automargin": False},
            yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "title": "", "automargin": False},
            # Room for the labels is reckoned here: Plotly would draw all twice to find it.
            margin={"l": 16 + math.ceil(6.6 * max(map(len, texts), default=0)), "r": 92, "t": 8, "b": 44},
            plot_bgcolor=ABSENT[dark],
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


def _scale(column: Column, dark: bool, colours: Span) -> list[list[Any]]:
    stops = _DIVERGING[dark] if column.scale == "diverging" else VIRIDIS if column.scale == "log" else CIVIDIS
    if not colours.zero:
        return evenly(stops)
    share = 1 / (colours.high - colours.low + 1)
    above = [[share + (1 - share) * place, colour] for place, colour in evenly(stops)]
    return [[0, ZERO], [share, ZERO], *above]


def _ticks(column: Column, colours: Span) -> dict[str, Any]:
    """The colour bar's ticks: decades as powers of ten, shares in percent."""
    if column.scale == "fraction":
        return {"tickformat": ".0%"}
    if column.scale != "log":
        return {}
    stride = max(1, math.ceil((colours.high - colours.low) / 8))
    decades = list(range(int(colours.low), int(colours.high) + 1, stride))
    zero = [(colours.low - 0.5, "0")] if colours.zero else []
    ticks = [*zero, *((decade, f"10<sup>{decade}</sup>") for decade in decades)]
    return {"tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks]}


def _value(column: Column) -> str:
    if column.scale == "log":
        return "%{customdata:.3~g}"
    return "%{z:.1%}" if column.scale == "fraction" else "%{z:.4~g}"
