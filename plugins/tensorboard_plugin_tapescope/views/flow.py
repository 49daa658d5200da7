"""The views of one run: which tables each needs, and which figures it is made of."""

from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.series import flow_path, matching, tables
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table
from tensorboard_plugin_tapescope.views.query import Panel, Query, Refused, quoted

FAMILIES = ("variables", "layers")
"""Families that have a column a layer or variable and step, those that Flow and Compare show."""

GRID_COLUMNS = {c.name for c in metadata.VARIABLE_COLUMNS + metadata.LAYER_COLUMNS} | set(tables.DERIVED)


class Grid(NamedTuple):
    """One column of a run over its rows and steps."""

    table: Table
    values: np.ndarray
    """[T, N]"""
    owners: tuple[str, ...]
    """The layer that each row belongs to, or the row's own name."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.table.family.names

    @property
    def keys(self) -> tuple[str, ...]:
        """What a row is matched by in another run: a variable's own name may begin with its model's."""
        return matching.matching_keys(self.names, self.owners)


def grid(snapshot: Snapshot, run: str, column: str) -> Grid | None:
    """A column of `variables` or `layers`, None where the run has none. Refused where it is of another kind."""
    for family in FAMILIES:
        tag = snapshot.runs[run].tags.get(family)
        if tag and column in tables.column_names(tag.family):
            table = snapshot.table(run, family)
            assert table is not None
            return Grid(table, tables.column(table, column), owners(snapshot, run, family))
    if column not in GRID_COLUMNS:
        raise Refused(404, f"column {quoted(column)} is not one of a layer or variable.")
    return None


def owners(snapshot: Snapshot, run: str, family: str) -> tuple[str, ...]:
    """The layer behind each row of a family; a variable of no recorded layer stands for itself."""
    tags = snapshot.runs[run].tags
    names = tags[family].family.names
    if family == "layers" or "layers" not in tags:
        return names
    layers = tags["layers"].family
    return matching.row_owners(names, layers.names, tables.owned_variables(layers))


def flow(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Layers x steps of one column."""
    run, name = query.runs[0], query.column or "gradient_norm"
    column, found = COLUMNS[name], grid(snapshot, run, name)
    heading = style.column_title(column).capitalize()
    if found is None or not np.isfinite(found.values).any():
        return [Panel("flow", heading, empty=absent(name, found and found.table), wide=True)]
    order = tables.worst_first(name, found.values) if query.order == "worst" else np.arange(len(found.names))
    values = found.values[:, order]
    figure = basic.heatmap(found.table.steps, [found.names[i] for i in order], values, column, query.dark, query.max_steps)
    sides = "the layer that is worst at the last step" if query.order == "worst" else "the input side"
    note = f"{sentence(column.definition)} {sides.capitalize()} is at the top. {drawn(found, query, name)}"
    return [Panel("flow", heading, figure, note, rows=[found.owners[i] for i in order], wide=True)]


def drawn(grid: Grid, query: Query, column: str) -> str:
    """Says how many steps a heatmap shows, how some were left out, and what grey is, where there is any."""
    steps = grid.table.steps
    words = f"{len(steps):,} recorded step{'s' if len(steps) > 1 else ''}"
    if (width := basic.bucket_width(steps, query.max_steps)) > 1:
        kept = "the largest" if COLUMNS[column].scale == "count" else "the last"
        words += f", drawn in buckets of {width:,} steps, {kept} value of each: drag over a range to see it in full"
    return f"{words}.{'' if np.isfinite(grid.values).all() else ' Grey: absent, or not a number.'}"


def absent(column: str, table: Table | None) -> str:
    """Why there is no figure of a column: its table has none, or holds no finite value of it."""
    words = style.column_title(COLUMNS[column])
    if table is not None and not len(table.values):
        return f"This run has no record of {table.family.tag} here, or none of the shape that it declares."
    if table is not None:
        return f"Every recorded value of {words} is absent in this run. It is the {COLUMNS[column].definition}."
    return f"This run has no {words}: what wrote it did not measure that. It is the {COLUMNS[column].definition}."


def sentence(text: str) -> str:
    """A definition with a capital and a full stop."""
    return text[:1].upper() + text[1:] + "."


def budget(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Where the gradient was lost between the loss and the first layer, over the steps first .. last."""
    table = snapshot.table(query.runs[0], "layers")
    title = "Backward gain from the loss to the first layer"
    held = [part for part in layer_figures.BUDGET_PARTS if table is not None and part in table.family.columns]
    gains = {part: tables.column(table, part) for part in held} if table is not None else {}
    if table is None or not any(np.isfinite(g).any() for g in gains.values()):
        words = "This run has no flow budget: what wrote it did not measure the gains of gates and weights."
        return [Panel("budget", title, empty=words, wide=True)]
    inside = slice(None) if query.ranged else slice(-1, None)  # the steps asked for, or the last that was recorded
    budget = flow_path.flow_budget({part: g[inside] for part, g in gains.items()}, table.family.details.get("sources"))
    if not budget.path:
        words = "No recorded layer feeds the last one, so there is no way on which the gradient could be lost."
        return [Panel("budget", title, empty=words, wide=True)]
    names = [table.family.names[i] for i in budget.path]
    figure = layer_figures.flow_budget(names, budget.gains, query.dark)
    kinds = tables.activation_adjectives(table.family)
    words = _budget_words(names, [kinds[i] for i in budget.path], budget.gains, table.steps[inside])
    beside = len(table.family.names) - len(budget.path) - 1
    words += f" {beside} layers lie beside this path, or before its end." if beside > 0 else ""
    return [Panel("budget", title, figure, words, rows=names, wide=True)]


def _budget_words(names: list[str], kinds: list[str], means: dict[str, np.ndarray], steps: np.ndarray) -> str:
    """The total in words, and the layer and part that cost most."""
    at = f"step {steps[-1]:,}"
    if len(steps) > 1:
        at = f"the mean of {len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"
    total = np.sum(list(means.values()), axis=0)
    change = "gains" if total.sum() > 0 else "loses"
    words = f"At {at} the gradient {change} {decades(total.sum())} on its way from the loss to the first layer"
    least = int(np.argmin(total))
    if total[least] >= 0:
        return f"{words}; no layer takes any away."
    part = layer_figures.BUDGET_PARTS[min(means, key=lambda part: means[part][least])][0]
    return f"{words}. The {kinds[least]}layer {names[least]} costs it most, {decades(total[least])}, mainly by {part}."


def decades(gain: float) -> str:
    """`2.10 decades (a factor of 126)` for a gain, whatever its sign."""
    return f"{abs(gain):.2f} decades (a factor of {10 ** min(abs(gain), 300):.3g})"
