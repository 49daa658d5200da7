"""Schedules: functions from a step's number to whether that step is measured, a Python bool.

Any function serves as a schedule. Those here also measure time. A schedule is called once at the start of every step,
so the time from one call to the next is a step's, and the schedule knows which steps were measured.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from tapescope.step_times import Cost, StepTimes

_FIRST_INTERVAL = 10
"""Steps from one measured one to the next while a budget has fewer times."""
_LONGEST_INTERVAL = 10_000
"""Most steps between two measured ones."""
DENSE_STEPS = 50
"""Steps from the first on that `auto` measures all."""
TIMED_STEPS = 100
"""Steps after these of which `auto` measures one in TIMED_INTERVAL, and after which it chooses its interval."""
TIMED_INTERVAL = 20
"""Steps from one of these to the next: more than twice `step_times.FOLLOWING`."""
RAMP_MS = 500.0
"""Milliseconds of measuring, besides the dense start, by which `auto` goes from TIMED_INTERVAL to a longer interval: a
training of a thousand short steps would else have two or three records of its end."""
TRIED_RECORDS = 4
"""Records of an interval after which `auto` lengthens it if measuring takes more than was expected: the longer the
interval, the colder are the caches."""
CLOSER_STEPS = 50
"""Most steps that are all measured after a finding."""
LEAST_CLOSER_STEPS = 10
"""Steps that are all measured after a finding, whatever they cost."""
WORKERS_INTERVAL = 10
"""Steps from one measured one to the next where several processes train together and nobody has chosen."""
INTERVALS = (*(digit * 10**power for power in range(4) for digit in (1, 2, 5)), _LONGEST_INTERVAL)
"""The intervals that `auto` chooses from."""
_CHOICES = ("", "_before", *(f"_before_{n}" for n in range(2, 2 * len(INTERVALS))))
"""Endings of the fields of a run's status with the interval of `auto`, and with those before it, the last one first."""


class Schedule:
    """A function from a step's number to a bool, with a clock that measures plain and measured steps.

    Args:
      decide: from a step's number to whether to measure it.
      clock: the time in seconds.
    """

    def __init__(self, decide: Callable[[int], bool], clock: Callable[[], float] = time.perf_counter):
        self._decide = decide
        self._clock = clock
        self._before_measured: Callable[[], None] | None = None
        """Called before each measured step, within its time: a Recorder that captures steps copies the weights."""
        self._percent_of_closer: float | None = None
        """Time for measuring every step after findings, in per cent of all time; None: the schedule does not do so."""
        self._begin_run()

    def _begin_run(self) -> None:
        """Forget the steps so far: a schedule serves for one training after another."""
        self._start: float | None = None
        """Start of the step under way, in seconds; None where its time does not count."""
        self._times = StepTimes()
        self._next_step = 0
        self._closer_until = 0
        """The step before which every one is measured, because of a finding."""
        self._closer_steps = 0
        """Steps of all such stretches."""

    def __call__(self, step: int) -> bool:
        """Return whether to measure a step; call it once at the start of every step.

        Args:
          step: the number of the step. One below the last one begins another training.
        """
        if step < self._next_step - 1:
            self._begin_run()
        now = self._clock()
        self._next_step = step + 1
        is_closer = step < self._closer_until
        measure = bool(self._decide(step)) or is_closer
        if self._start is not None:
            self._times.end(1000 * (now - self._start))
        self._times.begin(measure, is_closer)
        self._start = now
        if measure and self._before_measured is not None:
            self._before_measured()
        return measure

    @property
    def cost(self) -> Cost:
        """The cost of measuring, from the steps so far."""
        return self._times.cost()

    @property
    def _is_closer(self) -> bool:
        return self._times.is_closer

    def _look_closer(self) -> int:
        """Measure every step for a while, from the next one on.

        All such stretches together may cost the schedule's share of the time so far, but each has LEAST_CLOSER_STEPS.

        Returns:
          The number of steps; 0 where the schedule does not do so.
        """
        if self._percent_of_closer is None:
            return 0
        cost = self.cost
        each = (max(0.0, cost.measure_ms) + cost.error_ms) / cost.step_ms if cost.step_ms > 0 else math.nan
        steps: float = LEAST_CLOSER_STEPS
        if each >= 0:
            allowed = self._percent_of_closer / 100 * self._next_step / max(each, 1e-9) - self._closer_steps
            steps = min(max(allowed, LEAST_CLOSER_STEPS), CLOSER_STEPS)
        taken = round(steps)
        self._closer_until = max(self._closer_until, self._next_step + taken)
        self._closer_steps += taken
        return taken

    def pause(self) -> None:
        """Leave out the time of the step under way; call it before validation or any other work between steps."""
        self._start = None

    def about(self) -> dict[str, float]:
        """Return what this schedule has chosen by itself, for the run's status."""
        return {}

    def restore(self, about: Mapping[str, Any]) -> None:
        """Choose what `about` says that an earlier schedule of the same run has chosen."""


def as_schedule(when: Any) -> Schedule:
    """Return a schedule: `auto` for None, and for a function one that also measures time.

    Raises:
      ValueError: it cannot be called.
    """
    if when is None:
        return auto()
    if isinstance(when, Schedule):
        return when
    if not callable(when):
        raise ValueError(
            "`when` must be a schedule, such as tapescope.every(10), or a function from a step's number to a bool; got "
            f"{when!r}"
        )
    decide: Any = when
    return Schedule(decide)


def uses_clock(when: Schedule) -> bool:
    """Return whether a schedule chooses by the time that steps take: each process that trains may choose others."""
    return isinstance(when, (_Auto, _Budget))


class _Auto(Schedule):
    """The schedule that `auto` returns."""

    def __init__(self, percent: float, clock: Callable[[], float]):
        super().__init__(self._decide_step, clock)
        self._percent = self._percent_of_closer = percent

    def _begin_run(self) -> None:
        super()._begin_run()
        self._chosen: list[tuple[int, int]] = []
        """First step and interval of the ramp's parts, of the choice, and of each correction, in the order of steps."""
        self._on_trial = True
        """True while the interval may still be lengthened."""
        self._expected: Cost | None = None
        """Cost that is expected of the interval, from the times by which it was chosen; None before."""
        self._last_step: int | None = None
        """The step that was decided last: a loop may count examples, or every third batch."""

    @property
    def cost(self) -> Cost:
        """The cost since the interval was chosen; until the first one is whole, the one that is expected."""
        is_known = self._times.counted and not self._is_ramping(self._next_step - 1)
        return super().cost if is_known or self._expected is None else self._expected

    def _is_ramping(self, step: int) -> bool:
        """Return whether a step is before those of the chosen interval."""
        return bool(self._chosen) and step < self._chosen[-1][0]

    def _decide_step(self, step: int) -> bool:
        last = step - 1 if self._last_step is None else self._last_step
        self._last_step = step
        if step < DENSE_STEPS:
            return True
        if last < DENSE_STEPS:
            # A step that follows a measured one has the measuring's data in the caches: it is not like a later one.
            self.pause()
            self._times.forget()
        if not self._chosen:
            if step >= DENSE_STEPS + TIMED_STEPS and self._times.know_cost():
                self._choose(step)
        elif self._is_ramping(last) and not self._is_ramping(step):
            self._count_anew()
        elif self._on_trial and not self._is_ramping(step) and self._times.known_of_measured >= TRIED_RECORDS:
            self._correct(step)
        for first, interval in reversed(self._chosen):
            if step >= first:
                return step // interval > last // interval
        return (step - DENSE_STEPS) // TIMED_INTERVAL > (last - DENSE_STEPS) // TIMED_INTERVAL

    def _choose(self, step: int) -> None:
        cost = self.cost
        if not cost.step_ms > 0:  # the clock has not moved
            return
        record_ms = max(0.0, cost.measure_ms) + cost.error_ms
        interval = self._least_interval(cost.step_ms, record_ms)
        ramp = [each for each in INTERVALS if TIMED_INTERVAL <= each < interval]
        records = int(RAMP_MS / (len(ramp) * record_ms)) if ramp else 0
        for each in ramp if records else ():
            self._chosen.append((step, each))
            step += each * records
        self._begin(step, interval, cost)

    def _correct(self, step: int) -> None:
        cost = self.cost
        interval = 1
        if cost.step_ms > 0 and cost.measure_ms > 0:
            interval = self._least_interval(cost.step_ms, cost.measure_ms + cost.error_ms)
        self._on_trial = interval > self._chosen[-1][1]
        if self._on_trial:
            self._begin(step, interval, cost)

    def _least_interval(self, step_ms: float, measure_ms: float) -> int:
        least = 100 * measure_ms / (step_ms * self._percent)
        return next((interval for interval in INTERVALS if interval * (1 + 1e-6) >= least), INTERVALS[-1])

    def _begin(self, step: int, interval: int, cost: Cost) -> None:
        """Measure the multiples of an interval from a step on, which was chosen because of a cost."""
        self._chosen.append((step, interval))
        share_pct = 100 / (interval * cost.step_ms)
        self._expected = cost._replace(
            overhead_pct=share_pct * cost.measure_ms, overhead_error_pct=share_pct * cost.error_ms
        )
        self._count_anew()

    def _count_anew(self) -> None:
        """Forget the times and the share of measured steps so far."""
        self._times.count_anew()
        if self._chosen[-1][1] > 1:  # with 1 there will be no plain steps
            self._times.forget()

    def about(self) -> dict[str, float]:
        about: dict[str, float] = {"measure_percent": self._percent} if self._chosen else {}
        for suffix, (first, interval) in zip(_CHOICES, reversed(self._chosen), strict=False):
            about |= {f"measure_interval{suffix}": interval, f"measure_interval{suffix}_from": first}
        return about

    def restore(self, about: Mapping[str, Any]) -> None:
        if about.get("measure_percent") != self._percent:  # with another limit the run chooses anew
            return
        chosen = []
        for suffix in reversed(_CHOICES):
            interval = about.get(f"measure_interval{suffix}")
            if isinstance(interval, (int, float)) and interval >= 1:
                chosen.append((int(about.get(f"measure_interval{suffix}_from", 0)), int(interval)))
        if chosen and chosen != self._chosen:
            self._begin_run()
            self._chosen = chosen
            self._on_trial = False


def auto(percent: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> Schedule:
    """Return a schedule that measures the first steps densely, and then as often as a share of the time allows.

    It measures each of the first DENSE_STEPS steps, so that short programs and bad starts are seen, and one in
    TIMED_INTERVAL of the TIMED_STEPS after them. Then it chooses the smallest of the intervals 1, 2, 5, 10, 20,
    50, ... with which measuring takes at most `percent` of the time of plain steps, and measures the multiples of it.
    To one above TIMED_INTERVAL it goes through those between, with as many records of each as RAMP_MS of measuring
    allow. After TRIED_RECORDS of the chosen interval it lengthens it if they took more than `percent`, and tries the
    longer one in the same way; once they did not, the interval stays.
    The overhead that is recorded is that of the chosen interval: the first steps and RAMP_MS are not counted, nor the
    time of the first plain and of the first measured step, in which they are traced. A Recorder
    writes the choice into the run's status and its state, and a run that goes on uses it again.

    After the first warning or error of each rule a Recorder lets it measure every step for a while: CLOSER_STEPS steps,
    or fewer where all these stretches together would take more than `percent` of the time so far, but at least
    LEAST_CLOSER_STEPS. It does not with several workers, which must all measure the same steps.

    Args:
      percent: time for measuring, in per cent of the time of plain steps; above 0 and at most 100.
      clock: the time in seconds.

    Raises:
      ValueError: `percent` is out of its range.
    """
    _check_percent(percent)
    return _Auto(percent, clock)


def _check_percent(percent: float) -> None:
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 0 < percent <= 100:
        raise ValueError(
            f"`percent` must be above 0 and at most 100; got {percent!r}. To measure every step, use tapescope.every(1)"
        )


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
    return Schedule(functools.partial(_is_multiple, steps))


def _is_multiple(steps: int, step: int) -> bool:
    return step % steps == 0


def never() -> Schedule:
    """Return a schedule that is False for every step."""
    return Schedule(_is_never)


def _is_never(step: int) -> bool:
    return False


def budget(percent: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> Schedule:
    """Return a schedule that measures as often as a share of the training time allows.

    It measures every tenth step until three times of each kind are known. After each measured step it then waits for
    as many plain steps as pay for it: (measure_ms + error_ms) / (percent of step_ms), at most 10,000. It depends on
    timing: use `every` where two runs must have the same records. After findings it looks closer as `auto` does.

    Args:
      percent: time for measuring, in per cent of the time of plain steps; above 0 and at most 100.
      clock: the time in seconds.

    Raises:
      ValueError: `percent` is out of its range.
    """
    _check_percent(percent)
    return _Budget(percent, clock)


class _Budget(Schedule):
    """The schedule of `budget`. A copy has its own times."""

    def __init__(self, percent: float, clock: Callable[[], float]):
        super().__init__(self._allows, clock)
        self._percent = self._percent_of_closer = percent

    def _begin_run(self) -> None:
        super()._begin_run()
        self._next_measured = 0

    def _allows(self, step: int) -> bool:
        if step < self._next_measured:
            return False
        interval = _FIRST_INTERVAL
        if self._times.know_cost():
            cost = self.cost
            allowed_ms = self._percent / 100 * cost.step_ms
            plain_steps = (max(0.0, cost.measure_ms) + cost.error_ms) / allowed_ms if allowed_ms > 0 else math.nan
            if math.isfinite(plain_steps):  # not so if the clock stands or runs back
                interval = math.ceil(plain_steps)
        self._next_measured = step + min(max(1, interval), _LONGEST_INTERVAL)
        return True
