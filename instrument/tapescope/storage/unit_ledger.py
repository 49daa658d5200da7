"""The unit ledger: the state of each unit over a given number of examples.

Windows follow one another and do not overlap. A window takes the examples of measured steps until it has at least
`window_examples`. Then it closes with a verdict on every unit, which holds until the next one closes. There is no
verdict before the first window has closed. A batch is never split, so a window holds whole batches, and `examples` is
their exact number. This is NumPy on the host: the model has no state for it, and replicas were summed before.

Dormant units: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", 2023, with tau = 0.025.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tapescope.statistics import layers as layer_statistics
from tensorboard_plugin_tapescope.metadata import UNIT_STATES

DORMANT_SHARE = 0.025
"""A unit is dormant when its mean absolute output is below this share of its layer's."""

_CODE = {name: code for code, name in enumerate(UNIT_STATES)}
_VERDICT_PREFIX = "verdict_"


class Verdict(NamedTuple):
    """Result of a closed window."""

    examples: int
    """Number of examples in the window."""
    state: np.ndarray
    """Index into UNIT_STATES by unit, uint8 [sum U]."""
    counts: dict[str, np.ndarray]
    """`units_dead`, `units_dormant`, `units_saturated` and `units_revived`, float32 [L]."""


class Ledger:
    """Sums of `UNIT_ROWS` of measured steps, window by window.

    Args:
      units: number of units U of each layer, [L].
      window_examples: smallest number of examples in a window.
    """

    def __init__(self, units: Sequence[int], window_examples: int):
        self.window_examples = window_examples
        self.verdict: Verdict | None = None
        """Of the last closed window."""
        self._set_units(units)
        self._open_window()

    def _set_units(self, units: Sequence[int]) -> None:
        self._layer_of_unit = np.repeat(np.arange(len(units)), units)
        self._layers = len(units)
        self._units = np.asarray(units, np.float64)

    def extend(self, units: Sequence[int]) -> None:
        """Add layers behind those that are there; they are unknown until they are called.

        Args:
          units: number of units U of each layer, also of those that are there.
        """
        layers = len(units) - self._layers
        if not layers:
            return
        self._set_units(units)
        missing = len(self._layer_of_unit) - self._rows.shape[1]
        self._rows = np.pad(self._rows, [(0, 0), (0, missing)])
        self._elements = np.pad(self._elements, [(0, layers)])
        if self.verdict is not None:
            unknown = np.full(layers, np.nan, np.float32)
            self.verdict = self.verdict._replace(
                state=np.pad(self.verdict.state, [(0, missing)]),
                counts={name: np.concatenate([counts, unknown]) for name, counts in self.verdict.counts.items()},
            )

    def add(self, rows: np.ndarray, elements: np.ndarray, examples: int) -> bool:
        """Add one step.

        Args:
          rows: `UNIT_ROWS` by unit, float32 [5, sum U].
          elements: number of output elements of each layer, [L].
          examples: number of examples in the batch.

        Returns:
          Whether the step closes a window.
        """
        self._rows += rows
        self._elements += elements / self._units
        self._examples += examples
        if self._examples < self.window_examples:
            return False
        self.verdict = self._close_window()
        self._open_window()
        return True

    def state(self) -> dict[str, np.ndarray]:
        """Return the open window and the last verdict, for `restore`."""
        state = {"rows": self._rows, "elements": self._elements, "examples": np.array(self._examples)}
        if self.verdict:
            state[f"{_VERDICT_PREFIX}examples"] = np.array(self.verdict.examples)
            state[f"{_VERDICT_PREFIX}state"] = self.verdict.state
            for name, counts in self.verdict.counts.items():
                state[f"{_VERDICT_PREFIX}{name}"] = counts
        return {name: array.copy() for name, array in state.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from the `state` of another Ledger of the same units.

        Raises:
          ValueError: the state is of other units.
        """
        shapes = tuple(np.shape(state[name]) for name in ("rows", "elements"))
        if shapes != (self._rows.shape, self._elements.shape):
            raise ValueError(
                f"the state must be of {self._rows.shape[1]} units in {self._layers} layers; got arrays of shapes "
                f"{shapes[0]} and {shapes[1]}"
            )
        self._rows = state["rows"].copy()
        self._elements = state["elements"].copy()
        self._examples = int(state["examples"])
        verdict = {
            name.removeprefix(_VERDICT_PREFIX): value
            for name, value in state.items()
            if name.startswith(_VERDICT_PREFIX)
        }
        if verdict:
            examples = int(verdict.pop("examples"))
            unit_state = verdict.pop("state")
            self.verdict = Verdict(examples, unit_state, counts=verdict)

    def _open_window(self) -> None:
        self._rows = np.zeros([len(layer_statistics.UNIT_ROWS), len(self._layer_of_unit)])
        self._elements = np.zeros(self._layers)
        self._examples = 0

    def _close_window(self) -> Verdict:
        """Return the verdict on every unit. Where several states hold, the last one below wins.

        A layer that was not called in the window has the state "unknown", and no counts.
        """
        sums = dict(zip(layer_statistics.UNIT_ROWS, self._rows, strict=True))
        elements = self._elements[self._layer_of_unit]
        dead = (sums["zero"] == elements) | (sums["flat"] == elements)
        saturated = sums["low"] + sums["high"] == elements
        called = self._elements > 0
        mean = sums["absolute_sum"] / np.maximum(elements, 1)
        layer_mean = self._sum_by_layer(mean) / self._units
        dormant = mean < DORMANT_SHARE * layer_mean[self._layer_of_unit]
        was_dead = np.zeros_like(dead) if self.verdict is None else self.verdict.state == _CODE["dead"]

        state = np.full(len(dead), _CODE["alive"], np.uint8)
        state[(sums["zero"] == 0) & (sums["low"] + sums["high"] == 0)] = _CODE["always_on"]
        state[was_dead & ~dead] = _CODE["revived"]
        state[dormant] = _CODE["dormant"]
        state[sums["low"] == elements] = _CODE["saturated_low"]
        state[sums["high"] == elements] = _CODE["saturated_high"]
        state[dead] = _CODE["dead"]
        state[~called[self._layer_of_unit]] = _CODE["unknown"]
        masks = {
            "units_dead": dead,
            "units_dormant": dormant,
            "units_saturated": saturated,
            "units_revived": was_dead & ~dead,
        }
        counts = {
            name: np.where(called, self._sum_by_layer(mask), np.nan).astype(np.float32) for name, mask in masks.items()
        }
        return Verdict(self._examples, state, counts)

    def _sum_by_layer(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._layer_of_unit, values, minlength=self._layers)
