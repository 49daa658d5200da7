"""Throughput and efficiency, also of runs whose records do not determine them."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import scaling

STEPS = np.array([0, 10, 20])
EXAMPLES = np.array([64, 704, 1344])


@pytest.mark.parametrize(
    ("names", "units", "text"),
    [
        (("dense_2", "dense_3"), [8, 1], ""),
        (("conv", "dense"), [8, 1], "Not comparable with a, because their layers differ: b."),
        (("dense", "dense_1"), [64, 1], "Not comparable with a, because their layers differ: b."),
    ],
)
def test_runs_of_other_networks_are_named(names, units, text):
    first = Family("layers", names=("dense", "dense_1"), details={"units": [8, 1]})
    second = Family("layers", names=names, details={"units": units})
    assert scaling.describe_other_networks({"a": first, "b": second}) == text


def test_the_batch_size_is_examples_over_steps():
    assert scaling.batch_size(STEPS, EXAMPLES) == 64


@pytest.mark.parametrize("steps", [[0, 0, 0], [20, 10, 0]])
def test_steps_that_do_not_rise_have_no_batch_size(steps):
    assert np.isnan(scaling.batch_size(np.array(steps), EXAMPLES))


def test_the_wall_clock_rate_spans_the_first_record_to_the_last():
    assert scaling.wall_clock_rate(np.array([5.0, 6.0, 7.0]), EXAMPLES) == 640


def test_one_record_has_no_wall_clock_rate():
    assert np.isnan(scaling.wall_clock_rate(np.array([5.0]), np.array([64])))


def test_the_unmeasured_rate_is_the_batch_over_the_plain_step():
    assert scaling.unmeasured_rate(STEPS, EXAMPLES, np.array([np.nan, 32.0, 32.0])) == 2000


@pytest.mark.parametrize("milliseconds", [np.nan, np.inf, 0.0, -1.0])
def test_an_impossible_step_time_has_no_rate(milliseconds):
    assert np.isnan(scaling.unmeasured_rate(STEPS, EXAMPLES, np.full(3, milliseconds)))


def test_no_records_have_no_rate():
    assert np.isnan(scaling.unmeasured_rate(np.zeros(0), np.zeros(0), np.zeros(0)))


def test_efficiency_is_relative_to_the_fewest_replicas():
    np.testing.assert_allclose(scaling.scaling_efficiency([100.0, 300.0], [1, 4]), [1, 0.75])


def test_of_several_runs_with_the_fewest_replicas_the_fastest_is_the_base():
    np.testing.assert_allclose(scaling.scaling_efficiency([50.0, 100.0, 150.0], [1, 1, 2]), [0.5, 1, 0.75])


def test_a_run_without_a_rate_is_not_the_base():
    np.testing.assert_allclose(scaling.scaling_efficiency([np.nan, 200.0, 300.0], [1, 2, 4]), [np.nan, 1, 0.75])


def test_impossible_numbers_of_replicas_have_no_efficiency():
    assert np.isnan(scaling.scaling_efficiency([100.0, 100.0], [0, -2])).all()
