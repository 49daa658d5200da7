"""Reductions of tensors as generators, so that those that run side by side share kernels.

A GPU reduces long tensors in two stages: to rows, and the rows to totals. A reduction yields its rows and is sent their
totals. So one kernel adds the rows of all reductions, and another takes their extremes. What is not lowered for a GPU
has no rows and yields nothing.

Letters: n tensors, P rows of a tensor.
"""

import itertools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import concat, constant, fusion_barrier

MOST_ROWS = 80
"""Most results of kernels that one kernel reads: from about 96 on XLA writes each operand to memory anew."""

Result = TypeVar("Result")


class Rows(NamedTuple):
    """Statistics of rows, each [n, P] of n tensors, to be added or of which the largest is wanted."""

    sums: Sequence[tf.Tensor]
    highest: Sequence[tf.Tensor]


Totals = tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]
"""The same over all rows of a tensor, float64 [n]."""
Reduction = Generator[Rows, Totals, Result]
"""A generator that yields rows, is sent their totals, and returns its result."""


def together(*reductions: Reduction[Any]) -> Reduction[tuple[Any, ...]]:
    """Join reductions to one that returns what each of them returns."""
    results: list[Any] = [None] * len(reductions)
    yielded: dict[int, Rows] = {}

    def advance(i: int, totals: Totals | None) -> None:
        try:
            yielded[i] = next(reductions[i]) if totals is None else reductions[i].send(totals)
        except StopIteration as stop:
            results[i] = stop.value

    for i in range(len(reductions)):
        advance(i, None)
    while yielded:
        sums, highest = (itertools.chain.from_iterable(parts) for parts in zip(*yielded.values(), strict=True))
        remaining = [iter(totals) for totals in (yield Rows(list(sums), list(highest)))]
        for i, rows in list(yielded.items()):
            del yielded[i]
            own_sums, own_highest = (
                list(itertools.islice(totals, len(part))) for totals, part in zip(remaining, rows, strict=True)
            )
            advance(i, (own_sums, own_highest))
    return tuple(results)


def run(reduction: Reduction[Result]) -> Result:
    """Return what a reduction returns."""
    try:
        rows = next(reduction)
        while True:
            rows = reduction.send((_fold(rows.sums, tf.raw_ops.Sum, 0.0), _fold(rows.highest, tf.raw_ops.Max, -np.inf)))
    except StopIteration as stop:
        return stop.value


def _fold(rows: Sequence[tf.Tensor], reduce: Callable[..., tf.Tensor], absent: float) -> list[tf.Tensor]:
    """Reduce rows, each [n, P], to float64 [n], all in one kernel."""
    if not rows:
        return []
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
    return [total for _, total in sorted(zip(by_parts, totals, strict=True), key=lambda pair: pair[0])]


def pad_rows(row: tf.Tensor, length: int, absent: float) -> tf.Tensor:
    """Lengthen [n, P] to [n, length] with `absent`."""
    own: Any = row.shape[1]
    missing = length - own
    if not missing:
        return row
    paddings = constant([[0, 0], [0, missing]])
    return tf.raw_ops.PadV2(input=row, paddings=paddings, constant_values=constant(absent, row.dtype))
