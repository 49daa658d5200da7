"""A run read back from its event files, by the names of the wire contract. No TensorFlow is needed."""

import html
import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from absl import logging
from tensorboard.compat.proto import summary_pb2

from tapescope.storage import event_reader
from tapescope.storage.printable import describe, describe_error, one_line, printable
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import findings, tables
from tensorboard_plugin_tapescope.series.unit_lives import Lives, count_lives

FIRST_NONFINITE = ("first_nonfinite_forward", "first_nonfinite_backward")
RECORD_FAMILIES = ("variables", "layers", "step", "replicas", "data", "heads", "residual")
"""Families with a tensor in every record."""
LATE_FAMILIES = ("gradient_histogram", "activation_histogram", "units")
"""Families whose tensors are read when they are asked for: most of a file, and seldom needed."""

_SEVERITY_COLORS = {"error": "#d93025", "warning": "#b06000", "info": "#5f6368"}
"""Colors that can be read on a light page and on a dark one."""


class Series(NamedTuple):
    """All tensors of one tag."""

    family: Family
    steps: np.ndarray
    """int64 [T], rising."""
    wall_times: np.ndarray
    """Seconds since 1970, float64 [T]."""
    tensors: Sequence[np.ndarray]


class LateTensors(Sequence[np.ndarray]):
    """The tensors of one family at given steps, read from the files when they are first used.

    Raises:
      ValueError: upon use, the files no longer hold these records.
    """

    def __init__(self, files: Sequence[str], name: str, steps: np.ndarray):
        self._files = files
        self._name = name
        self._steps = steps
        self._tensors: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        """Return one or more of the tensors."""
        if self._tensors is None:
            problems: list[str] = []
            points = _read_points(self._files, problems, lambda name: name == self._name)
            by_step = points[self._name].by_step if self._name in points else {}
            missing = [step for step in self._steps.tolist() if step not in by_step]
            if missing:
                reason = "; ".join(problems) or "the run was continued or removed since; make a new Run"
                raise ValueError(f"{metadata.tag(self._name)} at step {missing[0]} cannot be read: {reason}")
            self._tensors = [by_step[step][1] for step in self._steps.tolist()]
        return self._tensors[index]


EMPTY_SERIES = Series(
    family=Family("variables"), steps=np.zeros(0, np.int64), wall_times=np.zeros(0), tensors=list[np.ndarray]()
)
"""The variables of a run that ended before its first record."""


class Run:
    """The records of one directory of event files, read when the object is made.

    Histograms and the states of units are read when they are asked for. What cannot be read is left out, and is named
    in `problems` and in the log.

    `run["gradient_norm"]` is a column by its name: float32 `[T, V]` for variables, `[T, L]` for layers, `[T, H]` for
    attention heads, float64 `[T]` for the step's own, `[T, R, V]` for the replicas'. Histograms are int32
    `[T, V or L, B]`, `first_nonfinite` is `[T, 2]`, and `unit_state` is uint8 `[W, sum U]` over the W steps at which a
    window of examples closed.

    Args:
      logdir: the run's directory. What is written to it later is seen by a new Run.

    Raises:
      FileNotFoundError: there is no such directory, or it has no event file.
      ValueError: the event files have no records of tapescope, or none that can be read.
    """

    def __init__(self, logdir: str | os.PathLike[str]):
        self.logdir: str = _existing_directory(logdir)
        # Absolute, because histograms may be read after the program has changed its directory.
        found = event_reader.find_event_files(os.path.abspath(self.logdir))
        problems = found.problems
        if not found.own and not found.others:
            raise FileNotFoundError(
                f"`logdir` must be a directory with event files, which tapescope.Recorder writes; {self.logdir} has "
                f"no event file{_in_brackets(problems)}{_name_run_below(self.logdir)}"
            )
        self._series = _read_series(found.own, problems)
        if not self._series:
            raise ValueError(
                f"`logdir` must be the directory of a run; {self.logdir} has event files, but none with tapescope's "
                f"records{_in_brackets(problems)}"
            )
        self.problems: tuple[str, ...] = tuple(problems)
        """A sentence for each file, tag or record that cannot be read; it is left out."""
        _warn(self.problems)

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
    def heads(self) -> tuple[str, ...]:
        """Names of the H attention heads, `LAYER/head_0` and so on, in forward order."""
        return self._series["heads"].family.names if "heads" in self._series else ()

    @property
    def residual(self) -> tuple[str, ...]:
        """Layers at which the residual stream of a transformer is measured, by depth."""
        return self._series["residual"].family.names if "residual" in self._series else ()

    @property
    def details(self) -> dict[str, Any]:
        """Facts about the layers, replicas and data.

        Of the layers: "units", "activations", "variables" (indices of each one's own), "sources", "skipped". Of several
        replicas: "replicas" (their number) and "faults" (what Keras does differently with them). Of the data:
        "data_rows" and "objectives", see docs/wire.md.
        """
        merged: dict[str, Any] = {}
        for family in ("layers", "replicas", "data"):
            if family in self._series:
                merged.update(self._series[family].family.details)
        return merged

    @property
    def status(self) -> dict[str, Any]:
        """State of the run: "state" ("training" or "ended"), "reason", and what it was started with."""
        if "status" not in self._series:
            return {}
        return tables.first_object(tables.decode_texts(self._series["status"].tensors[-1]))

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings that were recorded during training."""
        if "findings" not in self._series:
            return []
        return findings.read_findings(tables.decode_texts(self._series["findings"].tensors[-1]))[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that `run[...]` knows."""
        families = [series.family for series in self._series.values()]
        names = [column for family in families for column in family.columns]
        names += [family.family for family in families if family.family.endswith("_histogram")]
        if "units" in self._series:
            names.append("unit_state")
        return tuple(names)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the columns, so that `"loss" in run` says whether there is one."""
        return iter(self.columns)

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
        sizes = tables.units(series.family)
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
            units = [(n, u) for n, size in zip(names, tables.units(series.family), strict=True) for u in range(size)]
            names = pandas.MultiIndex.from_tuples(units, names=["layer", "unit"])
        elif values.ndim == 3:
            names = pandas.MultiIndex.from_product([range(values.shape[1]), names], names=["replica", "variable"])
            values = values.reshape(len(values), -1)
        elif values.ndim == 1:
            names = [column]
        return pandas.DataFrame(values, index=pandas.Index(series.steps, name="step"), columns=names)

    def plot(self, column: str, row: str | None = None, dark: bool = False) -> Any:
        """Return the Gradients tab's figure of a column as a `plotly.graph_objects.Figure`, which a notebook shows.

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
        notebook = importlib.import_module("tapescope.analysis.notebook")
        return notebook.NotebookFigure(plotting.plot(self, column, row, dark))

    def rows(self, column: str) -> tuple[str, ...]:
        """Return the names along the rows of a column: layers or variables; empty for a column of the step."""
        return self._find_series(column).family.names

    def __repr__(self) -> str:
        return f"<tapescope.Run {self.logdir!r}: {self._summarize()}>"

    def _repr_html_(self) -> str:
        summary = f"<p><b>{html.escape(self.logdir)}</b>: {html.escape(self._summarize())}</p>"
        items = []
        for finding in self.findings:
            color = _SEVERITY_COLORS[finding["severity"]]
            items.append(
                f'<li><b style="color:{color}">{html.escape(finding["severity"])}</b> step {finding["step"]}: '
                f"{html.escape(finding['message'])}. <i>{html.escape(finding['advice'])}</i></li>"
            )
        return f"{summary}<ul>{''.join(items)}</ul>" if items else summary

    def _summarize(self) -> str:
        """Return state, size and loss of the run in one line."""
        status = self.status
        state = one_line(" ".join(str(status[key]) for key in ("state", "reason") if status.get(key)) or "unknown")
        if not len(self.steps):
            return f"{state}, no record yet"
        parts = [
            state,
            f"{len(self.steps)} records up to step {self.steps[-1]}",
            f"{len(self.layers)} layers, {len(self.variables)} variables",
        ]
        losses = self["loss"] if "loss" in self.columns else np.zeros(0)
        losses = losses[np.isfinite(losses)]
        if losses.size:
            parts.append(f"loss {losses[0]:.3g} to {losses[-1]:.3g}")
        return ", ".join(parts)

    def _find_series(self, column: str) -> Series:
        """Return the tensors that a column is part of."""
        families = {"unit_state": "units", "first_nonfinite": "step"}
        for name, series in self._series.items() if isinstance(column, str) else ():
            is_whole_tensor = column.endswith("_histogram") and name == column
            if is_whole_tensor or name == families.get(column) or column in series.family.columns:
                return series
        raise KeyError(f"no column {column!r} in {self.logdir}; it has: {', '.join(self.columns) or 'no record'}")

    def _require_series(self, family: str) -> Series:
        if family not in self._series:
            known = ", ".join(printable(name) for name in self._series)
            raise KeyError(f"{self.logdir} has no {family}; it has: {known}")
        return self._series[family]


def check_runs(*runs: Any) -> None:
    """Raise ValueError unless each is a Run. Its directory is often passed instead."""
    for run in runs:
        if not isinstance(run, Run):
            raise ValueError(f"a run must be a tapescope.Run; got {describe(run)}: pass tapescope.Run(directory)")


def check_list(runs: Any) -> list[Run]:
    """Return runs as a list; raise ValueError if there is none or anything else among them."""
    if isinstance(runs, (Run, str, os.PathLike)):
        raise ValueError(f"`runs` must be a list of tapescope.Run; got {type(runs).__name__}: put it in a list")
    listed = list(runs)
    if not listed:
        raise ValueError("`runs` must have a tapescope.Run or more; got an empty list")
    check_runs(*listed)
    return listed


def columns_by_name(run: Run) -> dict[str, np.ndarray]:
    """Return the columns of a run, without histograms and states of units, which take long to read."""
    return {name: run[name] for name in run.columns if name in metadata.COLUMNS}


def columns_by_tag(run: Run) -> dict[str, tuple[str, ...]]:
    """Return the columns in the description of each tag, which hold for all records of a run."""
    return {series.family.tag: series.family.columns for series in run._series.values()}


def runs(logdir: str | os.PathLike[str]) -> list[str]:
    """Return the directories at and below `logdir` that a Run can be made of, sorted.

    `[tapescope.Run(directory) for directory in tapescope.runs("runs")]` reads all of them. Runs of other programs are
    left out. So are directories that cannot be read; the log names them.

    Raises:
      FileNotFoundError: `logdir` is not a directory.
    """
    root = _existing_directory(logdir)
    found = []
    for directory in _with_event_files(root):
        files = event_reader.find_event_files(directory)
        if _holds_records(files.own):
            found.append(directory)
        else:
            _warn(files.problems)
    return sorted(found)


def _with_event_files(root: str) -> Iterator[str]:
    """Yield the directories at and below one that hold event files."""
    for directory, _, names in os.walk(root, onerror=lambda error: _warn([f"skipped: {describe_error(error)}"])):
        if any(".tfevents." in name for name in names):
            yield directory


def _name_run_below(directory: str) -> str:
    """Return the end of an error line that names a run below a directory, where there is one."""
    below = next(_with_event_files(directory), None)
    return "" if below is None else f"; {below} has one: tapescope.runs({directory!r}) lists all runs below it"


def _existing_directory(logdir: str | os.PathLike[str]) -> str:
    """Return the path with `~` expanded; raise FileNotFoundError if it is not a directory."""
    path = os.path.expanduser(logdir)
    if not os.path.isdir(path):
        problem = "is a file: pass the directory that holds it" if os.path.exists(path) else "does not exist"
        raise FileNotFoundError(f"`logdir` must be a directory; got {path!r}, which {problem}")
    return path


def _holds_records(files: Sequence[str]) -> bool:
    return any(True for _ in _read_values(files, []))


def _warn(problems: Sequence[str]) -> None:
    for problem in problems:
        logging.warning("tapescope: %s", problem)


def _in_brackets(problems: Sequence[str]) -> str:
    return f" ({'; '.join(problems)})" if problems else ""


class _Points(NamedTuple):
    """The records of one tag while they are read."""

    family: Family
    by_step: dict[int, tuple[float, Any]]
    """Wall time and tensor by step."""


def _read_series(files: Sequence[str], problems: list[str]) -> dict[str, Series]:
    """Return the series of all families in the files of one run, and append to `problems` what cannot be read."""
    points = _read_points(files, problems, lambda name: name not in LATE_FAMILIES)
    series = {}
    for name, (family, by_step) in points.items():
        if not by_step:
            continue
        if name in RECORD_FAMILIES and "variables" in points:
            by_step = _align(by_step, points["variables"].by_step, family)
        steps = np.array(list(by_step), np.int64)
        tensors = [array for _, array in by_step.values()]
        series[name] = Series(
            family=family,
            steps=steps,
            wall_times=np.array([wall_time for wall_time, _ in by_step.values()], np.float64),
            tensors=LateTensors(files, name, steps) if name in LATE_FAMILIES else tensors,
        )
    return series


def _align(
    by_step: dict[int, tuple[float, Any]], variables: dict[int, tuple[float, Any]], family: Family
) -> dict[int, tuple[float, Any]]:
    """Return the points at the steps of the variables, with NaN where a record of the family cannot be read."""
    if by_step.keys() == variables.keys():
        return by_step
    absent = np.full(tables.shape(family) or (), np.nan, np.float32)
    return {step: by_step.get(step, (wall_time, absent)) for step, (wall_time, _) in variables.items()}


def _read_points(files: Sequence[str], problems: list[str], wanted: Callable[[str], bool]) -> dict[str, _Points]:
    """Return the records of all tags.

    Args:
      files: event files of tapescope, in the order in which they were begun.
      problems: gets a sentence for each tag with something that cannot be read.
      wanted: whether the tensors of a family are read. Those of the others are None.
    """
    points: dict[str, _Points] = {}
    rows: dict[str, Any] = {}
    """The last content of the family `rows`."""
    extended: dict[str, Family] = {}
    """The families with these rows."""
    damaged: dict[str, list[str]] = {}
    for step, wall_time, value in _read_values(files, problems):
        name = value.tag.removeprefix(f"{metadata.PLUGIN_NAME}/")
        try:
            if name not in points:
                points[name] = _Points(metadata.parse(value.metadata.plugin_data.content), {})
            family, by_step = points[name]
            # A step at or below the last one means that the program was started again from there.
            while by_step and next(reversed(by_step)) >= step:
                by_step.popitem()
            array = None
            if wanted(name) or name == "rows":
                array = event_reader.to_array(value.tag, value.tensor, step)
                if name not in extended:
                    extended[name] = tables.extend(family, rows)
                array = tables.widen(extended[name], array)
                tables.check_tensor(extended[name], array)
                if name == "rows":
                    rows = tables.first_object(tables.decode_texts(array))
                    extended = {}
            by_step[step] = (wall_time if math.isfinite(wall_time) else 0.0), array
        except Exception as error:  # the boundary of a tensor: it is left out, whatever is wrong with it
            damaged.setdefault(value.tag, []).append(f"{value.tag} at step {step}: {describe_error(error)}")
    for found in damaged.values():
        more = f" (and {len(found) - 1} more of this tag)" if len(found) > 1 else ""
        problems.append(one_line(f"left out {found[0]}{more}"))
    return {name: _with_rows(tag, rows) for name, tag in points.items()} if rows else points


def _with_rows(points: _Points, rows: dict[str, Any]) -> _Points:
    """Return the records of one tag with all rows of the run, where some were added after the first record."""
    family = tables.extend(points.family, rows)
    widened = {
        step: (wall_time, None if tensor is None else tables.widen(family, tensor))
        for step, (wall_time, tensor) in points.by_step.items()
    }
    return _Points(family, widened)


def _read_values(files: Sequence[str], problems: list[str]) -> Iterator[tuple[int, float, summary_pb2.Summary.Value]]:
    """Yield step, wall time and value of tapescope's summaries, and append to `problems` what cannot be read."""
    for path in files:
        try:
            for event in event_reader.read_events(path):
                for value in event_reader.own_values(event):
                    yield event.step, event.wall_time, value
        except GeneratorExit:
            raise
        except Exception as error:  # the boundary of a file: what is behind the damage is left out
            problems.append(one_line(f"left out the rest of {path}: {describe_error(error)}"))
