"""The view Replicas: where the replicas of a run differ, and how throughput scales with their number."""

import functools
import math

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.style import run_colours
from tensorboard_plugin_tapescope.metadata import ALL_VARIABLES
from tensorboard_plugin_tapescope.series import noise_scale, scaling, tables
from tensorboard_plugin_tapescope.series.smoothing import smoothing_weight
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table
from tensorboard_plugin_tapescope.views.panel import Panel, define, definition_sentence
from tensorboard_plugin_tapescope.views.query import Query, RequestError, quote

NOISE_NOTE = (
    "Batch size beyond which more examples a step help little (McCandlish et al. 2018): the ratio of the means of its "
    f"two terms over the last {noise_scale.WINDOW} records, with the 95 % interval."
)

EFFICIENCY = (
    "Scaling efficiency: examples per second and replica, over those of the fastest of the runs with the fewest "
    "replicas."
)

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
    variable = _variable(table, query)
    if variable and variable not in names:
        raise RequestError(404, f"The run has no variable {quote(query.variable)}.")
    panels = []
    for name, title in TITLES.items():
        if name not in table.family.columns:
            continue
        column = COLUMNS[name]
        values = tables.column(table, name)
        if variable:
            curves = values[:, :, names.index(variable)]
            scope = f"Variable: {variable}."
        elif name == "replica_norm":
            curves = np.sqrt(np.nansum(np.square(values, dtype=np.float64), axis=2))
            scope = "Over all variables."
        elif len(names) == 1:
            curves = values[:, :, 0]
            scope = "Over all variables."
        else:
            curves = tables.finite_mean(values, axis=2)
            scope = "Mean over all variables."
        weight = smoothing_weight(name, query.smoothing, len(table.steps))
        curves = curves.astype(np.float32)
        figure = basic.replica_chart(table.steps, curves, column, query.dark, query.max_steps, weight)
        if curves.shape[1] > basic.MOST_REPLICA_ROWS:
            scope += f" The {basic.OUTLIERS} replicas farthest from the median are drawn by themselves."
        note = f"{definition_sentence(column.definition)} {scope}"
        panels.append(Panel(name, title, figure, note, help=define(name)))
    return panels


def _variable(table: Table, query: Query) -> str:
    """Return the variable that was asked for; "" for all together, as many replicas are always compared."""
    return "" if table.family.names == (ALL_VARIABLES,) else query.variable


def _noise_scale(snapshot: Snapshot, query: Query) -> Panel:
    """Return the noise scale of stretches of records, and in the note that of all: see `series.noise_scale`."""
    title = "Gradient noise scale"
    parts = [snapshot.table(query.runs[0], family) for family in ("replicas", "variables", "step")]
    wanted = ("replica_norm", "gradient_norm", "examples_seen")
    if any(part is None or name not in part.family.columns for part, name in zip(parts, wanted, strict=True)):
        return Panel("noise", title, empty="The noise scale needs two or more replicas.", wide=True)
    replicas_table, variables, step = [part for part in parts if part is not None]
    examples = noise_scale.examples_per_step(step.steps, tables.column(step, "examples_seen"))
    # TensorBoard may have dropped other records of one tag than of another.
    steps = functools.reduce(np.intersect1d, [table.steps for table in (replicas_table, variables, step)])
    rows = [np.searchsorted(table.steps, steps) for table in (replicas_table, variables, step)]
    chosen = slice(None)
    variable = _variable(replicas_table, query)
    if variable and variable in variables.family.names:
        index = variables.family.names.index(variable)
        chosen = slice(index, index + 1)
    terms = noise_scale.noise_terms(
        replica_norms=tables.column(replicas_table, "replica_norm")[rows[0], :, chosen],
        gradient_norms=tables.column(variables, "gradient_norm")[rows[1], chosen],
        examples=examples[rows[2]],
    )
    running = noise_scale.running_noise_scale(terms)
    if not np.isfinite(running[:, 0]).any():
        empty = "The noise scale is not determined: in no stretch of records does the gradient exceed its noise."
        return Panel("noise", title, empty=empty, wide=True)
    figure = layer_figures.noise_chart(steps, running, query.dark, 2 * query.max_steps)
    note = f"{NOISE_NOTE} {_describe_noise(terms, variable)}"
    return Panel("noise", title, figure, note, help=define("noise_scale"))


def _describe_noise(terms: np.ndarray, variable: str) -> str:
    """Return the noise scale over all records in a sentence, as `tapescope scaling` prints it."""
    whole = noise_scale.ratio_of_means(terms)
    scope = f"All records, variable {variable}" if variable else "All records and variables"
    if not math.isfinite(whole.scale):
        return f"{scope}: not determined."
    interval = f" ({whole.low:,.4g} to {whole.high:,.4g})" if math.isfinite(whole.low) else ""
    return f"{scope}: {whole.scale:,.4g} examples{interval}."


def _scaling(snapshot: Snapshot, query: Query) -> Panel:
    title = "Scaling across runs"
    rates = {}
    numbers = {}
    for run in query.runs:
        rate = _unmeasured_rate(snapshot.table(run, "step"))
        status = snapshot.last_record(run, "status")
        number = tables.count(tables.last_object(status).get("replicas")) if status is not None else None
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
    layers = {run: tags["layers"].family for run in rates if "layers" in (tags := snapshot.runs[run].tags)}
    note = f"{note} {scaling.describe_other_networks(layers)}".strip()
    return Panel("scaling", title, figure, note, wide=True, help=EFFICIENCY)


def _unmeasured_rate(table: Table | None) -> float:
    """Return examples per second of steps that are not measured, NaN if unknown."""
    if table is None or not {"examples_seen", "step_ms"} <= set(table.family.columns) or len(table.steps) < 2:
        return math.nan
    examples_seen = tables.column(table, "examples_seen")
    rate = scaling.unmeasured_rate(table.steps, examples_seen, tables.column(table, "step_ms"))
    return rate if math.isfinite(rate) else math.nan
