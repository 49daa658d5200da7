"""Histograms on signed logarithmic bins: over steps as a heatmap, and of several runs as overlaid curves.

The axis counts bins, so that zero and both signs have a place on it. Empty bins at both ends are left out, and so is
most of the gap around zero.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures.encoding import encode
from tensorboard_plugin_tapescope.figures.style import PALETTE, Figure, display_name, layout, unique_labels
from tensorboard_plugin_tapescope.metadata import Column

SHARE = Column("share", "share of the tensor's elements in the bin, which is half an octave wide", "", "fraction")

GAP_BINS = 3
"""Empty bins that are drawn on either side of zero."""

MAX_TICKS = 9


class BinAxis(NamedTuple):
    """The bins that are drawn, one place each, and the axis' ticks."""

    bins: np.ndarray
    """Indices of bins [K]."""
    centres: np.ndarray
    """Geometric mean of each bin's edges [K]; 0 for the middle bin."""
    ticks: dict[str, Any]
    """`tickvals` and `ticktext` of a Plotly axis."""


def distribution(
    steps: np.ndarray, counts: np.ndarray, quantity: str, dark: bool = False, max_steps: int = basic.MAX_STEPS
) -> Figure:
    """Return histograms over steps as a heatmap, a row for each bin.

    Args:
      steps: ascending steps [T].
      counts: counts [T, BINS].
      quantity: what the histograms are of; the axis' title.
      dark: whether the page is dark.
      max_steps: most steps that are drawn.
    """
    hover = basic.hover_step(steps, max_steps)
    steps, counts = basic.thin(steps, counts, SHARE, max_steps, even=True)
    axis = _bin_axis(counts)
    share = _shares(counts)[:, axis.bins]
    nonzero = share[:, axis.bins != metadata.SIDE_BINS]  # the many exact zeros would take the whole colour range
    high = float(np.percentile(nonzero.max(axis=1), 95)) if nonzero.size else 0.0
    trace = {
        "type": "heatmap",
        "x": encode(steps),
        "y": encode(np.arange(len(axis.bins), dtype=np.int32)),
        "z": encode(np.where(share > 0, share, np.nan).T.astype(np.float32)),
        "customdata": encode(np.repeat(axis.centres[:, None], len(steps), 1).astype(np.float32)),
        "meta": {"rows": axis.centres.tolist(), "value": "z"},
        "zmin": 0,
        "zmax": high or 1.0,
        "colorscale": style.even_stops(style.VIRIDIS if dark else style.VIRIDIS[::-1]),
        "colorbar": style.colour_bar("share of elements", dark, tickformat=".2~p"),
        "hovertemplate": f"about <b>%{{customdata:.3~g}}</b><br>{hover}<br>"
        f"<b>%{{z:.1%}}</b><br><br>{style.wrap_lines(SHARE.definition)}<extra></extra>",
    }
    yaxis = {"title": display_name(quantity), **axis.ticks, "zeroline": False, "showgrid": False, "automargin": False}
    xaxis = style.step_axis(steps, showgrid=False, zeroline=False, automargin=False)
    margin = {"l": style.LEFT_MARGIN, **style.HEATMAP_MARGIN}
    return {"data": [trace], "layout": layout(dark, height=300, xaxis=xaxis, yaxis=yaxis, margin=margin)}


def overlay(
    names: Sequence[str], counts: np.ndarray, quantity: str, dark: bool = False, colours: Sequence[str] = PALETTE
) -> Figure:
    """Return histograms [K, BINS] of K runs or steps as one curve each, over the same bins."""
    axis = _bin_axis(counts)
    share = _shares(counts)
    colours = [colours[i % len(colours)] for i in range(len(names))]
    dashes = style.mark_repeated(colours, style.DASHES)
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "meta": names[i],
            "x": encode(np.arange(len(axis.bins), dtype=np.int32)),
            "y": encode(share[i, axis.bins].astype(np.float32)),
            "customdata": encode(axis.centres),
            "line": {"color": colours[i], "width": 1.8, "shape": "hvh", "dash": dashes[i]},
            "fill": "tozeroy",
            "fillcolor": style.with_opacity(colours[i]),
            "hovertemplate": f"<b>{label}</b><br>about %{{customdata:.3~g}}<br><b>%{{y:.1%}}</b> of the elements"
            "<extra></extra>",
        }
        for i, label in enumerate(unique_labels(names))
    ]
    xaxis = {"title": display_name(quantity), **axis.ticks, "zeroline": False}
    yaxis = {"title": "share of elements", "tickformat": ".0%", "rangemode": "tozero"}
    return {"data": traces, "layout": layout(dark, height=300, xaxis=xaxis, yaxis=yaxis, showlegend=True)}


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _bin_axis(counts: np.ndarray) -> BinAxis:
    """Return the bins from the first to the last that is not empty, without most of the gap around zero."""
    filled = np.flatnonzero(counts.any(axis=0))
    middle = metadata.SIDE_BINS
    bins = np.arange(filled[0], filled[-1] + 1) if filled.size else np.array([middle])
    below = filled[filled < middle]
    above = filled[filled > middle]
    last_below = below[-1] if below.size else -1
    first_above = above[0] if above.size else metadata.BINS
    near_zero = np.abs(bins - middle) <= GAP_BINS
    bins = bins[(bins <= last_below) | (bins >= first_above) | near_zero]
    edges = metadata.bin_edges()
    centres = np.sign(edges[1:]) * np.sqrt(np.abs(edges[:-1] * edges[1:]))
    centres[middle] = 0
    return BinAxis(bins, centres[bins], _bin_ticks(bins, edges))


def _bin_ticks(bins: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """Return ticks at zero and at powers of ten within the bins that are drawn, at most about MAX_TICKS."""
    lowest = math.ceil(metadata.LOW_EXPONENT * math.log10(2))
    highest = math.floor(metadata.HIGH_EXPONENT * math.log10(2))
    powers = [(sign, power) for power in range(lowest, highest + 1) for sign in (-1, 1)]
    places = np.interp([sign * 10.0**power for sign, power in powers], edges, np.arange(len(edges)) - 0.5)
    drawn = np.abs(places[:, None] - bins[None, :]).min(axis=1) <= 0.5
    stride = max(1, math.ceil(drawn.sum() / MAX_TICKS))
    ticks = [
        (place, f"{'-' if sign < 0 else ''}10<sup>{power}</sup>".replace("-", style.MINUS))
        for place, (sign, power), inside in zip(places, powers, drawn, strict=True)
        if inside and power % stride == 0
    ]
    positions = np.interp([place for place, _ in ticks], bins, np.arange(len(bins)))
    labels = [(float(position), text) for position, (_, text) in zip(positions, ticks, strict=True)]
    if metadata.SIDE_BINS in bins:
        zero = float(np.searchsorted(bins, metadata.SIDE_BINS))
        distance = len(bins) / (2 * MAX_TICKS)  # nearer labels would overlap that of zero
        labels = [(position, text) for position, text in labels if abs(position - zero) > distance]
        labels.append((zero, "0"))
    return {"tickvals": [position for position, _ in labels], "ticktext": [text for _, text in labels]}
