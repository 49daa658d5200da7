"""The number of examples that a run has trained on, from those of its recorded steps."""

import math
from collections.abc import Mapping

import numpy as np

_NAME = "examples_seen"
"""Name of the array in the state: step, examples up to and with it, and the most of any step."""


class ExamplesSeen:
    """A count of examples.

    A step between two records is taken to have had as many as the largest recorded one: the batches of a data set have
    one size, but the last of an epoch. The count is exact where every step is recorded.

    Args:
      state: what `state` returned, where a run goes on; may hold more.
    """

    def __init__(self, state: Mapping[str, np.ndarray]):
        step, self._seen, self._most = (float(number) for number in state.get(_NAME, (-1.0, 0.0, 0.0)))
        self._step = int(step)

    def state(self) -> dict[str, np.ndarray]:
        """Return what a later object needs to go on."""
        return {_NAME: np.array([self._step, self._seen, self._most])}

    def add(self, step: int, examples: float, seen: float = math.nan) -> float:
        """Return the number of examples up to and with a step.

        Args:
          step: its number.
          examples: of this step; NaN if that is not known.
          seen: what the program says; NaN if it says nothing.
        """
        if not math.isnan(examples):
            self._most = max(self._most, examples)
        if math.isnan(seen):
            seen = self._seen + (step - self._step - 1) * self._most + examples
        if not math.isnan(seen):
            self._step, self._seen = step, seen
        return seen
