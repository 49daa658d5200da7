"""The gradient noise scale of a run: one number from many steps, with its confidence interval.

The noise scale of one step is the ratio of two noisy estimates (`trace_and_squared_norm`). Its mean over steps is
biased and need not exist, so the two are averaged first and then divided.
"""

import math
from typing import Any, NamedTuple

import numpy as np

BLOCKS = 20
_STUDENT_T = 2.093
"""Quantile 0.975 of Student's t distribution with BLOCKS - 1 degrees of freedom. A constant, so that reading a run
does not need scipy."""


class NoiseScale(NamedTuple):
    """The noise scale tr(S) / |G|^2 in examples, with its 95 % interval; NaN where the records do not determine it."""

    scale: float
    low: float
    high: float


UNKNOWN = NoiseScale(math.nan, math.nan, math.nan)


def trace_and_squared_norm(small_squares: Any, big_squares: Any, small: Any, big: Any) -> tuple[Any, Any]:
    """Estimate tr(S), the variance of one example's gradient, and |G|^2, without bias, from two batch sizes.

    The source is McCandlish, Kaplan, Amodei, "An Empirical Model of Large-Batch Training", 2018, appendix A.1. The
    simple noise scale is tr(S) / |G|^2, in examples. The arithmetic serves for NumPy arrays and for tensors.

    Args:
      small_squares: squared L2 norm of the mean gradient of a small batch; its mean, if there are several.
      big_squares: squared L2 norm of the mean gradient of a large batch.
      small: examples in the small batch.
      big: examples in the large batch.
    """
    trace = (small_squares - big_squares) / (1 / small - 1 / big)
    squared_norm = (big * big_squares - small * small_squares) / (big - small)
    return trace, squared_norm


def examples_per_step(steps: np.ndarray, examples_seen: np.ndarray) -> np.ndarray:
    """Return the mean batch size since the record before, [T]; NaN where the step does not rise."""
    steps_between = np.diff(np.asarray(steps, np.float64), prepend=-1.0)
    examples_between = np.diff(np.asarray(examples_seen, np.float64), prepend=0.0)
    return examples_between / np.where(steps_between > 0, steps_between, np.nan)


def estimate_noise_scale(replica_norms: np.ndarray, gradient_norms: np.ndarray, examples: np.ndarray) -> NoiseScale:
    """Estimate the noise scale from the gradients of small batches (the replicas' own) and of the large one.

    The interval is the jackknife's over BLOCKS stretches of consecutive records, so that correlated neighbours do not
    make it too narrow. Records that are not finite are left out. With fewer than two records a block the interval is
    NaN.

    Args:
      replica_norms: L2 norms of the replicas' parts of the gradient, [T, R, V].
      gradient_norms: L2 norms of their sum, [T, V].
      examples: batch sizes over all replicas, [T].
    """
    replicas = replica_norms.shape[1]
    if replicas < 2:
        return UNKNOWN
    big = np.where(np.isfinite(examples) & (examples > 0), examples, np.nan)
    small = big / replicas
    with np.errstate(invalid="ignore", over="ignore"):
        small_squares = np.nansum(np.square(replica_norms * replicas, dtype=np.float64), axis=2).mean(axis=1)
        big_squares = np.nansum(np.square(gradient_norms, dtype=np.float64), axis=1)
        trace, gradient_squares = trace_and_squared_norm(small_squares, big_squares, small, big)
    known = np.isfinite(trace) & np.isfinite(gradient_squares) & (big_squares > 0)
    pairs = np.stack([trace[known], gradient_squares[known]])
    if not pairs.shape[1]:
        return UNKNOWN
    scale = _ratio(pairs.sum(axis=1))
    if pairs.shape[1] < 2 * BLOCKS:
        return NoiseScale(scale, math.nan, math.nan)
    block_sums = np.stack([block.sum(axis=1) for block in np.array_split(pairs, BLOCKS, axis=1)])
    without_block = np.array([_ratio(block_sums.sum(axis=0) - block) for block in block_sums])
    error = math.sqrt((BLOCKS - 1) / BLOCKS * np.square(without_block - without_block.mean()).sum())
    return NoiseScale(scale, max(0.0, scale - _STUDENT_T * error), scale + _STUDENT_T * error)


def _ratio(sums: np.ndarray) -> float:
    trace, gradient_squares = sums
    return float(trace / gradient_squares) if gradient_squares > 0 else math.nan
