"""Rules about targets: those that no output can reach, and labels that teach nothing.

README.md says how a rule is written.
"""

from collections.abc import Iterator

import numpy as np

from tapescope.rules.data_view import Pooled
from tapescope.rules.finding import Finding, format_share
from tapescope.rules.history import WINDOW, History
from tapescope.rules.objective import (
    BINARY,
    CATEGORICAL,
    CROSS_ENTROPIES,
    ERRORS,
    RANGES,
    SHARE_OUTSIDE,
    SPARSE,
    TOLERANCE,
    Case,
    Verdict,
    cases,
    classes_advice,
    most_severe,
)

RELATIVE_ERRORS = {"mean_absolute_percentage_error", "mean_squared_logarithmic_error", "poisson"}
MUCH_OUTSIDE = 0.2
"""Share of the targets: one record suffices."""
MOST_OUTSIDE = 0.5
"""Share of the targets: the network cannot learn its task."""
LEAST_OUTSIDE = 3
"""Targets: batches of one example give their first one a share of 1."""
OUTSIDE_DISTANCE = 0.1
"""In standard deviations of the targets: the nearest value that the output can give is as good."""
SAME_LABELS = 1000
"""Labels that are all the same: of a class that one example in 200 has, none is among them in one of 150 trainings."""
SINGLE_CLASS_SHARE = 0.05
"""Share of the records with labels of one class only: eight labels of two classes are so by chance in one of 128."""


def targets_out_of_range(history: History) -> Iterator[Finding]:
    """Report targets that the loss does not take, or that the output can never give."""
    for case in cases(history):
        if case.targets is not None and case.certain:
            yield from most_severe("targets_out_of_range", case, _range_verdicts(case, case.targets))


def _range_verdicts(case: Case, targets: Pooled) -> Iterator[Verdict]:
    objective = case.objective
    evidence = {"target_min": targets.low, "target_max": targets.high}
    held = f"the targets go from {targets.low:.4g} to {targets.high:.4g}"
    if objective.loss in SPARSE:
        if not objective.ignores_class and (targets.low < 0 or targets.high >= objective.units):
            units = objective.units
            advice = f"Use an output of {int(targets.high) + 1} units"
            if targets.low == 1 and targets.high == units:
                advice = "Number the labels from 0: `y - 1`"
            elif targets.low < 0:
                advice = "Number the labels from 0, or say which one to leave out: `ignore_class`"
            yield Verdict(
                "error",
                f"{held}, and {case.loss} with {units} units takes 0 to {units - 1}: the loss of other labels is an "
                "error on a CPU and NaN on a GPU",
                f"{advice}.",
                evidence,
            )
        return
    outside = targets.negative + targets.above_one
    beyond = max(-targets.low, targets.high - 1)
    if objective.loss in BINARY | CATEGORICAL:
        if beyond > TOLERANCE:
            yield Verdict(
                "error" if outside >= SHARE_OUTSIDE else "warning",
                f"{held}, and {case.loss} takes 0 to 1: outside of it the loss falls without limit",
                _unit_range_advice(case, targets),
                evidence | {"share_outside": outside},
            )
        return
    bounds = RANGES.get(objective.activation)
    if bounds is None or objective.loss not in ERRORS | RELATIVE_ERRORS:
        return
    low, high = bounds
    outside = (targets.negative if low == 0 else targets.below_minus_one) + (targets.above_one if high == 1 else 0.0)
    beyond = max(low - targets.low, targets.high - high)
    if outside < SHARE_OUTSIDE or beyond <= max(TOLERANCE, OUTSIDE_DISTANCE * targets.std):
        return
    if outside * targets.elements < LEAST_OUTSIDE:
        return
    if outside < MUCH_OUTSIDE and case.history.data.records < WINDOW // 2:
        return
    can = "0 and above" if high > 1 else f"{low:.0f} to {high:.0f}"
    advice = f"Use `Dense({objective.units})` without an activation"
    if high == 1:
        advice += f", or scale the targets to {low:.0f} to {high:.0f}"
    yield Verdict(
        "error" if outside >= MOST_OUTSIDE else "warning",
        f"{held}, and {case.name} ends in {objective.activation}, which gives {can}: {format_share(outside)} of the "
        "targets can't be reached",
        f"{advice}.",
        evidence | {"share_outside": outside},
    )


def _unit_range_advice(case: Case, targets: Pooled) -> str:
    if targets.whole >= 1 and targets.low == -1 and targets.high == 1:
        return "Use labels of 0 and 1: `(y + 1) / 2`."
    if targets.whole >= 1 and (targets.low, targets.high) == (1, 2):
        return "Use labels of 0 and 1: `y - 1`."
    if targets.whole >= 1 and targets.low >= 0 and case.objective.units == 1:
        return classes_advice(targets)
    return "Scale the targets to 0 to 1, or use `mse` with an output without an activation."


def labels_degenerate(history: History) -> Iterator[Finding]:
    """Report labels that are not labels any more: not whole, or all the same."""
    for case in cases(history):
        if case.targets is not None and case.certain:
            yield from most_severe("labels_degenerate", case, _label_verdicts(case, case.targets))
        elif 0 <= case.objective.target < len(history.data.empty):
            yield from most_severe("labels_degenerate", case, _weight_verdicts(case))


def _weight_verdicts(case: Case) -> Iterator[Verdict]:
    """Yield whether no example ever counted."""
    records = case.history.data.records
    if records >= WINDOW // 2 and case.history.data.empty[case.objective.target] == records:
        yield Verdict(
            "warning",
            "the weight of every example so far is 0, so the loss is 0 and nothing is learned",
            "Look at `sample_weight`, `class_weight` and masks: they give the examples that count a weight above 0.",
            {"records": float(records)},
        )


def _label_verdicts(case: Case, targets: Pooled) -> Iterator[Verdict]:
    loss = case.objective.loss
    evidence = {"label_min": targets.low, "label_max": targets.high, "share_whole": targets.whole}
    if loss in SPARSE and targets.whole < 1 - TOLERANCE:
        becomes = "all become 0" if targets.low >= 0 and targets.high < 1 else "other classes result"
        yield Verdict(
            "error",
            f"{case.loss} takes whole numbers, and {format_share(1 - targets.whole)} of the labels are not whole "
            f"({targets.low:.4g} to {targets.high:.4g}): they are cut off, and {becomes}",
            "Pass the labels as they are, as whole numbers from 0 on: scale the inputs only.",
            evidence,
        )
    if targets.single_classes >= max(WINDOW // 2, SINGLE_CLASS_SHARE * case.history.data.records):
        yield Verdict(
            "warning",
            f"each of {targets.single_classes} batches has labels of one class only, not always the same: each step "
            "teaches the network to forget the other classes",
            "Shuffle the examples before they are cut into batches.",
            evidence,
        )
    if targets.elements < SAME_LABELS or case.history.data.records < WINDOW // 2:
        return
    if loss in SPARSE and _are_the_inputs(case):
        yield Verdict(
            "info",
            "the labels seem to be the inputs, by their mean, deviation and range in each record: the network learns "
            "to copy",
            "To predict the next element, shift the labels by one: `x = ids[:, :-1]`, `y = ids[:, 1:]`. An "
            "autoencoder, or a network that sorts or reverses, has the same numbers on purpose.",
            evidence,
        )
    if loss in ERRORS and targets.low == targets.high:
        yield Verdict(
            "warning",
            f"all targets so far are {targets.low:.4g}, so the network can only learn to answer that",
            "Look how the targets are made: whole numbers are cut off when they are divided.",
            evidence,
        )
    if loss not in CROSS_ENTROPIES:
        return
    rows = loss in CATEGORICAL and case.objective.units > 1
    low, high = (targets.class_low, targets.class_high) if rows else (targets.low, targets.high)
    if loss in SPARSE:
        low, high = int(low), int(high)
    weighted = case.objective.weighted
    if low == high:
        yield Verdict(
            "warning",
            f"all labels so far{' whose weight is not 0' if weighted else ''} are the same ({low:.4g}), so the network "
            "can only learn to answer that",
            f"Look how the labels{' and their weights' if weighted else ''} are made, and shuffle the data if they are "
            "sorted by class.",
            evidence,
        )


def _are_the_inputs(case: Case) -> bool:
    """Return whether the labels have the same statistics as an input in all of the last records."""
    rows = case.history.layout.data
    names = ("elements", "mean", "std", "min", "max", "zero")
    statistics = np.array([[view.column(f"data_{n}", len(rows)) for n in names] for view in case.history.window])
    same = np.all(statistics == statistics[:, :, [case.objective.target]], axis=(0, 1))
    return any(same[i] and row.kind == "input" for i, row in enumerate(rows))
