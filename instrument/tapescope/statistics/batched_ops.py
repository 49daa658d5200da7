"""Many tensors, few graph nodes: small ones of equal shape are stacked and reduced together, and what the quick way
could have got wrong is done again, in a branch that costs next to nothing where it is not taken.

Tracing and TensorFlow's own rewriting take about a millisecond a node, so a model of 500 layers must not get dozens
for each. A tensor too large to be copied is reduced where it lies. The second way is traced once and called, and the
branch around it is not inlined (`tf.cond` would be): it is not even made ready before it is needed.

Letters: M elements of a unit, N elements of a tensor, n tensors, U units.
"""

import functools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.ops import control_flow_util

R = tf.raw_ops
"""Without the conversions and the dispatch of the public wrappers: a third of the time to make a node."""

STACKED = 1 << 15
"""Elements of a tensor above which copying it costs more than reductions of its own."""
TOGETHER = 1 << 18
"""Elements of all tensors in one group: 1 MiB."""
BLOCK = 16
"""Neighbours of a large tensor that are looked at together: a line of the processor's cache."""
CHUNK = 16
"""Groups that are done again together; what the quick way needs must stay in memory until then."""


class _Constants(threading.local):
    """Of this thread, by graph: replicas are traced in threads of their own, and have devices of their own."""

    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[Any, dict[Hashable, tf.Tensor]] = weakref.WeakKeyDictionary()


_constants = _Constants()


def constant(value: Any, dtype: tf.DType | None = None) -> tf.Tensor:
    """int32 or float32 unless said otherwise; one node in a graph for all that are equal."""
    array = np.asarray(value)
    kind = dtype or {"i": tf.int32, "f": tf.float32}.get(array.dtype.kind)
    if tf.executing_eagerly():
        return tf.constant(array, kind)
    of = _constants.of.setdefault(tf.compat.v1.get_default_graph(), {})
    key = kind, array.shape, array.tobytes()
    if key not in of:
        of[key] = tf.constant(array, kind)
    return of[key]


class Group(NamedTuple):
    """One tensor, or several of the same shape as one."""

    indices: tuple[int, ...]
    """Which of the tensors."""
    x: tf.Tensor
    """[N] or [M, U] of one; [n, N] or [n, M, U] of several."""
    many: bool
    stride: int = 1
    """Every how manieth block of BLOCK neighbours is looked at; see `tapescope.statistics.histograms`."""


def grouped(tensors: Sequence[tf.Tensor], units: bool = False, keys: Sequence[Hashable] | None = None) -> list[Group]:
    """The groups of some tensors; each becomes `[N]`, or `[M, U]` if its `units` are to stay. Single ones come first,
    and of these the large ones.

    Only tensors with the same key and the same, completely known, shape are stacked.
    """
    kinds: dict[Hashable, list[list[int]]] = {}
    for i, x in enumerate(tensors):
        size = x.shape.num_elements()
        small = size is not None and 0 < size <= STACKED
        batches = kinds.setdefault((tuple(x.shape), keys[i] if keys else None) if small else i, [[]])
        if size is not None and (len(batches[-1]) + 1) * size > TOGETHER:
            batches.append([])
        batches[-1].append(i)
    found = []
    for batch in (batch for batches in kinds.values() for batch in batches if batch):
        many = len(batch) > 1
        x = R.Pack(values=[tensors[i] for i in batch]) if many else tensors[batch[0]]
        shape = (*[len(batch)] * many, -1, *([x.shape[-1]] if units else []))
        if len(shape) != x.shape.rank:
            x = R.Reshape(tensor=x, shape=constant(shape))
        found.append(Group(tuple(batch), x, many, 1 if many else _stride(x.shape.num_elements() or 0)))
    return sorted(found, key=lambda group: (group.many, group.stride == 1))


def _stride(size: int) -> int:
    return next((k for k in (13, 11, 7, 5, 3) if size >= k * (STACKED + BLOCK) and size % k), 1)


def axes(groups: Sequence[Group]) -> list[tf.Tensor]:
    """Of each group the axes of a tensor, without that of the group."""
    rank = len(groups[0].x.shape) - groups[0].many
    return [constant(range(group.many, group.many + rank)) for group in groups]


def joined(parts: Sequence[tf.Tensor], groups: Sequence[Group]) -> tf.Tensor:
    """[n, ...] of all tensors in the groups' order, from one part of each group: [...] of one, [n, ...] of several."""
    alone = [part for part, group in zip(parts, groups, strict=True) if not group.many]
    several = [part for part, group in zip(parts, groups, strict=True) if group.many]
    return concat(([R.Pack(values=alone)] if alone else []) + several, 0)


def concat(parts: Sequence[tf.Tensor], axis: int) -> tf.Tensor:
    return parts[0] if len(parts) == 1 else R.ConcatV2(values=list(parts), axis=constant(axis))


def in_order(rows: tf.Tensor, groups: Sequence[Group], sizes: Sequence[int] | None = None) -> tf.Tensor:
    """`[K, n]` from the groups' order to the tensors' own; where `sizes` says so, each has several columns."""
    order = [i for group in groups for i in group.indices]
    if order == sorted(order):
        return rows
    owner = np.repeat(order, 1 if sizes is None else [sizes[i] for i in order])  # the tensor of each column
    columns = np.argsort(owner, kind="stable").astype(np.int32)
    return R.GatherV2(params=rows, indices=constant(columns), axis=constant(1))


def different(tensors: Sequence[tf.Tensor | None]) -> list[tf.Tensor]:
    """Those that are there, each once."""
    return list({id(t): t for t in tensors if t is not None}.values())


def spread(rows: tf.Tensor, tensors: Sequence[tf.Tensor | None], absent: float = np.nan) -> tf.Tensor:
    """A column for every tensor, `[K, n]`, from those of the different tensors that are there, in their order."""
    place: dict[int, int] = {}
    columns = [-1 if t is None else place.setdefault(id(t), len(place)) for t in tensors]
    if columns == list(range(len(place))):
        return rows
    if -1 in columns:
        paddings, nothing = constant([[0, 0], [0, 1]]), constant(absent, rows.dtype)
        rows = R.PadV2(input=rows, paddings=paddings, constant_values=nothing)
    columns = [len(place) if c < 0 else c for c in columns]
    return R.GatherV2(params=rows, indices=constant(columns), axis=constant(1))


def chunks(groups: Sequence[Group]) -> Iterator[list[Group]]:
    for start in range(0, len(groups), CHUNK):
        yield list(groups[start : start + CHUNK])


def compiled() -> bool:
    """Whether what is traced here is compiled by XLA."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def settled(x: tf.Tensor) -> tf.Tensor:
    """The tensor, apart from what reduces it. On a processor XLA leaves a sum of what is there to a library, which
    takes a third of the time of its own loops, that make one element after another and add it up.
    """
    if not compiled():
        return x
    apart: Any = gen_xla_ops.xla_optimization_barrier([x])
    return apart[0]


Numbers = Sequence[tf.Tensor]
"""Each `[K, m]`, its columns in the order of the groups."""
Safe = Callable[[tf.Tensor], Numbers]
"""From the tensors of a group, `[n, ...]`, to their numbers."""


def again(good: tf.Tensor, quick: Numbers, groups: Sequence[Group], safe: Safe) -> Numbers:
    """`quick`, or the same by `safe` from the groups' tensors unless all of `good` are true."""
    fine = R.All(input=good, axis=constant([0]))
    redo = _redo(safe, tuple(group.many for group in groups), len(quick), compiled())
    inputs = [*quick, *(group.x for group in groups)]
    if tf.executing_eagerly():
        return quick if fine else redo(*inputs)
    return R.StatelessIf(
        cond=fine,
        input=inputs,
        Tout=[t.dtype for t in quick],
        then_branch=_keep(len(quick), len(groups)),
        else_branch=redo,
        output_shapes=[t.shape for t in quick],
    )


def safely(groups: Sequence[Group], safe: Safe) -> Numbers:
    """The groups' numbers by `safe`."""
    parts = [safe(group.x if group.many else R.ExpandDims(input=group.x, axis=constant(0))) for group in groups]
    return [concat(part, 1) for part in zip(*parts, strict=True)]


_ANY: Any = tf.TensorSpec(None, tf.float32)  # type: ignore[arg-type]


@functools.cache
def _once(safe: Safe, xla: bool) -> Any:
    return tf.function(safe, input_signature=[_ANY], autograph=False, jit_compile=xla or None)


@functools.cache
def _redo(safe: Safe, many: tuple[bool, ...], numbers: int, xla: bool) -> Any:
    def redo(*inputs: tf.Tensor) -> Numbers:
        return safely([Group((), x, m) for x, m in zip(inputs[numbers:], many, strict=True)], _once(safe, xla))

    return _made(redo, numbers + len(many))


@functools.cache
def _keep(numbers: int, groups: int) -> Any:
    return _made(lambda *inputs: [tf.identity(t) for t in inputs[:numbers]], numbers + groups)


def _made(function: Any, count: int) -> Any:
    with tf.init_scope():
        return tf.function(function, input_signature=[_ANY] * count, autograph=False).get_concrete_function()


def elements(groups: Sequence[Group]) -> tf.Tensor:
    """Elements of each tensor, float32 [n]."""
    known = [group.x.shape.num_elements() for group in groups]
    if all(size is not None for size in known):
        counts = [[size // len(g.indices)] * len(g.indices) for size, g in zip(known, groups, strict=True)]
        return constant(np.concatenate(counts), tf.float32)
    parts, lasts = [], []
    for group, size in zip(groups, known, strict=True):
        n = len(group.indices)
        if size is None:  # of one tensor alone
            thin, last = first_unit(group.x)
            part = R.Size(input=thin)
        else:
            part, last = constant([size // n] * n if group.many else size), 1
        parts.append(part)
        lasts += [last] * n
    return tf.cast(joined(parts, groups) * constant(lasts), tf.float32)


def first_unit(x: tf.Tensor) -> tuple[tf.Tensor, int]:
    """`x[..., :1]`, to ask for a shape that is not known before, and how many there are; else all of it, and 1.

    TensorFlow asks the input of an elementwise operation for the shape of its output, and an operation of which two
    others want something is not merged with the one behind it.
    """
    last = x.shape[-1] if x.shape.rank else None
    if last is None:
        return x, 1
    begin, end, strides = (constant(at) for at in ([0, 0], [0, 1], [1, 1]))
    return R.StridedSlice(input=x, begin=begin, end=end, strides=strides, ellipsis_mask=1), last
