"""A run read back from its event files, by the names of the wire contract. No TensorFlow is needed."""

import html
import importlib
import itertools
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tapescope.storage import event_reader
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.unit_lives import Lives, count_lives

FIRST_NONFINITE = ("first_nonfinite_forward", "first_nonfinite_backward")
FIRST_EVENTS = 20
"""Events of a file among which tapescope's first is. Hyperparameters and a graph may come before a record."""

_SEVERITY_COLORS = {"error": "#d93025", "warning": "#b06000", "info": "#5f6368"}
"""Colors that can be read on a light page and on a dark one."""


class Series(NamedTuple):
    """All tensors of one tag."""

    family: Family
    steps: np.ndarray
    """int64 [T], rising."""
    wall_times: np.ndarray
    """Seconds since 1970, float64 [T]."""
    tensors: list[np.ndarray]


EMPTY_SERIES = Series(
    family=Family("variables"), steps=np.zeros(0, np.int64), wall_times=np.zeros(0), tensors=list[np.ndarray]()
)
"""The variables of a run that ended before its first record."""


class Run:
    """The records of one directory of event files, read when the object is made.

    `run["gradient_norm"]` is a column by its name: float32 `[T, V]` for variables, `[T, L]` for layers, float64 `[T]`
    for the step's own, `[T, R, V]` for the replicas'. Histograms are int32 `[T, V or L, B]`, `first_nonfinite` is
    `[T, 2]`, and `unit_state` is uint8 `[W, sum U]` over the W steps at which a window of examples closed.

    Args:
      logdir: the run's directory. What is written to it later is seen by a new Run.

    Raises:
      FileNotFoundError: the directory has no event file.
      ValueError: the event files have no records of tapescope, or records of a newer schema.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        self.logdir: str = os.fspath(logdir)
        files = event_reader.list_event_files(self.logdir)
        if not files:
            raise FileNotFoundError(
                f"`logdir` must be a directory with event files, which tapescope.Recorder writes; {self.logdir} has "
                "no event file"
            )
        self._series = _read_series(files)
        if not self._series:
            raise ValueError(
                f"`logdir` must be the directory of a run; {self.logdir} has event files, but none with tapescope's "
                "records"
            )

    @property
    def steps(self) -> np.ndarray:
        """The T recorded steps, int64 [T]; T is 0 for a run that ended before its first record."""
        return self._series.get("variables", EMPTY_SERIES).steps

    @property
    def wall_times(self) -> np.ndarray:
        """When each was recorded, seconds since 1970, float64 [T]."""
        return self._series.get("variables", EMPTY_SERIES).wall_times

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the V trainable variables."""
        return self._require_series("variables").family.names

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the L layers, in forward order."""
        return self._series["layers"].family.names if "layers" in self._series else ()

    @property
    def details(self) -> dict[str, Any]:
        """Facts about the layers and replicas.

        Of the layers: "units", "activations", "variables" (indices of each one's own), "sources", "skipped". Of several
        replicas: "replicas" (their number) and "faults" (what Keras does differently with them).
        """
        merged: dict[str, Any] = {}
        for family in ("layers", "replicas"):
            if family in self._series:
                merged.update(self._series[family].family.details)
        return merged

    @property
    def status(self) -> dict[str, Any]:
        """State of the run: "state" ("training" or "ended"), "reason", and what it was started with."""
        if "status" not in self._series:
            return {}
        return json.loads(self._series["status"].tensors[-1].item())

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings that were recorded during training."""
        if "findings" not in self._series:
            return []
        return [json.loads(text) for text in self._series["findings"].tensors[-1]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that `run[...]` knows."""
        families = [series.family for series in self._series.values()]
        names = [column for family in families for column in family.columns]
        names += [family.family for family in families if family.family.endswith("_histogram")]
        if "units" in self._series:
            names.append("unit_state")
        return tuple(names)

    def __getitem__(self, column: str) -> np.ndarray:
        """Return one column; see the class for shapes.

        Raises:
          KeyError: the run has no such column.
        """
        if column == "first_nonfinite":
            return np.stack([self[name] for name in FIRST_NONFINITE], axis=1)
        series = self._find_series(column)
        tensors = np.stack(series.tensors)
        if column in series.family.columns:
            return tables.unpack_column(series.family, tensors, column)
        return tensors

    def units(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the state of each unit of a layer over time.

        Returns:
          The W steps at which a window of examples closed, int64 [W], and the states, uint8 [W, U], as indices into
          `tensorboard_plugin_tapescope.metadata.UNIT_STATES`.

        Raises:
          KeyError: the run has no such layer, or no window has closed.
        """
        series = self._require_series("units")
        if layer not in series.family.names:
            raise KeyError(f"no layer {layer!r} in {self.logdir}; it has: {', '.join(series.family.names)}")
        index = series.family.names.index(layer)
        sizes = series.family.details["units"]
        start = sum(sizes[:index])
        return series.steps, self["unit_state"][:, start : start + sizes[index]]

    def lives(self, layer: str) -> Lives:
        """Return how often each unit of a layer died and revived, and how long it has been in its present state."""
        return count_lives(self.units(layer)[1])

    def frame(self, column: str) -> Any:
        """Return a pandas DataFrame of one column: a row for each step, a column for each variable or layer.

        Two have two levels of columns: "unit_state" layer and unit (its rows are the steps at which a window closed),
        and the replicas' columns replica and variable.

        Raises:
          ImportError: pandas is not installed.
          KeyError: the run has no such column.
          ValueError: the column is a histogram, which has three axes.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("`Run.frame` needs pandas: pip install pandas") from None
        values = self[column]
        series = self._find_series(column)
        if column.endswith("_histogram"):
            raise ValueError(
                f"`column` must have two axes; {column!r} has three: use run[{column!r}], which is an array"
            )
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
        """Return the Gradients tab's figure of a column as a `plotly.graph_objects.Figure`.

        Args:
          column: its name on the wire; "flow_budget" draws the budget of the last records.
          row: a variable or layer. Needed for histograms and "unit_state"; elsewhere that row alone is drawn.
          dark: whether the page is dark.

        Raises:
          KeyError: the run has no such column.
          ValueError: a row is needed, or the run does not have it.
        """
        # Storage is below analysis and must not import drawing code: it is loaded by name when a figure is asked for.
        plotting = importlib.import_module("tapescope.analysis.plotting")
        graph_objects = importlib.import_module("plotly.graph_objects")
        return graph_objects.Figure(plotting.plot(self, column, row, dark))

    def rows(self, column: str) -> tuple[str, ...]:
        """Return the names along the rows of a column: layers or variables; empty for a column of the step."""
        return self._find_series(column).family.names

    def __repr__(self) -> str:
        return f"<tapescope.Run {self.logdir!r}: {self._summarize()}>"

    def _repr_html_(self) -> str:
        summary = f"<p><b>{html.escape(self.logdir)}</b>: {html.escape(self._summarize())}</p>"
        items = []
        for finding in self.findings:
            color = _SEVERITY_COLORS.get(finding["severity"], _SEVERITY_COLORS["info"])
            items.append(
                f'<li><b style="color:{color}">{html.escape(finding["severity"])}</b> step {finding["step"]}: '
                f"{html.escape(finding['message'])}. <i>{html.escape(finding['advice'])}</i></li>"
            )
        return f"{summary}<ul>{''.join(items)}</ul>" if items else summary

    def _summarize(self) -> str:
        """Return state, size and loss of the run in one line."""
        state = " ".join(filter(None, (self.status.get("state", "unknown"), self.status.get("reason"))))
        if not len(self.steps):
            return f"{state}, no record yet"
        parts = [
            state,
            f"{len(self.steps)} records up to step {self.steps[-1]}",
            f"{len(self.layers)} layers, {len(self.variables)} variables",
        ]
        losses = self["loss"][np.isfinite(self["loss"])]
        if losses.size:
            parts.append(f"loss {losses[0]:.3g} to {losses[-1]:.3g}")
        return ", ".join(parts)

    def _find_series(self, column: str) -> Series:
        """Return the tensors that a column is part of."""
        families = {"unit_state": "units", "first_nonfinite": "step"}
        for name, series in self._series.items():
            is_whole_tensor = column.endswith("_histogram") and name == column
            if is_whole_tensor or name == families.get(column) or column in series.family.columns:
                return series
        raise KeyError(f"no column {column!r} in {self.logdir}; it has: {', '.join(self.columns)}")

    def _require_series(self, family: str) -> Series:
        if family not in self._series:
            raise KeyError(f"{self.logdir} has no {family}; it has: {', '.join(self._series)}")
        return self._series[family]


def runs(logdir: str | os.PathLike[str]) -> list[str]:
    """Return the directories at and below `logdir` that a Run can be made of, sorted.

    `[tapescope.Run(directory) for directory in tapescope.runs("runs")]` reads all of them. Runs of other programs are
    left out.

    Raises:
      FileNotFoundError: `logdir` is not a directory.
    """
    if not os.path.isdir(logdir):
        raise FileNotFoundError(f"`logdir` must be a directory; got {os.fspath(logdir)}, which is not one")
    return sorted(
        directory
        for directory, _, _ in os.walk(logdir)
        if any(_is_tapescope_file(path) for path in event_reader.list_event_files(directory))
    )


def _is_tapescope_file(path: str) -> bool:
    return any(itertools.islice(_read_values([path], FIRST_EVENTS), 1))


def _read_series(files: list[str]) -> dict[str, Series]:
    """Return the series of all families in the files of one run."""
    points: dict[str, dict[int, tuple[float, np.ndarray]]] = {}
    families: dict[str, Family] = {}
    for step, wall_time, value in _read_values(files):
        family = value.tag.removeprefix(f"{metadata.PLUGIN_NAME}/")
        if family not in families:
            families[family] = metadata.parse(value.metadata.plugin_data.content)
            points[family] = {}
        by_step = points[family]
        # A step at or below the last one means that the program was started again from there.
        while by_step and next(reversed(by_step)) >= step:
            by_step.popitem()
        by_step[step] = wall_time, event_reader.to_array(value.tag, value.tensor, step)
    return {
        name: Series(
            family=families[name],
            steps=np.array(list(by_step), np.int64),
            wall_times=np.array([wall_time for wall_time, _ in by_step.values()]),
            tensors=[array for _, array in by_step.values()],
        )
        for name, by_step in points.items()
    }


def _read_values(files: list[str], limit: int | None = None) -> Iterator[tuple[int, float, Any]]:
    """Yield step, wall time and value of tapescope's summaries, in the first `limit` events of each file."""
    prefix = f"{metadata.PLUGIN_NAME}/"
    for path in files:
        for event in itertools.islice(event_reader.read_events(path), limit):
            for value in event.summary.value:
                if value.tag.startswith(prefix):
                    yield event.step, event.wall_time, value
