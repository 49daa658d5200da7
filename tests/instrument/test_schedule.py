"""Which steps a schedule measures, and what its clock says of the cost."""

import math
import random

import pytest

import tapescope
from tapescope.schedule import Schedule


class Clock:
    """A clock that the test sets, in seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(clock):
    """Take 100 steps of 10 ms. Every fifth is measured and takes 5 ms more. The first of each kind takes 3 s more."""
    schedule = Schedule(lambda step: step % 5 == 0, clock)
    for step in range(100):
        schedule(step)
        clock.now += 0.010
        if step % 5 == 0:
            clock.now += 0.005
        if step < 2:
            clock.now += 3.0
    return schedule


def test_every_measures_multiples():
    assert [step for step in range(10) if tapescope.every(4)(step)] == [0, 4, 8]


def test_never_measures_nothing():
    assert not any(map(tapescope.never(), range(5)))


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "3"])
def test_every_takes_a_positive_integer(steps):
    with pytest.raises(ValueError, match=r"`steps` must be a positive integer; got .*tapescope\.never\(\)"):
        tapescope.every(steps)


def test_cost_separates_plain_and_measured_steps(timed):
    assert (timed.cost.step_ms, timed.cost.measure_ms) == pytest.approx((10, 5))


def test_overhead_is_cost_times_the_share_of_measured_steps(timed):
    assert timed.cost.overhead_pct == pytest.approx(10)


def test_equal_times_have_no_error(timed):
    assert timed.cost.error_ms == pytest.approx(0, abs=1e-9)


def test_cost_is_unknown_before_the_first_steps():
    assert all(map(math.isnan, Schedule(lambda step: True).cost))


def test_cost_of_measuring_is_unknown_without_measured_steps(clock):
    schedule = Schedule(lambda step: False, clock)
    for step in range(9):
        schedule(step)
        clock.now += 0.01
    assert math.isnan(schedule.cost.measure_ms)


def test_a_pause_does_not_count_as_a_step(clock):
    schedule = Schedule(lambda step: False, clock)
    for step in range(9):
        schedule(step)
        clock.now += 0.01
        if step % 3 == 0:
            schedule.pause()
            clock.now += 60
    assert schedule.cost.step_ms == pytest.approx(10)


@pytest.fixture(params=[1.0, 4.0, 20.0], ids="{} ms".format)
def budgeted(request, clock):
    """Take 20,000 steps of 10 ms with noise under a budget of 5 %.

    Returns:
      The schedule, and the time that measuring took, in per cent of the time of all plain steps.
    """
    rng = random.Random(1)
    schedule = tapescope.budget(percent=5, clock=clock)
    steps = 20_000
    measured_ms = 0.0
    for step in range(steps):
        extra_ms = request.param if schedule(step) else 0.0
        measured_ms += extra_ms
        clock.now += 0.001 * (10 + rng.gauss(0, 1) + extra_ms)
    return schedule, 100 * measured_ms / (10 * steps)


def test_a_budget_is_held_and_used(budgeted):
    _, spent_pct = budgeted
    assert 0.6 * 5 < spent_pct < 1.1 * 5


def test_a_budget_knows_what_it_has_spent(budgeted):
    schedule, spent_pct = budgeted
    cost = schedule.cost
    assert cost.overhead_pct == pytest.approx(spent_pct, abs=4 * cost.overhead_error_pct + 0.1)


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_budget_is_a_percentage(percent):
    with pytest.raises(ValueError, match=r"`percent` must be above 0 and at most 100; got .*tapescope\.every\(1\)"):
        tapescope.budget(percent)


@pytest.mark.parametrize(
    "read",
    [
        lambda n: 0.0,
        lambda n: n * 0.001 // 0.015 * 0.015,
        lambda n: -n * 0.001,
        lambda n: math.nan,
        lambda n: n * math.inf if n else 0.0,
    ],
    ids=["stands", "coarse", "back", "nan", "inf"],
)
def test_no_clock_ends_a_training(read):
    calls = iter(range(10**6))
    schedule = tapescope.budget(2, clock=lambda: read(next(calls)))
    measured = [step for step in range(2000) if schedule(step)]
    assert 0 < len(measured) <= 400
    _ = schedule.cost


def test_a_coarse_clock_holds_the_budget():
    now = 0.0

    def coarse():
        return now // 0.015 * 0.015

    schedule = tapescope.budget(2, clock=coarse)
    plain_s = measured_s = 0.0
    for step in range(50_000):
        measured = schedule(step)
        now += 0.004 if measured else 0.002
        plain_s += 0.002
        measured_s += 0.002 * measured
    assert measured_s / plain_s < 0.04
