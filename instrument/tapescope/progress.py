"""Rules about how training goes: the size of the steps, the loss, the replicas. Made as those in symptoms.py."""

from collections.abc import Iterator

import numpy as np

from tapescope.history import WINDOW, History, View, median
from tapescope.symptoms import Finding

FAST = 0.1
"""Of the weights' length, at every step: ten such steps may replace them. A hundredth of that is usual."""
SLOW = 1e-4
"""At this pace weights need 10,000 steps in one direction to be replaced."""
APART = 10.0
"""A layer whose pace is this many times that of most others is a case of its own; else the learning rate is meant."""
FROZEN = 1e-3
"""Of the pace of most other layers."""
STUCK = 0.1
"""A loss of which less than this share is gone has not fallen."""
LONG = 3 * WINDOW
"""Records after which a loss should have moved."""
CLIPPED = 0.1
"""Of its length is left: then the clipping, and not the gradient, says how far a step goes."""
APART_NORM = 3.0
APART_COSINE = 0.4
"""By chance one replica's gradient is the longest about as often as another's, so that the median over the window of
its ratio to theirs is near 1, however noisy a batch is."""


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
    """Steps as long as the weights: at once where the loss shows it, else where they go on."""
    pace = seen.usual(lambda v: v.pace)
    steady = seen.records >= WINDOW and np.any(pace >= FAST)
    # Weights that start near 0 are replaced by their first steps, and nothing is wrong; so ask the loss.
    harmful = seen.rise >= 9 or (seen.settled and not seen.fall >= STUCK and not seen.rise < 0)
    leap = seen.records > 1 and harmful and np.any(seen.fastest >= 1)
    if not steady and not leap:
        return
    values = pace if steady else seen.fastest
    at, name = _where(values, seen, 1)
    what = f"`{name}`" if name else f"all layers, most of all of `{seen.of.groups[at]}`,"
    message = (
        f"a step changes the weights of {what} by {values[at]:.2g} of their length"
        if steady
        else f"one step changed the weights of {what} by {values[at]:.2g} of their length, and the loss did not fall"
    )
    yield Finding(
        "update_too_large",
        1,
        "error" if leap else "warning",
        name,
        seen.since(lambda v: np.any(v.pace >= FAST)),
        message,
        {"update_ratio": float(values[at])},
        f"Lower the learning rate{' of this layer' if name else ''}, at least tenfold, or let it rise slowly at first.",
    )


def update_too_small(seen: History) -> Iterator[Finding]:
    """Weights that have hardly moved from the start on: all of them and the loss has not either, or one layer's."""
    if seen.records < 2 * WINDOW or seen.first is None:
        return
    fastest, pace = np.where(np.isinf(seen.fastest), np.nan, seen.fastest), seen.usual(lambda v: v.pace)
    with np.errstate(invalid="ignore"):
        rising = pace > 3 * seen.first.pace  # as while a learning rate is warmed up
    gradient = seen.usual(lambda v: v.gradient)
    slow = np.where((gradient > 0) & ~rising, fastest, np.nan)
    if np.all(np.isnan(slow)):
        return
    at, name = _where(slow, seen, -1)
    usual = float(median(fastest))
    if name and slow[at] <= min(FROZEN * usual, SLOW / 10):
        message = f"the weights of `{name}` never change by more than {slow[at]:.2g} of their length in a step, "
        message += f"those of other layers by {usual:.2g}"
    elif np.nanmax(fastest) <= SLOW and seen.fall < STUCK:
        at, name = int(np.nanargmax(fastest)), None
        message = f"no layer's weights ever changed by more than {fastest[at]:.2g} of their length in a step, "
        message += f"and the loss fell by {seen.fall:.1%} only"
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
        "See that the optimizer has these weights, and at which learning rate."
        if name
        else "Raise the learning rate, at least tenfold.",
    )


def always_clipped(seen: History) -> Iterator[Finding]:
    """The optimizer never gets the gradient that there is."""
    if seen.records < 2 * WINDOW:
        return
    least = max(v.clipped for v in seen.window)
    left = float(seen.usual(lambda v: v.clipped))
    if not least < 0.99:
        return
    yield Finding(
        "always_clipped",
        1,
        "warning" if left <= CLIPPED else "info",
        None,
        seen.since(lambda v: v.clipped < 0.99),
        f"the gradient is clipped at every step, and keeps {left:.2g} of its length",
        {"share_kept": left, "share_kept_at_most": least},
        "Raise the threshold to what the gradient's norm is usually, so that only outliers are clipped; or see where "
        "the gradient grows.",
    )


def _replica_decades(view: View, seen: History) -> np.ndarray:
    """log10 of each replica's gradient norm over the median of the others', [R]."""
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.nansum(np.square(view.columns["replica_norm"], dtype=float), axis=1))
        others = np.array([median(np.delete(norms, r)) for r in range(len(norms))])
        return np.log10(norms / others)


def _replica_cosines(view: View, seen: History) -> np.ndarray:
    """Cosine of each replica's whole gradient to the mean, less the median of the others', [R]."""
    norms, cosines = (np.asarray(view.columns[f"replica_{name}"], float) for name in ("norm", "cosine"))
    total = view.column("gradient_norm", seen.of.variables)
    with np.errstate(all="ignore"):
        length = np.sqrt(np.nansum(np.square(norms), axis=1) * np.nansum(np.square(total)))
        own = np.nansum(cosines * norms * total, axis=1) / length
    return np.array([own[r] - median(np.delete(own, r)) for r in range(len(own))])


def replica_outlier(seen: History) -> Iterator[Finding]:
    """One replica whose gradient is of another length than the others', or goes another way."""
    if seen.records < WINDOW or "replica_norm" not in seen.now.columns:
        return
    decades = seen.usual(lambda v: _replica_decades(v, seen))
    cosines = seen.usual(lambda v: _replica_cosines(v, seen))
    by_norm, by_cosine = np.abs(decades) >= np.log10(APART_NORM), np.abs(cosines) >= APART_COSINE
    if not by_norm.any() and not by_cosine.any():
        return
    if by_norm.any():
        at = int(np.argmax(np.abs(np.nan_to_num(decades, neginf=-99)) + 1e-6 * (decades > 0)))
        words = f"is {10.0 ** decades[at]:.2g} times as long as that of the others"
    else:
        at = int(np.argmax(np.abs(cosines)))
        words = f"goes another way than that of the others: its cosine to the mean differs by {cosines[at]:+.2f}"
    yield Finding(
        "replica_outlier",
        1,
        "warning",
        None,
        seen.since(lambda v: abs(_replica_decades(v, seen)[at]) >= np.log10(APART_NORM) or by_cosine[at]),
        f"the gradient of replica {at} {words}",
        {"replica": float(at), "norm_ratio": float(10.0 ** decades[at]), "cosine_difference": float(cosines[at])},
        "Compare what this replica is fed with what the others are: its shard, its labels, its preprocessing.",
    )


def loss_not_falling(seen: History) -> Iterator[Finding]:
    """The gradient arrives everywhere and the weights move, for nothing. Only where no other rule says why."""
    if seen.records < LONG or not seen.fall < STUCK or not np.nanmax(seen.fastest, initial=-np.inf) > SLOW:
        return
    yield Finding(
        "loss_not_falling",
        1,
        "warning",
        None,
        seen.now.step,
        f"the loss has changed by {-seen.fall:+.1%} since the first records, though every layer learns",
        {"fall": seen.fall, "records": float(seen.records)},
        "Look at what no gradient shows: are the labels those of these examples, is the loss the right one, is the "
        "learning rate so high that it only wanders?",
    )


def falls_regardless(seen: History) -> Iterator[Finding]:
    """The loss falls although a rule found the gradient unwell: part of the network learns alone."""
    if seen.records < LONG or not seen.fall >= 0.5:
        return
    yield Finding(
        "falls_regardless",
        1,
        "info",
        None,
        seen.now.step,
        f"{seen.fall:.0%} of the loss is gone in spite of what was found: the healthy layers learn without the others",
        {"fall": seen.fall},
        "A network without these layers may do as well; with them mended, better.",
    )
