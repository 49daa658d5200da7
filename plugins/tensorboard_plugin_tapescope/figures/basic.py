"""Heatmaps of layers by steps and lines over steps, for the tab, the report and notebooks.

A figure is a dict that `plotly.graph_objects.Figure` and `Plotly.react` both take. Arrays are in Plotly's typed-array
encoding, and markup in names is escaped.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.figures import style
from tensorboard_plugin_tapescope.figures.colour_scale import ColourRange, colour_range, colour_stops, colour_ticks
from tensorboard_plugin_tapescope.figures.encoding import encode
from tensorboard_plugin_tapescope.figures.style import Figure, column_title, layout, unique_labels, wrap_lines
from tensorboard_plugin_tapescope.metadata import Column
from tensorboard_plugin_tapescope.series.smoothing import smooth

MAX_STEPS = 512
"""Most steps that a heatmap draws; more are thinned, see `thin`."""

ABSENT_COLOURS = {False: "#bfc4ca", True: "#4b4e54"}
"""Background of a heatmap, on a light and a dark page: the colour of absent values."""

ABSENT_NOTE = "Grey cells are absent or not finite"

FAINT = 0.35
"""Opacity of the recorded values behind a smoothed line."""

HEATMAP_REPLICAS = 8
"""From so many replicas on, more lines than the palette has colours, they are the rows of a heatmap."""

MOST_REPLICA_ROWS = 64
"""Most replicas that are rows of a heatmap."""
OUTLIERS = 4
"""Replicas that are drawn by themselves where there are more."""

NARROW_DECADES = 0.7
"""On a logarithmic axis of fewer decades too few digits have a place: Plotly chooses ticks as on a linear one."""

ROW_PIXELS = 15
DENSE_ROW_PIXELS = 4
DENSE_ROWS = 60
"""With more rows than these, rows are DENSE_ROW_PIXELS high and not all of them are labelled."""


def thin(
    steps: np.ndarray, values: np.ndarray, column: Column, max_steps: int = MAX_STEPS, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `max_steps` records: of each bucket of steps the last one, for counts the largest.

    Buckets are 2^k times as wide as the steps between records, so that the earlier ones stay the same while a run goes
    on.

    Args:
      steps: ascending steps [T].
      values: values [T, ...].
      column: what the values are; its scale tells counts.
      max_steps: most records to return.
      even: whether to place each bucket at its last step and to repeat the bucket before for one without a record.
        Browsers draw evenly spaced columns ten times faster than others.

    Returns:
      Steps and values of the records.
    """
    if len(steps) <= max_steps:
        return steps, values
    width = bucket_width(steps, max_steps)
    bucket = (steps - steps[0]) // width
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    ends = np.append(starts[1:], len(steps)) - 1
    kept = np.fmax.reduceat(values, starts, axis=0) if column.scale == "count" else values[ends]
    if not even:
        return steps[ends], kept
    every = np.arange(bucket[-1] + 1)
    filled = np.searchsorted(bucket[ends], every, side="right") - 1
    return steps[0] + (every + 1) * width - 1, kept[filled]


def bucket_width(steps: np.ndarray, max_steps: int = MAX_STEPS) -> int:
    """Return how many steps a bucket of `thin` covers; 1 if every record is drawn."""
    if len(steps) <= max_steps:
        return 1
    width = max(1, int(np.gcd.reduce(np.diff(steps))))
    while (steps[-1] - steps[0]) // width >= max_steps:
        width *= 2
    return width


def hover_step(steps: np.ndarray, max_steps: int = MAX_STEPS) -> str:
    """Return the line of a hover text that names the step of a column drawn by `thin`."""
    return f"{'step' if bucket_width(steps, max_steps) == 1 else 'up to step'} %{{x:,}}"


def heatmap(
    steps: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    column: Column,
    dark: bool = False,
    max_steps: int = MAX_STEPS,
    colours: ColourRange | None = None,
    left_margin: int | None = None,
    label_limit: int = style.LABEL_LIMIT,
) -> Figure:
    """Return values as colour, one row for each name, the first at the top.

    On a logarithmic scale exact zeros have their own colour. Absent values are grey.

    Args:
      steps: ascending steps [T].
      names: N names.
      values: values [T, N].
      column: what the values are.
      dark: whether the page is dark.
      max_steps: most steps that are drawn.
      colours: range of the colours if several figures share one.
      left_margin: pixels left of the plot if several figures are to be aligned, see `row_label_margin`.
      label_limit: most characters of a row's label.
    """
    hover = hover_step(steps, max_steps)
    steps, values = thin(steps, values, column, max_steps, even=True)
    colours = colours or colour_range(column, values)
    raw = z = np.ascontiguousarray(values.T, np.float32)
    if column.scale == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            clipped = np.clip(np.log10(raw), colours.low, colours.high)
        z = np.where(raw == 0, colours.low - 0.5, clipped).astype(np.float32)
    trace = {
        "type": "heatmap",
        "x": encode(steps),
        "y": unique_labels(names, parts=2, limit=label_limit),
        "z": encode(z),
        "meta": {"rows": list(names), "value": "customdata" if column.scale == "log" else "z"},
        "zmin": colours.bottom,
        "zmax": colours.high,
        "colorscale": colour_stops(colours, dark),
        "colorbar": style.colour_bar(column_title(column), dark, **colour_ticks(colours, values)),
        "hovertemplate": f"<b>%{{y}}</b><br>{hover}<br>{column_title(column)} <b>{_hover_value(column)}</b>"
        f"<br><br>{wrap_lines(column.definition)}<extra></extra>",
    }
    if column.scale == "log":
        trace["customdata"] = encode(raw)
    row_pixels = ROW_PIXELS if len(names) <= DENSE_ROWS else DENSE_ROW_PIXELS
    left = row_label_margin(names, label_limit) if left_margin is None else left_margin
    return {
        "data": [trace],
        "layout": layout(
            dark,
            height=int(min(max(row_pixels * len(names) + 110, 260), 640)),
            xaxis=style.step_axis(steps, showgrid=False, zeroline=False, automargin=False),
            yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "title": "", "automargin": False},
            margin={"l": left, **style.HEATMAP_MARGIN},
            plot_bgcolor=ABSENT_COLOURS[dark],
        ),
    }


def row_label_margin(names: Sequence[str], limit: int = style.LABEL_LIMIT) -> int:
    """Return the pixels that a heatmap's row labels need. Plotly would draw the figure twice to find out."""
    return 16 + math.ceil(6.6 * max(map(len, unique_labels(names, 2, limit)), default=0))


def _hover_value(column: Column) -> str:
    if column.scale == "log":
        return "%{customdata:.3~g}"
    return "%{z:.1%}" if column.scale == "fraction" else "%{z:.4~g}"


def line_chart(
    steps: np.ndarray,
    names: Sequence[str],
    values: np.ndarray,
    column: Column,
    dark: bool = False,
    max_steps: int = 2 * MAX_STEPS,
    definitions: Sequence[str] | None = None,
    smoothing: float | Sequence[float] = 0.0,
) -> Figure:
    """Return values over steps as one line for each name, or as a smoothed line before a faint one of the values.

    Args:
      steps: ascending steps [T].
      names: N names.
      values: values [T, N].
      column: what the values are.
      dark: whether the page is dark.
      max_steps: most steps that are drawn.
      definitions: what each line is; the column's definition by default.
      smoothing: weight of the smoothing, see `series.smoothing`; 0 draws the values alone. One, or one for each name.
    """
    if column.scale == "log":  # a logarithmic axis has no place for the rest, which leaves a gap
        values = np.where(values > 0, values, np.nan)
    weights = np.broadcast_to(np.asarray(smoothing, np.float64), len(names))
    smoothed = smooth(values, weights, column.scale) if weights.any() else values
    steps, drawn = thin(steps, np.stack([values, smoothed.astype(values.dtype)], axis=2), column, max_steps)
    values, smoothed = drawn[..., 0], drawn[..., 1]
    definitions = definitions or [column.definition] * len(names)
    traces: list[dict[str, Any]] = []
    faint: list[dict[str, Any]] = []
    colours = [style.PALETTE[i % len(style.PALETTE)] for i in range(len(names))]
    dashes = style.mark_repeated(colours, style.DASHES)
    for i, label in enumerate(unique_labels(names)):
        value = f"{column_title(column)} <b>%{{y:.4g}}</b>"
        trace = {
            "type": "scatter",
            "mode": line_mode(values[:, i]),
            "marker": {"size": 4},
            "cliponaxis": False,
            "name": label,
            "meta": names[i],
            "x": encode(steps),
            "y": encode(smoothed[:, i]),
            "line": {"color": colours[i], "width": 1.6, "dash": dashes[i]},
        }
        if weights[i]:
            recorded = {"y": encode(values[:, i]), "opacity": FAINT, "showlegend": False, "hoverinfo": "skip"}
            faint.append({**trace, **recorded, "legendgroup": label})
            trace |= {"legendgroup": label, "customdata": encode(values[:, i])}
            value = f"{column_title(column)} <b>%{{customdata:.4g}}</b><br>smoothed <b>%{{y:.4g}}</b>"
        hover = f"<b>{label}</b><br>step %{{x:,}}<br>{value}<br><br>{wrap_lines(definitions[i])}<extra></extra>"
        traces.append({**trace, "hovertemplate": hover})
    xaxis = style.step_axis(steps)
    if len(steps) > 1:  # or markers would make the axis longer than in the figures beside it
        xaxis["autorangeoptions"] = {"clipmin": int(steps[0]), "clipmax": int(steps[-1])}
    axis = value_axis(column, values)
    figure_layout = layout(dark, height=250, xaxis=xaxis, yaxis=axis, showlegend=len(names) > 1)
    return {"data": [*faint, *traces], "layout": figure_layout}


def replica_chart(
    steps: np.ndarray,
    values: np.ndarray,
    column: Column,
    dark: bool = False,
    max_steps: int = MAX_STEPS,
    smoothing: float = 0.0,
) -> Figure:
    """Return a value of each replica over steps: lines, or a heatmap from HEATMAP_REPLICAS replicas on.

    More than MOST_REPLICA_ROWS are drawn as their median and range, and the OUTLIERS that are farthest from the median.

    Args:
      steps: ascending steps [T].
      values: values [T, R].
      column: what the values are.
      dark: whether the page is dark.
      max_steps: most steps of a heatmap; lines have twice as many.
      smoothing: weight of the smoothing of lines.
    """
    names = [f"replica {replica}" for replica in range(values.shape[1])]
    if len(names) > MOST_REPLICA_ROWS:
        names, values = _spread(values)
        smoothing = 0.0  # the page has no control for it from HEATMAP_REPLICAS on
    if len(names) < HEATMAP_REPLICAS:
        return line_chart(steps, names, values, column, dark, 2 * max_steps, smoothing=smoothing)
    return heatmap(steps, names, values, column, dark, max_steps)


def _spread(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return names and values [T, K] of the median over replicas, their range, and those farthest from the median."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step at which all are NaN
        median, low, high = (pick(values, axis=1) for pick in (np.nanmedian, np.nanmin, np.nanmax))
        distance = np.nan_to_num(np.nanmedian(np.abs(values - median[:, None]), axis=0))
    farthest = np.sort(np.argsort(-distance, kind="stable")[:OUTLIERS])
    names = ["median", "smallest", "largest", *(f"replica {replica}" for replica in farthest)]
    return names, np.stack([median, low, high, *values.T[farthest]], axis=1).astype(values.dtype)


def line_mode(values: np.ndarray) -> str:
    """Return Plotly's mode of a line, with markers if a finite value has no finite neighbour: no line leads to it."""
    finite = np.concatenate([[False], np.isfinite(values), [False]])
    isolated = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    return "lines+markers" if isolated.any() else "lines"


def value_axis(column: Column, values: np.ndarray) -> dict[str, Any]:
    """Return the y axis of a line chart of a column's values."""
    axis: dict[str, Any] = {"title": column_title(column)}
    if column.scale == "log":
        return {**axis, "type": "log", **_log_axis_ticks(values)}
    if column.scale == "fraction":
        return {**axis, "rangemode": "tozero", "tickformat": ".0%", "range": [-0.02, 1.02]}
    return axis if column.scale == "diverging" else {**axis, "rangemode": "tozero"}


def _log_axis_ticks(values: np.ndarray) -> dict[str, Any]:
    """Return ticks at powers of ten if the values cover at least 1.5 decades, else at digits, or between these."""
    positive = values[np.isfinite(values) & (values > 0)].astype(np.float64)
    decades = math.log10(positive.max() / positive.min()) if positive.size else 0.0
    if 0 < decades < NARROW_DECADES:
        return {"tickformat": "~g"}
    if positive.size and decades < 1.5:
        return {"tickformat": "~g", "dtick": "D2"}
    tickfont = {"size": style.POWER_TICK_SIZE}
    return {"exponentformat": "power", "dtick": max(1, math.ceil(decades / 6)), "tickfont": tickfont}


def mark_step(figure: Figure, step: int, dark: bool = False) -> Figure:
    """Return the figure with a vertical line at a step, or unchanged if x is not a step."""
    if figure["layout"]["xaxis"]["title"]["text"] != "step":
        return figure
    line = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": step,
        "x1": step,
        "y0": 0,
        "y1": 1,
        "line": {"color": "#ff5252" if dark else "#d50000", "width": 1.5, "dash": "dot"},
    }
    return _with_shapes(figure, [line])


def mark_stretches(figure: Figure, stretches: Sequence[tuple[int, int]], dark: bool = False) -> Figure:
    """Return a figure with a thin bar above the plot over each stretch of steps; unchanged if x is not the step.

    Args:
      figure: any figure.
      stretches: first and last step of each.
      dark: whether the page is dark.
    """
    if figure["layout"]["xaxis"]["title"]["text"] != "step":
        return figure
    bars = [
        {
            "type": "rect",
            "x0": first - 0.5,
            "x1": last + 0.5,
            "yref": "paper",
            "y0": 1.0,
            "y1": 1.02,
            "line": {"width": 0},
            "fillcolor": style.secondary_text_colour(dark),
        }
        for first, last in stretches
    ]
    return _with_shapes(figure, bars)


def _with_shapes(figure: Figure, shapes: list[dict[str, Any]]) -> Figure:
    layout = figure["layout"]
    return {**figure, "layout": {**layout, "shapes": [*layout.get("shapes", ()), *shapes]}}
