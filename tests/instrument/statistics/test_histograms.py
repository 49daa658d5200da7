"""Histograms against NumPy's: all elements of small tensors, a sample of large ones."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import batched_ops, histograms, tensors
from tapescope.statistics.reductions import run
from tensorboard_plugin_tapescope import metadata
from tests.instrument import oracle

EDGES = metadata.bin_edges()
SAMPLED_SHAPES = [(784, 512), (3, 3, 256, 256), (98353,), (1024, 3 * 7 * 11)]


def measure(x, histogram=True):
    """Return the rows of `gradient_rows` of one array by name, and its counts."""
    rows, counts, _ = run(tensors.gradient_rows([tf.constant(x)], histogram))
    row = dict(zip(tensors.GRADIENT_ROWS, rows.numpy(), strict=True))
    bins = None
    if counts is not None:
        bins = histograms.scale_counts(counts.numpy(), row["elements"] - row["nonfinite"])[0]
    return {name: values[0] for name, values in row.items()}, bins


@pytest.fixture(params=SAMPLED_SHAPES, ids=str)
def sampled(request):
    """Return a large array with zeros in whole rows, whole columns and scattered elements."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=request.param) * np.exp(2 * rng.normal(size=request.param))).astype(np.float32)
    x[rng.random(request.param) < 0.05] = 0
    if x.ndim > 1:
        x[..., ::3] = 0
        x[7:12] = 0
    return x


def test_there_is_an_edge_around_each_bin():
    assert len(EDGES) == metadata.BINS + 1
    assert np.all(np.diff(EDGES) > 0)


def test_bins_agree_with_their_edges():
    inside = [EDGES[1:-1], np.nextafter(EDGES[1:-1], -np.inf), [0.0, -0.0, 1e-30, 1e30, -1e30]]
    x = np.concatenate(inside).astype(np.float32)
    np.testing.assert_array_equal(measure(x)[1], oracle.histogram(x, EDGES))


def test_nonfinite_elements_are_in_no_bin():
    assert measure(np.float32([1, np.nan, 2, np.inf, -np.inf, 3, 0]))[1].sum() == 4


def test_tensors_below_the_limit_are_counted_in_full():
    size = 3 * (batched_ops.least_sample() + batched_ops.SAMPLE_BLOCK) - 1
    x = np.random.default_rng(0).normal(size=[size]).astype(np.float32)
    np.testing.assert_array_equal(measure(x)[1], oracle.histogram(x, EDGES))


def test_shares_of_a_sample_are_right_to_four_standard_errors(sampled):
    _, bins = measure(sampled)
    share = oracle.histogram(sampled, EDGES) / sampled.size
    error = np.sqrt((share + 1e-4) / batched_ops.least_sample())
    np.testing.assert_array_less(abs(bins / sampled.size - share), 4 * error)


def test_large_tensors_are_not_counted_in_full(sampled):
    _, bins = measure(sampled)
    assert not np.array_equal(bins, oracle.histogram(sampled, EDGES))


def test_counts_of_a_sample_add_up_to_all_elements(sampled):
    _, bins = measure(sampled)
    assert bins.sum() == sampled.size


def test_counts_of_a_sample_are_not_negative(sampled):
    _, bins = measure(sampled)
    assert bins.min() >= 0


def test_the_share_of_zeros_in_a_sample_is_right(sampled):
    row, _ = measure(sampled)
    assert row["zero"] == pytest.approx((sampled == 0).mean(), abs=4 * 0.5 / np.sqrt(batched_ops.least_sample()))


def test_rows_are_the_same_without_a_histogram(sampled):
    with_histogram, _ = measure(sampled)
    without_histogram, _ = measure(sampled, histogram=False)
    assert without_histogram == pytest.approx(with_histogram)


def test_counts_of_a_sample_add_up_to_its_finite_elements():
    x = np.random.default_rng(0).normal(size=[400, 1000]).astype(np.float32)
    x[3] = np.nan
    x[5, 7] = np.inf
    assert measure(x)[1].sum() == x.size - 1001


def test_a_sample_without_finite_elements_has_no_counts():
    assert measure(np.full([400, 1000], np.nan, np.float32))[1].sum() == 0


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_sample_of_equal_elements_is_exact(value):
    row, bins = measure(np.full([512, 512], value, np.float32))
    assert row["zero"] == (value == 0)
    assert np.count_nonzero(bins) == 1


@pytest.mark.slow
def test_xla_counts_the_same():
    gradients = [
        tf.random.stateless_normal([400, 1000], [1, 2]),
        tf.zeros([40]),
        tf.random.stateless_normal([90], [1, 2]),
    ]
    plain_rows, plain_bins, _ = run(tensors.gradient_rows(gradients, True))
    rows, bins, _ = tf.function(lambda: run(tensors.gradient_rows(gradients, True)), jit_compile=True)()
    np.testing.assert_allclose(rows, plain_rows, rtol=1e-5)
    np.testing.assert_array_equal(bins, plain_bins)


@pytest.mark.parametrize("size", [401_408, 98_353, 3 * 5 * 7 * 11 * 13 * 100, 10**7])
def test_a_sample_has_enough_elements_from_the_whole_tensor(size):
    (group,) = batched_ops.group_by_shape([tf.zeros([size])])
    counted = int(histograms.count_codes([group]).numpy().sum())
    assert counted >= batched_ops.least_sample()
    assert 0 <= size - counted * group.stride < batched_ops.SAMPLE_BLOCK * group.stride
