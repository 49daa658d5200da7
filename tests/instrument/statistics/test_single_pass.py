"""Reductions that share kernels on a GPU."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import reductions, single_pass
from tapescope.statistics.batched_ops import group_by_shape
from tapescope.statistics.reductions import Piece, Rows, join, run


def sum_of(*values):
    """Return a reduction that yields as often as there are values, and returns the sum of what it is sent."""
    total = 0.0
    for value in values:
        found = yield Rows(
            {"sum": [Piece(tf.constant([value, 1.0]), [2])]}, {"highest": [Piece(tf.constant([value, -1.0]), [2])]}
        )
        total += float(found["sum"][0]) + 100 * float(found["highest"][0])
    return total


def test_reductions_that_run_together_return_what_each_returns_alone():
    reductions = [(), (1.0,), (2.0, 3.0), (), (5.0, 6.0, 7.0)]
    assert run(join(*(sum_of(*values) for values in reductions))) == tuple(run(sum_of(*v)) for v in reductions)


def test_reductions_may_be_joined_twice():
    assert run(join(join(sum_of(1.0), sum_of(2.0)), sum_of(3.0))) == ((102.0, 203.0), 304.0)


@pytest.mark.parametrize("count", [1, reductions.MOST_ROWS, 3 * reductions.MOST_ROWS + 1])
def test_rows_of_any_number_and_length_are_folded(count):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=[rng.integers(1, 4), rng.integers(1, 9)]) for _ in range(count)]
    pairs = [row + 1j * rng.normal(size=row.shape) for row in rows]

    def fold():
        tables = {("sum", i): row for i, row in enumerate(rows)} | {("pair", i): row for i, row in enumerate(pairs)}
        sums = {key: [Piece(tf.constant(x.ravel()), [x.shape[1]] * len(x))] for key, x in tables.items()}
        found = yield Rows(sums, {("highest", i): sums["sum", i] for i in range(count)})
        return [[found[kind, i] for i in range(count)] for kind in ("sum", "pair", "highest")]

    for row, pair, total, total_of_pairs, largest in zip(rows, pairs, *run(fold()), strict=True):
        assert total.dtype == tf.float64
        np.testing.assert_allclose(total, row.sum(1), rtol=1e-12)
        np.testing.assert_allclose(total_of_pairs, pair.sum(1), rtol=1e-12)
        np.testing.assert_array_equal(largest, row.max(1))


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 0), (0, 5), (2**31 - 1, 2**21 - 1), (7, 2**31 - 1)])
def test_two_counts_in_one_sum(low, high):
    packed = tf.constant([low + high * single_pass.HIGH], tf.float64)
    found_low, found_high = single_pass.unpack_counts(packed)
    assert found_high == high
    np.testing.assert_allclose(found_low, [low], atol=0 if high < 2**21 else 2**10)


@pytest.mark.parametrize("most", [0, 1000, 10**9])
def test_norms_are_the_same_however_many_tensors_are_joined(most):
    rng = np.random.default_rng(1)
    sizes = [1, 7, 4096, 3, 10_000, 4097, 12_288, 1, 5, *[2] * 40]
    arrays = [rng.normal(size=size).astype(np.float32) * 10.0 ** rng.integers(-30, 30) for size in sizes]
    arrays[4][77] = np.nan
    arrays[6][:] = 0
    groups = group_by_shape([tf.constant(array, tf.float32) for array in arrays])
    norm, nonfinite, largest, zero = run(single_pass.norm_rows(groups, most=most))
    order = [i for group in groups for i in group.indices]
    finite = [arrays[i][np.isfinite(arrays[i])].astype(np.float64) for i in order]
    np.testing.assert_allclose(norm, [np.linalg.norm(x) for x in finite], rtol=1e-6)
    np.testing.assert_allclose(largest, [np.abs(x).max() for x in finite], rtol=1e-7)
    np.testing.assert_allclose(zero, [np.mean(arrays[i] == 0) for i in order], rtol=1e-6)
    np.testing.assert_array_equal(nonfinite, [np.sum(~np.isfinite(arrays[i])) for i in order])
