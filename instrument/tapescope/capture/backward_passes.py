"""The backward passes of one step, and which of them speaks for which layer.

A step may take several gradients: a GAN's generator and discriminator have a tape each, a persistent tape is asked
twice. Each layer is then read from the pass that trains it, the last that asked for its variables, or, as an activation
layer has none, for those of the nearest model around it: what the generator's loss says of the discriminator's layers
trains nothing, and is no row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tapescope.capture.layer_hooks import Call
from tapescope.capture.selection import Selection

Deltas = tuple[Any, Any, Any]
"""Gradients with respect to the a, z and input of a call; None where there is none."""


class Pass(NamedTuple):
    """One call of `tape.gradient`."""

    number: int
    """Counted over all tapes, so that those of several can be put in order."""
    calls: Sequence[Call]
    deltas: Sequence[Deltas]
    gradients: Mapping[int, Any]
    """By the id of those of the model's variables that it was asked for."""
    weights: Mapping[int, tf.Tensor]
    """By id, all of the model's variables as they were."""


class Together(NamedTuple):
    """What all passes of a step say."""

    calls: list[Call]
    deltas: list[Deltas]
    gradients: list[Any]
    """Of the V variables; None where no pass asked for it, or found none."""
    weights: list[tf.Tensor]
    """The V variables before they were updated."""


def together(passes: Sequence[Pass], selection: Selection) -> Together:
    """One answer from all passes of a step."""
    passes = sorted(passes, key=lambda p: p.number)
    of_variable = {id(v): passes[0] for v in selection.variables()}
    for one in passes:
        of_variable.update(dict.fromkeys(one.gradients, one))
    rows = {}
    scopes = selection.scopes() if len(passes) > 1 else {}
    for one in passes:
        for call, deltas in zip(one.calls, one.deltas, strict=True):
            if _speaks(passes, call, scopes) is one:
                rows[call.number] = call, deltas
    found = [rows[number] for number in sorted(rows)]
    return Together(
        calls=[call for call, _ in found],
        deltas=[deltas for _, deltas in found],
        gradients=[one.gradients.get(v) for v, one in of_variable.items()],
        weights=[one.weights[v] for v, one in of_variable.items()],
    )


def _speaks(passes: Sequence[Pass], call: Call, scopes: Mapping[int, Sequence[frozenset[int]]]) -> Pass:
    for variables in scopes.get(id(call.layer), ()):
        training = [one for one in passes if not variables.isdisjoint(one.gradients)]
        if training:
            return training[-1]
    return [one for one in passes if any(c.name == call.name for c in one.calls)][-1]
