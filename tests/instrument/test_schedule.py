"""When to measure, and what the clock makes of it."""

import math

import pytest

import tapescope
from tapescope.schedule import Schedule


def test_every():
    assert [n for n in range(10) if tapescope.every(4)(n)] == [0, 4, 8]
    assert not any(map(tapescope.never(), range(5)))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3"])
def test_every_refuses(steps):
    with pytest.raises(ValueError, match="must be a positive integer; to measure nothing"):
        tapescope.every(steps)


def test_times_are_known_by_kind_and_the_traced_steps_left_out():
    now = 0.0
    schedule = Schedule(lambda n: n % 5 == 0, clock=lambda: now)
    for n in range(100):
        measured = schedule(n)
        first_of_kind = n < 2
        now += 0.010 + 0.005 * measured + 3.0 * first_of_kind
    assert schedule.step_ms == pytest.approx(10)
    assert schedule.measure_ms == pytest.approx(5)
    assert schedule.overhead_pct == pytest.approx(10, rel=0.05)


def test_a_pause_is_no_step():
    now = 0.0
    schedule = Schedule(lambda n: False, clock=lambda: now)
    for n in range(9):
        schedule(n)
        now += 0.01
        if n % 3 == 0:
            schedule.pause()
            now += 60
    assert schedule.step_ms == pytest.approx(10)
    assert math.isnan(schedule.measure_ms)
