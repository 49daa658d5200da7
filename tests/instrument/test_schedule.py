"""When to measure, and what the clock makes of it."""

import math
import random

import pytest

import tapescope
from tapescope.schedule import Schedule


def test_every():
    assert [n for n in range(10) if tapescope.every(4)(n)] == [0, 4, 8]
    assert not any(map(tapescope.never(), range(5)))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3"])
def test_every_refuses(steps):
    with pytest.raises(ValueError, match=r"`steps` must be a positive integer; got .*never"):
        tapescope.every(steps)


def test_times_are_known_by_kind_and_the_traced_steps_left_out():
    now = 0.0
    schedule = Schedule(lambda n: n % 5 == 0, clock=lambda: now)
    for n in range(100):
        measured = schedule(n)
        first_of_kind = n < 2
        now += 0.010 + 0.005 * measured + 3.0 * first_of_kind
    cost = schedule.cost
    assert (cost.step_ms, cost.measure_ms) == pytest.approx((10, 5))
    assert cost.overhead_pct == pytest.approx(10)
    assert cost.error_ms == pytest.approx(0, abs=1e-9)


def test_a_pause_is_no_step():
    now = 0.0
    schedule = Schedule(lambda n: False, clock=lambda: now)
    for n in range(9):
        schedule(n)
        now += 0.01
        if n % 3 == 0:
            schedule.pause()
            now += 60
    assert schedule.cost.step_ms == pytest.approx(10)
    assert math.isnan(schedule.cost.measure_ms)


@pytest.mark.parametrize("extra_ms", [1.0, 4.0, 20.0])
def test_the_budget_is_held(extra_ms):
    """Steps of 10 ms with some noise, 5 % allowed: measured against the time that all plain steps would take."""
    now, rng = 0.0, random.Random(1)
    schedule = tapescope.budget(percent=5, clock=lambda: now)
    steps, measured = 20_000, 0
    for n in range(steps):
        measure = schedule(n)
        measured += measure
        now += 0.001 * (10 + rng.gauss(0, 1) + extra_ms * measure)
    spent = 100 * measured * extra_ms / (10 * steps)
    assert 0.6 * 5 < spent < 1.1 * 5
    assert schedule.cost.overhead_pct == pytest.approx(spent, abs=4 * schedule.cost.overhead_error_pct + 0.1)


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_budget_is_a_percentage(percent):
    with pytest.raises(ValueError, match=r"`percent` must be above 0 and at most 100; got "):
        tapescope.budget(percent)
