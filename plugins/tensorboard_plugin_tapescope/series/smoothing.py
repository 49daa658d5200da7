"""Smoothing of noisy series by TensorBoard's own debiased exponential moving average."""

from typing import Any

import numpy as np

MAX_WEIGHT = 0.999
"""Largest weight of the slider, as in TensorBoard's Scalars tab."""

STATES = ("weight_norm", "dead_share", "dormant_share")
"""Columns of a state, which the noise of a batch does not reach: they are drawn as recorded."""


FEW_RECORDS = 30
"""Fewer records are drawn as recorded: the lag of the average would be a good part of the figure."""


def smoothing_weight(column: str, weight: float, records: int) -> float:
    """Return the weight with which a column is smoothed: 0 for a state, which is not noisy, or for few records."""
    return 0.0 if column in STATES or records < FEW_RECORDS else weight


def smooth(values: np.ndarray, weight: Any, scale: str = "linear") -> np.ndarray:
    """Return series as a smoothed line shows them.

    On a logarithmic scale the logarithms are averaged. The average of the values themselves would draw a drop by five
    decades as a straight line down over many records.

    Args:
      values: [T, N].
      weight: from 0, which changes nothing, to below 1: one number, or one for each series, [N].
      scale: the scale of the column, see `metadata.Column`.

    Returns:
      float64 [T, N]. On a logarithmic scale it is NaN where a value is not positive.
    """
    if scale != "log":
        return debiased_average(values, weight)
    positive = np.where(values > 0, values, np.nan).astype(np.float64)
    return np.where(np.asarray(weight) > 0, 10 ** debiased_average(np.log10(positive), weight), positive)


def debiased_average(values: np.ndarray, weight: Any) -> np.ndarray:
    """Return the exponential moving average along the first axis, divided by the sum of its weights.

    The recurrence is that of `classicSmoothing` in TensorBoard's line chart. After n finite values x it is
    m_n / (1 - w^n) with m_n = w m_(n-1) + (1 - w) x_n. A value that is not finite stays what it is, so that a gap stays
    a gap, and the average goes on behind it.

    Args:
      values: [T, N].
      weight: w, from 0 to below 1: one number, or one for each series, [N].
    """
    smoothed = np.array(values, np.float64)
    average = np.zeros(smoothed.shape[1:])
    total = np.zeros(smoothed.shape[1:])  # 1 - w^n
    for record in smoothed:
        finite = np.isfinite(record)
        average[finite] = (weight * average + (1 - np.asarray(weight)) * record)[finite]
        total[finite] = (weight * total + (1 - np.asarray(weight)))[finite]
        record[finite] = average[finite] / total[finite]
    return smoothed
