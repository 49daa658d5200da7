"""The view Flow: one column of a run as a heatmap of layers or variables by steps."""

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures.colour_scale import colour_range
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.tables import COLUMNS
from tensorboard_plugin_tapescope.views.grid import describe_heatmap, read_grid
from tensorboard_plugin_tapescope.views.panel import Panel, define, definition_sentence, explain_absence
from tensorboard_plugin_tapescope.views.query import Query

ROW_ORDERS = {
    "forward": "The layer next to the input is at the top.",
    "worst": "The layer with the worst value at the last step is at the top.",
}


def flow(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return the heatmap of one column."""
    name = query.column or "gradient_norm"
    column = COLUMNS[name]
    title = style.column_title(column).capitalize()
    grid = read_grid(snapshot, query.runs[0], name)
    if grid is None or not np.isfinite(grid.values).any():
        empty = explain_absence(name, None if grid is None else grid.table)
        return [Panel("flow", title, empty=empty, wide=True)]
    order = np.arange(len(grid.names))
    if query.order == "worst":
        order = tables.worst_first(name, grid.values)
    colours = colour_range(column, grid.values)
    figure = basic.heatmap(
        grid.table.steps,
        [grid.names[i] for i in order],
        grid.values[:, order],
        column,
        dark=query.dark,
        max_steps=query.max_steps,
        colours=colours,
    )
    described = describe_heatmap(grid, query, name, colours)
    note = f"{definition_sentence(column.definition)} {ROW_ORDERS[query.order]} {described}"
    return [Panel("flow", title, figure, note, rows=[grid.owners[i] for i in order], wide=True, help=define(name))]
