"""The unit ledger against the definitions, computed from the outputs of every example of a window."""

import numpy as np
import pytest

from tapescope.statistics import layers as layer_statistics
from tapescope.storage.unit_ledger import Ledger
from tensorboard_plugin_tapescope.metadata import UNIT_STATES


def rows(a, low=(), high=(), flat=()):
    """UNIT_ROWS of outputs `a` [N, U], whose units in `low`, `high` and `flat` are so on every example."""
    count = np.zeros([3, a.shape[1]])
    for row, units in zip(count, (flat, low, high), strict=True):
        row[list(units)] = len(a)
    return np.stack([np.abs(a).sum(0), (a == 0).sum(0), *count]).astype(np.float32)


def names(state):
    return [UNIT_STATES[code] for code in state]


def test_rows_of_the_ledger_are_those_of_the_statistics():
    assert layer_statistics.UNIT_ROWS == ("absolute_sum", "zero", "flat", "low", "high")


def test_states_of_one_window():
    a = np.array([[0, 1, 0.001, 5, 1, 0.0], [0, 1, 0.001, 5, 0, 0.1]])
    ledger = Ledger([6], 2)
    assert ledger.add(rows(a, low=[0], high=[3]), np.array([a.size]), 2)
    verdict = ledger.verdict
    assert names(verdict.state) == ["dead", "always_on", "dormant", "saturated_high", "alive", "alive"]
    assert verdict.examples == 2
    assert verdict.counts["units_dead"] == [1]
    assert verdict.counts["units_dormant"] == [2]  # a dead unit's mean is below 2.5 % as well
    assert verdict.counts["units_saturated"] == [2]  # and its derivative is 0 on every example


def test_a_window_holds_whole_batches_and_says_how_many_examples():
    ledger = Ledger([1], 100)
    one = np.ones([32, 1])
    closed = [ledger.add(rows(one), np.array([32]), 32) for _ in range(8)]
    assert closed == [False, False, False, True] * 2
    assert ledger.verdict.examples == 128


def test_no_verdict_before_the_first_window_has_closed():
    ledger = Ledger([2, 3], 64)
    ledger.add(rows(np.zeros([32, 5])), np.array([64, 96]), 32)
    assert ledger.verdict is None


def test_one_firing_in_the_window_is_life():
    ledger, dead = Ledger([1], 4), np.zeros([1, 1])
    for a in (dead, dead, dead, dead + 0.5):
        ledger.add(rows(a), np.array([1]), 1)
    assert ledger.verdict.counts["units_dead"] == [0]


def test_revived_is_dead_in_the_last_window_and_not_in_this():
    ledger = Ledger([2], 1)
    for a, state, revived in (
        ([[0, 1]], ["dead", "always_on"], 0),
        ([[2, 1]], ["revived", "always_on"], 1),
        ([[2, 1]], ["always_on", "always_on"], 0),
    ):
        ledger.add(rows(np.array(a, float)), np.array([2]), 1)
        assert names(ledger.verdict.state) == state
        assert ledger.verdict.counts["units_revived"] == [revived]


def test_flat_on_every_example_is_dead_for_a_bounded_function():
    ledger = Ledger([2], 3)
    ledger.add(rows(np.ones([3, 2]), high=[0, 1], flat=[0]), np.array([6]), 3)
    assert names(ledger.verdict.state) == ["dead", "saturated_high"]


@pytest.mark.parametrize("positions", [1, 9])
def test_layers_are_counted_apart_and_positions_are_elements(positions):
    """A convolution has many elements a unit and example; the sums do not care which is which."""
    ledger = Ledger([2, 1], 5)
    a = np.array([[0.0, 1.0, 0.0]] * 5 * positions)
    ledger.add(rows(a), np.array([2, 1]) * len(a), 5)
    np.testing.assert_array_equal(ledger.verdict.counts["units_dead"], [1, 1])
