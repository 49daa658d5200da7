"""Rules about where the gradient goes in the backward pass, and where it stops.

README.md says how a rule is written.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tapescope.rules.data_view import CHECK_SIGN, DataRow, learning_rate, summed_loss_advice
from tapescope.rules.finding import Finding, format_factor
from tapescope.rules.history import WINDOW, History
from tapescope.rules.networks import are_several_networks
from tapescope.rules.record_view import NEVER_SATURATED, RecordView, index_of_largest, lower_median

PATH_DECADES = 2.0
"""Decades between both ends of the network. Where 1 % of the gradient arrives, the first layers stand still while the
last ones learn; where it grows a hundredfold, the first layers' weights change erratically."""
SEVERE_PATH_DECADES = 2.5
"""Decades lost that are too many whatever the optimizer makes of them, as long as nothing was learned: the loss of four
or five sigmoid layers. Ten ReLU layers as Keras initializes them lose 1.5."""
GROWTH = 10.0
"""Times its first value: a gradient or weights that grew so much before a NaN overflowed by growing."""
DIVERGED_DECADES = 1.0
"""Growth of the gradient in the course of training where the loss is tenfold: that of a squared error grows by half as
many decades as the error itself."""
SHOWN_REPLICAS = 4
"""Replicas that a message names."""
_LIMIT_DECADES = 99.0
"""Reported for an infinite number of decades, which JSON has no number for."""

_PASSES_NONE = (
    "passes no gradient: a `stop_gradient`, a sign or a rounding, or a softmax or normalization over an axis of "
    "size 1, which always gives the same"
)


def non_finite(history: History) -> Iterator[Finding]:
    """Report a NaN or Inf at once: no number means anything after it."""
    latest = history.latest
    lost_from_start = history.settled and _loss_lost_from_start(history)
    bad_tensors = _has_bad_output(latest) or _has_bad_gradient(latest, history)
    if not (bad_tensors or history.loss_became_nonfinite or lost_from_start):
        return
    views = list(history.window)
    at = _first_nonfinite(views, history)
    first = views[at]
    elements = _bad_gradient_elements(first, history)
    forward = int(first.number("first_nonfinite_forward", -1))
    backward = int(first.number("first_nonfinite_backward", -1))
    layer, message = _locate_nonfinite(history, first, forward, backward, elements)
    loss_alone = lost_from_start and not bad_tensors
    if loss_alone:
        first = views[0]
        at = 0
        message = "the loss is nan in all records, although all layers and gradients are finite"
    grower, grown = _largest_growth(history, views[at - 1], first) if at else (None, "")
    broken = _broken_data(history)
    if broken is not None:
        layer = broken.name
        message = f"`{broken.name}` has a NaN or Inf among the {broken.kind}s"
    elif at and _weights_are_bad(views[at - 1], first, history):
        layer = grower
        message = "the weights of most layers are NaN or Inf: an update made them so"
    # If only the gradient is not finite and no weight changed, a loss scale may have overflowed and skipped the step.
    # If that is not the reason, the next record has it in the weights.
    skipped = _has_bad_gradient(views[at], history) and not any(map(_has_bad_output, views))
    skipped = skipped and not _has_changed_weights(views[max(0, at - 1)], views[at], history)
    behind_all = not skipped and forward < 0 <= backward and bool(history.layout.is_output[backward])
    since = views[at - 1].step + 1 if at else first.step
    message += f", at step {first.step}" if since == first.step else f", between steps {since} and {first.step}"
    message += "; the weights did not change, as when a loss scale overflows" if skipped else grown
    replicas = _bad_replicas(first)
    if replicas:
        message += f"; only on replica {', '.join(map(str, replicas))}"
    if broken is not None:
        advice = (
            "Leave out or fill in the examples with missing values before training. Or a column that is constant was "
            "divided by its standard deviation of 0: add a small number to that, or leave the column out."
        )
    elif grown:
        advice = "Lower the learning rate at least tenfold, or clip the gradient by its global norm."
        advice += summed_loss_advice(history.layout.objectives)
    else:
        advice = _advice_on_nonfinite(skipped, in_loss=loss_alone or behind_all)
    yield Finding(
        rule="non_finite",
        version=2,
        severity="info" if skipped else "error",
        layer=layer,
        step=first.step,
        message=message,
        evidence={
            "elements_forward": float(np.nansum(first.layer_column("activation_nonfinite"))),
            "elements_gradient": float(elements.sum()),
            "index_forward": float(forward),
            "index_backward": float(backward),
        }
        | ({"replica": float(replicas[0])} if replicas else {}),
        advice=advice,
    )


def _first_nonfinite(views: Sequence[RecordView], history: History) -> int:
    """Return the index of the first record from which on all but perhaps the latest have a NaN or Inf."""

    def is_bad(view: RecordView) -> bool:
        return _has_bad_output(view) or _has_bad_gradient(view, history) or math.isinf(view.loss)

    at = len(views) - 1
    while at and is_bad(views[at - 1]):
        at -= 1
    return at


def _has_changed_weights(before: RecordView, view: RecordView, history: History) -> bool:
    """Return whether the step of a record changed weights: their ratio is above 0, or is not known any more.

    The view's own `update_ratio` has the steps since the record before as well.
    """
    earlier, ratio = (each.column("update_ratio", history.layout.variable_count) for each in (before, view))
    return bool(np.any((ratio > 0) | (np.isnan(ratio) & np.isfinite(earlier))))


def _advice_on_nonfinite(skipped: bool, in_loss: bool) -> str:
    """Return an advice where neither the data nor growth explains a NaN or Inf.

    Args:
      skipped: whether the weights did not change.
      in_loss: whether it arises in the loss function.
    """
    causes = "a division by 0, a logarithm or root of 0, or an overflow there, and check the data."
    if in_loss:
        return (
            f"Look into the loss function for {causes} A small number added before a root or logarithm keeps its "
            "gradient finite."
        )
    if skipped:
        advice = f"Nothing to do while a loss scale is being adjusted. If it continues, look for {causes}"
    else:
        advice = f"Look for {causes}"
    return f"{advice} If the gradient grew before, lower the learning rate or clip it."


def _bad_replicas(view: RecordView) -> list[int]:
    """Return the replicas whose own gradient has a NaN or Inf, if others' have none; at most SHOWN_REPLICAS."""
    bad = np.nansum(np.asarray(view.columns.get("replica_nonfinite", np.zeros([1, 1])), float), 1) > 0
    return [] if bad.all() else np.flatnonzero(bad)[:SHOWN_REPLICAS].tolist()


def _broken_data(history: History) -> DataRow | None:
    """Return the first input or target that had a NaN or Inf; None where there is none."""
    for index, row in enumerate(history.layout.data):
        if row.kind in ("input", "target") and history.data.nonfinite[index] > 0:
            return row
    return None


def _loss_lost_from_start(history: History) -> bool:
    """Return whether the loss is NaN in all records though the run has one. Without a loss its column is NaN too."""
    measured = any(objective.loss_measured for objective in history.layout.objectives)
    return measured and not any(math.isfinite(loss) for loss in history.losses)


def _weights_are_bad(before: RecordView, first: RecordView, history: History) -> bool:
    """Return whether the first layer's weights were finite in the record before, and most layers' are not now.

    A NaN that arises in a layer is in its output first. After the next update it is in the weights of all layers that
    the gradient reached. The norm of weights is that of their finite elements, so NaN weights have 0.
    """
    layers = history.layout.layer_count
    known = before.weight[:layers] > 0
    lost = known & ~(first.weight[:layers] > 0)
    return bool(known.any()) and float(lost.sum()) > 0.5 * float(known.sum())


def _largest_growth(history: History, last: RecordView, bad: RecordView) -> tuple[str | None, str]:
    """Return the layer whose gradient or weights grew most, and what grew, for a message.

    Args:
      history: of the run.
      last: the last record without a NaN or Inf.
      bad: the one after it. Its weights may still be finite.
    """
    weight = np.where(bad.weight > 0, bad.weight, last.weight)
    start = history.first or last
    names = history.layout.groups
    pairs = {
        "gradient": (start.gradient, last.gradient),
        "norm of the weights": (start.weight, weight),
    }
    growths = {what: np.where(np.isfinite(b / a), b / a, np.nan) for what, (a, b) in pairs.items()}
    tops = {what: index_of_largest(growth) for what, growth in growths.items()}
    what = max(tops, key=lambda name: np.nan_to_num(growths[name][tops[name]]))
    at = tops[what]
    if not growths[what][at] >= GROWTH:
        return None, ""
    a, b = (float(values[at]) for values in pairs[what])
    return names[at], f"; before it the {what} of `{names[at]}` grew from {a:.2g} to {b:.2g}"


def _locate_nonfinite(
    history: History, view: RecordView, forward: int, backward: int, elements: np.ndarray
) -> tuple[str | None, str]:
    """Return the layer with the first NaN or Inf of a record, and a message about it."""
    names = history.layout.groups
    if forward >= 0:
        message = f"`{names[forward]}` is the first layer with a NaN or Inf in its input, weights or output"
        if backward >= 0:
            message += f"; in the backward pass the first is `{names[backward]}`"
        return names[forward], message
    if _has_bad_gradient(view, history):
        groups, variables = history.layout.owned
        layer = names[backward if backward >= 0 else groups[np.argmax(elements[variables])]]
        return layer, f"all outputs are finite, but the gradient is not from `{layer}` backwards"
    return None, f"the loss is {view.loss} although all layers are finite"


def _has_bad_output(view: RecordView) -> bool:
    return view.number("first_nonfinite_forward", -1) >= 0


def _has_bad_gradient(view: RecordView, history: History) -> bool:
    return view.number("first_nonfinite_backward", -1) >= 0 or bool(_bad_gradient_elements(view, history).any())


def _bad_gradient_elements(view: RecordView, history: History) -> np.ndarray:
    """Return the number of elements of each variable's gradient that are not finite, [V]."""
    counts = view.column("gradient_nonfinite", history.layout.variable_count)
    return np.where(np.isfinite(counts), counts, 0)


def no_gradient(history: History) -> Iterator[Finding]:
    """Name variables that the loss does not depend on, or no longer does."""
    layout = history.layout
    if history.latest.gradient_gone:
        yield from _no_gradient_anywhere(history)
        return
    if not history.settled:
        return
    gradient = history.usual.gradient
    if not np.any(gradient > 0):
        yield from _no_gradient_asked(history)
        return
    blocked = bool(layout.path) and history.usual.total_loss == -math.inf  # `vanishing` reports it
    variables = np.bincount(layout.owned[0], minlength=len(gradient))
    absent = np.isnan(gradient)
    zero = ~(gradient > 0)
    in_step = np.any([~np.isnan(view.weight) for view in history.window], axis=0)  # other steps may have other rows
    # The program sets these weights itself: they are a moving average of others, or a copy as of a target network.
    is_set = np.any([np.isnan(view.gradient) & (view.update_ratio > 0) for view in history.window], axis=0)
    lost = np.where(absent, ~is_set, zero & (not blocked))
    for group in np.flatnonzero((variables > 0) & in_step & lost):
        name = layout.groups[group]
        if absent[group]:
            severity = "error"
            message = f"no path leads from the loss to `{name}`: it has no gradient"
            advice = "Look for a stop_gradient, an operation without a gradient, an output that is not used, or "
            advice += "variables that `tape.gradient` was not asked for."
        else:
            severity = "warning"
            message = f"the gradient of `{name}` is exactly 0"
            advice = (
                "Look for a dead or saturated layer after it, for weights after it that are 0, or for an operation "
            )
            advice += f"that {_PASSES_NONE}."
        yield Finding(
            rule="no_gradient",
            version=2,
            severity=severity,
            layer=name,
            step=history.first_step(lambda view, group=group: not view.gradient[group] > 0),
            message=message,
            evidence={"variables": float(variables[group]), "gradient_norm": 0.0},
            advice=_batch_of_one_advice(history) or advice,
        )
    yield from _only_penalized(history)


def _only_penalized(history: History) -> Iterator[Finding]:
    """Name layers whose output has no gradient although their weights have one: that of a penalty on them."""
    layout = history.layout
    deltas = np.array([view.layer_column("delta_norm") for view in history.window])
    arrives = np.all(deltas > 0, axis=0)
    trained = history.usual.gradient[: layout.layer_count] > 0
    cut_off = trained & np.all(np.isnan(deltas), axis=0) & (layout.reader >= 0) & arrives[layout.reader]
    for layer in np.flatnonzero(cut_off):
        name = layout.groups[layer]
        reader = layout.groups[int(layout.reader[layer])]
        yield Finding(
            rule="no_gradient",
            version=2,
            severity="warning",
            layer=name,
            step=history.window[0].step,
            message=f"the gradient of the loss arrives at `{reader}` and not at `{name}` before it: the weights of "
            f"`{name}` have that of a penalty on them alone",
            evidence={"gradient_norm": float(history.usual.gradient[layer])},
            advice=f"Look between the two for an operation that {_PASSES_NONE}.",
        )


def _no_gradient_asked(history: History) -> Iterator[Finding]:
    """Report an optimizer that never gets a gradient of a variable, although the gradient arrives at the layers.

    Where the loss falls, the step trains something else through the model: an image, or the generator of a GAN.
    """
    window = history.window
    called = all(view.number("optimizer_called") == 1 for view in window)
    arrives = all(np.any(view.layer_column("delta_norm") > 0) for view in window)
    asked = history.weights_moved or not np.isnan(history.usual.gradient).all()
    if asked or not (called and arrives and history.loss_stuck):
        return
    yield Finding(
        rule="no_gradient",
        version=2,
        severity="error",
        layer=None,
        step=window[0].step,
        message="no variable has a gradient, although one arrives at the layers: nothing is trained",
        evidence={"records": float(len(window))},
        advice="Look at the variables that `tape.gradient` is asked for: `model.trainable_variables` is empty before "
        "the model is built, so read it after the first call.",
    )


def _no_gradient_anywhere(history: History) -> Iterator[Finding]:
    """Report a gradient that is exactly 0 in every layer: at once if no record had one, else once it lasts."""
    window = list(history.window)
    # A loss that is unknown or 0 may be that of one odd batch. A network that learned may have nothing left to learn.
    certain = math.isfinite(history.latest.loss) and history.latest.loss != 0
    if history.gradient_seen:
        lasts = len(window) >= WINDOW and all(view.gradient_gone for view in window)
        if not lasts or history.learned:
            return
    elif not certain and history.records < WINDOW // 2:
        return
    if all(view.loss == 0 for view in window):
        return  # `impossible_loss` reports it
    layer, where, advice = _where_it_stops(history)
    first = next(view.step for view in window if view.gradient_gone)
    yield Finding(
        rule="no_gradient",
        version=2,
        severity="error",
        layer=layer,
        step=first,
        message=f"the gradient is exactly 0 in every layer{where}: nothing is trained",
        evidence={"gradient_norm": 0.0, "loss": history.latest.loss},
        advice=advice,
    )


def _where_it_stops(history: History) -> tuple[str | None, str, str]:
    """Return the layer at which a gradient of exactly 0 begins, where that is, and what to do."""
    layout = history.layout
    view = history.latest
    general = (
        "Check that the last layer's activation and the loss fit: logits, probabilities or values, as the loss takes "
        "them."
    )
    if np.any(view.weight == 0) and not np.any(view.weight > 0):
        return None, ", since all weights are 0", "Use random first weights: only biases may start at 0."
    if not layout.path:
        return None, "", general
    last = layout.path[0]
    name = layout.groups[last]
    kind = layout.activations[last]
    if view.layer_column("delta_norm")[last] == 0:
        return name, f", since the loss does not change with the output of `{name}`", general
    if kind == "softmax" and layout.units[last] == 1:
        advice = "Use sigmoid for one output: softmax of one unit is always 1."
    elif kind == "relu":
        advice = "Use a linear output for values, softmax or sigmoid for classes: ReLU gives 0 below 0, without a "
        advice += "gradient."
    elif kind in NEVER_SATURATED:
        advice = general
    else:
        advice = "Scale the inputs to about 1, use smaller first weights, or a loss that takes logits."
    return name, f", since {layout.describe_layer(last)} lets none through", advice


def vanishing(history: History) -> Iterator[Finding]:
    """Name the layer that takes most where less than 1 % of the gradient reaches the first layer.

    It is info where it does no harm: the first layer's weights change as others do, and the loss falls.
    """
    layout = history.layout
    usual = history.usual
    if not history.settled or not layout.path or not usual.total_loss <= -PATH_DECADES:
        return
    parts = usual.path_losses
    decades_here = float(np.nanmin(parts))
    at = history.first_silent_source(int(np.nanargmin(parts)))
    blocked = decades_here == -math.inf
    share = 10.0**usual.total_loss
    names = layout.groups
    takes, advice = _how_it_takes(history, at, decades_here)
    message = f"{layout.describe_layer(at)} {takes}"
    others = 0 if blocked else int(np.sum(parts < 0.5 * decades_here)) - 1
    if others > 0:
        message += f", and {others} other layer{'s' if others > 1 else ''} about as much"
    message += f"; `{names[layout.path[-1]]}` gets {share:.2g} of the gradient that `{names[layout.path[0]]}` gets"
    behind, updates = _updates_of_first_layer(history)
    grows = history.first is not None and history.first.weight[at] == 0  # it passes more as its weights leave 0
    severe = behind or (usual.total_loss <= -SEVERE_PATH_DECADES and not grows)
    harmful = blocked or history.loss_stuck or (severe and not history.learned)
    yield Finding(
        rule="vanishing",
        version=1,
        severity=("error" if behind else "warning") if harmful else "info",
        layer=names[at],
        step=history.first_step(lambda view: view.total_loss <= -PATH_DECADES),
        message=message + updates,
        evidence={
            "share_arriving": share,
            "decades": max(usual.total_loss, -_LIMIT_DECADES),
            "decades_here": max(decades_here, -_LIMIT_DECADES),
            "decades_gate": max(float(usual.gate_gain[at]), -_LIMIT_DECADES),
            "decades_weights": max(float(usual.weight_gain[at]), -_LIMIT_DECADES),
        },
        advice=_batch_of_one_advice(history) or advice,
    )


def _how_it_takes(history: History, at: int, decades: float) -> tuple[str, str]:
    """Return how a layer takes the gradient, for a message, and what to try.

    Args:
      history: of the run.
      at: the layer.
      decades: lost at the layer, below 0; -inf where nothing passes.
    """
    layout = history.layout
    gate = float(history.usual.gate_gain[at])
    weights = float(history.usual.weight_gain[at])
    by_activation = gate <= weights
    by_design = layout.activations[at] in NEVER_SATURATED
    part = "activation" if by_activation else "weights"
    blocked = decades == -math.inf
    silent = bool(history.usual.activation_zero[at] >= 1)
    if blocked and not silent and min(gate, weights) > -math.inf and layout.source[at] >= 0:
        return (
            f"has a gradient, and none of it passes to `{layout.groups[layout.source[at]]}` before it",
            f"Look between the two for an operation that {_PASSES_NONE}.",
        )
    if not blocked:
        takes = f"makes the gradient {format_factor(10**-decades)} shorter, "
        uncompensated = by_activation and by_design
        takes += "and its weights do not compensate for its activation" if uncompensated else f"mostly by its {part}"
    else:
        takes = "outputs only 0, and lets no gradient through" if silent else f"lets no gradient through its {part}"
    silenced = blocked or gate <= -PATH_DECADES  # units that are silent by design take far less
    if not by_activation or (by_design and not silenced):
        advice = "Initialize these weights larger (He for ReLU, Glorot for tanh), or normalize the layer's output."
    elif by_design:
        advice = "Lower the learning rate, start its biases at 0, or use Leaky ReLU or ELU there."
    else:
        advice = (
            "Use ReLU or ELU with He initialization there, normalize its input, or add a skip connection around it."
        )
    return takes, advice


def _updates_of_first_layer(history: History) -> tuple[bool, str]:
    """Return whether the first layer on the path that is trained stands still, and the end of a message about it."""
    layout = history.layout
    ratios = history.usual.update_ratio
    usual = float(lower_median(ratios))
    learner = next((layer for layer in reversed(layout.path) if ratios[layer] >= 0), None)
    ratio = 0.0 if learner is None else float(ratios[learner])
    behind = not ratio > 0.01 * usual
    if learner is None or not usual > 0:
        return behind, ""
    whose = "its weights" if learner == layout.path[-1] else f"the weights of `{layout.groups[learner]}`"
    word = "yet" if ratio >= 0.5 * usual else "and"
    return behind, f", {word} {whose} change by {ratio:.2g} of their norm per step, where {usual:.2g} is usual"


def _batch_of_one_advice(history: History) -> str:
    """Return an advice where batch normalization has one example, so that it gives `beta` for each; else an empty text.

    The scales then have a gradient of exactly 0. Where an image is normalized over its pixels too, they have one.
    """
    scales = [i for i, name in enumerate(history.layout.variable_names) if name.endswith("/gamma")]
    gradients = [view.column("gradient_norm", history.layout.variable_count)[scales] for view in history.window]
    if history.examples_per_step != 1 or not np.any(np.all(np.array(gradients) == 0, axis=0)):
        return ""
    return (
        "A batch of one example is its own mean, so that batch normalization gives the same for every input: use a "
        "larger batch, or layer normalization."
    )


def exploding(history: History) -> Iterator[Finding]:
    """Report a gradient that grows a hundredfold on its way to the first layer, or in the course of training."""
    if not history.settled:
        return
    if history.layout.path and history.usual.total_gain >= PATH_DECADES:
        yield _exploding_over_depth(history)
    decades = DIVERGED_DECADES if history.diverged else PATH_DECADES
    has_grown = history.usual.norm > 0 and history.usual.norm >= 10**decades * history.early_norm
    if has_grown and (history.loss_rise >= 1 or _falls_without_end(history)):
        yield _exploding_over_time(history, decades)


def _falls_without_end(history: History) -> bool:
    """Return whether a loss of one's own began below 0 and is ten times as far below by now."""
    begins_below = history.first is not None and history.first.loss < 0
    is_own = all(objective.loss == "custom" for objective in history.layout.objectives)
    return begins_below and is_own and history.loss_rise <= -9 and not are_several_networks(history.layout)


def _exploding_over_depth(history: History) -> Finding:
    names = history.layout.groups
    last = history.layout.path[0]
    first = history.layout.path[-1]
    at = index_of_largest(history.usual.path_gains)
    decades = min(history.usual.total_gain, _LIMIT_DECADES)
    decades_here = min(float(history.usual.path_gains[at]), _LIMIT_DECADES)
    return Finding(
        rule="exploding",
        version=1,
        severity="info" if history.learned else "warning",
        layer=names[at],
        step=history.first_step(lambda view: view.total_gain >= PATH_DECADES),
        message=f"the gradient gets {format_factor(10**decades)} as long on its way from `{names[last]}` to "
        f"`{names[first]}`, most in `{names[at]}`, which makes it {format_factor(10**decades_here)} as long",
        evidence={"decades": decades, "decades_here": decades_here},
        advice="Initialize these weights smaller, normalize the layer's output, or clip the gradient.",
    )


def _exploding_over_time(history: History, decades: float) -> Finding:
    norm = history.usual.norm
    early = history.early_norm
    growth = history.usual.gradient / (history.first or history.latest).gradient
    name = history.layout.groups[index_of_largest(growth)]
    objectives = history.layout.objectives
    falls = history.loss_rise < 0
    if falls:
        advice = "Check the sign of the loss, or limit what it rewards: it falls below 0 without end."
    else:
        advice = "Lower the learning rate, or clip the gradient by its global norm."
        advice += CHECK_SIGN if math.isnan(learning_rate(objectives)) else ""
        advice += summed_loss_advice(objectives)
    return Finding(
        rule="exploding",
        version=1,
        severity="warning" if falls or history.targets_moved else "error",  # a density may be that sharp, a value large
        layer=name,
        step=history.first_step(lambda view: view.norm >= 10**decades * early),
        message=f"the gradient has grown from {early:.2g} to {norm:.2g} and the loss "
        + (f"has fallen to {history.usual.loss:.3g}" if falls else "with it")
        + f"; most in `{name}`",
        evidence={"norm": norm, "norm_at_first": early, "loss_rise": history.loss_rise},
        advice=advice,
    )


def gradient_spike(history: History) -> Iterator[Finding]:
    """Report a gradient that jumps and comes back: one is info, a second one points to the data."""
    if not history.spikes:
        return
    first = history.spikes[0]
    repeated = len(history.spikes) > 1
    factors = first.gradient / history.usual.gradient
    factor = float(np.float64(first.norm) / history.usual.norm)
    name = history.layout.groups[index_of_largest(factors)]
    message = f"the gradient jumped to {first.norm:.2g}, {format_factor(factor)} the usual norm, most in `{name}`, and "
    message += f"came back, and again at step {history.spikes[1].step}" if repeated else "came back"
    yield Finding(
        rule="gradient_spike",
        version=1,
        severity="warning" if repeated else "info",
        layer=name,
        step=first.step,
        message=message,
        evidence={"norm": first.norm, "times_usual": factor, "spikes": float(len(history.spikes))},
        advice="Look at the examples of that step, or clip the gradient by its global norm.",
    )
