"""What is new of a figure: a page that has the rest puts it behind that, see static/newer.js."""

from typing import Any

from tensorboard_plugin_tapescope.figures.csv_export import array
from tensorboard_plugin_tapescope.figures.style import Figure, typed

ALONG = {"heatmap": ("x", "z", "customdata", "text"), "scatter": ("x", "y", "customdata")}
"""The arrays of a trace whose last axis is that of the steps."""


def since(figure: Figure, step: int) -> Figure:
    """The figure with only what lies at or after a step; of another x axis than steps, all of it.

    `begins` is the x at which each whole trace begins: it changes when the columns of a heatmap become wider.
    """
    if figure["layout"]["xaxis"]["title"]["text"] != "step":
        return figure
    begins = [float(x[0]) if len(x) else None for x in (array(trace["x"]) for trace in figure["data"])]
    data = [_trace(trace, step) for trace in figure["data"]]
    return {**figure, "data": data, "since": step, "begins": begins}


def _trace(trace: dict[str, Any], step: int) -> dict[str, Any]:
    new = array(trace["x"]) >= step
    return trace | {name: _cut(trace[name], new) for name in ALONG[trace["type"]] if name in trace}


def _cut(values: Any, new: Any) -> Any:
    kept = array(values)[..., new]
    return typed(kept) if isinstance(values, dict) else kept.tolist()
