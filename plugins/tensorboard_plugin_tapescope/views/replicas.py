"""The view Replicas: where the replicas of a run differ, and how throughput scales with their number."""

import math

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.style import run_colours
from tensorboard_plugin_tapescope.series import scaling, tables
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table
from tensorboard_plugin_tapescope.views.panel import Panel, definition_sentence
from tensorboard_plugin_tapescope.views.query import Query, RequestError, quote

TITLES = {
    "replica_norm": "Gradient norm by replica",
    "replica_cosine": "Cosine to the mean gradient",
    "replica_sign": "Sign agreement with the mean",
}


def replicas(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return the differences between the first run's replicas, its noise scale, and the scaling of all runs."""
    table = snapshot.table(query.runs[0], "replicas")
    if table is None or not len(table.values) or tables.replicas(table.family) < 2:
        empty = "This run was trained on one replica. Train with a strategy of two or more replicas to compare them."
        panels = [Panel("one", "Replicas", empty=empty, wide=True)]
    else:
        panels = _differences(table, query)
    return [*panels, _noise_scale(snapshot, query), _scaling(snapshot, query)]


def _differences(table: Table, query: Query) -> list[Panel]:
    names = table.family.names
    if query.variable and query.variable not in names:
        raise RequestError(404, f"The run has no variable {quote(query.variable)}.")
    labels = [f"replica {replica}" for replica in range(tables.replicas(table.family))]
    panels = []
    for name, title in TITLES.items():
        if name not in table.family.columns:
            continue
        column = COLUMNS[name]
        values = tables.column(table, name)
        if query.variable:
            curves = values[:, :, names.index(query.variable)]
            scope = f"Variable: {query.variable}."
        elif name == "replica_norm":
            curves = np.sqrt(np.nansum(np.square(values, dtype=np.float64), axis=2))
            scope = "Over all variables."
        else:
            curves = tables.finite_mean(values, axis=2)
            scope = "Mean over all variables."
        max_steps = 2 * query.max_steps
        figure = basic.line_chart(table.steps, labels, curves.astype(np.float32), column, query.dark, max_steps)
        panels.append(Panel(name, title, figure, f"{definition_sentence(column.definition)} {scope}"))
    return panels


def _noise_scale(snapshot: Snapshot, query: Query) -> Panel:
    table = snapshot.table(query.runs[0], "step")
    name = "noise_scale_total"
    title = "Gradient noise scale"
    if table is None or name not in table.family.columns or not np.isfinite(tables.column(table, name)).any():
        return Panel("noise", title, empty="The noise scale needs two or more replicas.", wide=True)
    values = tables.column(table, name)[:, None]
    figure = basic.line_chart(table.steps, [name], values, COLUMNS[name], query.dark, 2 * query.max_steps)
    note = "Batch size beyond which more examples a step help little (McCandlish et al. 2018)."
    return Panel("noise", title, figure, note)


def _scaling(snapshot: Snapshot, query: Query) -> Panel:
    title = "Scaling across runs"
    rates = {}
    numbers = {}
    for run in query.runs:
        rate = _unmeasured_rate(snapshot.table(run, "step"))
        status = snapshot.last_record(run, "status")
        number = tables.count(tables.status(status).get("replicas")) if status is not None else None
        if number is not None and rate > 0:
            rates[run] = rate
            numbers[run] = number
    if len(set(numbers.values())) < 2:
        empty = "Tick runs of the same program with different numbers of replicas to compare their throughput."
        return Panel("scaling", title, empty=empty, wide=True)
    figure = layer_figures.scaling_chart(
        names=list(rates),
        replicas=np.array(list(numbers.values()), np.float64),
        rate=np.array(list(rates.values())),
        dark=query.dark,
        colours=run_colours(rates, snapshot.runs),
    )
    note = "Examples per second of steps that are not measured. The percentage is the scaling efficiency."
    return Panel("scaling", title, figure, note, wide=True)


def _unmeasured_rate(table: Table | None) -> float:
    """Return examples per second of steps that are not measured, NaN if unknown."""
    if table is None or not {"examples_seen", "step_ms"} <= set(table.family.columns) or len(table.steps) < 2:
        return math.nan
    examples_seen = tables.column(table, "examples_seen")
    rate = scaling.unmeasured_rate(table.steps, examples_seen, tables.column(table, "step_ms"))
    return rate if math.isfinite(rate) else math.nan
