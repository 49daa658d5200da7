"""Reductions of tensors as generators, so that those that run side by side share kernels.

A GPU reduces long tensors in two stages: to rows, and the rows to totals. A reduction yields its rows and is sent their
totals. So one kernel adds the rows of all reductions, and another takes their extremes. What is not lowered for a GPU
has no rows and yields nothing.

Letters: n tensors, P rows of a tensor.
"""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import concat, constant, fusion_barrier

MOST_ROWS = 80
"""Most results of kernels that one kernel reads: from about 96 on XLA writes each operand to memory anew."""

Result = TypeVar("Result")


class Rows(NamedTuple):
    """Statistics of rows by name, each in pieces [n, P] for n tensors of P rows."""

    sums: Mapping[Any, Sequence[tf.Tensor]]
    """Statistics that are added over the rows of a tensor."""
    highest: Mapping[Any, Sequence[tf.Tensor]]
    """Statistics of which the largest over the rows of a tensor is taken."""


Totals = Mapping[Any, tf.Tensor]
"""Statistics of whole tensors by name, float64: of the tensors of all pieces, one after another."""
Reduction = Generator[Rows, Totals, Result]
"""A generator that yields rows, is sent their totals, and returns its result."""


def together(*reductions: Reduction[Any]) -> Reduction[tuple[Any, ...]]:
    """Join reductions to one that returns what each of them returns."""
    results: list[Any] = [None] * len(reductions)
    waiting = dict(enumerate(reductions))
    sent: dict[int, Any] = dict.fromkeys(waiting)  # None starts a generator
    while True:
        yielded: dict[int, Rows] = {}
        for i in list(waiting):
            try:
                yielded[i] = waiting[i].send(sent[i])
            except StopIteration as stop:
                results[i] = stop.value
                del waiting[i]
        if not waiting:
            return tuple(results)
        totals = yield Rows(
            {(i, name): pieces for i, rows in yielded.items() for name, pieces in rows.sums.items()},
            {(i, name): pieces for i, rows in yielded.items() for name, pieces in rows.highest.items()},
        )
        sent = {i: {name: totals[i, name] for name in (*rows.sums, *rows.highest)} for i, rows in yielded.items()}


def run(reduction: Reduction[Result]) -> Result:
    """Return what a reduction returns."""
    try:
        rows = next(reduction)
        while True:
            sums = _fold(rows.sums, tf.raw_ops.Sum, 0.0)
            rows = reduction.send(sums | _fold(rows.highest, tf.raw_ops.Max, -np.inf))
    except StopIteration as stop:
        return stop.value


def _fold(
    pieces: Mapping[Any, Sequence[tf.Tensor]], reduce: Callable[..., tf.Tensor], absent: float
) -> dict[Any, tf.Tensor]:
    """Reduce the pieces, each [n, P], to one float64 [sum of n] for each name, all in one kernel."""
    rows = [row for of_name in pieces.values() for row in of_name]
    if not rows:
        return {}
    shapes: list[Any] = [row.shape.as_list() for row in rows]
    by_parts = sorted(range(len(rows)), key=lambda i: shapes[i][1])
    parts = shapes[by_parts[-1]][1]
    tables = []
    for start in range(0, len(rows), MOST_ROWS):
        chunk = by_parts[start : start + MOST_ROWS]
        wide = [tf.raw_ops.Cast(x=rows[i], DstT=tf.float64) for i in chunk]
        table = concat([pad_rows(row, shapes[chunk[-1]][1], absent) for row in wide], 0)
        tables.append(pad_rows(fusion_barrier(table) if len(rows) > MOST_ROWS else table, parts, absent))
    totals = tf.split(reduce(input=concat(tables, 0), axis=constant([1])), [shapes[i][0] for i in by_parts])
    in_order = iter([total for _, total in sorted(zip(by_parts, totals, strict=True), key=lambda pair: pair[0])])
    return {name: concat(list(itertools.islice(in_order, len(of_name))), 0) for name, of_name in pieces.items()}


def pad_rows(row: tf.Tensor, length: int, absent: float) -> tf.Tensor:
    """Lengthen [n, P] to [n, length] with `absent`."""
    own: Any = row.shape[1]
    missing = length - own
    if not missing:
        return row
    paddings = constant([[0, 0], [0, missing]])
    return tf.raw_ops.PadV2(input=row, paddings=paddings, constant_values=constant(absent, row.dtype))
