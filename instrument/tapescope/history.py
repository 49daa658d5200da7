"""What the rules look at: the last records of a run in full, and of the earlier ones a few numbers. Pure NumPy.

A rule needs to know what is usual, so every question is asked of the median over the last `WINDOW` records; and what
was, so the first record, the first losses and a few extremes are kept. Memory and work a record do not grow.

Letters: L layers, V variables, G groups, R replicas. A group is what is trained together: the variables of a layer, or
one that is no measured layer's own. The layers are the first L groups, with NaN where one has no variable.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope import flow

WINDOW = 10
"""Records. A finding about what is usual takes at least half of them: batches differ, and one alone proves nothing."""
LONG = 3 * WINDOW
"""Records after which a loss should have moved, and a small difference that stays is no chance."""
STUCK = 0.1
"""A loss of which less than this share is gone has not fallen."""

SPIKE = 10.0
"""Times the largest norm before. Norms of batches lie within one decade of each other until the loss is near 0, and
then they are far below those of the beginning, with which a spike is compared."""
SPIKE_RECORDS = 3


class Record(NamedTuple):
    """One measured step, as it is on the wire."""

    step: int
    columns: Mapping[str, np.ndarray]
    """By name: [V], [L], [] or, for the replicas', [R, V]."""


class Subject(NamedTuple):
    """What the rows of a run's records are."""

    groups: tuple[str, ...]
    """Names: those of the layers, then those of the variables that no measured layer owns."""
    owned: tuple[np.ndarray, np.ndarray]
    """Pairs of a group and a variable that it has, as two lists of indices."""
    variables: int
    activations: tuple[str, ...]
    units: np.ndarray
    """Of each layer, [L]."""
    path: tuple[int, ...]
    """The layers that the gradient's budget follows, from the last one back to one that nothing measured feeds."""
    sinks: np.ndarray
    """Whether no measured layer reads it: an output, bool [L]."""
    heads: np.ndarray
    """Whether no measured layer feeds it: it reads the data, bool [L]."""
    follow: tuple[int, ...]
    """The layer that feeds each one, as the budget follows them; -1 where none does."""
    reader: np.ndarray
    """The last layer that reads each one, -1 where none does, [L]."""
    usual_gain: np.ndarray
    """Decades by which Glorot's initialization changes a gradient's length on its way back through the weights, [L]."""

    @property
    def layers(self) -> int:
        return len(self.activations)


def subject(variables: Sequence[str], layers: Sequence[str], details: Mapping[str, Any]) -> Subject:
    """From what a Run says of itself. Where a run does not say what feeds a layer, it is the one before."""
    own = details.get("variables", [()] * len(layers))
    orphans = [v for v in range(len(variables)) if not any(v in o for o in own)]
    pairs = [(g, v) for g, o in enumerate([*own, *([v] for v in orphans)]) for v in o]
    chain = [(i - 1,) if i else () for i in range(len(layers))]
    sources = details.get("sources") or chain
    follow = flow.latest(sources)
    path = [len(layers) - 1] if layers else []
    while path and 0 <= follow[path[-1]] < path[-1]:
        path.append(follow[path[-1]])
    reader = np.full(len(layers), -1)
    for layer, of_layer in enumerate(sources):
        reader[list(of_layer)] = layer
    units = np.asarray(details.get("units", [0] * len(layers)), float)
    return Subject(
        groups=(*layers, *(variables[v] for v in orphans)),
        owned=(np.array([g for g, _ in pairs], int), np.array([v for _, v in pairs], int)),
        variables=len(variables),
        activations=tuple(details.get("activations", ["unknown"] * len(layers))),
        units=units,
        path=tuple(path),
        sinks=reader < 0,
        heads=np.asarray(follow, int) < 0,
        follow=tuple(follow),
        reader=reader,
        usual_gain=np.array([_glorot(units[f], units[n]) if f >= 0 else 0 for n, f in enumerate(follow)]),
    )


def _glorot(inputs: float, outputs: float) -> float:
    """The square of the gain is the number of inputs times the variance of a weight, 2 / (inputs + outputs)."""
    return 0.5 * math.log10(2 * inputs / (inputs + outputs)) if inputs > 0 else 0.0


class View(NamedTuple):
    """One record, seen by groups and along the path. Decades are log10."""

    step: int
    columns: Mapping[str, np.ndarray]
    loss: float
    gradient: np.ndarray
    """L2 of the group's gradient, [G]; NaN where it has none."""
    weight: np.ndarray
    """L2 of its weights, [G]."""
    pace: np.ndarray
    """The update over the weights, [G]. A variable that is still all 0 counts for nothing."""
    gate: np.ndarray
    """Decades that the layer's activation adds to its gradient, [L]; 0 where not defined, and for an output."""
    gain: np.ndarray
    """Decades that its weights add, [L]; 0 where not defined."""
    between: np.ndarray
    """Decades that come in between it and its source, [L]; 0 where not defined."""
    dead: np.ndarray
    """Share of its units that never fired, [L]."""
    norm: float
    """L2 of the whole gradient."""
    kept: float
    """Length of the gradient that the optimizer was given, over that of what there was."""

    def column(self, name: str, size: int) -> np.ndarray:
        """A column of that size; NaN where the run does not have it."""
        return np.asarray(self.columns.get(name, np.full(size, np.nan)), float)

    def layers(self, name: str) -> np.ndarray:
        """A column of the layers, [L]."""
        return self.column(name, len(self.gate))

    def number(self, name: str, absent: float = math.nan) -> float:
        """A number of the step."""
        return float(self.columns.get(name, absent))


def view(of: Subject, record: Record, before: View | None) -> View:
    """A record, seen as the rules need it. Between two records weights change at least as much as their norms do."""
    columns = record.columns
    nan = np.full(of.variables, np.nan)
    gradient, applied, weight, ratio = (
        np.asarray(columns.get(name, nan), float)
        for name in ("gradient_norm", "applied_norm", "weight_norm", "update_ratio")
    )
    with np.errstate(all="ignore"):
        of_group = [_joined(of, values) for values in (gradient, weight, np.where(weight > 0, ratio * weight, np.nan))]
        pace = of_group[2] / of_group[1]
        if before is not None and record.step > before.step:
            change = np.abs(of_group[1] - before.weight) / (before.weight * (record.step - before.step))
            pace = np.fmax(pace, change)
        none = np.full(of.layers, np.nan)
        gate, gain, between = (
            np.array(columns.get(name, none), float) for name in ("flow_gate", "flow_weight", "flow_between")
        )
        norm = float(np.sqrt(np.nansum(np.square(gradient))))
        known = np.where(np.isnan(applied), np.nan, gradient)
        kept = np.sqrt(np.nansum(np.square(applied)) / np.nansum(np.square(known)))
        return View(
            step=record.step,
            columns=columns,
            loss=float(columns.get("loss", np.nan)),
            gradient=of_group[0],
            weight=of_group[1],
            pace=pace,
            gate=np.where(of.sinks | np.isnan(gate), 0.0, gate),
            gain=np.where(np.isnan(gain), 0.0, gain),
            between=np.where(np.isnan(between), 0.0, between),
            dead=columns.get("units_dead", none) / of.units,
            norm=norm,
            kept=float(kept),
        )


def _joined(of: Subject, values: np.ndarray) -> np.ndarray:
    """L2 norms of groups, [G], from those of variables, [V]; NaN where all of a group's are."""
    groups, variables = of.owned
    there = ~np.isnan(values[variables])
    size = len(of.groups)
    squares = np.bincount(groups[there], np.square(values[variables[there]]), size)
    return np.where(np.bincount(groups[there], minlength=size) > 0, np.sqrt(squares), np.nan)


def apart(view: View, of: Subject) -> np.ndarray:
    """How each replica's whole gradient differs from the median of the others', [2, R]: log10 of the ratio of their
    norms, and the difference of their cosines to the mean.
    """
    norms, cosines = (np.asarray(view.columns[f"replica_{name}"], float) for name in ("norm", "cosine"))
    total = view.column("gradient_norm", of.variables)
    with np.errstate(all="ignore"):
        length = np.sqrt(np.nansum(np.square(norms), axis=1))
        cosine = np.nansum(cosines * norms * total, axis=1) / (length * np.sqrt(np.nansum(np.square(total))))
        values = np.stack([np.log10(length), cosine])
        others = [median(np.delete(values, r, axis=1).T) for r in range(len(length))]
        return values - np.stack(others, axis=1)


class History:
    """What was seen so far. `add` takes the records in the order of their steps."""

    def __init__(self, of: Subject):
        self.of = of
        self.window: deque[View] = deque(maxlen=WINDOW)
        self.first: View | None = None
        self.records = 0
        self.early_losses: list[float] = []
        """Of the first WINDOW records."""
        self.early_norms: list[float] = []
        self.first_dead = np.full(of.layers, np.nan)
        """The share of dead units in the first window of examples, [L]."""
        self.fastest = np.full(len(of.groups), -np.inf)
        """The largest pace so far, [G]; -inf where none is known."""
        self.fastest_step = np.zeros(len(of.groups), int)
        self.way = np.zeros(len(of.groups))
        """How far the weights have gone, in their own lengths, [G]: the sum of their paces over all steps."""
        self.losses: deque[float] = deque(maxlen=2 * WINDOW)
        self.highest = 0.0
        """The largest norm of the whole gradient so far, spikes left out."""
        self.spikes: list[View] = []
        """The first few records at which the gradient rose far above `highest`, and came back."""
        self._risen: list[View] = []
        self.replicas: deque[tuple[int, np.ndarray]] = deque(maxlen=LONG)
        """Of the last LONG records the step, and how the replicas differ, [2, R]: see `apart`."""

    def add(self, record: Record) -> None:
        before = self.window[-1] if self.window else None
        now = view(self.of, record, before)
        self.first = self.first or now
        # What starts at 0, as shifts and biases do, is made of its updates: their share of it says nothing. Nor does
        # that of what is not finite.
        says = (self.first.weight > 0) & (now.number("first_nonfinite_forward", -1) < 0)
        now = now._replace(pace=np.where(says, now.pace, np.nan))
        self.window.append(now)
        self.records += 1
        self.first_dead = np.where(np.isnan(self.first_dead), now.dead, self.first_dead)
        faster = now.pace > self.fastest
        self.fastest = np.where(faster, now.pace, self.fastest)
        self.fastest_step = np.where(faster, now.step, self.fastest_step)
        self.way += np.nan_to_num(now.pace, posinf=0) * (now.step - before.step if before else 1)
        self.losses.append(now.loss)
        if self.records <= WINDOW:
            self.early_losses.append(now.loss)
            self.early_norms.append(now.norm)
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

    def usual(self, what: Callable[[View], Any]) -> Any:
        """The median over the window, element by element; NaN where there is nothing."""
        return median(np.stack([np.asarray(what(v), float) for v in self.window]))

    def since(self, what: Callable[[View], Any]) -> int:
        """The step of the first record in the window of which this is true."""
        return next((v.step for v in self.window if np.any(what(v))), self.now.step)

    @property
    def early_norm(self) -> float:
        """The gradient's usual norm in the first records."""
        return float(median(np.array(self.early_norms[: WINDOW // 2])))

    @property
    def fall(self) -> float:
        """The share of the first losses that is gone: 0.9 where the loss fell to a tenth. NaN where none is known."""
        late, early = float(self.usual(lambda v: v.loss)), float(median(np.array(self.early_losses)))
        return (early - late) / abs(early) if early else math.nan

    @property
    def recent_fall(self) -> float:
        """The share of the first losses that went between the last window and the one before it; NaN without these."""
        if len(self.losses) < 2 * WINDOW:
            return math.nan
        before, late = (float(median(np.array(part))) for part in np.split(np.array(self.losses), 2))
        early = float(median(np.array(self.early_losses)))
        return (before - late) / abs(early) if early else math.nan

    @property
    def rise(self) -> float:
        """How far the loss is above the very first one, as a share of it; inf where it is no number any more."""
        first = self.first.loss if self.first else math.nan
        late = float(self.usual(lambda v: v.loss))
        ill = self.now.number("first_nonfinite_forward", -1) >= 0
        if self.loss_is_lost or (ill and math.isfinite(first) and not math.isfinite(self.now.loss)):
            return math.inf
        return (late - first) / abs(first) if first else math.nan

    @property
    def loss_is_lost(self) -> bool:
        """Whether the loss is Inf, or is NaN where it always was a number. (NaN is also one that was not recorded.)"""
        before = [math.isfinite(v.loss) for v in self.window][:-1]
        lost = math.isnan(self.now.loss) and len(before) >= WINDOW // 2 and all(before)
        return lost or math.isinf(self.now.loss)


def largest(values: np.ndarray) -> int:
    """Index of the largest; NaN is none."""
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def median(values: np.ndarray) -> np.ndarray:
    """Along axis 0, NaN left out; of two middle values the lower one, so that -inf and a number have a median."""
    count = (~np.isnan(values)).sum(0)
    middle = np.maximum(count - 1, 0) // 2
    return np.take_along_axis(np.sort(values, 0), np.asarray(middle)[None], 0)[0]
