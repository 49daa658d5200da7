"""Rules about where the gradient goes and what the units do: each names a layer.

A rule looks at the history of a run and yields what is wrong, since when, and by which numbers; it may go on saying the
same, `rules.Watch` keeps the first time. Thresholds are the same for all networks, each with its reason beside it;
docs/calibration.md says how well they do.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tapescope.history import History, View

FAR = 2.0
"""Decades between the two ends of the network: where 1 % of the gradient arrives the first layers stand still while the
last ones learn; where it grows a hundredfold they are thrown about."""
GAIN = 1.0
"""Decades in one layer's weights. Glorot, He, LeCun and orthogonal initialization, and Keras' own uniform and normal
ones at common widths, keep the gradient's length within a factor of 10."""
DEAD = 0.5
SATURATED = 0.5
"""Half of a layer: from there on more of it is idle than works."""
SATURATED_ONE_SIDED = 0.9
"""ELU, softplus, GELU and the like are at rest on half of their inputs by design."""
DYING = 0.25
FIRM_EXAMPLES = 300
"""A unit that is silent on 300 examples fires on less than 1 % of all, with 95 % confidence (the rule of three)."""
STD = (1e-2, 3e1)
"""Of the first layer's outputs: standardized data, or pixels between 0 and 1, give 0.1 to 3."""

BOUNDED = {"sigmoid", "tanh", "softsign", "hard_sigmoid", "hard_tanh"}
NEVER_SATURATED = {"linear", "relu", "leaky_relu"}
"""Of ReLU every zero is saturated on the wire; what matters there is whether units are dead."""


class Finding(NamedTuple):
    """What a rule says. Its fields are those of the wire."""

    rule: str
    version: int
    severity: str
    """"error", "warning" or "info"."""
    layer: str | None
    step: int
    """The first at which it was so."""
    message: str
    evidence: dict[str, float]
    advice: str


def non_finite(seen: History) -> Iterator[Finding]:
    """A NaN or Inf, reported at once: after it no number means anything."""
    now, names = seen.now, seen.of.groups
    forward, backward = (int(now.number(f"first_nonfinite_{way}", -1)) for way in ("forward", "backward"))
    bad = np.nan_to_num(now.column("gradient_nonfinite", seen.of.variables))
    if forward < 0 and backward < 0 and not bad.any() and not seen.loss_is_lost:
        return
    layer, severity, skipped = None, "error", ""
    if forward >= 0:
        layer = names[forward]
        message = f"`{layer}` is the first layer with a NaN or Inf, in what it is given, its weights or its output"
        if backward >= 0:
            message += f"; on the way back the first is `{names[backward]}`"
    elif backward >= 0 or bad.any():
        owners, variables = seen.of.owned
        layer = names[backward if backward >= 0 else owners[np.argmax(bad[variables])]]
        message = f"every output is finite, and from `{layer}` backwards the gradient is not"
        if not np.any(now.pace > 0):
            # A loss scale that overflows looks like this, and the step is skipped. If it was no such thing there are
            # NaN weights at the next record, which is then an error.
            severity, skipped = "info", "; no weight was changed, as when a loss scale overflows"
    else:
        message = f"the loss is {now.loss}, and every layer is finite"
    since = seen.window[-2].step + 1 if len(seen.window) > 1 else now.step
    when = f"at step {now.step}" if since == now.step else f"between steps {since} and {now.step}"
    evidence = {
        "elements_forward": float(np.nansum(now.layers("activation_nonfinite"))),
        "elements_gradient": float(bad.sum()),
        "index_forward": float(forward),
        "index_backward": float(backward),
    }
    advice = (
        "Look there for a division by 0, a logarithm or root of 0, or an overflow, and at the data; "
        "if the gradient grew before, lower the learning rate or clip."
    )
    yield Finding("non_finite", 1, severity, layer, now.step, f"{message}, {when}{skipped}", evidence, advice)


def no_gradient(seen: History) -> Iterator[Finding]:
    """Variables that the loss does not depend on, or no more."""
    if not seen.settled:
        return
    gradient = seen.usual(lambda v: v.gradient)
    if not np.any(gradient > 0):  # all of them: a loss of exactly 0, or the last layer is dead
        return
    owners, variables = seen.of.owned
    absent = np.isnan(seen.usual(lambda v: v.column("gradient_norm", seen.of.variables)))
    for group, name in enumerate(seen.of.groups):
        own = variables[owners == group]
        if not own.size or gradient[group] > 0:
            continue
        cut = bool(absent[own].all())
        message = (
            f"no path leads from the loss to `{name}`: it has no gradient"
            if cut
            else f"the gradient of `{name}` is exactly 0"
        )
        yield Finding(
            "no_gradient",
            1,
            "error" if cut else "warning",
            name,
            seen.since(lambda v, g=group: not v.gradient[g] > 0),
            message,
            {"variables": float(own.size), "gradient_norm": 0.0},
            "Look for a stop_gradient, an operation without a gradient, or an output that is not used."
            if cut
            else "Every way to it is shut: look for the dead or saturated layer after it, or weights that start at 0.",
        )


def losses(view: View, seen: History) -> np.ndarray:
    """Decades that each layer on the path takes, [L]. What lies between two may make up for it, not add to it."""
    return _parts(view, seen, np.maximum)


def gains(view: View, seen: History) -> np.ndarray:
    """Decades that each layer on the path adds, [L]. What lies between, as normalisation, may take away, not add."""
    return _parts(view, seen, np.minimum)


def _parts(view: View, seen: History, excuse: np.ufunc) -> np.ndarray:
    path = list(seen.of.path)
    known = ~np.isnan(view.layers("flow_weight"))
    with np.errstate(invalid="ignore"):
        weights = view.gain + np.where(known, excuse(view.between, 0), view.between)
        weights[path[-1:]] = 0  # what the first layer's weights do to its input's gradient is nobody's loss
        parts = np.nan_to_num(weights + view.gate, nan=0, posinf=np.inf, neginf=-np.inf)
    return np.where(np.isin(np.arange(len(parts)), path), parts, np.nan)


def vanishing(seen: History) -> Iterator[Finding]:
    """Less than 1 % of the gradient reaches the first layer; the layer that takes most of it is named."""
    if not seen.settled or not seen.of.path:
        return
    total = float(seen.usual(lambda v: np.nansum(losses(v, seen))))
    if not total <= -FAR:
        return
    parts = seen.usual(lambda v: losses(v, seen))
    at, first, last = int(np.nanargmin(parts)), seen.of.path[-1], seen.of.path[0]
    names, pace = seen.of.groups, seen.usual(lambda v: v.pace)
    gate, weights = (float(seen.usual(what)[at]) for what in (lambda v: v.gate, lambda v: v.gain))
    by_gate = gate <= weights
    kind = seen.of.activations[at]
    share = 10.0**total
    behind = not pace[first] > 0.01 * pace[last]
    cost = f"{-parts[at]:.1f} decades" if np.isfinite(parts[at]) else "all of it"
    message = (
        f"the {'' if kind in ('linear', 'unknown') else kind + ' '}layer `{names[at]}` costs the gradient {cost}, "
        f"{'in its activation' if by_gate else 'in its weights'}; `{names[first]}` gets {share:.2g} of what "
        f"`{names[last]}` gets" + ("" if behind else ", for which the optimizer makes up")
    )
    yield Finding(
        "vanishing",
        1,
        "error" if behind else "warning",
        names[at],
        seen.since(lambda v: np.nansum(losses(v, seen)) <= -FAR),
        message,
        {
            "share_arriving": share,
            "decades": max(total, -99.0),
            "decades_here": max(float(parts[at]), -99.0),
            "decades_gate": max(gate, -99.0),
            "decades_weights": max(weights, -99.0),
        },
        "Use ReLU or ELU with He initialization there, or normalise its input, or lead a skip connection around it."
        if by_gate
        else "Initialize these weights larger (He for ReLU, Glorot for tanh), or normalise what comes out.",
    )


def exploding(seen: History) -> Iterator[Finding]:
    """The gradient grows a hundredfold on its way to the first layer, or in the course of training."""
    if not seen.settled:
        return
    names = seen.of.groups
    total = float(seen.usual(lambda v: np.nansum(gains(v, seen)))) if seen.of.path else 0.0
    if total >= FAR:
        parts = seen.usual(lambda v: gains(v, seen))
        at, first, last = int(np.nanargmax(parts)), seen.of.path[-1], seen.of.path[0]
        yield Finding(
            "exploding",
            1,
            "warning",
            names[at],
            seen.since(lambda v: np.nansum(gains(v, seen)) >= FAR),
            f"the gradient grows {10**total:.2g} times on its way from `{names[last]}` to `{names[first]}`, most in "
            f"`{names[at]}`, whose weights make it {10 ** parts[at]:.2g} times as long",
            {"decades": total, "decades_here": float(parts[at])},
            "Initialize these weights smaller, normalise what comes out, or clip the gradient.",
        )
    usual, early = float(seen.usual(lambda v: v.norm)), seen.early_norm
    rise = seen.rise
    if usual >= 10**FAR * early and rise >= 1:
        growth = seen.usual(lambda v: v.gradient) / seen.first.gradient if seen.first else np.zeros(0)
        name = names[int(np.nanargmax(growth))]
        yield Finding(
            "exploding",
            1,
            "error",
            name,
            seen.since(lambda v: v.norm >= 10**FAR * early),
            f"the gradient has grown from {early:.2g} to {usual:.2g} and the loss with it; most in `{name}`",
            {"norm": usual, "norm_at_first": early, "loss_rise": rise},
            "Lower the learning rate, or clip the gradient by its global norm.",
        )


def gradient_spike(seen: History) -> Iterator[Finding]:
    """Once: noted. Twice: the data have something in them."""
    if not seen.spikes:
        return
    first, times = seen.spikes[0], len(seen.spikes)
    before = seen.usual(lambda v: v.gradient)
    with np.errstate(all="ignore"):
        factors = first.gradient / before
    name = (
        seen.of.groups[int(np.nanargmax(np.where(np.isfinite(factors), factors, np.nan)))]
        if np.any(np.isfinite(factors))
        else None
    )
    factor = float(first.norm / seen.usual(lambda v: v.norm))
    yield Finding(
        "gradient_spike",
        1,
        "info" if times < 2 else "warning",
        name,
        first.step,
        f"the gradient jumped to {first.norm:.2g}, {factor:.0f} times what is usual, and came back"
        + ("" if times < 2 else f", and again at step {seen.spikes[1].step}"),
        {"norm": first.norm, "times_usual": factor, "spikes": float(times)},
        "Look at the examples of that step; clip the gradient by its global norm.",
    )


def poor_initialization(seen: History) -> Iterator[Finding]:
    """What the first record says of the weights, before they learned anything."""
    first, of = seen.first, seen.of
    if first is None or seen.records > 1:
        return
    read = np.where(of.reader >= 0, first.between[of.reader], 0) if of.layers else np.zeros(0)
    with np.errstate(invalid="ignore"):
        # A skip connection around the layer makes up for weights near 0, and normalisation after it for any scale.
        gain = first.gain + np.maximum(first.between, 0) + read
    std, saturated = first.layers("activation_std"), first.layers("saturated")
    for layer in range(of.layers):
        name, kind, large = of.groups[layer], of.activations[layer], False
        if gain[layer] >= GAIN or (gain[layer] <= -GAIN and not of.sinks[layer]):  # outputs may well start at 0
            large = gain[layer] > 0
            times = f"{10 ** gain[layer]:.2g} times as long" if np.isfinite(gain[layer]) else "0"
            message = f"the first weights of `{name}` make the gradient that passes them {times}"
            evidence = {"decades_weights": max(float(gain[layer]), -99.0)}
        elif of.heads[layer] and kind in BOUNDED and saturated[layer] >= SATURATED:
            large = True
            message = f"{saturated[layer]:.0%} of the outputs of `{name}` are saturated before the first update"
            evidence = {"saturated": float(saturated[layer])}
        elif (
            of.heads[layer]
            and not of.sinks[layer]
            and not STD[0] <= std[layer] * 10.0 ** -read[layer] <= STD[1]
            and np.isfinite(std[layer])
        ):
            large = std[layer] > 1
            message = f"the outputs of `{name}`, which reads the data, have standard deviation {std[layer]:.2g}"
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


def dead_units(seen: History) -> Iterator[Finding]:
    """Units without any output or gradient in a whole window of examples."""
    if not seen.of.layers or not seen.settled or not seen.now.number("window_examples", 0) >= FIRM_EXAMPLES:
        return
    share, before = seen.usual(lambda v: v.dead), seen.first_dead
    examples = seen.now.number("window_examples")
    for layer in range(seen.of.layers):
        name, count = seen.of.groups[layer], share[layer] * seen.of.units[layer]
        last = bool(seen.of.sinks[layer])
        # An output that is never anything but 0 is a class never predicted, a value never given: one is too many.
        enough = count >= 1 if last else share[layer] >= DEAD
        rising = share[layer] - before[layer] >= DYING
        if not enough and not rising:
            continue
        since = seen.since(lambda v, i=layer, n=share[layer] if last else DEAD: v.dead[i] >= n)
        kept = f"{count:.0f} of the {seen.of.units[layer]:.0f} units of `{name}`"
        yield Finding(
            "dead_units" if enough else "dying_units",
            1,
            ("error" if share[layer] >= 1 else "warning") if enough else "info",
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
    share, gate = seen.usual(lambda v: v.layers("saturated")), seen.usual(lambda v: v.layers("flow_gate"))
    for layer, kind in enumerate(seen.of.activations):
        limit = SATURATED if kind in BOUNDED else SATURATED_ONE_SIDED
        last = seen.of.sinks[layer]
        if kind in NEVER_SATURATED or not share[layer] >= limit:
            continue
        # Outputs saturate where training goes well. Not well: the gradient stops there and the loss has not fallen.
        if last and not (share[layer] >= SATURATED_ONE_SIDED and gate[layer] <= -GAIN and seen.fall < 0.5):
            continue
        name = seen.of.groups[layer]
        evidence = {"saturated": float(share[layer])}
        if math.isfinite(gate[layer]):
            evidence["decades_gate"] = float(gate[layer])
        yield Finding(
            "saturation",
            1,
            "warning",
            name,
            seen.since(lambda v, i=layer, n=limit: v.layers("saturated")[i] >= n),
            f"{share[layer]:.0%} of the outputs of the {kind} layer `{name}` are saturated"
            + (f" and pass {10 ** gate[layer]:.2g} of the gradient" if math.isfinite(gate[layer]) else "")
            + (", while the loss stays high" if last else ""),
            evidence,
            "Take a loss that undoes the activation (cross-entropy from logits), or smaller weights there."
            if last
            else "Normalise its input, scale its weights down, or use an activation that does not saturate.",
        )
