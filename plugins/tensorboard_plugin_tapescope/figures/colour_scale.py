"""The range of a heatmap's colours: it follows percentiles, and the colour bar marks what lies beyond it.

docs/decisions/0011-colour-scales-follow-percentiles.md has the reasons.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tensorboard_plugin_tapescope.figures.style import CIVIDIS, MINUS, VIRIDIS, even_stops
from tensorboard_plugin_tapescope.metadata import Column

PERCENTILES = (1, 99)
"""The range covers these percentiles of the finite values. Of up to 100 values it covers all."""

OUTLIER_FENCE = 1.5
"""A row is an outlier if its median lies so many interquartile ranges beyond the quartiles of all rows' medians."""

MIN_FENCE_DECADES = 2
MIN_FENCE_FACTOR = 4
"""But not if it is less far away than this: in decades, or on a diverging scale in multiples of the upper quartile."""

MIN_DECADES = 4
"""A logarithmic range up to so many decades shows all rows; outlier rows are cut off from a wider one only."""

MIN_NARROWING = {"log": 2.0, "diverging": 10.0}
"""Outlier rows are cut off where that makes the range narrower by this factor or more, by the column's scale."""

ROUND_FACTORS = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
"""Ends of a diverging scale, times a power of ten."""

MAX_TICKS = 8

SAMPLED_STEPS = 64
"""Steps from which a row's median is computed, evenly spaced."""

ZERO_BAND = 0.16
"""Least height of the band of exact zeros over that of the range: labels of both fit the lowest colour bar."""

ZERO_COLOUR = "#ff7ab6"
"""Colour of exact zeros on a logarithmic scale."""

DIVERGING = {
    False: ["#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b"],
    True: ["#6fb7ff", "#3d87c9", "#2c4a66", "#2b2c30", "#6b3f33", "#cf6a4c", "#ff9a76"],
}

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class ColourRange(NamedTuple):
    """The values that the colours of a heatmap cover."""

    scale: str
    """The column's scale, see `metadata.Column`."""
    low: float
    """Lower end; log10 of the value on a logarithmic scale."""
    high: float
    has_zeros: bool = False
    """Whether exact zeros of a logarithmic scale have their own band below `low`."""

    @property
    def bottom(self) -> float:
        """Lower end of the colour bar, with the band of zeros."""
        return self.low - max(1, ZERO_BAND * (self.high - self.low)) if self.has_zeros else self.low

    def beyond(self, values: np.ndarray) -> tuple[int, int]:
        """Return how many values lie below and above the range; zeros with their own band do not count as below."""
        finite = values[np.isfinite(values)]
        if self.scale == "log":
            finite = np.log10(finite[finite > 0])
        return int((finite < self.low).sum()), int((finite > self.high).sum())

    def note(self, values: np.ndarray) -> str:
        """Return a sentence about the values beyond the range, empty if there are none."""
        below, above = self.beyond(values)
        total = int(np.isfinite(values).sum())
        parts = []
        if below:
            parts.append(f"below {self._text(self.low)} ({_share(below, total)} of the values)")
        if above:
            parts.append(f"above {self._text(self.high)} ({_share(above, total)} of the values)")
        if not parts:
            return ""
        return f"Colours do not change {' and '.join(parts)}; hover over a cell for its exact value."

    def _text(self, end: float) -> str:
        if self.scale == "log":
            return f"10{str(int(end)).translate(_SUPERSCRIPTS)}"
        return _number(end)


def _share(count: int, total: int) -> str:
    percent = 100 * count / total
    return f"{percent:.0f} %" if percent >= 1 else "less than 1 %"


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)


def colour_range(column: Column, *grids: np.ndarray) -> ColourRange:
    """Return the range of colours for one or several heatmaps of a column.

    It is 0 to 1 for shares, whole decades for a logarithmic scale, symmetric about 0 for a diverging one, and 0 to
    the 99th percentile of the positive values otherwise. On a logarithmic or diverging scale, outlier rows do not
    count if they would take most of the range.

    Args:
      column: the column that the heatmaps show.
      *grids: values [T, N] of each heatmap, a column a row of the figure.
    """
    if column.scale == "fraction":
        return ColourRange("fraction", 0.0, 1.0)
    if column.scale == "log":
        return _log_range(grids)
    if column.scale == "diverging":
        return _diverging_range(grids)
    finite = _finite(grids)
    positive = finite[finite > 0]
    _, high = _percentiles(positive) if positive.size else (0.0, 0.0)
    return ColourRange(column.scale, 0.0, max(high, 1.0))


def _log_range(grids: Sequence[np.ndarray]) -> ColourRange:
    has_zeros = any((grid == 0).any() for grid in grids)
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = [np.log10(np.where(grid > 0, grid, np.nan)) for grid in grids]
    low, high = _whole_decades(decades)
    if high - low > MIN_DECADES:
        typical_low, typical_high = _whole_decades(_without_outlier_rows(decades, "log"))
        if (typical_high - typical_low) * MIN_NARROWING["log"] <= high - low:
            low, high = typical_low, typical_high
    return ColourRange("log", low, high, has_zeros)


def _whole_decades(decades: Sequence[np.ndarray]) -> tuple[int, int]:
    finite = _finite(decades)
    if not finite.size:
        return -1, 0
    low, high = _percentiles(finite)
    return math.floor(low), max(math.ceil(high), math.floor(low) + 1)


def _diverging_range(grids: Sequence[np.ndarray]) -> ColourRange:
    magnitudes = [np.abs(grid) for grid in grids]
    reach = _reach(magnitudes)
    typical = _reach(_without_outlier_rows(magnitudes, "diverging"))
    if 0 < typical * MIN_NARROWING["diverging"] <= reach:
        reach = typical
    reach = _round_up(reach) if reach else 1.0
    return ColourRange("diverging", -reach, reach)


def _round_up(value: float) -> float:
    """Return the next round number, so that ticks at its half are short and colours seldom change in a live run."""
    unit = 10.0 ** math.floor(math.log10(value))
    factor = next(factor for factor in ROUND_FACTORS if factor * unit >= value * (1 - 1e-6))
    return float(f"{factor * unit:.2g}")


def _reach(magnitudes: Sequence[np.ndarray]) -> float:
    finite = _finite(magnitudes)
    return _percentiles(finite)[1] if finite.size else 0.0


def _finite(grids: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([grid[np.isfinite(grid)] for grid in grids]) if grids else np.zeros(0)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    """Return PERCENTILES of values; "lower" and "higher" are the extremes themselves where there are few values."""
    low = np.percentile(values, PERCENTILES[0], method="lower")
    high = np.percentile(values, PERCENTILES[1], method="higher")
    return float(low), float(high)


def _without_outlier_rows(grids: Sequence[np.ndarray], scale: str) -> list[np.ndarray]:
    """Return the grids without the columns whose median is an outlier among the medians of all (Tukey's fences)."""
    medians = [_medians(grid) for grid in grids]
    known = _finite(medians)
    if not known.size:
        return list(grids)
    lower, upper = np.percentile(known, [25, 75])
    least = MIN_FENCE_DECADES if scale == "log" else MIN_FENCE_FACTOR * upper
    fence = max(OUTLIER_FENCE * (upper - lower), least)
    return [
        grid[:, (median >= lower - fence) & (median <= upper + fence)]
        for grid, median in zip(grids, medians, strict=True)
    ]


def _medians(grid: np.ndarray) -> np.ndarray:
    """Return the median of each column's finite values over some of the steps, NaN where there is none."""
    sample = grid[:: max(1, len(grid) // SAMPLED_STEPS)].astype(np.float64)
    sample = np.sort(np.where(np.isfinite(sample), sample, np.nan), axis=0)  # NaN is last
    count = np.isfinite(sample).sum(axis=0)
    if not len(sample):
        return np.full(grid.shape[1], np.nan)
    return np.take_along_axis(sample, np.maximum(count - 1, 0)[None] // 2, axis=0)[0]


def colour_stops(colours: ColourRange, dark: bool) -> list[list[Any]]:
    """Return Plotly's colour scale for a range."""
    if colours.scale == "diverging":
        return even_stops(DIVERGING[dark])
    stops = even_stops(VIRIDIS if colours.scale == "log" else CIVIDIS)
    if not colours.has_zeros:
        return stops
    share = (colours.low - colours.bottom) / (colours.high - colours.bottom)
    return [[0, ZERO_COLOUR], [share, ZERO_COLOUR], *([share + (1 - share) * at, colour] for at, colour in stops)]


def colour_ticks(colours: ColourRange, values: np.ndarray) -> dict[str, Any]:
    """Return the colour bar's ticks; an end beyond which `values` lie is marked with ≤ or ≥."""
    if colours.scale == "fraction":
        return {"tickformat": ".0%"}
    below, above = colours.beyond(values)
    if colours.scale == "log":
        return _log_ticks(colours, bool(below), bool(above))
    if not below and not above:
        return {}
    return _linear_ticks(colours, bool(below), bool(above))


def _log_ticks(colours: ColourRange, below: bool, above: bool) -> dict[str, Any]:
    low = int(colours.low)
    high = int(colours.high)
    stride = max(1, math.ceil((high - low) / MAX_TICKS))
    stride = next((even for even in range(stride, 2 * stride + 1) if (high - low) % even == 0), stride)
    decades = list(range(low, high + 1, stride))
    if above and decades[-1] != high:
        decades[-1] = high  # the mark belongs to the end
    texts = [f"10<sup>{decade}</sup>".replace("-", MINUS) for decade in decades]
    if below:
        texts[0] = f"≤ {texts[0]}"
    if above:
        texts[-1] = f"≥ {texts[-1]}"
    places = [float(decade) for decade in decades]
    if colours.has_zeros:
        places.insert(0, (colours.bottom + colours.low) / 2)
        texts.insert(0, "0")
    return {"tickvals": places, "ticktext": texts}


def _linear_ticks(colours: ColourRange, below: bool, above: bool) -> dict[str, Any]:
    places = np.linspace(colours.low, colours.high, 5).tolist()
    texts = [_number(place) for place in places]
    if below:
        texts[0] = f"≤ {texts[0]}"
    if above:
        texts[-1] = f"≥ {texts[-1]}"
    return {"tickvals": places, "ticktext": texts}
