"""The noise scale of a run, against a problem whose noise is known, and on records that do not determine it."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.series.noise_scale import (
    estimate_noise_scale,
    examples_per_step,
    ratio_of_means,
    running_noise_scale,
)


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


def noisy_terms(count: int, scale: float) -> np.ndarray:
    """Return terms [T, 2] of a noise scale, each with as much noise as its own size."""
    rng = np.random.default_rng(3)
    return np.stack([scale * (1 + rng.normal(size=count)), 1 + rng.normal(size=count)], axis=1)


def test_a_running_estimate_is_that_of_its_window():
    terms = noisy_terms(130, 50.0)
    running = running_noise_scale(terms, window=60)
    np.testing.assert_array_equal(running[-1], ratio_of_means(terms[70:]))
    np.testing.assert_array_equal(running[59], ratio_of_means(terms[:60]))


def test_a_running_estimate_varies_less_than_single_records():
    terms = np.abs(noisy_terms(400, 50.0))
    running = running_noise_scale(terms)[50:, 0]
    single = terms[50:, 0] / terms[50:, 1]
    assert np.ptp(np.log10(single)) > 3
    assert np.ptp(np.log10(running)) < 0.5


def test_unknown_records_do_not_count():
    terms = noisy_terms(100, 50.0)
    with_unknown = np.insert(terms, 10, np.nan, axis=0)
    assert ratio_of_means(with_unknown) == ratio_of_means(terms)


def test_the_interval_is_that_of_leaving_out_each_block():
    """The jackknife over 20 blocks, written out."""
    terms = noisy_terms(47, 50.0) + np.array([0, 4])
    blocks = np.array_split(terms, 20)
    left_out = [np.concatenate(blocks[:i] + blocks[i + 1 :]).sum(0) for i in range(20)]
    ratios = np.array([trace / squared for trace, squared in left_out])
    error = np.sqrt(19 / 20 * np.square(ratios - ratios.mean()).sum())
    found = ratio_of_means(terms)
    assert found.high - found.scale == pytest.approx(2.093 * error)
