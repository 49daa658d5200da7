"""Schedules: functions from a step's number to whether that step is measured, a Python bool.

Any function serves as a schedule. Those here also measure time. A schedule is called once at the start of every step,
so the time from one call to the next is a step's, and the schedule knows which steps were measured.
"""

import functools
import itertools
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

_KEPT_TIMES = 101
"""Step times kept of each kind, so that the medians follow a machine that becomes slower or faster."""
_KNOWN_TIMES = 3
"""Step times of each kind from which on a budget uses the medians."""
_COARSE = 0.1
"""Share of the median time above which a clock's tick is coarse, if as many of the times differ by a tick."""
_FIRST_INTERVAL = 10
"""Steps from one measured one to the next while a budget has fewer times."""
_FOLLOWING = 9
"""Steps after a measured one that may be slower because of it: in Python a Recorder's thread and the training take
turns, and a step's data leave the caches."""
_LONGEST_INTERVAL = 10_000
"""Most steps between two measured ones."""
DENSE_STEPS = 50
"""Steps from the first on that `auto` measures all."""
TIMED_STEPS = 100
"""Steps after these of which `auto` measures one in TIMED_INTERVAL, and after which it chooses its interval."""
TIMED_INTERVAL = 20
"""Steps from one of these to the next: more than twice _FOLLOWING."""
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


class Cost(NamedTuple):
    """An estimate of what measuring costs; NaN where it is not known yet.

    `measure_ms` is a sum of differences of medians: the difference of one measured and one plain step is mostly noise.
    See docs/decisions/0021-measure-ms-is-an-estimate.md.
    """

    step_ms: float
    """Median time of the last plain steps, in milliseconds a step."""
    measure_ms: float
    """Median time of the last measured steps less `step_ms`, and the same of each of the steps that follow one, in
    milliseconds a measured step."""
    error_ms: float
    """Standard error of `measure_ms`, in milliseconds, from the steps' median absolute deviations."""
    overhead_pct: float
    """Time that measuring adds to the training, in per cent: `measure_ms` over `step_ms`, times the share of measured
    steps up to the last one. Steps that are all measured after a finding count with the time that they took."""
    overhead_error_pct: float
    """Standard error of `overhead_pct`, in per cent."""


class _Share:
    """The numbers of steps and of measured ones, from one measured step to another: of whole intervals."""

    def __init__(self) -> None:
        self.steps = 0
        """Steps from the first measured one to that before the last."""
        self.measured = 0
        """Those of them that the schedule measured, without those after a finding."""
        self.closer_steps = 0
        """Steps after a finding whose time is known."""
        self.closer_ms = 0.0
        """Their time, in milliseconds."""
        self._since_measured = 0
        """Steps from the last measured one on; 0 before the first."""
        self._last_is_own = False
        """True if the schedule itself measured that one."""

    def add(self, measure: bool, is_closer: bool) -> None:
        """Add the step under way."""
        if measure:
            self.steps += self._since_measured
            self.measured += self._last_is_own
            self._since_measured = 1
            self._last_is_own = not is_closer
        elif self._since_measured:
            self._since_measured += 1


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
        self._since = _FOLLOWING + 1
        """Steps from the last measured one to the one under way, at most this many."""
        self._untraced = {False, True}
        """Kinds of steps of which none has run yet. Its first one is also traced, so its time does not count."""
        self._share = _Share()
        self._times = [deque[float](maxlen=_KEPT_TIMES) for _ in range(_FOLLOWING + 2)]
        """Times of the last steps by `_since`, in milliseconds: of measured ones, of those that follow, of others."""
        self._has_coarse_clock: bool | None = None
        """True if the clock's tick is coarse, None until as many plain times are known as are kept: a tick does not
        change, and to look for it takes longer than all medians."""
        self._next_step = 0
        self._closer_until = 0
        """The step before which every one is measured, because of a finding."""
        self._closer_steps = 0
        """Steps of all such stretches."""
        self._is_closer = False
        """Whether the step under way is in such a stretch."""

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
            measured = self._since == 0
            if measured in self._untraced:
                self._untraced.discard(measured)
            elif self._is_closer:  # a measured step in a row is not like a single one
                self._share.closer_steps += 1
                self._share.closer_ms += 1000 * (now - self._start)
            else:
                self._times[self._since].append(1000 * (now - self._start))
        self._is_closer = is_closer
        self._share.add(measure, is_closer)
        self._since = 0 if measure else min(self._since + 1, _FOLLOWING + 1)
        self._start = now
        if measure and self._before_measured is not None:
            self._before_measured()
        return measure

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

    def _forget_times(self) -> None:
        for times in self._times:
            times.clear()

    def _split_times(self) -> tuple[list[deque[float]], list[float]]:
        """Return the times of measured steps and of each of the steps that follow one, and those of plain steps.

        Where measured steps are near to each other, the second half of the steps between two of them is plain.
        """
        last = max((n for n, times in enumerate(self._times) if n and len(times) >= _KNOWN_TIMES), default=1)
        first_plain = last if last > _FOLLOWING else last // 2 + 1
        return self._times[:first_plain], [time for times in self._times[first_plain:] for time in times]

    def _knows_cost(self) -> bool:
        (measured, *_), plain = self._split_times()
        return len(measured) >= _KNOWN_TIMES and len(plain) >= _KNOWN_TIMES

    def about(self) -> dict[str, float]:
        """Return what this schedule has chosen by itself, for the run's status."""
        return {}

    def restore(self, about: Mapping[str, Any]) -> None:
        """Choose what `about` says that an earlier schedule of the same run has chosen."""

    @property
    def cost(self) -> Cost:
        """The cost of measuring, from the steps so far."""
        slower_times, plain_times = self._split_times()
        is_coarse = self._has_coarse_clock
        if is_coarse is None:
            is_coarse = _is_coarse(plain_times)
            if len(plain_times) >= _KEPT_TIMES:
                self._has_coarse_clock = is_coarse
        typical = _mean if is_coarse else _median
        plain, plain_error = typical(plain_times)
        measured_times, *following = slower_times
        slower = [typical(measured_times), *(typical(times) for times in following if times)]
        extra = sum(time - plain for time, _ in slower)
        error = math.hypot(len(slower) * plain_error, *(error for _, error in slower))
        share = self._share
        # A clock that did not move in any plain step says nothing of the share.
        total_ms = share.steps * plain if plain > 0 and share.steps else math.nan
        closer_ms = max(0.0, share.closer_ms - share.closer_steps * plain)
        return Cost(
            step_ms=plain,
            measure_ms=extra,
            error_ms=error,
            overhead_pct=100 * (share.measured * extra + closer_ms) / total_ms,
            overhead_error_pct=100 * share.measured * error / total_ms,
        )


def _median(times: Collection[float]) -> tuple[float, float]:
    """Return the median and its standard error; NaN without times.

    For n normal times the error is sqrt(pi / 2) sigma / sqrt(n). Sigma is 1.4826 median absolute deviations.
    """
    if not times:
        return math.nan, math.nan
    median = statistics.median(times)
    sigma = 1.4826 * statistics.median([abs(time - median) for time in times])
    return median, 1.2533 * sigma / math.sqrt(len(times))


def _mean(times: Collection[float]) -> tuple[float, float]:
    """Return the mean and its standard error; NaN without times."""
    if not times:
        return math.nan, math.nan
    return statistics.fmean(times), statistics.pstdev(times) / math.sqrt(len(times))


def _is_coarse(times: Collection[float]) -> bool:
    """Return whether times are a few multiples of a clock's tick: then only their mean tells more."""
    if not times:
        return False
    counts = Counter(round(time, 3) for time in times)
    distinct = sorted(counts)
    median = statistics.median(times)
    others = len(times) - max(counts.values())
    steps = [high - low for low, high in itertools.pairwise(distinct)]
    return median <= 0 or (others >= max(2, _COARSE * len(times)) and min(steps) > _COARSE * median)


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
        is_known = self._share.steps and not self._is_ramping(self._next_step - 1)
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
            self._forget_times()
        if not self._chosen:
            if step >= DENSE_STEPS + TIMED_STEPS and self._knows_cost():
                self._choose(step)
        elif self._is_ramping(last) and not self._is_ramping(step):
            self._count_anew()
        elif self._on_trial and not self._is_ramping(step) and len(self._times[0]) >= TRIED_RECORDS:
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
        self._share = _Share()
        if self._chosen[-1][1] > 1:  # with 1 there will be no plain steps
            self._forget_times()

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
        if self._knows_cost():
            cost = self.cost
            allowed_ms = self._percent / 100 * cost.step_ms
            plain_steps = (max(0.0, cost.measure_ms) + cost.error_ms) / allowed_ms if allowed_ms > 0 else math.nan
            if math.isfinite(plain_steps):  # not so if the clock stands or runs back
                interval = math.ceil(plain_steps)
        self._next_measured = step + min(max(1, interval), _LONGEST_INTERVAL)
        return True
