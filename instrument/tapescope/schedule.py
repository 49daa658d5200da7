"""Schedules: functions from a step's number to whether that step is measured, a Python bool.

Any function serves as a schedule. Those here also measure time. A schedule is called once at the start of every step,
so the time from one call to the next is a step's, and the schedule knows which steps were measured.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_KEPT_TIMES = 101
"""Step times kept of each kind, so that the medians follow a machine that becomes slower or faster."""
_KNOWN_TIMES = 3
"""Step times of each kind from which on a budget uses the medians."""
_FIRST_INTERVAL = 10
"""Steps between measured ones until then."""
_LONGEST_INTERVAL = 10_000
"""Most steps between two measured ones."""


class Cost(NamedTuple):
    """An estimate of what measuring costs; NaN where it is not known yet.

    `measure_ms` is a difference of medians: the difference of one measured and one plain step is mostly noise. See
    docs/decisions/0021-measure-ms-is-an-estimate.md.
    """

    step_ms: float
    """Median time of the last plain steps, in milliseconds a step."""
    measure_ms: float
    """Median time of the last measured steps less `step_ms`, in milliseconds a measured step."""
    error_ms: float
    """Standard error of `measure_ms`, in milliseconds, from the steps' median absolute deviations."""
    overhead_pct: float
    """Time that measuring adds to the training, in per cent: `measure_ms` over `step_ms`, times the share of steps that
    are measured."""
    overhead_error_pct: float
    """Standard error of `overhead_pct`, in per cent."""


class Schedule:
    """A function from a step's number to a bool, with a clock that measures plain and measured steps.

    Args:
      decide: from a step's number to whether to measure it.
      clock: the time in seconds.
    """

    def __init__(self, decide: Callable[[int], bool], clock: Callable[[], float] = time.perf_counter):
        self._decide = decide
        self._clock = clock
        self._current: tuple[float, bool] | None = None
        """Start of the step under way, in seconds, and whether it is measured."""
        self._untraced = {False, True}
        """Kinds of steps of which none has run yet. Its first one is also traced, so its time does not count."""
        self._steps = {False: 0, True: 0}
        """Number of plain and of measured steps."""
        self._times = {measured: deque[float](maxlen=_KEPT_TIMES) for measured in (False, True)}
        """Times of the last plain and the last measured steps, in milliseconds."""

    def __call__(self, step: int) -> bool:
        """Return whether to measure a step; call it once at the start of every step.

        Args:
          step: the number of the step.
        """
        now = self._clock()
        measure = bool(self._decide(step))
        if self._current is not None:
            start, measured = self._current
            if measured in self._untraced:
                self._untraced.discard(measured)
            else:
                self._times[measured].append(1000 * (now - start))
        self._steps[measure] += 1
        self._current = now, measure
        return measure

    def pause(self) -> None:
        """Leave out the time of the step under way; call it before validation or any other work between steps."""
        self._current = None

    def _knows_cost(self) -> bool:
        return all(len(times) >= _KNOWN_TIMES for times in self._times.values())

    @property
    def cost(self) -> Cost:
        """The cost of measuring, from the steps so far."""
        plain, plain_error = _median(self._times[False])
        measured, measured_error = _median(self._times[True])
        measured_share = self._steps[True] / max(1, sum(self._steps.values()))
        extra = measured - plain
        error = math.hypot(plain_error, measured_error)
        return Cost(
            step_ms=plain,
            measure_ms=extra,
            error_ms=error,
            overhead_pct=100 * measured_share * extra / plain if plain > 0 else math.nan,
            overhead_error_pct=100 * measured_share * error / plain if plain > 0 else math.nan,
        )


def _median(times: deque[float]) -> tuple[float, float]:
    """Return the median and its standard error; NaN without times.

    For n normal times the error is sqrt(pi / 2) sigma / sqrt(n). Sigma is 1.4826 median absolute deviations. A clock
    that is coarser than a step gives 0 for most steps; then the mean and its standard error are returned.
    """
    if not times:
        return math.nan, math.nan
    values = np.array(times)
    median = float(np.median(values))
    if median <= 0:
        return float(np.mean(values)), float(np.std(values)) / math.sqrt(len(values))
    sigma = 1.4826 * float(np.median(np.abs(values - median)))
    return median, 1.2533 * sigma / math.sqrt(len(values))


def every(steps: int) -> Schedule:
    """Return a schedule that is True for the steps 0, `steps`, 2 `steps`, ...

    Args:
      steps: number of steps from one measured step to the next.

    Raises:
      ValueError: `steps` is not a positive integer.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"`steps` must be a positive integer; got {steps!r}. To measure nothing, use tapescope.never()"
        )
    return Schedule(lambda step: step % steps == 0)


def never() -> Schedule:
    """Return a schedule that is False for every step."""
    return Schedule(lambda step: False)


def budget(percent: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> Schedule:
    """Return a schedule that measures as often as a share of the training time allows.

    It measures every tenth step until three times of each kind are known. After each measured step it then waits for
    as many plain steps as pay for it: (measure_ms + error_ms) / (percent of step_ms), at most 10,000. It depends on
    timing: use `every` where two runs must have the same records.

    Args:
      percent: time for measuring, in per cent of the time of plain steps; above 0 and at most 100.
      clock: the time in seconds.

    Raises:
      ValueError: `percent` is out of its range.
    """
    if not 0 < percent <= 100:
        raise ValueError(
            f"`percent` must be above 0 and at most 100; got {percent!r}. To measure every step, use tapescope.every(1)"
        )
    next_measured = 0

    def decide(step: int) -> bool:
        nonlocal next_measured
        if step < next_measured:
            return False
        interval = _FIRST_INTERVAL
        if schedule._knows_cost():
            cost = schedule.cost
            allowed_ms = percent / 100 * cost.step_ms
            plain_steps = (max(0.0, cost.measure_ms) + cost.error_ms) / allowed_ms if allowed_ms > 0 else math.nan
            if math.isfinite(plain_steps):  # not so if the clock stands or runs back
                interval = math.ceil(plain_steps)
        next_measured = step + min(max(1, interval), _LONGEST_INTERVAL)
        return True

    schedule = Schedule(decide, clock)
    return schedule
