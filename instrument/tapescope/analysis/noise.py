"""The gradient noise scale of a run: one number from many steps, and how well it is known.

One step's noise scale is the ratio of two estimates that both scatter; its mean over steps is biased and need not
exist. So trace and squared gradient are averaged first, and then divided: McCandlish, Kaplan, Amodei, "An Empirical
Model of Large-Batch Training", 2018, appendix A.1.
"""

import math
from typing import NamedTuple

import numpy as np

from tapescope.storage.run import Run

BLOCKS = 20
_T_95 = 2.093
"""Student's t for 95 % and BLOCKS - 1 degrees of freedom."""


class Noise(NamedTuple):
    """The noise scale in examples, tr(S) / |G|^2, with its 95 % interval; NaN where the records do not tell."""

    scale: float
    low: float
    high: float


def of_run(run: Run, variable: str | None = None) -> Noise:
    """Over all records and, unless one is named, all variables. All NaN with one replica."""
    if "replica_norm" not in run.columns:
        return Noise(math.nan, math.nan, math.nan)
    which = slice(None) if variable is None else [run.variables.index(variable)]
    examples = np.diff(run["examples_seen"], prepend=0) / np.diff(run.steps, prepend=-1)
    return estimate(run["replica_norm"][:, :, which], run["gradient_norm"][:, which], examples)


def estimate(replica_norms: np.ndarray, gradient_norms: np.ndarray, examples: np.ndarray) -> Noise:
    """From the norms of the replicas' parts of the gradient [T, R, V], those of their sum [T, V], and batch sizes [T].

    The interval is the jackknife's over BLOCKS stretches of records, so that records that resemble their neighbours are
    not counted as more than they are. Records that are not finite are left out; under two BLOCKS of them nothing is
    known of the error.
    """
    count = replica_norms.shape[1]
    small2 = np.nansum(np.square(replica_norms * count, dtype=np.float64), axis=2).mean(1)
    big2 = np.nansum(np.square(gradient_norms, dtype=np.float64), axis=1)
    big, small = examples, examples / count
    trace = (small2 - big2) / (1 / small - 1 / big)
    gradient2 = (big * big2 - small * small2) / (big - small)
    known = np.isfinite(trace) & np.isfinite(gradient2) & (big2 > 0)
    pairs = np.stack([trace[known], gradient2[known]])
    if not pairs.shape[1]:
        return Noise(math.nan, math.nan, math.nan)
    scale = _ratio(pairs.sum(1))
    if pairs.shape[1] < 2 * BLOCKS:
        return Noise(scale, math.nan, math.nan)
    sums = np.stack([block.sum(1) for block in np.array_split(pairs, BLOCKS, axis=1)])
    without = np.array([_ratio(sums.sum(0) - one) for one in sums])
    error = math.sqrt((BLOCKS - 1) / BLOCKS * np.square(without - without.mean()).sum())
    return Noise(scale, max(0.0, scale - _T_95 * error), scale + _T_95 * error)


def _ratio(sums: np.ndarray) -> float:
    trace, gradient2 = sums
    return float(trace / gradient2) if gradient2 > 0 else math.nan
