"""Figures of one layer, of the flow budget and of scaling."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.encoding import decode

GAINS = {"flow_gate": np.array([-1.0, np.nan]), "flow_weight": np.array([0.5, -2.0])}


def test_each_bar_of_the_budget_begins_where_the_one_before_ended():
    figure = layer_figures.flow_budget(["out", "mid"], GAINS)
    assert [decode(trace["base"]).tolist() for trace in figure["data"][:2]] == [[0, -0.5], [-1, -0.5]]


def test_the_total_of_the_budget_is_the_end_of_each_layer():
    figure = layer_figures.flow_budget(["out", "mid"], GAINS)
    assert decode(figure["data"][-1]["y"]).tolist() == [-0.5, -2.5]


def test_runs_state_their_efficiency_against_the_fewest_replicas():
    figure = layer_figures.scaling_chart(["a", "b"], np.array([1.0, 4.0]), np.array([100.0, 300.0]))
    assert [trace["text"] for trace in figure["data"][1:]] == [["100%"], ["75%"]]


def test_bands_are_filled_from_the_smallest_value_to_the_largest():
    mean, std, low, high = np.array([[1.0, 2.0], [0.5, 0.5], [-1.0, 0.0], [3.0, 4.0]])
    traces = layer_figures.output_bands(np.arange(2), mean, std, low, high)["data"]
    assert [decode(trace["y"])[0] for trace in traces] == [-1, 3, 0.5, 1.5, 1]
    assert [trace.get("fill") for trace in traces] == [None, "tonexty", None, "tonexty", None]


def test_the_mean_of_a_single_record_is_a_marker():
    traces = layer_figures.output_bands(np.arange(1), *np.ones([4, 1]))["data"]
    assert traces[-1]["mode"] == "lines+markers"


def test_bands_of_a_single_record_are_not_in_the_legend():
    counts = []
    for records in (1, 2):
        traces = layer_figures.output_bands(np.arange(records), *np.ones([4, records]))["data"]
        counts.append(sum(trace.get("showlegend", True) for trace in traces))
    assert counts == [1, 3]


def test_runs_of_one_colour_have_other_symbols():
    figure = layer_figures.scaling_chart(["a", "b"], np.ones(2), np.ones(2), colours=["#12b5cb", "#12b5cb"])
    assert [trace["marker"]["symbol"] for trace in figure["data"][1:]] == ["circle", "square"]


def test_a_map_of_many_units_draws_some_of_them():
    (trace,) = layer_figures.unit_map(np.arange(2), np.zeros((2, 10_000), np.uint8))["data"]
    assert len(decode(trace["y"])) <= layer_figures.MAX_UNITS


@pytest.mark.parametrize(("units", "ticks"), [(2, 1), (64, None)])
def test_few_units_have_a_tick_each(units, ticks):
    figure = layer_figures.unit_map(np.arange(2), np.zeros((2, units), np.uint8))
    assert figure["layout"]["yaxis"].get("dtick") == ticks


def test_a_unit_state_of_a_later_version_is_unknown():
    codes = np.array([[len(metadata.UNIT_STATES)]], np.uint8)
    (trace,) = layer_figures.unit_map(np.array([0]), codes)["data"]
    assert trace["text"] == [["unknown"]]
