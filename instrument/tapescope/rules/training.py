"""Rules about how training goes: the size of the steps, the loss, the replicas. Made as those in rules_flow.py."""

from collections.abc import Iterator

import numpy as np

from tapescope.rules.finding import Finding, percent, times
from tapescope.rules.history import FALLING, LONG, STEPS, STUCK, WINDOW, History
from tapescope.rules.record_view import largest, median

FAST = 0.1
"""Of the weights' length, at every step: ten such steps may replace them. A hundredth of that is usual."""
SLOW = 1e-4
"""At this pace weights need 10,000 steps in one direction to be replaced."""
APART = 10.0
"""A layer whose pace is this many times that of most others is a case of its own; else the learning rate is meant."""
FROZEN = 1e-3
"""Of the pace of most other layers."""
FAR_ENOUGH = 0.3
"""Of their own lengths: where the weights went so far and the loss did not move, it is not going to."""
CLIPPED = 0.03
"""Of its length is left: then the clipping, and not the gradient, says how far a step goes. Clipped at 1, a tenth is
left of the early gradients of many a sound training."""
APART_NORM, APART_NORM_LONG = np.log10(3), np.log10(1.5)
"""Decades; the smaller difference where it has stayed for LONG records."""
APART_COSINE = 0.4
ONE_SIDED = 0.9
"""Of the records: by chance a replica's gradient is longer than the others' at half of them, however noisy a batch is,
and at 27 of 30 once in a hundred thousand times."""


def _where(values: np.ndarray, seen: History, way: float) -> tuple[int, str | None]:
    """The group of the largest of `way * log(values)`, and its name if it stands apart from the others."""
    with np.errstate(all="ignore"):
        decades = way * np.log10(values)
    decades = np.where(np.isnan(decades), -np.inf, decades)
    at = int(np.argmax(decades))
    others = np.delete(decades, at)
    others = others[np.isfinite(others)]
    alone = others.size > 0 and decades[at] - float(median(others)) >= np.log10(APART)
    return at, seen.of.groups[at] if alone else None


def update_too_large(seen: History) -> Iterator[Finding]:
    """Steps as long as the weights: where they go on, or at once where the weights were not small to begin with."""
    pace, fastest = _of_layers(seen.usual.pace, seen), _of_layers(seen.fastest, seen)
    lasting = seen.steps >= STEPS // 2
    steady = seen.records >= WINDOW and lasting and bool((pace >= FAST).any())
    if not steady and not (fastest >= 1).any():
        return
    # Weights that start near 0 are replaced by their first steps, and nothing is wrong: so their size is looked at, or
    # the loss.
    harmful = seen.rise >= 9 or (seen.settled and lasting and seen.fall < STUCK and not seen.trend > FALLING)
    leaps = fastest >= np.where(harmful and seen.records > 1, 1, np.where(_full_size(seen), 1, np.inf))
    if not steady and not leaps.any():
        return
    values = pace if steady else np.where(leaps, fastest, np.nan)
    at = largest(values)
    _, name = _where(np.minimum(np.where(np.isnan(values), fastest, values), 1), seen, 1)  # replaced is replaced
    name = seen.of.groups[at] if name else None
    message = f"{'a step changes' if steady else 'one step changed'} "
    message += f"the weights of `{name}` by " if name else "weights by up to "
    message += f"{percent(values[at]) + ' of' if values[at] < 1 else times(values[at])} their length"
    message += "" if name else f", most those of `{seen.of.groups[at]}`"
    message += ", and the loss did not fall" if harmful else ""
    yield Finding(
        "update_too_large",
        1,
        "error" if harmful else "warning",
        name,
        seen.since(lambda v: v.pace[at] >= FAST) if steady else int(seen.fastest_step[at]),
        message,
        {"update_ratio": float(values[at])},
        f"Lower the learning rate{' of this layer' if name else ''}, at least tenfold, or let it rise slowly at first.",
    )


def _of_layers(values: np.ndarray, seen: History) -> np.ndarray:
    """Those of the layers, where there are any: embeddings, scales and shifts have a pace of their own. Else NaN."""
    layers = np.arange(len(values)) < seen.of.layers
    return np.where(layers | (seen.of.layers == 0), np.where(np.isinf(values), np.nan, values), np.nan)


def _full_size(seen: History) -> np.ndarray:
    """Whether a group's first weights were of a usual length, [G]: Glorot's is above the root of the smaller side."""
    length = np.full(len(seen.of.groups), np.inf)
    length[: seen.of.layers] = 0.3 * np.sqrt(seen.of.units)
    return (seen.first or seen.now).weight >= length


def update_too_small(seen: History) -> Iterator[Finding]:
    """Weights that have hardly moved from the start on: all of them and the loss has not either, or one layer's."""
    if seen.records < 2 * WINDOW or seen.steps < STEPS or seen.first is None:
        return
    fastest, pace = _of_layers(seen.fastest, seen), seen.usual.pace
    if not (fastest <= SLOW).any():
        return
    with np.errstate(invalid="ignore"):
        rising = pace > 3 * seen.first.pace  # as while a learning rate is warmed up
        if rising.any():
            older, newer = map(median, np.split(np.stack([v.pace for v in seen.window]), 2))
            rising &= newer > 1.1 * older
    slow = np.where((seen.usual.gradient > 0) & ~rising, fastest, np.nan)
    if np.all(np.isnan(slow)):
        return
    at, name = _where(slow, seen, -1)
    usual = float(median(fastest))
    if name and slow[at] <= min(FROZEN * usual, SLOW / 10):
        rate = f"never change by more than {slow[at]:.2g}" if slow[at] else "do not change"
        message = f"the weights of `{name}` {rate}, those of most others by up to {usual:.2g} of their length in a step"
    elif (
        np.nanmax(fastest) <= SLOW
        and not rising.any()
        and (seen.fall < STUCK / 10 or (seen.fall < STUCK and not seen.trend > FALLING))
    ):
        at, name = largest(fastest), None
        message = f"no layer's weights ever changed by more than {fastest[at]:.2g} of their length in a step, "
        message += f"and the loss by {-100 * seen.fall:+.1f} % only"
    else:
        return
    yield Finding(
        "update_too_small",
        1,
        "warning",
        name,
        seen.first.step,
        message,
        {"update_ratio_largest": float(fastest[at]), "update_ratio_of_most": usual},
        "See that the optimizer has these weights and at which learning rate; if so, why so little gradient arrives."
        if name
        else "Raise the learning rate, at least tenfold.",
    )


def always_clipped(seen: History) -> Iterator[Finding]:
    """The optimizer never gets the gradient that there is."""
    if seen.records < 2 * WINDOW or seen.steps < STEPS // 2:
        return
    least, left = max(v.kept for v in seen.window), seen.usual.kept
    if not least < 0.99:
        return
    yield Finding(
        "always_clipped",
        1,
        "warning" if left <= CLIPPED else "info",
        None,
        seen.since(lambda v: v.kept < 0.99),
        f"the gradient is clipped at every measured step, and keeps {left:.2g} of its length",
        {"share_kept": left, "share_kept_at_most": least},
        "Raise the threshold to what the gradient's norm is usually, so that only outliers are clipped; or see where "
        "the gradient grows.",
    )


def replica_outlier(seen: History) -> Iterator[Finding]:
    """One replica whose gradient is of another length than the others', or goes another way."""
    if len(seen.replicas) < WINDOW:
        return
    steps, each = zip(*seen.replicas, strict=True)
    differences = np.stack(each)  # [T, 2, R]
    usual = median(differences)
    one_sided = np.mean(np.sign(differences) == np.sign(usual), axis=0) >= ONE_SIDED
    limits = np.array([APART_NORM if len(differences) < LONG else APART_NORM_LONG, APART_COSINE])
    excess = np.where(one_sided, np.nan_to_num(np.abs(usual), posinf=99), 0) / limits[:, None]
    if not excess.max() >= 1:
        return
    # Of two replicas each is the other's outlier: the longer one, unless the other has no gradient at all.
    which, at = np.unravel_index(
        np.argmax(excess + 1e-6 * np.where(np.isinf(usual), usual < 0, usual > 0)), excess.shape
    )
    decades, cosine = usual[:, at]
    words = (
        f"goes another way than that of the others: its cosine to the mean differs by {cosine:+.2f}"
        if which
        else f"is {times(10.0**decades)} as long as that of the others"
    )
    yield Finding(
        "replica_outlier",
        1,
        "warning",
        None,
        steps[int(np.argmax(np.sign(differences[:, which, at]) == np.sign(usual[which, at])))],
        f"the gradient of replica {at} {words}",
        {"replica": float(at), "norm_ratio": float(10.0**decades), "cosine_difference": float(cosine)},
        "Compare what this replica is fed with what the others are: its shard, its labels, its preprocessing.",
    )


def loss_not_falling(seen: History) -> Iterator[Finding]:
    """The gradient arrives everywhere and the weights move, for nothing. Only where no other rule says why."""
    if not seen.stuck:
        return
    way = float(median(_of_layers(seen.way, seen)))
    if not way >= FAR_ENOUGH:
        return
    yield Finding(
        "loss_not_falling",
        1,
        "warning",
        None,
        seen.now.step,
        f"the loss has changed by {-100 * seen.fall:+.1f} % since the first records, though the gradient arrives and "
        f"the weights of most layers went {times(way)} their own length",
        {"fall": seen.fall, "trend": seen.trend, "way": way, "records": float(seen.records)},
        "Look at what no gradient shows: are the labels those of these examples, is the loss the right one, is the "
        "learning rate so high that it only wanders?",
    )


def falls_regardless(seen: History) -> Iterator[Finding]:
    """The loss falls although a rule found the gradient unwell: part of the network learns alone."""
    if seen.records < LONG or not seen.learned:
        return
    yield Finding(
        "falls_regardless",
        1,
        "info",
        None,
        seen.now.step,
        f"{percent(seen.fall)} of the loss is gone in spite of what was found: the rest of the network learns",
        {"fall": seen.fall},
        "Mended, it may learn faster, or more.",
    )
