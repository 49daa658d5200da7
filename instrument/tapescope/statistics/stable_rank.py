"""The stable rank of weight matrices: the squared Frobenius norm over the squared spectral norm.

M. Rudelson, R. Vershynin, Sampling from large matrices, J. ACM 54(4), 2007. The spectral norm is that of the small
bidiagonal matrix to which STEPS steps of G. Golub and W. Kahan, Calculating the singular values and pseudo-inverse of a
matrix, SIAM J. Numer. Anal. 2(2), 1965, reduce W. They multiply by W and its transpose as a power iteration does, and
use all of its iterates, not the last alone. The first vector is fixed: no random number is drawn.

Letters: k steps, n matrices of one shape, p and q their sides, V variables.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import concat, constant
from tapescope.statistics.tensors import SPARSE_ROWS

STEPS = 8
"""Products with each matrix, k."""
MAX_BATCH = 1 << 22
"""Most elements of the matrices that are copied into one stack: 16 MiB."""
ROWS = 2 * STEPS - 1
"""Numbers that the device computes of each matrix: the diagonal of the bidiagonal matrix, and the one above it."""


def input_axes(shape: Sequence[int | None], equation: str | None) -> tuple[int, ...] | None:
    """Return the axes of a variable along which a layer sums its inputs; None where it is not a matrix to measure.

    Args:
      shape: of the variable. A convolution has its outputs along the last axis.
      equation: of an EinsumDense layer's kernel, such as "abc,cde->abde".
    """
    rank = len(shape)
    if rank < 2 or any(size is None or size < 1 for size in shape) or (rank == 2 and (shape[0] or 0) >= SPARSE_ROWS):
        return None
    if equation is None:
        return tuple(range(rank - 1))
    inputs, _, output = equation.replace(".", "").replace(" ", "").partition("->")
    kernel = inputs.partition(",")[2]
    axes = tuple(i for i, letter in enumerate(kernel) if letter not in output)
    return axes if len(kernel) == rank and 0 < len(axes) < rank else None


def as_matrix(weight: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """Return a weight as a matrix [inputs, outputs]."""
    others = [i for i in range(weight.shape.rank or 0) if i not in axes]
    order = [*axes, *others]
    size = math.prod(weight.shape[i] or 0 for i in axes)
    if order != sorted(order):
        weight = tf.transpose(weight, order)
    return tf.raw_ops.Reshape(tensor=weight, shape=constant([size, -1]))


def start_vector(size: int) -> np.ndarray:
    """Return the first vector, of length 1 and without a pattern that a matrix may have, float32 [q]."""
    numbers = np.arange(1, size + 1)
    signs = np.where(np.modf(numbers * 0.6180339887498949)[0] < 0.5, 1.0, -1.0)
    vector = signs * (0.5 + np.modf(numbers * 0.7548776662466927)[0])
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def bidiagonal_rows(matrices: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return the diagonal of each bidiagonal matrix, k numbers, and the one above it, k - 1: float32 [ROWS, V].

    Args:
      matrices: V of them, float32; those of one shape are reduced together.
    """
    batches: list[list[int]] = []
    last_batch: dict[Any, list[int]] = {}
    for i, matrix in enumerate(matrices):
        shape = tuple(matrix.shape)
        batch = last_batch.get(shape)
        if batch is None or (len(batch) + 1) * (matrix.shape.num_elements() or 0) > MAX_BATCH:
            batch = last_batch[shape] = []
            batches.append(batch)
        batch.append(i)
    parts = []
    for batch in batches:
        first = matrices[batch[0]]
        alone = len(batch) == 1
        stack = tf.expand_dims(first, 0) if alone else tf.raw_ops.Pack(values=[matrices[i] for i in batch])
        parts.append(_bidiagonalize(stack))
    order = np.argsort(np.concatenate(batches)).astype(np.int32)
    return tf.raw_ops.GatherV2(params=concat(parts, 1), indices=constant(order), axis=constant(1))


def _bidiagonalize(x: tf.Tensor) -> tf.Tensor:
    """Return the rows of n matrices of one shape, [n, p, q] to [ROWS, n]."""
    n, _, q = x.shape
    v = constant(np.tile(start_vector(q or 0)[None, :, None], [n or 0, 1, 1]), tf.float32)
    u, alpha = _normalize(tf.raw_ops.BatchMatMulV2(x=x, y=v))
    alphas = [alpha]
    betas: list[tf.Tensor] = []
    for _ in range(STEPS - 1):
        v, beta = _normalize(tf.raw_ops.BatchMatMulV2(x=x, y=u, adj_x=True) - alpha * v)
        u, alpha = _normalize(tf.raw_ops.BatchMatMulV2(x=x, y=v) - beta * u)
        betas.append(beta)
        alphas.append(alpha)
    return tf.reshape(tf.stack([*alphas, *betas]), [ROWS, -1])


def _normalize(vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return vectors [n, N, 1] of length 1, or 0, and their lengths [n, 1, 1]."""
    square = tf.raw_ops.Sum(input=tf.raw_ops.Square(x=vectors), axis=constant([1]), keep_dims=True)
    length = tf.raw_ops.Sqrt(x=square)
    return tf.raw_ops.DivNoNan(x=vectors, y=length), length


def stable_ranks(frobenius: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the stable ranks, [V]; NaN where a matrix is 0 or has elements that are not finite.

    Args:
      frobenius: Frobenius norms, [V].
      rows: from `bidiagonal_rows`, [ROWS, V].
    """
    known = np.isfinite(rows).all(0) & np.isfinite(frobenius) & (frobenius > 0)
    ranks = np.full(rows.shape[1], np.nan)
    diagonal = rows[:STEPS, known].T.astype(np.float64)
    above = rows[STEPS:, known].T.astype(np.float64)
    bidiagonal = diagonal[:, :, None] * np.eye(STEPS)
    bidiagonal[:, np.arange(STEPS - 1), np.arange(1, STEPS)] = above
    spectral = np.linalg.svd(bidiagonal, compute_uv=False)[:, 0]
    ranks[known] = np.square(frobenius[known].astype(np.float64) / spectral)
    return ranks
