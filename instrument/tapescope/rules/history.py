"""The history that rules look at: the last records of a run in full, and a few numbers of the earlier ones.

A rule asks what is usual, so it reads medians over the last `WINDOW` records. It also asks what was, so the first
record, the first losses and a few extremes are kept. Memory and work for a record do not grow.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tapescope.rules.data_view import DataHistory
from tapescope.rules.record_view import (
    Record,
    RecordView,
    RunLayout,
    extend_groups,
    extend_layers,
    extend_view,
    lower_median,
    replica_differences,
    view_record,
)

WINDOW = 10
"""Records. A finding about what is usual needs at least half of them: batches differ, and one alone proves nothing."""
LONG = 3 * WINDOW
"""Records after which a loss should have moved, and after which a small lasting difference is not due to chance."""
STUCK_FALL = 0.1
"""A loss that has fallen by less than this share of itself has not fallen far."""
LEARNED_FALL = 0.5
"""Share of the loss. Once so much is gone the network learns. Its gradients then become steep, or close to 0 where only
a few hard examples are left, as a result of what it learned."""
MASTERED_FALL = 0.9
"""Share of the loss. Once so much is gone, what looked wrong earlier has done no harm that a user would notice."""
USELESS_SHARES = (0.85, 1.2)
"""Shares of the loss of the best constant answer. A loss far above it is that of a training that diverges."""
SURE_ERRORS = 3.0
"""Standard errors by which the mean of the newer losses lies below another number: by chance once in 700 runs."""
FAR_BELOW = 0.95
"""Share of the loss of the best constant answer. A network that sees one step of twelve comes to 0.96 of it, and one
whose labels are noise for the most part to 0.93."""
FALLING_TREND = 1.0
"""Normal deviates by which the newer half of the losses lies lower: above it they may be falling slowly. A loss that
does not fall exceeds it once in six times, so that it is soon recognized."""
LITTLE_FALL = 1e-5
"""Share of the loss a step, 1 % in a thousand steps. Losses that lie closer together than this are not falling, however
surely each is below the one before."""
MOST_LITTLE_FALL = 0.01
"""The most that LITTLE_FALL makes in a long run."""
AWAY = 1e-4
"""Share of a norm by which weights must have moved, so that the same norm as before is not due to rounding."""
TREND_RECORDS = 10 * WINDOW
"""The last losses, in two halves of which a trend is looked for."""
MIN_STEPS = 100
"""Steps before which nothing is said about a loss, however often it was measured."""

RISEN_VALIDATIONS = 3
"""Validations above the lowest one before it counts as past: a single one may be higher by chance."""

SPIKE_FACTOR = 10.0
"""Times the largest norm before. Norms of batches lie within one decade of each other until the loss is near 0. Then
they are far below those of the beginning, with which a spike is compared."""
SPIKE_RECORDS = 3
"""A rise that lasts longer is not a spike but a new level."""

NEVER_NEGATIVE = {
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_hinge",
    "hinge",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "sparse_categorical_crossentropy",
    "squared_hinge",
}
"""Losses that are 0 or above for every target in their range."""
NEGATIVE_TOLERANCE = 1e-3
"""What rounding and label smoothing may take a loss of 0 below it."""


def is_impossible(loss: float, layout: RunLayout) -> bool:
    """Return whether a loss is below 0 that cannot be, as far as it is known what the run trains with."""
    names = {objective.loss for objective in layout.objectives}
    return bool(names) and names <= NEVER_NEGATIVE and loss < -NEGATIVE_TOLERANCE


OF_A_CONSTANT = "that of the best answer that is the same for every input"
"""Name of `constant_loss` in messages."""


def constant_loss(history: "History") -> float:
    """Return the loss of the best answer that is the same for every input; NaN where it is not known.

    Of a mean squared error it is the variance of the targets, of a binary cross-entropy the entropy of their mean, and
    of a cross-entropy over classes log(units), which is that of classes that are equally frequent.
    """
    if len(history.layout.objectives) != 1:
        return math.nan
    (objective,) = history.layout.objectives
    if objective.sums_examples or objective.weighted:
        return math.nan
    targets = history.data.pooled(objective.target)
    if objective.units > 1 and objective.loss in ("categorical_crossentropy", "sparse_categorical_crossentropy"):
        return math.log(objective.units)
    if targets is None or history.layout.data[objective.target].weighted:
        return math.nan
    if objective.loss == "mean_squared_error":
        return targets.std**2
    if objective.loss == "binary_crossentropy" and 0 < targets.mean < 1:
        share = targets.mean
        return -(share * math.log(share) + (1 - share) * math.log(1 - share))
    return math.nan


class Usual(NamedTuple):
    """Medians over the window of the RecordView's fields of the same names, element by element; NaN if unknown."""

    gradient: np.ndarray
    update_ratio: np.ndarray
    gate_gain: np.ndarray
    weight_gain: np.ndarray
    path_losses: np.ndarray
    path_gains: np.ndarray
    dead_share: np.ndarray
    activation_zero: np.ndarray
    saturated: np.ndarray
    flow_gate: np.ndarray
    total_loss: float
    total_gain: float
    loss: float
    norm: float
    share_kept: float


class Validations(NamedTuple):
    """The losses of the validations so far: the lowest, and the last ones since."""

    seen: int = 0
    lowest: float = math.inf
    lowest_step: int = 0
    """Step of the first record after it."""
    training_loss: float = math.nan
    """Median over the window of records at that step."""
    since: tuple[float, ...] = ()
    """The last RISEN_VALIDATIONS after it, or as many as there were."""

    def add(self, loss: float, step: int, training_loss: float) -> "Validations":
        """Return what is known after one more validation."""
        if loss < self.lowest:
            return Validations(self.seen + 1, loss, step, training_loss)
        return self._replace(seen=self.seen + 1, since=(*self.since, loss)[-RISEN_VALIDATIONS:])


_GROUP_VECTORS = ("gradient", "update_ratio")
_VECTORS = Usual._fields[: Usual._fields.index("total_loss")]
_NUMBERS = Usual._fields[len(_VECTORS) :]


class History:
    """The records so far. `add` takes them in the order of their steps.

    All medians come from one table, so that a record costs one sort. Cached properties are computed when they are first
    read, at most once a record.
    """

    def __init__(self, layout: RunLayout):
        self._begin_window(layout)
        self.data = DataHistory(len(layout.data))
        """The inputs, targets and outputs over all records."""
        self.first: RecordView | None = None
        self.records: int = 0
        self.early_losses: list[float] = []
        """Of the first WINDOW records."""
        self.early_loss: float = math.nan
        """Median of `early_losses`."""
        self.early_norms: list[float] = []
        """Gradient norms of the first WINDOW // 2 records."""
        self.early_norm: float = math.nan
        """Median of `early_norms`."""
        self.first_dead_share: np.ndarray = np.full(layout.layer_count, np.nan)
        """Share of dead units in the first window of examples, [L]."""
        self.weights_moved = False
        """Whether a weight was ever seen to move."""
        self.moved_step = 0
        """Step of the last record in which a weight moved."""
        self.unmoved_records = 0
        """Records of a step that called an optimizer, with a finite gradient that is not 0, before any weight moved."""
        self.unmoved_steps = 0
        """Steps from the first record to the last of these."""
        self._first_norms = np.zeros(0)
        """The first known norm of each variable's weights, [V]."""
        self._away = False
        """True if weights have moved since they were last those of the first record."""
        self.set_back: list[int] = []
        """Steps of the records whose weights are those of the first one again, before the network had learned."""
        self.largest_update: np.ndarray = np.full(len(layout.groups), -np.inf)
        """The largest update ratio so far, [G]; -inf where none is known."""
        self.largest_update_step: np.ndarray = np.zeros(len(layout.groups), int)
        self.distance: np.ndarray = np.zeros(len(layout.groups))
        """Distance that the weights have moved, in multiples of their norm, [G]: the sum of the update ratios over all
        steps."""
        self.losses: deque[float] = deque(maxlen=TREND_RECORDS)
        self._signs = np.zeros(2, int)
        """Numbers of losses so far above and below 0."""
        self.loss_steps: deque[int] = deque(maxlen=TREND_RECORDS)
        """Steps of `losses`."""
        self.gradient_cosines: deque[tuple[int, float]] = deque(maxlen=TREND_RECORDS)
        """Step and cosine of the whole gradient to that of the step before, where both were recorded."""
        self.validations = Validations()
        self._validation_loss = math.nan
        """Loss of the last validation."""
        self.gradient_seen: bool = False
        """Whether any record had a gradient that was not 0."""
        self.highest_norm: float = 0.0
        """The largest norm of the whole gradient so far, without spikes."""
        self.spikes: list[RecordView] = []
        """The first two records at which the gradient rose far above `highest_norm`, and came back."""
        self._risen: list[RecordView] = []
        self.replica_differences: deque[tuple[int, np.ndarray]] = deque(maxlen=LONG)
        """Step and `record_view.replica_differences` [2, R] of the last LONG records."""

    def _begin_window(self, layout: RunLayout) -> None:
        """Begin an empty window of records that have a layout."""
        self.layout = layout
        self.window: deque[RecordView] = deque(maxlen=WINDOW)
        sizes = [len(layout.groups) if name in _GROUP_VECTORS else layout.layer_count for name in _VECTORS]
        self._ends: list[int] = np.cumsum(sizes).tolist()
        self._table = np.full([self._ends[-1] + len(_NUMBERS), WINDOW], np.nan).T
        """The fields of Usual of the window's records, in any order, [WINDOW, N]; NaN for a record still to come."""

    def add(self, record: Record) -> None:
        """Add the next record."""
        for name in _CACHED:
            self.__dict__.pop(name, None)
        self.data.add(record.columns)
        before = self.window[-1] if self.window else None
        view = view_record(self.layout, record, before)
        self.first = self.first or view
        # Weights that start at 0 consist of their updates at first: after n equal ones the ratio is 1 / n, and between
        # their first two records the norm rises from 0. Nor is the ratio of weights that are not finite informative.
        grown = view.step - self.first.step >= 2
        informative = ((self.first.weight > 0) | grown) & (view.number("first_nonfinite_forward", -1) < 0)
        view = view._replace(update_ratio=np.where(informative, view.update_ratio, np.nan))
        self._add_to_window(view)
        self.first_dead_share = np.where(np.isnan(self.first_dead_share), view.dead_share, self.first_dead_share)
        self._add_updates(view, before)
        self._add_moves(view)
        self.losses.append(view.loss)
        self._signs += [view.loss > 0, view.loss < 0]
        self.loss_steps.append(view.step)
        cosine = view.number("gradient_cosine_total")
        if math.isfinite(cosine):
            self.gradient_cosines.append((view.step, cosine))
        self.gradient_seen = self.gradient_seen or not view.gradient_gone
        if self.records <= WINDOW:
            self.early_losses.append(view.loss)
            self.early_loss = float(lower_median(np.array(self.early_losses)))
        if self.records <= WINDOW // 2:
            self.early_norms.append(view.norm)
            self.early_norm = float(lower_median(np.array(self.early_norms)))
        if "replica_norm" in view.columns:
            self.replica_differences.append((view.step, replica_differences(view, self.layout)))
        self._detect_spikes(view)
        loss = view.number("validation_loss")
        if math.isfinite(loss) and loss != self._validation_loss:
            self._validation_loss = loss
            self.validations = self.validations.add(loss, view.step, self.usual.loss)
        self._detect_return(view)

    def extend(self, layout: RunLayout) -> None:
        """Go on with a layout that has further variables or layers behind those that are there."""
        before = self.layout
        window = self.window
        self._begin_window(layout)
        self.records -= len(window)
        for view in window:
            self._add_to_window(extend_view(view, before, layout))
        self.first = None if self.first is None else extend_view(self.first, before, layout)
        self.spikes = [extend_view(view, before, layout) for view in self.spikes]
        self._risen = [extend_view(view, before, layout) for view in self._risen]
        self.first_dead_share = extend_layers(self.first_dead_share, layout)
        self.largest_update = extend_groups(self.largest_update, before, layout, absent=-math.inf)
        self.largest_update_step = extend_groups(self.largest_update_step, before, layout, absent=0)
        self.distance = extend_groups(self.distance, before, layout, absent=0.0)
        for name in _CACHED:
            self.__dict__.pop(name, None)

    def _add_to_window(self, view: RecordView) -> None:
        self.window.append(view)
        vectors = [getattr(view, name) for name in _VECTORS]
        numbers = [getattr(view, name) for name in _NUMBERS]
        self._table[self.records % WINDOW] = np.concatenate([*vectors, numbers])
        self.records += 1

    def _add_updates(self, view: RecordView, before: RecordView | None) -> None:
        larger = view.update_ratio > self.largest_update
        self.largest_update = np.where(larger, view.update_ratio, self.largest_update)
        self.largest_update_step = np.where(larger, view.step, self.largest_update_step)
        if np.any(view.update_ratio > 0):
            self.moved_step = view.step
        steps = view.step - before.step if before else 1
        self.distance += np.where(np.isfinite(view.update_ratio), view.update_ratio, 0) * steps

    def _add_moves(self, view: RecordView) -> None:
        """Note whether a weight has ever moved: in a measured step, or between two of them by its norm."""
        ratio, norm = (view.column(name, self.layout.variable_count) for name in ("update_ratio", "weight_norm"))
        if self._first_norms.shape != norm.shape:  # rows were added
            self._first_norms = np.concatenate([self._first_norms, norm[len(self._first_norms) :]])
        self._first_norms = np.where(np.isnan(self._first_norms), norm, self._first_norms)
        moved = np.any(ratio > 0) or np.any(np.abs(norm - self._first_norms) > 0)
        self.weights_moved = self.weights_moved or bool(moved)
        gradient = view.column("applied_norm", self.layout.variable_count)
        finite = not np.nansum(view.column("gradient_nonfinite", self.layout.variable_count))
        called = view.number("optimizer_called") == 1
        if called and not self.weights_moved and finite and np.any((gradient > 0) & (ratio == 0)):
            self.unmoved_records += 1
            self.unmoved_steps = self.steps_since_first

    def _detect_return(self, view: RecordView) -> None:
        """Note a record whose weights have the norms of the first record to the bit, after they had moved."""
        norm = view.column("weight_norm", self.layout.variable_count)
        known = (norm > 0) & np.isfinite(norm)
        distance = np.abs(norm[known] - self._first_norms[known])
        if np.any(distance > AWAY * norm[known]):
            self._away = True
        elif self._away and len(distance) > 1 and not np.any(distance):
            self._away = False
            if not self.learned and len(self.set_back) < LONG:
                self.set_back.append(view.step)

    def _detect_spikes(self, view: RecordView) -> None:
        limit = SPIKE_FACTOR * self.highest_norm
        if view.norm > limit and self.records > WINDOW // 2 and len(self._risen) < SPIKE_RECORDS:
            self._risen.append(view)
            return
        if self._risen and view.norm <= limit:
            self.spikes = [*self.spikes, self._risen[0]][:2]
        self._risen = []
        self.highest_norm = max(self.highest_norm, view.norm)

    @property
    def has_risen(self) -> bool:
        """True if the gradient of the latest record is the first that is far above `highest_norm`."""
        return len(self._risen) == 1

    @property
    def latest(self) -> RecordView:
        """The latest record."""
        return self.window[-1]

    def first_silent_source(self, layer: int) -> int:
        """Return the first layer on the way to this one whose outputs are all 0: layers after it are silent by it."""
        silent = self.usual.activation_zero >= 1
        while silent[layer] and self.layout.source[layer] >= 0 and silent[self.layout.source[layer]]:
            layer = self.layout.source[layer]
        return layer

    @property
    def settled(self) -> bool:
        """True if there are enough records to say what is usual."""
        return self.records >= WINDOW // 2

    @cached_property
    def usual(self) -> Usual:
        """Medians over the window."""
        row = lower_median(self._table)
        vectors: list[Any] = [row[start:end] for start, end in itertools.pairwise([0, *self._ends])]
        return Usual(*vectors, *row[self._ends[-1] :].tolist())

    def first_step(self, predicate: Callable[[RecordView], Any]) -> int:
        """Return the step of the first record in the window for which the predicate is true, or of the latest."""
        return next((view.step for view in self.window if np.any(predicate(view))), self.latest.step)

    @property
    def examples_per_step(self) -> float:
        """Examples in a step, from the last two records; NaN where that is not known."""
        if len(self.window) < 2:
            return math.nan
        before, latest = self.window[-2], self.window[-1]
        examples = latest.number("examples_seen") - before.number("examples_seen")
        return examples / (latest.step - before.step) if latest.step > before.step else math.nan

    @property
    def steps_since_first(self) -> int:
        """Steps trained since the first record."""
        return self.latest.step - self.first.step if self.first else 0

    @cached_property
    def loss_fall(self) -> float:
        """Share of the first losses that is gone: 0.9 for a loss that fell to a tenth; NaN where no loss is known."""
        return (self.early_loss - self.usual.loss) / abs(self.early_loss) if self.early_loss else math.nan

    @cached_property
    def loss_trend(self) -> float:
        """Normal deviate by which the losses are falling; NaN for too few.

        It is that of the rank-sum test (Mann and Whitney, 1947) of the newer half of the last losses against the older.
        """
        return _fall_deviate(self._spread_losses)

    @cached_property
    def gradient_cosine(self) -> float:
        """Median cosine of consecutive gradients over the last losses; NaN where fewer than half a window are known."""
        known = [cosine for step, cosine in self.gradient_cosines if step >= self.loss_steps[0]]
        return float(np.median(known)) if len(known) >= WINDOW // 2 else math.nan

    @cached_property
    def loss_flat(self) -> bool:
        """True if four fifths of the last losses lie so close together that they do not fall, whatever their order."""
        known = self._spread_losses
        if len(known) < WINDOW:
            return False
        low, middle, high = np.quantile(known, [0.1, 0.5, 0.9])
        steps = self.loss_steps[-1] - self.loss_steps[0]
        return bool(high - low <= min(LITTLE_FALL * steps, MOST_LITTLE_FALL) * abs(middle))

    @cached_property
    def loss_falling(self) -> bool:
        """True if the newer half of the last losses is lower than the older one, by an amount that matters."""
        return self.loss_trend > FALLING_TREND and not self.loss_flat

    @cached_property
    def beats_constant(self) -> bool:
        """True if the newer losses are surely below that of the best answer that is the same for every input.

        A network that comes to its noise floor, or begins there in a second training, has learned. Over classes the
        constant answer is only known for equally frequent ones, so their loss must be half as large.
        """
        mean, _ = self._newer_loss()
        return self.below_constant and mean < FAR_BELOW * self._beatable_loss

    @cached_property
    def below_constant(self) -> bool:
        """True if the same holds by however little, as where the inputs say little about the targets."""
        mean, error = self._newer_loss()
        return not is_impossible(self.usual.loss, self.layout) and mean + SURE_ERRORS * error < self._beatable_loss

    @property
    def may_be_below_constant(self) -> bool:
        """True if the newer losses seem to be below those of that answer, and are too few to be sure either way."""
        mean, _ = self._newer_loss()
        return len(self._spread_losses) < LONG and mean < self._beatable_loss and not self.equals_constant

    @cached_property
    def targets_moved(self) -> bool:
        """True if all of the last targets are farther from the first ones than those from each other.

        Those of Q-learning grow with the values that the network, or an older copy of it, gives.
        """
        rows = self.layout.data
        is_target = np.array([row.kind == "target" for row in rows], bool)
        mean, std = (
            np.array([view.column(name, len(rows)) for view in (self.first or self.latest, *self.window)])
            for name in ("data_mean", "data_std")
        )
        moved = np.abs(mean[1:] - mean[0]) > std[0]
        return bool(np.any(moved.all(axis=0) & (std[0] > 0) & is_target))

    @property
    def takes_both_signs(self) -> bool:
        """True if more than one loss so far was above 0, and more than one below."""
        return bool(self._signs.min() > 1)

    @property
    def _beatable_loss(self) -> float:
        """The loss of a constant answer as far as it is known: NaN, or half of it over classes."""
        objectives = self.layout.objectives
        is_exact = len(objectives) == 1 and objectives[0].loss in ("binary_crossentropy", "mean_squared_error")
        return (1 if is_exact else LEARNED_FALL) * constant_loss(self)

    @cached_property
    def equals_constant(self) -> bool:
        """True if the newer losses are surely about that of the best constant answer, and not surely below it."""
        mean, error = self._newer_loss()
        constant = constant_loss(self)
        tolerance = (1 - FAR_BELOW) * constant
        return SURE_ERRORS * error <= tolerance and -SURE_ERRORS * error <= mean - constant <= tolerance

    def _newer_loss(self) -> tuple[float, float]:
        """Return the mean of the newer half of the last losses and its standard error; NaN for too few."""
        _, newer = self._halves()
        if len(newer) < WINDOW // 2:
            return math.nan, math.nan
        return float(newer.mean()), float(newer.std()) / math.sqrt(len(newer))

    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the older and the newer half of the last losses that are known."""
        older, newer = np.split(self._spread_losses, [len(self._spread_losses) // 2])
        return older, newer

    @cached_property
    def _spread_losses(self) -> np.ndarray:
        """The last losses that are known, spread over the steps: of as many equal spans the last one of each.

        Where the first steps are measured more often than later ones, half of all losses are of a start that is over.
        """
        known = [(step, loss) for step, loss in zip(self.loss_steps, self.losses, strict=True) if math.isfinite(loss)]
        if not known:
            return np.zeros(0)
        steps, losses = np.array(known).T
        span = (steps - steps[0]) * TREND_RECORDS // max(1, steps[-1] - steps[0] + 1)
        return losses[np.append(np.diff(span) > 0, True)]

    @property
    def had_time(self) -> bool:
        """True if there are enough records and steps for a loss to have fallen."""
        return self.records >= LONG and self.steps_since_first >= MIN_STEPS

    @cached_property
    def loss_stuck(self) -> bool:
        """True if the loss had time to fall, did not, and is not falling slowly either.

        A loss that fell from far above has not fallen if it ends at that of a constant answer, and one that is below
        that has nothing left to fall.
        """
        if not self.had_time or self.beats_constant:
            return False
        if self.equals_constant and self.loss_levelled:
            return True  # it fell to there, and no further
        return not self.loss_falling and (self.loss_fall < STUCK_FALL or self.equals_constant)

    @cached_property
    def loss_levelled(self) -> bool:
        """True if the newer half of the last losses does not fall."""
        return _fall_deviate(self._halves()[1]) <= FALLING_TREND

    @property
    def learned(self) -> bool:
        """True if most of the loss is gone, and what is left is less than that of a constant answer."""
        useless = USELESS_SHARES[0] * constant_loss(self)
        if is_impossible(self.usual.loss, self.layout) or self.usual.loss >= useless:
            return False
        return self.loss_fall >= LEARNED_FALL

    @property
    def mastered(self) -> bool:
        """True if nearly all of the loss is gone, of the very first one too, which may have been the smallest."""
        return self.had_time and self.learned and self.loss_fall >= MASTERED_FALL and self.loss_rise <= -MASTERED_FALL

    @cached_property
    def loss_rise(self) -> float:
        """Rise of the loss above the first one, as a share of it; inf where the loss is not finite any more."""
        first = self.first.loss if self.first else math.nan
        nonfinite = self.latest.number("first_nonfinite_forward", -1) >= 0
        lost = nonfinite and math.isfinite(first) and not math.isfinite(self.latest.loss)
        if self.loss_became_nonfinite or lost:
            return math.inf
        return (self.usual.loss - first) / abs(first) if first else math.nan

    @property
    def diverged(self) -> bool:
        """True if the loss has risen to ten times the first one, or is not finite any more."""
        return self.loss_rise >= 9

    @property
    def loss_became_nonfinite(self) -> bool:
        """True if the loss is Inf, or is NaN after it always was a number. A loss that is not recorded is NaN too."""
        if not math.isnan(self.latest.loss):
            return math.isinf(self.latest.loss)
        before = [math.isfinite(view.loss) for view in self.window][:-1]
        return len(before) >= WINDOW // 2 and all(before)


def _fall_deviate(losses: np.ndarray) -> float:
    """Return the normal deviate of the rank-sum test of the newer half of losses against the older; NaN for too few."""
    older, newer = np.split(losses, [len(losses) // 2])
    if len(older) < WINDOW // 2:
        return math.nan
    lower = float(((older[:, None] > newer) + 0.5 * (older[:, None] == newer)).mean())
    return float((lower - 0.5) * math.sqrt(12 * len(older) * len(newer) / (len(older) + len(newer) + 1)))


_CACHED = [name for name, kind in vars(History).items() if isinstance(kind, cached_property)]
