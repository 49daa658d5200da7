"""Reductions of many tensors with few graph nodes.

Tracing a node and rewriting it in Grappler takes about a millisecond. So small tensors of one shape are stacked and
reduced together, and equal constants share a node. A tensor too large to be copied is reduced by nodes of its own.

Statistics have two paths. The *fast path* reads each tensor a few times and writes little: plain sums, sums of squares,
largest and smallest values. It is wrong in three cases:

- An element is NaN or Inf. Every sum over it is then NaN or Inf.
- A sum of squares leaves 1e-30 to 1e30. Below it, squares underflow: that of 1e-23 is 0 in float32. Above it, they
  overflow: that of 1e20 is Inf. The limits are far enough from float32's own (1.2e-38, 3.4e38) that no digit is lost.
- A variance, taken as the difference of two sums, is below 1/256 of the mean square. Cancellation then costs more than
  8 of float32's 24 bits.

The *exact path* reduces the same tensors again. It masks non-finite elements, divides by the largest magnitude before
it squares, and takes variances in two passes. `with_exact_fallback` puts it into a branch that is not taken otherwise.
The fast path's sums detect all three cases, so no further pass over the data is needed.
docs/decisions/0002-fast-path-and-exact-path.md gives the reasons and what was tried besides.

On a GPU there is no branch: see the module `single_pass`.

The raw operations skip the conversions and the dispatch of TensorFlow's public wrappers, two thirds of the time that it
takes to make a node.

Letters: K statistics, M elements of a unit, N elements of a tensor, n tensors, U units.
"""

import functools
import math
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture import private_api

MAX_STACKED_SIZE = 1 << 15
"""Elements above which copying a tensor into a stack costs more than reductions of its own: 128 KiB of float32."""
MAX_GROUP_SIZE = 1 << 18
"""Elements of all tensors in one group: 1 MiB of float32."""
SAMPLE_BLOCK = 16
"""Neighbouring elements of a large tensor that are sampled as one block: a cache line of 64 bytes."""
MOST_OPERANDS = 32
"""Tensors that one kernel of a GPU reads."""
CHUNK_GROUPS = 16
"""Groups that share one exact path. All their tensors stay in memory until the fast path has been checked."""


_CONSTANTS = "_tapescope_constants"
"""Attribute of a graph with the constants that `constant` has made there: a table of our own would hold the graph by
its nodes."""


def constant(value: Any, dtype: tf.DType | None = None) -> tf.Tensor:
    """Return a constant, as one node for all equal ones of a graph; int32 or float32 unless `dtype` is given."""
    array = np.asarray(value)
    kind = dtype or {"i": tf.int32, "f": tf.float32}.get(array.dtype.kind)
    if tf.executing_eagerly():
        return tf.constant(array, kind)
    graph = tf.compat.v1.get_default_graph()
    constants = getattr(graph, _CONSTANTS, None)
    if constants is None:
        constants = {}
        setattr(graph, _CONSTANTS, constants)
    # Replicas are traced in threads and on devices of their own.
    key = threading.get_ident(), kind, array.shape, array.tobytes()
    if key not in constants:
        constants[key] = tf.constant(array, kind)
    return constants[key]


PLATFORM_VARIABLE = "TAPESCOPE_PLATFORM"
"""Environment variable: `gpu` or `cpu` lowers measuring for that platform, wherever it runs."""


def for_gpu() -> bool:
    """Return whether what is traced or run here is lowered for a GPU: see the module `single_pass`."""
    chosen = os.environ.get(PLATFORM_VARIABLE, "")
    if chosen not in ("", "cpu", "gpu"):
        raise ValueError(f"{PLATFORM_VARIABLE} must be `cpu` or `gpu`; got {chosen!r}")
    if chosen:
        return chosen == "gpu"
    return bool(tf.config.list_logical_devices("GPU")) and "CPU:" not in constant(0.0).device


class Group(NamedTuple):
    """One tensor, or several of one shape that are stacked."""

    indices: tuple[int, ...]
    """Positions of the n tensors in the list that was grouped."""
    tensor: tf.Tensor
    """[N] or [M, U]; stacked, [n, N] or [n, M, U]."""
    stacked: bool
    stride: int = 1
    """Sampling stride in blocks of SAMPLE_BLOCK elements; 1 reads every block. See the module `histograms`."""


def group_by_shape(
    tensors: Sequence[tf.Tensor], keep_units: bool = False, keys: Sequence[Hashable] | None = None
) -> list[Group]:
    """Stack small tensors of one shape, and flatten all.

    On a GPU only layers' outputs are stacked: a stack would be written by a kernel of its own, and `single_pass` joins
    small tensors without it.

    Args:
      tensors: float32 tensors of any shape. Those of an unknown dimension are not stacked: two may differ in it.
      keep_units: keep the last axis, [M, U], instead of flattening to [N].
      keys: one for each tensor; only tensors with equal keys are stacked.

    Returns:
      The groups: large single tensors first, then small single ones, then stacks; on a GPU single tensors in order.
    """
    by_kind: dict[Hashable, list[list[int]]] = {}
    may_stack = keep_units or not for_gpu()
    for i, tensor in enumerate(tensors):
        size = tensor.shape.num_elements()
        if may_stack and size is not None and 0 < size <= MAX_STACKED_SIZE:
            kind = (tuple(tensor.shape), keys[i] if keys else None)
        else:
            kind = i
        batches = by_kind.setdefault(kind, [[]])
        if size is not None and (len(batches[-1]) + 1) * size > MAX_GROUP_SIZE:
            batches.append([])
        batches[-1].append(i)
    groups = []
    for batches in by_kind.values():
        groups += [_group([tensors[i] for i in batch], tuple(batch), keep_units) for batch in batches if batch]
    if for_gpu():  # in the tensors' order as far as it goes: sorting rows is a kernel more
        return sorted(groups, key=lambda group: (group.stacked, group.indices))
    return sorted(groups, key=lambda group: (group.stacked, group.stride == 1))


def _group(tensors: Sequence[tf.Tensor], indices: tuple[int, ...], keep_units: bool) -> Group:
    stacked = len(tensors) > 1
    tensor = tf.raw_ops.Pack(values=list(tensors)) if stacked else tensors[0]
    shape: list[Any] = [len(tensors), -1] if stacked else [-1]
    if keep_units:
        shape.append(tensor.shape[-1])
    if len(shape) != tensor.shape.rank:
        tensor = tf.raw_ops.Reshape(tensor=tensor, shape=constant(shape))
    if for_gpu() and not keep_units:  # outputs get theirs in `single_pass.moments`
        tensor = fusion_barrier(tensor)
    stride = 1 if stacked else _sampling_stride(tensor.shape.num_elements() or 0)
    return Group(indices, tensor, stacked, stride)


def least_sample() -> int:
    """Return how many elements of a large tensor a histogram counts at least.

    A histogram on a GPU is a scatter onto few addresses, and additions to one address wait for each other.
    """
    return 1 << 13 if for_gpu() else MAX_STACKED_SIZE


def _sampling_stride(size: int) -> int:
    """Return the largest of some primes that leaves `least_sample` elements and does not divide `size`, or 1."""
    least = least_sample() + SAMPLE_BLOCK
    largest = size // least if for_gpu() else 13
    for stride in range(largest, 2, -1):
        if size >= stride * least and size % stride and all(stride % d for d in range(2, math.isqrt(stride) + 1)):
            return stride
    return 1


def neighbors(tensors: Sequence[tf.Tensor], most: float, same_width: bool = False) -> list[list[int]]:
    """Return which tensors one kernel of a GPU reads, by position: runs of up to `most` elements and MOST_OPERANDS.

    A tensor of unknown size is alone. With `same_width` the last axes of all tensors in a run are equal.
    """
    runs: list[list[int]] = []
    room = 0.0
    for i, tensor in enumerate(tensors):
        size = tensor.shape.num_elements() or math.inf
        is_alone = math.isinf(size)
        differs = same_width and i > 0 and tensors[i - 1].shape[-1] != tensor.shape[-1]
        if size > room or is_alone or differs or len(runs[-1]) == MOST_OPERANDS:
            runs.append([])
            room = most
        runs[-1].append(i)
        room = 0.0 if is_alone else room - size
    return runs


def reduction_axes(groups: Sequence[Group]) -> list[tf.Tensor]:
    """Return for each group the axes of one tensor, without the axis along which tensors are stacked."""
    rank = len(groups[0].tensor.shape) - int(groups[0].stacked)
    return [constant(range(1, 1 + rank) if group.stacked else range(rank)) for group in groups]


def concat_parts(parts: Sequence[tf.Tensor], groups: Sequence[Group]) -> tf.Tensor:
    """Concatenate one part of each group, [...] or stacked [n, ...], to the [n, ...] of all tensors."""
    single = [part for part, group in zip(parts, groups, strict=True) if not group.stacked]
    stacks = [part for part, group in zip(parts, groups, strict=True) if group.stacked]
    return concat((_pack(single) if single else []) + stacks, 0)


def _pack(parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return the n parts as one tensor [n, ...]; on a GPU as several, each of as many as one kernel reads."""
    most = MOST_OPERANDS if for_gpu() and len(parts) > MOST_OPERANDS else len(parts)
    packed = [tf.raw_ops.Pack(values=list(parts[i : i + most])) for i in range(0, len(parts), most)]
    return packed if len(packed) == 1 else [fusion_barrier(part) for part in packed]


def concat(parts: Sequence[tf.Tensor], axis: int) -> tf.Tensor:
    """Concatenate along `axis`; a single part is returned without a node."""
    return parts[0] if len(parts) == 1 else tf.raw_ops.ConcatV2(values=list(parts), axis=constant(axis))


def restore_order(rows: tf.Tensor, groups: Sequence[Group], widths: Sequence[int] | None = None) -> tf.Tensor:
    """Sort columns from the groups' order to that of the tensors.

    Args:
      rows: [K, n], or [K, sum of widths].
      groups: the groups, in whose order the columns are.
      widths: columns of each tensor, in the tensors' order; one by default.

    Returns:
      `rows`, its columns sorted.
    """
    order = [i for group in groups for i in group.indices]
    if order == sorted(order):
        return rows
    owners = np.repeat(order, 1 if widths is None else [widths[i] for i in order])
    columns = np.argsort(owners, kind="stable").astype(np.int32)
    return tf.raw_ops.GatherV2(params=rows, indices=constant(columns), axis=constant(1))


def distinct_tensors(tensors: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
    """Return each tensor once, in order, without None."""
    return list({id(t): t for t in tensors if t is not None}.values())


def expand_columns(rows: tf.Tensor, tensors: Sequence[tf.Tensor | None], absent: float = np.nan) -> tf.Tensor:
    """Return a column for every element of `tensors`, from one column for each distinct tensor.

    Args:
      rows: [K, d], a column for each of the d tensors that `distinct_tensors(tensors)` returns.
      tensors: n of them.
      absent: what fills the columns of None.

    Returns:
      [K, n].
    """
    positions: dict[int, int] = {}
    columns = [-1 if t is None else positions.setdefault(id(t), len(positions)) for t in tensors]
    if columns == list(range(len(positions))):
        return rows
    if -1 in columns:
        paddings = constant([[0, 0], [0, 1]])
        fill = constant(absent, rows.dtype)
        rows = tf.raw_ops.PadV2(input=rows, paddings=paddings, constant_values=fill)
    columns = [len(positions) if c < 0 else c for c in columns]
    return tf.raw_ops.GatherV2(params=rows, indices=constant(columns), axis=constant(1))


def chunks(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield runs of up to CHUNK_GROUPS groups. One branch for the whole model would keep all its tensors in memory."""
    for start in range(0, len(groups), CHUNK_GROUPS):
        yield list(groups[start : start + CHUNK_GROUPS])


def fusion_barrier(x: tf.Tensor) -> tf.Tensor:
    """Return `x`, such that XLA does not fuse what makes it with the reduction that reads it.

    XLA on a CPU hands a sum over a tensor in memory to a library (0.4 ms for three sums of a million elements). A fused
    sum becomes a loop over single elements (3.6 ms). Outside XLA no node is added.
    """
    return private_api.optimization_barrier(x) if private_api.in_xla_context() else x


ExactPath = Callable[[tf.Tensor], Sequence[tf.Tensor]]
"""A function from one group's tensor, [n, ...], to its statistics, each [K, m]. Must be defined in a module: traces
are cached."""


def with_exact_fallback(
    valid: tf.Tensor, fast: Sequence[tf.Tensor], groups: Sequence[Group], exact: ExactPath
) -> Sequence[tf.Tensor]:
    """Return the fast path's statistics, or the exact path's where one tensor needs it.

    Args:
      valid: bool [n], whether the fast path is right for each tensor of `groups`.
      fast: the fast path's statistics, each [K, m]; the columns are in the order of the groups.
      groups: a chunk; if one of its tensors is not valid, all are reduced again.
      exact: the exact path. It is traced once in a process, and its branch is not inlined.

    Returns:
      The statistics, as many as `fast` and of the same shapes.
    """
    all_valid = tf.raw_ops.All(input=valid, axis=constant([0]))
    stacked = tuple(group.stacked for group in groups)
    exact_branch = _exact_branch(private_api.eager_context(), exact, stacked, len(fast), private_api.in_xla_context())
    inputs = [*fast, *(group.tensor for group in groups)]
    if tf.executing_eagerly():
        return fast if all_valid else exact_branch(*inputs)
    # Not `tf.cond`: it would be traced, inlined and rewritten for every chunk, and made up half of the graph.
    return tf.raw_ops.StatelessIf(
        cond=all_valid,
        input=inputs,
        Tout=[t.dtype for t in fast],
        then_branch=_fast_branch(private_api.eager_context(), len(fast), len(groups)),
        else_branch=exact_branch,
        output_shapes=[t.shape for t in fast],
    )


_ANY: Any = tf.TensorSpec(None, tf.float32)  # type: ignore[arg-type]


# TensorFlow forgets all functions when its context is reset, so the context is a part of these keys.


@functools.cache
def _traced_once(context: Any, exact: ExactPath, xla: bool) -> Any:
    return tf.function(exact, input_signature=[_ANY], autograph=False, jit_compile=xla or None)


@functools.cache
def _exact_branch(context: Any, exact: ExactPath, stacked: tuple[bool, ...], outputs: int, xla: bool) -> Any:
    reduce_group = _traced_once(context, exact, xla)

    def branch(*inputs: tf.Tensor) -> Sequence[tf.Tensor]:
        parts = []
        for tensor, is_stack in zip(inputs[outputs:], stacked, strict=True):
            stack = tensor if is_stack else tf.raw_ops.ExpandDims(input=tensor, axis=constant(0))
            parts.append(reduce_group(stack))
        return [concat(part, 1) for part in zip(*parts, strict=True)]

    return _concrete(branch, outputs + len(stacked))


@functools.cache
def _fast_branch(context: Any, outputs: int, groups: int) -> Any:
    def branch(*inputs: tf.Tensor) -> Sequence[tf.Tensor]:
        return [tf.identity(t) for t in inputs[:outputs]]

    return _concrete(branch, outputs + groups)


def _concrete(function: Any, inputs: int) -> Any:
    with tf.init_scope():
        return tf.function(function, input_signature=[_ANY] * inputs, autograph=False).get_concrete_function()


def element_counts(groups: Sequence[Group]) -> tf.Tensor:
    """Return the number of elements of each tensor, float32 [n], in the order of the groups."""
    sizes = [group.tensor.shape.num_elements() for group in groups]
    if all(size is not None for size in sizes):
        counts = [[size // len(g.indices)] * len(g.indices) for size, g in zip(sizes, groups, strict=True)]
        return constant(np.concatenate(counts), tf.float32)
    parts = []
    units = []
    for group, size in zip(groups, sizes, strict=True):
        n = len(group.indices)
        if size is None:  # a single tensor: only those of known shape are stacked
            first, last = first_unit(group.tensor)
            parts.append(tf.raw_ops.Size(input=first))
            units.append(last)
        else:
            parts.append(constant([size // n] * n if group.stacked else size))
            units += [1] * n
    return tf.cast(concat_parts(parts, groups) * constant(units), tf.float32)


def first_unit(x: tf.Tensor) -> tuple[tf.Tensor, int]:
    """Return `x[..., :1]` and the number of units U, to ask for a shape that is known only when the graph runs.

    Grappler lets a question for a shape read the input of the elementwise operation that made the tensor. That input
    then has two consumers and is no longer fused, which would change the step's rounding. A slice stops it.

    Args:
      x: [M, U] or [N].

    Returns:
      The slice and U; all of `x` and 1 where U is not known.
    """
    units = x.shape[-1] if x.shape.rank else None
    if units is None:
        return x, 1
    begin = constant([0, 0])
    end = constant([0, 1])
    strides = constant([1, 1])
    return tf.raw_ops.StridedSlice(input=x, begin=begin, end=end, strides=strides, ellipsis_mask=1), units
