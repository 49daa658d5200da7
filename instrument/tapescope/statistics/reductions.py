"""Reductions of tensors as generators, so that those that run side by side share kernels.

A GPU reduces long tensors in two stages: to rows, and the rows to totals. A reduction yields its rows and is sent their
totals. So one kernel adds the rows of all reductions, and another takes their extremes. What is not lowered for a GPU
has no rows and yields nothing.

Letters: n tensors, P rows of a tensor.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from tapescope.statistics.batched_ops import concat, constant, fusion_barrier

MOST_ROWS = 80
"""Most results of kernels that one kernel reads: from about 96 on XLA writes each operand to memory anew."""

Result = TypeVar("Result")


class Piece(NamedTuple):
    """One statistic of the rows of n tensors."""

    rows: tf.Tensor
    """[sum of P]."""
    lengths: Sequence[int]
    """How many rows each tensor has, P."""


class Rows(NamedTuple):
    """Statistics of rows by name, each in pieces."""

    sums: Mapping[Any, Sequence[Piece]]
    """Statistics that are added over the rows of a tensor."""
    highest: Mapping[Any, Sequence[Piece]]
    """Statistics of which the largest over the rows of a tensor is taken."""


Totals = Mapping[Any, tf.Tensor]
"""Statistics of whole tensors by name: of the tensors of all pieces, one after another."""
Reduction = Generator[Rows, Totals, Result]
"""A generator that yields rows, is sent their totals, and returns its result."""


def join(*reductions: Reduction[Any]) -> Reduction[tuple[Any, ...]]:
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
    pieces: Mapping[Any, Sequence[Piece]], reduce: Callable[..., tf.Tensor], absent: float
) -> dict[Any, tf.Tensor]:
    """Reduce the rows of each name's pieces to one [sum of n], all in one kernel."""
    rows = [piece for of_name in pieces.values() for piece in of_name]
    if not rows:
        return {}
    dtype = _widest(rows)
    flat = [tf.cast(piece.rows, dtype) for piece in rows]
    tables = []
    for start in range(0, len(flat), MOST_ROWS):
        table = concat(flat[start : start + MOST_ROWS], 0)
        tables.append(fusion_barrier(table) if len(flat) > MOST_ROWS else table)
    table = concat([*tables, constant([absent], dtype)], 0)
    lengths = np.concatenate([piece.lengths for piece in rows])
    starts = np.cumsum([0, *lengths])
    within = np.arange(lengths.max())
    places = np.where(within < lengths[:, None], starts[:-1, None] + within, starts[-1])
    total = reduce(input=tf.gather(table, constant(places)), axis=constant([1]))
    totals = tf.split(total, [sum(len(piece.lengths) for piece in of_name) for of_name in pieces.values()])
    return {
        name: total if _widest(of_name).is_complex else tf.math.real(total)
        for (name, of_name), total in zip(pieces.items(), totals, strict=True)
    }


def _widest(pieces: Sequence[Piece]) -> tf.DType:
    """Return the type of elements that holds those of all pieces: complex numbers where there are any."""
    return max((piece.rows.dtype for piece in pieces), key=lambda dtype: dtype.size)
