"""Run: a run read back from its event files, by the names that the wire has."""

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.util import tensor_util

from tapescope import plotting
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family


class Series(NamedTuple):
    """All tensors of one tag."""

    family: Family
    steps: np.ndarray
    """int64 [T], rising."""
    wall_times: np.ndarray
    """Seconds since 1970, float64 [T]."""
    tensors: list[np.ndarray]


class Run:
    """What one directory of event files holds. Read at once, and not again: make a new one to see more.

    `run["gradient_norm"]` is a column by its name: float32 `[T, V]` for variables, `[T, L]` for layers, float64 `[T]`
    for the step's own, `[T, R, V]` for the replicas'. Histograms are int32 `[T, V or L, B]`, `first_nonfinite` is
    `[T, 2]`, and `unit_state` uint8 `[W, sum U]` over the W steps at which a window of examples closed.

    Raises FileNotFoundError where there is no event file, and ValueError where the run has no tapescope records or is
    of a newer schema.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        self.logdir = os.fspath(logdir)
        files = event_files(self.logdir)
        if not files:
            raise FileNotFoundError(
                f"`logdir` ({self.logdir}) has no event file; a run is written by tapescope.Recorder"
            )
        self._series = _read(files)
        if not self._series:
            raise ValueError(f"`logdir` ({self.logdir}) has event files, but none with tapescope's records")

    @property
    def steps(self) -> np.ndarray:
        """The T recorded steps, int64 [T]."""
        return self._family("variables").steps

    @property
    def wall_times(self) -> np.ndarray:
        """When each was recorded, seconds since 1970, float64 [T]."""
        return self._family("variables").wall_times

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the V trainable variables."""
        return self._family("variables").family.names

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the L layers, in forward order."""
        return self._family("layers").family.names if "layers" in self._series else ()

    @property
    def details(self) -> dict[str, Any]:
        """What is known of the layers: "units", "activations", "variables" (indices of each one's own), "skipped"."""
        return self._family("layers").family.details if "layers" in self._series else {}

    @property
    def status(self) -> dict[str, Any]:
        """How the run stands: "state" ("training" or "ended"), "reason", and what it was started with."""
        return json.loads(self._family("status").tensors[-1].item()) if "status" in self._series else {}

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What the rules found while it trained."""
        series = self._series.get("findings")
        return [json.loads(text) for text in series.tensors[-1]] if series else []

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that `run[...]` knows."""
        families = [s.family for s in self._series.values()]
        whole = [f.family for f in families if f.family.endswith("_histogram")]
        named = [column for f in families for column in f.columns]
        return (*named, *whole, *(("unit_state",) if "units" in self._series else ()))

    def __getitem__(self, column: str) -> np.ndarray:
        if column == "first_nonfinite":
            return np.stack([self["first_nonfinite_forward"], self["first_nonfinite_backward"]], axis=1)
        if column in self._series and column.endswith("_histogram"):
            return np.stack(self._series[column].tensors)
        if column == "unit_state" and "units" in self._series:
            return np.stack(self._series["units"].tensors)
        for series in self._series.values():
            if column in series.family.columns:
                return _column(series, column)
        raise KeyError(f"no column {column!r} in {self.logdir}; it has: {', '.join(self.columns)}")

    def units(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps [W] at which a window of examples closed, and each unit's state then, uint8 [W, U]."""
        series = self._family("units")
        if layer not in series.family.names:
            raise KeyError(f"no layer {layer!r} in {self.logdir}; it has: {', '.join(series.family.names)}")
        index, sizes = series.family.names.index(layer), series.family.details["units"]
        start = sum(sizes[:index])
        return series.steps, self["unit_state"][:, start : start + sizes[index]]

    def frame(self, column: str) -> Any:
        """A pandas DataFrame: a row a step, a column a variable or layer. Needs pandas."""
        import pandas

        values = self[column]
        if values.ndim > 2:
            raise ValueError(f"`column` ({column!r}) has {values.ndim} axes; a DataFrame has two")
        index = pandas.Index(self.steps, name="step")
        return pandas.DataFrame(values, index=index, columns=[column] if values.ndim == 1 else list(self.rows(column)))

    def plot(self, column: str, row: str | None = None, dark: bool = False) -> Any:
        """The tab's figure of a column as a `plotly.graph_objects.Figure`; see `tapescope.plotting.plot`."""
        from plotly import graph_objects

        return graph_objects.Figure(plotting.plot(self, column, row, dark))

    def _repr_html_(self) -> str:
        return plotting.summary_html(self)

    def rows(self, column: str) -> tuple[str, ...]:
        """The names along the rows of a column: the layers or the variables; none for a column of the steps."""
        for series in self._series.values():
            if column == series.family.family or column in series.family.columns:
                return series.family.names
        raise KeyError(f"no column {column!r} in {self.logdir}; it has: {', '.join(self.columns)}")

    def _family(self, name: str) -> Series:
        if name not in self._series:
            raise KeyError(f"{self.logdir} has no {name}; it has: {', '.join(self._series)}")
        return self._series[name]


def runs(logdir: str | os.PathLike[str]) -> list[str]:
    """The directories at and below `logdir` that hold event files, sorted."""
    return sorted(directory for directory, _, _ in os.walk(logdir) if event_files(directory))


def event_files(directory: str | os.PathLike[str]) -> list[str]:
    """The event files right in a directory, in the order they were begun."""
    if not os.path.isdir(directory):
        return []
    return sorted(os.path.join(directory, name) for name in os.listdir(directory) if ".tfevents." in name)


def _read(files: list[str]) -> dict[str, Series]:
    points: dict[str, dict[int, tuple[float, np.ndarray]]] = {}
    families: dict[str, Family] = {}
    for step, wall_time, value in _values(files):
        family = value.tag.removeprefix(f"{metadata.PLUGIN_NAME}/")
        if family not in families:
            families[family] = metadata.parse(value.metadata.plugin_data.content)
            points[family] = {}
        of = points[family]
        # A step at or below the last one means that the program was started again from there.
        for late in [s for s in of if s >= step]:
            del of[late]
        of[step] = wall_time, tensor_util.make_ndarray(value.tensor)
    series = {}
    for name, family in families.items():
        of = points[name]
        wall_times = np.array([t for t, _ in of.values()])
        series[name] = Series(family, np.array(list(of), np.int64), wall_times, [tensor for _, tensor in of.values()])
    return series


def _values(files: list[str]) -> Iterator[tuple[int, float, Any]]:
    prefix = f"{metadata.PLUGIN_NAME}/"
    for path in files:
        for event in event_file_loader.EventFileLoader(path).Load():
            for value in event.summary.value:
                if value.tag.startswith(prefix):
                    yield event.step, event.wall_time, value


def _column(series: Series, column: str) -> np.ndarray:
    index, tensors = series.family.columns.index(column), np.stack(series.tensors)
    count = series.family.details.get("replicas")
    if count is None:
        return tensors[:, index]
    return tensors.reshape(len(tensors), -1, count, tensors.shape[-1])[:, index]
