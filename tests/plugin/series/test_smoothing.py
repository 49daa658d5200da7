"""Smoothing against TensorBoard's own recurrence, written out, and against closed forms."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.series.smoothing import debiased_average, smooth, smoothing_weight


def classic_smoothing(points: list[float], weight: float) -> list[float]:
    """Return what `classicSmoothing` of TensorBoard's line chart returns, translated line by line."""
    last = 0.0
    count = 0
    smoothed = []
    for point in points:
        if not np.isfinite(point):
            smoothed.append(point)
            continue
        last = last * weight + (1 - weight) * point
        count += 1
        debias = 1.0 - weight**count if weight != 1 else 1.0
        smoothed.append(last / debias)
    return smoothed


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 0.99])
def test_the_average_is_that_of_tensorboard(weight):
    points = [*np.random.default_rng(0).normal(size=50).tolist(), np.nan, np.inf, 3.0, -1.0]
    found = debiased_average(np.array(points)[:, None], weight)[:, 0]
    np.testing.assert_allclose(found, classic_smoothing(points, weight), rtol=1e-12)


def test_a_step_follows_its_closed_form():
    """Compare with (1 - w^n) / (1 - w^(n + 1)), the average after 0 and n ones."""
    values = np.array([0.0, *np.ones(9)])[:, None]
    n = np.arange(10)
    np.testing.assert_allclose(debiased_average(values, 0.8)[:, 0], (1 - 0.8**n) / (1 - 0.8 ** (n + 1)), rtol=1e-12)


def test_a_constant_stays_itself():
    np.testing.assert_allclose(debiased_average(np.full([20, 1], 7.0), 0.9), 7.0, rtol=1e-12)


def test_a_gap_stays_and_does_not_count():
    with_gap = debiased_average(np.array([[1.0], [np.nan], [2.0]]), 0.5)[:, 0]
    without = debiased_average(np.array([[1.0], [2.0]]), 0.5)[:, 0]
    assert np.isnan(with_gap[1])
    assert with_gap[[0, 2]].tolist() == without.tolist()


def test_a_series_that_begins_with_a_gap_is_smoothed():
    assert np.isfinite(debiased_average(np.array([[np.nan], [1.0], [2.0]]), 0.5)[1:]).all()


def test_each_series_has_its_weight():
    values = np.random.default_rng(1).normal(size=[10, 2])
    found = debiased_average(values, np.array([0.0, 0.5]))
    np.testing.assert_array_equal(found[:, 0], values[:, 0])
    np.testing.assert_array_equal(found[:, 1], debiased_average(values[:, 1:], 0.5)[:, 0])


def test_on_a_logarithmic_scale_the_logarithms_are_averaged():
    values = np.array([[1e-2], [1e-4], [0.0], [1e-4]])
    found = smooth(values, 0.5, "log")[:, 0]
    expected = debiased_average(np.array([[-2.0], [-4.0], [np.nan], [-4.0]]), 0.5)[:, 0]
    np.testing.assert_allclose(np.log10(found), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("column", "records", "weight"), [("gradient_norm", 30, 0.6), ("weight_norm", 30, 0.0), ("gradient_norm", 29, 0.0)]
)
def test_states_and_few_records_are_not_smoothed(column, records, weight):
    assert smoothing_weight(column, 0.6, records) == weight
