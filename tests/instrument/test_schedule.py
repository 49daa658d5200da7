"""Which steps a schedule measures, and what its clock says of the cost."""

import copy
import itertools
import math
import pickle
import random

import keras
import numpy as np
import pytest

import tapescope
from tapescope.schedule import DENSE_STEPS, INTERVALS, RAMP_MS, TIMED_INTERVAL, TIMED_STEPS, Schedule


class Clock:
    """A clock that the test sets, in seconds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Return a clock for schedules without a ramp, whose intervals are those that they have chosen."""
    monkeypatch.setattr(tapescope.schedule, "RAMP_MS", 0.0)
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


@pytest.mark.parametrize("steps", [105, 106, 110, 299])
def test_the_share_of_measured_steps_is_of_whole_intervals(clock, steps):
    """The same whatever the first measured step is, and wherever the last interval is left."""
    schedule = Schedule(lambda step: step > 90 and step % 5 == 0, clock)
    for step in range(steps):
        clock.now += 0.010 + 0.005 * schedule(step) + 3 * (step in (0, 95))
    assert schedule.cost.overhead_pct == pytest.approx(10)


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


def test_a_copy_of_a_budget_has_its_own_times():
    clock = iter(range(10_000)).__next__
    original = tapescope.budget(2.0, clock)
    first = [n for n in range(200) if original(n)]
    duplicate = copy.deepcopy(tapescope.budget(2.0, itertools.count().__next__))
    assert [n for n in range(200) if duplicate(n)] == first
    assert original.cost == duplicate.cost


@pytest.mark.parametrize("schedule", [tapescope.every(3), tapescope.never(), tapescope.budget(2.0), tapescope.auto()])
def test_schedules_can_be_pickled(schedule):
    duplicate = pickle.loads(pickle.dumps(schedule))
    assert [duplicate(n) for n in range(70)] == [schedule(n) for n in range(70)]


def test_a_clock_that_stands_still_does_not_end_a_budget():
    schedule = tapescope.budget(2.0, lambda: 0.0)
    assert [n for n in range(60) if schedule(n)] == [0, 10, 20, 30, 40, 50]
    assert np.isnan(schedule.cost.overhead_pct)


def run_auto(clock, measure_ms, steps=2000, step_ms=10.0, percent=2.0, noise=0.0, tick_ms=0.0, schedule=None, start=0):
    """Take steps under `auto`, and return the measured ones and the schedule."""
    rng = random.Random(2)

    def now():
        return clock.now if not tick_ms else math.floor(clock.now / (0.001 * tick_ms)) * 0.001 * tick_ms

    schedule = schedule or tapescope.auto(percent, clock=now)
    measured = []
    for step in range(start, steps):
        measures = schedule(step)
        measured += [step] * measures
        clock.now += 0.001 * (
            step_ms + measures * measure_ms + rng.gauss(0, noise) + 3000 * (step in (0, DENSE_STEPS + 1))
        )
    return measured, schedule


def test_auto_measures_the_first_steps_and_then_some_of_them(clock):
    measured, _ = run_auto(clock, 5.0, steps=DENSE_STEPS + TIMED_STEPS)
    assert measured == [*range(DENSE_STEPS), *range(DENSE_STEPS, DENSE_STEPS + TIMED_STEPS, TIMED_INTERVAL)]


@pytest.mark.parametrize(
    ("measure_ms", "interval"),
    [(0.0, 1), (0.15, 1), (0.35, 2), (0.95, 5), (1.9, 10), (3.9, 20), (15, 100), (5000, 50_000)],
)
def test_auto_chooses_the_smallest_interval_within_the_limit(clock, measure_ms, interval):
    _, schedule = run_auto(clock, measure_ms, steps=200)
    assert schedule.about()["measure_interval"] == min(interval, INTERVALS[-1])


def test_auto_measures_the_multiples_of_its_interval(clock):
    measured, schedule = run_auto(clock, 15.0)
    assert [step for step in measured if step >= 150] == list(range(200, 2000, 100))
    assert schedule.cost.overhead_pct <= 2


RAMP = [*range(160, 470, 20), *range(500, 1270, 50)]
"""The steps of 33 records of 15 ms, half of them at each of the intervals between 20 and 100."""


def test_auto_goes_to_a_long_interval_through_those_between():
    measured, schedule = run_auto(Clock(), 15.0)
    assert [step for step in measured if step >= 150] == [*RAMP, *range(1300, 2000, 100)]
    assert 15 * len(RAMP) <= RAMP_MS
    assert schedule.cost.overhead_pct == pytest.approx(1.5)


def test_auto_expects_the_overhead_of_its_interval_during_the_ramp():
    _, schedule = run_auto(Clock(), 15.0, steps=800)
    assert schedule.cost.overhead_pct == pytest.approx(1.5)


def test_auto_tries_its_interval_after_the_ramp():
    clock = Clock()
    _, schedule = run_auto(clock, 15.0, steps=1200)
    measured, _ = run_auto(clock, 30.0, schedule=schedule, start=1200, steps=3000)
    assert measured == [1200, 1250, *range(1300, 1700, 100), *range(1800, 3000, 200)]


@pytest.mark.parametrize("resumed_at", [90, 300, 700, 1500])
def test_a_run_that_goes_on_has_the_same_ramp(resumed_at):
    measured, schedule = run_auto(Clock(), 15.0)
    again = tapescope.auto(2.0, clock=Clock())
    again.restore(schedule.about())
    later, _ = run_auto(again._clock, 300.0, schedule=again, start=resumed_at)
    assert later == [step for step in measured if step >= resumed_at]


def test_records_that_take_longer_than_the_ramp_have_none():
    measured, _ = run_auto(Clock(), 5000.0, steps=20_100)
    assert [step for step in measured if step >= 150] == [10_000, 20_000]


@pytest.mark.parametrize("stride", [3, 4, 7, 64])
def test_auto_measures_some_steps_of_a_loop_that_counts_in_strides(clock, stride):
    schedule = tapescope.auto(clock=lambda: clock.now)
    measured = []
    for step in range(0, 2000 * stride, stride):
        measures = schedule(step)
        measured += [step] * measures
        clock.now += 0.01 + 0.015 * measures
    after = [step for step in measured if step >= 50]
    assert max(np.diff(after)) < 400 + 2 * stride  # in steps: of an interval of 100
    assert len(after) > 10
    assert after[0] < 50 + TIMED_INTERVAL + stride


def test_auto_chooses_once(clock):
    _, schedule = run_auto(clock, 15.0)
    run_auto(clock, 500.0, schedule=schedule, start=2000, steps=4000)
    assert schedule.about()["measure_interval"] == 100


@pytest.mark.parametrize(("later_ms", "interval"), [(16.0, 100), (30.0, 200), (3.0, 100)])
def test_auto_lengthens_its_interval_where_measuring_takes_more_than_expected(clock, later_ms, interval):
    _, schedule = run_auto(clock, 15.0, steps=DENSE_STEPS + TIMED_STEPS + 1)
    assert schedule.about()["measure_interval"] == 100
    measured, _ = run_auto(clock, later_ms, schedule=schedule, start=DENSE_STEPS + TIMED_STEPS + 1, steps=4000)
    assert schedule.about()["measure_interval"] == interval
    assert measured == [*range(200, 600, 100), *range(600, 4000, interval)]
    assert schedule.cost.overhead_pct <= 2


def test_auto_lengthens_its_interval_until_it_holds(clock):
    """The rarer a record, the longer it takes here: 15 ms at an interval of 100, 40 ms at 200, 90 ms at 500."""
    schedule = None
    measured = []
    for start, steps, measure_ms in ((0, 151, 15), (151, 600, 40), (600, 1500, 90), (1500, 6000, 90)):
        later, schedule = run_auto(clock, measure_ms, schedule=schedule, start=start, steps=steps)
        measured += later
    assert [n for n in measured if n > 150] == [*range(200, 600, 100), *range(600, 1400, 200), *range(1500, 6000, 500)]
    assert schedule.cost.overhead_pct == pytest.approx(100 * 90 / (500 * 10))
    again = tapescope.auto(2.0, clock=clock)
    again.restore(schedule.about())
    assert again.about() == schedule.about()
    assert [n for n in range(151, 6000) if again(n)] == [n for n in measured if n > 150]


def test_auto_expects_the_overhead_of_an_interval_until_the_first_one_is_whole(clock):
    _, schedule = run_auto(clock, 15.0, steps=DENSE_STEPS + TIMED_STEPS + 1)
    assert schedule.cost.overhead_pct == pytest.approx(100 * 15 / (100 * 10))
    run_auto(clock, 30.0, schedule=schedule, start=DENSE_STEPS + TIMED_STEPS + 1, steps=503)
    assert schedule.about()["measure_interval"] == 200
    assert schedule.cost.overhead_pct == pytest.approx(100 * 30 / (200 * 10))
    run_auto(clock, 36.0, schedule=schedule, start=503, steps=850)
    assert schedule.cost.overhead_pct == pytest.approx(100 * 36 / (200 * 10))


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_auto_holds_its_limit_with_noisy_times(clock, noise):
    _, schedule = run_auto(clock, 6.0, noise=noise)
    assert 100 * 6.0 / (10 * schedule.about()["measure_interval"]) <= 2


@pytest.mark.parametrize("tick_ms", [3.0, 16.0, 50.0])
def test_auto_holds_its_limit_with_a_coarse_clock(clock, tick_ms):
    _, schedule = run_auto(clock, 6.0, tick_ms=tick_ms)
    assert 100 * 6.0 / (10 * schedule.about()["measure_interval"]) <= 2


def test_auto_measures_some_steps_while_its_clock_does_not_move():
    schedule = tapescope.auto(clock=lambda: 0.0)
    measured = [step for step in range(1000) if schedule(step)]
    assert measured[DENSE_STEPS:] == list(range(DENSE_STEPS, 1000, TIMED_INTERVAL))
    assert math.isnan(schedule.cost.overhead_pct)


@pytest.mark.parametrize(("every", "plain_ms", "extra_ms"), [(100, 10, 5 + 9), (10, 11, 4), (2, 11, 4)])
def test_steps_that_follow_a_measured_one_count_as_its_cost(clock, every, plain_ms, extra_ms):
    """Here a measured step takes 5 ms more, and each of the 9 steps after it 1 ms more than later ones."""
    schedule = Schedule(lambda step: step % every == 0, clock)
    for step in range(1200):
        schedule(step)
        since = step % every
        clock.now += 0.010 + 0.005 * (since == 0) + 0.001 * (1 <= since <= 9) + 3 * (step in (0, 1))
    assert schedule.cost.step_ms == pytest.approx(plain_ms)
    assert schedule.cost.measure_ms == pytest.approx(extra_ms)


def test_auto_does_not_count_the_first_call_of_each_program(clock):
    _, schedule = run_auto(clock, 0.15, steps=200)
    assert schedule.cost.step_ms == pytest.approx(10)


@pytest.mark.parametrize("resumed_at", [20, 90, 150, 777])
def test_auto_measures_the_same_steps_in_a_run_that_goes_on(clock, resumed_at):
    measured, schedule = run_auto(clock, 15.0)
    again = tapescope.auto(2.0, clock=clock)
    again.restore(schedule.about())
    later, _ = run_auto(clock, 300.0, schedule=again, start=resumed_at)
    assert later == [step for step in measured if step >= resumed_at]


@pytest.mark.parametrize("resumed_at", [90, 777, 1500])
def test_a_run_that_goes_on_lengthens_its_interval_at_the_same_step(clock, resumed_at):
    measured, schedule = run_auto(clock, 15.0, steps=DENSE_STEPS + TIMED_STEPS + 1)
    later, _ = run_auto(clock, 30.0, schedule=schedule, start=DENSE_STEPS + TIMED_STEPS + 1, steps=4000)
    again = tapescope.auto(2.0, clock=clock)
    again.restore(schedule.about())
    assert again.about() == schedule.about()
    resumed, _ = run_auto(clock, 300.0, schedule=again, start=resumed_at, steps=4000)
    assert resumed == [step for step in measured + later if step >= resumed_at]


def test_auto_chooses_anew_with_another_limit(clock):
    _, schedule = run_auto(clock, 15.0)
    other = tapescope.auto(5.0, clock=clock)
    other.restore(schedule.about())
    assert other.about() == {}


@pytest.mark.parametrize("percent", [0, -1, 101, True, "2", math.nan])
def test_the_limit_of_auto_is_a_percentage(percent):
    with pytest.raises(ValueError, match=r"`percent` must be above 0 and at most 100; got "):
        tapescope.auto(percent)


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


def take(schedule, clock, steps, measure_ms=10.0):
    """Take steps of 10 ms, and return those that were measured."""
    measured = []
    for step in steps:
        extra = 0.0
        if schedule(step):
            measured.append(step)
            extra = measure_ms
        clock.now += 0.001 * (10 + extra)
    return measured


@pytest.mark.parametrize(("first", "expected"), [(1000, 20), (400, 10), (9000, 50)])
def test_a_closer_look_takes_its_share_of_the_time_so_far(clock, first, expected):
    schedule = tapescope.auto(2, clock)
    take(schedule, clock, range(first))
    steps = schedule._look_closer()
    assert steps == expected
    assert take(schedule, clock, range(first, first + 60))[:steps] == list(range(first, first + steps))
    assert len(take(schedule, clock, range(first + 60, first + 560))) == 10


def test_closer_looks_share_their_time(clock):
    schedule = tapescope.auto(2, clock)
    take(schedule, clock, range(1500))
    assert schedule._look_closer() == 30
    take(schedule, clock, range(1500, 2000))
    assert schedule._look_closer() == 10


def test_a_closer_look_leaves_the_times_alone(clock):
    schedule = tapescope.budget(2, clock)
    take(schedule, clock, range(1000))
    before = schedule.cost
    schedule._look_closer()
    take(schedule, clock, range(1000, 1020), measure_ms=99.0)
    assert (schedule.cost.step_ms, schedule.cost.measure_ms) == (before.step_ms, before.measure_ms)
    assert schedule._is_closer


def test_steps_of_a_closer_look_count_with_the_time_that_they_took(clock):
    """Take 10,000 steps of 10 ms: one in 500 is measured for 50 ms more, and some in a row for 4 ms more each."""
    schedule = tapescope.auto(2, clock)
    take(schedule, clock, range(5000), measure_ms=50)
    closer = schedule._look_closer()
    take(schedule, clock, range(5000, 5000 + closer), measure_ms=4)
    take(schedule, clock, range(5000 + closer, 10_001), measure_ms=50)
    assert schedule.about()["measure_interval"] == 500
    expected = 100 * ((9500 / 500 - 1) * 50 + closer * 4) / (9500 * 10)
    assert schedule.cost.overhead_pct == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [tapescope.every(4), tapescope.never()], ids=["every", "never"])
def test_schedules_with_fixed_steps_do_not_look_closer(schedule, clock):
    schedule(0)
    assert schedule._look_closer() == 0
    assert take(schedule, clock, range(1, 4)) == []


def choose(schedule, clock, steps=400):
    """Train so that measuring a step takes 2 ms of 10, and return the measured steps."""
    measured = []
    for step in range(steps):
        if schedule(step):
            measured.append(step)
            clock.now += 0.002
        clock.now += 0.010
    return measured


@pytest.mark.parametrize("make", [tapescope.auto, tapescope.budget])
def test_a_schedule_begins_anew_with_another_training(clock, make):
    schedule = make(2.0, clock)
    first = choose(schedule, clock, 3000)
    schedule._look_closer()
    clock.now = 0.0
    assert choose(schedule, clock, 3000) == first


def test_what_was_chosen_may_be_restored_twice(clock):
    schedule = tapescope.auto(2.0, clock)
    choose(schedule, clock)
    about = schedule.about()
    for _ in range(3):
        schedule.restore(about)
    assert schedule.about() == about


def test_a_function_is_a_schedule(tmp_path):
    probe = tapescope.Probe(keras.Variable(1.0))
    with tapescope.Recorder(tmp_path, probe, lambda n: n < 3) as recorder:
        assert [recorder.when(n) for n in range(5)] == [True, True, True, False, False]


def test_what_is_no_schedule_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe = tapescope.Probe(keras.Variable(1.0))
    message = r"`when` must be a schedule, such as tapescope.every\(10\).*; got 10"
    with pytest.raises(ValueError, match=message):
        tapescope.Recorder("unused", probe, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        tapescope.Monitor("unused", 10)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
