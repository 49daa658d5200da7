"""The rule about outputs: an activation that cannot give what the loss needs. README.md says how a rule is written."""

from collections.abc import Iterator

from tapescope.rules.finding import Finding
from tapescope.rules.history import History
from tapescope.rules.objective import (
    CATEGORICAL,
    CROSS_ENTROPIES,
    KNOWN_ACTIVATIONS,
    MANY_OUTPUTS,
    NOT_PROBABILITIES,
    PROBABILITIES,
    PROBABILITY_ACTIVATIONS,
    RANGES,
    SPARSE,
    TOLERANCE,
    Case,
    Verdict,
    are_probabilities,
    cases,
    classes_advice,
    most_severe,
)

LOGITS_CUT = {"relu", "softplus", "softsign", "tanh"}
"""Activations after which logits can't have every value."""
NEAR_ONE = 0.3
"""Difference from 1 that the mean sum of an example's probabilities may have. Over the batch's axis it is the number
of units over that of examples; dropout changes the mean of a few batches by less."""


def output_activation(history: History) -> Iterator[Finding]:
    """Report an output's activation that cannot give what the loss needs, or that gives always the same."""
    for case in cases(history):
        yield from most_severe("output_activation", case, _activation_verdicts(case))


def _activation_verdicts(case: Case) -> Iterator[Verdict]:
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
        yield Verdict("error", message, _output_advice(case), units)
        return
    if objective.loss in PROBABILITIES and not objective.from_logits and kind in NOT_PROBABILITIES - {"linear"}:
        low, high = RANGES.get(kind, (-1.0, float("inf")))
        beyond = "below 0" if low < 0 and high <= 1 else "above 1" if low >= 0 else "below 0 and above 1"
        yield Verdict(
            "warning",
            f"{case.name} ends in {kind}, and {case.loss} takes its outputs for probabilities: they are cut to 0 to 1, "
            f"and no gradient passes where an output is {beyond}",
            _output_advice(case),
            units,
        )
    if objective.from_logits and kind in LOGITS_CUT:
        yield Verdict(
            "warning",
            f"{case.name} ends in {kind}, and {case.loss} takes its outputs for logits, which need values of any size "
            "and sign",
            f"Leave out the activation: `Dense({objective.units})`.",
            units,
        )
    before = objective.activation_before
    if kind in ("sigmoid", "softmax") and before in PROBABILITY_ACTIVATIONS:
        yield Verdict(
            "warning",
            f"{case.name} applies {kind} to what a {before} gave: its logits lie between 0 and 1, so no output can "
            "come near 0 or 1",
            f"Leave out one of the two: `Dense({objective.units})` before `Activation({kind!r})`.".replace("'", '"'),
            units,
        )
    elif kind == "sigmoid" and before in ("relu", "softplus"):
        yield Verdict(
            "warning",
            f"{case.name} applies sigmoid to what {before} gave, which is never below 0: no output is below 0.5",
            f'Leave out the {before}: `Dense({objective.units}, activation="sigmoid")`.',
            units,
        )
    elif kind == "softmax" and before in LOGITS_CUT:
        yield Verdict(
            "warning" if before == "relu" or case.history.loss_stuck else "info",
            f"{case.name} applies softmax to what {before} gave, which limits the logits",
            f"Leave out the {before} before the softmax.",
            units,
        )

    yield from _probability_verdicts(case)


def _probability_verdicts(case: Case) -> Iterator[Verdict]:
    """Yield what shows that the outputs of a softmax or sigmoid do not reach the loss as probabilities."""
    objective = case.objective
    outputs = case.outputs
    kind = objective.activation
    if outputs is None or outputs.nonfinite or objective.from_logits or objective.loss not in PROBABILITIES:
        return
    if kind in PROBABILITY_ACTIVATIONS and outputs.high > 1 + TOLERANCE:
        yield Verdict(
            "warning",
            f"{case.name} ends in {kind}, and its outputs go up to {outputs.high:.3g}: a layer behind it changes them, "
            f"and {case.loss} takes them for probabilities",
            f"Let nothing follow the {kind}: put Dropout and scaling before the last layer.",
            {"output_max": outputs.high},
        )
    is_softmax = kind == "softmax" or (kind not in KNOWN_ACTIVATIONS and are_probabilities(case))
    total = outputs.mean * objective.units
    is_many = objective.units > 1 and outputs.elements >= MANY_OUTPUTS
    if is_softmax and objective.loss in CATEGORICAL | SPARSE and is_many and abs(total - 1) > NEAR_ONE:
        yield Verdict(
            "warning",
            f"the outputs of {case.name} lie between 0 and 1, and those of an example sum to {total:.3g} on average, "
            f"while {case.loss} takes them for probabilities, whose sum is 1",
            f'Use a softmax over the last axis: `Dense({objective.units}, activation="softmax")`.',
            {"output_sum": total},
        )


def _output_advice(case: Case) -> str:
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
        return classes_advice(targets)
    if loss in CROSS_ENTROPIES or case.binary_targets:
        return f'Use `Dense({objective.units}, activation="sigmoid")` with `binary_crossentropy`.'
    return f"Use `Dense({objective.units})` without an activation, and `mse` as the loss."
