"""Arrays to plotly figures that show one thing in depth: an output, units, the flow budget, how a program scales.

The same rules as in `figures`: pure functions from arrays to dicts, names shown as text.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures.style import PALETTE, Figure, labels, layout, typed, wrapped
from tensorboard_plugin_tapescope.metadata import Column
from tensorboard_plugin_tapescope.series import scaling as scaling_series

RATIO = Column("ratio", "log10 of the second run's value over the first's; 0 is the same", "decades", "diverging")

UNIT_SHARE = Column("share", "share of the layer's outputs or units", "", "fraction")

BUDGET = {
    "flow_gate": ("its activation", PALETTE[0]),
    "flow_weight": ("its weights", PALETTE[5]),
    "flow_between": ("what lies before it", PALETTE[6]),
}
"""The parts of the flow budget in the order in which the gradient passes them: words and colour of each."""

STATE_COLOURS = {
    "unknown": ("#eceff1", "#2b2d31"),
    "alive": ("#a8d5a2", "#2f6b46"),
    "dormant": ("#f6d55c", "#b58a00"),
    "dead": ("#1f2a44", "#e8eaed"),
    "saturated_low": ("#3b7dd8", "#3b7dd8"),
    "saturated_high": ("#d1495b", "#e8606f"),
    "always_on": ("#7cc7c3", "#1f8a86"),
    "revived": ("#e58bd6", "#d76bc5"),
}
"""Of each unit state, light and dark; they differ in lightness, not in hue alone."""

MOST_UNITS = 4096
"""Of one layer that its map draws: no screen has more lines, and each cell is a word in the answer."""


def bands(
    steps: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    dark: bool = False,
    most: int = 2 * basic.BUCKETS,
) -> Figure:
    """Mean of a layer's output with one standard deviation either side, within its smallest and largest; all [T]."""
    column = Column("output", "", "", "linear")
    steps, stacked = basic.thin(steps, np.stack([mean, std, low, high], axis=1), column, most)
    mean, std, low, high = stacked.T
    edges = [
        ("smallest", low, None, 0.0),
        ("smallest to largest", high, "tonexty", 0.12),
        ("mean - std", mean - std, None, 0.0),
        ("mean ± std", mean + std, "tonexty", 0.3),
    ]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "showlegend": fill is not None,
            "x": typed(steps),
            "y": typed(edge),
            "line": {"width": 0, "color": PALETTE[0]},
            "hovertemplate": f"{name.split(' to ')[-1]} %{{y:.4g}}<extra></extra>",
            **({"fill": fill, "fillcolor": style.faint(PALETTE[0], faint)} if fill else {}),
        }
        for name, edge, fill, faint in edges
    ]
    line = {"color": PALETTE[0], "width": 1.8}
    hover = "step %{x}<br>mean <b>%{y:.4g}</b><extra></extra>"
    traces.append({"type": "scatter", "mode": "lines", "name": "mean", "x": typed(steps), "y": typed(mean)})
    traces[-1] |= {"line": line, "hovertemplate": hover}
    axes = {"xaxis": {"title": "step"}, "yaxis": {"title": "output"}}
    return {"data": traces, "layout": layout(dark, height=250, **axes)}


def unit_map(steps: np.ndarray, codes: np.ndarray, dark: bool = False, most: int = basic.BUCKETS) -> Figure:
    """`codes` [T, U] into `metadata.UNIT_STATES` as a map of units x steps, a colour a state.

    Of more than MOST_UNITS every second unit is drawn, or every third, and so on.
    """
    stride = math.ceil(codes.shape[1] / MOST_UNITS)
    units, codes = np.arange(codes.shape[1], dtype=np.int32)[::stride], codes[:, ::stride]
    when = basic.hovered(steps, most)
    steps, codes = basic.thin(steps, codes, Column("state", ""), most, even=True)
    states = metadata.UNIT_STATES
    count = len(states)
    codes = np.where((codes >= 0) & (codes < count), codes, 0)  # a state that a later version may add is unknown here
    scale = [[(i + side) / count, STATE_COLOURS[state][dark]] for i, state in enumerate(states) for side in (0, 1)]
    words = [state.replace("_", " ") for state in states]
    bar = style.colour_bar("", dark, tickvals=list(range(count)), ticktext=words)
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": typed(units),
        "z": typed(codes.T.astype(np.uint8)),
        "text": [[words[c] for c in row] for row in codes.T.tolist()],
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorscale": scale,
        "colorbar": bar,
        "ygap": 1 if codes.shape[1] <= 64 else 0,
        "hovertemplate": f"unit <b>%{{y}}</b><br>{when}<br><b>%{{text}}</b><extra></extra>",
    }
    yaxis = {"title": "unit", "autorange": "reversed", "showgrid": False, "zeroline": False}
    return {
        "data": [trace],
        "layout": layout(dark, height=340, xaxis={"title": "step", "showgrid": False}, yaxis=yaxis),
    }


def budget(names: Sequence[str], parts: Mapping[str, np.ndarray], dark: bool = False) -> Figure:
    """The columns of BUDGET in `parts`, [K] decades each, as a waterfall along `names`, which go back from the loss.

    Each bar begins where the one before ended, and below 0 the gradient has become smaller.
    """
    texts, kinds = labels(names), [part for part in BUDGET if part in parts]
    gains = np.stack([np.nan_to_num(parts[part]) for part in kinds], axis=1)
    ends = np.cumsum(gains).reshape(gains.shape)
    traces: list[dict[str, Any]] = []
    for i, part in enumerate(kinds):
        words, colour = BUDGET[part]
        traces.append(
            {
                "type": "bar",
                "name": words,
                "x": texts,
                "y": typed(gains[:, i]),
                "base": typed(ends[:, i] - gains[:, i]),
                "customdata": typed(ends[:, i]),
                "offsetgroup": part,
                "marker": {"color": colour, "line": {"width": 0}},
                "hovertemplate": f"<b>%{{x}}</b>, {words}<br><b>%{{value:+.2f}}</b> decades; %{{customdata:+.2f}} "
                f"from the loss to here<br><br>{wrapped(metadata.COLUMNS[part].definition)}<extra></extra>",
            }
        )
    line = {"color": style.soft_ink(dark), "width": 1.2, "dash": "dot"}
    hover = "from the loss through <b>%{x}</b>: <b>%{y:+.2f}</b> decades<extra></extra>"
    total = {"type": "scatter", "mode": "lines+markers", "name": "in total", "x": texts, "y": typed(ends[:, -1])}
    traces.append({**total, "line": line, "marker": {"size": 4}, "hovertemplate": hover})
    xaxis = {"title": "layer, from the loss (left) to the input (right)", "type": "category", "showgrid": False}
    yaxis = {"title": "backward gain (decades)", "zeroline": True}
    gap = max(0.15, 0.8 - 0.12 * len(texts))  # or the bars of two layers would fill the page
    fields = {"xaxis": xaxis, "yaxis": yaxis, "barmode": "group", "bargap": gap, "bargroupgap": 0}
    return {"data": traces, "layout": layout(dark, height=420, **fields)}


def scaling(
    names: Sequence[str], replicas: np.ndarray, rate: np.ndarray, dark: bool = False, colours: Sequence[str] = PALETTE
) -> Figure:
    """Examples per second `rate` [K] of K runs over their `replicas` [K], beside the line of perfect scaling.

    The line goes through the fastest of the runs with fewest replicas; efficiency is the rate over that line.
    """
    fewest = replicas.min()
    base = scaling_series.base_rate(rate, replicas)
    efficiency = scaling_series.scaling_efficiency(rate, replicas)
    ends = np.array([fewest, max(replicas.max(), fewest + 1)], np.float64)
    ink = style.soft_ink(dark)
    ideal: dict[str, Any] = {"type": "scatter", "mode": "lines", "name": "perfect scaling", "hoverinfo": "skip"}
    ideal |= {"x": typed(ends), "y": typed(ends * base), "line": {"color": ink, "dash": "dot", "width": 1.2}}
    points = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": label,
            "x": typed(replicas[i : i + 1]),
            "y": typed(rate[i : i + 1]),
            "text": [f"{efficiency[i]:.0%}"],
            "textposition": "bottom right",
            "textfont": {"color": ink},
            "marker": {"size": 11, "color": colours[i % len(colours)]},
            "hovertemplate": f"<b>{label}</b><br>%{{x}} replicas<br>%{{y:,.0f}} examples/s<br>"
            f"efficiency <b>{efficiency[i]:.0%}</b><extra></extra>",
        }
        for i, label in enumerate(labels(names))
    ]
    xaxis = {"title": "replicas", "dtick": max(1, math.ceil(replicas.max() / 8)), "rangemode": "tozero"}
    yaxis = {"title": "examples/s, steps that are not measured", "rangemode": "tozero"}
    return {"data": [ideal, *points], "layout": layout(dark, height=320, xaxis=xaxis, yaxis=yaxis, showlegend=True)}
