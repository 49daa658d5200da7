"""One record as the rules see it: by layers, and along the path of the gradient. Pure NumPy.

Letters: L layers, V variables, G groups, R replicas. A group is what is trained together: the variables of a layer, or
one that is no measured layer's own. The layers are the first L groups, with NaN where one has no variable.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope.capture import layer_graph


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
    names: tuple[str, ...]
    """Of the variables."""
    activations: tuple[str, ...]
    units: np.ndarray
    """Of each layer, [L]."""
    path: tuple[int, ...]
    """The layers that the gradient's budget follows, from the last one back to one that nothing measured feeds."""
    sinks: np.ndarray
    """Whether no measured layer reads it: an output, bool [L]."""
    heads: np.ndarray
    """Whether it reads the data, bool [L]: no measured layer feeds it, and no other trained one, as an embedding is,
    comes before it."""
    follow: tuple[int, ...]
    """The layer that feeds each one, as the budget follows them; -1 where none does."""
    reader: np.ndarray
    """The last layer that reads each one, -1 where none does, [L]."""
    usual_gain: np.ndarray
    """Decades by which Glorot's initialization changes a gradient's length on its way back through the weights, [L]."""
    faults: tuple[Sequence[Any], ...] = ()
    """What Keras does otherwise with several replicas: kind, layer and setting, as `faults.Fault`."""

    @property
    def layers(self) -> int:
        return len(self.activations)

    @property
    def variables(self) -> int:
        return len(self.names)


def subject(variables: Sequence[str], layers: Sequence[str], details: Mapping[str, Any]) -> Subject:
    """From what a Run says of itself. Where a run does not say what feeds a layer, it is the one before."""
    own = details.get("variables", [()] * len(layers))
    orphans = [v for v in range(len(variables)) if not any(v in o for o in own)]
    other = min(orphans, default=len(variables) + 1)
    pairs = [(g, v) for g, o in enumerate([*own, *([v] for v in orphans)]) for v in o]
    chain = [(i - 1,) if i else () for i in range(len(layers))]
    sources = details.get("sources") or chain
    follow = layer_graph.latest(sources)
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
        names=tuple(variables),
        activations=tuple(details.get("activations", ["unknown"] * len(layers))),
        units=units,
        path=tuple(path),
        sinks=reader < 0,
        heads=np.array([f < 0 and min(o, default=0) < other for f, o in zip(follow, own, strict=True)], bool),
        follow=tuple(follow),
        reader=reader,
        usual_gain=np.array([_glorot(units[f], units[n]) if f >= 0 else 0 for n, f in enumerate(follow)]),
        faults=tuple(tuple(fault) for fault in details.get("faults", ())),
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
    losses: np.ndarray
    """Decades that each layer on the path takes, [L], NaN off it. What lies between may make up for it, not add to it:
    pooling divides a gradient, and takes nothing from it."""
    gains: np.ndarray
    """Decades that each layer on the path adds, [L]. What lies between, as normalisation, may take away, not add."""
    lost: float
    """The sum of the losses."""
    gained: float
    dead: np.ndarray
    """Share of its units that never fired, [L]."""
    activation_zero: np.ndarray
    """As on the wire, [L]; so are the next two."""
    saturated: np.ndarray
    flow_gate: np.ndarray
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


_OF_LAYERS = ("activation_zero", "saturated", "flow_gate", "flow_weight", "flow_between")


def view(of: Subject, record: Record, before: View | None) -> View:
    """A record, seen as the rules need it. Between two records weights change at least as much as their norms do."""
    columns = record.columns
    nan = np.full(of.variables, np.nan)
    gradient, applied, weight, ratio = (
        np.asarray(columns.get(name, nan), float)
        for name in ("gradient_norm", "applied_norm", "weight_norm", "update_ratio")
    )
    with np.errstate(all="ignore"):
        of_variables = np.stack([gradient, weight, np.where(weight > 0, ratio * weight, np.nan)])
        group_gradient, group_weight, change = _joined(of, of_variables)
        pace = change / group_weight
        if before is not None and record.step > before.step:
            change = np.abs(group_weight - before.weight) / (before.weight * (record.step - before.step))
            pace = np.fmax(pace, change)
        none = np.full(of.layers, np.nan)
        zero, saturated, flow_gate, gain, between = (np.asarray(columns.get(name, none), float) for name in _OF_LAYERS)
        unknown = np.isnan(gain)
        gate = np.where(of.sinks | np.isnan(flow_gate), 0.0, flow_gate)
        gain, between = np.where(unknown, 0.0, gain), np.where(np.isnan(between), 0.0, between)
        losses, gains = (
            _on_path(of, gate, gain + np.where(unknown, between, excuse(between, 0)))
            for excuse in (np.maximum, np.minimum)
        )
        norm = float(np.sqrt(np.nansum(np.square(gradient))))
        known = np.where(np.isnan(applied), np.nan, gradient)
        kept = np.sqrt(np.nansum(np.square(applied)) / np.nansum(np.square(known)))
        return View(
            step=record.step,
            columns=columns,
            loss=float(columns.get("loss", np.nan)),
            gradient=group_gradient,
            weight=group_weight,
            pace=pace,
            gate=gate,
            gain=gain,
            between=between,
            losses=losses,
            gains=gains,
            lost=float(np.nansum(losses)),
            gained=float(np.nansum(gains)),
            dead=columns.get("units_dead", none) / of.units,
            activation_zero=zero,
            saturated=saturated,
            flow_gate=flow_gate,
            norm=norm,
            kept=float(kept),
        )


def _on_path(of: Subject, gate: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The decades of the layers on the path; inf - inf is 0: what one takes whole, another brings."""
    parts = np.full(of.layers, np.nan)
    path = list(of.path)
    # What the first layer's weights do to the gradient of its input is nobody's loss.
    along = gate[path]
    along[:-1] += weights[path[:-1]]
    parts[path] = np.where(np.isnan(along), 0, along)
    return parts


def _joined(of: Subject, values: np.ndarray) -> np.ndarray:
    """L2 norms of groups, [N, G], from those of variables, [N, V]; NaN where all of a group's are."""
    groups, variables = of.owned
    squares, size = np.square(values[:, variables]), len(of.groups)
    there = ~np.isnan(squares)
    places = (groups + size * np.arange(len(values))[:, None])[there]
    sums = np.bincount(places, squares[there], size * len(values))
    there = np.bincount(places, minlength=size * len(values)) > 0
    return np.where(there, np.sqrt(sums), np.nan).reshape(len(values), size)


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


def largest(values: np.ndarray) -> int:
    """Index of the largest; NaN is none."""
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def median(values: np.ndarray) -> np.ndarray:
    """Along axis 0, NaN left out; of two middle values the lower one, so that -inf and a number have a median."""
    count = (~np.isnan(values)).sum(0)
    middle = np.maximum(count - 1, 0) // 2
    in_order = np.sort(values, 0)
    if in_order.ndim == 1:
        return in_order[middle]
    flat = in_order.reshape(len(in_order), -1)
    return flat[middle.reshape(-1), np.arange(flat.shape[1])].reshape(in_order.shape[1:])
