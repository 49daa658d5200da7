"""Deaths, revivals and ages of units, from their states in one window of examples after another."""

from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope.metadata import UNIT_STATES

_DEAD = UNIT_STATES.index("dead")


class Lives(NamedTuple):
    """Deaths and revivals of each unit of a layer over the windows that have closed; int32 [U]."""

    deaths: np.ndarray
    """Windows in which the unit was dead and was not in the window before. A unit that was dead in the first window
    died once."""
    revivals: np.ndarray
    """Windows in which the unit was not dead and was in the window before."""
    age_windows: np.ndarray
    """Windows for which the unit has now been dead, or not dead: 1 where that is new; 0 before any window."""
    dead: np.ndarray
    """Whether the unit was dead in the last window, bool [U]."""


def count_lives(codes: np.ndarray) -> Lives:
    """Count deaths and revivals in `codes` [W, U]: indices into `UNIT_STATES`, a row for each window."""
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


def describe_lives(codes: np.ndarray, window_examples: float) -> str:
    """Return one sentence about the units of a layer; `window_examples` is NaN where it is not known."""
    lives = count_lives(codes)
    count = lives.dead.sum()
    size = f" of {window_examples:,.0f} examples" if window_examples > 0 else ""
    since = f", the longest for {_count(lives.age_windows[lives.dead].max(), 'window')}" if count else ""
    return (
        f"{count} of {len(lives.dead)} units {'is' if count == 1 else 'are'} dead{since}; "
        f"{_count(lives.deaths.sum(), 'death')} and {_count(lives.revivals.sum(), 'revival')} "
        f"in {_count(len(codes), 'window')}{size}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
