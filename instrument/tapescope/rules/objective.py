"""The objective as rules see it: one output, its loss and its targets.

What the program says is judged, together with what was measured of targets and outputs in all records so far. So most
of it is found in the first record. Only the losses of Keras and TensorFlow are judged; of a loss of the user's own it
is not known what it takes.

A loss is said by what is really computed. Keras computes a cross-entropy from the logits behind a sigmoid or a softmax
where it finds them (`_get_logits` in its TensorFlow backend), whatever `from_logits` says. Then the gradient is that of
the loss's own activation, and the output's activation matters to predictions and metrics only.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tapescope.rules.data_view import OutputObjective, Pooled
from tapescope.rules.finding import SEVERITIES, Finding
from tapescope.rules.history import WINDOW, History

BINARY = {"binary_crossentropy", "binary_focal_crossentropy"}
CATEGORICAL = {"categorical_crossentropy", "categorical_focal_crossentropy"}
SPARSE = {"sparse_categorical_crossentropy"}
CROSS_ENTROPIES = BINARY | CATEGORICAL | SPARSE
PROBABILITIES = CROSS_ENTROPIES | {"kl_divergence"}
"""Losses that take probabilities, unless they take logits."""
ERRORS = {"huber", "log_cosh", "mean_absolute_error", "mean_squared_error"}
"""Losses of the difference between output and target."""
RANGES = {
    "hard_sigmoid": (0.0, 1.0),
    "relu": (0.0, float("inf")),
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "softplus": (0.0, float("inf")),
    "softsign": (-1.0, 1.0),
    "tanh": (-1.0, 1.0),
}
"""Lowest and highest value that an activation can give."""
NOT_PROBABILITIES = {"elu", "gelu", "leaky_relu", "linear", "relu", "selu", "silu", "softplus", "softsign", "tanh"}
PROBABILITY_ACTIVATIONS = {"hard_sigmoid", "sigmoid", "softmax"}
KNOWN_ACTIVATIONS = NOT_PROBABILITIES | PROBABILITY_ACTIVATIONS | {"exponential"}
"""Others are judged by what they gave."""
TOLERANCE = 1e-3
"""Distance by which a target may miss a bound: rounding, and the sum of many float16 shares."""
SHARE_OUTSIDE = 0.02
"""Share of the targets outside of what the output can give, from which on it is not an outlier of noise."""
MANY_OUTPUTS = 64
"""Outputs that do not all lie between 0 and 1 by chance."""


class Case(NamedTuple):
    """One output, its loss and its targets, as a rule sees them."""

    history: History
    objective: OutputObjective
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


class Verdict(NamedTuple):
    """A rule's answer on one output."""

    severity: str
    message: str
    advice: str
    evidence: dict[str, float]


def cases(history: History) -> Iterator[Case]:
    """Yield a case for each output that the program has said a loss of."""
    for objective in history.layout.objectives:
        rows = history.layout.data
        yield Case(
            history=history,
            objective=objective,
            targets=history.data.pooled(objective.target),
            outputs=history.data.pooled(objective.output),
            certain=0 <= objective.target < len(rows) and not rows[objective.target].weighted,
        )


def most_severe(rule: str, case: Case, verdicts: Iterator[Verdict]) -> Iterator[Finding]:
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


def classes_advice(targets: Pooled) -> str:
    """Return advice for targets that are whole numbers from 0 on."""
    classes = int(targets.high) + 1
    if classes > 10_000:
        return "Scale the targets, or number the classes from 0 and give the output a unit for each."
    return f'Use `Dense({classes}, activation="softmax")` with `sparse_categorical_crossentropy`.'


def are_probabilities(case: Case) -> bool:
    """Return whether all outputs so far lay between 0 and 1."""
    return case.outputs is not None and case.outputs.low >= 0 and case.outputs.high <= 1


def are_many(case: Case) -> bool:
    """Return whether so many different outputs were seen that their range is not due to chance."""
    outputs = case.outputs
    several = case.history.data.records >= WINDOW // 2
    return several and outputs is not None and outputs.elements >= MANY_OUTPUTS and outputs.high > outputs.low
