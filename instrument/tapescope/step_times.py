"""Times of plain and of measured steps, and what measuring costs by them."""

import itertools
import math
import statistics
from collections import Counter, deque
from collections.abc import Collection
from typing import NamedTuple

KEPT_TIMES = 101
"""Step times kept of each kind, so that the medians follow a machine that becomes slower or faster."""
KNOWN_TIMES = 3
"""Step times of each kind from which on a budget uses the medians."""
_COARSE = 0.1
"""Share of the median time above which a clock's tick is coarse, if as many of the times differ by a tick."""
FOLLOWING = 9
"""Steps after a measured one that may be slower because of it: in Python a Recorder's thread and the training take
turns, and a step's data leave the caches."""


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


class StepTimes:
    """The times of the last steps of a training, by kind."""

    def __init__(self) -> None:
        self.is_closer = False
        """Whether the step under way is measured because of a finding."""
        self._since = FOLLOWING + 1
        """Steps from the last measured one to the one under way, at most this many."""
        self._untraced = {False, True}
        """Kinds of steps of which none has run yet. Its first one is also traced, so its time does not count."""
        self._share = _Share()
        self._times = [deque[float](maxlen=KEPT_TIMES) for _ in range(FOLLOWING + 2)]
        """Times of the last steps by `_since`, in milliseconds: of measured ones, of those that follow, of others."""
        self._has_coarse_clock: bool | None = None
        """True if the clock's tick is coarse, None until as many plain times are known as are kept: a tick does not
        change, and to look for it takes longer than all medians."""

    @property
    def counted(self) -> int:
        """Steps that the share of measured ones is known of."""
        return self._share.steps

    @property
    def known_of_measured(self) -> int:
        """Number of times that are known of measured steps."""
        return len(self._times[0])

    def begin(self, measure: bool, is_closer: bool) -> None:
        """Note of which kind the step is that begins."""
        self.is_closer = is_closer
        self._share.add(measure, is_closer)
        self._since = 0 if measure else min(self._since + 1, FOLLOWING + 1)

    def end(self, ms: float) -> None:
        """Add the time of the step under way, in milliseconds."""
        is_measured = self._since == 0
        if is_measured in self._untraced:
            self._untraced.discard(is_measured)
        elif self.is_closer:  # a measured step in a row is not like a single one
            self._share.closer_steps += 1
            self._share.closer_ms += ms
        else:
            self._times[self._since].append(ms)

    def forget(self) -> None:
        """Forget all times, but not the share of measured steps."""
        for times in self._times:
            times.clear()

    def count_anew(self) -> None:
        """Forget the share of measured steps."""
        self._share = _Share()

    def know_cost(self) -> bool:
        """Return whether enough times of each kind are known."""
        (measured, *_), plain = self._split()
        return len(measured) >= KNOWN_TIMES and len(plain) >= KNOWN_TIMES

    def _split(self) -> tuple[list[deque[float]], list[float]]:
        """Return the times of measured steps and of each of the steps that follow one, and those of plain steps.

        Where measured steps are near to each other, the second half of the steps between two of them is plain.
        """
        last = max((n for n, times in enumerate(self._times) if n and len(times) >= KNOWN_TIMES), default=1)
        first_plain = last if last > FOLLOWING else last // 2 + 1
        return self._times[:first_plain], [time for times in self._times[first_plain:] for time in times]

    def cost(self) -> Cost:
        """Return the cost of measuring, from the steps so far."""
        slower_times, plain_times = self._split()
        is_coarse = self._has_coarse_clock
        if is_coarse is None:
            is_coarse = _is_coarse(plain_times)
            if len(plain_times) >= KEPT_TIMES:
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
