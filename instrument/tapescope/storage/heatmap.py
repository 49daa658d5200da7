"""The numbers of a small heatmap of a run: one column of every layer over its records, for the sinks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

COLUMN = "delta_norm"
"""It shows where the gradient vanishes or explodes, and when."""
MAX_RECORDS = 512
"""Records that are kept. Above, every second is left out."""
FIRST_RECORDS = 16
"""Records of the first heatmap. The next ones come at twice as many each."""


class Heatmap(NamedTuple):
    """One column of all layers over the records of a run, thinned."""

    column: str
    steps: np.ndarray
    """int64 [T], rising."""
    layers: tuple[str, ...]
    values: np.ndarray
    """float32 [T, L]; NaN where a record does not have a layer."""


class HeatmapHistory:
    """The records of a run so far, as one heatmap."""

    def __init__(self) -> None:
        self._records = 0
        self._stride = 1
        self._steps: list[int] = []
        self._rows: list[np.ndarray] = []
        self._layers: tuple[str, ...] = ()
        self._shown = 0
        """Records of the last heatmap that was returned."""

    def add(self, step: int, layers: Sequence[str], values: np.ndarray) -> Heatmap | None:
        """Add a record.

        Args:
          step: its number.
          layers: L names. Later records may have more, at the end.
          values: of COLUMN, float32 [L].

        Returns:
          The heatmap if one is due, after 16, 32, 64, ... records; else None.
        """
        if self._records % self._stride == 0:
            self._steps.append(step)
            self._rows.append(np.asarray(values, np.float32))
            self._layers = tuple(layers)
        self._records += 1
        if len(self._steps) > MAX_RECORDS:
            del self._steps[1::2], self._rows[1::2]
            self._stride *= 2
        is_due = self._records >= FIRST_RECORDS and self._records & (self._records - 1) == 0
        return self.latest() if is_due else None

    def latest(self) -> Heatmap | None:
        """Return the heatmap of all records so far; None if the last one had them, or there are fewer than two."""
        if self._records == self._shown or len(self._steps) < 2:
            return None
        self._shown = self._records
        values = np.full([len(self._steps), len(self._layers)], np.nan, np.float32)
        for row, record in zip(values, self._rows, strict=True):
            row[: len(record)] = record
        return Heatmap(COLUMN, np.array(self._steps, np.int64), self._layers, values)
