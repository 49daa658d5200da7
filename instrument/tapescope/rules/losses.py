"""Rules about the loss of the training and of the validation. README.md says how a rule is written."""

import math
from collections.abc import Iterator

import numpy as np

from tapescope.rules.finding import Finding, format_factor, format_share
from tapescope.rules.history import (
    LONG,
    MIN_STEPS,
    OF_A_CONSTANT,
    RISEN_VALIDATIONS,
    STUCK_FALL,
    WINDOW,
    History,
    is_impossible,
)
from tapescope.rules.networks import are_several_networks, own_variables
from tapescope.rules.updates import of_layers, of_most_layers, rising_updates

FAR_DISTANCE = 0.3
"""In multiples of the weights' norm: where weights moved so far and the loss did not, it is not going to."""
SLOW_UPDATE = 3e-3
"""Share of the weights' norm: at this rate weights need 300 steps in one direction to be replaced."""
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
"""Share of the lowest validation loss. The estimate of a few hundred examples is off by about a tenth of it."""
NEVER_FELL = 0.9
"""Share of the first training loss."""
HARDLY_FELL = 0.75
"""The same where nine tenths of the training loss are gone, and those of the validations have not risen again."""
SELDOM_ZERO = {"binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy"}
"""Losses that are exactly 0 only where every output is as sure as float32 can say."""


def loss_not_falling(history: History) -> Iterator[Finding]:
    """Report a loss that stands still although the weights move; only where no other rule gives a reason."""
    if not history.loss_stuck or (history.may_be_below_constant and not history.below_constant):
        return
    # Layers without trained weights of their own, as separate activations and frozen ones, do not move.
    distance = of_most_layers(np.where(np.isneginf(history.largest_update), np.nan, history.distance), history)
    if not distance >= FAR_DISTANCE or are_several_networks(history.layout):
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
        + (f"; it is {OF_A_CONSTANT}" if history.equals_constant else excuse),
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


_OWN_TARGETS = "; the network makes its own targets, which move with it"


def _excuse(history: History) -> str:
    """Return why a loss may stand still, for a message; empty where it may not."""
    if history.below_constant:
        return f"; it is little, but surely below {OF_A_CONSTANT}"
    if history.targets_moved:
        return _OWN_TARGETS
    if any(objective.loss != "custom" for objective in history.layout.objectives):
        return ""
    if history.takes_both_signs:
        return "; it has both signs, and such a loss, as that of a policy gradient, need not fall"
    return _OWN_TARGETS if _has_targets_of_its_own(history) else ""


def _has_targets_of_its_own(history: History) -> bool:
    """Return whether layers are called twice, and no gradient flows to what they make in one of the two calls."""
    arrives = np.isfinite([view.layer_column("delta_norm") for view in history.window]).any(axis=0)
    own = own_variables(history.layout)
    with_gradient = {own[layer] for layer in np.flatnonzero(arrives)}
    without = {own[layer] for layer in np.flatnonzero(~arrives & ~history.layout.is_output)}  # outputs may have none
    return bool((with_gradient & without) - {frozenset()})


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
    ratios = of_layers(history.usual.update_ratio, history)
    largest = float(np.nanmax(ratios)) if np.any(ratios >= 0) else math.nan
    if not history.had_time or history.learned or not largest <= SLOW_UPDATE or not history.loss_trend >= SURE_TREND:
        return
    if history.loss_fall > SLOW_FALL * history.steps_since_first:
        return
    first = history.first or history.latest
    if rising_updates(history, first.update_ratio).any():
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
