"""Run: a run read back from its event files, by the names that the wire has."""

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tensorboard.backend.event_processing import event_file_loader

from tapescope.analysis import plotting
from tapescope.storage import event_file
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series.unit_lives import Lives, lives

FIRST_NONFINITE = ("first_nonfinite_forward", "first_nonfinite_backward")
FIRST_EVENTS = 20
"""Of a file, in which to look for tapescope's records; it begins with the status, hyperparameters and maybe a graph."""


class Series(NamedTuple):
    """All tensors of one tag."""

    family: Family
    steps: np.ndarray
    """int64 [T], rising."""
    wall_times: np.ndarray
    """Seconds since 1970, float64 [T]."""
    tensors: list[np.ndarray]


NO_RECORD = Series(Family("variables"), np.zeros(0, np.int64), np.zeros(0), [])
"""Of a run that ended before its first."""


class Run:
    """What one directory of event files holds. Read at once, and not again: make a new one to see more.

    `run["gradient_norm"]` is a column by its name: float32 `[T, V]` for variables, `[T, L]` for layers, float64 `[T]`
    for the step's own, `[T, R, V]` for the replicas'. Histograms are int32 `[T, V or L, B]`, `first_nonfinite` is
    `[T, 2]`, and `unit_state` uint8 `[W, sum U]` over the W steps at which a window of examples closed.

    Raises FileNotFoundError where there is no event file, and ValueError where the run has no tapescope records or is
    of a newer schema.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        self.logdir: str = os.fspath(logdir)
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
        """The T recorded steps, int64 [T]; T is 0 for a run that ended before its first record."""
        return self._series.get("variables", NO_RECORD).steps

    @property
    def wall_times(self) -> np.ndarray:
        """When each was recorded, seconds since 1970, float64 [T]."""
        return self._series.get("variables", NO_RECORD).wall_times

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
        """What is known of the layers: "units", "activations", "variables" (indices of each one's own), "skipped"; and
        of several replicas: "replicas", their number, and "faults", what Keras does otherwise with them.
        """
        known = [self._series[f].family.details for f in ("layers", "replicas") if f in self._series]
        return {name: detail for details in known for name, detail in details.items()}

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
            return np.stack([self[name] for name in FIRST_NONFINITE], axis=1)
        if column in self._series and column.endswith("_histogram"):
            return np.stack(self._series[column].tensors)
        if column == "unit_state" and "units" in self._series:
            return np.stack(self._series["units"].tensors)
        for series in self._series.values():
            if column in series.family.columns:
                return _column(series, column)
        raise self._no(column)

    def units(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """The steps [W] at which a window of examples closed, and each unit's state then, uint8 [W, U]."""
        series = self._family("units")
        if layer not in series.family.names:
            raise KeyError(f"no layer {layer!r} in {self.logdir}; it has: {', '.join(series.family.names)}")
        index, sizes = series.family.names.index(layer), series.family.details["units"]
        start = sum(sizes[:index])
        return series.steps, self["unit_state"][:, start : start + sizes[index]]

    def lives(self, layer: str) -> Lives:
        """How often each unit of a layer died and revived, and for how many windows it has been as it is now."""
        return lives(self.units(layer)[1])

    def frame(self, column: str) -> Any:
        """A pandas DataFrame of one column: a row a step, a column a variable or layer. Needs pandas.

        Two have two levels of columns: "unit_state" layer and unit (its rows are the steps at which a window closed),
        the replicas' columns replica and variable.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("`Run.frame` needs pandas: pip install pandas") from None
        values, series = self[column], self._holder(column)
        if column.endswith("_histogram"):
            raise ValueError(f"`column` ({column!r}) has 3 axes and a DataFrame 2: take run[{column!r}], an array")
        names: Any = list(series.family.names)
        if column == "first_nonfinite":
            names = list(FIRST_NONFINITE)
        elif column == "unit_state":
            units = [(n, u) for n, size in zip(names, series.family.details["units"], strict=True) for u in range(size)]
            names = pandas.MultiIndex.from_tuples(units, names=["layer", "unit"])
        elif values.ndim == 3:
            names = pandas.MultiIndex.from_product([range(values.shape[1]), names], names=["replica", "variable"])
            values = values.reshape(len(values), -1)
        elif values.ndim == 1:
            names = [column]
        return pandas.DataFrame(values, index=pandas.Index(series.steps, name="step"), columns=names)

    def plot(self, column: str, row: str | None = None, dark: bool = False) -> Any:
        """The tab's figure of a column as a `plotly.graph_objects.Figure`; see `tapescope.analysis.plotting.plot`."""
        from plotly import graph_objects

        return graph_objects.Figure(plotting.plot(self, column, row, dark))

    def __repr__(self) -> str:
        return f"<tapescope.Run {self.logdir!r}: {plotting.summary(self)}>"

    def _repr_html_(self) -> str:
        return plotting.summary_html(self)

    def rows(self, column: str) -> tuple[str, ...]:
        """The names along the rows of a column: the layers or the variables; none for a column of the steps."""
        return self._holder(column).family.names

    def _holder(self, column: str) -> Series:
        """The tensors that a column is part of."""
        whole = {"unit_state": "units", "first_nonfinite": "step"}
        for series in self._series.values():
            if series.family.family in (column, whole.get(column)) or column in series.family.columns:
                return series
        raise self._no(column)

    def _no(self, column: str) -> KeyError:
        return KeyError(f"no column {column!r} in {self.logdir}; it has: {', '.join(self.columns)}")

    def _family(self, name: str) -> Series:
        if name not in self._series:
            raise KeyError(f"{self.logdir} has no {name}; it has: {', '.join(self._series)}")
        return self._series[name]


def runs(logdir: str | os.PathLike[str]) -> list[str]:
    """The directories at and below `logdir` that a Run can be made of, sorted; those of other programs are left out.

    `[tapescope.Run(directory) for directory in tapescope.runs("runs")]` reads all of them. Raises FileNotFoundError
    where `logdir` is no directory.
    """
    if not os.path.isdir(logdir):
        raise FileNotFoundError(f"`logdir` ({os.fspath(logdir)}) is no directory")
    return sorted(directory for directory, _, _ in os.walk(logdir) if any(map(_is_ours, event_files(directory))))


def _is_ours(path: str) -> bool:
    """Whether an event file has tapescope's records: its status is among the first events, or at least a record."""
    return any(itertools.islice(_values([path], FIRST_EVENTS), 1))


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
        while of and next(reversed(of)) >= step:
            of.popitem()
        of[step] = wall_time, event_file.array(value.tag, value.tensor, step)
    return {name: _series(families[name], of) for name, of in points.items()}


def _series(family: Family, of: dict[int, tuple[float, np.ndarray]]) -> Series:
    return Series(
        family, np.array(list(of), np.int64), np.array([t for t, _ in of.values()]), [a for _, a in of.values()]
    )


def _values(files: list[str], most: int | None = None) -> Iterator[tuple[int, float, Any]]:
    """Step, wall time and value of what is tapescope's in the files, in the first `most` events of each."""
    prefix = f"{metadata.PLUGIN_NAME}/"
    for path in files:
        for event in itertools.islice(event_file_loader.EventFileLoader(path).Load(), most):
            for value in event.summary.value:
                if value.tag.startswith(prefix):
                    yield event.step, event.wall_time, value


def _column(series: Series, column: str) -> np.ndarray:
    index, tensors = series.family.columns.index(column), np.stack(series.tensors)
    count = series.family.details.get("replicas")
    if count is None:
        return tensors[:, index]
    return tensors.reshape(len(tensors), -1, count, tensors.shape[-1])[:, index]
