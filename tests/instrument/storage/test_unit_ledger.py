"""The unit ledger against its definitions, from the outputs of every example of a window."""

import numpy as np
import pytest

from tapescope.statistics import layers as layer_statistics
from tapescope.storage.unit_ledger import Ledger
from tensorboard_plugin_tapescope.metadata import UNIT_STATES


def make_rows(a, low=(), high=(), flat=()):
    """Return UNIT_ROWS of outputs `a` [N, U]; units in `low`, `high` and `flat` are so on every example."""
    counts = np.zeros([3, a.shape[1]])
    for row, units in zip(counts, (flat, low, high), strict=True):
        row[list(units)] = len(a)
    return np.stack([np.abs(a).sum(0), (a == 0).sum(0), *counts]).astype(np.float32)


def state_names(ledger):
    return [UNIT_STATES[code] for code in ledger.verdict.state]


def test_rows_are_those_of_the_statistics():
    assert layer_statistics.UNIT_ROWS == ("absolute_sum", "zero", "flat", "low", "high")


@pytest.fixture
def six_units():
    """Return a ledger after one window of two examples."""
    a = np.array([[0, 1, 0.001, 5, 1, 0.0], [0, 1, 0.001, 5, 0, 0.1]])
    ledger = Ledger([6], 2)
    assert ledger.add(make_rows(a, low=[0], high=[3]), np.array([a.size]), 2)
    return ledger


def test_each_unit_has_the_strongest_state(six_units):
    assert state_names(six_units) == ["dead", "always_on", "dormant", "saturated_high", "alive", "alive"]


def test_counts_may_take_a_unit_several_times(six_units):
    counts = six_units.verdict.counts
    assert counts["units_dead"] == [1]
    assert counts["units_dormant"] == [2]  # the mean of the dead unit is below 2.5 % as well
    assert counts["units_saturated"] == [2]  # and its derivative is 0 on every example


def test_a_window_holds_whole_batches():
    ledger = Ledger([1], 100)
    rows = make_rows(np.ones([32, 1]))
    closed = [ledger.add(rows, np.array([32]), 32) for _ in range(8)]
    assert closed == [False, False, False, True] * 2
    assert ledger.verdict.examples == 128


def test_no_verdict_before_the_first_window_has_closed():
    ledger = Ledger([2, 3], 64)
    ledger.add(make_rows(np.zeros([32, 5])), np.array([64, 96]), 32)
    assert ledger.verdict is None


def test_a_unit_that_fires_once_in_the_window_is_not_dead():
    ledger = Ledger([1], 4)
    silent = np.zeros([1, 1])
    for a in (silent, silent, silent, silent + 0.5):
        ledger.add(make_rows(a), np.array([1]), 1)
    assert ledger.verdict.counts["units_dead"] == [0]


@pytest.mark.parametrize(
    ("outputs", "expected", "revived"),
    [
        ([[0, 1]], ["dead", "always_on"], 0),
        ([[0, 1], [2, 1]], ["revived", "always_on"], 1),
        ([[0, 1], [2, 1], [2, 1]], ["always_on", "always_on"], 0),
    ],
)
def test_revived_is_dead_in_the_window_before_and_not_in_this(outputs, expected, revived):
    ledger = Ledger([2], 1)
    for output in outputs:
        ledger.add(make_rows(np.array([output], float)), np.array([2]), 1)
    assert state_names(ledger) == expected
    assert ledger.verdict.counts["units_revived"] == [revived]


def test_a_flat_derivative_on_every_example_is_dead():
    ledger = Ledger([2], 3)
    ledger.add(make_rows(np.ones([3, 2]), high=[0, 1], flat=[0]), np.array([6]), 3)
    assert state_names(ledger) == ["dead", "saturated_high"]


@pytest.mark.parametrize("positions", [1, 9])
def test_positions_of_a_convolution_count_as_elements(positions):
    ledger = Ledger([2, 1], 5)
    a = np.array([[0.0, 1.0, 0.0]] * 5 * positions)
    ledger.add(make_rows(a), np.array([2, 1]) * len(a), 5)
    np.testing.assert_array_equal(ledger.verdict.counts["units_dead"], [1, 1])


def test_a_restored_ledger_goes_on_with_the_open_window():
    rows = make_rows(np.array([[0.0, 1.0]]))
    whole = Ledger([2], 2)
    for _ in range(5):
        whole.add(rows, np.array([2]), 1)
    interrupted = Ledger([2], 2)
    for _ in range(3):
        interrupted.add(rows, np.array([2]), 1)
    restored = Ledger([2], 2)
    restored.restore(interrupted.state())
    for _ in range(2):
        restored.add(rows, np.array([2]), 1)
    assert {k: v.tolist() for k, v in restored.state().items()} == {k: v.tolist() for k, v in whole.state().items()}
