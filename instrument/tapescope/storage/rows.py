"""The rows of a run: the variables, layers and heads of all its records, matched by name.

A step may measure other rows than the one before: an episode is longer, a block is left out, a layer is trained from
now on. Rows are only ever added, behind those that are there. A record is NaN in the rows that its step does not have.
The first record fixes the names in the description of each tag; where rows were added, the family `rows` has all. A
model that was built again or loaded, and goes on with a run, keeps the names of its rows there.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapescope.capture.selection import Names, merge_names
from tapescope.statistics import reading as readings
from tapescope.statistics.replicas import are_few
from tapescope.storage import event_values
from tapescope.storage.event_values import Value
from tapescope.storage.resume import are_names_of_one_model
from tapescope.storage.run import Run
from tensorboard_plugin_tapescope.metadata import ROWS_SCHEMA, Family
from tensorboard_plugin_tapescope.series import flow_path, tables

_FAMILIES = ("variables", "layers", "heads", "residual")
_INDEX_COLUMNS = [readings.STEP_COLUMNS.index(f"first_nonfinite_{way}") for way in ("forward", "backward")]


class RunRows:
    """The rows of one run.

    Args:
      names: the rows of the first record.
      continued: those of the first record of the program that goes on with the run, where one did.
    """

    def __init__(self, names: Names, continued: Names | None = None):
        self.first = names
        """The rows of the first record, in the descriptions of all tags."""
        self.names = names
        """All rows so far."""
        self._ended: set[str] = set()
        """Layers whose number of units has changed: their units are not recorded any more."""
        self._recorded: dict[str, dict[str, str]] = {family: {} for family in _FAMILIES}
        """Name in the run of each row that the program names otherwise."""
        if continued is not None and _are_rows_of_one_model(names, continued):
            for family, found in self._recorded.items():
                pairs = zip(getattr(continued, family), getattr(names, family), strict=True)
                found.update((name, recorded) for name, recorded in pairs if name != recorded)

    def match(self, names: Names) -> Names:
        """Return the rows of a record of the program by the names that they have in the run."""
        if not any(self._recorded.values()):
            return names
        return names._replace(**{f: self.match_names(getattr(names, f), f) for f in _FAMILIES})

    def match_names(self, names: Sequence[str], family: str = "variables") -> tuple[str, ...]:
        """Return the names that rows of a family have in the run."""
        return tuple(self._recorded[family].get(name, name) for name in names)

    def add(self, names: Names) -> bool:
        """Add the rows of a record, and return whether the run has other rows or units than before."""
        if names == self.names:
            return False
        before = self.names, len(self._ended)
        self.names = merge_names(self.names, names)
        units = dict(zip(self.names.layers, self.names.units, strict=True))
        for layer, number in zip(names.layers, names.units, strict=True):
            if number != units[layer]:
                self._ended.add(layer)
        return (self.names, len(self._ended)) != before

    def describe(self, skipped: Mapping[str, str]) -> Value:
        """Return the family `rows`."""
        content = {**self.names._asdict(), "skipped": dict(skipped)}
        return event_values.text(Family("rows", schema=ROWS_SCHEMA), json.dumps(content))

    def widen(self, reading: Any, names: Names) -> Any:
        """Return a reading with the columns of all rows of the run.

        Args:
          reading: from `summaries.to_host`.
          names: its rows, which were added before.

        Returns:
          The reading; where it does not have a row, it is NaN, and its counts are 0.
        """
        everything = self.names
        if not self._ended and all(getattr(names, f) == getattr(everything, f) for f in _FAMILIES):
            return reading
        variables = _positions(names.variables, everything.variables)
        layers = _positions(names.layers, everything.layers)
        number_of_variables = len(everything.variables)
        number_of_layers = len(everything.layers)
        step = np.array(reading.step)
        for column in _INDEX_COLUMNS:
            if step[column] >= 0:
                step[column] = layers[int(step[column])]
        units, elements = self._widen_units(reading, names, layers)
        return reading._replace(
            variables=_widen(reading.variables, variables, number_of_variables),
            layers=_widen(reading.layers, layers, number_of_layers),
            step=step,
            sizes=elements,
            units=units,
            gradient_counts=_widen_counts(reading.gradient_counts, variables, number_of_variables),
            activation_counts=_widen_counts(reading.activation_counts, layers, number_of_layers),
            replicas=_widen_replicas(reading.replicas, variables, number_of_variables),
            heads=_widen(reading.heads, _positions(names.heads, everything.heads), len(everything.heads)),
            residual=_widen(
                reading.residual, _positions(names.residual, everything.residual), len(everything.residual)
            ),
            gradient_sample=_widen(reading.gradient_sample, variables, number_of_variables),
        )

    def _widen_units(self, reading: Any, names: Names, layers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = np.cumsum(self.names.units, dtype=int)
        own_ends = np.cumsum(names.units, dtype=int)
        units = np.zeros([len(reading.units), ends[-1] if len(ends) else 0], np.float32)
        elements = np.zeros(len(self.names.layers), np.float32)
        for i, (name, size) in enumerate(zip(names.layers, names.units, strict=True)):
            if name not in self._ended:
                end = ends[layers[i]]
                units[:, end - size : end] = reading.units[:, own_ends[i] - size : own_ends[i]]
                elements[layers[i]] = reading.elements[i]
        return units, elements


def _are_rows_of_one_model(names: Names, others: Names) -> bool:
    """Return whether the rows are the same, in the same order, but for what Keras adds to names."""
    return names.units == others.units and all(
        are_names_of_one_model(getattr(names, family), getattr(others, family)) for family in _FAMILIES
    )


def _positions(names: tuple[str, ...], everything: tuple[str, ...]) -> np.ndarray:
    index = {name: i for i, name in enumerate(everything)}
    return np.array([index[name] for name in names], int)


def _widen(columns: np.ndarray | None, rows: np.ndarray, size: int) -> np.ndarray | None:
    if columns is None:
        return None
    wide = np.full([*columns.shape[:-1], size], np.nan, columns.dtype)
    wide[..., rows] = columns
    return wide


def _widen_replicas(columns: np.ndarray | None, rows: np.ndarray, size: int) -> np.ndarray | None:
    if columns is None or not are_few(columns.shape[1]):
        return columns
    return _widen(columns, rows, size)


def _widen_counts(counts: np.ndarray | None, rows: np.ndarray, size: int) -> np.ndarray | None:
    if counts is None:
        return None
    wide = np.zeros([size, counts.shape[1]], counts.dtype)
    wide[rows] = counts
    return wide


def recorded_rows(run: Run) -> Names:
    """Return the rows of the records of a run, which has one or more."""
    family = Family("layers", names=run.layers, details=run.details)
    return Names(
        variables=run.variables,
        layers=run.layers,
        activations=tuple(tables.activations(family)),
        units=tuple(tables.units(family)),
        layer_variables=tuple(map(tuple, tables.owned_variables(family))),
        sources=tuple(map(tuple, flow_path.valid_sources(run.details.get("sources"), len(run.layers)))),
        heads=run.heads,
        residual=run.residual,
    )
