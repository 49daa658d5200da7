"""Stretches of a run in which every step was measured because of a finding."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import closer
from tensorboard_plugin_tapescope.series.tables import Table


def table(flags, columns=("loss", "closer_look")):
    values = np.stack([np.zeros(len(flags)), np.array(flags, float)], 1)
    return Table(Family("step", columns), 10 + np.arange(len(flags)), np.zeros(len(flags)), values)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        ([0, 0], []),
        ([1, 1, 1], [(10, 12)]),
        ([0, 1, 0, np.nan, 1, 1], [(11, 11), (14, 15)]),
    ],
)
def test_stretches_are_runs_of_flagged_records(flags, expected):
    assert closer.stretches(table(flags)) == expected


def test_an_older_run_has_no_stretch():
    assert closer.stretches(None) == []
    assert closer.stretches(table([1], ("loss", "step_ms"))) == []
