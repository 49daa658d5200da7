"""Attention heads by layers as colour, at one step."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.figures import style
from tensorboard_plugin_tapescope.figures.basic import ABSENT_COLOURS, row_label_margin
from tensorboard_plugin_tapescope.figures.colour_scale import ColourRange, colour_stops, colour_ticks
from tensorboard_plugin_tapescope.figures.encoding import encode
from tensorboard_plugin_tapescope.figures.style import Figure, column_title, layout, unique_labels, wrap_lines
from tensorboard_plugin_tapescope.metadata import Column

LAYER_PIXELS = 26
FRAME_COLOURS = {False: "#d50000", True: "#ff5252"}
"""Colour of a frame, on a light and a dark page."""
MAX_LABELLED_HEADS = 32
"""With more heads in a layer than these, not all of them are labelled."""


def head_map(
    layers: Sequence[str],
    values: np.ndarray,
    column: Column,
    colours: ColourRange,
    framed: Sequence[tuple[int, int]] = (),
    dark: bool = False,
) -> Figure:
    """Return one column of all heads at one step: a row for each layer, the first at the top, a cell for each head.

    Args:
      layers: names of the L attention layers.
      values: [L, N] with N heads of the layer that has most; NaN where a layer has fewer.
      column: what the values are; not on a logarithmic scale.
      colours: range of the colours.
      framed: layer and number of the heads with a frame.
      dark: whether the page is dark.
    """
    number = "%{z:.1%}" if column.scale == "fraction" else "%{z:.4~g}"
    trace = {
        "type": "heatmap",
        "x": encode(np.arange(values.shape[1])),
        "y": unique_labels(layers, parts=2),
        "z": encode(np.ascontiguousarray(values, np.float32)),
        "meta": {"rows": list(layers), "value": "z"},
        "xgap": 2,
        "ygap": 2,
        "zmin": colours.bottom,
        "zmax": colours.high,
        "colorscale": colour_stops(colours, dark),
        "colorbar": style.colour_bar(column_title(column), dark, **colour_ticks(colours, values)),
        "hovertemplate": f"<b>%{{y}}</b><br>head %{{x}}<br>{column_title(column)} <b>{number}</b>"
        f"<br><br>{wrap_lines(column.definition)}<extra></extra>",
    }
    frames = [
        {
            "type": "rect",
            "x0": head - 0.5,
            "x1": head + 0.5,
            "y0": layer - 0.5,
            "y1": layer + 0.5,
            "line": {"color": FRAME_COLOURS[dark], "width": 2},
        }
        for layer, head in framed
    ]
    xaxis: dict[str, Any] = {"title": "head", "showgrid": False, "zeroline": False, "automargin": False}
    if values.shape[1] <= MAX_LABELLED_HEADS:
        xaxis["dtick"] = 1
    return {
        "data": [trace],
        "layout": layout(
            dark,
            height=int(min(max(LAYER_PIXELS * len(layers) + 110, 220), 640)),
            xaxis=xaxis,
            yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "title": "", "automargin": False},
            margin={"l": row_label_margin(layers), **style.HEATMAP_MARGIN},
            plot_bgcolor=ABSENT_COLOURS[dark],
            shapes=frames,
        ),
    }
