"""Rules about the objective: whether the output, the loss and the labels of a model fit each other.

What the program says is judged, together with what was measured of targets and outputs in all records so far. So most
of it is found in the first record. Only the losses of Keras and TensorFlow are judged; of a loss of the user's own it
is not known what it takes.

A loss is said by what is really computed. Keras computes a cross-entropy from the logits behind a sigmoid or a softmax
where it finds them (`_get_logits` in its TensorFlow backend), whatever `from_logits` says. Then the gradient is that of
the loss's own activation, and the output's activation matters to predictions and metrics only.

README.md says how a rule is written.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tapescope.rules.data_view import Objective, Pooled
from tapescope.rules.finding import SEVERITIES, Finding, format_share
from tapescope.rules.history import WINDOW, History

BINARY = {"binary_crossentropy", "binary_focal_crossentropy"}
CATEGORICAL = {"categorical_crossentropy", "categorical_focal_crossentropy"}
SPARSE = {"sparse_categorical_crossentropy"}
CROSS_ENTROPIES = BINARY | CATEGORICAL | SPARSE
PROBABILITIES = CROSS_ENTROPIES | {"kl_divergence"}
"""Losses that take probabilities, unless they take logits."""
ERRORS = {"huber", "log_cosh", "mean_absolute_error", "mean_squared_error"}
"""Losses of the difference between output and target."""
RELATIVE_ERRORS = {"mean_absolute_percentage_error", "mean_squared_logarithmic_error", "poisson"}

RANGES = {
    "hard_sigmoid": (0.0, 1.0),
    "relu": (0.0, float("inf")),
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "softplus": (0.0, float("inf")),
    "softsign": (-1.0, 1.0),
    "tanh": (-1.0, 1.0),
}
"""What an activation can give."""
NOT_PROBABILITIES = {"elu", "gelu", "leaky_relu", "linear", "relu", "selu", "silu", "softplus", "softsign", "tanh"}
LOGITS_CUT = {"relu", "softplus", "softsign", "tanh"}
"""Activations after which logits can't have every value."""
PROBABILITY_ACTIVATIONS = {"hard_sigmoid", "sigmoid", "softmax"}

KNOWN_ACTIVATIONS = NOT_PROBABILITIES | PROBABILITY_ACTIVATIONS | {"exponential"}
"""Others are judged by what they gave."""

TOLERANCE = 1e-3
"""By which a target may miss a bound: rounding, and the sum of many float16 shares."""
ROW_TOLERANCE = 0.01
"""By which the sum of a row of targets may differ from 1."""
SHARE_OUTSIDE = 0.02
"""Of the targets outside of what the output can give, from which on it is not an outlier of noise."""
MUCH_OUTSIDE = 0.2
"""Of the targets: one record suffices."""
MOST_OUTSIDE = 0.5
"""Of the targets: the network cannot learn its task."""
LEAST_OUTSIDE = 3
"""Targets: batches of one example give their first one a share of 1."""
OUTSIDE_DISTANCE = 0.1
"""In standard deviations of the targets: the nearest value that the output can give is as good."""
SAME_LABELS = 1000
"""Labels that are all the same: of a class that one example in 200 has, none is among them in one of 150 trainings."""
SINGLE_CLASS_SHARE = 0.05
"""Share of the records with labels of one class only: eight labels of two classes are so by chance in one of 128."""
MANY_OUTPUTS = 64
"""Outputs that do not all lie between 0 and 1 by chance."""
NEAR_ONE = 0.3
"""Difference from 1 that the mean sum of an example's probabilities may have. Over the batch's axis it is the number
of units over that of examples; dropout changes the mean of a few batches by less."""
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


class _Case(NamedTuple):
    """One output, its loss and its targets, as a rule sees them."""

    history: History
    objective: Objective
    targets: Pooled | None
    outputs: Pooled | None
    certain: bool
    """Whether the statistics of the targets leave out elements that do not count."""

    @property
    def name(self) -> str:
        """The output's layer, for messages."""
        return f"`{self.objective.layer}`" if self.objective.layer else "the output"

    @property
    def loss(self) -> str:
        """The loss, for messages."""
        return f"`{self.objective.loss}`"

    @property
    def binary_targets(self) -> bool:
        """Whether all targets are 0 or 1."""
        t = self.targets
        return t is not None and t.whole >= 1 and t.low >= 0 and t.high <= 1

    @property
    def one_hot(self) -> bool:
        """Whether each row of targets is 1 in one place and 0 elsewhere."""
        t = self.targets
        return self.binary_targets and t is not None and t.row_sum_low == 1 and t.row_sum_high == 1


class _Verdict(NamedTuple):
    severity: str
    message: str
    advice: str
    evidence: dict[str, float]


def _cases(history: History) -> Iterator[_Case]:
    for objective in history.layout.objectives:
        rows = history.layout.data
        yield _Case(
            history=history,
            objective=objective,
            targets=history.data.pooled(objective.target),
            outputs=history.data.pooled(objective.output),
            certain=0 <= objective.target < len(rows) and not rows[objective.target].weighted,
        )


def _most_severe(rule: str, case: _Case, verdicts: Iterator[_Verdict]) -> Iterator[Finding]:
    """Yield the most severe verdict on one output, the first of equal ones."""
    found = sorted(verdicts, key=lambda verdict: SEVERITIES.index(verdict.severity))
    first = case.history.first or case.history.latest
    for verdict in found[:1]:
        yield Finding(
            rule=rule,
            version=1,
            severity=verdict.severity,
            layer=case.objective.layer or None,
            step=first.step,
            message=verdict.message,
            evidence=verdict.evidence,
            advice=verdict.advice,
        )


def output_activation(history: History) -> Iterator[Finding]:
    """Report an output's activation that cannot give what the loss needs, or that gives always the same."""
    for case in _cases(history):
        yield from _most_severe("output_activation", case, _activation_verdicts(case))


def _activation_verdicts(case: _Case) -> Iterator[_Verdict]:
    objective = case.objective
    kind = objective.activation
    units = {"units": float(objective.units)}
    if kind == "softmax" and objective.units == 1:
        message = f"{case.name} is a softmax of one unit, which gives 1 for every input"
        if objective.logits_taken:
            message += (
                "; Keras computes the loss from the logits behind it, so the loss may fall, but every prediction "
            )
            message += "is 1"
        else:
            message += " and lets no gradient through"
        yield _Verdict("error", message, _output_advice(case), units)
        return
    if objective.loss in PROBABILITIES and not objective.from_logits and kind in NOT_PROBABILITIES - {"linear"}:
        low, high = RANGES.get(kind, (-1.0, float("inf")))
        beyond = "below 0" if low < 0 and high <= 1 else "above 1" if low >= 0 else "below 0 and above 1"
        yield _Verdict(
            "warning",
            f"{case.name} ends in {kind}, and {case.loss} takes its outputs for probabilities: they are cut to 0 to 1, "
            f"and no gradient passes where an output is {beyond}",
            _output_advice(case),
            units,
        )
    if objective.from_logits and kind in LOGITS_CUT:
        yield _Verdict(
            "warning",
            f"{case.name} ends in {kind}, and {case.loss} takes its outputs for logits, which need values of any size "
            "and sign",
            f"Leave out the activation: `Dense({objective.units})`.",
            units,
        )
    before = objective.activation_before
    if kind in ("sigmoid", "softmax") and before in PROBABILITY_ACTIVATIONS:
        yield _Verdict(
            "warning",
            f"{case.name} applies {kind} to what a {before} gave: its logits lie between 0 and 1, so no output can "
            "come near 0 or 1",
            f"Leave out one of the two: `Dense({objective.units})` before `Activation({kind!r})`.".replace("'", '"'),
            units,
        )
    elif kind == "sigmoid" and before in ("relu", "softplus"):
        yield _Verdict(
            "warning",
            f"{case.name} applies sigmoid to what {before} gave, which is never below 0: no output is below 0.5",
            f'Leave out the {before}: `Dense({objective.units}, activation="sigmoid")`.',
            units,
        )
    elif kind == "softmax" and before in LOGITS_CUT:
        yield _Verdict(
            "warning" if before == "relu" or case.history.loss_stuck else "info",
            f"{case.name} applies softmax to what {before} gave, which limits the logits",
            f"Leave out the {before} before the softmax.",
            units,
        )

    yield from _probability_verdicts(case)


def _probability_verdicts(case: _Case) -> Iterator[_Verdict]:
    """Yield what shows that the outputs of a softmax or sigmoid do not reach the loss as probabilities."""
    objective = case.objective
    outputs = case.outputs
    kind = objective.activation
    if outputs is None or outputs.nonfinite or objective.from_logits or objective.loss not in PROBABILITIES:
        return
    if kind in PROBABILITY_ACTIVATIONS and outputs.high > 1 + TOLERANCE:
        yield _Verdict(
            "warning",
            f"{case.name} ends in {kind}, and its outputs go up to {outputs.high:.3g}: a layer behind it changes them, "
            f"and {case.loss} takes them for probabilities",
            f"Let nothing follow the {kind}: put Dropout and scaling before the last layer.",
            {"output_max": outputs.high},
        )
    is_softmax = kind == "softmax" or (kind not in KNOWN_ACTIVATIONS and _are_probabilities(case))
    total = outputs.mean * objective.units
    is_many = objective.units > 1 and outputs.elements >= MANY_OUTPUTS
    if is_softmax and objective.loss in CATEGORICAL | SPARSE and is_many and abs(total - 1) > NEAR_ONE:
        yield _Verdict(
            "warning",
            f"the outputs of {case.name} lie between 0 and 1, and those of an example sum to {total:.3g} on average, "
            f"while {case.loss} takes them for probabilities, whose sum is 1",
            f'Use a softmax over the last axis: `Dense({objective.units}, activation="softmax")`.',
            {"output_sum": total},
        )


def _output_advice(case: _Case) -> str:
    """Return the output layer and the loss that suit the targets."""
    objective = case.objective
    loss = objective.loss
    targets = case.targets
    if loss in SPARSE and objective.units > 1:
        return f'Use `Dense({objective.units}, activation="softmax")`, or no activation and `from_logits=True`.'
    if loss in CATEGORICAL | {"kl_divergence"} and objective.units > 1:
        return f'Use `Dense({objective.units}, activation="softmax")`.'
    several = targets is not None and targets.whole >= 1 and targets.low >= 0 and targets.high > 1
    if loss in CROSS_ENTROPIES and several and targets is not None and objective.units == 1:
        return _classes_advice(targets)
    if loss in CROSS_ENTROPIES or case.binary_targets:
        return f'Use `Dense({objective.units}, activation="sigmoid")` with `binary_crossentropy`.'
    return f"Use `Dense({objective.units})` without an activation, and `mse` as the loss."


def _classes_advice(targets: Pooled) -> str:
    classes = int(targets.high) + 1
    if classes > 10_000:
        return "Scale the targets, or number the classes from 0 and give the output a unit for each."
    return f'Use `Dense({classes}, activation="softmax")` with `sparse_categorical_crossentropy`.'


def targets_out_of_range(history: History) -> Iterator[Finding]:
    """Report targets that the loss does not take, or that the output can never give."""
    for case in _cases(history):
        if case.targets is not None and case.certain:
            yield from _most_severe("targets_out_of_range", case, _range_verdicts(case, case.targets))


def _range_verdicts(case: _Case, targets: Pooled) -> Iterator[_Verdict]:
    objective = case.objective
    evidence = {"target_min": targets.low, "target_max": targets.high}
    held = f"the targets go from {targets.low:.4g} to {targets.high:.4g}"
    if objective.loss in SPARSE:
        if not objective.ignores_class and (targets.low < 0 or targets.high >= objective.units):
            units = objective.units
            advice = f"Use an output of {int(targets.high) + 1} units"
            if targets.low == 1 and targets.high == units:
                advice = "Number the labels from 0: `y - 1`"
            elif targets.low < 0:
                advice = "Number the labels from 0, or say which one to leave out: `ignore_class`"
            yield _Verdict(
                "error",
                f"{held}, and {case.loss} with {units} units takes 0 to {units - 1}: the loss of other labels is an "
                "error on a CPU and NaN on a GPU",
                f"{advice}.",
                evidence,
            )
        return
    outside = targets.negative + targets.above_one
    beyond = max(-targets.low, targets.high - 1)
    if objective.loss in BINARY | CATEGORICAL:
        if beyond > TOLERANCE:
            yield _Verdict(
                "error" if outside >= SHARE_OUTSIDE else "warning",
                f"{held}, and {case.loss} takes 0 to 1: outside of it the loss falls without limit",
                _unit_range_advice(case, targets),
                evidence | {"share_outside": outside},
            )
        return
    bounds = RANGES.get(objective.activation)
    if bounds is None or objective.loss not in ERRORS | RELATIVE_ERRORS:
        return
    low, high = bounds
    outside = (targets.negative if low == 0 else targets.below_minus_one) + (targets.above_one if high == 1 else 0.0)
    beyond = max(low - targets.low, targets.high - high)
    if outside < SHARE_OUTSIDE or beyond <= max(TOLERANCE, OUTSIDE_DISTANCE * targets.std):
        return
    if outside * targets.elements < LEAST_OUTSIDE:
        return
    if outside < MUCH_OUTSIDE and case.history.data.records < WINDOW // 2:
        return
    can = "0 and above" if high > 1 else f"{low:.0f} to {high:.0f}"
    advice = f"Use `Dense({objective.units})` without an activation"
    if high == 1:
        advice += f", or scale the targets to {low:.0f} to {high:.0f}"
    yield _Verdict(
        "error" if outside >= MOST_OUTSIDE else "warning",
        f"{held}, and {case.name} ends in {objective.activation}, which gives {can}: {format_share(outside)} of the "
        "targets can't be reached",
        f"{advice}.",
        evidence | {"share_outside": outside},
    )


def _unit_range_advice(case: _Case, targets: Pooled) -> str:
    if targets.whole >= 1 and targets.low == -1 and targets.high == 1:
        return "Use labels of 0 and 1: `(y + 1) / 2`."
    if targets.whole >= 1 and (targets.low, targets.high) == (1, 2):
        return "Use labels of 0 and 1: `y - 1`."
    if targets.whole >= 1 and targets.low >= 0 and case.objective.units == 1:
        return _classes_advice(targets)
    return "Scale the targets to 0 to 1, or use `mse` with an output without an activation."


def labels_degenerate(history: History) -> Iterator[Finding]:
    """Report labels that are not labels any more: not whole, or all the same."""
    for case in _cases(history):
        if case.targets is not None and case.certain:
            yield from _most_severe("labels_degenerate", case, _label_verdicts(case, case.targets))
        elif 0 <= case.objective.target < len(history.data.empty):
            yield from _most_severe("labels_degenerate", case, _weight_verdicts(case))


def _weight_verdicts(case: _Case) -> Iterator[_Verdict]:
    """Yield whether no example ever counted."""
    records = case.history.data.records
    if records >= WINDOW // 2 and case.history.data.empty[case.objective.target] == records:
        yield _Verdict(
            "warning",
            "the weight of every example so far is 0, so the loss is 0 and nothing is learned",
            "Look at `sample_weight`, `class_weight` and masks: they give the examples that count a weight above 0.",
            {"records": float(records)},
        )


def _label_verdicts(case: _Case, targets: Pooled) -> Iterator[_Verdict]:
    loss = case.objective.loss
    evidence = {"label_min": targets.low, "label_max": targets.high, "share_whole": targets.whole}
    if loss in SPARSE and targets.whole < 1 - TOLERANCE:
        becomes = "all become 0" if targets.low >= 0 and targets.high < 1 else "other classes result"
        yield _Verdict(
            "error",
            f"{case.loss} takes whole numbers, and {format_share(1 - targets.whole)} of the labels are not whole "
            f"({targets.low:.4g} to {targets.high:.4g}): they are cut off, and {becomes}",
            "Pass the labels as they are, as whole numbers from 0 on: scale the inputs only.",
            evidence,
        )
    if targets.single_classes >= max(WINDOW // 2, SINGLE_CLASS_SHARE * case.history.data.records):
        yield _Verdict(
            "warning",
            f"each of {targets.single_classes} batches has labels of one class only, not always the same: each step "
            "teaches the network to forget the other classes",
            "Shuffle the examples before they are cut into batches.",
            evidence,
        )
    if targets.elements < SAME_LABELS or case.history.data.records < WINDOW // 2:
        return
    if loss in SPARSE and _are_the_inputs(case):
        yield _Verdict(
            "info",
            "the labels seem to be the inputs, by their mean, deviation and range in each record: the network learns "
            "to copy",
            "To predict the next element, shift the labels by one: `x = ids[:, :-1]`, `y = ids[:, 1:]`. An "
            "autoencoder, or a network that sorts or reverses, has the same numbers on purpose.",
            evidence,
        )
    if loss in ERRORS and targets.low == targets.high:
        yield _Verdict(
            "warning",
            f"all targets so far are {targets.low:.4g}, so the network can only learn to answer that",
            "Look how the targets are made: whole numbers are cut off when they are divided.",
            evidence,
        )
    if loss not in CROSS_ENTROPIES:
        return
    rows = loss in CATEGORICAL and case.objective.units > 1
    low, high = (targets.class_low, targets.class_high) if rows else (targets.low, targets.high)
    if loss in SPARSE:
        low, high = int(low), int(high)
    if low == high:
        yield _Verdict(
            "warning",
            f"all labels so far are the same ({low:.4g}), so the network can only learn to answer that",
            "Look how the labels are made, and shuffle the data if they are sorted by class.",
            evidence,
        )


def _are_the_inputs(case: _Case) -> bool:
    """Return whether the labels have the same statistics as an input in all of the last records."""
    rows = case.history.layout.data
    names = ("elements", "mean", "std", "min", "max", "zero")
    statistics = np.array([[view.column(f"data_{n}", len(rows)) for n in names] for view in case.history.window])
    same = np.all(statistics == statistics[:, :, [case.objective.target]], axis=(0, 1))
    return any(same[i] and row.kind == "input" for i, row in enumerate(rows))


def loss_mismatch(history: History) -> Iterator[Finding]:
    """Report a loss that takes something else than the output gives, or than the targets are."""
    for case in _cases(history):
        yield from _most_severe("loss_mismatch", case, _loss_verdicts(case))
    yield from _repeated_activation(history)
    if _compares_all_pairs(history):
        yield Finding(
            rule="loss_mismatch",
            version=2,
            severity="error",
            layer=None,
            step=history.window[0].step,
            message="the loss compares each output with the targets of all examples, not with its own: targets [N] "
            "less outputs [N, 1] makes [N, N], of which the best answer is the same for every input",
            evidence={"loss": history.latest.loss},
            advice="Give the targets the shape of the outputs in the loss: `y[:, None]`, or `tf.squeeze(outputs, -1)`.",
        )


def _repeated_activation(history: History) -> Iterator[Finding]:
    """Report a cross-entropy of logits that gets probabilities, unless it is said of one of the outputs."""
    layout = history.layout
    is_said = any(o.from_logits and o.activation in PROBABILITY_ACTIVATIONS for o in layout.objectives)
    if not layout.repeated_activation or is_said:
        return
    applied, made = layout.repeated_activation
    yield Finding(
        rule="loss_mismatch",
        version=2,
        severity="warning",
        layer=None,
        step=history.window[0].step,
        message=f"the loss applies {applied} to what it is given, which are the outputs of a {made} already: these lie "
        "between 0 and 1, so no probability can come near 0 or 1, and the gradient is small",
        evidence={"loss": history.latest.loss},
        advice=f"Leave out the {made} behind the last layer, or use a loss that takes probabilities.",
    )


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


def _loss_verdicts(case: _Case) -> Iterator[_Verdict]:
    objective = case.objective
    kind = objective.activation
    loss = objective.loss
    units = {"units": float(objective.units)}
    if loss in CATEGORICAL | SPARSE and objective.units == 1:
        yield _Verdict(
            "error",
            f"{case.loss} compares classes, and {case.name} has one unit: the loss is 0 for every output, and its "
            "gradient too",
            'Use `Dense(1, activation="sigmoid")` with `binary_crossentropy`, or a unit for each class.',
            units,
        )
        return
    is_known = kind in KNOWN_ACTIVATIONS
    may_be_logits = kind == "linear" or (not is_known and case.outputs is not None)
    if loss in PROBABILITIES and may_be_logits and not objective.from_logits and not _are_probabilities(case):
        activation = "sigmoid" if loss in BINARY else "softmax"
        can_take_logits = f", or the loss `from_logits=True`: `{_class_name(loss)}(from_logits=True)`"
        yield _Verdict(
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
        yield _Verdict(
            "info" if objective.logits_taken else "warning",
            message,
            "Leave out the activation, or `from_logits=True`.",
            units,
        )
    elif objective.from_logits and not is_known and _are_probabilities(case) and _are_many(case):
        yield _Verdict(
            "warning",
            f"all outputs lie between 0 and 1, as probabilities do, and {case.loss} was told that it gets logits",
            "Leave out `from_logits=True`, or what makes the outputs probabilities.",
            units,
        )
    yield from _classes_verdicts(case)
    yield from _regression_verdicts(case)
    if objective.sums_examples:
        yield _Verdict(
            "info",
            "the loss is the sum over the batch: its gradient, and each step, grows with the number of examples",
            'Use `reduction="sum_over_batch_size"`, or `tf.reduce_mean` in the place of `tf.reduce_sum`; else lower '
            "the learning rate when the batch grows.",
            units,
        )


def _classes_verdicts(case: _Case) -> Iterator[_Verdict]:
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
        yield _Verdict(
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
            yield _Verdict(
                "warning",
                f"rows of the targets sum to {low:.3g} to {high:.3g}, and {case.loss} takes distributions, which sum "
                "to 1: with a softmax the labels of an example take each other's place",
                f"{several}; for one class an example, one-hot rows.",
                evidence,
            )
        elif low <= ROW_TOLERANCE:
            yield _Verdict(
                "info",
                f"some rows of the targets are 0 everywhere, and add nothing to {case.loss}",
                f"{several}.",
                evidence,
            )
    if loss in BINARY and kind == "softmax":
        labels = targets is not None and targets.row_sum_high > 1 + ROW_TOLERANCE
        trained = "Keras trains a sigmoid of each logit behind it" if objective.logits_taken else "they compete"
        yield _Verdict(
            "warning" if labels or objective.units > 2 else "info",
            f"the {objective.units} outputs of {case.name} are a softmax, and sum to 1, while {case.loss} takes each "
            f"as a yes or no of its own: {trained}",
            f"{several}; for one class an example use `categorical_crossentropy`.",
            units,
        )
    if loss in BINARY and kind == "sigmoid" and objective.units > 2 and case.one_hot:
        yield _Verdict(
            "info",
            f"each example has one class out of {objective.units}, and {case.loss} takes each unit for a yes or no of "
            f"its own; `accuracy` then counts units, and zeros have {format_share(1 - 1 / objective.units)}",
            f'Use `Dense({objective.units}, activation="softmax")` with `categorical_crossentropy`.',
            units,
        )
    if loss in ("hinge", "squared_hinge") and kind in PROBABILITY_ACTIVATIONS | {"relu", "softplus"}:
        yield _Verdict(
            "warning",
            f"{case.name} ends in {kind}, which is never below 0, and {case.loss} asks for outputs of -1 and 1",
            f'Use `Dense({objective.units}, activation="tanh")`, or no activation.',
            units,
        )


def _regression_verdicts(case: _Case) -> Iterator[_Verdict]:
    """Yield what does not fit between a loss of differences, its activation, its targets and metrics."""
    objective = case.objective
    kind = objective.activation
    targets = case.targets
    units = {"units": float(objective.units)}
    if objective.loss == "poisson" and kind in NOT_PROBABILITIES - {"relu", "softplus"}:
        yield _Verdict(
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
            yield _Verdict(
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
        yield _Verdict(
            "warning",
            f"the targets are one number an example, and {case.name} has {objective.units} units: {case.loss} compares "
            "each unit with the same number",
            f"Use {f'{classes} for classes, or ' if several else ''}`Dense(1)` for one value.",
            units | {"target_units": 1.0},
        )
        return
    yield from _classes_as_values(case, targets)


def _relative_verdicts(case: _Case, targets: Pooled) -> Iterator[_Verdict]:
    """Yield what does not fit between targets and a loss of their ratio or logarithm."""
    loss = case.objective.loss
    if loss == "mean_absolute_percentage_error" and targets.zero >= SHARE_OUTSIDE:
        yield _Verdict(
            "warning",
            f"{format_share(targets.zero)} of the targets are 0, and {case.loss} divides by the target: these examples "
            "outweigh all others",
            "Use `mae` or `huber`, or leave the targets of 0 out.",
            {"share_zero": targets.zero},
        )
    if loss == "mean_squared_logarithmic_error" and targets.negative >= SHARE_OUTSIDE:
        yield _Verdict(
            "warning",
            f"{format_share(targets.negative)} of the targets are below 0, and {case.loss} takes them for 0",
            "Use `mse`, or targets of 0 and above.",
            {"share_negative": targets.negative},
        )


def _classes_as_values(case: _Case, targets: Pooled) -> Iterator[_Verdict]:
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
        yield _Verdict(
            "warning" if stuck or certain else "info",
            f"the targets are classes, and {case.loss} takes them for numbers: {why}"
            + (", and the loss does not fall" if stuck else ""),
            f'Use `{better}`, with `Dense({objective.units}, activation="{activation}")`.',
            units,
        )
    elif counts and may_be_classes and objective.units == 1:
        yield _Verdict(
            "warning",
            f"the metric `{counts}` takes the targets for classes, {targets.low:.0f} to {targets.high:.0f}, and "
            f"{case.loss} for values, of which neighbours are alike",
            f'For classes: {_classes_advice(targets)[4:-1]}; for values: `metrics=["mae"]`.',
            {"target_min": targets.low, "target_max": targets.high},
        )
    elif counts and targets.whole < 1 - TOLERANCE:
        yield _Verdict(
            "info",
            f"the metric `{counts}` counts outputs that equal the target, and these targets are numbers that "
            f"no output equals ({targets.low:.4g} to {targets.high:.4g})",
            'Use `metrics=["mae"]`.',
            {"share_whole": targets.whole},
        )


def _are_probabilities(case: _Case) -> bool:
    """Return whether all outputs so far lay between 0 and 1."""
    return case.outputs is not None and case.outputs.low >= 0 and case.outputs.high <= 1


def _are_many(case: _Case) -> bool:
    """Return whether so many different outputs were seen that their range is not due to chance."""
    outputs = case.outputs
    several = case.history.data.records >= WINDOW // 2
    return several and outputs is not None and outputs.elements >= MANY_OUTPUTS and outputs.high > outputs.low


def _class_name(loss: str) -> str:
    return "".join(part.capitalize() for part in loss.split("_"))
