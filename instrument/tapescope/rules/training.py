"""Rules about how training goes: the size of the updates, clipping and the loss.

README.md says how a rule is written.
"""

import math
from collections.abc import Iterator

import numpy as np

from tapescope.rules.data_view import summed_loss_advice
from tapescope.rules.finding import Finding, format_factor, format_share
from tapescope.rules.history import (
    LONG,
    MIN_STEPS,
    RISEN_VALIDATIONS,
    STUCK_FALL,
    USELESS_SHARES,
    WINDOW,
    History,
    constant_loss,
    is_impossible,
)
from tapescope.rules.record_view import RunLayout, index_of_largest, lower_median

LARGE_UPDATE = 0.1
"""Of the weights' norm, at every step: ten such steps may replace the weights. A hundredth of that is usual."""
SMALL_UPDATE = 1e-4
"""Of the weights' norm: at this rate weights need 10,000 steps in one direction to be replaced."""
OUTLIER_FACTOR = 10.0
"""A layer whose update ratio is this many times that of most others is named; else all layers are meant."""
STOPPED_SHARE = 0.01
"""Share of the largest update of most layers: below it, weights that moved stand still."""
STILL_ARRIVES = 0.3
"""Share of the norm of the first gradient, in most layers."""
FROZEN_SHARE = 1e-3
"""Of the update ratio of most other layers."""
FROZEN_DECADES = 1e-3
"""Decades by which weights change the length of a gradient. Layers without weights leave it as it is, to rounding."""
UNMOVED_STEPS = 20
"""Steps for which weights may stand still: a warm-up may begin with a learning rate of 0."""
RETURNS = 2
"""Times that weights are set back: once is a restart, or the end of a search for a learning rate."""
FAR_DISTANCE = 0.3
"""In multiples of the weights' norm: where weights moved so far and the loss did not, it is not going to."""
LITTLE_KEPT = 0.03
"""Share of the gradient's norm that is left: below it the clipping, and not the gradient, determines the step size.
Clipped at 1, a tenth is left of the early gradients of many a sound training."""

USUAL_UPDATE = 1e-3
"""Usual size of an update, of the weights' norm."""
SLOW_UPDATE = 3e-3
"""Of the weights' norm: at this rate weights need 300 steps in one direction to be replaced."""
SLOW_FALL = 1e-3
"""Share of the loss a step: at this pace nothing is learned before a thousand steps."""
SURE_TREND = 3.0
"""Normal deviates by which the newer losses lie lower: by chance less than once in 700 runs."""
STRAIGHT = (0.5, 2.0)
"""The fall in the newer half of the losses over that in the older one, between which the loss falls in a line."""
SAME_WAY = 0.5
"""Cosine of consecutive gradients above which they point the same way: a gradient that is noise for the most part has a
cosine close to 0, and one of which the half is noise has this one."""
OVERSHOT = -0.5
"""The same below which steps overshoot: along a curvature h a gradient becomes 1 - r h times itself by a step of the
learning rate r, so that one which turns round is of directions in which the rate is at its limit."""
VALIDATION_RISE = 0.2
"""Of the lowest validation loss. The estimate of a few hundred examples is off by about a tenth of it."""
DECAYED_SHARE = 0.4
"""Share of the first norm. Training rather lets weights grow."""
NEVER_FELL = 0.9
"""Of the first training loss."""
HARDLY_FELL = 0.75
"""The same where nine tenths of the training loss are gone, and those of the validations have not risen again."""
SELDOM_ZERO = {"binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"}
"""Losses that are exactly 0 only where every output is as sure as float32 can say."""


def update_too_large(history: History) -> Iterator[Finding]:
    """Report updates as large as the weights: lasting ones, or a single one of weights that were not small before."""
    usual = _of_layers(history.usual.update_ratio, history)
    largest = _of_layers(history.largest_update, history)
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
    if not steady and not harmful and history.mastered:
        severity = "info"  # one leap, after which the network learned
        message += "; since then the loss has fallen"
    advice = f"Lower the learning rate{' of this layer' if stands_out else ''} at least tenfold, or warm it up."
    rate = min((objective.learning_rate for objective in history.layout.objectives), default=math.nan)
    if rate < 0:
        advice = f"The learning rate is {rate:.3g}: below 0 each step climbs along the gradient. Use one above 0, "
        advice += "such as 0.001."
    elif harmful and math.isnan(rate) and _rose_at_once(history):
        advice += " If it is as small as intended, check its sign: a negative one climbs along the gradient."
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


def _of_layers(values: np.ndarray, history: History) -> np.ndarray:
    """Return the values of layers, or without layers those of variables that did not start at 0; NaN for other groups.

    Embeddings, scales and shifts have update ratios of another size. Inf becomes NaN.
    """
    counts = np.arange(len(values)) < history.layout.layer_count
    if not counts.any():
        first = (history.first or history.latest).weight
        counts = (first != 0) | np.all(first == 0)
    return np.where(counts & ~np.isinf(values), values, np.nan)


def _of_most_layers(values: np.ndarray, history: History) -> float:
    """Return the median of the values of layers; NaN where none is known."""
    return float(lower_median(_of_layers(values, history)))


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
    largest = _of_layers(history.largest_update, history)
    yield from _stopped_updates(history, largest)
    if not (largest <= SMALL_UPDATE).any():
        return
    rising = _rising_updates(history, first.update_ratio)
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
    usual = _of_most_layers(history.usual.update_ratio, history)
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


def _rising_updates(history: History, first: np.ndarray) -> np.ndarray:
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
    moves = _of_most_layers(history.usual.update_ratio, history) >= USUAL_UPDATE
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


def loss_not_falling(history: History) -> Iterator[Finding]:
    """Report a loss that stands still although the weights move; only where no other rule gives a reason."""
    if not history.loss_stuck or (history.may_be_below_constant and not history.below_constant):
        return
    # Layers without trained weights of their own, as separate activations and frozen ones, do not move.
    distance = _of_most_layers(np.where(np.isneginf(history.largest_update), np.nan, history.distance), history)
    if not distance >= FAR_DISTANCE or _are_several_networks(history.layout):
        return
    of_values = history.equals_constant and history.layout.objectives[0].units == 1
    excuse = _excuse(history)
    yield Finding(
        rule="loss_not_falling",
        version=4,
        severity="info" if excuse else "warning",
        layer=None,
        step=history.latest.step,
        message=f"the loss has changed by {-100 * history.loss_fall:+.1f} % since the first records, although the "
        f"gradient arrives and the weights of most layers moved by {format_factor(distance)} their norm"
        + (f"; it is {_OF_A_CONSTANT}" if history.equals_constant else excuse),
        evidence={
            "fall": history.loss_fall,
            "trend": history.loss_trend,
            "way": distance,
            "records": float(history.records),
        },
        advice=(_LINEAR_ADVICE if _is_linear(history) else "")
        + "Check what a gradient does not show: whether the labels belong to these examples, the inputs say anything "
        "about them, the loss is the right one, and the learning rate or a dropout rate is too high."
        + (_SHAPES_ADVICE if of_values else ""),
    )


def _excuse(history: History) -> str:
    """Return why a loss may stand still, for a message; empty where it may not."""
    if history.below_constant:
        return f"; it is little, but surely below {_OF_A_CONSTANT}"
    if any(objective.loss != "custom" for objective in history.layout.objectives):
        return ""
    if history.takes_both_signs:
        return "; it has both signs, and such a loss, as that of a policy gradient, need not fall"
    if _has_targets_of_its_own(history) or _have_targets_moved(history):
        return "; the network makes its own targets, which move with it"
    return ""


def _has_targets_of_its_own(history: History) -> bool:
    """Return whether layers are called twice, and no gradient flows to what they make in one of the two calls."""
    arrives = np.isfinite([view.layer_column("delta_norm") for view in history.window]).any(axis=0)
    own = _own_variables(history.layout)
    with_gradient = {own[layer] for layer in np.flatnonzero(arrives)}
    without = {own[layer] for layer in np.flatnonzero(~arrives & ~history.layout.is_output)}  # outputs may have none
    return bool((with_gradient & without) - {frozenset()})


def _have_targets_moved(history: History) -> bool:
    """Return whether all of the last targets are farther from the first ones than those from each other.

    Those of Q-learning grow with the values that the network, or an older copy of it, gives.
    """
    rows = history.layout.data
    is_target = np.array([row.kind == "target" for row in rows], bool)
    mean, std = (
        np.array([view.column(name, len(rows)) for view in (history.first or history.latest, *history.window)])
        for name in ("data_mean", "data_std")
    )
    moved = np.abs(mean[1:] - mean[0]) > std[0]
    return bool(np.any(moved.all(axis=0) & (std[0] > 0) & is_target))


def _are_several_networks(layout: RunLayout) -> bool:
    """Return whether a step trains networks with losses of their own, as a GAN's, which hold each other level.

    No loss is known then, and either one network is given what the other makes, or they are not connected.
    """
    return not layout.objectives and (_is_adversarial(layout) or _are_unconnected(layout))


def _are_unconnected(layout: RunLayout) -> bool:
    """Return whether there are trained layers which neither feed nor are fed by the others, nor share variables."""
    groups, variables = layout.owned
    parts: list[set[int]] = []
    for layer in range(layout.layer_count):
        near = {layer, layout.source[layer], int(layout.reader[layer])} - {-1}
        near |= set(groups[np.isin(variables, variables[groups == layer])].tolist())
        touched = [part for part in parts if part & near]
        parts = [part for part in parts if not part & near] + [near.union(*touched)]
    trained = set(groups.tolist())
    return sum(bool(part & trained) for part in parts) > 1


def _own_variables(layout: RunLayout) -> list[frozenset[int]]:
    """Return the indices of each layer's own variables."""
    groups, variables = layout.owned
    return [frozenset(variables[groups == layer].tolist()) for layer in range(layout.layer_count)]


def _is_adversarial(layout: RunLayout) -> bool:
    """Return whether layers are given both the data and what other layers made, as the discriminator of a GAN.

    A layer that is called again on what it made itself, as a cell that is unrolled, is not meant.
    """
    own = _own_variables(layout)
    of_data = {own[layer] for layer in range(layout.layer_count) if layout.source[layer] < 0}
    for layer in range(layout.layer_count):
        source = layout.source[layer]
        if not own[layer] or source < 0 or own[layer] not in of_data:
            continue
        while source >= 0 and not own[source] & own[layer]:
            source = layout.source[source]
        if source < 0:
            return True
    return False


_OF_A_CONSTANT = "that of the best answer that is the same for every input"
_SHAPES_ADVICE = (
    " In a loss of your own, targets need the shape of the outputs: [N] less [N, 1] is [N, N], of which "
    "the best answer is the same for every input."
)

_LINEAR_ADVICE = (
    "No layer before the output has an activation, so all of them together are no more than one linear layer: give "
    'them one, such as `activation="relu"`. '
)


def _is_linear(history: History) -> bool:
    """Return whether there are layers before the output, and none of them has an activation."""
    layout = history.layout
    hidden = [
        activation for activation, is_output in zip(layout.activations, layout.is_output, strict=False) if not is_output
    ]
    return bool(hidden) and all(activation == "linear" for activation in hidden)


def overfitting(history: History) -> Iterator[Finding]:
    """Report a validation loss that rises while the training loss goes on falling."""
    validations = history.validations
    if len(validations.since) < RISEN_VALIDATIONS or not validations.lowest or _never_fell(history):
        return
    newest = float(np.median(validations.since))
    rise = (newest - validations.lowest) / abs(validations.lowest)
    fall = (validations.training_loss - history.usual.loss) / abs(validations.training_loss or math.nan)
    if not (rise >= VALIDATION_RISE and fall >= STUCK_FALL):
        return
    yield Finding(
        rule="overfitting",
        version=2,
        severity="warning",
        layer=None,
        step=validations.lowest_step,
        message=f"the validation loss has risen by {format_share(rise)} since its lowest, {validations.lowest:.3g} at "
        f"step {validations.lowest_step}, while the training loss fell from {validations.training_loss:.3g} to "
        f"{history.usual.loss:.3g}",
        evidence={
            "validation_rise": rise,
            "validation_loss_lowest": validations.lowest,
            "validation_loss": newest,
            "training_fall": fall,
        },
        advice="Keep the weights of that step (`keras.callbacks.EarlyStopping(restore_best_weights=True)`), or make "
        "it harder to learn the training data by heart: dropout, weight decay, augmentation, fewer units, more data.",
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
        message += f", and the loss is {_OF_A_CONSTANT}"
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
    kept = _of_most_layers(history.latest.weight / first.weight, history)
    constant = constant_loss(history)
    low, high = USELESS_SHARES
    is_useless = history.loss_stuck and not _are_several_networks(history.layout)
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


def validation_differs(history: History) -> Iterator[Finding]:
    """Report a validation loss that never fell, or hardly, although that of the training did."""
    validations = history.validations
    first = _first_loss(history)
    has_risen = bool(validations.since) and np.median(validations.since) > (1 + VALIDATION_RISE) * validations.lowest
    hardly = history.mastered and not has_risen and validations.lowest >= HARDLY_FELL * first > 0
    if validations.seen < RISEN_VALIDATIONS or not history.learned or not (hardly or _never_fell(history)):
        return
    yield Finding(
        rule="validation_differs",
        version=1,
        severity="warning",
        layer=None,
        step=history.latest.step,
        message=f"the training loss fell from {first:.3g} to {history.usual.loss:.3g}, and the validation loss was "
        f"never below {validations.lowest:.3g}",
        evidence={"validation_loss_lowest": validations.lowest, "loss_first": first, "loss": history.usual.loss},
        advice="Check that the validation data are prepared as the training data are: the same scaling, the same "
        "labels. Batch normalization whose moving averages lag behind (`momentum` close to 1) also gives other outputs "
        "there; else the network only learns its training data by heart.",
    )


def _first_loss(history: History) -> float:
    return history.first.loss if history.first else math.nan


def _never_fell(history: History) -> bool:
    """Return whether no validation was below where the training began: then it cannot have risen by overfitting."""
    first = _first_loss(history)
    return first > 0 and history.validations.lowest >= NEVER_FELL * first


def impossible_loss(history: History) -> Iterator[Finding]:
    """Report a loss that is below 0 where it cannot be, or exactly 0 without having been learned."""
    losses = [view.loss for view in history.window]
    names = {objective.loss for objective in history.layout.objectives}
    if is_impossible(losses[-1], history.layout):
        yield Finding(
            rule="impossible_loss",
            version=1,
            severity="error",
            layer=None,
            step=history.first_step(lambda view: is_impossible(view.loss, history.layout)),
            message=f"the loss is {losses[-1]:.3g}, and {' and '.join(f'`{name}`' for name in sorted(names))} cannot "
            "be below 0 for targets in its range: the network lowers it without end and learns nothing",
            evidence={"loss": losses[-1]},
            advice="Look at the targets: binary cross-entropy takes 0 and 1, categorical cross-entropy rows of "
            "probabilities. For class indices use sparse categorical cross-entropy.",
        )
    if len(losses) < WINDOW // 2 or any(losses):
        return
    always = not any(history.early_losses)
    early = history.steps_since_first < MIN_STEPS
    certain = bool(names) and names <= SELDOM_ZERO
    yield Finding(
        rule="impossible_loss",
        version=1,
        severity="warning" if always or (early and certain) else "info",
        layer=None,
        step=history.first_step(lambda view: view.loss == 0),
        message=f"the loss is exactly 0 {'from the first record on' if always else 'by now'}: nothing is learned any "
        "more",
        evidence={"loss": 0.0, "records": float(history.records)},
        advice="Check that the labels differ between examples and were not rounded or divided to one value, and that "
        "the loss compares them with the outputs.",
    )


def slow_learning(history: History) -> Iterator[Finding]:
    """Note a loss that falls in a line by small steps: the learning rate could be higher.

    It is a warning where the loss is so flat that it would not get anywhere. Consecutive gradients that point the same
    way are evidence for it, and gradients that turn round from step to step speak against it.
    """
    if history.gradient_cosine <= OVERSHOT:
        return
    ratios = _of_layers(history.usual.update_ratio, history)
    largest = float(np.nanmax(ratios)) if np.any(ratios >= 0) else math.nan
    if not history.had_time or history.learned or not largest <= SLOW_UPDATE or not history.loss_trend >= SURE_TREND:
        return
    if history.loss_fall > SLOW_FALL * history.steps_since_first:
        return
    first = history.first or history.latest
    if _rising_updates(history, first.update_ratio).any():
        return
    if not STRAIGHT[0] <= _bend(history) <= STRAIGHT[1] or not history.loss_fall > 0:
        return
    evidence = {"fall": history.loss_fall, "trend": history.loss_trend, "update_ratio_largest": largest}
    same_way = history.gradient_cosine >= SAME_WAY
    yield Finding(
        rule="slow_learning",
        version=2,
        severity="warning" if history.loss_flat and history.loss_fall < STUCK_FALL else "info",
        layer=None,
        step=history.latest.step,
        message=f"the loss falls in a line, by {format_share(history.loss_fall)} in {history.steps_since_first} steps, "
        f"and no layer's weights change by more than {largest:.2g} of their norm in a step"
        + (f"; consecutive gradients point the same way (cosine {history.gradient_cosine:.2f})" if same_way else ""),
        evidence={**evidence, "gradient_cosine": history.gradient_cosine},
        advice="Try a learning rate three to ten times as high, or train for longer.",
    )


def _bend(history: History) -> float:
    """Return the fall a step in the newer half of the last losses over that in the older half: 1 for a line."""
    points = np.array([(s, x) for s, x in zip(history.loss_steps, history.losses, strict=True) if math.isfinite(x)])
    if len(points) < LONG:
        return math.nan
    older, newer = np.array_split(points, 2)
    before, after = (_fall_a_step(half[:, 0], half[:, 1]) for half in (older, newer))
    return after / before if before > 0 else math.nan


def _fall_a_step(steps: np.ndarray, losses: np.ndarray) -> float:
    """Return the fall a step of the straight line through losses, by least squares."""
    distances = steps - steps.mean()
    return -float(np.sum(distances * losses) / np.sum(np.square(distances)))


def falls_regardless(history: History) -> Iterator[Finding]:
    """Note a loss that falls although other rules found problems: part of the network learns."""
    if history.records < LONG or not history.learned:
        return
    yield Finding(
        rule="falls_regardless",
        version=2,
        severity="info",
        layer=None,
        step=history.latest.step,
        message=f"the loss has fallen by {format_share(history.loss_fall)} in spite of the problems above: the rest of "
        "the network learns",
        evidence={"fall": history.loss_fall},
        advice="Fixing the problems above may speed up training.",
    )
