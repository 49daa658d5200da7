"""The unit ledger: what each unit did over a stated number of examples.

Windows follow one another and do not overlap: a window takes the examples of measured steps until it has at least
`window_examples`, then it closes with a verdict on every unit, which stands until the next one closes. Before the first
has closed there is no verdict. A batch is never split, so a window holds whole batches: `examples` says exactly how
many. Plain NumPy on the host: the model gets no state, and replicas were summed before.

Dormant units: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", 2023, with tau = 0.025.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tapescope.statistics import layers as layer_statistics
from tensorboard_plugin_tapescope.metadata import UNIT_STATES

DORMANT_SHARE = 0.025

_CODE = {name: code for code, name in enumerate(UNIT_STATES)}


class Verdict(NamedTuple):
    """What a closed window says."""

    examples: int
    """In the window."""
    state: np.ndarray
    """Index into UNIT_STATES by unit, uint8 [sum U]."""
    counts: dict[str, np.ndarray]
    """`units_dead` and the like, float32 [L]."""


class Ledger:
    """Adds up `outputs.UNIT_ROWS` of measured steps, window by window."""

    def __init__(self, units: Sequence[int], window_examples: int):
        self.window_examples = window_examples
        self.verdict: Verdict | None = None
        self._layer = np.repeat(np.arange(len(units)), units)
        self._layers = len(units)
        self._units = np.asarray(units, np.float64)
        self._start()

    def add(self, rows: np.ndarray, elements: np.ndarray, examples: int) -> bool:
        """Adds one step: `rows` float32 [5, sum U], `elements` [L]. True where that closes a window."""
        self._rows += rows
        self._elements += elements / self._units
        self._examples += examples
        if self._examples < self.window_examples:
            return False
        self.verdict = self._close()
        self._start()
        return True

    def state(self) -> dict[str, np.ndarray]:
        """The window that is open and the last verdict, for `restore`."""
        state = {"rows": self._rows, "elements": self._elements, "examples": np.array(self._examples)}
        if self.verdict:
            verdict = {"examples": self.verdict.examples, "state": self.verdict.state, **self.verdict.counts}
            state |= {f"verdict_{name}": np.array(value) for name, value in verdict.items()}
        return {name: array.copy() for name, array in state.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on where the Ledger stood whose `state` this is; it must be of the same units."""
        self._rows, self._elements = state["rows"].copy(), state["elements"].copy()
        self._examples = int(state["examples"])
        verdict = {name[8:]: value for name, value in state.items() if name.startswith("verdict_")}
        if verdict:
            self.verdict = Verdict(int(verdict.pop("examples")), verdict.pop("state"), verdict)

    def _start(self) -> None:
        self._rows = np.zeros([len(layer_statistics.UNIT_ROWS), len(self._layer)])
        self._elements = np.zeros(self._layers)
        self._examples = 0

    def _close(self) -> Verdict:
        of = dict(zip(layer_statistics.UNIT_ROWS, self._rows, strict=True))
        every = self._elements[self._layer]
        dead = (of["zero"] == every) | (of["flat"] == every)
        saturated = of["low"] + of["high"] == every
        mean = of["absolute_sum"] / every
        layer_mean = self._count(mean) / self._units
        dormant = mean < DORMANT_SHARE * layer_mean[self._layer]
        before = self.verdict
        revived = np.zeros_like(dead) if before is None else (before.state == _CODE["dead"]) & ~dead

        state = np.full(len(dead), _CODE["alive"], np.uint8)
        for where, name in (  # the later ones have the last word
            ((of["zero"] == 0) & (of["low"] + of["high"] == 0), "always_on"),
            (revived, "revived"),
            (dormant, "dormant"),
            (of["low"] == every, "saturated_low"),
            (of["high"] == every, "saturated_high"),
            (dead, "dead"),
        ):
            state[where] = _CODE[name]
        counts = {"units_dead": dead, "units_dormant": dormant, "units_saturated": saturated, "units_revived": revived}
        return Verdict(self._examples, state, {k: self._count(v).astype(np.float32) for k, v in counts.items()})

    def _count(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._layer, values, minlength=self._layers)
