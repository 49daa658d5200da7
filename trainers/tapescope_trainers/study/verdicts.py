"""What the numbers of a few seeds say: confidence intervals, tests against a threshold, and a claim's verdict.

Effects are paired: with the same seed two set-ups have the same split and order of the examples, and the effect is the
mean of the differences. The interval is Student's t with n - 1 degrees of freedom: with five seeds a bootstrap, which
can only draw the same five values again, would be too narrow.

A test holds where the whole interval is on the claimed side of the threshold, fails where it is wholly on the other
side, and is undecided else. A part of a claim is supported where all its tests hold, refuted where all fail, and else
it depends; a claim is what all its parts are, and where they differ it depends.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tapescope_trainers.study.grid import Setup
from tapescope_trainers.study.trial import Trial

LEVEL = 0.95
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SUPPORTED, REFUTED, DEPENDS, UNTESTED = "supported", "refuted", "depends", "not tested"


class Interval(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


@functools.cache
def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t. With x = sqrt(v) tan(u) its density is cos(u)^(v-1), up to a factor: integrated here."""
    u = np.linspace(-np.pi / 2, np.pi / 2, 200_001)
    density = np.cos(u) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(p, mass / mass[-1], u)))


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The t interval of the mean of n >= 2 values; NaN where a value is."""
    if len(values) < 2:
        raise ValueError(f"`values` has {len(values)}: an interval needs two or more, so take --seeds=2 or more")
    sample = np.asarray(values, np.float64)
    mean, error = sample.mean(), sample.std(ddof=1) / np.sqrt(len(sample))
    half = t_quantile((1 + level) / 2, len(sample) - 1) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


class Test(NamedTuple):
    """One quantity under one condition, and what the claim says of it."""

    __test__ = False  # pytest takes it for a test case else

    where: str
    """The condition."""
    quantity: str
    measure: Callable[[Trial], float]
    setup: Setup
    against: Setup | None = None
    """What the same measure is taken from, seed by seed, and subtracted."""
    above: float | None = None
    """The claim says that the effect is above this,"""
    below: float | None = None
    """or below that."""
    wrong: str = ""
    """What to say of the document where this fails."""
    part: str = ""
    """Of a claim that says several things, which one this is about."""
    decides: bool = True
    """False: told beside the verdict, no part of it."""

    @property
    def threshold(self) -> str:
        """As text: `> 0.5`."""
        return f"< {self.below:.3g}" if self.above is None else f"> {self.above:.3g}"


class Claim(NamedTuple):
    """What the document says, and the tests that decide on it; the first is the most telling."""

    letter: str
    text: str
    tests: tuple[Test, ...]


class Outcome(NamedTuple):
    """What a test came to."""

    test: Test
    effect: Interval
    seeds: int
    says: str


def outcome(test: Test, trials: Mapping[Setup, Sequence[Trial]]) -> Outcome:
    """Runs one test; `trials` has one of every seed, in order, for each set-up."""
    values = np.array([test.measure(trial) for trial in trials[test.setup]])
    if test.against is not None:
        values = values - [test.measure(trial) for trial in trials[test.against]]
    effect = interval(values.tolist())
    return Outcome(test, effect, len(values), side(effect, test.above, test.below))


def side(effect: Interval, above: float | None, below: float | None) -> str:
    """Whether the claim holds: `effect` is to be above the one or below the other. Undecided where it is NaN."""
    if above is not None and below is None:
        return HOLDS if effect.low > above else FAILS if effect.high < above else UNDECIDED
    if below is not None and above is None:
        return HOLDS if effect.high < below else FAILS if effect.low > below else UNDECIDED
    raise ValueError(f"`above` ({above}) or `below` ({below}) must be given, and only one of them")


class Part(NamedTuple):
    """What a claim says on one point, and what came of it."""

    name: str
    word: str
    on_what: str
    """It depends: the conditions by what the tests say."""
    outcomes: tuple[Outcome, ...]
    """Those that decide."""


def parts(outcomes: Sequence[Outcome]) -> list[Part]:
    """The parts of a claim, in the order of their first tests, each with its verdict."""
    by: dict[str, list[Outcome]] = {}
    for o in outcomes:
        if o.test.decides:
            by.setdefault(o.test.part, []).append(o)
    return [Part(name, *_word(of), tuple(of)) for name, of in by.items()]


def verdict(outcomes: Sequence[Outcome]) -> str:
    """On the whole claim."""
    words = {part.word for part in parts(outcomes)}
    return words.pop() if len(words) == 1 else DEPENDS if words else UNTESTED


def _word(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    by = {says: [o.test.where for o in outcomes if o.says == says] for says in (HOLDS, FAILS, UNDECIDED)}
    for says, word in ((HOLDS, SUPPORTED), (FAILS, REFUTED)):
        if len(by[says]) == len(outcomes):
            return word, ""
    return DEPENDS, "; ".join(f"{says}: {' · '.join(where)}" for says, where in by.items() if where)
