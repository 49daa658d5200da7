"""The view Layer: gradients, weights, output and units of one layer."""

import math
from collections.abc import Sequence

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic, distributions, style
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.series import smoothing, tables, unit_lives
from tensorboard_plugin_tapescope.series.tables import COLUMNS
from tensorboard_plugin_tapescope.views.panel import Panel, define, definition_sentence, explain_absence
from tensorboard_plugin_tapescope.views.query import Query, RequestError, quote

UNIT_STATES = (
    "Alive: not one of the following. Dormant: mean output below 2.5 % of the layer's. Dead: the output, or a bounded "
    "function's derivative, exactly 0 on every example. Saturated low, high: saturated on every example, at the lower "
    "or upper end. Always on: never 0 and never saturated. Revived: dead in the window before, and not in this."
)
"""Definitions of `metadata.UNIT_STATES`."""

SHARES = ("activation_zero", "saturated", "dead_share", "dormant_share")


def layer(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return all figures of a layer, or of a variable that belongs to no recorded layer."""
    tags = snapshot.runs[query.runs[0]].tags
    layers = tags["layers"].family.names if "layers" in tags else ()
    variables = tags["variables"].family.names if "variables" in tags else ()
    if not layers and not variables:
        return [Panel("layer", "Layer", empty="This run has recorded neither layers nor variables.", wide=True)]
    name = query.layer or [*layers, *variables][0]
    if name not in layers and name not in variables:
        raise RequestError(404, f"The run has no layer {quote(name)}.")
    if name in layers:
        owned = tables.owned_variables(tags["layers"].family)[layers.index(name)]
        rows = [row for row in owned if row < len(variables)]
    else:
        rows = [variables.index(name)]
    gradients = [_variables(snapshot, query, rows, column) for column in ("gradient_norm", "update_ratio")]
    weights = _variables(snapshot, query, rows, "weight_norm")
    histograms = [_distribution(snapshot, query, "gradient", row, f"Gradient of {variables[row]}") for row in rows]
    if name not in layers:
        return [*gradients, weights, *histograms]
    index = layers.index(name)
    return [
        *gradients,
        _output(snapshot, query, index),
        _shares(snapshot, query, index),
        _distribution(snapshot, query, "activation", index, "Distribution of the output"),
        *histograms[:1],
        _units(snapshot, query, index),
        _lines(snapshot, query, "layers", [index], "delta_norm", "Gradient at the output", ["delta_norm"]),
        weights,
        *histograms[1:],
    ]


def _variables(snapshot: Snapshot, query: Query, rows: list[int], column: str) -> Panel:
    title = style.column_title(COLUMNS[column]).capitalize()
    if not rows:
        return Panel(column, title, empty="This layer has no recorded variables.")
    names = snapshot.runs[query.runs[0]].tags["variables"].family.names
    return _lines(snapshot, query, "variables", rows, column, title, [names[row] for row in rows])


def _lines(
    snapshot: Snapshot, query: Query, family: str, rows: list[int], column: str, title: str, names: Sequence[str]
) -> Panel:
    """Return one column of some rows of a family as lines."""
    table = snapshot.table(query.runs[0], family)
    if table is None or column not in table.family.columns:
        return Panel(column, title, empty=explain_absence(column, None))
    values = tables.column(table, column)[:, rows]
    if not np.isfinite(values).any():
        return Panel(column, title, empty=explain_absence(column, table))
    note = definition_sentence(COLUMNS[column].definition)
    if COLUMNS[column].scale == "log" and (values == 0).any():
        if not (values > 0).any():
            empty = f"No recorded value is above 0, and a logarithmic axis has no place for 0. {note}"
            return Panel(column, title, empty=empty)
        note += " Values of 0 are gaps."
    weight = smoothing.smoothing_weight(column, query.smoothing, len(table.steps))
    max_steps = 2 * query.max_steps
    figure = basic.line_chart(table.steps, names, values, COLUMNS[column], query.dark, max_steps, smoothing=weight)
    return Panel(column, title, figure, note, help=define(column))


def _output(snapshot: Snapshot, query: Query, index: int) -> Panel:
    table = snapshot.table(query.runs[0], "layers")
    columns = [f"activation_{moment}" for moment in ("mean", "std", "min", "max")]
    if table is None or not set(columns) <= set(table.family.columns):
        return Panel("output", "Output", empty="The output of this layer was not measured.")
    mean, std, low, high = (tables.column(table, column)[:, index] for column in columns)
    if not np.isfinite(mean).any():
        return Panel("output", "Output", empty="No record has a finite output of this layer.")
    max_steps = 2 * query.max_steps
    figure = layer_figures.output_bands(table.steps, mean, std, low, high, dark=query.dark, max_steps=max_steps)
    note = (
        "Mean of the layer's output, with bands of one standard deviation and from the smallest value to the largest."
    )
    return Panel("output", "Output", figure, note, help=define(*columns))


def _shares(snapshot: Snapshot, query: Query, index: int) -> Panel:
    table = snapshot.table(query.runs[0], "layers")
    title = "Zero, saturated, dead, dormant"
    curves = {}
    if table is not None:
        columns = [column for column in SHARES if column in tables.column_names(table.family)]
        curves = {column: tables.column(table, column)[:, index] for column in columns}
    curves = {column: curve for column, curve in curves.items() if np.isfinite(curve).any()}
    if table is None or not curves:
        return Panel("shares", title, empty="No share of zeros, saturated or dead units was recorded for this layer.")
    names = [style.column_title(COLUMNS[column]) for column in curves]
    values = np.stack(list(curves.values()), axis=1)
    unit_share = layer_figures.UNIT_SHARE
    definitions = [COLUMNS[column].definition for column in curves]
    weights = [smoothing.smoothing_weight(column, query.smoothing, len(table.steps)) for column in curves]
    max_steps = 2 * query.max_steps
    figure = basic.line_chart(table.steps, names, values, unit_share, query.dark, max_steps, definitions, weights)
    note = "Share of the layer's outputs that are zero or saturated, and of its units that are dead or dormant."
    return Panel("shares", title, figure, note, help=define(*curves))


def _distribution(snapshot: Snapshot, query: Query, kind: str, row: int, title: str) -> Panel:
    table = snapshot.table(query.runs[0], f"{kind}_histogram")
    key = f"{kind}_histogram_{row}"
    if table is None or row >= len(table.family.names):
        return Panel(key, title, empty=f"This run has no {kind} histograms of this layer.")
    if not table.values[:, row].any():
        return Panel(key, title, empty="No record has a finite element to count.")
    quantity = "gradient" if kind == "gradient" else "output"
    counts = table.values[:, row]
    figure = distributions.distribution(table.steps, counts, quantity, query.dark, query.max_steps // 2)
    return Panel(key, title, figure, "Share of the elements by value, on a signed logarithmic axis.")


def _units(snapshot: Snapshot, query: Query, index: int) -> Panel:
    table = snapshot.table(query.runs[0], "units")
    if table is None or not len(table.values) or index >= len(table.family.names):
        empty = "Units have no states yet: no window of examples has closed."
        return Panel("units", "Units", empty=empty, wide=True)
    sizes = tables.units(table.family)
    if not sizes[index]:
        return Panel("units", "Units", empty="The units of this layer are not counted.", wide=True)
    start = sum(sizes[:index])
    codes = table.values[:, start : start + sizes[index]]
    figure = layer_figures.unit_map(table.steps, codes, query.dark, query.max_steps)
    note = "State of each unit in the last full window of examples, at each step where a window closed. "
    note += unit_lives.describe_lives(codes, _window_examples(snapshot, query.runs[0]))
    if sizes[index] > layer_figures.MAX_UNITS:
        note += f" Of {sizes[index]:,} units at most {layer_figures.MAX_UNITS:,} are drawn, evenly spaced."
    return Panel("units", "Units", figure, note, wide=True, help=UNIT_STATES)


def _window_examples(snapshot: Snapshot, run: str) -> float:
    """Return the examples in the last window that closed, NaN if unknown."""
    step = snapshot.table(run, "step")
    if step is None or not len(step.values) or "window_examples" not in step.family.columns:
        return math.nan
    return float(tables.column(step, "window_examples")[-1])
