"""Numbers read off histograms, against float64 NumPy on the elements themselves."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import precision

RNG = np.random.default_rng(0)
SMALLEST = {"float16": np.finfo(np.float16).smallest_normal, "e4m3": 2.0**-6, "e5m2": 2.0**-14}
NORMAL = RNG.normal(size=200_000)
DISTRIBUTIONS = {
    "normal": NORMAL,
    "small": NORMAL * 1e-5,
    "shifted": NORMAL + 1.5,
    "heavy": RNG.standard_t(9, size=200_000),
    "even": RNG.uniform(-1, 1, size=200_000),
    "relu": np.maximum(NORMAL, 0),
    "outliers": np.where(RNG.random(200_000) < 1e-4, 60 * NORMAL, NORMAL),
}


def histogram(x):
    """Return the counts over the wire's bins, which are by sign and magnitude; what lies beyond is in the last ones."""
    edges = metadata.bin_edges()[metadata.SIDE_BINS + 1 :]
    bins = np.minimum(np.searchsorted(edges, np.abs(x), side="right"), metadata.SIDE_BINS)
    return np.bincount(metadata.SIDE_BINS + (np.sign(x) * bins).astype(int), minlength=metadata.BINS)[None]


def kurtosis(x):
    facts = [np.array([f(x)]) for f in (np.mean, np.std, np.min, np.max)]
    return precision.kurtosis(histogram(x), *facts)[0]


@pytest.fixture(params=DISTRIBUTIONS)
def x(request):
    return DISTRIBUTIONS[request.param]


@pytest.mark.parametrize("name", SMALLEST)
def test_shares_below_the_smallest_normal_are_counts(x, name):
    share = precision.shares_below_normal(histogram(x), np.array([np.sum(x == 0)]))[name]
    assert share[0] == np.mean((x != 0) & (np.abs(x) < SMALLEST[name]))


def test_exact_powers_of_two_are_normal():
    x = np.array([2.0**-14, -(2.0**-14), 2.0**-15, 0.0])
    share = precision.shares_below_normal(histogram(x), np.array([1]))["float16"]
    assert share[0] == 1 / 4


def test_below_the_histograms_range_bfloat16_is_unknown():
    zeros = np.array([1])
    assert precision.shares_below_normal(histogram(np.array([1.0, 0.0])), zeros)["bfloat16"][0] == 0
    assert np.isnan(precision.shares_below_normal(histogram(np.array([1e-20, 0.0])), zeros)["bfloat16"][0])


def test_without_elements_nothing_is_known():
    shares = precision.shares_below_normal(np.zeros([2, metadata.BINS]), np.zeros(2))
    assert np.isnan(list(shares.values())).all()


def test_without_a_histogram_nothing_is_known():
    columns = precision.columns_of("gradient", None, np.zeros(3), np.zeros(3))
    assert list(columns) == [c.name for c in metadata.DERIVED_VARIABLE_COLUMNS if "_below_" in c.name]
    assert np.isnan(list(columns.values())).all()


def test_the_kurtosis_is_that_of_the_elements(x):
    expected = np.mean((x - x.mean()) ** 4) / x.var() ** 2
    few_outliers = expected > 100  # in the widest bins
    np.testing.assert_allclose(kurtosis(x), expected, rtol=0.15 if few_outliers else 0.04)


@pytest.mark.parametrize("x", [np.ones(9), NORMAL + 30, np.array([1e6, 1.0, -1.0])], ids=["equal", "far", "beyond"])
def test_a_kurtosis_that_the_bins_do_not_show_is_unknown(x):
    assert np.isnan(kurtosis(x))


def test_the_root_mean_square_is_that_of_the_elements(x):
    np.testing.assert_allclose(precision.root_mean_square(x.mean(), x.std()), np.sqrt(np.mean(x**2)))
