"""Rules about one layer: its first weights, and its units. README.md says how a rule is written."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tapescope.rules.finding import Finding, format_factor, format_share, name_layers
from tapescope.rules.gradient_flow import PATH_DECADES
from tapescope.rules.history import WINDOW, History
from tapescope.rules.record_view import NEVER_SATURATED, RecordView, RunLayout, index_of_largest

GAIN_DECADES = 1.0
"""Decades in one layer's weights. Glorot, He, LeCun and orthogonal initialization, and Keras' own uniform and normal
ones at common widths, keep the gradient's length within a factor of 10."""
DEAD_SHARE = 0.5
SATURATED_SHARE = 0.5
"""Half of a layer: above it more of the layer is idle than works. A warning where that does harm or came about by
training. Deep in a narrow ReLU network examples look alike, and near half of the units may be silent from the start
without harm."""
MOSTLY_DEAD_SHARE = 0.8
"""Of a hidden layer: a warning even while the loss falls, since what is left of the layer may be too little."""
NEARLY_ALL_SHARE = 0.9
ONE_SIDED_SATURATED_SHARE = 0.9
"""ELU, softplus, GELU and the like are saturated on half of their inputs by design."""
DEAD_OUTPUT_SHARE = 0.1
DYING_RISE = 0.25
MIN_WINDOW_EXAMPLES = 300
"""A unit that is silent on 300 examples fires on less than 1 % of all, with 95 % confidence (the rule of three)."""
FIRST_STD_DECADES = (-2.0, 1.5)
"""Decades of the standard deviation of the first layer's outputs. Standardized data, or pixels between 0 and 1, give
0.1 to 3."""

PADDED_SHARE = 0.5
"""Share of the numbers given to an embedding that are 0: from it on they are padding, as no word is so frequent."""
CONSTANT_SPREAD = 1e-6
"""Of the largest output: a few times what float32 rounds."""
LOW_CHANCE_DECADES = 3.0
"""Decades, over the number of weights, by which their norm is below the usual one by chance once in a thousand times:
the 0.1 % quantile of chi-square is 2.9 decades for one normal weight, 1.5 for two and 0.4 for eight."""
HIGH_CHANCE_DECADES = 0.5
"""The same above it, over the root of the number of weights: the 99.9 % quantile is 0.5 decades for one weight."""

DROPOUT_NOISE = 0.05
"""Variance that dropout gives the mean of its units, over its square: half of 20 units, a fifth of 5. With half of 64
units it is 0.016."""
MOST_DROPPED = 0.8
"""Share of the units: rates of 0.2 to 0.5 are usual, and one above is often meant as the share that is kept."""

EQUAL_UNITS = 1e-4
"""Share by which the gradients of equal units may differ by rounding. Those of random units differ far more."""
FEW_UNITS = 4
"""Units of a layer below which two that have gradients of one size, as those of a softmax of two, prove nothing."""

BOUNDED = {"sigmoid", "tanh", "softsign", "hard_sigmoid", "hard_tanh"}


def inference_mode(history: History) -> Iterator[Finding]:
    """Report layers that act otherwise in training, none of which was told that it trains."""
    layers = history.layout.inference_layers
    if history.first is None or not layers:
        return
    normalizing = [name for name, kind in layers if kind.endswith("Normalization")]
    others = [name for name, kind in layers if not kind.endswith("Normalization")]
    effects: list[str] = []
    if normalizing:
        effects.append(f"{_list_layers(normalizing, 'uses', 'use')} moving averages that are never updated")
    if others:
        effects.append(f"{_list_layers(others, 'changes', 'change')} nothing")
    yield Finding(
        rule="inference_mode",
        version=1,
        severity="warning",
        layer=layers[0][0],
        step=history.first.step,
        message=f"the layers run as in inference, because no call says `training=True`: {', and '.join(effects)}",
        evidence={"layers": float(len(layers))},
        advice="Call the model as `model(x, training=True)` in the step. Where inference is meant, say "
        "`training=False`.",
    )


def _list_layers(names: Sequence[str], of_one: str, of_several: str) -> str:
    """Return the first of some layers and the number of others, with the verb that belongs to it."""
    return f"{name_layers(names[0], len(names))} {of_one if len(names) == 1 else of_several}"


def strong_dropout(history: History) -> Iterator[Finding]:
    """Note dropout that leaves little of what a layer says; a warning where the loss stands still early.

    A unit that is kept is divided by 1 - rate, so its variance is rate / (1 - rate) of its square (Srivastava et al.,
    2014). That of the mean of n units of one size is this over n.
    """
    if history.first is None or not history.had_time:
        return
    is_stuck = history.loss_levelled and not history.learned
    for name, rate, units in history.layout.dropouts:
        noise = rate / (1 - rate) / max(units, 1)
        if not (noise >= DROPOUT_NOISE or rate >= MOST_DROPPED):
            continue
        message = f"`{name}` drops {format_share(rate)} of {units} units, which changes their mean by "
        message += f"{format_share(math.sqrt(noise))} from example to example"
        yield Finding(
            rule="strong_dropout",
            version=1,
            severity="warning" if is_stuck else "info",
            layer=name,
            step=history.latest.step,
            message=message + (", and the loss does not fall any more" if is_stuck else ""),
            evidence={"rate": rate, "units": float(units), "noise": math.sqrt(noise)},
            advice="Lower the rate, which is the share that is dropped and not the one that is kept, or leave dropout "
            "out until the network fits its training data.",
        )


def poor_initialization(history: History) -> Iterator[Finding]:
    """Judge the weights by the first record, before they learned anything."""
    first = history.first
    layout = history.layout
    if first is None or history.records > 1 or first.step > WINDOW:
        return
    after = np.where(layout.reader >= 0, first.between_gain[layout.reader], 0) if layout.layer_count else np.zeros(0)
    gain = _unexplained_gain(first, layout, after)
    equal = _has_equal_units(first, layout)
    empty = first.weight[: layout.layer_count] == 0  # a layer without weights has NaN
    reached = np.isfinite(first.layer_column("delta_norm"))  # the gradient stops behind frozen layers
    std = np.where(reached, first.layer_column("activation_std"), np.nan)
    std_decades = _compensated(np.log10(std), after)
    total_gain = float(np.sum(gain[list(layout.path[:-1])])) if np.isfinite(gain).all() else 0.0
    only_in_total = abs(total_gain) >= PATH_DECADES and bool(np.all(np.abs(gain) < GAIN_DECADES))
    worst = index_of_largest(np.abs(gain)) if only_in_total else -1
    low_chance, high_chance = _chance_decades(history)
    # Weights that do well in one call are usual ones. Another call may be of zeros, as of a boundary condition at 0.
    is_usual = layout.is_input & (std_decades >= FIRST_STD_DECADES[0] - low_chance)
    is_usual &= std_decades <= FIRST_STD_DECADES[1] + high_chance
    usual = {_without_call(name) for name, ok in zip(layout.groups, is_usual, strict=False) if ok}
    # Where weights of 0 stop the gradient, and the first layer has one nonetheless, there is a way around them.
    has_way_around = bool(np.any(first.layer_column("delta_norm")[layout.is_input] > 0))
    for layer in range(layout.layer_count):
        name = layout.groups[layer]
        is_input = bool(layout.is_input[layer])
        is_output = bool(layout.is_output[layer])
        too_small = gain[layer] <= -GAIN_DECADES - low_chance[layer] and not is_output  # outputs may start at 0
        too_small = too_small and not (has_way_around and np.isneginf(gain[layer]))
        saturated = first.saturated[layer]
        is_of_zeros = std[layer] == 0 and _without_call(name) in usual
        advice = ""
        too_large = False
        if equal[layer]:
            message = f"all {layout.units[layer]:.0f} units of `{name}` have the same first weights"
            evidence = {"units": float(layout.units[layer])}
            advice = "Use random first weights, as the default `glorot_uniform` gives: equal units get equal "
            advice += "gradients, and stay one unit."
        elif layer == worst:
            too_large = total_gain > 0
            message = (
                f"the first weights of {len(layout.path) - 1} layers make the gradient that passes all of them "
                f"{format_factor(10**total_gain)} as long, those of `{name}` most"
            )
            evidence = {"decades_weights": total_gain, "decades_here": float(gain[layer])}
        elif gain[layer] >= GAIN_DECADES + high_chance[layer] or too_small:
            too_large = bool(gain[layer] > 0)
            length = f"{format_factor(10 ** gain[layer])} as long" if np.isfinite(gain[layer]) else "0"
            message = f"the first weights of `{name}` make the gradient that passes them {length}"
            evidence = {"decades_weights": max(float(gain[layer]), -99.0)}
        elif is_input and layout.activations[layer] in BOUNDED and saturated >= SATURATED_SHARE:
            too_large = True
            message = f"{format_share(saturated)} of the outputs of `{name}` are saturated from the start"
            evidence = {"saturated": float(saturated)}
        elif is_input and not is_output and not is_usual[layer] and not is_of_zeros and reached[layer]:
            too_large = bool(std_decades[layer] > 0)
            message = (
                f"the outputs of `{name}`, which reads the data, have standard deviation {std[layer]:.2g}, where 0.1 "
                "to 3 is usual"
            )
            evidence = {"activation_std": float(std[layer])}
        else:
            continue
        if empty[layer] and not advice:
            message = f"all first weights of `{name}` are 0, so nothing passes it"
            advice = "Use random first weights, as the default `glorot_uniform` gives; only biases may start at 0."
        yield Finding(
            rule="poor_initialization",
            version=4,
            severity="warning",
            layer=name,
            step=first.step,
            message=message,
            evidence=evidence,
            advice=advice
            or f"{'Scale the data to about 1' if is_input else 'Normalize its input'}, or use "
            f"{'smaller' if too_large else 'larger'} first weights: He initialization for ReLU and similar "
            "activations, Glorot for tanh and sigmoid.",
        )


def _unexplained_gain(first: RecordView, layout: RunLayout, after: np.ndarray) -> np.ndarray:
    """Return the decades by which each layer's first weights change the gradient, less what is so by design, [L].

    Args:
      first: the first record.
      layout: of the run.
      after: decades added between each layer and the one that reads it, [L].
    """
    # A skip connection around the layer compensates for weights near 0, and a normalization after it for any scale.
    gain = _compensated(_compensated(first.weight_gain, np.maximum(first.between_gain, 0)), after)
    gain = _compensated(gain, -layout.expected_weight_gain)  # widening or narrowing layers change it by design
    return _compensated(gain, np.maximum(first.gate_gain, 0))  # a steep activation, such as sin(30 x), by small weights


def _has_equal_units(first: RecordView, layout: RunLayout) -> np.ndarray:
    """Return whether all units of a layer get the same gradient, bool [L]: then they have the same weights.

    The norm of a bias over its largest element is the root of its size only if all its elements are of one size.
    Random weights and an activation make them differ; a linear layer may be averaged behind, and outputs may be so.
    """
    norm, largest = (first.column(f"gradient_{name}", layout.variable_count) for name in ("norm", "max"))
    groups, variables = layout.owned
    result = np.zeros(layout.layer_count, bool)
    ratio = norm / largest
    for group, variable in zip(groups, variables, strict=True):
        if group < layout.layer_count and layout.activations[group] != "linear" and not layout.is_output[group]:
            root = math.sqrt(layout.units[group])
            is_equal = layout.units[group] >= FEW_UNITS and abs(ratio[variable] - root) <= EQUAL_UNITS * root
            result[group] |= bool(is_equal)
    return result


def _without_call(name: str) -> str:
    """Return the layer of a row: a further call of `dense` is the row `dense#2`."""
    return re.sub(r"#\d+$", "", name)


def _chance_decades(history: History) -> tuple[np.ndarray, np.ndarray]:
    """Return by how many decades the weights of each layer may be small and large by chance, [L] each.

    All examples may have nearly the same gradient, so what counts is the narrower side of the weights' matrix; the
    inputs of a layer that reads the data are not known, and count as one.
    """
    layout = history.layout
    inputs = np.array([layout.units[source] if source >= 0 else 1.0 for source in layout.source])
    count = np.where(inputs > 1, inputs, np.maximum(layout.units, 1.0))
    return LOW_CHANCE_DECADES / count, HIGH_CHANCE_DECADES / np.sqrt(count)


def _compensated(decades: np.ndarray, compensation: np.ndarray) -> np.ndarray:
    """Return the decades moved towards 0 by a compensation of the other sign, and not beyond; NaN becomes 0."""
    reduced = np.maximum(decades + np.minimum(compensation, 0), 0)
    raised = np.minimum(decades + np.maximum(compensation, 0), 0)
    moved = np.where(decades > 0, reduced, raised)
    return np.where(np.isnan(moved), 0.0, moved)


def dead_units(history: History) -> Iterator[Finding]:
    """Count units without any output or gradient in a whole window of examples."""
    layout = history.layout
    examples = history.latest.number("window_examples", 0)
    if not layout.layer_count or not history.settled or not examples >= MIN_WINDOW_EXAMPLES:
        return
    share = history.usual.dead_share
    # An output that is always 0 is a class that is never predicted, or a value that is never returned.
    limit = np.where(layout.is_output, DEAD_OUTPUT_SHARE, DEAD_SHARE)
    many = share >= limit
    rising = share - history.first_dead_share >= DYING_RISE
    for layer in np.flatnonzero(many | rising).tolist():
        if history.first_silent_source(layer) != layer:
            continue
        name = layout.groups[layer]
        units = layout.units[layer]
        dead = share[layer] * units
        is_output = bool(layout.is_output[layer])
        kind = layout.activations[layer]
        if share[layer] >= 1 and is_output and (kind in {*BOUNDED, "softmax"} or history.latest.gradient_gone):
            continue  # `constant_output` or `no_gradient` reports it
        # A softmax output that is always 0 may be a class that does not occur.
        came = (is_output and kind != "softmax") or bool(rising[layer] and not is_output)
        mostly = bool(share[layer] >= MOSTLY_DEAD_SHARE and not is_output)
        learns = history.beats_constant and not is_output  # of a layer that is half dead, the rest may be enough
        harmful = mostly or history.loss_stuck or (came and not history.mastered and not learns)
        if share[layer] >= 1:
            severity = "error"
        elif many[layer] and harmful:
            severity = "warning"
        else:
            severity = "info"
        bounded = kind in BOUNDED
        if bounded:
            state = f"are stuck at an end of {kind}, where its derivative is exactly 0, on all of"
        elif kind == "softmax":
            state = "gave exactly 0 on"
        else:
            state = "never fired on"
        message = f"{dead:.0f} of the {units:.0f} units of `{name}` {state} {examples:.0f} examples"
        if rising[layer]:
            message += f"; at first it was {history.first_dead_share[layer] * units:.0f}"
        advice = "Lower the learning rate, start its biases at 0, or use Leaky ReLU or ELU there."
        if bounded:
            advice = "Scale its input, lower the learning rate, and check that the targets lie in its range."
        elif kind == "softmax":
            advice = "Check whether these classes occur in the labels; if so, lower the learning rate."
        elif is_output and kind == "relu":
            advice += " An output layer with ReLU can lose a class for good: use softmax or sigmoid."
        yield Finding(
            rule="dead_units" if many[layer] else "dying_units",
            version=3,
            severity=severity,
            layer=name,
            step=history.first_step(lambda view, layer=layer, limit=limit[layer]: view.dead_share[layer] >= limit),
            message=message,
            evidence={"dead": float(dead), "share": float(share[layer]), "window_examples": examples},
            advice=advice,
        )


def saturation(history: History) -> Iterator[Finding]:
    """Report a layer of which most is where its activation's derivative is below 1 % of its largest."""
    layout = history.layout
    if not layout.layer_count or not history.settled:
        return
    share = history.usual.saturated
    gate = history.usual.flow_gate
    first = (history.first or history.latest).saturated
    for layer in np.flatnonzero(share >= min(SATURATED_SHARE, ONE_SIDED_SATURATED_SHARE)).tolist():
        kind = layout.activations[layer]
        is_output = bool(layout.is_output[layer])
        limit = SATURATED_SHARE if kind in BOUNDED else ONE_SIDED_SATURATED_SHARE
        if kind in NEVER_SATURATED or not share[layer] >= limit:
            continue
        # Outputs saturate when training goes well. It does harm if the gradient stops there and the loss does not fall.
        blocks = gate[layer] <= -GAIN_DECADES and share[layer] >= ONE_SIDED_SATURATED_SHARE
        if is_output and not (history.loss_stuck and blocks):
            continue
        # Hidden layers may saturate too as they learn, but not from the start.
        harmful = is_output or share[layer] >= NEARLY_ALL_SHARE or history.loss_stuck or first[layer] >= limit
        message = f"{format_share(share[layer])} of the outputs of {layout.describe_layer(layer)} are saturated, where "
        message += "its derivative is below 1 % of the largest"
        evidence = {"saturated": float(share[layer])}
        if math.isfinite(gate[layer]):
            message += f"; {10 ** gate[layer]:.2g} of the gradient passes"
            evidence["decades_gate"] = float(gate[layer])
        if is_output:
            message += ", and the loss does not fall"
            advice = "Use a loss that cancels the activation (cross-entropy from logits), or smaller weights there."
        else:
            advice = "Normalize its input, scale its weights down, or use an activation that does not saturate."
        yield Finding(
            rule="saturation",
            version=1,
            severity="warning" if harmful else "info",
            layer=layout.groups[layer],
            step=history.first_step(lambda view, layer=layer, limit=limit: view.saturated[layer] >= limit),
            message=message,
            evidence=evidence,
            advice=advice,
        )


def constant_output(history: History) -> Iterator[Finding]:
    """Report an output that is the same for all examples. Where nothing has a gradient, `no_gradient` names it."""
    layout = history.layout
    if not history.settled or not layout.path or history.latest.gradient_gone:
        return
    last = layout.path[0]
    window = list(history.window)
    low, high = (np.array([v.layer_column(f"activation_{end}")[last] for v in window]) for end in ("min", "max"))
    size = np.maximum(np.abs(low), np.abs(high))
    constant = bool(np.all(high - low <= CONSTANT_SPREAD * size)) and bool(np.isfinite(size).all())
    # One example and one unit have no spread; over the records their output varies.
    same = bool(np.ptp(high) <= CONSTANT_SPREAD * size.max())
    examples = history.examples_per_step
    if not constant or not (same or examples >= 2) or history.mastered:
        return
    kind = layout.activations[last]
    name = layout.groups[last]
    if kind == "softmax" and layout.units[last] == 1:
        advice = "Use sigmoid for one output: softmax of one unit is always 1."
    elif padded := _padded_inputs(history):
        advice = f"Most of {' and '.join(padded)} is 0, which seems to be padding: a recurrent layer "
        advice += "forgets what came before it. Use `Embedding(..., mask_zero=True)`, pad in front, or cut the "
        advice += "sequences shorter."
    elif kind in BOUNDED:
        advice = "Check that the targets lie in its range, scale the inputs to about 1, and lower the learning rate."
    else:
        advice = "Look for the first layer before it whose units are all dead; lower the learning rate."
    yield Finding(
        rule="constant_output",
        version=1,
        severity="warning",
        layer=name,
        step=window[0].step,
        message=f"{layout.describe_layer(last)} gives {high[-1]:.4g} for every example",
        evidence={"output": float(high[-1]), "records": float(len(window))},
        advice=advice,
    )


def _padded_inputs(history: History) -> list[str]:
    """Return the names of the inputs of an embedding that are 0 for the most part."""
    pooled = [(row, history.data.pooled(index)) for index, row in enumerate(history.layout.data)]
    return [f"`{row.name}`" for row, p in pooled if "embedding" in row.followers and p and p.zero >= PADDED_SHARE]
