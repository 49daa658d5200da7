"""The noise scale of a run, against a problem whose noise is known, and on records that do not determine it."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.series.noise_scale import estimate_noise_scale, examples_per_step


@pytest.mark.parametrize("count", [2, 8])
def test_the_interval_contains_the_truth_as_often_as_stated(count):
    """300 estimates of a known noise scale: 95 % intervals, allowed to miss a little more often."""
    rng = np.random.default_rng(1)
    mean = np.full(10, 0.2)
    deviation = np.linspace(0.5, 1.5, 10)
    batch = 64
    steps = 200
    known = np.square(deviation).sum() / np.square(mean).sum()
    hits = 0
    for _ in range(300):
        gradients = mean + deviation / np.sqrt(batch / count) * rng.normal(size=[steps, count, 10])
        found = estimate_noise_scale(
            replica_norms=np.linalg.norm(gradients / count, axis=2)[:, :, None],
            gradient_norms=np.linalg.norm(gradients.mean(1), axis=1)[:, None],
            examples=np.full(steps, float(batch)),
        )
        hits += found.low <= known <= found.high
    assert 0.91 <= hits / 300 <= 0.99


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_records_without_finite_norms_have_no_noise_scale(value):
    found = estimate_noise_scale(np.full([5, 2, 1], value), np.full([5, 1], value), np.full(5, 8.0))
    assert np.isnan(found).all()


@pytest.mark.parametrize("examples", [0.0, -8.0, np.nan, np.inf])
def test_impossible_batch_sizes_have_no_noise_scale(examples):
    found = estimate_noise_scale(np.full([5, 2, 1], 0.6), np.ones([5, 1]), np.full(5, examples))
    assert np.isnan(found).all()


def test_few_records_have_a_noise_scale_without_an_interval():
    few = estimate_noise_scale(np.full([5, 2, 1], 0.6), np.ones([5, 1]), np.full(5, 8.0))
    assert np.isfinite(few.scale)
    assert np.isnan([few.low, few.high]).all()


def test_one_replica_has_no_noise_scale():
    assert np.isnan(estimate_noise_scale(np.ones([5, 1, 1]), np.ones([5, 1]), np.full(5, 8.0))).all()


def test_no_records_have_no_noise_scale():
    assert np.isnan(estimate_noise_scale(np.zeros([0, 2, 1]), np.zeros([0, 1]), np.zeros(0))).all()


def test_examples_per_step_counts_the_steps_since_the_record_before():
    assert examples_per_step(np.array([0, 4, 8]), np.array([32, 160, 288])).tolist() == [32, 32, 32]


def test_examples_per_step_is_unknown_where_the_step_does_not_rise():
    np.testing.assert_array_equal(examples_per_step(np.array([0, 0]), np.array([32, 64])), [32, np.nan])
