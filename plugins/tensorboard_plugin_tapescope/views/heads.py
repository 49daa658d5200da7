"""The view Heads: attention heads by layers, one head over steps, and the residual stream of a transformer."""

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic
from tensorboard_plugin_tapescope.figures import heads as head_figures
from tensorboard_plugin_tapescope.figures.colour_scale import colour_range
from tensorboard_plugin_tapescope.figures.style import column_title
from tensorboard_plugin_tapescope.series import heads as head_series
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table
from tensorboard_plugin_tapescope.views.grid import Grid, describe_heatmap
from tensorboard_plugin_tapescope.views.panel import Panel, definition_sentence, explain_absence
from tensorboard_plugin_tapescope.views.query import Query, RequestError, quote

DEFAULT_COLUMN = "attention_entropy"
HEAD_COLUMNS = tuple(column.name for column in metadata.HEAD_COLUMNS)
NO_HEADS = (
    "This run has no attention heads: its model has none of Keras' attention layers with heads, or they were not "
    "measured, or an older version recorded the run."
)


def heads(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return one column of all heads at a step and over steps, all columns of one head, and the residual stream."""
    table = snapshot.table(query.runs[0], "heads")
    if table is None or not table.family.names or not len(table.values):
        return [Panel("heads", "Attention heads", empty=NO_HEADS, wide=True)]
    name = query.column or DEFAULT_COLUMN
    if name not in HEAD_COLUMNS:
        raise RequestError(404, f"column {quote(name)} is not one of an attention head.")
    chosen = query.head
    if chosen and chosen not in table.family.names:
        raise RequestError(404, f"The run has no attention head {quote(chosen)}.")
    if name not in table.family.columns or not np.isfinite(tables.column(table, name)).any():
        missing = Panel("heads", _title(name), empty=explain_absence(name, table), wide=True)
        return [missing, *_lines(table, query, chosen or table.family.names[0]), _residual(snapshot, query)]
    values = tables.column(table, name)
    chosen = chosen or table.family.names[tables.worst_first(name, values)[0]]
    return [
        _map(table, query, name, values, chosen),
        *_lines(table, query, chosen),
        _over_steps(table, query, name, values),
        _residual(snapshot, query),
    ]


def _title(name: str) -> str:
    return column_title(COLUMNS[name]).capitalize()


def _map(table: Table, query: Query, name: str, values: np.ndarray, chosen: str) -> Panel:
    """Return heads by layers at the step that is marked, or the last one; the chosen head has a frame."""
    row = len(table.steps) - 1
    if query.step is not None:
        row = max(0, int(np.searchsorted(table.steps, query.step, side="right")) - 1)
    grid = head_series.by_layer(table.family.names)
    cells = np.where(grid.positions >= 0, values[row][grid.positions], np.nan)
    colours = colour_range(COLUMNS[name], values)
    framed = [(int(i), int(n)) for i, n in np.argwhere(grid.positions == table.family.names.index(chosen))]
    figure = head_figures.head_map(grid.layers, cells, COLUMNS[name], colours, framed, query.dark)
    note = (
        f"{definition_sentence(COLUMNS[name].definition)} At step {int(table.steps[row]):,}. Click on a cell to see "
        "that head over the steps."
    )
    return Panel("heads", f"{_title(name)} by head and layer", figure, note, rows=grid.layers, wide=True)


def _lines(table: Table, query: Query, head: str) -> list[Panel]:
    """Return each column of one head over the steps."""
    index = table.family.names.index(head)
    panels = []
    for name in HEAD_COLUMNS:
        values = tables.column(table, name)[:, [index]] if name in table.family.columns else np.zeros([0, 1])
        if not np.isfinite(values).any() or (COLUMNS[name].scale == "count" and not np.nanmax(values)):
            continue
        figure = basic.line_chart(table.steps, [head], values, COLUMNS[name], query.dark, 2 * query.max_steps)
        panels.append(Panel(name, _title(name), figure, f"{head}: {COLUMNS[name].definition}."))
    return panels


def _over_steps(table: Table, query: Query, name: str, values: np.ndarray) -> Panel:
    column = COLUMNS[name]
    colours = colour_range(column, values)
    names = table.family.names
    figure = basic.heatmap(table.steps, names, values, column, query.dark, query.max_steps, colours)
    note = f"Every head, in forward order. {describe_heatmap(Grid(table, values, names), query, name, colours)}"
    return Panel("over_steps", f"{_title(name)} over steps", figure, note, wide=True)


def _residual(snapshot: Snapshot, query: Query) -> Panel:
    """Return the root mean square of the residual stream by depth and step."""
    name = "residual_rms"
    title = "Residual stream by depth"
    table = snapshot.table(query.runs[0], "residual")
    if table is None or name not in table.family.columns or not np.isfinite(tables.column(table, name)).any():
        return Panel("residual", title, empty=explain_absence(name, table), wide=True)
    values = tables.column(table, name)
    names = table.family.names
    colours = colour_range(COLUMNS[name], values)
    figure = basic.heatmap(table.steps, names, values, COLUMNS[name], query.dark, query.max_steps, colours)
    note = (
        f"{definition_sentence(COLUMNS[name].definition)} Embeddings, then the input of each layer normalization. "
        f"{describe_heatmap(Grid(table, values, names), query, name, colours)}"
    )
    return Panel("residual", title, figure, note, wide=True)
