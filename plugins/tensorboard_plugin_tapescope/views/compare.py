"""The view Compare: hyperparameters and one column of several runs, ratios to the first run, and histograms."""

import collections

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import basic, distributions
from tensorboard_plugin_tapescope.figures.colour_scale import ColourRange, colour_range
from tensorboard_plugin_tapescope.figures.layer import RATIO
from tensorboard_plugin_tapescope.figures.style import run_colours
from tensorboard_plugin_tapescope.series import matching, spikes, tables
from tensorboard_plugin_tapescope.series.hyperparameters import compare_settings
from tensorboard_plugin_tapescope.series.tables import COLUMNS
from tensorboard_plugin_tapescope.views.grid import Grid, describe_heatmap, read_grid, row_owners
from tensorboard_plugin_tapescope.views.panel import Panel, define, explain_absence
from tensorboard_plugin_tapescope.views.query import Query, quote

MAX_COMPARED_RUNS = 8
"""Most runs that Compare draws; the others are named."""

HYPERPARAMETERS_NOTE = "As in TensorBoard's HParams tab: what recorder.hparams or hp.hparams wrote for the run."

LABEL_LIMIT = 20
"""Most characters of a row's label: the heatmaps stand side by side, and longer ones would leave no place for them."""


def compare(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return a heatmap for each run, the ratio of each other run to the first, and overlaid histograms."""
    if len(query.runs) < 2:
        return [Panel("compare", "Compare", empty="Tick two or more runs in the list of runs.", wide=True)]
    name = query.column or "gradient_norm"
    runs = query.runs[:MAX_COMPARED_RUNS]
    others = query.runs[MAX_COMPARED_RUNS:]
    grids = {run: read_grid(snapshot, run, name, alone=True) for run in runs}
    drawn = {run: grid for run, grid in grids.items() if grid is not None and np.isfinite(grid.values).any()}
    colours = colour_range(COLUMNS[name], *(grid.values for grid in drawn.values()))
    margin = max(
        (basic.row_label_margin(names, LABEL_LIMIT) for grid in drawn.values() for names in (grid.names, grid.keys)),
        default=0,
    )
    panels = _hyperparameters(snapshot, runs)
    for run, grid in grids.items():
        if run in drawn:
            panel = _heatmap(run, drawn[run], name, query, colours, margin)
            shares = spikes.describe_shares(spikes.recorded_shares(snapshot.last_record(run, "step")))
            panels.append(panel._replace(note=f"{panel.note} Share of spikes: {shares}.") if shares else panel)
        else:
            empty = explain_absence(name, None if grid is None else grid.table)
            panels.append(Panel(f"run {run}", run, empty=empty))
    for run in list(drawn)[1:]:
        first = next(iter(drawn))
        panels.append(_ratio(first, run, drawn[first], drawn[run], query, margin))
    panels += _overlays(snapshot, query, runs)
    if others:
        empty = f"{len(runs)} runs are drawn. Not shown: {', '.join(others)}."
        panels.append(Panel("left", "More runs are ticked", empty=empty, wide=True))
    return panels


def _hyperparameters(snapshot: Snapshot, runs: tuple[str, ...]) -> list[Panel]:
    """Return the table of the runs' hyperparameters, no panel where none of them has any."""
    settings = snapshot.hyperparameters(runs)
    having = [run for run in runs if settings[run]]
    without = [run for run in runs if not settings[run]]
    if not having:
        return []
    compared = compare_settings(settings)
    note = HYPERPARAMETERS_NOTE
    if without:
        note += f" None recorded for {', '.join(without)}."
    number = f"{len(compared.equal)} hyperparameter{'s' if len(compared.equal) > 1 else ''}"
    folded = f"{number}, the same in all runs" if len(having) > 1 else f"{number} of {having[0]}"
    colours = run_colours(runs, snapshot.runs)
    table = {"runs": runs, "colours": colours, "folded": folded, **compared._asdict()}
    return [Panel("hyperparameters", "Hyperparameters", note=note, wide=True, table=table)]


def _heatmap(run: str, grid: Grid, name: str, query: Query, colours: ColourRange, margin: int) -> Panel:
    figure = basic.heatmap(
        grid.table.steps,
        grid.names,
        grid.values,
        COLUMNS[name],
        dark=query.dark,
        max_steps=query.max_steps,
        colours=colours,
        left_margin=margin,
        label_limit=LABEL_LIMIT,
    )
    note = describe_heatmap(grid, query, name, colours)
    return Panel(f"run {run}", run, figure, note, rows=grid.owners, help=define(name))


def _ratio(first: str, second: str, a: Grid, b: Grid, query: Query, margin: int) -> Panel:
    """Return log10 of b over a for each row that both have, at each step of a from where b begins to where it ends."""
    pairs = matching.match_rows(a.names, a.owners, b.names, b.owners)
    rows_a = [row for row, _ in pairs]
    rows_b = [row for _, row in pairs]
    unmatched = _only_in(first, [key for row, key in enumerate(a.keys) if row not in set(rows_a)])
    unmatched += _only_in(second, [key for row, key in enumerate(b.keys) if row not in set(rows_b)])
    key = f"ratio {second}"
    title = f"{second} over {first}"
    if not pairs:
        return Panel(key, title, empty=f"The two runs have no layer in common.{unmatched}")
    b_at_steps = tables.as_of(a.table.steps, b.table, b.values[:, rows_b])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log10(np.abs(b_at_steps / a.values[:, rows_a]))
    largest_gap = np.diff(b.table.steps).max(initial=0)
    ratio[a.table.steps > b.table.steps[-1] + largest_gap] = np.nan  # b has ended, or is not there yet
    ratio[~np.isfinite(ratio)] = np.nan
    if not np.isfinite(ratio).any():
        return Panel(key, title, empty=f"No ratio is finite: one of the two is 0 or absent everywhere.{unmatched}")
    colours = colour_range(RATIO, ratio)
    figure = basic.heatmap(
        a.table.steps,
        [a.keys[row] for row in rows_a],
        ratio,
        RATIO,
        dark=query.dark,
        max_steps=query.max_steps,
        colours=colours,
        left_margin=margin,
        label_limit=LABEL_LIMIT,
    )
    note = f"Decades by which {second} is above (red) or below (blue) {first}, at each step that both reached."
    beyond = colours.note(ratio)
    note += f" {beyond}" if beyond else ""
    return Panel(key, title, figure, f"{note}{unmatched}", rows=[a.owners[row] for row in rows_a])


def _only_in(run: str, names: list[str]) -> str:
    """Return a sentence with the names that the other run lacks, empty if there is none."""
    if not names:
        return ""
    return f" Only in {run}: {matching.list_names(names)}."


def _overlays(snapshot: Snapshot, query: Query, runs: tuple[str, ...]) -> list[Panel]:
    """Return the last histograms of one variable and of one layer, with one curve for each run."""
    panels = []
    for kind, wanted, quantity in (("gradient", query.variable, "gradient"), ("activation", query.layer, "output")):
        family = f"{kind}_histogram"
        rows = {run: _histogram_rows(snapshot, run, family) for run in runs}
        counts = collections.Counter(name for names in rows.values() for name in names)
        title = f"{quantity.capitalize()} distribution"
        if not counts:
            panels.append(Panel(kind, title, empty=f"None of these runs has {kind} histograms."))
            continue
        if wanted and wanted not in counts:
            panels.append(Panel(kind, title, empty=f"None of these runs has {kind} histograms of {quote(wanted)}."))
            continue
        name = wanted or counts.most_common(1)[0][0]
        curves = {}
        for run in runs:
            table = snapshot.last_record(run, family) if name in rows[run] else None
            if table is not None and len(table.values):
                curves[run] = table.values[-1, rows[run][name]]
        if not curves:
            continue
        colours = run_colours(curves, snapshot.runs)
        figure = distributions.overlay(list(curves), np.stack(list(curves.values())), quantity, query.dark, colours)
        note = "Share of the tensor's elements in each bin at the last step, one curve for each run."
        panels.append(Panel(kind, f"{title}: {name}", figure, note))
    return panels


def _histogram_rows(snapshot: Snapshot, run: str, family: str) -> dict[str, int]:
    """Return the row of each name, and of the key by which it is matched with other runs."""
    tags = snapshot.runs[run].tags
    if family not in tags:
        return {}
    names = tags[family].family.names
    of_variables = "variables" in tags and tags["variables"].family.names == names
    keys = matching.matching_keys(names, row_owners(snapshot, run, "variables")) if of_variables else names
    return {key: row for row, key in enumerate(keys)} | {name: row for row, name in enumerate(names)}
