"""When to measure: functions from a step's number to a Python bool.

Any function will do; these ones also keep the time. They are called once at the start of every step, so the time from
one call to the next is a step's, and they know which steps were measured.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_REMEMBERED = 101
"""Steps of each kind; the medians follow a machine that becomes slower or faster."""


class Cost(NamedTuple):
    """What measuring costs, as far as it is known; NaN where it is not."""

    step_ms: float
    """Median time of the last plain steps, milliseconds."""
    measure_ms: float
    """How much longer the last measured steps took, by medians, milliseconds."""
    error_ms: float
    """Standard error of `measure_ms`: of medians, with the spread taken from the median absolute deviation."""
    overhead_pct: float
    """What measuring adds to the time of training, by the share of steps that were measured, per cent."""
    overhead_error_pct: float
    """Standard error of `overhead_pct`."""


class Schedule:
    """`decide(step)`, with a clock: how long a plain step takes, and how much longer a measured one."""

    def __init__(self, decide: Callable[[int], bool], clock: Callable[[], float] = time.perf_counter):
        self._decide = decide
        self._clock = clock
        self._last: tuple[float, bool] | None = None
        self._untraced = {False, True}
        self._steps = {False: 0, True: 0}
        self._times = {kind: deque[float](maxlen=_REMEMBERED) for kind in (False, True)}

    def __call__(self, step: int) -> bool:
        now, measure = self._clock(), bool(self._decide(step))
        if self._last is not None:
            since, measured = self._last
            if measured in self._untraced:  # that step was also traced and compiled
                self._untraced.discard(measured)
            else:
                self._times[measured].append(1000 * (now - since))
        self._steps[measure] += 1
        self._last = now, measure
        return measure

    def pause(self) -> None:
        """Forgets the step that is under way: call it before validation, or anything else that is no step."""
        self._last = None

    @property
    def cost(self) -> Cost:
        """What is known by now."""
        (plain, error), (measured, other) = (_median(self._times[kind]) for kind in (False, True))
        share = self._steps[True] / max(1, sum(self._steps.values()))
        extra, error = measured - plain, math.hypot(error, other)
        return Cost(plain, extra, error, 100 * share * extra / plain, 100 * share * error / plain)


def _median(times: deque[float]) -> tuple[float, float]:
    """The median, and its standard error if the times were normal: 1.2533 sigma / sqrt(n), sigma 1.4826 MAD."""
    if not times:
        return math.nan, math.nan
    values = np.array(times)
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return middle, 1.2533 * spread / math.sqrt(len(values))


def every(steps: int) -> Schedule:
    """True for the steps 0, `steps`, 2 `steps`, ... Raises ValueError unless `steps` is a positive integer."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` ({steps!r}) must be a positive integer; to measure nothing use tapescope.never()")
    return Schedule(lambda step: step % steps == 0)


def never() -> Schedule:
    """False for every step."""
    return Schedule(lambda step: False)


def budget(percent: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> Schedule:
    """Measures as often as `percent` of the training time allows, by its own timing of measured and plain steps.

    Every tenth step until three of each kind are known; then, after each measured step, it waits as many plain ones as
    pay for it: cost / (percent of a plain step), with the cost's standard error added, at most 10,000. Not
    deterministic: take `every` where two runs shall have the same records. Raises ValueError for a bad `percent`.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"`percent` ({percent!r}) must be above 0 and at most 100; to measure every step use every(1)")
    due = 0

    def decide(step: int) -> bool:
        nonlocal due
        if step < due:
            return False
        cost, known = schedule.cost, all(len(times) >= 3 for times in schedule._times.values())
        share = percent / 100 * cost.step_ms
        pause = (max(0.0, cost.measure_ms) + cost.error_ms) / share if known else 10
        due = step + min(max(1, math.ceil(pause)), 10_000)
        return True

    schedule = Schedule(decide, clock)
    return schedule
