"""A Run drawn: the figures of the Gradients tab, from the same functions, for `run.plot`, notebooks and the report."""

import html
from typing import TYPE_CHECKING

import numpy as np

from tapescope.capture import layer_graph
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, distributions
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.style import Figure

if TYPE_CHECKING:
    from tapescope.storage.run import Run

_SEVERITY = {"error": "#d93025", "warning": "#b06000", "info": "#5f6368"}
"""Colours that are read on a light page and on a dark one."""

_FIRST_NONFINITE = metadata.Column("first_nonfinite", "index of the first layer with a NaN or Inf, or -1", "layer")


def plot(run: "Run", column: str, row: str | None = None, dark: bool = False) -> Figure:
    """The figure of one column as a dict that plotly draws.

    Args:
      run: what to draw.
      column: its name on the wire; "flow_budget" draws the budget at the last step.
      row: a variable or layer. Needed for histograms and "unit_state"; elsewhere it draws that row alone.
      dark: for a dark page.

    Raises ValueError where a row is needed, or is not in the run, and KeyError for a column that is not.
    """
    if column == "flow_budget":
        return budget(run, dark)
    if column == "unit_state":
        steps, states = run.units(_required(row, column))
        return layer_figures.unit_map(steps, states, dark)
    values = run[column]
    if column.endswith("_histogram"):
        index = _index(run.rows(column), _required(row, column))
        return distributions.distribution(run.steps, values[:, index], column.removesuffix("_histogram"), dark)
    described = metadata.COLUMNS.get(column, metadata.Column(column, ""))
    if values.ndim == 1:
        return basic.line_chart(run.steps, [column], values[:, None], described, dark)
    if column == "first_nonfinite":
        return basic.line_chart(run.steps, ["forward", "backward"], values, _FIRST_NONFINITE, dark)
    names = run.rows(column)
    if values.ndim == 3:  # of the replicas
        index = _index(names, _required(row, column))
        replicas = [f"replica {i}" for i in range(values.shape[1])]
        return basic.line_chart(run.steps, replicas, values[:, :, index], described, dark)
    if row is not None:
        index = _index(names, row)
        return basic.line_chart(run.steps, [row], values[:, [index]], described, dark)
    return basic.heatmap(run.steps, names, values, described, dark)


def budget(run: "Run", dark: bool = False, last: int = 10) -> Figure:
    """The flow budget of the whole path, averaged over the last records (the parts are logarithms)."""
    columns = {name: _mean(run[name][-last:]) for name in layer_figures.BUDGET_PARTS if name in run.columns}
    sources = run.details.get("sources") or [[i - 1] if i else [] for i in range(len(run.layers))]
    columns.setdefault("flow_between", np.full(len(run.layers), np.nan))
    parts = layer_graph.budget(run.layers, columns, sources)
    table = {name: np.array([getattr(p, name.removeprefix("flow_")) for p in parts]) for name in layer_figures.BUDGET_PARTS}
    return layer_figures.flow_budget([p.layer for p in parts], table, dark)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _required(row: str | None, column: str) -> str:
    if row is None:
        raise ValueError(f"`row` is needed to draw {column!r}: the name of a layer or variable")
    return row


def _index(names: tuple[str, ...], row: str) -> int:
    if row not in names:
        raise ValueError(f"`row` ({row!r}) is not in the run; there are: {', '.join(names)}")
    return names.index(row)


def summary(run: "Run") -> str:
    """How a run stands, what it holds and where its loss went, in one line."""
    parts = [" ".join(filter(None, (run.status.get("state", "unknown"), run.status.get("reason"))))]
    if "gradient_norm" not in run.columns:
        return f"{parts[0]}, no record yet"
    parts.append(f"{len(run.steps)} records up to step {run.steps[-1]}")
    parts.append(f"{len(run.layers)} layers, {len(run.variables)} variables")
    losses = run["loss"][np.isfinite(run["loss"])]
    if losses.size:
        parts.append(f"loss {losses[0]:.3g} to {losses[-1]:.3g}")
    return ", ".join(parts)


def summary_html(run: "Run") -> str:
    """The same for a notebook, with what the rules found; all that is not ours is shown as text."""
    lines = [f"<p><b>{html.escape(run.logdir)}</b>: {html.escape(summary(run))}</p>"]
    for found in run.findings:
        colour = _SEVERITY.get(found["severity"], _SEVERITY["info"])
        lines.append(
            f'<li><b style="color:{colour}">{html.escape(found["severity"])}</b> step {found["step"]}: '
            f"{html.escape(found['message'])}. <i>{html.escape(found['advice'])}</i></li>"
        )
    return f"{lines[0]}<ul>{''.join(lines[1:])}</ul>" if lines[1:] else lines[0]
