"""The views of one run: which tables each needs, and which figures it is made of."""

from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope import details, figures, look, metadata, tables
from tensorboard_plugin_tapescope.query import Panel, Query, Refused, quoted
from tensorboard_plugin_tapescope.records import Snapshot
from tensorboard_plugin_tapescope.tables import COLUMNS, Table

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
        return matched_by(self.names, self.owners)


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
    owner = {i: layer for layer in layers.names for i in tables.own_variables(layers, layer)}
    return tuple(owner.get(i, name) for i, name in enumerate(names))


def matched_by(names: tuple[str, ...], owners: tuple[str, ...]) -> tuple[str, ...]:
    """`output/kernel` for `my_model/output/kernel` of layer `output`; the names where that is not unambiguous."""
    keys = tuple(n if n == o else f"{o}/{n.rsplit('/', 1)[-1]}" for n, o in zip(names, owners, strict=True))
    return keys if len(set(keys)) == len(keys) else names


def flow(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Layers x steps of one column."""
    run, name = query.runs[0], query.column or "gradient_norm"
    column, found = COLUMNS[name], grid(snapshot, run, name)
    heading = look.title(column).capitalize()
    if found is None or not np.isfinite(found.values).any():
        return [Panel("flow", heading, empty=absent(name, found and found.table), wide=True)]
    order = tables.worst_first(name, found.values) if query.order == "worst" else np.arange(len(found.names))
    values = found.values[:, order]
    figure = figures.heatmap(found.table.steps, [found.names[i] for i in order], values, column, query.dark, query.most)
    sides = "the layer that is worst at the last step" if query.order == "worst" else "the input side"
    note = (
        f"{sentence(column.definition)} {sides.capitalize()} is at the top. {thinned(found.table.steps, query, name)}"
    )
    return [Panel("flow", heading, figure, note, rows=[found.owners[i] for i in order], wide=True)]


def thinned(steps: np.ndarray, query: Query, column: str) -> str:
    """Says how steps were left out, where they were."""
    if len(steps) <= query.most:
        return f"{len(steps):,} recorded steps."
    kept = "the largest" if COLUMNS[column].scale == "count" else "the last value"
    return f"{len(steps):,} recorded steps, drawn in buckets: {kept} of each. The CSV has all."


def absent(column: str, table: Table | None) -> str:
    """Why there is no figure of a column: its table has none, or holds no finite value of it."""
    words = look.title(COLUMNS[column])
    if table is not None and not len(table.values):
        return f"The records of {table.family.tag} do not have the shape that they declare, so none could be read."
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
    held = [part for part in details.BUDGET if table is not None and part in table.family.columns]
    gains = {part: tables.column(table, part) for part in held} if table is not None else {}
    if table is None or not any(np.isfinite(g).any() for g in gains.values()):
        words = "This run has no flow budget: what wrote it did not measure the gains of gates and weights."
        return [Panel("budget", title, empty=words, wide=True)]
    first, last = _range(table.steps, query)
    inside = (table.steps >= first) & (table.steps <= last)
    if not inside.any():
        raise Refused(404, f"No step from {first} to {last} was recorded.")
    path = tables.backward_path(table.family)
    if not path:
        words = "No recorded layer feeds the last one, so there is no way on which the gradient could be lost."
        return [Panel("budget", title, empty=words, wide=True)]
    means = {part: np.nan_to_num(_mean(gain[inside])[path]) for part, gain in gains.items()}
    names = [table.family.names[i] for i in path]
    figure = details.budget(names, means, query.dark)
    words = _budget_words(names, means, table.steps[inside])
    beside = len(table.family.names) - len(path) - 1
    words += f" {beside} layers lie beside this path, or before its end." if beside > 0 else ""
    return [Panel("budget", title, figure, words, rows=names, wide=True)]


def _range(steps: np.ndarray, query: Query) -> tuple[int, int]:
    """The steps asked for; where none is, the last that was recorded."""
    if query.first is None and query.last is None:
        return int(steps[-1]), int(steps[-1])
    return query.first or 0, 2**62 if query.last is None else query.last


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is finite, NaN where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(axis=0) / np.where(finite.any(axis=0), finite.sum(axis=0), np.nan)


def _budget_words(names: list[str], means: dict[str, np.ndarray], steps: np.ndarray) -> str:
    """The total in words, and the layer and part that cost most."""
    at = f"step {steps[-1]:,}"
    if len(steps) > 1:
        at = f"the mean of {len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"
    total = np.sum(list(means.values()), axis=0)
    change = "gains" if total.sum() > 0 else "loses"
    words = f"At {at} the gradient {change} {abs(total.sum()):.2f} decades on its way from the loss to the first layer"
    least = int(np.argmin(total))
    if total[least] >= 0:
        return f"{words}; no layer takes any away."
    part = details.BUDGET[min(means, key=lambda part: means[part][least])][0]
    return f"{words}; {names[least]} costs most, {-total[least]:.2f} decades, mainly by {part}."
