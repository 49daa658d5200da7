"""Figures of a layer's output and units, of the flow budget, and of throughput over the number of replicas.

The same kind of figures as in `basic`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures.encoding import encode
from tensorboard_plugin_tapescope.figures.style import PALETTE, Figure, layout, unique_labels, wrap_lines
from tensorboard_plugin_tapescope.metadata import Column
from tensorboard_plugin_tapescope.series import scaling

RATIO = Column(
    "ratio", "log10 of the second run's value over the first's; 0 where both are equal", "decades", "diverging"
)

UNIT_SHARE = Column("share", "share of the layer's outputs or units", "", "fraction")

NOISE = metadata.COLUMNS["noise_scale"]

NOISE_BAND = 30.0
"""The drawn interval ends at so many times the noise scale, and begins at the noise scale over it: an interval may
begin at 0, for which a logarithmic axis has no place."""

BUDGET_PARTS = {
    "flow_gate": ("activation", PALETTE[0]),
    "flow_weight": ("weights", PALETTE[5]),
    "flow_between": ("path to the layer before", PALETTE[6]),
}
"""The parts of the flow budget in the order in which the gradient passes them: name and colour of each."""

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
"""Colours of the unit states on a light and a dark page; they differ in lightness, not in hue alone."""

MAX_UNITS = 4096
"""Most units of a layer that its map draws: no screen has more lines, and each cell is a word in the response."""

FEW_UNITS = 8
"""Most units whose map has a tick for each."""


def output_bands(
    steps: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    dark: bool = False,
    max_steps: int = 2 * basic.MAX_STEPS,
) -> Figure:
    """Return the mean of a layer's output with bands of one standard deviation and of the extremes; all arrays [T]."""
    column = Column("output", "", "", "linear")
    steps, stacked = basic.thin(steps, np.stack([mean, std, low, high], axis=1), column, max_steps)
    mean, std, low, high = stacked.T
    traces = [
        _band_edge(steps, low, "smallest"),
        _band_edge(steps, high, "smallest to largest", opacity=0.12),
        _band_edge(steps, mean - std, f"mean {style.MINUS} std"),
        _band_edge(steps, mean + std, "mean ± std", opacity=0.3),
        {
            "type": "scatter",
            "mode": basic.line_mode(mean),
            "marker": {"size": 4},
            "name": "mean",
            "x": encode(steps),
            "y": encode(mean),
            "line": {"color": PALETTE[0], "width": 1.8},
            "hovertemplate": "step %{x:,}<br>mean <b>%{y:.4g}</b><extra></extra>",
        },
    ]
    return {"data": traces, "layout": layout(dark, height=250, xaxis=style.step_axis(steps), yaxis={"title": "output"})}


def _band_edge(steps: np.ndarray, edge: np.ndarray, name: str, opacity: float | None = None) -> dict[str, Any]:
    """Return a trace of a band's edge; with an opacity, the area below it down to the trace before is filled."""
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "showlegend": opacity is not None and len(steps) > 1,  # a band of one step is not seen
        "x": encode(steps),
        "y": encode(edge),
        "line": {"width": 0, "color": PALETTE[0]},
        "hovertemplate": f"{name.split(' to ')[-1]} %{{y:.4g}}<extra></extra>",
    }
    if opacity is not None:
        trace["fill"] = "tonexty"
        trace["fillcolor"] = style.with_opacity(PALETTE[0], opacity)
    return trace


def noise_chart(
    steps: np.ndarray, estimates: np.ndarray, dark: bool = False, max_steps: int = 2 * basic.MAX_STEPS
) -> Figure:
    """Return the noise scale with its 95 % interval as a band.

    Args:
      steps: ascending steps [T].
      estimates: scale, low and high at each step [T, 3].
      dark: whether the page is dark.
      max_steps: most steps that are drawn.
    """
    steps, drawn = basic.thin(steps, estimates.astype(np.float32), NOISE, max_steps)
    scale = np.where(drawn[:, 0] > 0, drawn[:, 0], np.nan)
    low = np.maximum(drawn[:, 1], scale / NOISE_BAND)
    high = np.minimum(drawn[:, 2], scale * NOISE_BAND)
    known = np.isfinite(low) & np.isfinite(high)
    low[~known] = scale[~known]
    high[~known] = scale[~known]
    traces = [
        {**_band_edge(steps, low, "lower end"), "hovertemplate": "95 % interval from %{y:,.4~g}<extra></extra>"},
        {
            **_band_edge(steps, high, "95 % interval", opacity=0.25),
            "hovertemplate": "95 % interval to %{y:,.4~g}<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": basic.line_mode(scale),
            "marker": {"size": 4},
            "name": "noise scale",
            "x": encode(steps),
            "y": encode(scale),
            "line": {"color": PALETTE[0], "width": 1.8},
            "hovertemplate": "step %{x:,}<br>noise scale <b>%{y:,.4~g}</b> examples<br><br>"
            f"{wrap_lines(NOISE.definition)}<extra></extra>",
        },
    ]
    axis = basic.value_axis(NOISE, np.stack([low, high]))
    return {"data": traces, "layout": layout(dark, height=250, xaxis=style.step_axis(steps), yaxis=axis)}


def unit_map(steps: np.ndarray, codes: np.ndarray, dark: bool = False, max_steps: int = basic.MAX_STEPS) -> Figure:
    """Return the states of a layer's units over steps as a map, one colour for each state.

    Of more than MAX_UNITS units every second one is drawn, or every third, and so on.

    Args:
      steps: ascending steps [T].
      codes: indices into `metadata.UNIT_STATES` [T, U].
      dark: whether the page is dark.
      max_steps: most steps that are drawn.
    """
    stride = max(1, math.ceil(codes.shape[1] / MAX_UNITS))
    units = np.arange(codes.shape[1], dtype=np.int32)[::stride]
    hover = basic.hover_step(steps, max_steps)
    steps, codes = basic.thin(steps, codes[:, ::stride], Column("state", ""), max_steps, even=True)
    states = metadata.UNIT_STATES
    count = len(states)
    codes = np.where((codes >= 0) & (codes < count), codes, 0)  # a state of a later version is unknown here
    scale = [[(i + side) / count, STATE_COLOURS[state][dark]] for i, state in enumerate(states) for side in (0, 1)]
    words = [state.replace("_", " ") for state in states]
    trace = {
        "type": "heatmap",
        "x": encode(steps),
        "y": encode(units),
        "z": encode(codes.T.astype(np.uint8)),
        "text": [[words[code] for code in row] for row in codes.T.tolist()],
        "zmin": -0.5,
        "zmax": count - 0.5,
        "colorscale": scale,
        "colorbar": style.colour_bar("", dark, tickvals=list(range(count)), ticktext=words),
        "ygap": 1 if codes.shape[1] <= 64 else 0,
        "hovertemplate": f"unit <b>%{{y}}</b><br>{hover}<br><b>%{{text}}</b><extra></extra>",
    }
    xaxis = style.step_axis(steps, showgrid=False, zeroline=False, automargin=False)
    yaxis = {"title": "unit", "autorange": "reversed", "showgrid": False, "zeroline": False, "automargin": False}
    if len(units) <= FEW_UNITS:
        yaxis["dtick"] = 1  # Plotly would place ticks between two
    margin = {"l": style.LEFT_MARGIN, **style.HEATMAP_MARGIN}
    return {"data": [trace], "layout": layout(dark, height=340, xaxis=xaxis, yaxis=yaxis, margin=margin)}


def flow_budget(names: Sequence[str], gains: Mapping[str, np.ndarray], dark: bool = False) -> Figure:
    """Return a waterfall of the backward gain along the path of the gradient.

    Each bar begins where the bar before ended. Below 0 the gradient has become smaller.

    Args:
      names: K layers on the path, beginning at the loss.
      gains: gain of each layer in decades [K], for parts in BUDGET_PARTS.
      dark: whether the page is dark.
    """
    texts = unique_labels(names)
    parts = [part for part in BUDGET_PARTS if part in gains]
    heights = np.stack([np.nan_to_num(gains[part]) for part in parts], axis=1)
    ends = np.cumsum(heights).reshape(heights.shape)
    traces: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        title, colour = BUDGET_PARTS[part]
        traces.append(
            {
                "type": "bar",
                "name": title,
                "x": texts,
                "y": encode(heights[:, i]),
                "base": encode(ends[:, i] - heights[:, i]),
                "customdata": encode(ends[:, i]),
                "offsetgroup": part,
                "marker": {"color": colour, "line": {"width": 0}},
                "hovertemplate": f"<b>%{{x}}</b>, {title}<br><b>%{{value:+.2f}}</b> decades; %{{customdata:+.2f}} "
                f"from the loss to here<br><br>{wrap_lines(metadata.COLUMNS[part].definition)}<extra></extra>",
            }
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "total",
            "x": texts,
            "y": encode(ends[:, -1]),
            "line": {"color": style.secondary_text_colour(dark), "width": 1.2, "dash": "dot"},
            "marker": {"size": 4},
            "hovertemplate": "from the loss through <b>%{x}</b>: <b>%{y:+.2f}</b> decades<extra></extra>",
        }
    )
    bar_gap = max(0.15, 0.8 - 0.12 * len(texts))  # or the bars of two layers would fill the page
    fields = {
        "xaxis": {
            "title": "layer, from the loss (left) to the input (right)",
            "type": "category",
            "showgrid": False,
        },
        "yaxis": {"title": "backward gain (decades)", "zeroline": True},
        "barmode": "group",
        "bargap": bar_gap,
        "bargroupgap": 0,
    }
    return {"data": traces, "layout": layout(dark, height=420, **fields)}


def scaling_chart(
    names: Sequence[str], replicas: np.ndarray, rate: np.ndarray, dark: bool = False, colours: Sequence[str] = PALETTE
) -> Figure:
    """Return the throughput of runs over their number of replicas, with a line of perfect scaling.

    The line goes through the fastest of the runs with fewest replicas. Efficiency is the rate over that line.

    Args:
      names: K runs.
      replicas: number of replicas of each run [K].
      rate: examples per second of each run [K].
      dark: whether the page is dark.
      colours: colour of each run.
    """
    fewest = replicas.min()
    base = scaling.base_rate(rate, replicas)
    efficiency = scaling.scaling_efficiency(rate, replicas)
    ends = np.array([fewest, max(replicas.max(), fewest + 1)], np.float64)
    text_colour = style.secondary_text_colour(dark)
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "perfect scaling",
            "hoverinfo": "skip",
            "x": encode(ends),
            "y": encode(ends * base),
            "line": {"color": text_colour, "dash": "dot", "width": 1.2},
        }
    ]
    colours = [colours[i % len(colours)] for i in range(len(names))]
    symbols = style.mark_repeated(colours, style.SYMBOLS)
    for i, label in enumerate(unique_labels(names)):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": label,
                "x": encode(replicas[i : i + 1]),
                "y": encode(rate[i : i + 1]),
                "text": [f"{efficiency[i]:.0%}"],
                "textposition": "middle right",
                "cliponaxis": False,
                "textfont": {"color": text_colour},
                "marker": {"size": 11, "color": colours[i], "symbol": symbols[i]},
                "hovertemplate": f"<b>{label}</b><br>%{{x}} replicas<br>%{{y:,.0f}} examples/s<br>"
                f"efficiency <b>{efficiency[i]:.0%}</b><extra></extra>",
            }
        )
    xaxis = {"title": "replicas", "dtick": max(1, math.ceil(replicas.max() / 8)), "rangemode": "tozero"}
    yaxis = {"title": "examples/s", "rangemode": "tozero"}
    return {"data": traces, "layout": layout(dark, height=320, xaxis=xaxis, yaxis=yaxis, showlegend=True)}
