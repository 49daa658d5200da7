"""Rules about how training goes: the size of the updates, clipping and the loss.

README.md says how a rule is written.
"""

from collections.abc import Iterator

import numpy as np

from tapescope.rules.finding import Finding, format_factor, format_share
from tapescope.rules.history import FALLING_TREND, LONG, MIN_STEPS, STUCK_FALL, WINDOW, History
from tapescope.rules.record_view import index_of_largest, lower_median

LARGE_UPDATE = 0.1
"""Of the weights' norm, at every step: ten such steps may replace the weights. A hundredth of that is usual."""
SMALL_UPDATE = 1e-4
"""Of the weights' norm: at this rate weights need 10,000 steps in one direction to be replaced."""
OUTLIER_FACTOR = 10.0
"""A layer whose update ratio is this many times that of most others is named; else all layers are meant."""
FROZEN_SHARE = 1e-3
"""Of the update ratio of most other layers."""
FAR_DISTANCE = 0.3
"""In multiples of the weights' norm: where weights moved so far and the loss did not, it is not going to."""
LITTLE_KEPT = 0.03
"""Share of the gradient's norm that is left: below it the clipping, and not the gradient, determines the step size.
Clipped at 1, a tenth is left of the early gradients of many a sound training."""


def update_too_large(history: History) -> Iterator[Finding]:
    """Report updates as large as the weights: lasting ones, or a single one of weights that were not small before."""
    usual = _of_layers(history.usual.update_ratio, history)
    largest = _of_layers(history.largest_update, history)
    lasting = history.steps_since_first >= MIN_STEPS // 2
    steady = history.records >= WINDOW and lasting and bool((usual >= LARGE_UPDATE).any())
    if not steady and not (largest >= 1).any():
        return
    # The first steps replace weights that start near 0, and nothing is wrong. So look at their size, or at the loss.
    not_falling = history.loss_fall < STUCK_FALL and not history.loss_trend > FALLING_TREND
    harmful = history.loss_rise >= 9 or (history.settled and lasting and not_falling)
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
    yield Finding(
        rule="update_too_large",
        version=1,
        severity="error" if harmful else "warning",
        layer=layer if stands_out else None,
        step=(
            history.first_step(lambda view: view.update_ratio[at] >= LARGE_UPDATE)
            if steady
            else int(history.largest_update_step[at])
        ),
        message=message,
        evidence={"update_ratio": ratio},
        advice=f"Lower the learning rate{' of this layer' if stands_out else ''} at least tenfold, or warm it up.",
    )


def _extreme_group(values: np.ndarray, history: History, smallest: bool = False) -> tuple[int, bool]:
    """Return the group with the largest (or smallest) value, and whether it is OUTLIER_FACTOR beyond most others."""
    with np.errstate(all="ignore"):
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
    """Return the values of layers, and NaN for other groups if there are layers.

    Embeddings, scales and shifts have update ratios of another size. Inf becomes NaN.
    """
    layers = history.layout.layer_count
    is_layer = np.arange(len(values)) < layers
    return np.where(is_layer | (layers == 0), np.where(np.isinf(values), np.nan, values), np.nan)


def _start_at_full_size(history: History) -> np.ndarray:
    """Return whether a group's first weights had a usual norm, [G].

    Glorot initialization gives a norm above the root of the smaller side of the matrix.
    """
    norm = np.full(len(history.layout.groups), np.inf)
    norm[: history.layout.layer_count] = 0.3 * np.sqrt(history.layout.units)
    return (history.first or history.latest).weight >= norm


def update_too_small(history: History) -> Iterator[Finding]:
    """Report weights that have hardly changed since the start: all of them while the loss is stuck, or one layer's."""
    first = history.first
    if history.records < 2 * WINDOW or history.steps_since_first < MIN_STEPS or first is None:
        return
    largest = _of_layers(history.largest_update, history)
    if not (largest <= SMALL_UPDATE).any():
        return
    rising = _rising_updates(history, first.update_ratio)
    slow = np.where((history.usual.gradient > 0) & ~rising, largest, np.nan)
    if np.all(np.isnan(slow)):
        return
    slowest, stands_out = _extreme_group(slow, history, smallest=True)
    usual = float(lower_median(largest))
    names = history.layout.groups
    all_small = bool(np.nanmax(largest) <= SMALL_UPDATE) and not rising.any()
    not_falling = history.loss_fall < STUCK_FALL and not history.loss_trend > FALLING_TREND
    if stands_out and slow[slowest] <= min(FROZEN_SHARE * usual, SMALL_UPDATE / 10):
        layer = names[slowest]
        ratio = float(largest[slowest])
        change = f"never change by more than {slow[slowest]:.2g}" if slow[slowest] else "do not change"
        message = (
            f"the weights of `{layer}` {change}, those of most other layers by up to {usual:.2g} of their norm in a "
        )
        message += "step"
        advice = (
            "Check that the optimizer has these weights, and their learning rate; else why little gradient arrives."
        )
    elif all_small and (history.loss_fall < STUCK_FALL / 10 or not_falling):
        layer = None
        ratio = float(np.nanmax(largest))
        message = f"no layer's weights ever changed by more than {ratio:.2g} of their norm in a step, and the loss "
        message += f"changed by {-100 * history.loss_fall:+.1f} %"
        advice = "Raise the learning rate at least tenfold."
    else:
        return
    yield Finding(
        rule="update_too_small",
        version=1,
        severity="warning",
        layer=layer,
        step=first.step,
        message=message,
        evidence={"update_ratio_largest": ratio, "update_ratio_of_most": usual},
        advice=advice,
    )


def _rising_updates(history: History, first: np.ndarray) -> np.ndarray:
    """Return whether a group's updates are growing, [G], as while a learning rate is warmed up."""
    with np.errstate(invalid="ignore"):
        rising = history.usual.update_ratio > 3 * first
        if rising.any():
            older, newer = np.split(np.stack([view.update_ratio for view in history.window]), 2)
            rising &= lower_median(newer) > 1.1 * lower_median(older)
    return rising


def always_clipped(history: History) -> Iterator[Finding]:
    """Report an optimizer that never gets the whole gradient."""
    if history.records < 2 * WINDOW or history.steps_since_first < MIN_STEPS // 2:
        return
    largest = max(view.share_kept for view in history.window)
    usual = history.usual.share_kept
    if not largest < 0.99:
        return
    yield Finding(
        rule="always_clipped",
        version=1,
        severity="warning" if usual <= LITTLE_KEPT else "info",
        layer=None,
        step=history.first_step(lambda view: view.share_kept < 0.99),
        message=f"the gradient is clipped at every measured step, and keeps {usual:.2g} of its norm",
        evidence={"share_kept": usual, "share_kept_at_most": largest},
        advice="Raise the threshold to the usual norm of the gradient, so that only outliers are clipped, or look "
        "where the gradient grows.",
    )


def loss_not_falling(history: History) -> Iterator[Finding]:
    """Report a loss that stands still although the weights move; only where no other rule gives a reason."""
    if not history.loss_stuck:
        return
    distance = float(lower_median(_of_layers(history.distance, history)))
    if not distance >= FAR_DISTANCE:
        return
    yield Finding(
        rule="loss_not_falling",
        version=1,
        severity="warning",
        layer=None,
        step=history.latest.step,
        message=f"the loss has changed by {-100 * history.loss_fall:+.1f} % since the first records, although the "
        f"gradient arrives and the weights of most layers moved by {format_factor(distance)} their norm",
        evidence={
            "fall": history.loss_fall,
            "trend": history.loss_trend,
            "way": distance,
            "records": float(history.records),
        },
        advice="Check what a gradient does not show: whether the labels belong to these examples, whether the loss is "
        "the right one, and whether the learning rate is too high.",
    )


def falls_regardless(history: History) -> Iterator[Finding]:
    """Note a loss that falls although other rules found problems: part of the network learns."""
    if history.records < LONG or not history.learned:
        return
    yield Finding(
        rule="falls_regardless",
        version=1,
        severity="info",
        layer=None,
        step=history.latest.step,
        message=f"the loss has fallen by {format_share(history.loss_fall)} in spite of the problems above: the rest of "
        "the network learns",
        evidence={"fall": history.loss_fall},
        advice="Fixing the problems above may speed up training.",
    )
