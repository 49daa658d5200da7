"""Rules about where the gradient goes on its way back, and where it breaks off. Each names a layer.

A rule looks at the history of a run and yields what is wrong, since when, and by which numbers; it may go on saying the
same, `rules.Watch` keeps the first time. Thresholds are the same for all networks, each with its reason beside it;
docs/calibration.md says how well they do.
"""

import math
from collections.abc import Iterator

import numpy as np

from tapescope.rules.finding import Finding, times
from tapescope.rules.history import History
from tapescope.rules.record_view import View, largest, median

FAR = 2.0
"""Decades between the two ends of the network: where 1 % of the gradient arrives the first layers stand still while the
last ones learn; where it grows a hundredfold they are thrown about."""
TOO_FAR = 2.5
"""Decades that are too many whatever the optimizer makes of them, as long as nothing was learned: what four or five
sigmoid layers take. Ten ReLU layers as Keras initializes them take 1.5.
"""
NEVER_SATURATED = {"linear", "relu", "leaky_relu"}
"""What their activation takes is as it should be, unless it is everything. On the wire every zero of ReLU is saturated;
what matters there is whether units are dead."""


def non_finite(seen: History) -> Iterator[Finding]:
    """A NaN or Inf, reported at once: after it no number means anything."""
    if not (_ill(seen.now) or _worse(seen.now, seen) or seen.loss_is_lost):
        return
    views, names = list(seen.window), seen.of.groups
    ill, worse = [_ill(v) for v in views], [_worse(v, seen) for v in views]
    bad = [a or b or math.isinf(v.loss) for a, b, v in zip(ill, worse, views, strict=True)]
    at = len(bad) - 1
    while at and bad[at - 1]:  # what came first, though only what followed made it an error
        at -= 1
    first, elements, layer = views[at], _bad(views[at], seen), None
    forward, backward = (int(first.number(f"first_nonfinite_{way}", -1)) for way in ("forward", "backward"))
    if forward >= 0:
        layer = names[forward]
        message = f"`{layer}` is the first layer with a NaN or Inf, in what it is given, its weights or its output"
        message += f"; on the way back the first is `{names[backward]}`" if backward >= 0 else ""
    elif worse[at]:
        owners, variables = seen.of.owned
        layer = names[backward if backward >= 0 else owners[np.argmax(elements[variables])]]
        message = f"every output is finite, and from `{layer}` backwards the gradient is not"
    else:
        message = f"the loss is {first.loss}, and every layer is finite"
    # The gradient alone, and nothing was changed by it: so it looks when a loss scale overflows and skips a step. If
    # it was no such thing, the next record has it in the weights.
    skipped = worse[at] and not any(ill) and not np.any(first.pace > 0)
    since = views[at - 1].step + 1 if at else first.step
    when = f"at step {first.step}" if since == first.step else f"between steps {since} and {first.step}"
    yield Finding(
        "non_finite",
        1,
        "info" if skipped else "error",
        layer,
        first.step,
        f"{message}, {when}" + ("; no weight was changed, as when a loss scale overflows" if skipped else ""),
        {
            "elements_forward": float(np.nansum(first.layers("activation_nonfinite"))),
            "elements_gradient": float(elements.sum()),
            "index_forward": float(forward),
            "index_backward": float(backward),
        },
        ("Nothing to do while a loss scale is being sought. If it goes on: look" if skipped else "Look")
        + " there for a division by 0, a logarithm or root of 0, or an overflow, and at the data; if the gradient "
        "grew before, lower the learning rate or clip.",
    )


def _ill(view: View) -> bool:
    return view.number("first_nonfinite_forward", -1) >= 0


def _worse(view: View, seen: History) -> bool:
    return view.number("first_nonfinite_backward", -1) >= 0 or bool(_bad(view, seen).any())


def _bad(view: View, seen: History) -> np.ndarray:
    counts = view.column("gradient_nonfinite", seen.of.variables)
    return np.where(np.isfinite(counts), counts, 0)


def no_gradient(seen: History) -> Iterator[Finding]:
    """Variables that the loss does not depend on, or no more."""
    if not seen.settled:
        return
    gradient = seen.usual.gradient
    if not np.any(gradient > 0):  # of none of them: a loss of exactly 0, or the last layer is dead
        return
    shut = bool(seen.of.path) and seen.usual.lost == -math.inf  # which `vanishing` says
    owned = np.bincount(seen.of.owned[0], minlength=len(gradient))
    absent = np.isnan(gradient)
    for group in np.flatnonzero((owned > 0) & (absent | (not shut and ~(gradient > 0)))):
        name, cut = seen.of.groups[group], bool(absent[group])
        yield Finding(
            "no_gradient",
            1,
            "error" if cut else "warning",
            name,
            seen.since(lambda v, g=group: not v.gradient[g] > 0),
            f"no path leads from the loss to `{name}`: it has no gradient"
            if cut
            else f"the gradient of `{name}` is exactly 0",
            {"variables": float(owned[group]), "gradient_norm": 0.0},
            "Look for a stop_gradient, an operation without a gradient, or an output that is not used."
            if cut
            else "Look for the dead or saturated layer after it, or for weights after it that are 0.",
        )


def vanishing(seen: History) -> Iterator[Finding]:
    """Less than 1 % of the gradient reaches the first layer; the layer that takes most of it is named.

    Noted only, where no harm is seen: the first layer's weights move as others do, and the loss falls.
    """
    if not seen.settled or not seen.of.path:
        return
    usual, total = seen.usual, seen.usual.lost
    if not total <= -FAR:
        return
    parts = usual.losses
    names, first, last = seen.of.groups, seen.of.path[-1], seen.of.path[0]
    taken = float(np.nanmin(parts))
    at = silencer(int(np.nanargmin(parts)), seen)
    gate, weights = float(usual.gate[at]), float(usual.gain[at])
    kind, share, pace = seen.of.activations[at], 10.0**total, usual.pace
    silent = taken == -math.inf
    learner = next((layer for layer in reversed(seen.of.path) if pace[layer] >= 0), None)
    learns, most = 0.0 if learner is None else float(pace[learner]), float(median(pace))
    behind = not learns > 0.01 * most
    harm = silent or seen.stuck or (not seen.learned and (behind or total <= -TOO_FAR))
    others = 0 if silent else int(np.sum(parts < 0.5 * taken)) - 1
    where = "activation" if gate <= weights else "weights"
    if not silent:
        takes = f"makes the gradient {times(10**-taken)} shorter, "
        by_design = where == "activation" and kind in NEVER_SATURATED
        takes += "and its weights do not make up for its activation" if by_design else f"most by its {where}"
    elif usual.activation_zero[at] >= 1:
        takes = "gives nothing but 0, and lets no gradient through"
    else:
        takes = f"lets no gradient through its {where}"
    message = f"{named(at, seen)} {takes}"
    if others > 0:
        message += f", and {'one other' if others == 1 else f'{others} others'} about as much"
    message += f"; `{names[first]}` gets {share:.2g} of what `{names[last]}` gets"
    if learner is not None and most > 0:  # what the optimizer makes of it
        whose = "its weights" if learner == first else f"the weights of `{names[learner]}`"
        message += f", {'and' if behind else 'yet'} {whose} change by {learns:.2g} of their length a step, where "
        message += f"{most:.2g} is usual"
    if where == "weights" or (kind in NEVER_SATURATED and not silent):
        advice = "Initialize these weights larger (He for ReLU, Glorot for tanh), or normalise what comes out."
    elif kind in NEVER_SATURATED:
        advice = "Lower the learning rate, start its biases at 0, or use Leaky ReLU or ELU there."
    else:
        advice = "Use ReLU or ELU with He initialization there, or normalise its input, or lead a skip around it."
    yield Finding(
        "vanishing",
        1,
        "info" if not harm else "error" if behind else "warning",
        names[at],
        seen.since(lambda v: v.lost <= -FAR),
        message,
        {
            "share_arriving": share,
            "decades": max(total, -99.0),
            "decades_here": max(taken, -99.0),
            "decades_gate": max(gate, -99.0),
            "decades_weights": max(weights, -99.0),
        },
        advice,
    )


def named(layer: int, seen: History) -> str:
    """`the tanh layer ...`, where it has an activation that is known."""
    kind = seen.of.activations[layer]
    return f"the {'' if kind in ('linear', 'unknown') else kind + ' '}layer `{seen.of.groups[layer]}`"


def silencer(layer: int, seen: History) -> int:
    """The first of the layers that lead to this one and give nothing but 0: those after it only follow."""
    silent = seen.usual.activation_zero >= 1
    while silent[layer] and seen.of.follow[layer] >= 0 and silent[seen.of.follow[layer]]:
        layer = seen.of.follow[layer]
    return layer


def exploding(seen: History) -> Iterator[Finding]:
    """The gradient grows a hundredfold on its way to the first layer, or in the course of training."""
    if not seen.settled:
        return
    names = seen.of.groups
    total = seen.usual.gained if seen.of.path else 0.0
    if total >= FAR:
        parts = seen.usual.gains
        at, first, last = largest(parts), seen.of.path[-1], seen.of.path[0]
        total, most = min(total, 99.0), min(float(parts[at]), 99.0)
        yield Finding(
            "exploding",
            1,
            "info" if seen.learned else "warning",
            names[at],
            seen.since(lambda v: v.gained >= FAR),
            f"the gradient gets {times(10**total)} as long on its way from `{names[last]}` to `{names[first]}`, most "
            f"in `{names[at]}`, which makes it {times(10**most)} as long",
            {"decades": total, "decades_here": most},
            "Initialize these weights smaller, normalise what comes out, or clip the gradient.",
        )
    usual, early = seen.usual.norm, seen.early_norm
    if usual >= 10**FAR * early and seen.rise >= 1:
        with np.errstate(all="ignore"):
            growth = seen.usual.gradient / (seen.first or seen.now).gradient
        name = names[largest(growth)]
        yield Finding(
            "exploding",
            1,
            "error",
            name,
            seen.since(lambda v: v.norm >= 10**FAR * early),
            f"the gradient has grown from {early:.2g} to {usual:.2g} and the loss with it; most in `{name}`",
            {"norm": usual, "norm_at_first": early, "loss_rise": seen.rise},
            "Lower the learning rate, or clip the gradient by its global norm.",
        )


def gradient_spike(seen: History) -> Iterator[Finding]:
    """Once: noted. Twice: the data have something in them."""
    if not seen.spikes:
        return
    first, often = seen.spikes[0], len(seen.spikes)
    with np.errstate(all="ignore"):
        factors = first.gradient / seen.usual.gradient
        factor = float(np.float64(first.norm) / seen.usual.norm)
    name = seen.of.groups[largest(factors)]
    yield Finding(
        "gradient_spike",
        1,
        "info" if often < 2 else "warning",
        name,
        first.step,
        f"the gradient jumped to {first.norm:.2g}, {times(factor)} what is usual, most in `{name}`, and came back"
        + ("" if often < 2 else f", and again at step {seen.spikes[1].step}"),
        {"norm": first.norm, "times_usual": factor, "spikes": float(often)},
        "Look at the examples of that step; clip the gradient by its global norm.",
    )
