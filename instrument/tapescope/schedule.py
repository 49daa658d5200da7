"""When to measure: functions from a step's number to a Python bool.

Any function will do; these ones also keep the time. They are called once at the start of every step, so the time from
one call to the next is a step's, and they know which steps were measured.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable

_REMEMBERED = 1000


class Schedule:
    """`decide(step)`, with a clock: how long a plain step takes, and how much longer a measured one."""

    def __init__(self, decide: Callable[[int], bool], clock: Callable[[], float] = time.perf_counter):
        self._decide = decide
        self._clock = clock
        self._last: tuple[float, bool] | None = None
        self._untraced = {False, True}
        self._times: deque[tuple[bool, float]] = deque(maxlen=_REMEMBERED)

    def __call__(self, step: int) -> bool:
        now, measure = self._clock(), bool(self._decide(step))
        if self._last is not None:
            since, measured = self._last
            if measured in self._untraced:  # that step was also traced and compiled
                self._untraced.discard(measured)
            else:
                self._times.append((measured, 1000 * (now - since)))
        self._last = now, measure
        return measure

    def pause(self) -> None:
        """Forgets the step that is under way: call it before validation, or anything else that is no step."""
        self._last = None

    @property
    def step_ms(self) -> float:
        """Median time of the last plain steps, milliseconds; NaN where none is known."""
        return self._median(measured=False)

    @property
    def measure_ms(self) -> float:
        """How much longer the last measured steps took, by medians, milliseconds; NaN where it is not known."""
        return self._median(measured=True) - self.step_ms

    @property
    def overhead_pct(self) -> float:
        """What measuring adds to the time of training, by the share of steps that are measured, per cent."""
        share = sum(measured for measured, _ in self._times) / len(self._times) if self._times else float("nan")
        return 100 * share * self.measure_ms / self.step_ms

    def _median(self, measured: bool) -> float:
        times = [ms for kind, ms in self._times if kind == measured]
        return statistics.median(times) if times else float("nan")


def every(steps: int) -> Schedule:
    """True for the steps 0, `steps`, 2 `steps`, ... Raises ValueError unless `steps` is a positive integer."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`steps` ({steps!r}) must be a positive integer; to measure nothing use tapescope.never()")
    return Schedule(lambda step: step % steps == 0)


def never() -> Schedule:
    """False for every step."""
    return Schedule(lambda step: False)
