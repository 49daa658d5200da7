"""How long each unit has lived or been dead: from the states of one window of examples after another. Pure NumPy."""

from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope.metadata import UNIT_STATES

_DEAD = UNIT_STATES.index("dead")


class Lives(NamedTuple):
    """Of each unit of a layer, over the windows that have closed; int32 [U]."""

    deaths: np.ndarray
    """Windows in which it was dead and not in the one before. One that was dead in the first window died once."""
    revivals: np.ndarray
    """Windows in which it was not dead, and in the one before it was."""
    age_windows: np.ndarray
    """The last windows in which it was all the time dead, or all the time not: 1 where that is new; 0 before any."""
    dead: np.ndarray
    """Whether it was dead in the last window, bool [U]."""


def lives(codes: np.ndarray) -> Lives:
    """`codes` [W, U]: indices into `UNIT_STATES`, a row a window."""
    dead = np.asarray(codes) == _DEAD
    before = np.concatenate([np.zeros_like(dead[:1]), dead[:-1]])
    turns = (dead != before).cumsum(axis=0)
    last = turns[-1:] if len(turns) else np.zeros([1, dead.shape[1]], int)
    return Lives(
        deaths=(dead & ~before).sum(axis=0, dtype=np.int32),
        revivals=(~dead & before).sum(axis=0, dtype=np.int32),
        age_windows=(turns == last).sum(axis=0, dtype=np.int32),
        dead=dead[-1] if len(dead) else np.zeros(dead.shape[1], bool),
    )


def in_words(codes: np.ndarray, window_examples: float) -> str:
    """One sentence about the units of a layer; `window_examples` NaN where it is not known."""
    of = lives(codes)
    count, windows = of.dead.sum(), f"{len(codes)} {'window' if len(codes) == 1 else 'windows'}"
    size = f" of {window_examples:,.0f} examples" if window_examples > 0 else ""
    oldest = of.age_windows[of.dead].max(initial=0)
    now = f"{count} of {len(of.dead)} units are dead" if count else f"None of the {len(of.dead)} units is dead"
    since = f", the longest for {oldest} {'window' if oldest == 1 else 'windows'}" if count else ""
    return f"{now}{since}; {of.deaths.sum()} deaths and {of.revivals.sum()} revivals in {windows}{size}."
