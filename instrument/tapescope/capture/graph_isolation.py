"""Tensors to measure such that measuring does not change the step's floating-point results.

Grappler rewrites a graph before it runs, and what it makes of an operation depends on who else reads the result:

- The remapper fuses a matrix product with a bias and an activation, or with a bias and a sum, if each has one consumer
  only. The fused kernel (oneDNN's on a CPU) rounds otherwise.
- It makes one operation of a linear layer and its GELU or Mish as well, if no backward pass reads between them.
- Constant folding adds a constant to the summand before a bias or another sum, (xW + b) - 1 to (xW - 1) + b, if the sum
  between has no other consumer.
- The arithmetic optimizer multiplies constant factors of consecutive products first, and makes one `AddN` of
  consecutive sums, if there is no other consumer between.
- The gradient of a maximum over windows, and of a normalization across channels, is another oneDNN kernel unless it
  reads the very tensor that the forward operation returned.
- `AddN` adds into the buffer of the first input that nothing else holds, and *starts* with it. A measured tensor is
  held until it is reduced. So are the gradients that come back from three or more consumers of a tensor.

Where a tensor would be fused with its only consumer, a twin is measured instead: the same operations on the same
inputs, once more. Where it is added to others, the step gets a copy and the original is measured. All other tensors
are measured as they are. Eager steps are not rewritten. docs/decisions/0001-measured-steps-keep-their-bits.md has the
alternatives and what this costs.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tapescope.capture import private_api

_VIEWS = {"ExpandDims", "Identity", "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "StridedSlice", "Unpack"}
"""Operations whose output may share the buffer of their input."""
_RESHAPES = {"ExpandDims", "Reshape", "Squeeze"}
"""Those of them that show all elements."""
_SHAPES = {"Shape", "ShapeN", "Size"}
"""Operations that read no buffer."""
_CONSTANT_IF_SHAPE_IS = {"OnesLike", "ZerosLike", *_SHAPES}
_SOURCES = {"Const", "Placeholder", "ReadVariableOp"}
"""Operations whose result the step does not compute."""
_SUMS = {"Add", "AddN", "AddV2"}
_ADDITIVE = {"Add", "AddV2", "BiasAdd", "Sub"}
_PRODUCTS = {"Mul", "RealDiv"}
_CONTRACTIONS = {"Conv2D", "DepthwiseConv2dNative", "MatMul"}
_FUSED_WITH_SUM = {"DepthwiseConv2dNative", "MatMul"}
"""Those that a kernel adds a tensor of the same shape to, behind their bias."""
_GRADIENT_READS_RESULT = {"LRN", "MaxPool", "MaxPool3D"}
"""Operations whose gradient kernel depends on which operation made their result."""
_FUSED_ACTIVATIONS = {"Elu", "Sigmoid", "Tanh"}
"""Activations that round otherwise inside the kernel of a matrix product; ReLU and its variants do not."""
_MARK = "_tapescope"
"""Attribute of operations that only measuring needs."""
_TWIN = "tapescope_twin"
"""Name of twins."""
_UNREAD = "_tapescope_twin"
"""Attribute of operations of the step that it does not read any more."""


@contextlib.contextmanager
def measuring_scope() -> Iterator[None]:
    """Mark all operations created here, which keeps common-subexpression elimination from sharing the step's own."""
    if tf.executing_eagerly():
        yield
    else:
        with private_api.mark_new_operations(_MARK):
            yield


def tensors_to_measure(tensors: Sequence[Any], without_gradient: Sequence[Any] = ()) -> list[Any]:
    """Return the tensor to measure instead of each input. `None` and eager tensors are returned unchanged.

    Call it once the forward and the backward pass are traced and before any of these tensors is measured. Some
    operations of the step get a copy as their input.

    Args:
      tensors: of the step.
      without_gradient: those of them of which `is_fused_without_gradient` is true, and that no backward pass reads.
    """
    roots = [_skip_identities(t) if _is_symbolic(t) else t for t in tensors]
    apart = {id(_skip_identities(t)) for t in without_gradient if _is_symbolic(t)}
    shared: list[tf.Tensor] = []
    measured = {}
    for root in _unique(filter(_is_symbolic, roots)):
        measured[id(root)] = _twin(root.op, shared) if id(root) in apart else _tensor_to_measure(root, shared)
    for tensor in _unique(shared):
        if tensor.op.type not in _SOURCES and any(map(_is_in_large_sum, _step_consumers(tensor))):
            _copy_for_consumers(tensor)
    return [measured.get(id(root), t) for root, t in zip(roots, tensors, strict=True)]


def flatten_gradient_sums(gradients: Sequence[Any], input_positions: Sequence[int]) -> list[Any]:
    """Return the gradients, summed as in a plain step.

    A measured layer reads its input through an identity. The tape therefore sums the gradients that come back from
    this layer before it adds those of other layers; without the identity it sums all of them at once. This makes one
    `AddN` of the two.

    Args:
      gradients: of one backward pass.
      input_positions: which of them are gradients with respect to such an identity.
    """
    result = list(gradients)
    for position in input_positions:
        part = result[position]
        if not _is_symbolic(part) or part.op.type != "AddN":
            continue
        consumers = [op for op in part.consumers() if not _is_measuring_op(op)]
        if [op.type for op in consumers] != ["AddN"]:
            continue
        outer = consumers[0]
        former = outer.outputs[0]
        terms: list[tf.Tensor] = []
        for term in outer.inputs:
            terms.extend(part.op.inputs if term is part else [term])
        with part.graph.as_default(), tf.control_dependencies(None):
            total = tf.raw_ops.AddN(inputs=terms, name=outer.name)
        _redirect_consumers(former, total, former.consumers())
        for op in (part.op, outer):
            private_api.mark_operation(op, _UNREAD)
        result = [total if gradient is former else gradient for gradient in result]
    return result


def is_fused_without_gradient(tensor: Any) -> bool:
    """Return whether it is a linear layer's result that several operations read, as those of a GELU or Mish do.

    The remapper makes one operation of all of them, unless something else reads the result, such as a backward pass.
    """
    if not _is_symbolic(tensor):
        return False
    root = _skip_identities(tensor)
    is_linear = root.op.type in _ADDITIVE and any(t.op.type in _CONTRACTIONS for t in root.op.inputs)
    return is_linear and len(set(_step_consumers(root))) > 1


def operations_of(tensors: Sequence[Any]) -> list[tf.Operation]:
    """Return the operations whose results these tensors are; none for `None` and eager tensors."""
    return [t.op for t in filter(_is_symbolic, tf.nest.flatten(tensors, expand_composites=True))]


def operations_behind(tensors: Sequence[Any]) -> set[tf.Operation]:
    """Return all operations that these tensors are computed by."""
    found: set[tf.Operation] = set()
    waiting = operations_of(tensors)
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting.extend(t.op for t in op.inputs)
    return found


def gradient_to_measure(gradient: Any) -> Any:
    """Return the tensor to measure instead of a gradient that an optimizer takes. `None` is returned unchanged.

    Such a gradient may be a product, and the optimizer multiplies it by a learning rate. It may be called at any time,
    also after tensors of the step were measured. Only products need a twin here.
    """
    if not _is_symbolic(gradient):
        return gradient
    root = _skip_identities(gradient, "IdentityN")  # clipping by the global norm ends in one
    return _twin(root.op, []) if root.op.type in _PRODUCTS else root


def _is_symbolic(tensor: Any) -> bool:
    return isinstance(tensor, tf.Tensor) and not hasattr(tensor, "numpy")


def _unique(tensors: Iterable[tf.Tensor]) -> Iterable[tf.Tensor]:
    return {id(t): t for t in tensors}.values()


def _skip_identities(tensor: tf.Tensor, *other_types: str) -> tf.Tensor:
    op = tensor.op
    if op.type not in ("Identity", *other_types):
        return tensor
    return _skip_identities(op.inputs[tensor.value_index], *other_types)


def _step_consumers(tensor: tf.Tensor) -> Iterator[tf.Operation]:
    """Yield the operations of the step that read the tensor's buffer, also through views of it."""
    for op in tensor.consumers():
        if op.type in _VIEWS or _is_broadcast_sum(op):
            for output in op.outputs:
                yield from _step_consumers(output)
        elif op.type not in _SHAPES and not _is_measuring_op(op):
            yield op


def _is_broadcast_sum(op: tf.Operation) -> bool:
    """Return whether a sum undoes broadcasting in a gradient.

    Where a size is unknown when the step is traced, there is one even if nothing is broadcast: a sum over no axes.
    """
    return op.type == "Sum" and op.inputs[1].op.type == "BroadcastGradientArgs"


def _is_measuring_op(op: tf.Operation) -> bool:
    """Return whether the step does not read it: a twin, or a sum that `flatten_gradient_sums` replaced."""
    return _TWIN in op.name or _UNREAD in op.node_def.attr


def _is_in_large_sum(op: tf.Operation) -> bool:
    """Return whether it is, or becomes part of, a sum of three or more terms."""
    if op.type not in _SUMS:
        return False
    if len(op.inputs) > 2:
        return True
    neighbours = [t.op for t in op.inputs if len(list(_step_consumers(t))) == 1]
    consumers = list(_step_consumers(op.outputs[0]))
    if len(consumers) == 1:
        neighbours += consumers
    return any(neighbour.type in _SUMS for neighbour in neighbours)


def _copy_for_consumers(tensor: tf.Tensor) -> None:
    """Give the step's consumers a copy, so that measuring holds no buffer that they might add into."""
    consumers = [op for op in tensor.consumers() if not _is_measuring_op(op) and op.type not in _SHAPES]
    # Grappler sorts the terms of a sum by name: this one takes the tensor's place in that order.
    name = f"{tensor.op.name}-{tensor.value_index}/"
    with tensor.graph.as_default(), tf.control_dependencies(None):
        copy = tf.raw_ops.Snapshot(input=tensor, name=name)
    _redirect_consumers(tensor, copy, consumers)


def _redirect_consumers(tensor: tf.Tensor, replacement: tf.Tensor, consumers: Iterable[tf.Operation]) -> None:
    for op in consumers:
        for index, term in enumerate(op.inputs):
            if term is tensor:
                private_api.replace_input(op, index, replacement)


def _is_fused_with_consumer(tensor: tf.Tensor) -> bool:
    """Return whether TensorFlow makes one operation of the one that made the tensor and its only consumer."""
    op = tensor.op
    consumers = list(_step_consumers(tensor))
    if _is_measuring_op(op):
        return True
    kinds = {consumer.type for consumer in consumers}
    if op.type in _GRADIENT_READS_RESULT:
        return any(map(_is_in_large_sum, consumers))
    if op.type in _PRODUCTS:  # further consumers are often gradients of constants, which are pruned
        return not kinds.isdisjoint(_PRODUCTS)
    if len(consumers) != 1:
        return False
    if op.type in _ADDITIVE and kinds <= _ADDITIVE and any(map(_is_constant, consumers[0].inputs)):
        return True
    if op.type in _SUMS and not (_is_bias_sum(op) and kinds <= _FUSED_ACTIVATIONS):
        return kinds <= _SUMS
    contractions = {t.op.type for t in op.inputs} & _CONTRACTIONS
    if not contractions:
        return False
    if not kinds <= _SUMS:
        return kinds <= _FUSED_ACTIVATIONS
    same_shape = all(str(t.shape) == str(tensor.shape) for t in consumers[0].inputs)
    is_fused = not contractions.isdisjoint(_FUSED_WITH_SUM)
    return is_fused and same_shape and not _is_in_large_sum(consumers[0])


def _is_bias_sum(op: tf.Operation) -> bool:
    """Return whether the remapper takes a sum for a bias: of a contraction, and of one number for each channel.

    `x @ w + b` is one, and so is a layer's bias in versions of Keras before 3.7.
    """
    if op.type not in ("Add", "AddV2"):
        return False
    first, second = op.inputs
    if first.op.type not in _CONTRACTIONS:
        first, second = second, first
    is_row = bool(second.shape.rank) and all(size == 1 for size in second.shape[:-1])
    return is_row and first.op.type in _CONTRACTIONS


def _is_constant(tensor: tf.Tensor) -> bool:
    """Return whether constant folding makes a constant of a tensor."""
    op = tensor.op
    if not op.inputs:
        return op.type == "Const"
    return op.type in _CONSTANT_IF_SHAPE_IS or all(map(_is_constant, op.inputs))


def _tensor_to_measure(tensor: tf.Tensor, shared: list[tf.Tensor]) -> tf.Tensor:
    """Return a twin or a view of the tensor; add to `shared` the tensors that the step reads as well."""
    if _is_fused_with_consumer(tensor):
        return _twin(tensor.op, shared)
    return _separate_view(tensor, shared)


def _twin(op: tf.Operation, shared: list[tf.Tensor]) -> tf.Tensor:
    """Return the result of the same operation on the same inputs, computed once more."""
    inputs = []
    bias_sum = _is_bias_sum(op) and not any(c.type in _SUMS for c in _step_consumers(op.outputs[0]))
    with op.graph.as_default(), tf.control_dependencies(None), measuring_scope():
        for term in op.inputs:
            if term.op.type in _CONTRACTIONS and (op.type not in _SUMS | _GRADIENT_READS_RESULT or bias_sum):
                inputs.append(_duplicate(term.op, term.op.inputs))
            else:
                inputs.append(_tensor_to_measure(term, shared))
        return _duplicate(op, inputs)


def _separate_view(tensor: tf.Tensor, shared: list[tf.Tensor]) -> tf.Tensor:
    """Return the same view of the same buffer, made for measuring alone; a tensor that is not a view is returned.

    A view that the step and measuring share keeps Grappler from removing it in its first round, and then the terms of
    an `AddN` come in another order.
    """
    tensor = _skip_identities(tensor)
    op = tensor.op
    if op.type not in _RESHAPES and not _is_broadcast_sum(op):
        shared.append(tensor)
        return tensor
    with op.graph.as_default(), tf.control_dependencies(None), measuring_scope():
        return _duplicate(op, [_separate_view(op.inputs[0], shared), *op.inputs[1:]])


def _duplicate(op: tf.Operation, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
    attributes = dict(op.node_def.attr)
    types = [output.dtype for output in op.outputs]
    output = op.graph.create_op(op.type, inputs, types, name=_TWIN, attrs=attributes).outputs[0]
    output.set_shape(op.outputs[0].shape)  # Keras may know more than shape inference does
    return output
