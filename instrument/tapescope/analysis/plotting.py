"""Figures of a finished run: those of the Gradients tab, for `Run.plot`, notebooks and the report."""

import numpy as np

from tapescope.storage.run import Run
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, distributions
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.style import Figure
from tensorboard_plugin_tapescope.series import flow_path, tables

BUDGET_RECORDS = 10
"""Last records over which the flow budget is averaged."""

_FIRST_NONFINITE = metadata.Column("first_nonfinite", "index of the first layer with a NaN or Inf, or -1", "layer")


def plot(run: Run, column: str, row: str | None = None, dark: bool = False) -> Figure:
    """Return the figure of one column as a dict that plotly draws.

    Args:
      run: the run.
      column: its name on the wire; "flow_budget" draws the budget of the last records.
      row: a variable or layer. Needed for histograms and "unit_state"; elsewhere that row alone is drawn.
      dark: whether the page is dark.

    Raises:
      KeyError: the run has no such column.
      ValueError: a row is needed, or the run does not have it.
    """
    if column == "flow_budget":
        return plot_budget(run, dark)
    if column == "unit_state":
        steps, states = run.units(_require_row(row, column))
        return layer_figures.unit_map(steps, states, dark)
    values = read_column(run, column)
    if column.endswith("_histogram"):
        index = _row_index(run.rows(column), _require_row(row, column))
        return distributions.distribution(run.steps, values[:, index], column.removesuffix("_histogram"), dark)
    definition = metadata.COLUMNS.get(column, metadata.Column(column, ""))
    if values.ndim == 1:
        return basic.line_chart(run.steps, [column], values[:, None], definition, dark)
    if column == "first_nonfinite":
        return basic.line_chart(run.steps, ["forward", "backward"], values, _FIRST_NONFINITE, dark)
    names = run.rows(column)
    if values.ndim == 3:
        index = _row_index(names, _require_row(row, column))
        return basic.replica_chart(run.steps, values[:, :, index], definition, dark)
    if row is not None:
        index = _row_index(names, row)
        return basic.line_chart(run.steps, [row], values[:, [index]], definition, dark)
    return basic.heatmap(run.steps, names, values, definition, dark)


def read_column(run: Run, column: str) -> np.ndarray:
    """Return one column as the tab draws it: a norm is NaN where no element of the gradient is finite."""
    if column in tables.NORMS and "gradient_nonfinite" in run.columns:
        return tables.hide_norms_of_none(run[column], run["gradient_nonfinite"])
    return run[column]


def plot_budget(run: Run, dark: bool = False) -> Figure:
    """Return the flow budget of the path of the gradient, averaged over the last records.

    Raises:
      KeyError: the run has no part of the budget.
    """
    columns = {part: run[part][-BUDGET_RECORDS:] for part in flow_path.FLOW_PARTS if part in run.columns}
    if not columns:
        raise KeyError(f"the flow budget needs one of {', '.join(flow_path.FLOW_PARTS)}; {run.logdir} has none of them")
    budget = flow_path.flow_budget(columns, run.details.get("sources"))
    return layer_figures.flow_budget([run.layers[layer] for layer in budget.path], budget.gains, dark)


def _require_row(row: str | None, column: str) -> str:
    if row is None:
        raise ValueError(f"`row` must be the name of a layer or variable to draw {column!r}; got None")
    return row


def _row_index(names: tuple[str, ...], row: str) -> int:
    if row not in names:
        raise ValueError(f"`row` must be one of {', '.join(names)}; got {row!r}")
    return names.index(row)
