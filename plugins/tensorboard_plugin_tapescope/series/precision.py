"""Numbers that are read off recorded histograms: shares below the range of a narrow format, RMS and kurtosis.

The bins' edges include every power of two from 2^LOW_EXPONENT to 2^HIGH_EXPONENT, so shares below one are exact counts.
"""

from collections.abc import Mapping

import numpy as np

from tensorboard_plugin_tapescope import metadata

SMALLEST_NORMAL = dict(zip(metadata.NARROW_FORMATS, (-126, -14, -6, -14), strict=True))
"""Exponent of the smallest normal number of each format: IEEE 754 for float16, Micikevicius et al., "FP8 Formats for
Deep Learning", 2022, for the two of eight bits."""
LEAST_SPREAD = 0.5
"""Standard deviations in which the mean must lie from 0, inverted: nearer together, bins of half an octave say nothing
of the shape."""
_MIDDLE = metadata.SIDE_BINS
_POINTS = 16
"""Points of each bin over which the fourth power is averaged."""


def shares_below_normal(counts: np.ndarray, zeros: np.ndarray) -> dict[str, np.ndarray]:
    """Return the share of elements that are not 0 and below the smallest normal number, [N] by format.

    Args:
      counts: histograms, [N, B].
      zeros: number of elements of each that are exactly 0, [N].

    Returns:
      NaN where there is no element. Where a format's smallest normal is below the histogram's range, 0 if no element
      lies below that range, and else NaN.
    """
    counts = np.asarray(counts, np.float64)
    total: np.ndarray = counts.sum(-1)
    shares: dict[str, np.ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, exponent in SMALLEST_NORMAL.items():
            width = max(0, exponent - metadata.LOW_EXPONENT) * metadata.BINS_PER_OCTAVE
            below: np.ndarray = counts[..., _MIDDLE - width : _MIDDLE + width + 1].sum(-1)
            number: np.ndarray = np.clip(np.rint(below - zeros), 0.0, None)
            if exponent < metadata.LOW_EXPONENT:
                number = np.where(number > 0, np.nan, number)
            shares[name] = np.where(total > 0, number / total, np.nan)
    return shares


def root_mean_square(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return the root mean square of elements with this mean and standard deviation."""
    return np.hypot(np.asarray(mean, np.float64), np.asarray(std, np.float64))


def kurtosis(
    counts: np.ndarray, mean: np.ndarray, std: np.ndarray, smallest: np.ndarray, largest: np.ndarray
) -> np.ndarray:
    """Return an estimate of the kurtosis, the fourth standardized moment: 3 for a normal distribution, [N].

    Within a bin the density is taken for exponential, with the mean slope to those of its neighbours that have counts.

    Args:
      counts: histograms, [N, B].
      mean: of the elements, [N].
      std: standard deviation, [N].
      smallest: of the elements, [N].
      largest: of the elements, [N].

    Returns:
      NaN where all elements are equal, the mean is more than 1 / LEAST_SPREAD deviations from 0, or an element lies
      beyond the bins.
    """
    counts = np.asarray(counts, np.float64)
    mean, std = (np.asarray(x, np.float64) for x in (mean, std))
    filled = counts > 0
    rows = np.nonzero(filled)[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        points, weights = _points_in_bins(counts, np.asarray(smallest), np.asarray(largest))
        square = np.square((points - mean[rows, None]) / std[rows, None])
        fourth = (weights * square * square).sum(-1)  # much faster than a power
        estimate = np.bincount(rows, counts[filled] * fourth, len(counts)) / counts.sum(-1)
    known = (std > LEAST_SPREAD * np.abs(mean)) & (counts[:, 0] + counts[:, -1] == 0)
    return np.where(known, estimate, np.nan)


def _points_in_bins(counts: np.ndarray, smallest: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return points in each of the F bins that have counts, [F, P], and their weights, which sum to 1.

    Args:
      counts: histograms, [N, B].
      smallest: of the elements, [N]: no point lies below.
      largest: of the elements, [N].
    """
    edges = metadata.bin_edges()
    begins = np.maximum(edges[:-1], smallest[:, None])
    widths = np.maximum(np.minimum(edges[1:], largest[:, None]) - begins, 0.0)
    centres = begins + widths / 2
    filled = counts > 0
    dense = filled & (widths > 0)
    log_density = np.where(dense, np.log(np.maximum(counts, 1.0) / widths), np.nan)
    steps = np.diff(log_density) / np.diff(centres)  # NaN beside an empty bin
    steps[:, _MIDDLE - 1 : _MIDDLE + 1] = 0.0  # the zeros in the middle are no density
    sides = np.pad(steps, [(0, 0), (1, 1)], constant_values=np.nan)
    both = np.stack([sides[:, :-1], sides[:, 1:]])
    slopes = np.nan_to_num(both).sum(0) / np.maximum(np.isfinite(both).sum(0), 1)
    offsets = (np.arange(_POINTS) + 0.5) / _POINTS - 0.5
    exponents = (slopes * widths)[filled][:, None] * offsets
    weights = np.exp(exponents - exponents.max(-1, keepdims=True))
    return centres[filled][:, None] + widths[filled][:, None] * offsets, weights / weights.sum(-1, keepdims=True)


def columns_of(
    kind: str, counts: np.ndarray | None, zero_share: np.ndarray, nonfinite: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Return the columns of shares below the smallest normal numbers, [N] by column; NaN without a histogram.

    Args:
      kind: "gradient" or "activation".
      counts: histograms of the finite elements, [N, B], or None.
      zero_share: share of all elements that are 0, [N].
      nonfinite: number of elements that are not finite, [N].
    """
    if counts is None:
        return {f"{kind}_below_{name}": np.full(len(zero_share), np.nan) for name in SMALLEST_NORMAL}
    zeros = np.asarray(zero_share, np.float64) * (np.asarray(counts, np.float64).sum(-1) + nonfinite)
    return {f"{kind}_below_{name}": share for name, share in shares_below_normal(counts, zeros).items()}
