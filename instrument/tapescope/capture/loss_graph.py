"""Facts that the graph of a loss tells.

The learning rate of a sum over the batch in the place of the mean depends on the size of the batch: its gradient is as
many times that of the mean as there are examples. An optimizer sums the gradients of the replicas, so the mean over one
replica's share is too large as well. A loss of targets [B] and outputs [B, 1] is of all pairs of them.
A cross-entropy of logits that gets the outputs of a softmax or a sigmoid applies it twice. Those of ReLU are not
logits. A loss of probabilities takes logarithms of what it cuts to at most 1, or subtracts from 1.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_PASSES_ON = {"Cast", "Identity", "Neg", "Reshape", "Squeeze", "StopGradient"}
_DIVIDES = {"DivNoNan", "RealDiv"}
_ELEMENTWISE = {"AddV2", "Maximum", "Minimum", "Mul", "Pow", "RealDiv", "SquaredDifference", "Sub", "Xlogy"}
_DIFFERENCES = {"SquaredDifference", "Sub"}
_MOST_OPERATIONS = 100
_SOFTMAX_LOSSES = {"SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"}
_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Softmax": "softmax"}
_SAME_VALUES = {"Cast", "Identity", "Reshape", "Squeeze"}
_HIGHEST_PROBABILITY = (0.9, 1.0)
"""Range of the constant to which probabilities are cut."""
_MOST_ADDED = 0.001
"""Constant that is added to a probability, so that its logarithm is finite."""


def is_sum_over_batch(loss: Any, outputs: Any) -> bool:
    """Return whether the last reduction of a loss is a sum whose first axis is that of the batch.

    A product, quotient or sum with anything but a constant 1 or 0 ends the search: it may be the division by the number
    of examples. So does a tensor that is not of a graph.

    Args:
      loss: float []; or None where it is not known.
      outputs: [B, ...], of the model.
    """
    for _ in range(_MOST_OPERATIONS):
        operation = _operation(loss)
        if operation is None:
            return False
        inputs = list(operation.inputs)
        is_reduction = operation.type in ("Sum", "Mean")
        if is_reduction and inputs[0].shape.rank != 0:
            return operation.type == "Sum" and _reduces_batch(inputs[0], inputs[1], outputs)
        if is_reduction or operation.type in _PASSES_ON or (operation.type in _DIVIDES and _is_constant(inputs[1], 1)):
            loss = inputs[0]
        elif operation.type in ("AddV2", "Mul"):
            neutral = 0 if operation.type == "AddV2" else 1
            others = [tensor for tensor in inputs if not _is_constant(tensor, neutral)]
            if len(others) != 1:
                return False
            loss = others[0]
        else:
            return False
    return False


def is_mean_over_batch(loss: Any, outputs: Any) -> bool:
    """Return whether a term of a loss is the mean over the examples of a batch, and nothing else divides or scales it.

    It is found as the operation `Mean`, or as a sum divided by the size of a tensor. Under replicas that is the mean
    over one replica's share: `tf.nn.compute_average_loss` divides by a number of its own, and Keras' losses multiply by
    one over the number of replicas.

    Args:
      loss: float []; or None where it is not known.
      outputs: [B, ...], of the model.
    """
    operation = _operation(loss)
    if operation is None:
        return False
    inputs = list(operation.inputs)
    if operation.type in ("AddN", "AddV2"):
        return any(is_mean_over_batch(term, outputs) for term in inputs)
    if operation.type in ("Mean", "Sum") and inputs[0].shape.rank != 0:
        return operation.type == "Mean" and _reduces_batch(inputs[0], inputs[1], outputs)
    if operation.type in _DIVIDES:
        total = _operation(inputs[0])
        if total is None or total.type != "Sum":
            return False
        summed, axes = total.inputs
        return _reduces_batch(summed, axes, outputs) and _is_size(inputs[1], summed.shape)
    if operation.type in _PASSES_ON | {"Mean", "Sum"}:
        return is_mean_over_batch(inputs[0], outputs)
    return False


def is_of_all_pairs(loss: Any, targets: Any, outputs: Any) -> bool:
    """Return whether a loss combines targets [B] with outputs [B, 1], or the reverse: broadcasting makes that [B, B].

    Losses of the examples [B] times weights [B, 1] are not meant: their mean still falls by learning. Where only
    one of the two is known, differences of it and of what is not made of it are.

    Args:
      loss: float []; or None where it is not known.
      targets: [B, ...], that the loss is given; or None.
      outputs: [B, ...], of the model; or None, as those of a model without layers.
    """
    data = tuple(tensor for tensor in (outputs, targets) if tensor is not None)
    kinds = _ELEMENTWISE if len(data) == 2 else _DIFFERENCES
    for operation in _operations_before(loss, data):
        if operation.type in kinds and _pairs_batch(operation):
            made_of = [[depends_on(tensor, end, data) for end in data] for tensor in operation.inputs]
            if sorted(made_of) == ([[False, True], [True, False]] if len(data) == 2 else [[False], [True]]):
                return True
    return False


def depends_on(tensor: Any, end: Any, ends: Sequence[Any]) -> bool:
    """Return whether a tensor is one of these ends, or is computed by it and not behind another one."""
    return tensor is end or any(each is end for o in _operations_before(tensor, ends) for each in o.inputs)


def repeated_activation(loss: Any) -> tuple[str, str] | None:
    """Return what a cross-entropy of logits applies, "softmax" or "sigmoid", and to the outputs of what; else None.

    The second is "softmax", "sigmoid" or "relu".

    Args:
      loss: float []; or None where it is not known.
    """
    for operation in _operations_before(loss, ()):
        logits = None
        if operation.type in _SOFTMAX_LOSSES:
            applied, logits = "softmax", operation.inputs[0]
        elif operation.type == "Log1p":
            applied, logits = "sigmoid", _sigmoid_logits(operation)
        made = None if logits is None else _operation(logits)
        while made is not None and made.type in _SAME_VALUES:
            made = _operation(made.inputs[0])
        if made is not None and made.type in _ACTIVATIONS:
            return applied, _ACTIVATIONS[made.type]
    return None


def takes_for_probabilities(loss: Any, outputs: Any) -> bool:
    """Return whether a loss takes logarithms of outputs, or of their shares in a sum, as of probabilities.

    It cuts them to at most 1 before, or takes the logarithm of their difference to 1.

    Args:
      loss: float []; or None where it is not known.
      outputs: [B, ...], of the model.
    """
    logarithms = (o.inputs[0] for o in _operations_before(loss, (outputs,)) if o.type == "Log")
    return any(_is_probability(tensor, outputs) for tensor in logarithms)


def _is_probability(tensor: Any, outputs: Any) -> bool:
    """Return whether a tensor is outputs, or their shares in a sum, that are cut to at most 1 or subtracted from 1."""
    found = False
    while tensor is not outputs:
        operation = _operation(tensor)
        if operation is None:
            return False
        tensor = operation.inputs[0]
        if operation.type == "Sub" and _is_constant(tensor, 1):
            found = True
            tensor = operation.inputs[1]
        elif operation.type in ("AddV2", "Maximum", "Minimum"):
            constant = tf.get_static_value(operation.inputs[1])
            if constant is None or (operation.type == "AddV2" and np.any(constant > _MOST_ADDED)):
                return False
            low, high = _HIGHEST_PROBABILITY
            found = found or (operation.type == "Minimum" and bool(np.all((low <= constant) & (constant <= high))))
        elif operation.type not in _SAME_VALUES | {"RealDiv"}:
            return False
    return found


def _sigmoid_logits(log1p: Any) -> Any:
    """Return x of log(1 + exp(-|x|)), as TensorFlow's cross-entropy of a sigmoid's logits has it; else None."""
    exponential = _operation(log1p.inputs[0])
    if exponential is None or exponential.type != "Exp":
        return None
    chosen = _operation(exponential.inputs[0])  # -x where x is positive, x elsewhere
    return chosen.inputs[2] if chosen is not None and chosen.type in ("Select", "SelectV2") else None


def _pairs_batch(operation: Any) -> bool:
    """Return whether an elementwise operation broadcasts [B] and [B, 1]."""
    lower, higher = sorted((tensor.shape for tensor in operation.inputs), key=lambda shape: shape.rank or 0)
    return (lower.rank, higher.rank) == (1, 2) and lower[0] == higher[0] != 1 and higher[1] == 1


def _operations_before(tensor: Any, ends: Sequence[Any]) -> Iterator[Any]:
    """Yield the operations that a tensor is computed by, the last one first, back to these ends."""
    queue = [tensor]
    seen: set[str] = set()
    while queue and len(seen) < _MOST_OPERATIONS:
        tensor = queue.pop(0)
        operation = None if any(tensor is end for end in ends) else _operation(tensor)
        if operation is not None and operation.name not in seen:
            seen.add(operation.name)
            queue.extend(operation.inputs)
            yield operation


def _operation(tensor: Any) -> Any:
    """Return the operation that makes a tensor of a graph; None for any other value."""
    is_eager = tf.executing_eagerly() or not tf.is_tensor(tensor) or hasattr(tensor, "numpy")
    return None if is_eager else getattr(tensor, "op", None)


def _reduces_batch(summed: Any, axes: Any, outputs: Any) -> bool:
    if summed.shape.rank is None or not tf.is_tensor(outputs) or outputs.shape.rank in (None, 0):
        return False
    reduced = tf.get_static_value(axes)
    return reduced is not None and 0 in reduced.ravel() % summed.shape.rank and summed.shape[0] == outputs.shape[0]


def _is_size(tensor: Any, shape: Any) -> bool:
    """Return whether a number is the first axis of a shape or the number of its elements, or an unknown axis."""
    operation = _operation(tensor)
    while operation is not None and operation.type in ("Cast", "StridedSlice"):
        tensor = operation.inputs[0]
        operation = _operation(tensor)
    if operation is not None and operation.type in ("Shape", "Size"):
        return True
    constant = tf.get_static_value(tensor)
    return constant is not None and constant.size > 0 and constant.ravel()[0] in (shape[0], shape.num_elements())


def _is_constant(tensor: Any, value: float) -> bool:
    """Return whether a tensor is a constant; the product of no factors, by which Keras divides a scalar loss, is 1."""
    if tensor.op.type == "Prod":
        return value == 1 and tensor.op.inputs[0].shape.num_elements() == 0
    constant = tf.get_static_value(tensor)
    return constant is not None and constant.shape == () and constant == value
