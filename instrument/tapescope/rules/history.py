"""What the rules look at: the last records of a run in full, and of the earlier ones a few numbers. Pure NumPy.

A rule needs to know what is usual, so every question is asked of the median over the last `WINDOW` records; and what
was, so the first record, the first losses and a few extremes are kept. Memory and work a record do not grow.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from tapescope.rules.record_view import Record, Subject, View, apart, median, view

WINDOW = 10
"""Records. A finding about what is usual takes at least half of them: batches differ, and one alone proves nothing."""
LONG = 3 * WINDOW
"""Records after which a loss should have moved, and a small difference that stays is no chance."""
STUCK = 0.1
"""A loss of which less than this share is gone has not fallen far."""
LEARNED = 0.5
"""Share of the loss. Where so much is gone the network learns, and what its gradients come to look like is a mark of
what it learned: they get steep, or close to 0, where a few hard examples are all that is left."""
FALLING = 1.0
"""Normal deviates by which the newer of two halves of the losses lie lower: above it they may well be falling, slowly.
Of a loss that does not fall it is so once in six times, so that this is soon known.
"""
TREND = 10 * WINDOW
"""The last losses, in two halves of which a trend is looked for."""
STEPS = 100
"""Before so many steps nobody can say what a training will not do, however often it was measured."""

SPIKE = 10.0
"""Times the largest norm before. Norms of batches lie within one decade of each other until the loss is near 0, and
then they are far below those of the beginning, with which a spike is compared."""
SPIKE_RECORDS = 3


class Usual(NamedTuple):
    """Medians over the window, element by element, of what a View has by the same name; NaN where there is nothing."""

    gradient: np.ndarray
    pace: np.ndarray
    gate: np.ndarray
    gain: np.ndarray
    losses: np.ndarray
    gains: np.ndarray
    dead: np.ndarray
    activation_zero: np.ndarray
    saturated: np.ndarray
    flow_gate: np.ndarray
    lost: float
    gained: float
    loss: float
    norm: float
    kept: float


VECTORS = Usual._fields[: Usual._fields.index("lost")]
NUMBERS = Usual._fields[len(VECTORS) :]


class History:
    """What was seen so far. `add` takes the records in the order of their steps.

    What the rules ask of all records lies side by side in one table, so that a record costs one sort; what follows from
    it is worked out when it is first asked for, once a record.
    """

    def __init__(self, of: Subject):
        self.of = of
        self.window: deque[View] = deque(maxlen=WINDOW)
        sizes = [len(of.groups) if name in ("gradient", "pace") else of.layers for name in VECTORS]
        self._ends = np.cumsum(sizes).tolist()
        self._table = np.full([self._ends[-1] + len(NUMBERS), WINDOW], np.nan).T
        """The Usual fields of the window's records, in any order, [WINDOW, N]; NaN where there is none yet."""
        self.first: View | None = None
        self.records: int = 0
        self.early_losses: list[float] = []
        """Of the first WINDOW records."""
        self.early_loss: float = math.nan
        """Their median."""
        self.early_norms: list[float] = []
        """Of the first half as many."""
        self.early_norm: float = math.nan
        self.first_dead: np.ndarray = np.full(of.layers, np.nan)
        """The share of dead units in the first window of examples, [L]."""
        self.fastest: np.ndarray = np.full(len(of.groups), -np.inf)
        """The largest pace so far, [G]; -inf where none is known."""
        self.fastest_step: np.ndarray = np.zeros(len(of.groups), int)
        self.way: np.ndarray = np.zeros(len(of.groups))
        """How far the weights have gone, in their own lengths, [G]: the sum of their paces over all steps."""
        self.losses: deque[float] = deque(maxlen=TREND)
        self.highest: float = 0.0
        """The largest norm of the whole gradient so far, spikes left out."""
        self.spikes: list[View] = []
        """The first few records at which the gradient rose far above `highest`, and came back."""
        self._risen: list[View] = []
        self.replicas: deque[tuple[int, np.ndarray]] = deque(maxlen=LONG)
        """Of the last LONG records the step, and how the replicas differ, [2, R]: see `apart`."""

    def add(self, record: Record) -> None:
        for name in _OF_NOW:
            self.__dict__.pop(name, None)
        before = self.window[-1] if self.window else None
        now = view(self.of, record, before)
        self.first = self.first or now
        # What starts at 0, as shifts and biases do, is made of its updates: their share of it says nothing. Nor does
        # that of what is not finite.
        says = (self.first.weight > 0) & (now.number("first_nonfinite_forward", -1) < 0)
        now = now._replace(pace=np.where(says, now.pace, np.nan))
        self.window.append(now)
        vectors, numbers = ([getattr(now, name) for name in names] for names in (VECTORS, NUMBERS))
        self._table[self.records % WINDOW] = np.concatenate([*vectors, numbers])
        self.records += 1
        self.first_dead = np.where(np.isnan(self.first_dead), now.dead, self.first_dead)
        faster = now.pace > self.fastest
        self.fastest = np.where(faster, now.pace, self.fastest)
        self.fastest_step = np.where(faster, now.step, self.fastest_step)
        self.way += np.where(np.isfinite(now.pace), now.pace, 0) * (now.step - before.step if before else 1)
        self.losses.append(now.loss)
        if self.records <= WINDOW:
            self.early_losses.append(now.loss)
            self.early_loss = float(median(np.array(self.early_losses)))
        if self.records <= WINDOW // 2:
            self.early_norms.append(now.norm)
            self.early_norm = float(median(np.array(self.early_norms)))
        if "replica_norm" in now.columns:
            self.replicas.append((now.step, apart(now, self.of)))
        self._watch_for_spikes(now)

    def _watch_for_spikes(self, now: View) -> None:
        """A rise that lasts is no spike: it is the new level."""
        if self.records > WINDOW // 2 and now.norm > SPIKE * self.highest and len(self._risen) < SPIKE_RECORDS:
            self._risen.append(now)
            return
        if self._risen and now.norm <= SPIKE * self.highest:
            self.spikes = [*self.spikes, self._risen[0]][:2]
        self._risen = []
        self.highest = max(self.highest, now.norm)

    @property
    def now(self) -> View:
        return self.window[-1]

    @property
    def settled(self) -> bool:
        """Whether there are records enough to say what is usual."""
        return self.records >= WINDOW // 2

    @cached_property
    def usual(self) -> Usual:
        """What most of the last records say."""
        row = median(self._table)
        parts: list[Any] = [row[start:end] for start, end in itertools.pairwise([0, *self._ends])]
        return Usual(*parts, *row[self._ends[-1] :].tolist())

    def since(self, what: Callable[[View], Any]) -> int:
        """The step of the first record in the window of which this is true."""
        return next((v.step for v in self.window if np.any(what(v))), self.now.step)

    @cached_property
    def fall(self) -> float:
        """The share of the first losses that is gone: 0.9 where the loss fell to a tenth. NaN where none is known."""
        late, early = self.usual.loss, self.early_loss
        return (early - late) / abs(early) if early else math.nan

    @cached_property
    def trend(self) -> float:
        """How surely the losses are falling: the normal deviate of the rank-sum test (Mann and Whitney, 1947) of the
        newer half of the last ones against the older half. NaN where there are too few.
        """
        known = np.array([loss for loss in self.losses if math.isfinite(loss)])
        older, newer = np.split(known, [len(known) // 2])
        if len(older) < WINDOW // 2:
            return math.nan
        lower = np.mean((older[:, None] > newer) + 0.5 * (older[:, None] == newer))
        return float((lower - 0.5) * math.sqrt(12 * len(older) * len(newer) / (len(known) + 1)))

    @property
    def steps(self) -> int:
        """Trained since the first record."""
        return self.now.step - self.first.step if self.first else 0

    @cached_property
    def stuck(self) -> bool:
        """Whether the loss had the time to fall, did not, and is not about to: slow is not stuck."""
        patient = self.records >= LONG and self.steps >= STEPS
        return patient and self.fall < STUCK and not self.trend > FALLING

    @property
    def learned(self) -> bool:
        """Whether most of the loss is gone."""
        return self.fall >= LEARNED

    @cached_property
    def rise(self) -> float:
        """How far the loss is above the very first one, as a share of it; inf where it is no number any more."""
        first = self.first.loss if self.first else math.nan
        late = self.usual.loss
        ill = self.now.number("first_nonfinite_forward", -1) >= 0
        if self.loss_is_lost or (ill and math.isfinite(first) and not math.isfinite(self.now.loss)):
            return math.inf
        return (late - first) / abs(first) if first else math.nan

    @property
    def loss_is_lost(self) -> bool:
        """Whether the loss is Inf, or is NaN where it always was a number. (NaN is also one that was not recorded.)"""
        if not math.isnan(self.now.loss):
            return math.isinf(self.now.loss)
        before = [math.isfinite(v.loss) for v in self.window][:-1]
        return len(before) >= WINDOW // 2 and all(before)


_OF_NOW = [name for name, kind in vars(History).items() if isinstance(kind, cached_property)]
