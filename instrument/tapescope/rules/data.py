"""The rule about the scale of the data.

Initialization and learning rates are made for inputs and targets of about 1. README.md says how a rule is written.
"""

import math
from collections.abc import Iterator

import numpy as np

from tapescope.rules.data_view import DataRow, Pooled
from tapescope.rules.finding import Finding, format_share
from tapescope.rules.history import WINDOW, History
from tapescope.rules.objective import ERRORS, RANGES

LARGE_INPUT = 30.0
"""Root mean square: Glorot initialization then gives a first layer outputs of 30, and a gradient that is 30 times that
of its later layers. Raw pixels have about 100; counts, ages and standardized values lie below."""
NOTABLE_INPUT = 10.0
TINY_INPUT = 0.01
"""Largest magnitude: the biases of the first layer then outweigh all that an input says."""
OFFSET = 10.0
"""Times the standard deviation: the mean then takes 99 % of the input, and what matters is the rest."""
LARGE_TARGET = 1e4
"""Root mean square: at a learning rate of 1e-3 the bias of an output needs ten million steps of Adam to get there."""
NOTABLE_TARGET = 100.0
MANY_WORDS = 1000
"""Elements of an input, among which a vocabulary has more than two words."""
UNUSED_SHARE = 0.9
"""Share of an embedding's rows without a gradient: where two are used, there are twenty or more."""
FEW_ELEMENTS = 100
"""Of an input, below which nothing is said about its spread."""


def unscaled_data(history: History) -> Iterator[Finding]:
    """Report inputs and targets whose scale is far from 1, where nothing normalizes them."""
    rows = history.layout.data
    for index, row in enumerate(rows):
        pooled = history.data.pooled(index)
        if pooled is None or row.kind != "input":
            continue
        found = _embedding_verdict(row, pooled, history) or _alike_verdict(index, pooled, history)
        if found is None and _is_judged(row):
            found = _input_verdict(row, pooled, history)
        found = found or _same_batch_verdict(index, pooled, history)
        if found is not None:
            yield _finding(history, row, pooled, *found)
    for objective in history.layout.objectives:
        pooled = history.data.pooled(objective.target)
        if pooled is None or objective.loss not in ERRORS or rows[objective.target].weighted:
            continue
        if objective.activation != "linear" and objective.activation not in RANGES:
            continue  # what makes the output may scale it back
        found = _target_verdict(rows[objective.target], pooled, history)
        if found is not None:
            yield _finding(history, rows[objective.target], pooled, *found)


def _embedding_verdict(row: DataRow, pooled: Pooled, history: History) -> tuple[str, str, str] | None:
    """Return severity, message and advice where an embedding is given numbers that are not of words; else None."""
    if "embedding" not in row.followers:
        return None
    if pooled.whole >= 1:
        return _one_word_verdict(row, pooled, history)
    return (
        "warning",
        f"`{row.name}` goes from {pooled.low:.4g} to {pooled.high:.4g}, and {format_share(1 - pooled.whole)} of it is "
        "not whole, while an embedding takes it for numbers of words or categories: all are cut off",
        "Pass the numbers as they are, whole and from 0 on: scale only inputs that are measures.",
    )


def _one_word_verdict(row: DataRow, pooled: Pooled, history: History) -> tuple[str, str, str] | None:
    """Return severity, message and advice where the only input has no more than two numbers of many; else None.

    The gradient of an embedding is 0 but for the rows that a batch has, which says how many others there are.
    """
    layout = history.layout
    kinds = [other.kind for other in layout.data]
    if kinds.count("input") > 1 or pooled.elements < MANY_WORDS or pooled.high - pooled.low > 1:
        return None
    tables = [i for i, name in enumerate(layout.variable_names) if name.endswith("/embeddings")]
    unused = [view.column("gradient_zero", layout.variable_count)[tables] for view in history.window]
    if len(tables) != 1 or len(unused) < WINDOW // 2 or not np.min(unused) >= UNUSED_SHARE:
        return None
    return (
        "warning",
        f"`{row.name}` is {pooled.low:.0f} or {pooled.high:.0f} everywhere, and {format_share(float(np.min(unused)))} "
        "of the embedding is never used: nearly all words or categories are taken for the same, such as the unknown "
        "one",
        "Compare the vocabulary with the words that are looked up in it: upper and lower case, punctuation, and the "
        "data that it was made from.",
    )


def _alike_verdict(index: int, pooled: Pooled, history: History) -> tuple[str, str, str] | None:
    """Return severity, message and advice where the only input is the same for all examples; else None.

    A full batch is the same in each record too, but so are its targets then. Whole numbers may be one-hot rows, which
    have the same mean in every batch, and a network that learns tells its examples apart.
    """
    rows = history.layout.data
    if sum(row.kind == "input" for row in rows) != 1 or history.data.records < WINDOW // 2:
        return None
    name = rows[index].name
    if pooled.low == pooled.high != 0 and pooled.elements >= FEW_ELEMENTS:
        return "warning", f"`{name}` is {pooled.low:.4g} everywhere, so examples do not differ", _ALIKE_ADVICE
    targets = [objective.target for objective in history.layout.objectives if objective.target >= 0]
    learns = not history.had_time or history.learned or history.beats_constant
    if learns or pooled.whole >= 1 or history.data.varies[index] or not history.data.varies[targets].any():
        return None
    return (
        "warning",
        f"`{name}` has the same mean, deviation and range in all {history.data.records} records, though the targets "
        "differ: all examples seem to be alike",
        _ALIKE_ADVICE,
    )


_ALIKE_ADVICE = "Look how the inputs are made: print some examples as the network gets them, beside their targets."


def _same_batch_verdict(index: int, pooled: Pooled, history: History) -> tuple[str, str, str] | None:
    """Return severity, message and advice where each record has the same batch, though an epoch has several; else None.

    It is an info: the batch may be all there is, repeated. One-hot rows have the same statistics in every batch. Steps
    that are a whole number of epochs apart have the same batch where the data are not shuffled.
    """
    given = [i for i, row in enumerate(history.layout.data) if row.kind in ("input", "target")]
    batches = max((o.batches_per_epoch for o in history.layout.objectives), default=math.nan)
    is_one_hot = pooled.whole >= 1 and pooled.high <= 1
    if history.data.records < WINDOW or is_one_hot or pooled.low == pooled.high or batches == 1:
        return None
    if history.data.varies[given].any() or len({view.step % batches for view in history.window}) == 1:
        return None
    of_several = f", though an epoch has {batches:.0f}" if batches > 1 else ""
    return (
        "info",
        f"all {history.data.records} records have the same batch{of_several}: the network sees no other examples",
        "Look how the batches are made: an iterator that is made anew always gives the first one, and so does a slice "
        "that does not move with the step. If this batch is the whole data set, nothing is wrong.",
    )


def _is_judged(row: DataRow) -> bool:
    """Return whether a row is an input that a trained layer gets as it is."""
    return row.kind == "input" and set(row.followers) == {"trained"} and not row.normalizers


def _range(row: DataRow, pooled: Pooled) -> str:
    low, high = (f"{bound:.4g}" for bound in (pooled.low, pooled.high))
    return f"`{row.name}` is {low}" if low == high else f"`{row.name}` goes from {low} to {high}"


def _input_verdict(row: DataRow, pooled: Pooled, history: History) -> tuple[str, str, str] | None:
    """Return severity, message and advice; None where the scale is usual."""
    held = _range(row, pooled)
    standardize = (
        "Standardize it, by `keras.layers.Normalization()` as the first layer after `adapt`, or by its mean and "
        "standard deviation."
    )
    few = pooled.elements < 10 * FEW_ELEMENTS and history.data.records < WINDOW // 2
    enough = pooled.elements >= FEW_ELEMENTS and not few
    has_offset = enough and pooled.high > pooled.low and abs(pooled.mean) >= OFFSET * pooled.std
    if pooled.rms >= LARGE_INPUT or (pooled.rms >= NOTABLE_INPUT and not has_offset):
        what = f"{held}: its root mean square is {pooled.rms:.3g}, where the first layer's initial weights suit about 1"
        severity = "warning" if pooled.rms >= LARGE_INPUT or history.loss_stuck or history.diverged else "info"
        if pooled.low >= 0 and 200 <= pooled.high <= 255:
            return (
                severity,
                what,
                "Divide it by 255: `x / 255`, or `keras.layers.Rescaling(1 / 255)` as the first layer.",
            )
        advice = standardize
        if row.integer or (pooled.whole >= 1 and pooled.low >= 0):
            advice += " If these are numbers of words or categories, use `keras.layers.Embedding`."
        return severity, what, advice
    if not enough:
        return None
    if has_offset:
        times = f"{abs(pooled.mean) / pooled.std:.0f}" if pooled.std else "more than a million"  # lost in rounding
        return (
            "warning",
            f"{held}: its mean of {pooled.mean:.3g} is {times} times its standard deviation, so examples hardly "
            "differ for the first layer",
            standardize,
        )
    largest = max(abs(pooled.low), abs(pooled.high))
    if 0 < largest < TINY_INPUT:
        return (
            "warning",
            f"{held}: no element is above {largest:.2g}, where the first layer's initial weights suit about 1",
            standardize,
        )
    if largest == 0 and sum(r.kind == "input" for r in history.layout.data) == 1:
        return "warning", f"`{row.name}` is 0 everywhere", "Look how it is made: whole numbers are cut when divided."
    return None


def _target_verdict(row: DataRow, pooled: Pooled, history: History) -> tuple[str, str, str] | None:
    if pooled.rms < NOTABLE_TARGET:
        return None
    severe = pooled.rms >= LARGE_TARGET or history.loss_stuck or history.diverged
    return (
        "warning" if severe else "info",
        f"{_range(row, pooled)}: its root mean square is {pooled.rms:.3g}, where the network's first outputs are about "
        "1",
        "Standardize the targets by their mean and standard deviation, or train on their logarithm, and scale the "
        "predictions back.",
    )


def _finding(history: History, row: DataRow, pooled: Pooled, severity: str, message: str, advice: str) -> Finding:
    first = history.first or history.latest
    return Finding(
        rule="unscaled_data",
        version=2,
        severity=severity,
        layer=row.name,
        step=first.step,
        message=message,
        evidence={"rms": pooled.rms, "mean": pooled.mean, "std": pooled.std, "min": pooled.low, "max": pooled.high},
        advice=advice,
    )
