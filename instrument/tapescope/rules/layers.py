"""Rules about one layer: its first weights and what its units do. Made as those in rules_flow.py."""

import math
from collections.abc import Iterator

import numpy as np

from tapescope.rules.finding import Finding, percent, times
from tapescope.rules.gradient_flow import FAR, NEVER_SATURATED, named, silencer
from tapescope.rules.history import WINDOW, History
from tapescope.rules.record_view import largest

GAIN = 1.0
"""Decades in one layer's weights. Glorot, He, LeCun and orthogonal initialization, and Keras' own uniform and normal
ones at common widths, keep the gradient's length within a factor of 10."""
DEAD = 0.5
SATURATED = 0.5
"""Half of a layer: from there on more of it is idle than works. A warning where that harms, or came about by training;
deep in a narrow ReLU network examples look alike, and near half of the units may be silent from the start for nothing.
"""
NEARLY_ALL = 0.9
SATURATED_ONE_SIDED = 0.9
"""ELU, softplus, GELU and the like are at rest on half of their inputs by design."""
DEAD_OUTPUTS = 0.1
DYING = 0.25
FIRM_EXAMPLES = 300
"""A unit that is silent on 300 examples fires on less than 1 % of all, with 95 % confidence (the rule of three)."""
SCALE = (-2.0, 1.5)
"""Decades, of the standard deviation of the first layer's outputs: standardized data, or pixels between 0 and 1, give
0.1 to 3.
"""

BOUNDED = {"sigmoid", "tanh", "softsign", "hard_sigmoid", "hard_tanh"}


def poor_initialization(seen: History) -> Iterator[Finding]:
    """What the first record says of the weights, before they learned anything."""
    first, of = seen.first, seen.of
    if first is None or seen.records > 1 or first.step > WINDOW:
        return
    read = np.where(of.reader >= 0, first.between[of.reader], 0) if of.layers else np.zeros(0)
    # A skip connection around the layer makes up for weights near 0, and normalisation after it for any scale.
    gain = _excused(_excused(first.gain, np.maximum(first.between, 0)), read)
    gain = _excused(gain, -of.usual_gain)  # layers that widen or narrow much change it by design
    std, saturated = first.layers("activation_std"), first.saturated
    with np.errstate(all="ignore"):
        scale = _excused(np.log10(std), read)
    together = float(np.sum(gain[list(of.path[:-1])])) if np.isfinite(gain).all() else 0.0
    worst = largest(np.abs(gain)) if abs(together) >= FAR and np.all(np.abs(gain) < GAIN) else -1
    for layer in range(of.layers):
        name, kind, large = of.groups[layer], of.activations[layer], False
        if layer == worst:
            large = together > 0
            message = (
                f"the first weights of {len(of.path) - 1} layers together make the gradient that passes them "
                f"{times(10**together)} as long, those of `{name}` most"
            )
            evidence = {"decades_weights": together, "decades_here": float(gain[layer])}
        elif gain[layer] >= GAIN or (gain[layer] <= -GAIN and not of.sinks[layer]):  # outputs may well start at 0
            large = gain[layer] > 0
            longer = f"{times(10 ** gain[layer])} as long" if np.isfinite(gain[layer]) else "0"
            message = f"the first weights of `{name}` make the gradient that passes them {longer}"
            evidence = {"decades_weights": max(float(gain[layer]), -99.0)}
        elif of.heads[layer] and kind in BOUNDED and saturated[layer] >= SATURATED:
            large = True
            message = f"{percent(saturated[layer])} of the outputs of `{name}` are saturated from the start"
            evidence = {"saturated": float(saturated[layer])}
        elif of.heads[layer] and not of.sinks[layer] and not SCALE[0] <= scale[layer] <= SCALE[1]:
            large = scale[layer] > 0
            message = f"the outputs of `{name}`, which reads the data, have standard deviation {std[layer]:.2g}; "
            message += "0.1 to 3 is usual"
            evidence = {"activation_std": float(std[layer])}
        else:
            continue
        yield Finding(
            "poor_initialization",
            1,
            "warning",
            name,
            first.step,
            message,
            evidence,
            f"{'Scale the data to about 1' if of.heads[layer] else 'Normalise its input'}, or take "
            f"{'smaller' if large else 'larger'} first weights: He for ReLU and its kin, Glorot for tanh and sigmoid.",
        )


def _excused(decades: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Moved towards 0 by what works against them, and not beyond; NaN is 0."""
    with np.errstate(invalid="ignore"):
        moved = np.where(
            decades > 0, np.maximum(decades + np.minimum(by, 0), 0), np.minimum(decades + np.maximum(by, 0), 0)
        )
    return np.where(np.isnan(moved), 0.0, moved)


def dead_units(seen: History) -> Iterator[Finding]:
    """Units without any output or gradient in a whole window of examples."""
    if not seen.of.layers or not seen.settled or not seen.now.number("window_examples", 0) >= FIRM_EXAMPLES:
        return
    share, before = seen.usual.dead, seen.first_dead
    examples = seen.now.number("window_examples")
    # An output that is never anything but 0 is a class never predicted, or a value never given.
    many = share >= np.where(seen.of.sinks, DEAD_OUTPUTS, DEAD)
    with np.errstate(invalid="ignore"):
        more = share - before >= DYING
    for layer in np.flatnonzero(many | more).tolist():
        if silencer(layer, seen) != layer:
            continue
        name, count = seen.of.groups[layer], share[layer] * seen.of.units[layer]
        last, enough, rising = (bool(of_all[layer]) for of_all in (seen.of.sinks, many, more))
        harm = last or rising or share[layer] >= NEARLY_ALL or seen.stuck
        since = seen.since(lambda v, i=layer, n=DEAD_OUTPUTS if last else DEAD: v.dead[i] >= n)
        kept = f"{count:.0f} of the {seen.of.units[layer]:.0f} units of `{name}`"
        yield Finding(
            "dead_units" if enough else "dying_units",
            1,
            "error" if share[layer] >= 1 else "warning" if enough and harm else "info",
            name,
            since,
            f"{kept} gave nothing on any of {examples:.0f} examples"
            + (f"; at first it was {before[layer] * seen.of.units[layer]:.0f}" if rising else ""),
            {"dead": float(count), "share": float(share[layer]), "window_examples": examples},
            "Lower the learning rate, start its biases at 0, or use Leaky ReLU or ELU there."
            + (" An output layer of ReLU can give up a class for good: use softmax or sigmoid." if last else ""),
        )


def saturation(seen: History) -> Iterator[Finding]:
    """Most of a layer is where its activation's derivative is below 1 % of its largest."""
    if not seen.of.layers or not seen.settled:
        return
    share, gate = seen.usual.saturated, seen.usual.flow_gate
    first = (seen.first or seen.now).saturated
    for layer in np.flatnonzero(share >= min(SATURATED, SATURATED_ONE_SIDED)).tolist():
        kind, last = seen.of.activations[layer], seen.of.sinks[layer]
        limit = SATURATED if kind in BOUNDED else SATURATED_ONE_SIDED
        if kind in NEVER_SATURATED or not share[layer] >= limit:
            continue
        # Outputs saturate where training goes well. Not well: the gradient stops there, and the loss does not fall.
        if last and not (seen.stuck and gate[layer] <= -GAIN and share[layer] >= SATURATED_ONE_SIDED):
            continue
        # Hidden ones do as well, as they learn; at the start, when nothing was learned, they should not.
        harm = last or share[layer] >= NEARLY_ALL or seen.stuck or first[layer] >= limit
        name = seen.of.groups[layer]
        evidence = {"saturated": float(share[layer])}
        if math.isfinite(gate[layer]):
            evidence["decades_gate"] = float(gate[layer])
        yield Finding(
            "saturation",
            1,
            "warning" if harm else "info",
            name,
            seen.since(lambda v, i=layer, n=limit: v.saturated[i] >= n),
            f"{percent(share[layer])} of the outputs of {named(layer, seen)} are saturated, where its derivative is "
            "below 1 % of the largest"
            + (f"; {10 ** gate[layer]:.2g} of the gradient gets through" if math.isfinite(gate[layer]) else "")
            + (", and the loss does not fall" if last else ""),
            evidence,
            "Take a loss that undoes the activation (cross-entropy from logits), or smaller weights there."
            if last
            else "Normalise its input, scale its weights down, or use an activation that does not saturate.",
        )
