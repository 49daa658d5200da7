"""Cosines of consecutive gradients, against all elements in float64."""

import numpy as np
import pytest

from tapescope.statistics.tensors import sample_places
from tapescope.storage.consecutive_gradients import ConsecutiveGradients
from tests.instrument import oracle

ABSENT = np.full(6, np.nan)


def gradients(rng, signal, sizes=(6, 20), noise=1.0):
    return [signal * np.ones(n) + noise * rng.normal(size=n) for n in sizes]


def sampled(variables):
    """Return the sample and the norms of gradients that are of at most 1,024 elements."""
    sample = [np.append(g, np.full(1024 - len(g), np.nan)) for g in variables]
    return np.array(sample, np.float32).T, np.array([_norm(g) for g in variables])


def _norm(gradient):
    return np.nan if gradient is ABSENT else np.linalg.norm(gradient[np.isfinite(gradient)])


def compare(before, after, step=1):
    kept = ConsecutiveGradients()
    kept.add(0, *sampled(before))
    return kept.add(step, *sampled(after))


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return gradients(rng, 1.0), gradients(rng, 1.0)


def test_cosine_of_each_variable(pair):
    cosines, _ = compare(*pair)
    np.testing.assert_allclose(cosines, [oracle.cosine(x, y) for x, y in zip(*pair, strict=True)], rtol=1e-5)


def test_cosine_of_the_whole_gradient(pair):
    _, total = compare(*pair)
    assert total == pytest.approx(oracle.cosine(*map(np.concatenate, pair)), rel=1e-5)


def test_the_first_step_has_none(pair):
    cosines, total = ConsecutiveGradients().add(0, *sampled(pair[0]))
    assert np.isnan([*cosines, total]).all()


def test_steps_that_do_not_follow_each_other_have_none(pair):
    cosines, total = compare(*pair, step=2)
    assert np.isnan([*cosines, total]).all()


def test_a_gradient_that_is_absent_has_none_and_is_left_out(pair):
    before, after = pair
    cosines, total = compare([ABSENT, before[1]], [ABSENT, after[1]])
    assert np.isnan(cosines[0])
    assert total == pytest.approx(cosines[1])


def test_a_gradient_of_0_has_none_and_counts_in_the_whole(pair):
    before, after = pair
    cosines, total = compare([0 * before[0], before[1]], after)
    assert np.isnan(cosines[0])
    assert total == pytest.approx(oracle.cosine(np.append(0 * before[0], before[1]), np.concatenate(after)), rel=1e-5)


def test_elements_that_are_not_finite_are_left_out(pair):
    before, after = pair
    broken = [np.where(np.arange(len(g)) == 2, np.inf, g) for g in after]
    cosines, _ = compare(before, broken)
    expected = [oracle.cosine(np.delete(x, 2), np.delete(y, 2)) for x, y in zip(before, after, strict=True)]
    np.testing.assert_allclose(cosines, expected, rtol=1e-5)


def test_an_infinite_norm_is_no_warning(pair):
    before, after = (sampled(gradients) for gradients in pair)
    kept = ConsecutiveGradients()
    kept.add(0, before[0], np.full_like(before[1], np.inf))
    assert np.isnan(kept.add(1, *after)[1])


def test_a_variable_that_a_step_adds_has_none(pair):
    before, after = pair
    cosines, total = compare(before[1:], [after[1], after[0]])
    np.testing.assert_allclose(cosines, [oracle.cosine(before[1], after[1]), np.nan], rtol=1e-5)
    assert total == pytest.approx(cosines[0])


def test_a_run_that_goes_on_has_the_same(pair):
    before, after = pair
    kept = ConsecutiveGradients()
    kept.add(0, *sampled(before))
    state = {name: np.array(array) for name, array in kept.state().items()}
    np.testing.assert_array_equal(ConsecutiveGradients(state).add(1, *sampled(after))[0], compare(*pair)[0])


@pytest.mark.parametrize(("cosine", "tails"), [(0.9, False), (0.3, False), (0.3, True)])
def test_a_sample_is_as_exact_as_the_documentation_says(cosine, tails):
    """Its error is sqrt(kurtosis / 3) (1 - c^2) / sqrt(1024), over many pairs of tensors."""
    rng = np.random.default_rng(5)
    size = 1 << 15
    at = sample_places(size, 1024)
    errors = []
    for _ in range(60):
        scale = np.exp(0.7 * rng.normal(size=size)) if tails else 1.0
        x, noise = rng.normal(size=[2, size])
        y = (cosine * x + np.sqrt(1 - cosine**2) * noise) * scale
        x = x * scale
        errors.append(compare([x[at]], [y[at]])[0][0] - oracle.cosine(x, y))
    kurtosis = 3 * np.exp(4 * 0.49) if tails else 3.0
    stated = np.sqrt(kurtosis / 3) * (1 - cosine**2) / np.sqrt(1024)
    assert np.std(errors) == pytest.approx(stated, rel=0.35)
    assert abs(np.mean(errors)) < 0.5 * stated


@pytest.mark.parametrize(("size", "count"), [(1025, 1024), (5000, 1024), (10**9 + 7, 64), (256, 256)])
def test_places_are_spread_and_in_range(size, count):
    places = sample_places(size, count)
    assert len(places) == count
    assert (np.diff(places) >= 0).all()
    assert places[0] >= 0
    assert places[-1] < size
    assert len(np.unique(places)) > 0.7 * count
