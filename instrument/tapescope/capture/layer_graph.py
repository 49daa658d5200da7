"""The gradient-flow budget: what each layer on the way back cost the gradient, in decades.

With z the pre-activation, a the output and `input` the input of layer l, and s the layer that feeds it,

    flow_gate(l)    = log10 |dL/dz| / |dL/da|          what the activation's derivative took
    flow_weight(l)  = log10 |dL/dinput| / |dL/dz|      what the weights took
    flow_between(l) = log10 |dL/da of s| / |dL/dinput| what lies between two measured layers (pooling, normalisation,
                                                       reshaping), and what comes in by other ways around l

so that along any path from the last layer to the first the parts add up to log10 of the ratio of their delta norms: the
terms cancel one after another. On a chain of layers `flow_between` is 0. Where a skip connection leads around a layer,
the gradient that it brings is in `flow_between`, which is then positive. All norms are taken over the global batch.

A layer's input is a name of its own for the tensor, so that |dL/dinput| is the part that flows through this layer, and
each call of a shared layer has its own. A layer whose input is not one tensor (a tap) has all its cost in
`flow_between`; the gate of an output whose loss is computed from the logits, as Keras does for softmax, is not defined.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope.capture.layer_hooks import Call


def sources(calls: Sequence[Call]) -> tuple[tuple[int, ...], ...]:
    """For each call the indices of the calls whose outputs reach its input with no other measured output in between.

    Followed backwards in the graph. Eager tensors have none: there each call is taken to follow the one before.
    """
    if any(hasattr(call.a, "numpy") for call in calls):
        return tuple((i - 1,) if i else () for i in range(len(calls)))
    index = {call.a.ref(): i for i, call in enumerate(calls)}
    return tuple(_reached(call, i, index) for i, call in enumerate(calls))


def _reached(call: Call, own: int, index: Mapping[Any, int]) -> tuple[int, ...]:
    waiting = [call.a if call.input is None else call.input]
    seen, found = {waiting[0].ref()}, set()
    while waiting:
        tensor = waiting.pop()
        at = index.get(tensor.ref(), own)
        if at != own:
            found.add(at)
            continue
        for given in tensor.op.inputs:
            if given.ref() not in seen:
                seen.add(given.ref())
                waiting.append(given)
    return tuple(sorted(found))


def latest(sources: Sequence[Sequence[int]]) -> list[int]:
    """The source that the budget follows, the last in forward order: the main branch of a block; -1 where none is."""
    return [max(of_layer, default=-1) for of_layer in sources]


class Part(NamedTuple):
    """What one layer cost, in decades; negative is a loss. A part that is not defined is NaN and counts as 0."""

    layer: str
    gate: float
    weight: float
    between: float

    @property
    def total(self) -> float:
        return float(np.nansum([self.gate, self.weight, self.between]))


def budget(
    layers: Sequence[str], columns: Mapping[str, np.ndarray], sources: Sequence[Sequence[int]], first: int | None = None
) -> list[Part]:
    """The parts along the path from the last layer back to layer `first`, or to one that nothing measured feeds.

    `columns` are `flow_gate`, `flow_weight` and `flow_between`, [L], of one step (or averaged over some: they are
    logarithms). The parts add up to log10 of the ratio of the delta norms at both ends. The first layer itself has no
    part: what its own gate takes from its own weights' gradient is not lost on the way to it.
    """
    follow, at, parts = latest(sources), len(layers) - 1, []
    while at > 0 and at != first and follow[at] >= 0:
        values = (float(columns[name][at]) for name in ("flow_gate", "flow_weight", "flow_between"))
        parts.append(Part(layers[at], *values))
        at = follow[at]
    return parts
