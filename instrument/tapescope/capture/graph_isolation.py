"""What to read of a traced step so that its own arithmetic stays what it is without a reader, to the last bit.

TensorFlow rewrites a graph before it runs it, and what a tensor is made into depends on who else reads it:

- A bias and an activation, or a bias and a sum, become one kernel with the matrix product, which rounds otherwise.
- Factors that follow each other are multiplied first, and sums that follow each other become one `AddN`.
- The gradient of a maximum over windows is another kernel, which adds in another order, unless it reads the very tensor
  that it left. (A normalization across channels likewise.)
- `AddN` adds into the first of its inputs that nothing else holds, and *starts* with it; a tensor that is measured is
  held for as long as that takes. So it is with the gradients that come back from three consumers and more of a tensor.

Where a tensor would be merged with its only consumer, a twin of it is read in its place, which the same operations make
of the same inputs a second time. Where it is added to others, the step gets a copy and the original is read, or, of
such a maximum, a twin is read. All else is read as it is. Eager steps are not rewritten.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue

_VIEWS = {"ExpandDims", "Identity", "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "StridedSlice", "Unpack"}
"""Operations whose output may lie in the memory of their input."""
_RESHAPES = {"ExpandDims", "Reshape", "Squeeze"}
"""Those of them that show all of it."""
_SHAPES = {"Shape", "ShapeN", "Size"}
"""Operations that read no memory."""
_GIVEN = {"Const", "Placeholder", "ReadVariableOp"}
"""What a step does not make itself."""
_SUMS = {"Add", "AddN", "AddV2"}
_PRODUCTS = {"Mul", "RealDiv"}
_CONTRACTIONS = {"Conv2D", "MatMul"}
_BY_RESULT = {"LRN", "MaxPool", "MaxPool3D"}
"""Operations whose gradient depends on where their result comes from."""
_MARK = "_tapescope"
_TWIN = "tapescope_twin"
_FUSED = {"Elu", "Sigmoid", "Tanh"}
"""Activations that round otherwise inside the kernel of a matrix product; ReLU and its kin do not."""


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Marks the operations that are made in it: TensorFlow does not take them for the same as those of the step."""
    if tf.executing_eagerly():
        yield
    else:
        with tf.compat.v1.get_default_graph()._attr_scope({_MARK: AttrValue(b=True)}):
            yield


def beside(tensors: Sequence[Any]) -> list[Any]:
    """What to read in place of each tensor; what is none, or eager, is given back.

    To be called when the forward and the backward pass are traced and nothing of them is measured yet.
    """
    roots = [_root(t) if _traced(t) else t for t in tensors]
    own: list[tf.Tensor] = []
    read = {id(t): _stand_in(t, own) for t in _distinct(filter(_traced, roots))}
    for tensor in _distinct(own):
        if tensor.op.type not in _GIVEN and any(map(_of_three, _consumers(tensor))):
            _hand_on_a_copy(tensor)
    return [read.get(id(root), t) for root, t in zip(roots, tensors, strict=True)]


def at_once(gradients: Sequence[Any], inputs: Sequence[int]) -> list[Any]:
    """The gradients, summed as a plain step sums them.

    A layer knows its input by a name of its own (an identity), so that the tape adds up what comes back to it from this
    layer before it adds that to what comes from others; without that name it adds up all at once. `inputs` are the
    indices of the gradients of such names.
    """
    found = list(gradients)
    for part in (found[i] for i in inputs):
        if not _traced(part) or part.op.type != "AddN":
            continue
        after = [op for op in part.consumers() if not _is_ours(op)]
        if [op.type for op in after] != ["AddN"]:
            continue
        terms = [t for given in after[0].inputs for t in (part.op.inputs if given is part else [given])]
        with part.graph.as_default(), tf.control_dependencies(None):
            whole = tf.raw_ops.AddN(inputs=terms, name=after[0].name)
        former = after[0].outputs[0]
        _hand_on(former, whole, former.consumers())
        for op in (part.op, after[0]):
            op._set_attr(_TWIN, AttrValue(b=True))
        found = [whole if gradient is former else gradient for gradient in found]
    return found


def aside(gradients: Sequence[Any]) -> list[Any]:
    """As `beside`, of what an optimizer takes: that may be a product, and is multiplied by a learning rate.

    May be called at any time, and again: TensorFlow keeps one of several equal twins.
    """
    roots = [_root(g, "IdentityN") if _traced(g) else g for g in gradients]  # as the clipped ones are
    return [_twin(r.op, []) if _traced(r) and r.op.type in _PRODUCTS else r for r in roots]


def _traced(tensor: Any) -> bool:
    return isinstance(tensor, tf.Tensor) and not hasattr(tensor, "numpy")


def _distinct(tensors: Iterable[tf.Tensor]) -> Iterable[tf.Tensor]:
    return {id(t): t for t in tensors}.values()


def _root(tensor: tf.Tensor, *other: str) -> tf.Tensor:
    op = tensor.op
    return _root(op.inputs[tensor.value_index], *other) if op.type in ("Identity", *other) else tensor


def _consumers(tensor: tf.Tensor) -> Iterator[tf.Operation]:
    """The operations of the step that read the tensor's memory."""
    for op in tensor.consumers():
        if op.type in _VIEWS or _is_broadcast(op):
            for output in op.outputs:
                yield from _consumers(output)
        elif op.type not in _SHAPES and not _is_ours(op):
            yield op


def _is_broadcast(op: tf.Operation) -> bool:
    """Whether it undoes in a gradient what broadcasting did: nothing, where a size was not known and is the same."""
    return op.type == "Sum" and op.inputs[1].op.type == "BroadcastGradientArgs"


def _is_ours(op: tf.Operation) -> bool:
    """Whether the step does not read it: a twin, or a sum that `at_once` took apart."""
    return _TWIN in op.name or _TWIN in op.node_def.attr


def _of_three(op: tf.Operation) -> bool:
    """Whether it is, or becomes a part of, a sum of three and more."""
    if op.type not in _SUMS:
        return False
    after = list(_consumers(op.outputs[0]))
    near = [t.op for t in op.inputs if len(list(_consumers(t))) == 1] + after * (len(after) == 1)
    return len(op.inputs) > 2 or any(other.type in _SUMS for other in near)


def _hand_on_a_copy(tensor: tf.Tensor) -> None:
    """The copy has the tensor's place in the order of names, by which TensorFlow sorts what it adds."""
    consumers = [op for op in tensor.consumers() if not _is_ours(op) and op.type not in _SHAPES]
    with tensor.graph.as_default(), tf.control_dependencies(None):
        copy = tf.raw_ops.Snapshot(input=tensor, name=f"{tensor.op.name}-{tensor.value_index}/")
    _hand_on(tensor, copy, consumers)


def _hand_on(tensor: tf.Tensor, other: tf.Tensor, consumers: Iterable[tf.Operation]) -> None:
    for op in consumers:
        for i, given in enumerate(op.inputs):
            if given is tensor:
                op._update_input(i, other)


def _merges(tensor: tf.Tensor) -> bool:
    """Whether TensorFlow makes one operation of what the tensor comes from and its only consumer."""
    op, consumers = tensor.op, list(_consumers(tensor))
    if _is_ours(op):
        return True
    kinds = {consumer.type for consumer in consumers}
    if op.type in _BY_RESULT:
        return any(map(_of_three, consumers))
    if op.type in _PRODUCTS:  # others that it may have are often gradients of constants, and pruned
        return not kinds.isdisjoint(_PRODUCTS)
    if len(consumers) != 1:
        return False
    if op.type in _SUMS:
        return kinds <= _SUMS
    contractions = {t.op.type for t in op.inputs} & _CONTRACTIONS
    if not contractions:
        return False
    if not kinds <= _SUMS:
        return kinds <= _FUSED
    same_shape = all(str(t.shape) == str(tensor.shape) for t in consumers[0].inputs)
    return "MatMul" in contractions and same_shape and not _of_three(consumers[0])


def _stand_in(tensor: tf.Tensor, own: list[tf.Tensor]) -> tf.Tensor:
    """What to read in place of the tensor; notes in `own` what is read of the step for it."""
    return _twin(tensor.op, own) if _merges(tensor) else _anew(tensor, own)


def _twin(op: tf.Operation, own: list[tf.Tensor]) -> tf.Tensor:
    inputs = []
    with op.graph.as_default(), tf.control_dependencies(None), apart():
        for term in op.inputs:
            if term.op.type in _CONTRACTIONS and op.type not in _SUMS | _BY_RESULT:
                inputs.append(_again(term.op, term.op.inputs))
            else:
                inputs.append(_stand_in(term, own))
        return _again(op, inputs)


def _anew(tensor: tf.Tensor, own: list[tf.Tensor]) -> tf.Tensor:
    """The same view of the same memory, which the step does not read."""
    tensor = _root(tensor)
    op = tensor.op
    if op.type not in _RESHAPES and not _is_broadcast(op):
        own.append(tensor)
        return tensor
    with op.graph.as_default(), tf.control_dependencies(None), apart():
        return _again(op, [_anew(op.inputs[0], own), *op.inputs[1:]])


def _again(op: tf.Operation, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    attributes, types = dict(op.node_def.attr), [t.dtype for t in op.outputs]
    made = op.graph.create_op(op.type, inputs, types, name=_TWIN, attrs=attributes).outputs[0]
    made.set_shape(op.outputs[0].shape)  # what Keras knew of it
    return made
