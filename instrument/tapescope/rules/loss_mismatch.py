"""The rule about a loss that does not fit the output and the labels. README.md says how a rule is written."""

from collections.abc import Iterator

import numpy as np

from tapescope.rules.data_view import Pooled
from tapescope.rules.finding import Finding, format_share
from tapescope.rules.history import WINDOW, History
from tapescope.rules.objective import (
    BINARY,
    CATEGORICAL,
    CROSS_ENTROPIES,
    ERRORS,
    KNOWN_ACTIVATIONS,
    NOT_PROBABILITIES,
    PROBABILITIES,
    PROBABILITY_ACTIVATIONS,
    SHARE_OUTSIDE,
    SPARSE,
    TOLERANCE,
    Case,
    Verdict,
    are_many,
    are_probabilities,
    cases,
    classes_advice,
    most_severe,
)

ROW_TOLERANCE = 0.01
"""Largest difference from 1 that the sum of a row of targets may have."""
PAIRS_TOLERANCE = 1e-5
"""Relative difference of equal losses: rounding in float32 is ten times smaller."""
LEAST_COVARIANCE = 0.01
"""Share of a loss: where the covariance of targets and outputs cannot exceed it, it may be lost in rounding."""
MOST_CLASSES = 100
"""Whole targets up to this may be classes; above it they are rather counts or amounts."""
ACCURACIES = {
    "acc",
    "accuracy",
    "binary_accuracy",
    "categorical_accuracy",
    "sparse_categorical_accuracy",
}


def loss_mismatch(history: History) -> Iterator[Finding]:
    """Report a loss that takes something else than the output gives, or than the targets are."""
    for case in cases(history):
        yield from most_severe("loss_mismatch", case, _loss_verdicts(case))
    for verdict in _graph_verdicts(history):
        yield Finding(
            rule="loss_mismatch",
            version=2,
            severity=verdict.severity,
            layer=None,
            step=history.window[0].step,
            message=verdict.message,
            evidence=verdict.evidence,
            advice=verdict.advice,
        )


def _graph_verdicts(history: History) -> Iterator[Verdict]:
    """Yield what does not fit in the graph of the loss, also of one that the program has not named."""
    yield from _repeated_activation(history)
    yield from _taken_for_probabilities(history)
    if _compares_all_pairs(history):
        yield Verdict(
            "error",
            "the loss compares each output with the targets of all examples, not with its own: targets [N] less "
            "outputs [N, 1] makes [N, N], of which the best answer is the same for every input",
            "Give the targets the shape of the outputs in the loss: `y[:, None]`, or `tf.squeeze(outputs, -1)`.",
            {"loss": history.latest.loss},
        )


def _repeated_activation(history: History) -> Iterator[Verdict]:
    """Report a cross-entropy of logits that gets what an activation gave, unless it is said of one of the outputs."""
    layout = history.layout
    if not layout.repeated_activation:
        return
    applied, made = layout.repeated_activation
    if any(o.loss != "custom" and made in (o.activation, o.activation_before) for o in layout.objectives):
        return
    what = "lie between 0 and 1, so no probability can come near 0 or 1, and the gradient is small"
    if made == "relu":
        what = "are never below 0, and no gradient passes where they are 0"
    yield Verdict(
        "warning",
        f"the loss applies {applied} to what it is given, which are the outputs of a {made} already: these {what}",
        f"Leave out the {made} behind the last layer"
        + ("." if made == "relu" else ", or use a loss that takes probabilities."),
        {"loss": history.latest.loss},
    )


def _taken_for_probabilities(history: History) -> Iterator[Verdict]:
    """Report outputs that are no probabilities, and that a loss not known by name takes for some."""
    layout = history.layout
    known = {objective.output for objective in layout.objectives if objective.loss != "custom"}
    for at, row in enumerate(layout.data):
        if row.kind != "output" or row.name not in layout.taken_for_probabilities or at in known:
            continue
        outputs = history.data.pooled(at)
        outside = 0.0 if outputs is None else outputs.negative + outputs.above_one
        if outside > 0:
            yield Verdict(
                "warning",
                f"the loss takes logarithms of the outputs as of probabilities, and {outside:.0%} of them lie outside "
                "of 0 to 1: these get no gradient, or make it NaN",
                'Give the last layer an activation, "sigmoid" or "softmax", or use a loss that takes logits, such as '
                "Keras' own with `from_logits=True`.",
                {"outside": outside},
            )
            return


def _compares_all_pairs(history: History) -> bool:
    """Return whether a loss is of all pairs of a target and an output, by its graph or by its value.

    The mean square of all pairs, or half of it, is the sum of both variances and the square of the difference of the
    means. That of targets and their own outputs has their covariance besides, which is never so small in all records.
    """
    if history.layout.compares_all_pairs:
        return True
    rows = history.layout.data
    pair = [[i for i, row in enumerate(rows) if row.kind == kind] for kind in ("target", "output")]
    if [len(indices) for indices in pair] != [1, 1] or len(history.window) < WINDOW // 2:
        return False
    for view in history.window:
        elements, mean, std = (
            view.column(f"data_{name}", len(rows))[np.ravel(pair)] for name in ("elements", "mean", "std")
        )
        square = np.sum(np.square(std)) + np.square(mean[0] - mean[1])
        is_square = min(abs(view.loss - square), abs(2 * view.loss - square)) <= PAIRS_TOLERANCE * square
        certain = 2 * std[0] * std[1] > LEAST_COVARIANCE * square
        if not (is_square and certain and elements[0] == elements[1]):
            return False
    return bool(history.data.varies[np.ravel(pair)].any())


def _loss_verdicts(case: Case) -> Iterator[Verdict]:
    objective = case.objective
    kind = objective.activation
    loss = objective.loss
    units = {"units": float(objective.units)}
    if loss in CATEGORICAL | SPARSE and objective.units == 1:
        yield Verdict(
            "error",
            f"{case.loss} compares classes, and {case.name} has one unit: the loss is 0 for every output, and its "
            "gradient too",
            'Use `Dense(1, activation="sigmoid")` with `binary_crossentropy`, or a unit for each class.',
            units,
        )
        return
    is_known = kind in KNOWN_ACTIVATIONS
    may_be_logits = kind == "linear" or (not is_known and case.outputs is not None)
    if loss in PROBABILITIES and may_be_logits and not objective.from_logits and not are_probabilities(case):
        activation = "sigmoid" if loss in BINARY else "softmax"
        can_take_logits = f", or the loss `from_logits=True`: `{_class_name(loss)}(from_logits=True)`"
        yield Verdict(
            "warning",
            f"{case.name} gives logits, and {case.loss} takes them for probabilities: they are cut to 0 to 1, and most "
            "of the gradient is 0",
            f'Give the output an activation: `Dense({objective.units}, activation="{activation}")`'
            f"{can_take_logits if loss in CROSS_ENTROPIES else ''}.",
            units,
        )
    if objective.from_logits and kind in PROBABILITY_ACTIVATIONS:
        message = f"{case.name} ends in {kind}, and {case.loss} was told that it gets logits"
        if objective.logits_taken:
            message += "; Keras takes the logits behind the activation, so what is trained is right here"
        else:
            message += ": the activation is applied twice, and the gradient is small"
        yield Verdict(
            "info" if objective.logits_taken else "warning",
            message,
            "Leave out the activation, or `from_logits=True`.",
            units,
        )
    elif objective.from_logits and not is_known and are_probabilities(case) and are_many(case):
        yield Verdict(
            "warning",
            f"all outputs lie between 0 and 1, as probabilities do, and {case.loss} was told that it gets logits",
            "Leave out `from_logits=True`, or what makes the outputs probabilities.",
            units,
        )
    yield from _classes_verdicts(case)
    yield from _regression_verdicts(case)
    if objective.sums_examples:
        yield Verdict(
            "info",
            "the loss is the sum over the batch: its gradient, and each step, grows with the number of examples",
            'Use `reduction="sum_over_batch_size"`, or `tf.reduce_mean` in the place of `tf.reduce_sum`; else lower '
            "the learning rate when the batch grows.",
            units,
        )


def _classes_verdicts(case: Case) -> Iterator[Verdict]:
    """Yield what does not fit between a cross-entropy, its activation and the rows of its targets."""
    objective = case.objective
    kind = objective.activation
    loss = objective.loss
    targets = case.targets
    units = {"units": float(objective.units)}
    several = 'For several labels at once use `activation="sigmoid"` with `binary_crossentropy`'
    if loss in CATEGORICAL | SPARSE and kind in ("sigmoid", "hard_sigmoid"):
        trained = (
            "Keras trains a softmax of the logits behind it, which is not what it gives"
            if objective.logits_taken
            else "nothing lowers the outputs of the wrong classes"
            if loss in SPARSE
            else "its outputs are divided by their sum first"
        )
        yield Verdict(
            "warning",
            f"{case.name} ends in {kind}, where each unit is a yes or no of its own, and {case.loss} takes one class "
            f"out of {objective.units}: {trained}",
            f'Use `Dense({objective.units}, activation="softmax")`. {several}.',
            units,
        )
    if loss in CATEGORICAL and targets is not None and case.certain and targets.high <= 1 + TOLERANCE:
        low, high = targets.row_sum_low, targets.row_sum_high
        evidence = {"row_sum_min": low, "row_sum_max": high}
        if high > 1 + ROW_TOLERANCE or (ROW_TOLERANCE < low < 1 - ROW_TOLERANCE):
            yield Verdict(
                "warning",
                f"rows of the targets sum to {low:.3g} to {high:.3g}, and {case.loss} takes distributions, which sum "
                "to 1: with a softmax the labels of an example take each other's place",
                f"{several}; for one class an example, one-hot rows.",
                evidence,
            )
        elif low <= ROW_TOLERANCE:
            yield Verdict(
                "info",
                f"some rows of the targets are 0 everywhere, and add nothing to {case.loss}",
                f"{several}.",
                evidence,
            )
    if loss in BINARY and kind == "softmax":
        labels = targets is not None and targets.row_sum_high > 1 + ROW_TOLERANCE
        trained = "Keras trains a sigmoid of each logit behind it" if objective.logits_taken else "they compete"
        yield Verdict(
            "warning" if labels or objective.units > 2 else "info",
            f"the {objective.units} outputs of {case.name} are a softmax, and sum to 1, while {case.loss} takes each "
            f"as a yes or no of its own: {trained}",
            f"{several}; for one class an example use `categorical_crossentropy`.",
            units,
        )
    if loss in BINARY and kind == "sigmoid" and objective.units > 2 and case.one_hot:
        yield Verdict(
            "info",
            f"each example has one class out of {objective.units}, and {case.loss} takes each unit for a yes or no of "
            f"its own; `accuracy` then counts units, and zeros have {format_share(1 - 1 / objective.units)}",
            f'Use `Dense({objective.units}, activation="softmax")` with `categorical_crossentropy`.',
            units,
        )
    if loss in ("hinge", "squared_hinge") and kind in PROBABILITY_ACTIVATIONS | {"relu", "softplus"}:
        yield Verdict(
            "warning",
            f"{case.name} ends in {kind}, which is never below 0, and {case.loss} asks for outputs of -1 and 1",
            f'Use `Dense({objective.units}, activation="tanh")`, or no activation.',
            units,
        )


def _regression_verdicts(case: Case) -> Iterator[Verdict]:
    """Yield what does not fit between a loss of differences, its activation, its targets and metrics."""
    objective = case.objective
    kind = objective.activation
    targets = case.targets
    units = {"units": float(objective.units)}
    if objective.loss == "poisson" and kind in NOT_PROBABILITIES - {"relu", "softplus"}:
        yield Verdict(
            "warning",
            f"{case.name} ends in {kind}, which may be below 0, and {case.loss} takes its logarithm",
            f'Use `Dense({objective.units}, activation="softplus")` or "exponential".',
            units,
        )
    if targets is not None and case.certain:
        yield from _relative_verdicts(case, targets)
    if objective.loss not in ERRORS or targets is None or not case.certain:
        return
    outputs = case.outputs
    if objective.units == objective.target_units == 1 and outputs is not None and not outputs.nonfinite:
        ratio = outputs.elements / targets.elements
        if ratio >= 2 and ratio == round(ratio):
            yield Verdict(
                "warning",
                f"{case.name} gives {ratio:.0f} numbers for each target, and {case.loss} compares all of them with the "
                "same one",
                "Give the output the shape of the targets: of a recurrent layer take the last step "
                "(`return_sequences=False`), or flatten before the last layer.",
                {"outputs_for_each_target": ratio},
            )
            return
    if objective.target_units == 1 and objective.units > 1:
        several = targets.whole >= 1 and targets.low >= 0
        classes = f'`Dense({objective.units}, activation="softmax")` with `sparse_categorical_crossentropy`'
        yield Verdict(
            "warning",
            f"the targets are one number an example, and {case.name} has {objective.units} units: {case.loss} compares "
            "each unit with the same number",
            f"Use {f'{classes} for classes, or ' if several else ''}`Dense(1)` for one value.",
            units | {"target_units": 1.0},
        )
        return
    yield from _classes_as_values(case, targets)


def _relative_verdicts(case: Case, targets: Pooled) -> Iterator[Verdict]:
    """Yield what does not fit between targets and a loss of their ratio or logarithm."""
    loss = case.objective.loss
    if loss == "mean_absolute_percentage_error" and targets.zero >= SHARE_OUTSIDE:
        yield Verdict(
            "warning",
            f"{format_share(targets.zero)} of the targets are 0, and {case.loss} divides by the target: these examples "
            "outweigh all others",
            "Use `mae` or `huber`, or leave the targets of 0 out.",
            {"share_zero": targets.zero},
        )
    if loss == "mean_squared_logarithmic_error" and targets.negative >= SHARE_OUTSIDE:
        yield Verdict(
            "warning",
            f"{format_share(targets.negative)} of the targets are below 0, and {case.loss} takes them for 0",
            "Use `mse`, or targets of 0 and above.",
            {"share_negative": targets.negative},
        )


def _classes_as_values(case: Case, targets: Pooled) -> Iterator[Verdict]:
    """Yield what does not fit where a squared or absolute error has classes as targets, or a metric takes them so."""
    objective = case.objective
    kind = objective.activation
    units = {"units": float(objective.units)}
    absolute = objective.loss == "mean_absolute_error"
    counts = min(ACCURACIES.intersection(objective.metrics), default="")
    may_be_classes = targets.whole >= 1 and targets.low in (0, 1) and targets.high <= MOST_CLASSES
    if case.one_hot or (case.binary_targets and objective.units == 1):
        stuck = case.history.loss_stuck
        # Squared error of a sigmoid is in use as the Brier score, and only slower than a cross-entropy.
        if kind == "sigmoid" and objective.units == 1 and not absolute and not stuck:
            return
        # The program itself says by its metric that it classifies, or the loss is the worst for this activation.
        certain = kind == "softmax" or (bool(counts) and kind == "linear")
        if absolute:
            why = "its best constant answer is the more frequent class, whatever the input"
        elif kind in PROBABILITY_ACTIVATIONS:
            why = "its gradient is small where an output is wrong and sure"
        else:
            why = "outputs beyond 0 and 1 count as wrong"
        better = "categorical_crossentropy" if objective.units > 1 else "binary_crossentropy"
        activation = "softmax" if objective.units > 1 else "sigmoid"
        yield Verdict(
            "warning" if stuck or certain else "info",
            f"the targets are classes, and {case.loss} takes them for numbers: {why}"
            + (", and the loss does not fall" if stuck else ""),
            f'Use `{better}`, with `Dense({objective.units}, activation="{activation}")`.',
            units,
        )
    elif counts and may_be_classes and objective.units == 1:
        yield Verdict(
            "warning",
            f"the metric `{counts}` takes the targets for classes, {targets.low:.0f} to {targets.high:.0f}, and "
            f"{case.loss} for values, of which neighbours are alike",
            f'For classes: {classes_advice(targets)[4:-1]}; for values: `metrics=["mae"]`.',
            {"target_min": targets.low, "target_max": targets.high},
        )
    elif counts and targets.whole < 1 - TOLERANCE:
        yield Verdict(
            "info",
            f"the metric `{counts}` counts outputs that equal the target, and these targets are numbers that "
            f"no output equals ({targets.low:.4g} to {targets.high:.4g})",
            'Use `metrics=["mae"]`.',
            {"share_whole": targets.whole},
        )


def _class_name(loss: str) -> str:
    return "".join(part.capitalize() for part in loss.split("_"))
