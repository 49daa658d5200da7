"""Stable ranks against singular values of NumPy, and which variables are matrices."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import stable_rank
from tests.instrument import oracle


def measure(matrices):
    """Return the stable ranks of matrices, compiled as one program."""
    rows = tf.function(lambda: stable_rank.bidiagonal_rows([tf.constant(m) for m in matrices]))()
    return stable_rank.stable_ranks(np.array([np.linalg.norm(m) for m in matrices]), rows.numpy())


def with_singular_values(values, rows, rng):
    """Return a matrix [rows, n] with these n singular values."""
    left = np.linalg.qr(rng.normal(size=[rows, len(values)]))[0]
    right = np.linalg.qr(rng.normal(size=[len(values), len(values)]))[0]
    return ((left * values) @ right.T).astype(np.float32)


def test_matrices_of_any_shape_in_their_order():
    rng = np.random.default_rng(0)
    shapes = [(8, 5), (300, 200), (8, 5), (1, 7), (7, 1), (5, 8)]
    matrices = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    matrices[1] = with_singular_values(1 / np.arange(1, 201), 300, rng)
    np.testing.assert_allclose(measure(matrices), [oracle.stable_rank(m) for m in matrices], rtol=2e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_matrices_of_low_rank_are_exact(rank):
    rng = np.random.default_rng(1)
    matrix = with_singular_values(np.linspace(1, 0.5, rank), 50, rng)
    np.testing.assert_allclose(measure([matrix]), [oracle.stable_rank(matrix)], rtol=1e-5)


def test_a_matrix_of_noise_is_overestimated_by_a_few_per_cent():
    """Its largest singular values are close to each other: the case that takes the most steps."""
    rng = np.random.default_rng(2)
    matrices = [rng.normal(size=shape).astype(np.float32) for shape in [(512, 512), (784, 512), (64, 64)]]
    excess = measure(matrices) / [oracle.stable_rank(m) for m in matrices] - 1
    assert (excess > -1e-5).all()
    assert (excess < 0.06).all()


def test_a_matrix_of_zeros_or_with_a_nan_has_none():
    matrix = np.ones([4, 3], np.float32)
    broken = np.where(np.arange(3) == 1, np.nan, matrix).astype(np.float32)
    ranks = measure([0 * matrix, broken, matrix])
    np.testing.assert_allclose(ranks, [np.nan, np.nan, 1], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_scale_of_the_weights_does_not_matter(scale):
    matrix = np.random.default_rng(3).normal(size=[20, 10])
    ranks = measure([(scale * matrix).astype(np.float32)])
    np.testing.assert_allclose(ranks, [oracle.stable_rank(matrix)], rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "equation", "axes"),
    [
        ((784, 512), None, (0,)),
        ((3, 3, 16, 32), None, (0, 1, 2)),  # a convolution
        ((16, 4, 8), "abc,cde->abde", (0,)),  # query, key and value of attention
        ((4, 8, 16), "abcd,cde->abe", (0, 1)),  # its output
        ((16, 8), "...x,xy->...y", (0,)),
        ((8, 16), "ab,cb->ac", (1,)),  # a kernel that is transposed
        ((64,), None, None),
        ((), None, None),
        ((1 << 16, 8), None, None),  # an embedding of which a step reads few rows
        ((3, 0), None, None),
        ((5, 5), "ab,bc->abc", None),  # nothing is summed
    ],
)
def test_axes_of_inputs(shape, equation, axes):
    assert stable_rank.input_axes(shape, equation) == axes


def test_a_matrix_has_inputs_along_its_rows():
    weight = np.random.default_rng(4).normal(size=[4, 8, 16]).astype(np.float32)
    np.testing.assert_array_equal(stable_rank.as_matrix(tf.constant(weight), (0, 1)), weight.reshape(32, 16))
    np.testing.assert_array_equal(
        stable_rank.as_matrix(tf.constant(weight), (1,)), weight.transpose(1, 0, 2).reshape(8, 64)
    )
