"""The stretches of a run in which every step was measured, because of a finding."""

import numpy as np

from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.tables import Table

MOST_STRETCHES = 100
"""Most stretches that are returned: a run has one for each rule."""


def stretches(step: Table | None) -> list[tuple[int, int]]:
    """Return the first and the last recorded step of each stretch, in order.

    Args:
      step: the records of the family `step`; None, or one of an older version, has no stretch.
    """
    if step is None or "closer_look" not in step.family.columns or not len(step.values):
        return []
    inside = tables.column(step, "closer_look") == 1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(int), [0]])))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(int(step.steps[start]), int(step.steps[end - 1])) for start, end in pairs][:MOST_STRETCHES]
