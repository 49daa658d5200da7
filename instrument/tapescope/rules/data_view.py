"""The data of a run as the rules see them: each input, target and output over all records so far.

One batch says little about a range, and nothing about whether all labels are the same. So the records are pooled.

Letter: D rows of data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import tables


class DataRow(NamedTuple):
    """One input, target or output."""

    name: str
    kind: str
    integer: bool
    followers: tuple[str, ...]
    """What an input meets first: "trained", "embedding" or "other"; empty where that is not known."""
    normalizers: tuple[str, ...]
    weighted: bool


class OutputObjective(NamedTuple):
    """One output of the model and the loss that it is trained with."""

    output: int
    """Index of its row; -1 where there is none."""
    target: int
    layer: str
    activation: str
    activation_before: str
    units: int
    target_units: int
    """Size of the last axis of the targets; 1 for one number an example, and 0 where it is not known."""
    loss: str
    from_logits: bool
    ignores_class: bool
    logits_taken: bool
    """Whether Keras computes the loss from the logits behind the activation."""
    sums_examples: bool
    """Whether the loss is a sum over the batch in the place of a mean."""
    metrics: tuple[str, ...]
    loss_measured: bool
    """Whether each record has the loss of its batch, so that a NaN is not an absent one."""
    weighted: bool
    """True if examples count differently in the loss."""
    learning_rate: float
    """At the begin; NaN where it is not known."""
    batches_per_epoch: float = math.nan
    """NaN where it is not known."""


CHECK_SIGN = " If it is as small as intended, check its sign: a negative one climbs along the gradient."
"""End of an advice to lower a learning rate that is not known."""


def learning_rate(objectives: Sequence[OutputObjective]) -> float:
    """Return the learning rate at the begin; NaN where it is not known."""
    return min((objective.learning_rate for objective in objectives), default=math.nan)


def summed_loss_advice(objectives: Sequence[OutputObjective]) -> str:
    """Return what to add to an advice to lower the learning rate where the loss is a sum over the batch."""
    if not any(objective.sums_examples for objective in objectives):
        return ""
    return (
        " The loss is the sum over the batch, so the gradient is as many times that of the mean as the batch has "
        'examples: use reduction="sum_over_batch_size", or divide by their number.'
    )


def data_layout(details: Mapping[str, Any]) -> tuple[tuple[DataRow, ...], tuple[OutputObjective, ...]]:
    """Return the rows of data and the objectives of a run's details, which may be damaged: a wrong one is left out."""
    rows = tuple(map(_row, tables.json_array(details.get("data_rows"))))
    index = {row.name: i for i, row in enumerate(rows)}
    objectives = [_objective(_fields(o), index) for o in tables.json_array(details.get("objectives"))]
    return rows, tuple(o for o in objectives if o is not None)


def _fields(value: Any) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _row(value: Any) -> DataRow:
    given = _fields(value)
    return DataRow(
        name=_text(given.get("name")),
        kind=_text(given.get("kind")),
        integer=given.get("integer") is True,
        followers=_texts(given.get("followers")),
        normalizers=_texts(given.get("normalizers")),
        weighted=given.get("weighted") is True,
    )


def _objective(given: Mapping[str, Any], index: Mapping[str, int]) -> OutputObjective | None:
    units = given.get("units")
    target_units = given.get("target_units")
    if not isinstance(units, int) or units < 1:
        return None
    return OutputObjective(
        output=index.get(_text(given.get("output")), -1),
        target=index.get(_text(given.get("target")), -1),
        layer=_text(given.get("layer")),
        activation=_text(given.get("activation")),
        activation_before=_text(given.get("activation_before")),
        units=units,
        target_units=target_units if tables.is_index(target_units) else 0,
        loss=_text(given.get("loss")),
        from_logits=given.get("from_logits") is True,
        ignores_class=given.get("ignores_class") is True,
        logits_taken=given.get("logits_taken") is True,
        sums_examples=given.get("sums_examples") is True,
        metrics=_texts(given.get("metrics")),
        loss_measured=given.get("loss_measured") is True,
        weighted=given.get("weighted") is True,
        learning_rate=_number(given.get("learning_rate")),
        batches_per_epoch=_number(given.get("batches_per_epoch")),
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(text for text in tables.json_array(values) if isinstance(text, str))


class Pooled(NamedTuple):
    """Statistics of one row over all records so far."""

    elements: float
    mean: float
    std: float
    rms: float
    low: float
    high: float
    zero: float
    """Shares of the finite elements, as are the next four."""
    whole: float
    negative: float
    above_one: float
    below_minus_one: float
    row_sum_low: float
    """NaN for a row without a last axis, as are the next three."""
    row_sum_high: float
    class_low: float
    class_high: float
    nonfinite: float
    """Number of NaN and Inf elements."""
    single_classes: int
    """Number of records whose labels are all of one class; 0 unless there are two such classes."""


MANY_LABELS = 8
"""Labels of a batch that are not all of one class by chance."""
MAX_CLASSES = 1000
"""Classes that are told apart, so that the memory has a limit."""
SAME_STATISTICS = 1e-5
"""Share of the root mean square: the order of additions changes a mean by less, and other examples by more."""
_SHARES = ("zero", "whole", "negative", "above_one", "below_minus_one")
_LOWS = ("min", "row_sum_min", "class_min")
_HIGHS = ("max", "row_sum_max", "class_max")


class DataHistory:
    """Statistics of D rows of data over the records so far. `add` takes the records in the order of their steps."""

    def __init__(self, rows: int):
        self.records = 0
        """Records with data so far."""
        self._weight = np.zeros(rows)
        self._sums = {name: np.zeros(rows) for name in ("first", "second", *_SHARES)}
        self._lows = {name: np.full(rows, np.inf) for name in _LOWS}
        self._highs = {name: np.full(rows, -np.inf) for name in _HIGHS}
        self.nonfinite = np.zeros(rows)
        """Number of NaN and Inf elements of a row in all records, [D]; a row that has no others has nothing pooled."""
        self.empty = np.zeros(rows, int)
        """Number of records in which no element of a row counts, [D]."""
        self.varies = np.zeros(rows, bool)
        """True where mean, deviation or range of a row differ between records, [D]."""
        self._first = np.full([4, rows], np.nan)
        """The first known ones, [4, D]."""
        self._single: list[dict[float, int]] = [{} for _ in range(rows)]
        """Number of records by the class that all labels of the record have, for each row."""
        self._pooled: dict[int, Pooled] = {}
        """Results of `pooled` since the last record, by row: several rules ask for the same ones."""

    def add(self, columns: Mapping[str, Any]) -> None:
        """Add the columns of the next record."""
        shape = self._weight.shape
        if not shape[0] or np.shape(columns.get("data_mean", 0.0)) != shape:
            return
        named = {c.name: np.asarray(columns.get(c.name, np.nan), float) for c in metadata.DATA_COLUMNS}
        self.records += 1
        self._pooled.clear()
        with np.errstate(all="ignore"):
            weight = named["data_elements"] - named["data_nonfinite"]
            known = np.isfinite(named["data_mean"]) & (weight > 0)
            weight = np.where(known, weight, 0)
            self._weight += weight
            moments = {
                "first": named["data_mean"],
                "second": np.square(named["data_mean"]) + np.square(named["data_std"]),
                **{name: named[f"data_{name}"] for name in _SHARES},
            }
            for name, value in moments.items():
                self._sums[name] += np.where(known, value, 0) * weight
            for name in _LOWS:
                self._lows[name] = np.fmin(self._lows[name], np.where(known, named[f"data_{name}"], np.nan))
            for name in _HIGHS:
                self._highs[name] = np.fmax(self._highs[name], np.where(known, named[f"data_{name}"], np.nan))
            self.nonfinite += np.nan_to_num(named["data_nonfinite"])
            self.empty += named["data_elements"] == 0
            statistics = np.stack([np.broadcast_to(named[f"data_{n}"], shape) for n in ("mean", "std", "min", "max")])
            self._first = np.where(np.isnan(self._first), statistics, self._first)
            limit = SAME_STATISTICS * np.hypot(self._first[0], self._first[1])
            self.varies |= (np.abs(statistics - self._first) > limit).any(0)
        self._add_classes(named)

    def _add_classes(self, columns: Mapping[str, np.ndarray]) -> None:
        """Note the rows whose labels are all the same in a record of several examples."""
        has_rows = np.isfinite(columns["data_class_max"])
        low, high = (np.where(has_rows, columns[f"data_class_{e}"], columns[f"data_{e}"]) for e in ("min", "max"))
        for row in np.flatnonzero((low == high) & (columns["data_elements"] >= MANY_LABELS)):
            counts = self._single[row]
            if len(counts) < MAX_CLASSES or low[row] in counts:
                counts[float(low[row])] = counts.get(float(low[row]), 0) + 1

    def pooled(self, row: int) -> Pooled | None:
        """Return the statistics of a row; None where nothing is known of it."""
        if not 0 <= row < len(self._weight) or not self._weight[row] > 0:
            return None
        if row not in self._pooled:
            self._pooled[row] = self._pool(row)
        return self._pooled[row]

    def _pool(self, row: int) -> Pooled:
        """Compute what `pooled` returns, of a row of which something is known."""
        weight = self._weight[row]
        with np.errstate(all="ignore"):
            sums = {name: float(values[row] / weight) for name, values in self._sums.items()}
        extremes = {name: float(values[row]) for name, values in (*self._lows.items(), *self._highs.items())}
        extremes = {name: value if math.isfinite(value) else math.nan for name, value in extremes.items()}
        return Pooled(
            elements=float(weight),
            mean=sums["first"],
            std=math.sqrt(max(sums["second"] - sums["first"] ** 2, 0.0)),
            rms=math.sqrt(sums["second"]),
            low=extremes["min"],
            high=extremes["max"],
            **{name: sums[name] for name in _SHARES},
            row_sum_low=extremes["row_sum_min"],
            row_sum_high=extremes["row_sum_max"],
            class_low=extremes["class_min"],
            class_high=extremes["class_max"],
            nonfinite=float(self.nonfinite[row]),
            single_classes=sum(self._single[row].values()) if len(self._single[row]) > 1 else 0,
        )
