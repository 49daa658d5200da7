"""Statistics of gradients and weights against float64 NumPy, where the fast path serves and where it does not."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import batched_ops, tensors
from tapescope.statistics.reductions import run
from tensorboard_plugin_tapescope import metadata
from tests.instrument import oracle

SHAPES = [(6, 5), (7,), (6, 5), (2, 3, 4), (7,), (batched_ops.MAX_STACKED_SIZE + 1,), (6, 5), (7,), (2, 3, 4)]
"""Shapes that are repeated, and one that is too large to be stacked."""


def make_arrays():
    """Return arrays of SHAPES, some of which need the exact path: tiny, zero, non-finite and huge ones."""
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    arrays[2] *= np.float32(1e-30)
    arrays[4][:] = 0
    arrays[6][1, 1] = np.nan
    arrays[6][2, 3] = -np.inf
    arrays[7] *= np.float32(1e25)
    return arrays


@pytest.fixture(scope="module", params=[None, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "xla"])
def mixed(request):
    """Arrays, and the statistics and histograms of them as gradients, with an absent one before the last."""
    arrays = make_arrays()
    gradients = [*map(tf.constant, arrays[:-1]), None, tf.constant(arrays[-1])]
    rows, bins, _ = tf.function(lambda: run(tensors.gradient_rows(gradients, True)), jit_compile=request.param)()
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]
    return arrays, rows.numpy(), bins.numpy(), present


@pytest.mark.parametrize("scale", [0.0, 1e-33, 1e-30, 1e-12, 1.0, 1e12, 1e25])
def test_norms_are_accurate_over_the_range_of_float32(scale):
    x = np.random.default_rng(0).normal(size=[50, 40]).astype(np.float32) * np.float32(scale)
    norm = run(tensors.gradient_rows([tf.constant(x)]))[0][0, 0]
    np.testing.assert_allclose(norm, np.linalg.norm(x.astype(np.float64)), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [None, True])
def test_nonfinite_elements_are_counted_and_left_out(jit_compile):
    x = tf.constant([1.0, np.nan, 2.0, np.inf, -np.inf, 3.0, 0.0])
    rows, _, _ = tf.function(lambda: run(tensors.gradient_rows([x])), jit_compile=jit_compile)()
    row = dict(zip(tensors.GRADIENT_ROWS, rows.numpy()[:, 0], strict=True))
    assert row == pytest.approx({"norm": np.sqrt(14), "max": 3, "zero": 1 / 7, "nonfinite": 3, "elements": 7})


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_tensor_without_elements_has_norm_0(platform, monkeypatch):
    monkeypatch.setenv(batched_ops.PLATFORM_VARIABLE, platform)
    empty, other = tf.zeros([0, 3]), tf.ones([4])
    rows, _, _ = run(tensors.gradient_rows([empty, other]))
    columns = dict(zip(tensors.GRADIENT_ROWS, rows.numpy(), strict=True))
    assert [columns[name].tolist() for name in ("norm", "max", "nonfinite")] == [[0, 2], [0, 1], [0, 0]]
    assert run(tensors.norms([empty, other])).numpy().tolist() == [0, 2]


def test_an_absent_gradient_is_nan():
    rows, _, _ = run(tensors.gradient_rows([None, 2 * tf.ones([4])]))
    np.testing.assert_array_equal(rows, [[np.nan, 4], [np.nan, 2], [np.nan, 0], [np.nan, 0], [np.nan, 4]])


@pytest.mark.parametrize("tokens", [0, 40])
@pytest.mark.parametrize("histogram", [False, True])
def test_the_gradient_of_few_rows_of_a_large_table_is_that_of_the_dense_one(tokens, histogram):
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 12, tokens)
    values = rng.normal(size=[tokens, 3]).astype(np.float32)
    values[rows == 7] = 0
    values[3:4] = np.nan
    shape = [tensors.SPARSE_ROWS, 3]
    sparse = tensors.sum_duplicates(tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant(shape)))
    table = np.zeros(shape, np.float32)
    np.add.at(table, rows, values)
    dense = tf.constant(table)
    others = [None, 2 * tf.ones([4])]
    actual, bins, sample = run(tensors.gradient_rows([sparse, *others], histogram))
    assert np.isnan(sample[:, 0]).all()
    expected, expected_bins, _ = run(tensors.gradient_rows([dense, *others], histogram))
    np.testing.assert_allclose(actual[:, 1:], expected[:, 1:], rtol=1e-6)
    finite = table[np.isfinite(table)]
    row = [np.linalg.norm(finite), np.abs(finite).max(), np.mean(table == 0), np.sum(~np.isfinite(table)), table.size]
    np.testing.assert_allclose(actual[:, 0], row, rtol=1e-6)
    if histogram:
        np.testing.assert_array_equal(bins[0], oracle.histogram(finite, metadata.bin_edges()))
        np.testing.assert_array_equal(bins[1:], expected_bins[1:])


def test_the_gradient_of_a_large_embedding_stays_sparse_on_a_cpu(platform):
    indices = tf.constant([1, 1, 2])

    def gradient_of_a_table(rows):
        return tf.IndexedSlices(tf.ones([3, 2]), indices, tf.constant([rows, 2]))

    assert tensors.stays_sparse(gradient_of_a_table(tensors.SPARSE_ROWS)) == (platform == "cpu")
    assert not tensors.stays_sparse(gradient_of_a_table(tensors.SPARSE_ROWS - 1))


def test_without_any_gradient_all_is_nan():
    rows, bins, _ = run(tensors.gradient_rows([None, None], histogram=True))
    assert np.isnan(rows).all()
    assert bins.shape == [2, metadata.BINS]


def test_gradient_statistics_of_mixed_shapes(mixed):
    arrays, rows, _, present = mixed
    for i, array in zip(present, arrays, strict=True):
        finite = array[np.isfinite(array)].astype(np.float64)
        nonfinite = array.size - finite.size
        expected = np.linalg.norm(finite), np.abs(finite).max(), np.mean(array == 0), nonfinite, array.size
        np.testing.assert_allclose(rows[:, i], expected, rtol=1e-5, err_msg=str(i))


def test_gradient_histograms_of_mixed_shapes(mixed):
    arrays, _, bins, present = mixed
    for i, array in zip(present, arrays, strict=True):
        finite = array[np.isfinite(array)]
        np.testing.assert_array_equal(bins[i], oracle.histogram(finite, metadata.bin_edges()), err_msg=str(i))


def test_an_absent_gradient_among_others_has_empty_columns(mixed):
    arrays, rows, bins, _ = mixed
    absent = len(arrays) - 1
    assert np.isnan(rows[:, absent]).all()
    assert not bins[absent].any()


def test_weight_statistics_of_mixed_shapes():
    rng = np.random.default_rng(6)
    arrays = make_arrays()
    moved = [array + rng.normal(size=array.shape).astype(np.float32) for array in arrays]
    rows = run(tensors.weight_rows([*map(tf.constant, arrays)], [*map(tf.constant, moved)])).numpy()
    for i, (old, new) in enumerate(zip(arrays, moved, strict=True)):
        is_finite = np.isfinite(old)
        change = new[is_finite].astype(np.float64) - old[is_finite]
        expected = np.linalg.norm(old[is_finite].astype(np.float64)), np.linalg.norm(change), np.sum(~is_finite)
        np.testing.assert_allclose(rows[:, i], expected, rtol=1e-5, atol=1e-15, err_msg=str(i))


def test_norms_of_repeated_and_absent_tensors():
    x = tf.constant([3.0, 4.0])
    np.testing.assert_allclose(run(tensors.norms([x, None, x, tf.ones([4])])), [5, np.nan, 5, 2])


@pytest.mark.parametrize("size", [4096, 4095, 1024, 70])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_sample_has_elements_at_the_same_places_each_time(size, stacked):
    """Values are their own places, so that the places can be read from the sample."""
    values = tf.range(size, dtype=tf.float32)
    gradients = [values, None, -values] if stacked else [tf.reshape(values, [1, -1]), None, tf.ones([2000])]
    sample = tf.function(lambda: run(tensors.gradient_rows(gradients))[2])().numpy()
    width = 1024 if not stacked else min(size, 1024)
    assert sample.shape == (width, 3)
    places = sample[: min(size, width), 0]
    assert len(set(places)) == min(size, width)
    assert set(places) <= set(range(size))
    assert np.isnan(sample[size:, 0]).all()
    assert np.isnan(sample[:, 1]).all()
    np.testing.assert_array_equal(sample[:, 2], -sample[:, 0] if stacked else np.ones(width))


def test_a_model_of_many_variables_has_a_smaller_sample():
    gradients = [tf.ones([600])] * 3 + [tf.ones([600]) for _ in range(600)]
    sample = run(tensors.gradient_rows(gradients))[2]
    assert sample.shape == (tensors.MAX_SAMPLE // 601 // 4 * 4, 603)
    assert bool(tf.reduce_all(sample == 1))
