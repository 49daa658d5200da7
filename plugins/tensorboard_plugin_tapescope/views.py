"""The views of one run: which tables each needs, and which figures it is made of."""

from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope import details, figures, metadata, tables
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


def flow(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Layers x steps of one column."""
    run, name = query.runs[0], query.column or "gradient_norm"
    column, found = COLUMNS[name], grid(snapshot, run, name)
    heading = figures.title(column)
    if found is None or not np.isfinite(found.values).any():
        return [Panel("flow", heading, empty=absent(run, name, found is not None), wide=True)]
    order = tables.worst_first(name, found.values) if query.order == "worst" else np.arange(len(found.names))
    values = found.values[:, order]
    figure = figures.heatmap(found.table.steps, [found.names[i] for i in order], values, column, query.dark, query.most)
    sides = "the layer that is worst at the last step" if query.order == "worst" else "the input side"
    note = (
        f"{_sentence(column.definition)} {sides.capitalize()} is at the top. {thinned(found.table.steps, query, name)}"
    )
    return [Panel("flow", heading, figure, note, rows=[found.owners[i] for i in order], wide=True)]


def thinned(steps: np.ndarray, query: Query, column: str) -> str:
    """Says how steps were left out, where they were."""
    if len(steps) <= query.most:
        return f"{len(steps):,} recorded steps."
    kept = "the largest" if COLUMNS[column].scale == "count" else "the last value"
    return f"{len(steps):,} recorded steps, drawn in buckets: {kept} of each. The CSV has them all."


def absent(run: str, column: str, recorded: bool) -> str:
    """Why there is no figure of a column."""
    words = figures.title(COLUMNS[column])
    if recorded:
        return f"Every recorded value of {words} is absent in this run. It is the {COLUMNS[column].definition}."
    return f"This run has no {words}: what wrote it did not measure that. It is the {COLUMNS[column].definition}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def layer(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Everything about one layer, or about a variable of no recorded layer."""
    run = query.runs[0]
    tags = snapshot.runs[run].tags
    layers = tags["layers"].family.names if "layers" in tags else ()
    variables = tags["variables"].family.names if "variables" in tags else ()
    if not layers and not variables:
        return [Panel("layer", "Layer", empty="This run has recorded neither layers nor variables.", wide=True)]
    name = query.layer or [*layers, *variables][0]
    if name not in layers and name not in variables:
        raise Refused(404, f"The run has no layer {quoted(name)}.")
    own = tables.own_variables(tags["layers"].family, name) if name in layers else [variables.index(name)]
    own = [i for i in own if 0 <= i < len(variables)]
    panels = _variable_panels(snapshot, query, own)
    if name in layers:
        panels[1:1] = _output_panels(snapshot, query, layers.index(name))
    return panels


def _variable_panels(snapshot: Snapshot, query: Query, own: list[int]) -> list[Panel]:
    run = query.runs[0]
    table = snapshot.table(run, "variables")
    if table is None or not own:
        return [Panel("gradient_norm", "Gradient norm", empty="This layer has no recorded variable of its own.")]
    names = [table.family.names[i] for i in own]
    panels = []
    for column in ("gradient_norm", "update_ratio", "weight_norm"):
        title = figures.title(COLUMNS[column]).capitalize()
        values = tables.column(table, column)[:, own] if column in table.family.columns else np.zeros((0, len(own)))
        if not np.isfinite(values).any():
            panels.append(Panel(column, title, empty=absent(run, column, bool(len(values)))))
            continue
        figure = figures.series(table.steps, names, values, COLUMNS[column], query.dark, 2 * query.most)
        panels.append(Panel(column, title, figure, _sentence(COLUMNS[column].definition)))
    for name, i in zip(names, own, strict=True):
        panels.append(_distribution(snapshot, query, "gradient", i, f"Gradient of {name}", name))
    return panels


def _output_panels(snapshot: Snapshot, query: Query, index: int) -> list[Panel]:
    table = snapshot.table(query.runs[0], "layers")
    assert table is not None
    parts = [f"activation_{part}" for part in ("mean", "std", "min", "max")]
    panels = []
    if set(parts) <= set(table.family.columns):
        curves = [tables.column(table, part)[:, index] for part in parts]
        if np.isfinite(curves[0]).any():
            figure = details.bands(table.steps, *curves, dark=query.dark, most=2 * query.most)
            note = "Mean of the layer's output, one standard deviation either side, and its smallest and largest."
            panels.append(Panel("output", "Output", figure, note))
    if not panels:
        panels.append(Panel("output", "Output", empty="The moments of this layer's output were not recorded."))
    shares = ("activation_zero", "saturated", "dead_share", "dormant_share")
    held = [c for c in shares if c in tables.column_names(table.family)]
    values = np.stack([tables.column(table, c)[:, index] for c in held], axis=1) if held else np.zeros((0, 0))
    held = [c for c, curve in zip(held, values.T, strict=True) if np.isfinite(curve).any()]
    if held:
        values = values[:, np.isfinite(values).any(axis=0)]
        names = [figures.title(COLUMNS[c]) for c in held]
        figure = figures.series(table.steps, names, values, details.UNIT_SHARE, query.dark, 2 * query.most)
        note = " ".join(_sentence(f"{figures.title(COLUMNS[c])}: {COLUMNS[c].definition}") for c in held)
        panels.append(Panel("shares", "Zero, saturated, dead", figure, note))
    delta = tables.column(table, "delta_norm")[:, [index]] if "delta_norm" in table.family.columns else np.zeros((0, 1))
    if np.isfinite(delta).any():
        column = COLUMNS["delta_norm"]
        figure = figures.series(table.steps, [column.name], delta, column, query.dark, 2 * query.most)
        panels.append(Panel("delta_norm", "Gradient at the output", figure, _sentence(column.definition)))
    panels.append(_distribution(snapshot, query, "activation", index, "Output, as a distribution", "output"))
    return [*panels, _units(snapshot, query, index)]


def _distribution(snapshot: Snapshot, query: Query, kind: str, row: int, title: str, quantity: str) -> Panel:
    table = snapshot.table(query.runs[0], f"{kind}_histogram")
    key = f"{kind}_histogram_{row}"
    if table is None or row >= len(table.family.names) or not table.values[:, row].any():
        return Panel(key, title, empty=f"This run has no {kind} histograms of this layer.")
    figure = details.distribution(table.steps, table.values[:, row], quantity, query.dark, min(query.most, 256))
    note = "Share of the elements by value, on a signed logarithmic axis; light where there are few."
    return Panel(key, title, figure, note)


def _units(snapshot: Snapshot, query: Query, index: int) -> Panel:
    title = "Units"
    table = snapshot.table(query.runs[0], "units")
    if table is None or not len(table.values) or index >= len(table.family.names):
        return Panel("units", title, empty="No window of examples has closed yet, so no unit has a state.", wide=True)
    sizes = tables.units(table.family)
    start = sum(sizes[:index])
    if not sizes[index]:
        return Panel("units", title, empty="The units of this layer are not counted.", wide=True)
    codes = table.values[:, start : start + sizes[index]]
    figure = details.unit_map(table.steps, codes, query.dark, query.most)
    note = "What each unit did in the last full window of examples, at each step where one closed."
    return Panel("units", title, figure, note, wide=True)


def budget(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Where the gradient was lost between the loss and the first layer, over the steps first .. last."""
    table = snapshot.table(query.runs[0], "layers")
    title = "Backward gain from the loss to the first layer"
    held = table is not None and {"flow_gate", "flow_weight"} <= set(table.family.columns)
    gains = [tables.column(table, c) for c in ("flow_gate", "flow_weight")] if table is not None and held else []
    if table is None or not gains or not any(np.isfinite(g).any() for g in gains):
        words = "This run has no flow budget: what wrote it did not measure the gains of gates and weights."
        return [Panel("budget", title, empty=words, wide=True)]
    first, last = _range(table.steps, query)
    inside = (table.steps >= first) & (table.steps <= last)
    if not inside.any():
        raise Refused(404, f"No step from {first} to {last} was recorded.")
    gate, weight = (_mean(g[inside]) for g in gains)
    figure = details.budget(table.family.names, gate, weight, query.dark)
    return [Panel("budget", title, figure, _budget_words(table, gate, weight, table.steps[inside]), wide=True)]


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


def _budget_words(table: Table, gate: np.ndarray, weight: np.ndarray, steps: np.ndarray) -> str:
    total = np.nan_to_num(gate) + np.nan_to_num(weight)
    least = int(np.argmin(total))
    at = (
        f"step {steps[0]:,}"
        if len(steps) == 1
        else f"the mean of {len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"
    )
    change = "gains" if total.sum() > 0 else "loses"
    words = f"At {at} the gradient {change} {abs(total.sum()):.2f} decades on its way to the first layer"
    if total[least] >= 0:
        return f"{words}; no layer takes any away."
    part = "its activation" if np.nan_to_num(gate[least]) < np.nan_to_num(weight[least]) else "its weights"
    return f"{words}; {table.family.names[least]} costs most, {-total[least]:.2f} decades, mainly by {part}."
