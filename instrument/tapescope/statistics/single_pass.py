"""Statistics for GPUs: one pass over each tensor, without a branch.

A branch on a GPU copies its predicate to the host and waits for it, and a sum whose operand is kept apart by a barrier
is a kernel of its own. So here each tensor is read once, where it is made, by sums and extremes of one shape, which XLA
makes one kernel of. Everything that the exact path of `batched_ops` has a second pass for is in the same pass:

- Elements that are not finite are replaced by 0, and counted.
- Sums, and sums of squares, are float64. The square of any float32 is in its range, and a variance may be taken as the
  difference of two sums: 53 bits less what cancels leave the 24 of float32 where the mean is up to 10,000 deviations.

XLA reduces rows of up to 4,096 elements in one stage. So a long tensor is reshaped to rows, [P, N / P]. One kernel
reads the rows of several tensors where they are small (`_join`). The module `reductions` then folds the rows of all.
docs/decisions/0040-one-pass-on-gpus.md has the alternatives.

Letters: C elements of a row, K statistics, M elements of a unit, N elements of a tensor, n tensors, P rows of a tensor,
U units.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

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
from tapescope.statistics.reductions import Piece, Reduction, Rows

ROW = 2048
"""Longest row that a tensor is reshaped to, where its size has such a divisor; XLA reduces 4,096 in one kernel."""
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


class InRows(NamedTuple):
    """One tensor, or n of them, reshaped to rows."""

    tensor: tf.Tensor
    """[sum of P, C]."""
    lengths: Sequence[int]
    """How many rows each tensor has, P."""


def in_rows(x: tf.Tensor, n: int = 1) -> InRows:
    """Reshape a tensor, or n of them that are stacked, to rows."""
    size = x.shape.num_elements()
    rows = _rows(None if size is None else size // n)
    return InRows(tf.raw_ops.Reshape(tensor=x, shape=constant([n * rows, -1])), [rows] * n)


def as_float(mask: tf.Tensor) -> tf.Tensor:
    """Return a mask, or a result in float64, as float32."""
    return tf.raw_ops.Cast(x=mask, DstT=tf.float32)


def sum_rows(x: tf.Tensor) -> tf.Tensor:
    """Sum [P, C] to [P]."""
    return tf.raw_ops.Sum(input=x, axis=constant([1]))


def highest_of_rows(x: tf.Tensor) -> tf.Tensor:
    """Return the largest element of each row of [P, C], [P]."""
    return tf.raw_ops.Max(input=x, axis=constant([1]))


def _join(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Put the rows of tensors [P, C] under each other, [sum of P, largest C]; short rows end in zeros.

    XLA does not write the result: the kernel that reduces it reads each row where it is.
    """
    if len(tensors) == 1:
        return tensors[0]
    width = max(int(x.shape[1] or 0) for x in tensors)
    return concat([_pad_rows(x, width) for x in tensors], 0)


def _pad_rows(x: tf.Tensor, width: int) -> tf.Tensor:
    missing = width - int(x.shape[1] or 0)
    if not missing:
        return x
    paddings = constant([[0, 0], [0, missing]])
    return tf.raw_ops.PadV2(input=x, paddings=paddings, constant_values=constant(0.0))


def _runs(inputs: Sequence[InRows], most: float, same_width: bool = False) -> list[tuple[list[int], list[int]]]:
    """Return which inputs one kernel reads, by position, and how many rows each of their tensors has."""
    runs = neighbors([x.tensor for x in inputs], most, same_width)
    return [(run, [length for i in run for length in inputs[i].lengths]) for run in runs]


HIGH = 2.0**32
"""Factor of the second of two counts in the float64 that holds both."""


def pack_counts(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Return float64 whose sums hold how often each of two masks is true; see `unpack_counts`."""
    return _wide(low) + _wide(high) * constant(HIGH, tf.float64)


def unpack_counts(sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return both counts. They are exact while the second one is below two million; then the first is rounded."""
    factor = constant(HIGH, tf.float64)
    high = tf.raw_ops.Floor(x=sums / factor + constant(0.25, tf.float64))  # the first one is below HIGH / 2
    return tf.maximum(sums - high * factor, constant(0.0, tf.float64)), high


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.Cast(x=x, DstT=tf.float64)


def split_complex(pairs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the real and the imaginary parts of sums: a kernel has at most eight results, so sums go in pairs."""
    return tf.math.real(pairs), tf.math.imag(pairs)


NORM_ROWS = ("norm", "nonfinite", "max", "zero")
"""Results of `norm_rows`: L2 norm, number of non-finite elements, largest magnitude, and share of zeros."""


def norm_rows(
    groups: Sequence[Group], names: Sequence[str] = NORM_ROWS, most: float = MOST_JOINED
) -> Reduction[tuple[tf.Tensor, ...]]:
    """Return statistics of tensors, each float32 [n], in the order of the groups.

    Args:
      groups: n tensors.
      names: the first one, two or four of NORM_ROWS.
      most: elements that one kernel reduces.
    """
    inputs = [in_rows(group.tensor, len(group.indices)) for group in groups]
    sums, largest = [], []
    zero = constant(0.0)
    is_all = len(names) == len(NORM_ROWS)
    for run, lengths in _runs(inputs, most):
        x = _join([inputs[i].tensor for i in run])
        finite = tf.raw_ops.IsFinite(x=x)
        values = tf.raw_ops.SelectV2(condition=finite, t=x, e=zero)
        summand = tf.raw_ops.Square(x=_wide(values))
        if len(names) > 1:
            nonfinite = tf.raw_ops.LogicalNot(x=finite)
            counts = pack_counts(tf.raw_ops.NotEqual(x=values, y=zero), nonfinite) if is_all else _wide(nonfinite)
            summand = tf.complex(summand, counts)
        sums.append(Piece(sum_rows(summand), lengths))
        if is_all:
            largest.append(Piece(highest_of_rows(tf.raw_ops.Abs(x=values)), lengths))
    found = yield Rows({"sums": sums}, {"max": largest} if is_all else {})
    if len(names) == 1:
        return (as_float(tf.raw_ops.Sqrt(x=found["sums"])),)
    square, counts = split_complex(found["sums"])
    norm = tf.raw_ops.Sqrt(x=square)
    if not is_all:
        return as_float(norm), as_float(counts)
    nonzero, nonfinite = unpack_counts(counts)
    sizes = _wide(element_counts(groups))
    largest = tf.maximum(found["max"], constant(0.0))  # that of no elements is -Inf
    rows = norm, nonfinite, largest, (sizes - nonzero - nonfinite) / sizes
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
    inputs = [in_rows(group.tensor, len(group.indices)) for group in groups]
    # Behind the reshaping: before it, a transformer's step took 1.5 times the memory instead of 1.1.
    inputs = [x._replace(tensor=fusion_barrier(x.tensor)) for x in inputs]
    sums: dict[str, list[Piece]] = {"moments": [], "counts": []}
    highest: dict[str, list[Piece]] = {"max": [], "negative_min": []}
    zero = constant(0.0)
    lowest = constant(-np.inf)
    for run, lengths in _runs(inputs, MOST_JOINED_OF_LAYERS, same_width=True):
        tensors = [inputs[i].tensor for i in run]
        x = _join(tensors)
        finite = tf.raw_ops.IsFinite(x=x)
        values = _wide(tf.raw_ops.SelectV2(condition=finite, t=x, e=zero))
        counts = pack_counts(tf.raw_ops.Equal(x=x, y=zero), tf.raw_ops.LogicalNot(x=finite))
        masks = [is_saturated[i](tensor) for i, tensor in zip(run, tensors, strict=True)]
        if any(mask is not None for mask in masks):
            known = [tf.zeros_like(t) if m is None else as_float(m) for m, t in zip(masks, tensors, strict=True)]
            counts = tf.complex(counts, _wide(_join(known)))
        sums["moments"].append(Piece(sum_rows(tf.complex(values, tf.raw_ops.Square(x=values))), lengths))
        sums["counts"].append(Piece(sum_rows(counts), lengths))
        for name, element in (("max", x), ("negative_min", tf.raw_ops.Neg(x=x))):
            known = tf.raw_ops.SelectV2(condition=finite, t=element, e=lowest)
            highest[name].append(Piece(highest_of_rows(known), lengths))
    found = yield Rows(sums, highest)
    total, square = split_complex(found["moments"])
    counts, saturated = split_complex(found["counts"])
    zeros, nonfinite = unpack_counts(counts)
    mean = tf.math.divide_no_nan(total, _wide(element_counts(groups)) - nonfinite)
    # The difference of two equal sums of squares may be anything in their last bits.
    is_constant = tf.raw_ops.Equal(x=found["max"], y=-found["negative_min"])
    m2 = tf.where(is_constant, constant(0.0, tf.float64), square - mean * total)
    columns = {
        "nonfinite": nonfinite,
        "mean": mean,
        "m2": tf.maximum(m2, constant(0.0, tf.float64)),
        "min": -found["negative_min"],
        "max": found["max"],
        "zero": zeros,
        "saturated": saturated,
    }
    return {name: as_float(column) for name, column in columns.items()}


def unit_sums(group: Group, elements: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Sum tensors along the batch, each [M, U] to [U] or [n, M, U] to [n, U].

    XLA makes a kernel of each sum. Two tensors are the parts of one complex number, which halves the number of sums.
    """
    axis = constant([1 if group.stacked else 0])
    sums: list[tf.Tensor] = []
    for i in range(0, len(elements), 2):
        pair = elements[i : i + 2]
        total = tf.raw_ops.Sum(input=tf.complex(*pair) if len(pair) == 2 else pair[0], axis=axis)
        sums += split_complex(total) if len(pair) == 2 else [total]
    return sums
