"""Arrays to plotly figures that show one thing in depth: distributions, units, the flow budget, replicas, two runs.

The same rules as in `figures`: pure functions from arrays to dicts, names shown as text.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope import figures, metadata
from tensorboard_plugin_tapescope.figures import PALETTE, Figure, labels, layout, typed, wrapped
from tensorboard_plugin_tapescope.metadata import Column

RATIO = Column("ratio", "log10 of the second run's value over the first's; 0 is the same", "decades", "diverging")
SHARE = Column("share", "share of the tensor's elements in the bin; each bin is half an octave wide", "", "fraction")

UNIT_SHARE = Column("share", "share of the layer's outputs or units", "", "fraction")

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


def distribution(
    steps: np.ndarray, counts: np.ndarray, quantity: str, dark: bool = False, most: int = figures.BUCKETS
) -> Figure:
    """`counts` [T, BINS] as a heatmap of steps x value, on the signed logarithmic bins; empty outer bins left out."""
    steps, counts = figures.thin(steps, counts, SHARE, most)
    first, last = _filled(counts)
    share = counts[:, first:last] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    high = float(np.percentile(share.max(axis=1), 90)) if share.size else 1.0
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": typed(np.arange(first, last, dtype=np.int32)),
        "z": typed(np.where(share > 0, share, np.nan).T.astype(np.float32)),
        "meta": {"rows": _centres()[first:last].tolist(), "value": "z"},
        "customdata": typed(np.repeat(_centres()[first:last, None], len(steps), 1).astype(np.float32)),
        "zmin": 0,
        "zmax": high or 1.0,
        "colorscale": "Viridis" if dark else figures.reversed_viridis(),
        "colorbar": figures.colour_bar("share of elements", dark, tickformat=".0%"),
        "hovertemplate": f"about <b>%{{customdata:.3~g}}</b><br>step %{{x}}<br>%{{z:.1%}} of the elements"
        f"<br><br>{wrapped(SHARE.definition)}<extra></extra>",
    }
    axis = {"title": quantity, **_bin_ticks(first, last), "zeroline": False, "showgrid": False}
    return {
        "data": [trace],
        "layout": layout(dark, height=300, xaxis={"title": "step", "showgrid": False}, yaxis=axis),
    }


def overlay(
    names: Sequence[str], counts: np.ndarray, quantity: str, dark: bool = False, colours: Sequence[str] = PALETTE
) -> Figure:
    """`counts` [K, BINS] of K runs or steps as one curve each, over the same bins."""
    first, last = _filled(counts)
    share = counts[:, first:last] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    centres = _centres()[first:last].astype(np.float32)
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "x": typed(np.arange(first, last, dtype=np.int32)),
            "y": typed(share[i].astype(np.float32)),
            "customdata": typed(centres),
            "line": {"color": colours[i % len(colours)], "width": 1.8, "shape": "hvh"},
            "fill": "tozeroy",
            "fillcolor": _faint(colours[i % len(colours)]),
            "hovertemplate": f"<b>{label}</b><br>about %{{customdata:.3~g}}<br>%{{y:.1%}} of elements<extra></extra>",
        }
        for i, label in enumerate(labels(names))
    ]
    xaxis = {"title": quantity, **_bin_ticks(first, last), "zeroline": False}
    yaxis = {"title": "share of elements", "tickformat": ".0%", "rangemode": "tozero"}
    return {"data": traces, "layout": layout(dark, height=300, xaxis=xaxis, yaxis=yaxis, showlegend=True)}


def bands(
    steps: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    dark: bool = False,
    most: int = 2 * figures.BUCKETS,
) -> Figure:
    """Mean of a layer's output with one standard deviation either side, within its smallest and largest; all [T]."""
    column = Column("output", "", "", "linear")
    steps, stacked = figures.thin(steps, np.stack([mean, std, low, high], axis=1), column, most)
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
            **({"fill": fill, "fillcolor": _faint(PALETTE[0], faint)} if fill else {}),
        }
        for name, edge, fill, faint in edges
    ]
    line = {"color": PALETTE[0], "width": 1.8}
    hover = "step %{x}<br>mean <b>%{y:.4g}</b><extra></extra>"
    traces.append({"type": "scatter", "mode": "lines", "name": "mean", "x": typed(steps), "y": typed(mean)})
    traces[-1] |= {"line": line, "hovertemplate": hover}
    axes = {"xaxis": {"title": "step"}, "yaxis": {"title": "output"}}
    return {"data": traces, "layout": layout(dark, height=250, **axes)}


def unit_map(steps: np.ndarray, codes: np.ndarray, dark: bool = False, most: int = figures.BUCKETS) -> Figure:
    """`codes` [T, U] into `metadata.UNIT_STATES` as a map of units x steps, a colour a state."""
    steps, codes = figures.thin(steps, codes, Column("state", ""), most)
    states = metadata.UNIT_STATES
    count = len(states)
    scale = [[(i + side) / count, STATE_COLOURS[state][dark]] for i, state in enumerate(states) for side in (0, 1)]
    words = [state.replace("_", " ") for state in states]
    bar = figures.colour_bar("", dark, tickvals=list(range(count)), ticktext=words)
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": typed(np.arange(codes.shape[1], dtype=np.int32)),
        "z": typed(np.minimum(codes, count - 1).T.astype(np.uint8)),
        "text": [[words[min(c, count - 1)] for c in row] for row in codes.T.tolist()],
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorscale": scale,
        "colorbar": bar,
        "ygap": 1 if codes.shape[1] <= 64 else 0,
        "hovertemplate": "unit <b>%{y}</b><br>step %{x}<br><b>%{text}</b><extra></extra>",
    }
    yaxis = {"title": "unit", "autorange": "reversed", "showgrid": False, "zeroline": False}
    return {
        "data": [trace],
        "layout": layout(dark, height=340, xaxis={"title": "step", "showgrid": False}, yaxis=yaxis),
    }


def budget(names: Sequence[str], gate: np.ndarray, weight: np.ndarray, dark: bool = False) -> Figure:
    """`gate` and `weight` [L] in decades, names in forward order, as a waterfall from the loss to the first layer.

    Each bar begins where the one before ended; an absent gain counts as none. Left is towards the loss.
    """
    backward = list(range(len(names)))[::-1]
    gains = np.nan_to_num(np.stack([gate, weight], axis=1)[backward], posinf=0, neginf=0).ravel()
    ends = np.cumsum(gains)
    starts = ends - gains
    texts = [labels(names)[i] for i in backward]
    traces: list[dict[str, Any]] = []
    for offset, part, colour in ((0, "activation gate", PALETTE[0]), (1, "weights", PALETTE[5])):
        column = metadata.COLUMNS[("flow_gate", "flow_weight")[offset]]
        traces.append(
            {
                "type": "bar",
                "name": part,
                "x": texts,
                "y": typed(gains[offset::2]),
                "base": typed(starts[offset::2]),
                "customdata": typed(ends[offset::2]),
                "offsetgroup": str(offset),
                "marker": {"color": colour, "line": {"width": 0}},
                "hovertemplate": f"<b>%{{x}}</b>, {part}<br><b>%{{value:+.2f}}</b> decades; %{{customdata:+.2f}} "
                f"from the loss to here<br><br>{wrapped(column.definition)}<extra></extra>",
            }
        )
    line = {"color": figures.soft_ink(dark), "width": 1.2, "dash": "dot"}
    hover = "from the loss through <b>%{x}</b>: <b>%{y:+.2f}</b> decades<extra></extra>"
    total = {"type": "scatter", "mode": "lines+markers", "name": "in total", "x": texts, "y": typed(ends[1::2])}
    traces.append({**total, "line": line, "marker": {"size": 4}, "hovertemplate": hover})
    xaxis = {"title": "layer, from the loss (left) to the input (right)", "type": "category", "showgrid": False}
    yaxis = {"title": "backward gain (decades)"}
    return {
        "data": traces,
        "layout": layout(dark, height=420, xaxis=xaxis, yaxis=yaxis, bargap=0.15, bargroupgap=0.0, barmode="group"),
    }


def scaling(
    names: Sequence[str], replicas: np.ndarray, rate: np.ndarray, dark: bool = False, colours: Sequence[str] = PALETTE
) -> Figure:
    """Examples per second `rate` [K] of K runs over their `replicas` [K], beside the line of perfect scaling.

    The line goes through the fastest of the runs with fewest replicas; efficiency is the rate over that line.
    """
    fewest = replicas.min()
    base = rate[replicas == fewest].max() / fewest
    efficiency = rate / (base * replicas)
    ends = np.array([fewest, max(replicas.max(), fewest + 1)], np.float64)
    ink = figures.soft_ink(dark)
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


def _filled(counts: np.ndarray) -> tuple[int, int]:
    """First and last + 1 of the bins that hold anything, at least the middle one."""
    filled = np.flatnonzero(counts.any(axis=0))
    return (int(filled[0]), int(filled[-1]) + 1) if filled.size else (metadata.SIDE_BINS, metadata.SIDE_BINS + 1)


def _centres() -> np.ndarray:
    """A value in the middle of each bin, 0 of the middle one."""
    edges = metadata.bin_edges()
    centres = np.sign(edges[1:]) * np.sqrt(np.abs(edges[:-1] * edges[1:]))
    centres[metadata.SIDE_BINS] = 0
    return centres


def _bin_ticks(first: int, last: int) -> dict[str, Any]:
    """Ticks at powers of ten where the axis counts bins, about ten of them."""
    edges = metadata.bin_edges()
    bounds = np.arange(len(edges)) - 0.5
    magnitudes = range(
        math.ceil(metadata.LOW_EXPONENT * math.log10(2)), int(metadata.HIGH_EXPONENT * math.log10(2)) + 1
    )
    ticks = {0.0: (float(metadata.SIDE_BINS), "0")}
    for power in magnitudes:
        for sign in (-1, 1):
            at = float(np.interp(sign * 10.0**power, edges, bounds))
            ticks[sign * 10.0**power] = (at, f"{'-' if sign < 0 else ''}10<sup>{power}</sup>")
    inside = [ticks[v] for v in sorted(ticks) if first - 1 <= ticks[v][0] <= last]
    stride = max(1, math.ceil(len(inside) / 9))
    middle = next((i for i, (_, text) in enumerate(inside) if text == "0"), 0)
    kept = [tick for i, tick in enumerate(inside) if (i - middle) % stride == 0]
    return {"tickvals": [at for at, _ in kept], "ticktext": [text for _, text in kept]}


def _faint(colour: str, alpha: float = 0.12) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
