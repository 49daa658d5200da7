"""The views of several runs: side by side on one scale, and what replicas disagree on."""

import collections

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic, distributions, style
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.series import matching, scaling, tables
from tensorboard_plugin_tapescope.series.tables import COLUMNS, Table
from tensorboard_plugin_tapescope.views.flow import Grid, absent, drawn, grid, owners
from tensorboard_plugin_tapescope.views.query import Panel, Query, Refused, quoted

SIDE_BY_SIDE = 8
"""Most runs that Compare draws; the rest are named."""


def colours(snapshot: Snapshot, runs: tuple[str, ...]) -> list[str]:
    """Each run's colour: its place among all of them, as TensorBoard assigns its palette."""
    place = {name: i for i, name in enumerate(snapshot.runs)}
    return [style.PALETTE[place[run] % len(style.PALETTE)] for run in runs]


def compare(snapshot: Snapshot, query: Query) -> list[Panel]:
    """One column of several runs on one colour scale, the ratio of each to the first, and histograms overlaid."""
    name = query.column or "gradient_norm"
    if len(query.runs) < 2:
        return [Panel("compare", "Compare", empty="Tick two or more runs in the list of runs.", wide=True)]
    shown, left = query.runs[:SIDE_BY_SIDE], query.runs[SIDE_BY_SIDE:]
    grids = {run: grid(snapshot, run, name) for run in shown}
    good = {run: g for run, g in grids.items() if g is not None and np.isfinite(g.values).any()}
    column = COLUMNS[name]
    span = basic.span(column, *(g.values for g in good.values()))
    panels = []
    for run in shown:
        if run not in good:
            missing = grids[run]
            panels.append(Panel(f"run {run}", run, empty=absent(name, missing and missing.table)))
            continue
        g = good[run]
        figure = basic.heatmap(g.table.steps, g.names, g.values, column, query.dark, query.max_steps, span)
        note = drawn(g, query, name)
        panels.append(Panel(f"run {run}", run, figure, note, rows=g.owners))
    first = next(iter(good), None)
    for run in list(good)[1:]:
        panels.append(_ratio(first or "", run, good[first or ""], good[run], query))
    panels += _overlays(snapshot, query, shown)
    if left:
        words = f"{len(shown)} runs are drawn; not shown: {', '.join(left)}."
        panels.append(Panel("left", "More runs were ticked", empty=words, wide=True))
    return panels


def _ratio(first: str, second: str, a: Grid, b: Grid, query: Query) -> Panel:
    """log10 of b over a, per layer that both have and step of a, from where both have begun."""
    common = matching.match_rows(a.names, a.owners, b.names, b.owners)
    unmatched = _only(first, [key for i, key in enumerate(a.keys) if i not in {mine for mine, _ in common}])
    unmatched += _only(second, [key for i, key in enumerate(b.keys) if i not in {theirs for _, theirs in common}])
    key, title = f"ratio {second}", f"{second} over {first}"
    if not common:
        return Panel(key, title, empty=f"The two runs have no layer in common.{unmatched}")
    mine, theirs = zip(*common, strict=True)
    at_b = tables.as_of(a.table.steps, b.table, b.values[:, list(theirs)])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log10(np.abs(at_b / a.values[:, list(mine)]))
    ratio[~np.isfinite(ratio)] = np.nan
    if not np.isfinite(ratio).any():
        return Panel(key, title, empty=f"No ratio is finite: one of the two is 0 or absent everywhere.{unmatched}")
    names = [a.keys[i] for i in mine]
    figure = basic.heatmap(a.table.steps, names, ratio, layer_figures.RATIO, query.dark, query.max_steps)
    note = f"Decades by which {second} is above (red) or below (blue) {first}, at each step of {first}.{unmatched}"
    return Panel(key, title, figure, note, rows=[a.owners[i] for i in mine])


def _only(run: str, names: list[str], most: int = 8) -> str:
    """Names that the other run lacks, in words."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" Only in {run}: {', '.join(names[:most])}{more}." if names else ""


def _overlays(snapshot: Snapshot, query: Query, runs: tuple[str, ...]) -> list[Panel]:
    """The last histograms of one variable and of one layer, a curve a run."""
    panels = []
    for kind, wanted, quantity in (("gradient", query.variable, "gradient"), ("activation", query.layer, "output")):
        held = {run: _histogram_rows(snapshot, run, f"{kind}_histogram") for run in runs}
        shared = collections.Counter(name for rows in held.values() for name in rows)
        names = [name for name, _ in shared.most_common()]
        title = f"{quantity.capitalize()} distributions at the last step"
        if not names:
            panels.append(Panel(kind, title, empty=f"None of these runs has {kind} histograms."))
            continue
        if wanted and wanted not in names:
            words = f"None of these runs has {kind} histograms of {quoted(wanted)}."
            panels.append(Panel(kind, title, empty=words))
            continue
        name = wanted or names[0]
        curves = {}
        for run, rows in held.items():
            table = snapshot.last(run, f"{kind}_histogram") if name in rows else None
            if table is not None and len(table.values):
                curves[run] = table.values[-1, rows[name]]
        if not curves:
            continue
        shades = colours(snapshot, tuple(curves))
        figure = distributions.overlay(list(curves), np.stack(list(curves.values())), quantity, query.dark, shades)
        panels.append(Panel(kind, f"{title}: {name}", figure, "A curve a run, as shares of the tensor's elements."))
    return panels


def _histogram_rows(snapshot: Snapshot, run: str, family: str) -> dict[str, int]:
    """Row of each name, and of what it is matched by in another run."""
    tags = snapshot.runs[run].tags
    if family not in tags:
        return {}
    names = tags[family].family.names
    same = "variables" in tags and tags["variables"].family.names == names
    keys = matching.matching_keys(names, owners(snapshot, run, "variables")) if same else names
    return {key: i for i, key in enumerate(keys)} | {name: i for i, name in enumerate(names)}


def replicas(snapshot: Snapshot, query: Query) -> list[Panel]:
    """What the replicas of a run disagree on, and how throughput grows with their number over all runs named."""
    run = query.runs[0]
    table = snapshot.table(run, "replicas")
    if table is None or not len(table.values) or tables.replicas(table.family) < 2:
        words = "This run was trained on one replica, so there is nothing to disagree on. Train it under a strategy "
        panels = [Panel("one", "Replicas", empty=f"{words}with two or more.", wide=True)]
    else:
        panels = _disagreement(table, query)
    panels += _noise(snapshot, query)
    return [*panels, _scaling(snapshot, query)]


def _disagreement(table: Table, query: Query) -> list[Panel]:
    names = table.family.names
    if query.variable and query.variable not in names:
        raise Refused(404, f"The run has no variable {quoted(query.variable)}.")
    labels = [f"replica {r}" for r in range(tables.replicas(table.family))]
    panels = []
    for name in ("replica_norm", "replica_cosine", "replica_sign"):
        if name not in table.family.columns:
            continue
        column, values = COLUMNS[name], tables.column(table, name)
        if query.variable:
            curves, of = values[:, :, names.index(query.variable)], query.variable
        elif name == "replica_norm":
            curves, of = np.sqrt(np.nansum(np.square(values, dtype=np.float64), axis=2)), "all variables together"
        else:
            curves = tables.finite_mean(values, axis=2)
            of = "the mean over variables"
        title = {"replica_norm": "Norm", "replica_cosine": "Cosine to the mean", "replica_sign": "Sign agreement"}[name]
        figure = basic.line_chart(table.steps, labels, curves.astype(np.float32), column, query.dark, 2 * query.max_steps)
        panels.append(Panel(name, title, figure, f"{column.definition.capitalize()}: {of}."))
    return panels


def _noise(snapshot: Snapshot, query: Query) -> list[Panel]:
    run, name = query.runs[0], "noise_scale_total"
    table = snapshot.table(run, "step")
    values = tables.column(table, name) if table is not None and name in table.family.columns else np.zeros(0)
    if table is None or not np.isfinite(values).any():
        return [Panel("noise", "Gradient noise scale", empty="The noise scale needs two replicas.")]
    figure = basic.line_chart(table.steps, [name], values[:, None], COLUMNS[name], query.dark, 2 * query.max_steps)
    note = "The batch size beyond which more examples a step bring little (McCandlish et al. 2018)."
    return [Panel("noise", "Gradient noise scale", figure, note)]


def rate(table: Table) -> float:
    """Examples per second of steps that are not measured: examples of a step over `step_ms`; NaN where unknown."""
    if not {"examples_seen", "step_ms"} <= set(table.family.columns) or len(table.steps) < 2:
        return float("nan")
    examples_seen, step_ms = (tables.column(table, name) for name in ("examples_seen", "step_ms"))
    return scaling.unmeasured_rate(table.steps, examples_seen, step_ms)


def _scaling(snapshot: Snapshot, query: Query) -> Panel:
    title, rates, numbers = "Scaling across runs", {}, {}
    for run in query.runs:
        table, status = snapshot.table(run, "step"), snapshot.last(run, "status")
        number = tables.status(status).get("replicas") if status is not None else None
        examples = rate(table) if table is not None else float("nan")
        if isinstance(number, int) and number > 0 and np.isfinite(examples) and examples > 0:
            rates[run], numbers[run] = examples, number
    if len(set(numbers.values())) < 2:
        words = "Tick runs of the same program with different numbers of replicas: their throughput is compared here."
        return Panel("scaling", title, empty=words, wide=True)
    shades = colours(snapshot, tuple(rates))
    arrays = np.array(list(numbers.values()), np.float64), np.array(list(rates.values()))
    figure = layer_figures.scaling_chart(list(rates), *arrays, query.dark, shades)
    note = "Examples per second of steps that are not measured; the percentage is the efficiency."
    return Panel("scaling", title, figure, note, wide=True)
