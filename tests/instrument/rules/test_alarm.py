"""Alarms: raised at each spike and each first NaN, also where a finding has been reported before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tapescope.rules import engine
from tapescope.rules.record_view import Record
from tests.instrument.rules.records import LAYOUT, healthy


def alarms(changes: dict[int, Callable[[Any], Any]], records=20):
    """Return the alarm by record of a healthy run with some records changed."""
    judge = engine.RuleEngine(LAYOUT)
    found = {}
    for t in range(records):
        columns = healthy(t)
        changes.get(t, lambda columns: None)(columns)
        judge.add(Record(10 * t, columns))
        if judge.alarm:
            found[t] = judge.alarm
    return found


def spike(columns):
    for name in ("gradient_norm", "applied_norm"):
        columns[name] = 1000 * columns[name]


def broken(columns):
    columns["first_nonfinite_forward"] = np.float64(1)
    columns["activation_nonfinite"] = np.array([0, 5.0, 0, 0])


def test_a_healthy_run_raises_no_alarm():
    assert alarms({}) == {}


def test_each_spike_raises_an_alarm():
    assert alarms({8: spike, 12: spike, 17: spike}) == {8: "a spike", 12: "a spike", 17: "a spike"}


def test_the_first_record_that_is_not_finite_raises_an_alarm():
    assert alarms({9: broken, 10: broken, 15: broken}) == {9: "a NaN or Inf", 15: "a NaN or Inf"}


def test_an_early_spike_of_norm_and_loss_raises_an_alarm():
    def high(columns):
        spike(columns)
        columns["loss"] = 1000 * columns["loss"]

    assert alarms({4: high, 11: high}) == {4: "a spike", 11: "a spike"}


@pytest.mark.parametrize("t", [0, 1, 2])
def test_the_first_records_are_no_spike(t):
    assert t not in alarms({t: spike})
