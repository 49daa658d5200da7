"""Histograms on signed logarithmic bins to plotly figures: over steps, and several laid over one another.

The axis counts bins, so zero and both signs fit on it; bins that stay empty are left out, and of the wide gap
about zero only a little is kept to show that there is one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures.style import PALETTE, Figure, labels, layout, typed
from tensorboard_plugin_tapescope.metadata import Column

SHARE = Column("share", "share of the tensor's elements in the bin, which is half an octave wide", "", "fraction")
GAP = 3
"""Empty bins kept either side of zero."""
MOST_TICKS = 9


class Axis(NamedTuple):
    """The bins that are drawn, one place each, and the ticks at powers of ten among them."""

    bins: np.ndarray
    centres: np.ndarray
    fields: dict[str, Any]


def distribution(
    steps: np.ndarray, counts: np.ndarray, quantity: str, dark: bool = False, most: int = basic.BUCKETS
) -> Figure:
    """`counts` [T, BINS] as a heatmap of steps x value."""
    when = basic.hovered(steps, most)
    steps, counts = basic.thin(steps, counts, SHARE, most, even=True)
    axis = _axis(counts)
    share = _share(counts)[:, axis.bins]
    away = share[:, axis.bins != metadata.SIDE_BINS]  # exact zeros would drown the rest
    high = float(np.percentile(away.max(axis=1), 95)) if away.size else 0.0
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": typed(np.arange(len(axis.bins), dtype=np.int32)),
        "z": typed(np.where(share > 0, share, np.nan).T.astype(np.float32)),
        "customdata": typed(np.repeat(axis.centres[:, None], len(steps), 1).astype(np.float32)),
        "meta": {"rows": axis.centres.tolist(), "value": "z"},
        "zmin": 0,
        "zmax": high or 1.0,
        "colorscale": style.evenly(style.VIRIDIS) if dark else style.evenly(style.VIRIDIS[::-1]),
        "colorbar": style.colour_bar("share of elements", dark, tickformat=".2~p"),
        "hovertemplate": f"about <b>%{{customdata:.3~g}}</b><br>{when}<br>"
        f"<b>%{{z:.1%}}</b><br><br>{style.wrapped(SHARE.definition)}<extra></extra>",
    }
    yaxis = {"title": style.shown(quantity), **axis.fields, "zeroline": False, "showgrid": False}
    xaxis = {"title": "step", "showgrid": False, "zeroline": False}
    return {"data": [trace], "layout": layout(dark, height=300, xaxis=xaxis, yaxis=yaxis)}


def overlay(
    names: Sequence[str], counts: np.ndarray, quantity: str, dark: bool = False, colours: Sequence[str] = PALETTE
) -> Figure:
    """`counts` [K, BINS] of K runs or steps as one curve each, over the same bins."""
    axis, share = _axis(counts), _share(counts)
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "meta": names[i],
            "x": typed(np.arange(len(axis.bins), dtype=np.int32)),
            "y": typed(share[i, axis.bins].astype(np.float32)),
            "customdata": typed(axis.centres),
            "line": {"color": colours[i % len(colours)], "width": 1.8, "shape": "hvh"},
            "fill": "tozeroy",
            "fillcolor": style.faint(colours[i % len(colours)]),
            "hovertemplate": f"<b>{label}</b><br>about %{{customdata:.3~g}}<br><b>%{{y:.1%}}</b> of the elements"
            "<extra></extra>",
        }
        for i, label in enumerate(labels(names))
    ]
    xaxis = {"title": style.shown(quantity), **axis.fields, "zeroline": False}
    yaxis = {"title": "share of elements", "tickformat": ".0%", "rangemode": "tozero"}
    return {"data": traces, "layout": layout(dark, height=300, xaxis=xaxis, yaxis=yaxis, showlegend=True)}


def _share(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _axis(counts: np.ndarray) -> Axis:
    """Bins from the first to the last that anything fell into, without most of the gap about zero."""
    filled = np.flatnonzero(counts.any(axis=0))
    middle = metadata.SIDE_BINS
    bins = np.arange(filled[0], filled[-1] + 1) if filled.size else np.array([middle])
    below, above = filled[filled < middle], filled[filled > middle]
    near = np.abs(bins - middle) <= GAP
    inside = (bins <= (below[-1] if below.size else -1)) | (bins >= (above[0] if above.size else metadata.BINS))
    bins = bins[inside | near]
    edges = metadata.bin_edges()
    centres = np.sign(edges[1:]) * np.sqrt(np.abs(edges[:-1] * edges[1:]))
    centres[middle] = 0
    return Axis(bins, centres[bins], _ticks(bins, edges))


def _ticks(bins: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """Ticks at zero and at powers of ten within the bins drawn, as few as fit."""
    lowest, highest = (exponent * math.log10(2) for exponent in (metadata.LOW_EXPONENT, metadata.HIGH_EXPONENT))
    powers = range(math.ceil(lowest), math.floor(highest) + 1)
    signed = [(sign * 10.0**p, f"{'-' if sign < 0 else ''}10<sup>{p}</sup>", p) for p in powers for sign in (-1, 1)]
    places = np.interp([value for value, _, _ in signed], edges, np.arange(len(edges)) - 0.5)
    near = np.abs(places[:, None] - bins[None, :]).min(axis=1) <= 0.5
    stride = max(1, math.ceil(near.sum() / MOST_TICKS))
    kept = [(places[i], text) for i, (_, text, power) in enumerate(signed) if near[i] and power % stride == 0]
    kept += [(float(metadata.SIDE_BINS), "0")] if metadata.SIDE_BINS in bins else []
    at = np.interp([place for place, _ in kept], bins, np.arange(len(bins)))
    return {"tickvals": at.tolist(), "ticktext": [text for _, text in kept]}
