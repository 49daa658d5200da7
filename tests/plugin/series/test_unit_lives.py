"""Deaths, revivals and ages of units, counted by hand."""

import numpy as np

from tensorboard_plugin_tapescope.metadata import UNIT_STATES
from tensorboard_plugin_tapescope.series import unit_lives

WINDOWS = [
    ["dead", "alive", "alive", "always_on"],
    ["dead", "dead", "dead", "alive"],
    ["revived", "dead", "dormant", "alive"],
    ["dead", "dead", "saturated_low", "alive"],
]


def codes(windows):
    return np.array([[UNIT_STATES.index(state) for state in window] for window in windows], np.uint8)


def test_deaths_revivals_and_ages_are_counted():
    lives = unit_lives.count_lives(codes(WINDOWS))
    assert lives.deaths.tolist() == [2, 1, 1, 0]
    assert lives.revivals.tolist() == [1, 0, 1, 0]
    assert lives.age_windows.tolist() == [1, 3, 2, 4]
    assert lives.dead.tolist() == [True, True, False, False]


def test_before_the_first_window_all_counts_are_zero():
    lives = unit_lives.count_lives(np.zeros([0, 3], np.uint8))
    assert [part.tolist() for part in lives] == [[0] * 3] * 3 + [[False] * 3]


def test_codes_of_a_later_version_are_not_dead():
    assert not unit_lives.count_lives(np.full([2, 3], 250, np.uint8)).dead.any()


def test_dead_units_are_described_with_the_longest_age():
    assert unit_lives.describe_lives(codes([["dead"] * 3] * 2), 1024) == (
        "3 of 3 units are dead, the longest for 2 windows; 3 deaths and 0 revivals in 2 windows of 1,024 examples."
    )


def test_living_units_are_described_without_an_unknown_window_size():
    assert unit_lives.describe_lives(codes([["alive"] * 3]), np.nan) == (
        "0 of 3 units are dead; 0 deaths and 0 revivals in 1 window."
    )


def test_one_dead_unit_is_described_in_the_singular():
    assert unit_lives.describe_lives(codes([["alive", "alive"], ["alive", "dead"]]), np.nan) == (
        "1 of 2 units is dead, the longest for 1 window; 1 death and 0 revivals in 2 windows."
    )


def test_a_layer_without_units_is_described():
    assert unit_lives.describe_lives(np.zeros([1, 0], np.uint8), np.nan).startswith("0 of 0 units are dead;")
