"""The newer part of a figure, for a page that has drawn the rest; static/figure_updates.js joins both."""

from typing import Any

from tensorboard_plugin_tapescope.figures.encoding import decode, encode
from tensorboard_plugin_tapescope.figures.style import Figure

STEP_ARRAYS = {"heatmap": ("x", "z", "customdata", "text"), "scatter": ("x", "y", "customdata")}
"""Arrays of a trace whose last axis is that of the steps, by type of trace."""


def newer_part(figure: Figure, step: int) -> Figure:
    """Return the figure with only the points at or after a step, or all of it where x is not a step.

    The result has two more fields: `since` is the step, and `begins` holds the x at which each whole trace begins. It
    changes when the columns of a heatmap become wider, and the page then asks for the whole figure.
    """
    if figure["layout"]["xaxis"]["title"]["text"] != "step":
        return figure
    starts = [decode(trace["x"])[:1].tolist() for trace in figure["data"]]
    begins = [float(start[0]) if start else None for start in starts]
    return {**figure, "data": [_newer_trace(trace, step) for trace in figure["data"]], "since": step, "begins": begins}


def _newer_trace(trace: dict[str, Any], step: int) -> dict[str, Any]:
    newer = decode(trace["x"]) >= step
    return trace | {name: _select(trace[name], newer) for name in STEP_ARRAYS[trace["type"]] if name in trace}


def _select(values: Any, chosen: Any) -> Any:
    selected = decode(values)[..., chosen]
    return encode(selected) if isinstance(values, dict) else selected.tolist()
