"""Histograms: against NumPy's, all elements of small tensors, a part of large ones."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import batched_ops, histograms
from tapescope.statistics import tensors as tensor_statistics
from tensorboard_plugin_tapescope import metadata
from tests.instrument import oracle

EDGES = metadata.bin_edges()


def counted(x):
    """Rows of `gradient_rows` by name, and the counts, of one tensor."""
    rows, bins = tensor_statistics.gradient_rows([tf.constant(x)], histogram=True)
    return dict(zip(tensor_statistics.GRADIENT_ROWS, rows.numpy()[:, 0], strict=True)), bins.numpy()[0]


def test_bins_hold_what_their_edges_say():
    inside = [EDGES[1:-1], np.nextafter(EDGES[1:-1], -np.inf), [0.0, -0.0, 1e-30, 1e30, -1e30]]
    x = np.concatenate(inside).astype(np.float32)
    np.testing.assert_array_equal(counted(x)[1], oracle.histogram(x, EDGES))
    assert len(EDGES) == metadata.BINS + 1
    assert np.all(np.diff(EDGES) > 0)


def test_nonfinite_elements_are_in_no_bin():
    assert counted(np.float32([1, np.nan, 2, np.inf, -np.inf, 3, 0]))[1].sum() == 4


def test_up_to_the_limit_all_are_counted():
    x = (
        np.random.default_rng(0)
        .normal(size=[3 * (batched_ops.MAX_STACKED_SIZE + batched_ops.SAMPLE_BLOCK) - 1])
        .astype(np.float32)
    )
    np.testing.assert_array_equal(counted(x)[1], oracle.histogram(x, EDGES))


@pytest.mark.parametrize("shape", [(784, 512), (3, 3, 256, 256), (98353,), (1024, 3 * 7 * 11)])
def test_of_a_large_tensor_a_part_is_counted(shape):
    """Rows, columns and scattered elements are 0: the shares of all bins are right to four standard errors."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * np.exp(2 * rng.normal(size=shape))).astype(np.float32)
    x[rng.random(shape) < 0.05] = 0
    if x.ndim > 1:
        x[..., ::3] = 0
        x[7:12] = 0
    row, bins = counted(x)
    true = oracle.histogram(x, EDGES)
    assert bins.sum() == x.size
    assert (bins >= 0).all()
    assert row["zero"] == pytest.approx((x == 0).mean(), abs=4 * 0.0028)
    lean = tensor_statistics.gradient_rows([tf.constant(x)])[0].numpy()[:, 0]
    np.testing.assert_allclose(list(row.values()), lean, rtol=1e-6)
    share = true / x.size
    assert not np.array_equal(bins, true)
    np.testing.assert_array_less(abs(bins / x.size - share), 4 * np.sqrt((share + 1e-4) / batched_ops.MAX_STACKED_SIZE))


def test_a_large_tensor_with_nan_adds_up_to_its_finite_elements():
    x = np.random.default_rng(0).normal(size=[400, 1000]).astype(np.float32)
    x[3], x[5, 7] = np.nan, np.inf
    row, bins = counted(x)
    assert (row["nonfinite"], bins.sum()) == (1001, x.size - 1001)
    assert counted(np.full([400, 1000], np.nan, np.float32))[1].sum() == 0


def test_xla_counts_the_same():
    tensors = [
        tf.random.stateless_normal([400, 1000], [1, 2]),
        tf.zeros([40]),
        tf.random.stateless_normal([90], [1, 2]),
    ]
    plain = tensor_statistics.gradient_rows(tensors, True)
    compiled = tf.function(tensor_statistics.gradient_rows, jit_compile=True)(tensors, True)
    for one, other in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("size", [401_408, 262_144, 524_288, 98_304, 98_353, 3 * 5 * 7 * 11 * 13 * 100, 10**7])
def test_no_row_length_is_a_multiple_of_the_stride(size):
    (group,) = batched_ops.group_by_shape([tf.zeros([size])])
    assert group.stride == 1 or np.gcd(size, group.stride) == 1
    counted = int(histograms.count_codes([group]).numpy().sum())
    assert counted >= batched_ops.MAX_STACKED_SIZE
    assert 0 <= size - counted * group.stride < batched_ops.SAMPLE_BLOCK * group.stride


def test_zeros_and_ones_are_never_estimated():
    """A gradient without a 0 has none, and one of zeros has nothing else."""
    for value in (0.0, 0.5):
        row, bins = counted(np.full([512, 512], value, np.float32))
        assert row["zero"] == (value == 0)
        assert np.count_nonzero(bins) == 1
