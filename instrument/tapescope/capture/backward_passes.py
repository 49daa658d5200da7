"""The backward passes of one step, and which of them is measured for which layer.

A step may take several gradients. A GAN's generator and discriminator have a tape each; a persistent tape is asked
twice. Each layer is then measured in the pass that trains it, the last that asked for its variables. An activation
layer has no variables and goes with the nearest model around it. The generator's loss trains no layer of the
discriminator, so its gradients there are not recorded.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tapescope.capture.attention import AttentionCall, StreamPoint
from tapescope.capture.layer_hooks import LayerCall
from tapescope.capture.selection import Selection


class BackwardPass(NamedTuple):
    """One call of `tape.gradient`, or several of one step merged."""

    number: int
    """Position in the order of calls, over all tapes."""
    calls: Sequence[LayerCall]
    """Calls in forward order, with their gradients."""
    gradients: Mapping[int, Any]
    """Gradient by the id of each trainable variable that was asked for; None where there is none."""
    variables: Mapping[int, Any]
    """Each of the V variables that were trainable then, by id."""
    weights: Mapping[int, tf.Tensor]
    """Value of each of them before the step's first update, by id."""
    attention: Sequence[AttentionCall] = ()
    """Calls of attention layers, in forward order."""
    stream: Sequence[StreamPoint] = ()
    """The residual stream, by depth."""

    @property
    def all_calls(self) -> Sequence[LayerCall | AttentionCall | StreamPoint]:
        """Everything that belongs to a call of a layer."""
        return [*self.calls, *self.attention, *self.stream]


def merge_passes(passes: Sequence[BackwardPass], selection: Selection) -> BackwardPass:
    """Return the one pass that holds each layer and variable from the pass that trains it.

    Args:
      passes: all passes of a step, at least one.
      selection: the variables and layers that are measured.

    Returns:
      A pass whose `variables`, `gradients` and `weights` have all V variables, in one order: all that were trainable in
      one of the passes, as a step may set `trainable` between them.
    """
    passes = sorted(passes, key=lambda p: p.number)
    variables: dict[int, Any] = {}
    weights: dict[int, tf.Tensor] = {}
    pass_of_variable: dict[int, BackwardPass] = {}
    for each in passes:
        variables = {**variables, **each.variables}
        weights = {**each.weights, **weights}  # a step may change weights between its passes
        pass_of_variable = {**dict.fromkeys(each.variables, each), **pass_of_variable}
    for each in passes:
        pass_of_variable.update(dict.fromkeys(each.gradients, each))
    order = {id(v): i for i, v in enumerate(selection.variables())}
    variables = dict(sorted(variables.items(), key=lambda item: order.get(item[0], len(order))))
    scopes = selection.variable_scopes() if len(passes) > 1 else {}
    calls: dict[tuple[type, int], Any] = {}
    for each in passes:
        for call in each.all_calls:
            if _training_pass(call, passes, scopes) is each:
                calls[type(call), call.number] = call

    def in_order(kind: type) -> list[Any]:
        return [calls[key] for key in sorted((k for k in calls if k[0] is kind), key=lambda k: k[1])]

    return BackwardPass(
        number=passes[-1].number,
        calls=in_order(LayerCall),
        attention=in_order(AttentionCall),
        stream=in_order(StreamPoint),
        variables=variables,
        gradients={v: pass_of_variable[v].gradients.get(v) for v in variables},
        weights={v: weights[v] for v in variables},
    )


def _training_pass(
    call: LayerCall | AttentionCall | StreamPoint,
    passes: Sequence[BackwardPass],
    scopes: Mapping[int, Sequence[frozenset[int]]],
) -> BackwardPass:
    """Return the last pass that asked for variables of the layer, or of the nearest model around it that has some."""
    for variables in scopes.get(id(call.layer), ()):
        training = [each for each in passes if not variables.isdisjoint(each.gradients)]
        if training:
            return training[-1]
    return [each for each in passes if any(c.name == call.name for c in each.all_calls)][-1]
