"""The view of one layer: its gradients and weights, its output, its units."""

import math
from collections.abc import Sequence

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic, distributions, style
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.series import tables, unit_lives
from tensorboard_plugin_tapescope.series.tables import COLUMNS
from tensorboard_plugin_tapescope.views.flow import absent, sentence
from tensorboard_plugin_tapescope.views.query import Panel, Query, Refused, quoted

SHARES = ("activation_zero", "saturated", "dead_share", "dormant_share")


def layer(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Everything about one layer, or about a variable of no recorded layer."""
    tags = snapshot.runs[query.runs[0]].tags
    layers = tags["layers"].family.names if "layers" in tags else ()
    variables = tags["variables"].family.names if "variables" in tags else ()
    if not layers and not variables:
        return [Panel("layer", "Layer", empty="This run has recorded neither layers nor variables.", wide=True)]
    name = query.layer or [*layers, *variables][0]
    if name not in layers and name not in variables:
        raise Refused(404, f"The run has no layer {quoted(name)}.")
    if name in layers:
        owned = tables.owned_variables(tags["layers"].family)[layers.index(name)]
        own = [i for i in owned if i < len(variables)]
    else:
        own = [variables.index(name)]
    gradient = [_variables(snapshot, query, own, column) for column in ("gradient_norm", "update_ratio")]
    weight = [_variables(snapshot, query, own, "weight_norm")]
    spread = [_distribution(snapshot, query, "gradient", i, f"Gradient of {variables[i]}") for i in own]
    if name not in layers:
        return [*gradient, *weight, *spread]
    index = layers.index(name)
    output = [_output(snapshot, query, index), _shares(snapshot, query, index)]
    output.append(_distribution(snapshot, query, "activation", index, "Output, as a distribution"))
    delta = _column(snapshot, query, "layers", [index], "delta_norm", "Gradient at the output", ["delta_norm"])
    return [*gradient, *output, *spread[:1], _units(snapshot, query, index), delta, *weight, *spread[1:]]


def _variables(snapshot: Snapshot, query: Query, own: list[int], column: str) -> Panel:
    title = style.column_title(COLUMNS[column]).capitalize()
    if not own:
        return Panel(column, title, empty="This layer has no recorded variable of its own.")
    names = snapshot.runs[query.runs[0]].tags["variables"].family.names
    return _column(snapshot, query, "variables", own, column, title, [names[i] for i in own])


def _column(
    snapshot: Snapshot, query: Query, family: str, rows: list[int], column: str, title: str, names: Sequence[str]
) -> Panel:
    """One column of some rows of a family, as lines."""
    table = snapshot.table(query.runs[0], family)
    if table is None or column not in table.family.columns:
        return Panel(column, title, empty=absent(column, None))
    values = tables.column(table, column)[:, rows]
    if not np.isfinite(values).any():
        return Panel(column, title, empty=absent(column, table))
    figure = basic.line_chart(table.steps, names, values, COLUMNS[column], query.dark, 2 * query.max_steps)
    return Panel(column, title, figure, sentence(COLUMNS[column].definition))


def _output(snapshot: Snapshot, query: Query, index: int) -> Panel:
    table = snapshot.table(query.runs[0], "layers")
    parts = [f"activation_{part}" for part in ("mean", "std", "min", "max")]
    if table is not None and set(parts) <= set(table.family.columns):
        curves = [tables.column(table, part)[:, index] for part in parts]
        if np.isfinite(curves[0]).any():
            figure = layer_figures.output_bands(table.steps, *curves, dark=query.dark, max_steps=2 * query.max_steps)
            note = "Mean of the layer's output, one standard deviation either side, and its smallest and largest."
            return Panel("output", "Output", figure, note)
    return Panel("output", "Output", empty="The moments of this layer's output were not recorded.")


def _shares(snapshot: Snapshot, query: Query, index: int) -> Panel:
    table, title = snapshot.table(query.runs[0], "layers"), "Zero, saturated, dead, dormant"
    curves = {}
    for column in SHARES:
        if table is not None and column in tables.column_names(table.family):
            curves[column] = tables.column(table, column)[:, index]
    curves = {column: curve for column, curve in curves.items() if np.isfinite(curve).any()}
    if table is None or not curves:
        return Panel("shares", title, empty="No share of zeros, saturated or dead units was recorded for this layer.")
    names = [style.column_title(COLUMNS[column]) for column in curves]
    values = np.stack(list(curves.values()), axis=1)
    figure = basic.line_chart(table.steps, names, values, layer_figures.UNIT_SHARE, query.dark, 2 * query.max_steps)
    meant = "; ".join(f"{name}: {COLUMNS[column].definition}" for name, column in zip(names, curves, strict=True))
    return Panel("shares", title, figure, sentence(meant))


def _distribution(snapshot: Snapshot, query: Query, kind: str, row: int, title: str) -> Panel:
    table, key = snapshot.table(query.runs[0], f"{kind}_histogram"), f"{kind}_histogram_{row}"
    if table is None or row >= len(table.family.names) or not table.values[:, row].any():
        return Panel(key, title, empty=f"This run has no {kind} histograms of this layer.")
    quantity = "gradient" if kind == "gradient" else "output"
    figure = distributions.distribution(table.steps, table.values[:, row], quantity, query.dark, query.max_steps // 2)
    return Panel(key, title, figure, "Share of the elements by value; the axis is logarithmic, and signed.")


def _units(snapshot: Snapshot, query: Query, index: int) -> Panel:
    table, title = snapshot.table(query.runs[0], "units"), "Units"
    if table is None or not len(table.values) or index >= len(table.family.names):
        return Panel("units", title, empty="No window of examples has closed yet, so no unit has a state.", wide=True)
    sizes = tables.units(table.family)
    start = sum(sizes[:index])
    if not sizes[index]:
        return Panel("units", title, empty="The units of this layer are not counted.", wide=True)
    codes = table.values[:, start : start + sizes[index]]
    figure = layer_figures.unit_map(table.steps, codes, query.dark, query.max_steps)
    note = "What each unit did in the last full window of examples, at each step where one closed. "
    note += unit_lives.describe_lives(codes, _window_examples(snapshot, query.runs[0]))
    if sizes[index] > layer_figures.MAX_UNITS:
        note += f" Of {sizes[index]:,} units at most {layer_figures.MAX_UNITS:,} are drawn, evenly spaced."
    return Panel("units", title, figure, note, wide=True)


def _window_examples(snapshot: Snapshot, run: str) -> float:
    """Examples in the last window that closed; NaN where the run does not say."""
    step = snapshot.table(run, "step")
    if step is None or not len(step.values) or "window_examples" not in step.family.columns:
        return math.nan
    return float(tables.column(step, "window_examples")[-1])
