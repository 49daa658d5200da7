"""Statistics for GPUs: one pass over each tensor, without a branch.

A branch on a GPU copies its predicate to the host and waits for it, and a sum whose operand is kept apart by a barrier
is a kernel of its own. So here each tensor is read once, where it is made, by sums and extremes of one shape, which XLA
makes one kernel of. Everything that the exact path of `batched_ops` has a second pass for is in the same pass:

- Elements that are not finite are replaced by 0, and counted.
- Sums, and sums of squares, are float64. The square of any float32 is in its range, and a variance may be taken as the
  difference of two sums: 53 bits less what cancels leave the 24 of float32 where the mean is up to 10,000 deviations.

XLA reduces rows of up to ROW elements in one stage. So a long tensor is reshaped to rows, [P, N / P]; the sums of the
rows of all tensors are then added in one more kernel. docs/decisions/0040-one-pass-on-gpus.md has the alternatives.

Letters: K statistics, M elements of a unit, N elements of a tensor, n tensors, P parts of a tensor, U units.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.capture import private_api
from tapescope.statistics.batched_ops import Group, concat, constant, element_counts, for_gpu, fusion_barrier

ROW = 4096
"""Longest row that XLA reduces in one kernel."""
SMALL = 2048
"""Most elements of a tensor that is reduced together with others of any shape."""
MAX_PARTS = 1024
"""Largest number of rows that a tensor is reshaped to."""


Result = TypeVar("Result")


def compiled(measure: Callable[[], Result]) -> Result:
    """Return what `measure` returns; on a GPU compiled by XLA, also where the step around it is not.

    Without XLA each of its operations would be a kernel that reads or writes whole tensors. `measure` may read tensors
    of the graph around it, and returns tensors and None.
    """
    if not for_gpu() or tf.executing_eagerly() or private_api.in_xla_context() or not _can_compile():
        return measure()
    return tf.function(measure, autograph=False, jit_compile=True)()


@functools.cache
def _can_compile() -> bool:
    """Return whether XLA compiles a small function for this machine: it needs libraries that may be missing."""
    try:
        with tf.init_scope():
            tf.function(lambda: tf.reduce_sum(tf.exp(tf.ones([64]))), jit_compile=True)().numpy()
    except Exception as error:  # of any type, by what is missing
        logging.warning(
            "tapescope: XLA cannot compile here, so measuring takes longer: %s", str(error).partition("\n")[0]
        )
        return False
    return True


def _rows(size: int | None) -> int:
    """Return P, the number of rows that a tensor of `size` elements is reshaped to; 1 where it is not known."""
    if size is None or size <= ROW:
        return 1
    least = -(-size // ROW)
    divisors = [p for p in range(min(least, MAX_PARTS), MAX_PARTS + 1) if size % p == 0]
    if divisors:
        return divisors[0]
    return max((p for p in range(1, MAX_PARTS + 1) if size % p == 0), default=1)


def in_rows(x: tf.Tensor, n: int = 1) -> tf.Tensor:
    """Reshape a tensor, or n of them that are stacked, to [n, P, N / P]."""
    size = x.shape.num_elements()
    return tf.reshape(x, [n, _rows(None if size is None else size // n), -1])


def _group_in_rows(group: Group) -> tf.Tensor:
    return in_rows(group.tensor, len(group.indices))


Statistics = dict[str, tf.Tensor]


def fold(rows: Sequence[Statistics], highest: Sequence[str] = ()) -> Statistics:
    """Add the rows of each tensor, [n, P] of each group, to float64 [n] over all groups, in two more kernels.

    Args:
      rows: of each group the statistics by name, [n, P].
      highest: the statistics whose largest row is wanted; of the others the sum.
    """
    shapes: list[Any] = [next(iter(of.values())).shape.as_list() for of in rows]
    count = sum(n for n, _ in shapes)
    parts = max(p for _, p in shapes)
    found: Statistics = {}
    for names, reduce, absent in (
        ([name for name in rows[0] if name not in highest], tf.raw_ops.Sum, 0.0),
        (list(highest), tf.raw_ops.Max, -np.inf),
    ):
        if not names:
            continue
        pieces = [_pad(tf.cast(of[name], tf.float64), parts, absent) for name in names for of in rows]
        table = concat(pieces, 0)
        columns = reduce(input=table, axis=constant([1])) if parts > 1 else table
        found |= dict(zip(names, tf.unstack(tf.reshape(columns, [len(names), count])), strict=True))
    return found


def _pad(row: tf.Tensor, parts: int, absent: float) -> tf.Tensor:
    own: Any = row.shape[1]
    missing = parts - own
    if not missing:
        return row
    paddings = constant([[0, 0], [0, missing]])
    return tf.raw_ops.PadV2(input=row, paddings=paddings, constant_values=constant(absent, row.dtype))


def as_float(mask: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.Cast(x=mask, DstT=tf.float32)


def reduce_rows(elements: Statistics, highest: Sequence[str] = ()) -> Statistics:
    """Reduce [n, P, N / P] along the last axis."""
    axis = constant([2])
    return {
        name: tf.raw_ops.Max(input=x, axis=axis) if name in highest else tf.raw_ops.Sum(input=x, axis=axis)
        for name, x in elements.items()
    }


def _inputs(groups: Sequence[Group]) -> tuple[list[Group], list[tf.Tensor]]:
    """Return the groups, small tensors last, and what to reduce, each [n, P, N / P].

    Small tensors of all shapes are padded with zeros to one table: a kernel more costs more than the padding.
    """
    sizes = [(group.tensor.shape.num_elements() or 0) // len(group.indices) for group in groups]
    small = [i for i, size in enumerate(sizes) if 0 < size <= SMALL]
    if len(small) < 2:
        return list(groups), [_group_in_rows(group) for group in groups]
    width = max(sizes[i] for i in small)
    pieces = [_pad(tf.reshape(groups[i].tensor, [len(groups[i].indices), sizes[i]]), width, 0.0) for i in small]
    large = [i for i in range(len(groups)) if i not in small]
    table = tf.expand_dims(concat(pieces, 0), 1)
    return [groups[i] for i in (*large, *small)], [*(_group_in_rows(groups[i]) for i in large), table]


def _reorder(columns: tf.Tensor, order: Sequence[Group], groups: Sequence[Group]) -> tf.Tensor:
    """Sort columns from one order of the groups to another."""
    wanted = [i for group in groups for i in group.indices]
    present = [i for group in order for i in group.indices]
    if wanted == present:
        return columns
    return tf.gather(columns, constant([present.index(i) for i in wanted]), axis=1)


def norm_rows(groups: Sequence[Group]) -> tf.Tensor:
    """Return L2 norm, largest magnitude, share of zeros and number of non-finite elements, float32 [4, n]."""
    order, inputs = _inputs(groups)
    rows = []
    zero = constant(0.0)
    for x in inputs:
        x = fusion_barrier(x)
        finite = tf.raw_ops.IsFinite(x=x)
        values = tf.raw_ops.SelectV2(condition=finite, t=x, e=zero)
        elements = {
            "square": tf.raw_ops.Square(x=tf.raw_ops.Cast(x=values, DstT=tf.float64)),
            "nonzero": as_float(tf.raw_ops.NotEqual(x=x, y=zero)),
            "nonfinite": as_float(tf.raw_ops.LogicalNot(x=finite)),
            "largest": tf.raw_ops.Abs(x=values),
        }
        rows.append(reduce_rows(elements, ["largest"]))
    found = fold(rows, ["largest"])
    sizes = tf.cast(element_counts(order), tf.float64)
    zero_share = (sizes - found["nonzero"]) / sizes
    columns = tf.stack([tf.sqrt(found["square"]), found["largest"], zero_share, found["nonfinite"]])
    return _reorder(tf.cast(columns, tf.float32), order, groups)


def moments(groups: Sequence[Group], is_saturated: Sequence[Callable[[tf.Tensor], tf.Tensor | None]]) -> Statistics:
    """Return the moments of layers' outputs, each float32 [n], in the order of the groups.

    Args:
      groups: outputs, [M, U] or stacked [n, M, U].
      is_saturated: of each group a function from its elements, in any shape, to which of them are saturated, or None.

    Returns:
      `nonfinite`, `mean`, `m2`, `min`, `max`, `zero` and `saturated`.
    """
    rows = []
    zero = constant(0.0)
    lowest = constant(-np.inf)
    for group, saturated in zip(groups, is_saturated, strict=True):
        x = fusion_barrier(_group_in_rows(group))
        finite = tf.raw_ops.IsFinite(x=x)
        values = tf.raw_ops.Cast(x=tf.raw_ops.SelectV2(condition=finite, t=x, e=zero), DstT=tf.float64)
        elements = {
            "sum": values,
            "square": tf.raw_ops.Square(x=values),
            "zero": as_float(tf.raw_ops.Equal(x=x, y=zero)),
            "nonfinite": as_float(tf.raw_ops.LogicalNot(x=finite)),
            "max": tf.raw_ops.SelectV2(condition=finite, t=x, e=lowest),
            "negative_min": tf.raw_ops.SelectV2(condition=finite, t=tf.raw_ops.Neg(x=x), e=lowest),
        }
        mask = saturated(x)
        if mask is not None:
            elements["saturated"] = as_float(mask)
        reduced = reduce_rows(elements, ["max", "negative_min"])
        reduced.setdefault("saturated", tf.zeros_like(reduced["zero"]))
        rows.append(reduced)
    found = fold(rows, ["max", "negative_min"])
    number = tf.cast(element_counts(groups), tf.float64) - found["nonfinite"]
    mean = tf.math.divide_no_nan(found["sum"], number)
    # The difference of two equal sums of squares may be anything in their last bits.
    is_constant = tf.raw_ops.Equal(x=found["max"], y=-found["negative_min"])
    m2 = tf.where(is_constant, constant(0.0, tf.float64), found["square"] - mean * found["sum"])
    columns = {
        "nonfinite": found["nonfinite"],
        "mean": mean,
        "m2": tf.maximum(m2, constant(0.0, tf.float64)),
        "min": -found["negative_min"],
        "max": found["max"],
        "zero": found["zero"],
        "saturated": found["saturated"],
    }
    return dict(zip(columns, tf.unstack(tf.cast(tf.stack(list(columns.values())), tf.float32)), strict=True))


def unit_sums(group: Group, elements: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum tensors along the batch, each [M, U] to [U] or [n, M, U] to [n, U].

    XLA makes a kernel of each sum of columns. Two float32 are summed as one complex number, which halves them.
    """
    axis = constant([1] if group.stacked else [0])
    sums = []
    for i in range(0, len(elements), 2):
        pair = elements[i : i + 2]
        if len(pair) == 1:
            sums.append(tf.raw_ops.Sum(input=pair[0], axis=axis))
        else:
            both = tf.raw_ops.Sum(input=tf.complex(*pair), axis=axis)
            sums += [tf.math.real(both), tf.math.imag(both)]
    return sums
