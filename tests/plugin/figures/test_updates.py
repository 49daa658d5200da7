"""The newer part of a figure: what a page that has drawn the rest needs."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.figures import basic
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.encoding import decode
from tensorboard_plugin_tapescope.figures.updates import newer_part
from tensorboard_plugin_tapescope.metadata import COLUMNS

VALUES = np.random.default_rng(0).random((50, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def whole() -> dict:
    """Return a heatmap in buckets of four steps, the last of which is not full."""
    return basic.heatmap(np.arange(50), list("abc"), VALUES, COLUMNS["gradient_norm"], max_steps=20)


def test_the_newer_part_begins_with_the_bucket_of_the_step(whole):
    newer = newer_part(whole, 45)
    assert decode(newer["data"][0]["x"]).tolist() == [47, 51]
    assert newer["since"] == 45


def test_the_newer_part_states_where_the_whole_begins(whole):
    assert newer_part(whole, 45)["begins"] == [3.0]


@pytest.mark.parametrize("name", ["z", "customdata"])
def test_arrays_of_the_newer_part_are_the_last_columns(whole, name):
    newer = newer_part(whole, 45)["data"][0]
    np.testing.assert_array_equal(decode(newer[name]), decode(whole["data"][0][name])[:, -2:])


def test_rows_and_colours_stay(whole):
    newer = newer_part(whole, 45)["data"][0]
    old = whole["data"][0]
    assert (newer["y"], newer["zmin"]) == (old["y"], old["zmin"])


def test_lines_are_cut_as_well():
    line = basic.line_chart(np.arange(50), ["a"], VALUES[:, :1], COLUMNS["loss"])
    np.testing.assert_array_equal(decode(newer_part(line, 48)["data"][0]["y"]), VALUES[48:, 0])


def test_a_figure_that_is_not_over_steps_is_sent_whole():
    bars = layer_figures.flow_budget(["out"], {"flow_gate": np.zeros(1)})
    assert newer_part(bars, 48) is bars
