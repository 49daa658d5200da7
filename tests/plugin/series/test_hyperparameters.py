"""Which hyperparameters of several runs differ."""

import math

import pytest

from tensorboard_plugin_tapescope.series.hyperparameters import ABSENT, compare_settings, format_value


def test_what_differs_is_told_from_what_is_equal():
    found = compare_settings({"a": {"rate": 0.1, "seed": 1.0}, "b": {"rate": 0.2, "seed": 1.0}})
    assert found.differing == {"rate": ["0.1", "0.2"]}
    assert found.equal == {"seed": "1"}


def test_a_run_without_any_makes_no_difference():
    found = compare_settings({"a": {"seed": 1.0}, "b": {}, "c": {"seed": 1.0}})
    assert found == ({}, {"seed": "1"})


def test_one_that_a_run_lacks_differs():
    assert compare_settings({"a": {"seed": 1.0}, "b": {"rate": 0.5}}).differing == {
        "rate": [ABSENT, "0.5"],
        "seed": ["1", ABSENT],
    }


def test_not_a_number_equals_itself():
    assert compare_settings({"a": {"x": math.nan}, "b": {"x": math.nan}}).equal == {"x": "nan"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "True"), (3000.0, "3,000"), (1e-4, "0.0001"), (0.1 + 0.2, "0.3"), (1e300, "1e+300"), ("cpu:2", "cpu:2")],
)
def test_a_value_is_short(value, text):
    assert format_value(value) == text
