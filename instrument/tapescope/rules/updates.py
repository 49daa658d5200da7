"""Rules about updates: how far the steps move the weights. README.md says how a rule is written."""

import math
from collections.abc import Iterator

import numpy as np

from tapescope.rules.data_view import CHECK_SIGN, learning_rate, summed_loss_advice
from tapescope.rules.finding import Finding, format_factor, format_share
from tapescope.rules.history import (
    LONG,
    MIN_STEPS,
    OF_A_CONSTANT,
    STUCK_FALL,
    USELESS_SHARES,
    WINDOW,
    History,
    constant_loss,
)
from tapescope.rules.networks import are_several_networks
from tapescope.rules.record_view import index_of_largest, lower_median

LARGE_UPDATE = 0.1
"""Share of the weights' norm, at every step: ten such steps may replace the weights. A hundredth of that is usual."""
SMALL_UPDATE = 1e-4
"""Share of the weights' norm: at this rate weights need 10,000 steps in one direction to be replaced."""
OUTLIER_FACTOR = 10.0
"""A layer whose update ratio is this many times that of most others is named; else all layers are meant."""
STOPPED_SHARE = 0.01
"""Share of the largest update of most layers: below it, weights that moved stand still."""
STILL_ARRIVES = 0.3
"""Share of the norm of the first gradient, in most layers."""
FROZEN_SHARE = 1e-3
"""Share of the update ratio of most other layers."""
FROZEN_DECADES = 1e-3
"""Decades by which weights change the length of a gradient. Layers without weights leave it as it is, to rounding."""
UNMOVED_STEPS = 20
"""Steps for which weights may stand still: a warm-up may begin with a learning rate of 0."""
RETURNS = 2
"""Times that weights are set back: once is a restart, or the end of a search for a learning rate."""
LITTLE_KEPT = 0.03
"""Share of the gradient's norm that is left: below it the clipping, and not the gradient, determines the step size.
Clipped at 1, a tenth is left of the early gradients of many a sound training."""
USUAL_UPDATE = 1e-3
"""Usual size of an update, of the weights' norm."""
DECAYED_SHARE = 0.4
"""Share of the first norm. Training rather lets weights grow."""


def update_too_large(history: History) -> Iterator[Finding]:
    """Report updates as large as the weights: lasting ones, or a single one of weights that were not small before."""
    usual = of_layers(history.usual.update_ratio, history)
    largest = of_layers(history.largest_update, history)
    lasting = history.steps_since_first >= MIN_STEPS // 2
    steady = history.records >= WINDOW and lasting and bool((usual >= LARGE_UPDATE).any())
    if not steady and not (largest >= 1).any():
        return
    # The first steps replace weights that start near 0, and nothing is wrong. So look at their size, or at the loss.
    not_falling = history.loss_fall < STUCK_FALL and not history.loss_falling
    harmful = history.diverged or (history.settled and lasting and not_falling)
    confirmed = harmful and history.records > 1
    leaps = (largest >= 1) & (confirmed | _start_at_full_size(history))
    if not steady and not leaps.any():
        return
    values = usual if steady else np.where(leaps, largest, np.nan)
    at = index_of_largest(values)
    replaced = np.minimum(np.where(np.isnan(values), largest, values), 1)  # above 1 the weights are replaced as well
    _, stands_out = _extreme_group(replaced, history)
    layer = history.layout.groups[at]
    ratio = float(values[at])
    by = f"{format_share(ratio)} of" if ratio < 1 else format_factor(ratio)
    changes = "a step changes" if steady else "one step changed"
    if stands_out:
        message = f"{changes} the weights of `{layer}` by {by} their norm"
    else:
        message = f"{changes} weights by up to {by} their norm, most those of `{layer}`"
    if harmful:
        message += ", and the loss did not fall"
    severity = "error" if harmful else "warning"
    learns = history.mastered
    if steady:  # the best value of a variable without a layer may be 0, and a single number may pass it
        learns = learns or (history.loss_falling and _is_one_number(history, at))
        learns = learns and not history.layout.layer_count
    if not harmful and learns:
        severity = "info"
        message += "; since then the loss has fallen" if history.mastered else ", and the loss falls"
    advice = f"Lower the learning rate{' of this layer' if stands_out else ''} at least tenfold, or warm it up."
    rate = learning_rate(history.layout.objectives)
    if rate < 0:
        advice = f"The learning rate is {rate:.3g}: below 0 each step climbs along the gradient. Use one above 0, "
        advice += "such as 0.001."
    elif harmful and math.isnan(rate) and _rose_at_once(history):
        advice += CHECK_SIGN
    yield Finding(
        rule="update_too_large",
        version=2,
        severity=severity,
        layer=layer if stands_out else None,
        step=(
            history.first_step(lambda view: view.update_ratio[at] >= LARGE_UPDATE)
            if steady
            else int(history.largest_update_step[at])
        ),
        message=message,
        evidence={"update_ratio": ratio},
        advice=advice + summed_loss_advice(history.layout.objectives),
    )


def _is_one_number(history: History, variable: int) -> bool:
    """Return whether a variable has one element: its gradient's norm is then the largest magnitude in it."""
    norms = [
        [view.column(f"gradient_{name}", history.layout.variable_count)[variable] for name in ("norm", "max")]
        for view in history.window
    ]
    return bool(np.allclose(*np.transpose(norms), atol=0))


def _rose_at_once(history: History) -> bool:
    """Return whether each of the first losses is above the one before it."""
    early = np.array(history.early_losses[: WINDOW // 2])
    return len(early) > 1 and bool(np.all(np.diff(early) > 0))


def _extreme_group(values: np.ndarray, history: History, smallest: bool = False) -> tuple[int, bool]:
    """Return the group with the largest (or smallest) value, and whether it is OUTLIER_FACTOR beyond most others."""
    decades = np.log10(values)
    if smallest:
        decades = -decades
    decades = np.where(np.isnan(decades), -np.inf, decades)
    at = int(np.argmax(decades))
    others = np.delete(decades, at)
    others = others[np.isfinite(others)]
    stands_out = others.size > 0 and decades[at] - float(lower_median(others)) >= np.log10(OUTLIER_FACTOR)
    return at, bool(stands_out)


def of_layers(values: np.ndarray, history: History) -> np.ndarray:
    """Return the values of layers, or without layers those of variables that did not start at 0; NaN for other groups.

    Embeddings, scales and shifts have update ratios of another size. Inf becomes NaN.
    """
    counts = np.arange(len(values)) < history.layout.layer_count
    if not counts.any():
        first = (history.first or history.latest).weight
        counts = (first != 0) | np.all(first == 0)
    return np.where(counts & ~np.isinf(values), values, np.nan)


def of_most_layers(values: np.ndarray, history: History) -> float:
    """Return the median of the values of layers; NaN where none is known."""
    return float(lower_median(of_layers(values, history)))


def _start_at_full_size(history: History) -> np.ndarray:
    """Return whether a group's first weights had a usual norm, [G].

    Glorot initialization gives a norm above the root of the smaller side of the matrix.
    """
    norm = np.full(len(history.layout.groups), np.inf)
    norm[: history.layout.layer_count] = 0.3 * np.sqrt(history.layout.units)
    return (history.first or history.latest).weight >= norm


def update_not_applied(history: History) -> Iterator[Finding]:
    """Report an optimizer that gets a gradient and has never moved a weight, in no measured step and between none.

    It is an info if the weights move later: the learning rate was 0 at first. A gradient that is 0, and a step that a
    loss scale skips, are no reason to move. Updates that are taken back are reported as well.
    """
    yield from _updates_taken_back(history)
    if history.unmoved_records < WINDOW or history.unmoved_steps < UNMOVED_STEPS:
        return
    rates = {objective.learning_rate for objective in history.layout.objectives}
    certain = history.unmoved_steps >= MIN_STEPS and history.unmoved_records >= LONG and rates != {0.0}
    severity = "info" if history.weights_moved else "error" if certain else "warning"
    yield Finding(
        rule="update_not_applied",
        version=2,
        severity=severity,
        layer=None,
        step=history.latest.step - history.steps_since_first,
        message=f"no weight has moved in {history.unmoved_records} records, although the optimizer has a gradient"
        if severity != "info"
        else "no weight moved at first, although the optimizer had a gradient; by now they do",
        evidence={"records": float(history.unmoved_records), "gradient_norm": history.latest.norm},
        advice="Check that the optimizer has the variables of this model and that its result is assigned, that the "
        "learning rate is above 0 and not below the rounding of the weights, and that `tape.reading()` is called after "
        "the optimizer's step.",
    )


def _updates_taken_back(history: History) -> Iterator[Finding]:
    """Report weights that were set back to their first values, time and again before the network had learned.

    Those of meta-learning are set back after each task until the first update of the outer loop.
    """
    if len(history.set_back) < RETURNS or not history.had_time:
        return
    start = (history.first or history.latest).step
    if 2 * (history.set_back[-1] - start) < history.steps_since_first:
        return
    steps = ", ".join(map(str, history.set_back[:RETURNS]))
    yield Finding(
        rule="update_not_applied",
        version=2,
        severity="warning",
        layer=None,
        step=history.set_back[0],
        message=f"all weights are those of step {start} again at steps {steps}: what was learned in between is lost",
        evidence={"times": float(len(history.set_back))},
        advice="Look for what sets the weights back, such as a callback that loads a checkpoint at each epoch, or a "
        "model that is made anew in the loop.",
    )


def update_too_small(history: History) -> Iterator[Finding]:
    """Report weights that have hardly changed since the start: all of them while the loss is stuck, or one layer's."""
    first = history.first
    if history.records < 2 * WINDOW or history.steps_since_first < MIN_STEPS or first is None:
        return
    if not history.weights_moved and history.unmoved_records:
        return  # `update_not_applied` says more
    largest = of_layers(history.largest_update, history)
    yield from _stopped_updates(history, largest)
    if not (largest <= SMALL_UPDATE).any():
        return
    rising = rising_updates(history, first.update_ratio)
    slow = np.where((history.usual.gradient > 0) & ~rising, largest, np.nan)
    if np.all(np.isnan(slow)):
        return
    slowest, stands_out = _extreme_group(slow, history, smallest=True)
    usual = float(lower_median(np.where(largest > 0, largest, np.nan)))
    names = history.layout.groups
    all_small = bool(np.nanmax(largest) <= SMALL_UPDATE) and not rising.any()
    not_falling = history.loss_fall < STUCK_FALL and not history.loss_falling
    if stands_out and slow[slowest] <= min(FROZEN_SHARE * usual, SMALL_UPDATE / 10):
        layer = names[slowest]
        ratio = float(largest[slowest])
        alike = [name for name, value in zip(names, slow, strict=True) if value == ratio]
        change = f"never change by more than {ratio:.2g}" if ratio else "do not change although a gradient arrives"
        message = (
            f"the weights of {', '.join(f'`{name}`' for name in alike)} {change}, those of most other layers by up to "
            f"{usual:.2g} of their norm in a step"
        )
        advice = "Check that the optimizer has these weights, and not those of a copy, and their learning rate"
        advice += "; else why little gradient arrives." if ratio else "."
    elif all_small and (history.loss_fall < STUCK_FALL / 10 or not_falling):
        layer = None
        ratio = float(np.nanmax(largest))
        message = f"no layer's weights ever changed by more than {ratio:.2g} of their norm in a step, and the loss "
        message += f"changed by {-100 * history.loss_fall:+.1f} %"
        advice = "Raise the learning rate at least tenfold, or lower Adam's `epsilon` if that is above the gradient."
    else:
        return
    yield Finding(
        rule="update_too_small",
        version=3,
        severity="warning",
        layer=layer,
        step=first.step,
        message=message,
        evidence={"update_ratio_largest": ratio, "update_ratio_of_most": usual},
        advice=advice,
    )


def _stopped_updates(history: History, largest: np.ndarray) -> Iterator[Finding]:
    """Report updates that have shrunk to nothing while the gradient and the loss have not.

    Where no weight has moved at all for half of the steps, the loss may have fallen by some before: it cannot fall any
    more. The last steps of a schedule may end at 0.
    """
    usual = of_most_layers(history.usual.update_ratio, history)
    most = float(lower_median(largest))
    first = (history.first or history.latest).gradient
    arrives = lower_median(history.usual.gradient) >= STILL_ARRIVES * lower_median(first) > 0
    stopped = history.loss_stuck and usual <= min(STOPPED_SHARE * most, SMALL_UPDATE)
    halted = 2 * (history.latest.step - history.moved_step) >= history.steps_since_first
    may_fall = math.isfinite(history.loss_fall) and not history.learned and not history.beats_constant
    if not ((stopped or (halted and history.had_time and may_fall)) and arrives and most > 0):
        return
    so_far = "has not fallen" if stopped else f"has fallen by {format_share(max(history.loss_fall, 0))} only"
    yield Finding(
        rule="update_too_small",
        version=2,
        severity="warning",
        layer=None,
        step=history.latest.step,
        message=f"the weights of most layers once changed by {most:.2g} of their norm in a step, and now by "
        f"{usual:.2g}, although the gradient arrives as before and the loss {so_far}",
        evidence={"update_ratio": usual, "update_ratio_largest": most},
        advice="Look at the schedule of the learning rate: it falls before the network has learned.",
    )


def rising_updates(history: History, first: np.ndarray) -> np.ndarray:
    """Return whether a group's updates are growing, [G], by at least half of what a linear warm-up from 0 would do."""
    rising = history.usual.update_ratio > 3 * first
    if rising.any():
        older, newer = np.split(np.stack([view.update_ratio for view in history.window]), 2)
        start = (history.first or history.latest).step
        before, after = np.split(np.array([view.step - start + 1 for view in history.window]), 2)
        growth = 1 + (np.median(after) / np.median(before) - 1) / 2
        rising &= lower_median(newer) > growth * lower_median(older)
    return rising


def always_clipped(history: History) -> Iterator[Finding]:
    """Report an optimizer that never gets the whole gradient."""
    if history.records < 2 * WINDOW or history.steps_since_first < MIN_STEPS // 2:
        return
    largest = max(view.share_kept for view in history.window)
    usual = history.usual.share_kept
    if not largest < 0.99:
        return
    # An optimizer such as Adam divides by the gradient's size, and steps as far with a clipped one.
    moves = of_most_layers(history.usual.update_ratio, history) >= USUAL_UPDATE
    yield Finding(
        rule="always_clipped",
        version=1,
        severity="warning" if usual <= LITTLE_KEPT and not moves else "info",
        layer=None,
        step=history.first_step(lambda view: view.share_kept < 0.99),
        message=f"the gradient is clipped at every measured step, and keeps {usual:.2g} of its norm",
        evidence={"share_kept": usual, "share_kept_at_most": largest},
        advice="Raise the threshold to the usual norm of the gradient, so that only outliers are clipped, or look "
        "where the gradient grows.",
    )


def frozen_layers(history: History) -> Iterator[Finding]:
    """Note layers with weights that are not trained; a warning where the loss is that of a constant answer.

    The layers of a record have the trained variables only. One without any still has weights if these change the
    length of the gradient that passes.
    """
    first = history.first
    layout = history.layout
    if first is None or not history.settled:
        return
    owners, variables = layout.owned
    present = np.isfinite(history.latest.column("weight_norm", layout.variable_count))  # others are trained later
    trained = np.isin(np.arange(layout.layer_count), owners[present[variables]])
    frozen = ~trained & (np.abs(first.layer_column("flow_weight")) > FROZEN_DECADES)
    if not frozen.any() or not trained.any():
        return
    # Weights that were trained before begin near the loss where they end, so a loss that falls slowly proves nothing.
    harmful = history.had_time and history.equals_constant
    at = int(np.flatnonzero(frozen)[0])
    name = layout.groups[at]
    count = int(frozen.sum())
    every = count + int(trained.sum())
    message = f"{count} of {every} layers with weights have no trained weights of their own, the first of them `{name}`"
    if harmful:
        message += f", and the loss is {OF_A_CONSTANT}"
    yield Finding(
        rule="frozen_layers",
        version=1,
        severity="warning" if harmful else "info",
        layer=name,
        step=first.step,
        message=message,
        evidence={"frozen": float(count), "layers": float(every), "fall": history.loss_fall},
        advice="Freeze only layers whose weights were trained before: random ones need `trainable = True`, set before "
        "`compile`, as does the last layer.",
    )


def decayed_weights(history: History) -> Iterator[Finding]:
    """Report weights that a penalty or a decay has taken away, in a network that answers the same for every input."""
    first = history.first
    if first is None or not history.had_time or history.loss_became_nonfinite:
        return
    # An output layer shrinks by learning, too, where the inputs say nothing about the targets.
    outputs = np.flatnonzero(history.layout.is_output)
    shares = history.latest.weight / first.weight
    if outputs.size < history.layout.layer_count:
        shares[outputs] = np.nan
    kept = of_most_layers(shares, history)
    constant = constant_loss(history)
    low, high = USELESS_SHARES
    is_useless = history.loss_stuck and not are_several_networks(history.layout)
    if math.isfinite(constant):
        is_useless = low * constant <= history.usual.loss <= high * constant
    if not (kept <= DECAYED_SHARE and is_useless):
        return
    yield Finding(
        rule="decayed_weights",
        version=3,
        severity="warning",
        layer=None,
        step=first.step,
        message=f"the weights of most layers have shrunk to {format_share(kept)} of their first norm, and the loss of "
        f"{history.usual.loss:.3g} is that of a network that does not look at its input",
        evidence={"share_kept": kept, "loss": history.usual.loss, "loss_of_constant_answer": constant},
        advice="Lower the weight decay, or the L1 or L2 penalty of the layers, at least tenfold.",
    )
