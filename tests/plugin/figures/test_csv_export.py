"""The CSV of figures; tests/plugin/test_hostile.py has names that are made to break it."""

import numpy as np

from tensorboard_plugin_tapescope.figures import basic, csv_export
from tensorboard_plugin_tapescope.metadata import COLUMNS


def test_no_cell_begins_as_a_formula():
    figure = basic.heatmap(np.array([0]), ["=1+1", "b"], np.ones((1, 2), np.float32), COLUMNS["saturated"])
    assert csv_export.csv(figure).splitlines() == ["step,row,value", "0,'=1+1,1", "0,b,1"]


def test_values_beyond_the_colours_are_exported_as_recorded():
    values = np.full((50, 10), 1e-1, np.float32)
    values[:, 3] = 1e-9
    figure = basic.heatmap(np.arange(50), [f"l{i}" for i in range(10)], values, COLUMNS["gradient_norm"])
    assert "0,l3,1e-09" in csv_export.csv(figure).splitlines()


def test_lines_have_a_row_for_each_point():
    figure = basic.line_chart(np.array([0, 5]), ["a"], np.array([[1.0], [2.0]]), COLUMNS["loss"])
    assert csv_export.csv(figure).splitlines() == ["series,step,loss", "a,0,1", "a,5,2"]
