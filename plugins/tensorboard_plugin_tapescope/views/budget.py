"""The view Budget: how much of the gradient each layer takes on the way from the loss to the first layer."""

import numpy as np

from tensorboard_plugin_tapescope.data.table_cache import Snapshot
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.series import flow_path, tables
from tensorboard_plugin_tapescope.series.flow_path import FlowBudget
from tensorboard_plugin_tapescope.views.panel import Panel, define
from tensorboard_plugin_tapescope.views.query import Query


def budget(snapshot: Snapshot, query: Query) -> list[Panel]:
    """Return the waterfall of the gradient, averaged over the steps asked for, or of the last recorded step."""
    table = snapshot.table(query.runs[0], "layers")
    gains = {}
    if table is not None:
        parts = [part for part in layer_figures.BUDGET_PARTS if part in table.family.columns]
        gains = {part: tables.column(table, part) for part in parts}
    if table is None or not gains:
        return [_empty("This run has no flow budget: the gains of activations and weights were not measured.")]
    selected = slice(None) if query.has_range else slice(-1, None)
    selected_gains = {part: gain[selected] for part, gain in gains.items()}
    budget = flow_path.flow_budget(selected_gains, table.family.details.get("sources"))
    if not budget.path:
        return [_empty("No recorded layer feeds the last one, so there is no path along which to follow the gradient.")]
    names = [table.family.names[i] for i in budget.path]
    adjectives = tables.activation_adjectives(table.family)
    titles = [f"{adjective}layer {name}" for adjective, name in zip(adjectives, table.family.names, strict=True)]
    whole = flow_path.backward_path(table.family.details.get("sources"), len(titles))
    block = _find_block(selected_gains, whole)
    note = _describe(budget, titles, block, table.steps[selected])
    if not any(np.isfinite(gain[:, budget.path]).any() for gain in selected_gains.values()):
        unknown = "No gain of these layers is known at the last step, or those asked for: see Findings for a NaN."
        return [_empty(unknown if block is None else note)]
    figure = layer_figures.flow_budget(names, budget.gains, query.dark)
    others = len(table.family.names) - len(budget.path) - 1
    if others > 0:
        note += f" {others} layer{' is' if others == 1 else 's are'} not on this path."
    return [Panel("budget", TITLE, figure, note, rows=names, wide=True, help=define(*budget.gains))]


TITLE = "Backward gain from the loss to the first layer"


def _empty(reason: str) -> Panel:
    return Panel("budget", TITLE, empty=reason, wide=True)


def _find_block(gains: dict[str, np.ndarray], path: list[int]) -> tuple[int, str] | None:
    """Return the first layer on the path, and its part, that lets no gradient pass in any record; None without one.

    Of the layer at the end, whose gradient goes no further, that is the activation.
    """
    for layer in path:
        for part, gain in gains.items():
            cut = np.isneginf(gain[:, layer]).any() and not np.isfinite(gain[:, layer]).any()
            if cut and (layer != path[-1] or part == "flow_gate"):
                return layer, part
    return None


def _describe(budget: FlowBudget, titles: list[str], block: tuple[int, str] | None, steps: np.ndarray) -> str:
    """Return the total, and the layer and part with the largest loss, or those at which the gradient ends."""
    period = f"At step {steps[-1]:,}"
    if len(steps) > 1:
        period = f"In the mean of {len(steps):,} steps from {steps[0]:,} to {steps[-1]:,}"
    if block is not None:
        layer, part = block
        passage = f"the {layer_figures.BUDGET_PARTS[part][0]} of the {titles[layer]}"
        return f"{period} no gradient arrives at the first layer's weights: none passes {passage}."
    totals = np.sum(list(budget.gains.values()), axis=0)
    verb = "grows" if totals.sum() > 0 else "shrinks"
    text = f"{period} the gradient {verb} by {format_decades(totals.sum())} from the loss to the first layer"
    worst = int(np.argmin(totals))
    if totals[worst] >= 0:
        return f"{text}. No layer makes it smaller."
    part = min(budget.gains, key=lambda part: budget.gains[part][worst])
    return (
        f"{text}. The largest loss is in the {titles[budget.path[worst]]}: {format_decades(totals[worst])}, "
        f"most of it in its {layer_figures.BUDGET_PARTS[part][0]}."
    )


def format_decades(gain: float) -> str:
    """Return a gain as text, whatever its sign: `2.10 decades (a factor of 126)`."""
    return f"{abs(gain):.2f} decades (a factor of {10 ** min(abs(gain), 300):.3g})"
