"""Confidence intervals over seeds, tests against thresholds, and the verdict on a claim.

Effects are paired: two set-ups with the same seed have the same split and order of the examples, and the effect is the
mean of the differences. The interval is Student's t with n - 1 degrees of freedom. With five seeds a bootstrap, which
can only draw the same five values again, would be too narrow.

A test holds if the whole interval is on the claimed side of the threshold, fails if it is wholly on the other side, and
is undecided otherwise. A part of a claim is supported if all its tests hold, refuted if all fail, and otherwise
depends. A claim has the verdict of its parts if they agree, and otherwise depends.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.trial import Trial

LEVEL = 0.95
"""Confidence level of each interval."""
HOLDS = "holds"
FAILS = "fails"
UNDECIDED = "undecided"
SUPPORTED = "supported"
REFUTED = "refuted"
DEPENDS = "depends"
UNTESTED = "not tested"


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the t interval of the mean of two or more values; NaN if a value is NaN.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"`values` must have two or more elements; got {len(values)}: use --seeds=2 or more")
    from scipy import stats  # takes half a second to import: not for --help

    sample = np.asarray(values, np.float64)
    mean = sample.mean()
    standard_error = sample.std(ddof=1) / np.sqrt(len(sample))
    half_width = stats.t.ppf((1 + level) / 2, len(sample) - 1) * standard_error
    return Interval(float(mean), float(mean - half_width), float(mean + half_width))


class Test(NamedTuple):
    """One quantity under one condition, and what the claim says about it."""

    __test__ = False  # pytest would take it for a test case

    condition: str
    quantity: str
    measure: Callable[[Trial], float]
    setup: Setup
    baseline: Setup | None = None
    """Set-up whose measure is subtracted, seed by seed."""
    above: float | None = None
    """The claim says that the effect is above this,"""
    below: float | None = None
    """or below this."""
    correction: str = ""
    """What is wrong in the document if this fails."""
    part: str = ""
    """Of a claim that says several things, which one this is about."""
    decides: bool = True
    """False: reported, but not counted in the verdict."""

    @property
    def threshold(self) -> str:
        """The threshold as text: `> 0.5`."""
        return f"< {self.below:.3g}" if self.above is None else f"> {self.above:.3g}"


class Claim(NamedTuple):
    """A claim of the document, and its tests; the first is the most telling."""

    letter: str
    text: str
    tests: tuple[Test, ...]


class Outcome(NamedTuple):
    """The result of a test."""

    test: Test
    effect: Interval
    result: str
    """HOLDS, FAILS or UNDECIDED."""


def run_test(test: Test, trials: Mapping[Setup, Sequence[Trial]]) -> Outcome:
    """Run one test.

    Args:
        test: The test.
        trials: For each set-up a trial of every seed, in the same order.
    """
    values = np.array([test.measure(trial) for trial in trials[test.setup]])
    if test.baseline is not None:
        values = values - [test.measure(trial) for trial in trials[test.baseline]]
    effect = interval(values.tolist())
    return Outcome(test, effect, compare(effect, test.above, test.below))


def compare(effect: Interval, above: float | None, below: float | None) -> str:
    """Return whether the claim that `effect` is above or below a threshold HOLDS, FAILS, or is UNDECIDED (also NaN).

    Raises:
        ValueError: Not exactly one threshold was passed.
    """
    if above is not None and below is None:
        holds = effect.low > above
        fails = effect.high < above
    elif below is not None and above is None:
        holds = effect.high < below
        fails = effect.low > below
    else:
        raise ValueError(f"exactly one of `above` and `below` must be a number; got {above} and {below}")
    if holds:
        return HOLDS
    return FAILS if fails else UNDECIDED


class Part(NamedTuple):
    """One point of a claim, and its verdict."""

    name: str
    verdict: str
    conditions: str
    """If it depends: the conditions by the results of their tests."""
    outcomes: tuple[Outcome, ...]
    """Those that decide."""


def parts(outcomes: Sequence[Outcome]) -> list[Part]:
    """Return the parts of a claim with their verdicts, in the order of their first tests."""
    by_part: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.test.decides:
            by_part.setdefault(outcome.test.part, []).append(outcome)
    return [_judge(name, deciding) for name, deciding in by_part.items()]


def verdict(outcomes: Sequence[Outcome]) -> str:
    """Return the verdict on a claim."""
    verdicts = {part.verdict for part in parts(outcomes)}
    if not verdicts:
        return UNTESTED
    return verdicts.pop() if len(verdicts) == 1 else DEPENDS


def _judge(name: str, outcomes: Sequence[Outcome]) -> Part:
    """Return the part of a claim that these tests decide."""
    results = {outcome.result for outcome in outcomes}
    if results == {HOLDS}:
        return Part(name, SUPPORTED, conditions="", outcomes=tuple(outcomes))
    if results == {FAILS}:
        return Part(name, REFUTED, conditions="", outcomes=tuple(outcomes))
    by_result = {
        result: [outcome.test.condition for outcome in outcomes if outcome.result == result]
        for result in (HOLDS, FAILS, UNDECIDED)
    }
    conditions = "; ".join(f"{result}: {' · '.join(names)}" for result, names in by_result.items() if names)
    return Part(name, DEPENDS, conditions=conditions, outcomes=tuple(outcomes))
