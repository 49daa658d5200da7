"""Grids: one column of a run over its layers or variables and steps, which Flow and Compare draw as heatmaps."""

from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic
from tensorboard_plugin_tapescope.figures.colour_scale import ColourRange
from tensorboard_plugin_tapescope.series import matching, tables
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table
from tensorboard_plugin_tapescope.views.query import Query, RequestError, quote

GRID_FAMILIES = ("variables", "layers")
SELDOM_COLUMNS = {"gradient_cosine", *(column.name for column in metadata.SLOW_COLUMNS)}
"""Columns that most records lack: those that have them are drawn."""
GRID_COLUMNS = {c.name for c in metadata.ALL_VARIABLE_COLUMNS + metadata.ALL_LAYER_COLUMNS} | set(tables.DERIVED)


class Grid(NamedTuple):
    """One column of a run over its rows and steps."""

    table: Table
    values: np.ndarray
    """[T, N]"""
    owners: tuple[str, ...]
    """The layer that each row belongs to, or the row's own name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the rows as recorded."""
        return self.table.family.names

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the rows without the model's own name, by layer and variable: see `matching.matching_keys`."""
        return matching.matching_keys(self.names, self.owners)


def read_grid(snapshot: Snapshot, run: str, column: str, alone: bool = False) -> Grid | None:
    """Return a column of the run's variables or layers, None if the run does not have it.

    Args:
      snapshot: the runs.
      run: the run.
      column: the column.
      alone: whether to keep only this column in memory, for a view of many runs. To change the column takes longer.

    Raises:
      RequestError: the column is not one of a variable or layer.
    """
    for family in GRID_FAMILIES:
        tag = snapshot.runs[run].tags.get(family)
        if tag and column in tables.column_names(tag.family):
            table = snapshot.table(run, family, column if alone else None)
            assert table is not None
            values = tables.column(table, column)
            known = np.isfinite(values).any(1)
            if column in SELDOM_COLUMNS and known.any():
                fields = {name: getattr(table, name)[known] for name in ("steps", "seconds", "values")}
                table, values = table._replace(**fields), values[known]
            return Grid(table, values, row_owners(snapshot, run, family))
    if column not in GRID_COLUMNS:
        raise RequestError(404, f"column {quote(column)} is not one of a layer or variable.")
    return None


def row_owners(snapshot: Snapshot, run: str, family: str) -> tuple[str, ...]:
    """Return the layer of each row of a family; a variable of no recorded layer stands for itself."""
    tags = snapshot.runs[run].tags
    names = tags[family].family.names
    if family == "layers" or "layers" not in tags:
        return names
    layers = tags["layers"].family
    return matching.row_owners(names, layers.names, tables.owned_variables(layers))


def describe_heatmap(grid: Grid, query: Query, column: str, colours: ColourRange) -> str:
    """Return a note on a heatmap: its number of steps, buckets, values beyond its colours, and grey cells."""
    steps = grid.table.steps
    note = f"{len(steps):,} recorded step{'s' if len(steps) > 1 else ''}"
    width = basic.bucket_width(steps, query.max_steps)
    if width > 1:
        kept = "the largest" if COLUMNS[column].scale == "count" else "the last"
        note += f", drawn in buckets of {width:,} steps, {kept} value of each: drag over a range to see all of them"
    sentences = [f"{note}.", colours.note(grid.values)]
    if not np.isfinite(grid.values).all():
        sentences.append(f"{basic.ABSENT_NOTE}.")
    return " ".join(sentence for sentence in sentences if sentence)
