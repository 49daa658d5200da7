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

WINDOW = 10 * BLOCKS
"""Records of one estimate over steps: enough for an interval, and few enough to see the noise scale grow."""


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
    """Estimate the noise scale over all records; the arguments are those of `noise_terms`."""
    return ratio_of_means(noise_terms(replica_norms, gradient_norms, examples))


def noise_terms(replica_norms: np.ndarray, gradient_norms: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Return tr(S) and |G|^2 of each record, from the gradients of small batches (the replicas' own) and the large one.

    Args:
      replica_norms: L2 norms of the replicas' parts of the gradient, [T, R, V].
      gradient_norms: L2 norms of their sum, [T, V].
      examples: batch sizes over all replicas, [T].

    Returns:
      float64 [T, 2], NaN for records that do not determine both, as for a single replica.
    """
    replicas = replica_norms.shape[1]
    if replicas < 2:
        return np.full((len(gradient_norms), 2), np.nan)
    big = np.where(np.isfinite(examples) & (examples > 0), examples, np.nan)
    small = big / replicas
    with np.errstate(invalid="ignore", over="ignore"):
        small_squares = np.nansum(np.square(replica_norms * replicas, dtype=np.float64), axis=2).mean(axis=1)
        big_squares = np.nansum(np.square(gradient_norms, dtype=np.float64), axis=1)
        trace, squared_norm = trace_and_squared_norm(small_squares, big_squares, small, big)
    terms = np.stack([trace, squared_norm], axis=1)
    known = np.isfinite(terms).all(axis=1) & (big_squares > 0)
    return np.where(known[:, None], terms, np.nan)


def ratio_of_means(terms: np.ndarray) -> NoiseScale:
    """Return the noise scale of records: the mean of tr(S) over that of |G|^2.

    The interval is the jackknife's over BLOCKS stretches of consecutive records, so that correlated neighbours do not
    make it too narrow. With fewer than two records a block the interval is NaN.

    Args:
      terms: from `noise_terms`, [T, 2]; those that are NaN are left out.
    """
    known = terms[np.isfinite(terms).all(axis=1)]
    total = known.sum(axis=0)
    scale = float(_ratio(total))
    count = len(known)
    if count < 2 * BLOCKS:
        return NoiseScale(scale, math.nan, math.nan)
    block = np.arange(BLOCKS)
    starts = block * (count // BLOCKS) + np.minimum(block, count % BLOCKS)
    without_block = _ratio(total - np.add.reduceat(known, starts, axis=0))
    error = math.sqrt((BLOCKS - 1) / BLOCKS * np.square(without_block - without_block.mean()).sum())
    if math.isnan(error):
        return NoiseScale(scale, math.nan, math.nan)
    return NoiseScale(scale, max(0.0, scale - _STUDENT_T * error), scale + _STUDENT_T * error)


def running_noise_scale(terms: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Return scale, low and high at each record, [T, 3]: `ratio_of_means` over the last `window` records."""
    estimates = [ratio_of_means(terms[max(0, end - window) : end]) for end in range(1, len(terms) + 1)]
    return np.array(estimates, np.float64).reshape(-1, 3)


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Return tr(S) / |G|^2 of sums [..., 2], NaN where |G|^2 is not positive."""
    trace, squared_norm = sums[..., 0], sums[..., 1]
    return trace / np.where(squared_norm > 0, squared_norm, np.nan)
