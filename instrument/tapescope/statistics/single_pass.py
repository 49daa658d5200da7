"""Statistics for GPUs: one pass over each tensor, without a branch.

A branch on a GPU copies its predicate to the host and waits for it, and a sum whose operand is kept apart by a barrier
is a kernel of its own. So here each tensor is read once, where it is made, by sums and extremes of one shape, which XLA
makes one kernel of. Everything that the exact path of `batched_ops` has a second pass for is in the same pass:

- Elements that are not finite are replaced by 0, and counted.
- Sums, and sums of squares, are float64. The square of any float32 is in its range, and a variance may be taken as the
  difference of two sums: 53 bits less what cancels leave the 24 of float32 where the mean is up to 10,000 deviations.

XLA reduces rows of up to ROW elements in one stage. So a long tensor is reshaped to rows, [P, N / P]. One kernel reads
the rows of several tensors where they are small (`_join`). The module `reductions` then folds the rows of all tensors.
docs/decisions/0040-one-pass-on-gpus.md has the alternatives.

Letters: C elements of a row, K statistics, M elements of a unit, N elements of a tensor, n tensors, P rows of a tensor,
U units.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.capture import private_api
from tapescope.statistics.batched_ops import (
    Group,
    concat,
    constant,
    element_counts,
    for_gpu,
    fusion_barrier,
    neighbors,
)
from tapescope.statistics.reductions import Reduction, Rows, pad_rows

ROW = 4096
"""Longest row that XLA reduces in one kernel."""
MOST_JOINED = 5 << 16
"""Most elements of variables that one kernel reduces together: to read their 1.25 MiB takes less time than a launch."""
MOST_JOINED_OF_LAYERS = 5 << 15
"""The same of outputs and their gradients, which stay in memory until the last of those that are joined is there."""
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


def as_float(mask: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.Cast(x=mask, DstT=tf.float32)


def sum_rows(x: tf.Tensor) -> tf.Tensor:
    """Sum [n, P, C] to [n, P]."""
    return tf.raw_ops.Sum(input=x, axis=constant([2]))


def highest_of_rows(x: tf.Tensor) -> tf.Tensor:
    """Return the largest element of each row of [n, P, C], [n, P]."""
    return tf.raw_ops.Max(input=x, axis=constant([2]))


def _join(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Put the rows of tensors [n, P, C] under each other, [1, sum of n P, largest C]; short rows end in zeros.

    XLA does not write the result: the kernel that reduces it reads each row where it is.
    """
    if len(tensors) == 1:
        return tensors[0]
    width = max(int(x.shape[2] or 0) for x in tensors)
    rows = [tf.raw_ops.Reshape(tensor=x, shape=constant([-1, x.shape[2]])) for x in tensors]
    return tf.raw_ops.ExpandDims(input=concat([pad_rows(row, width, 0.0) for row in rows], 0), axis=constant(0))


def _split(rows: tf.Tensor, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Return the rows of `_join`, reduced, as those of the tensors: [n, P] of neighbours with the same P."""
    if len(tensors) == 1:
        return [rows]
    shapes: list[Any] = [x.shape.as_list() for x in tensors]
    blocks = [(p, sum(n for n, *_ in same)) for p, same in itertools.groupby(shapes, key=lambda shape: shape[1])]
    parts = tf.split(rows, [p * n for p, n in blocks], axis=1) if len(blocks) > 1 else [rows]
    return [tf.raw_ops.Reshape(tensor=part, shape=constant([n, p])) for part, (p, n) in zip(parts, blocks, strict=True)]


def norm_rows(
    groups: Sequence[Group], all_rows: bool = True, most: float = MOST_JOINED
) -> Reduction[tuple[tf.Tensor, ...]]:
    """Return L2 norm and number of non-finite elements, each float32 [n], in the order of the groups.

    Args:
      groups: n tensors.
      all_rows: return largest magnitude and share of zeros as well.
      most: elements that one kernel reduces.
    """
    inputs = [fusion_barrier(_group_in_rows(group)) for group in groups]
    square, nonfinite, nonzero, largest = [], [], [], []
    zero = constant(0.0)
    for run in neighbors(inputs, most):
        tensors = [inputs[i] for i in run]
        x = _join(tensors)
        finite = tf.raw_ops.IsFinite(x=x)
        values = tf.raw_ops.SelectV2(condition=finite, t=x, e=zero)
        wide = tf.raw_ops.Cast(x=values, DstT=tf.float64)
        square += _split(sum_rows(tf.raw_ops.Square(x=wide)), tensors)
        nonfinite += _split(sum_rows(as_float(tf.raw_ops.LogicalNot(x=finite))), tensors)
        if all_rows:
            nonzero += _split(sum_rows(as_float(tf.raw_ops.NotEqual(x=x, y=zero))), tensors)
            largest += _split(highest_of_rows(tf.raw_ops.Abs(x=values)), tensors)
    further = {"nonzero": nonzero} if all_rows else {}
    found = yield Rows({"square": square, "nonfinite": nonfinite, **further}, {"largest": largest} if all_rows else {})
    rows = [tf.raw_ops.Sqrt(x=found["square"]), found["nonfinite"]]
    if all_rows:
        sizes = tf.cast(element_counts(groups), tf.float64)
        rows += [found["largest"], (sizes - found["nonzero"]) / sizes]
    return tuple(map(as_float, rows))


def moments(
    groups: Sequence[Group], is_saturated: Sequence[Callable[[tf.Tensor], tf.Tensor | None]]
) -> Reduction[dict[str, tf.Tensor]]:
    """Return the moments of layers' outputs, each float32 [n], in the order of the groups.

    Args:
      groups: outputs, [M, U] or stacked [n, M, U].
      is_saturated: of each group a function from its elements, in any shape, to which of them are saturated, or None.

    Returns:
      `nonfinite`, `mean`, `m2`, `min`, `max`, `zero` and `saturated`.
    """
    inputs = [fusion_barrier(_group_in_rows(group)) for group in groups]
    rows: dict[str, list[tf.Tensor]] = {
        name: [] for name in ("sum", "square", "zero", "nonfinite", "saturated", "max", "negative_min")
    }
    zero = constant(0.0)
    lowest = constant(-np.inf)
    for run in neighbors(inputs, MOST_JOINED_OF_LAYERS, same_width=True):
        tensors = [inputs[i] for i in run]
        x = _join(tensors)
        finite = tf.raw_ops.IsFinite(x=x)
        values = tf.raw_ops.Cast(x=tf.raw_ops.SelectV2(condition=finite, t=x, e=zero), DstT=tf.float64)
        masks = [is_saturated[i](inputs[i]) for i in run]
        reduced = {
            "sum": sum_rows(values),
            "square": sum_rows(tf.raw_ops.Square(x=values)),
            "zero": sum_rows(as_float(tf.raw_ops.Equal(x=x, y=zero))),
            "nonfinite": sum_rows(as_float(tf.raw_ops.LogicalNot(x=finite))),
            "max": highest_of_rows(tf.raw_ops.SelectV2(condition=finite, t=x, e=lowest)),
            "negative_min": highest_of_rows(tf.raw_ops.SelectV2(condition=finite, t=tf.raw_ops.Neg(x=x), e=lowest)),
        }
        none = [tf.zeros_like(t) if mask is None else as_float(mask) for mask, t in zip(masks, tensors, strict=True)]
        is_any = any(mask is not None for mask in masks)
        reduced["saturated"] = sum_rows(_join(none)) if is_any else tf.zeros_like(reduced["zero"])
        for name, row in reduced.items():
            rows[name] += _split(row, tensors)
    highest = {name: rows.pop(name) for name in ("max", "negative_min")}
    found = yield Rows(rows, highest)
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
    return {name: as_float(column) for name, column in columns.items()}


def unit_sums(group: Group, elements: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum tensors along the batch, each [M, U] to [U] or [n, M, U] to [n, U]. XLA makes a kernel of each sum."""
    return _sum_in_pairs(elements, 1 if group.stacked else 0)


def sum_rows_in_pairs(elements: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum tensors [n, P, C] to [n, P]. XLA makes one kernel of eight sums at most."""
    return _sum_in_pairs(elements, 2)


def _sum_in_pairs(elements: Sequence[tf.Tensor], axis: int) -> list[tf.Tensor]:
    """Sum along an axis; two tensors as the parts of one complex number, which halves the number of sums."""
    sums = []
    for i in range(0, len(elements), 2):
        pair = elements[i : i + 2]
        total = tf.raw_ops.Sum(input=tf.complex(*pair) if len(pair) == 2 else pair[0], axis=constant([axis]))
        sums += [tf.math.real(total), tf.math.imag(total)] if len(pair) == 2 else [total]
    return sums
