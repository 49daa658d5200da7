"""The cosine between the gradients of consecutive steps, from a sample of their elements.

The sample of each recorded step is kept here, on the host, until the next one: the measured program holds no state. See
docs/decisions/0064-cosine-of-consecutive-gradients.md.

Letters: S sampled elements, V variables.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_PREFIX = "last_gradient/"


class _Gradient(NamedTuple):
    """The parts of one step's gradient that are kept."""

    step: int
    sample: np.ndarray
    """Elements at fixed places, float32 [S, V]; NaN where a variable has fewer."""
    norms: np.ndarray
    """L2 norms of the whole gradients, [V]."""


class ConsecutiveGradients:
    """The gradient of the last recorded step, with which that of the next one is compared.

    Args:
      state: what `state` returned, where a run goes on; may hold more.
    """

    def __init__(self, state: Mapping[str, np.ndarray] | None = None):
        self._last: _Gradient | None = None
        fields = {name: (state or {}).get(_PREFIX + name) for name in _Gradient._fields}
        if all(value is not None for value in fields.values()):
            kept: dict[str, Any] = fields
            self._last = _Gradient(**{**kept, "step": int(kept["step"])})

    def state(self) -> dict[str, np.ndarray]:
        """Return what a later object needs to go on."""
        return {} if self._last is None else {_PREFIX + k: np.asarray(v) for k, v in self._last._asdict().items()}

    def add(self, step: int, sample: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, float]:
        """Take the gradient of the next recorded step.

        Args:
          step: its number.
          sample: float32 [S, V].
          norms: [V]; NaN where a variable has no gradient.

        Returns:
          The cosine to the gradient of the step before, by variable, [V], and of the whole gradient. NaN where that
          step was not recorded, or a gradient is absent or 0.
        """
        before = self._last
        self._last = _Gradient(step, sample, norms)
        unknown = np.full(sample.shape[-1], np.nan)
        if before is None or before.step != step - 1 or len(before.sample) != len(sample):
            return unknown, math.nan
        missing = [(0, 0), (0, sample.shape[1] - before.sample.shape[1])]  # variables that this step has added
        cosines = _cosines(np.pad(before.sample, missing, constant_values=np.nan), sample)
        norms_before = np.pad(before.norms, missing[1], constant_values=np.nan)
        return cosines, _whole_cosine(cosines, norms_before.astype(float), norms.astype(float))


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the cosine of the columns of two samples, [S, V] to [V], over what is finite in both."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = (np.where(known, t, 0).astype(np.float64) for t in (x, y))
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return (x * y).sum(0) / np.sqrt(np.square(x).sum(0) * np.square(y).sum(0))


def _whole_cosine(cosines: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
    """Return the cosine over all variables whose own one is known, or which have a gradient of 0."""
    with np.errstate(all="ignore"):  # of a norm that is infinite, or whose square is
        product = before * after
        known = np.isfinite(cosines) | (product == 0)
        squares = np.square(before[known]).sum() * np.square(after[known]).sum()
        total = np.where(product == 0, 0, cosines * product)[known].sum()
        return float(total / math.sqrt(squares)) if squares > 0 else math.nan
