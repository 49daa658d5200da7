"""Heatmaps and line charts: which steps are drawn, how values become colours, and how figures are aligned."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.figures.colour_scale import ZERO_COLOUR
from tensorboard_plugin_tapescope.figures.encoding import decode
from tensorboard_plugin_tapescope.metadata import COLUMNS
from tensorboard_plugin_tapescope.series.smoothing import debiased_average

GRADIENT = COLUMNS["gradient_norm"]
STEPS = np.arange(0, 1000, 10)


def test_thinning_keeps_the_last_record_of_each_bucket():
    steps, values = basic.thin(STEPS, np.arange(100.0)[:, None], GRADIENT, 30)
    assert steps[0] == 30
    assert values[0, 0] == 3
    assert steps[-1] == 990


def test_thinning_returns_at_most_so_many_records():
    steps, values = basic.thin(STEPS, np.zeros((100, 1)), GRADIENT, 30)
    assert len(steps) == len(values) == 25


def test_thinning_keeps_the_largest_count_of_each_bucket():
    counts = np.zeros((100, 1))
    counts[1] = 7
    _, kept = basic.thin(STEPS, counts, COLUMNS["units_dead"], 30)
    assert kept[0, 0] == 7


def test_thinned_steps_stay_while_a_run_goes_on():
    steps, _ = basic.thin(STEPS, np.zeros((100, 1)), GRADIENT, 30)
    longer, _ = basic.thin(np.arange(0, 1200, 10), np.zeros((120, 1)), GRADIENT, 30)
    np.testing.assert_array_equal(longer[: len(steps)], steps)


@pytest.fixture(scope="module")
def uneven() -> np.ndarray:
    """Return steps of which TensorBoard has dropped half at random."""
    return np.sort(np.random.default_rng(0).choice(np.arange(0, 8000, 4), 1000, replace=False))


def test_even_columns_are_one_bucket_apart(uneven):
    steps, _ = basic.thin(uneven, uneven[:, None], GRADIENT, 300, even=True)
    assert set(np.diff(steps)) == {basic.bucket_width(uneven, 300)} == {32}
    assert steps[0] - 31 == uneven[0]


def test_even_columns_repeat_the_last_record_so_far(uneven):
    steps, kept = basic.thin(uneven, uneven[:, None], GRADIENT, 300, even=True)
    last = uneven[np.searchsorted(uneven, steps, side="right") - 1]
    np.testing.assert_array_equal(kept[:, 0], last)


def test_a_bucket_is_one_step_wide_if_all_records_are_drawn(uneven):
    assert basic.bucket_width(uneven, 1000) == 1


def test_repeated_steps_have_a_bucket_of_one_step():
    assert basic.bucket_width(np.zeros(9, np.int64), 3) == 1


VALUES = np.array([[1e-4, 0.0, np.nan], [1e-1, 1e-2, np.inf]], np.float32)


@pytest.fixture(scope="module")
def trace() -> dict:
    """Return a heatmap's trace with a zero and absent values."""
    return basic.heatmap(np.array([0, 5]), ["a", "b", "c"], VALUES, GRADIENT)["data"][0]


def test_a_logarithmic_heatmap_covers_whole_decades_and_a_band_for_zeros(trace):
    assert (trace["zmin"], trace["zmax"]) == (-5, -1)


def test_zeros_have_their_own_colour_and_tick(trace):
    assert trace["colorscale"][:2] == [[0, ZERO_COLOUR], [0.25, ZERO_COLOUR]]
    assert dict(zip(trace["colorbar"]["tickvals"], trace["colorbar"]["ticktext"], strict=True))[-4.5] == "0"
    assert decode(trace["z"])[1, 0] == -4.5


def test_values_are_coloured_by_their_logarithm(trace):
    np.testing.assert_allclose(decode(trace["z"])[0], [-4, -1], atol=1e-6)


def test_absent_values_are_left_out(trace):
    assert np.isnan(decode(trace["z"])[2, 0])


def test_hover_shows_the_recorded_values(trace):
    np.testing.assert_array_equal(decode(trace["customdata"]), VALUES.T)
    assert "%{customdata" in trace["hovertemplate"]


def test_a_value_beyond_the_colours_keeps_its_recorded_number():
    values = np.full((50, 10), 1e-1, np.float32)
    values[:, 3] = 1e-9
    (trace,) = basic.heatmap(np.arange(50), [f"l{i}" for i in range(10)], values, GRADIENT)["data"]
    assert decode(trace["z"])[3, 0] == trace["zmin"] == -1
    assert decode(trace["customdata"])[3, 0] == np.float32(1e-9)


def test_rows_of_a_single_layer_are_labelled_with_layer_and_variable():
    (trace,) = basic.heatmap(np.array([0]), ["net/hidden/kernel", "net/hidden/bias"], np.ones((1, 2)), GRADIENT)["data"]
    assert trace["y"] == ["hidden/kernel", "hidden/bias"]


def test_heatmaps_with_one_left_margin_are_equally_wide():
    names = ["a", "a_layer_with_a_long_name"]
    figures = [basic.heatmap(np.arange(3), [n], np.ones((3, 1)), GRADIENT, left_margin=99) for n in names]
    assert figures[0]["layout"]["margin"] == figures[1]["layout"]["margin"]
    assert figures[0]["layout"]["margin"]["autoexpand"] is False


def test_labels_of_a_heatmap_can_be_shorter():
    names = [f"encoder/block_{n}/attention/query/kernel" for n in range(2)]
    figure = basic.heatmap(np.arange(3), names, np.ones((3, 2)), GRADIENT, label_limit=20)
    assert [len(label) for label in figure["data"][0]["y"]] == [20, 20]
    assert figure["layout"]["margin"]["l"] < basic.row_label_margin(names)


def test_power_of_ten_labels_have_the_size_of_all_tick_labels():
    layout = basic.line_chart(np.arange(3), ["a"], np.array([[1e-9], [1e-3], [1.0]]), GRADIENT)["layout"]
    assert layout["yaxis"]["exponentformat"] == "power"
    enlarged_by_plotly = 1.25 * layout["yaxis"]["tickfont"]["size"]
    assert enlarged_by_plotly == layout["xaxis"]["tickfont"]["size"] == style.TICK_SIZE


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([4.0, 4.3], {"tickformat"}), ([1.0, 4.0], {"tickformat"}), ([2.0, 2.0], {"tickformat", "dtick"})],
)
def test_a_narrow_logarithmic_axis_has_more_ticks_than_those_at_digits(values, ticks):
    axis = basic.line_chart(np.arange(2), ["a"], np.array(values)[:, None], GRADIENT)["layout"]["yaxis"]
    assert {"tickformat", "dtick"} & set(axis) == ticks


def test_a_colour_bar_is_as_near_to_a_wide_plot_as_to_a_narrow_one(trace):
    assert trace["colorbar"]["x"] == 1


def modes(values: list[float]) -> list[str]:
    """Return the mode of a line through the values."""
    figure = basic.line_chart(np.arange(len(values)), ["a"], np.array(values)[:, None], COLUMNS["loss"])
    return [trace["mode"] for trace in figure["data"]]


def test_a_value_without_neighbours_is_drawn_as_a_marker():
    assert modes([1.0, np.nan, 2.0, np.nan]) == ["lines+markers"]


def test_a_line_that_begins_late_has_no_markers():
    assert modes([np.nan, 1.0, 2.0, 3.0]) == ["lines"]


def test_lines_of_one_colour_have_other_dashes():
    names = [f"line {n}" for n in range(8)]
    traces = basic.line_chart(np.arange(2), names, np.ones((2, 8)), COLUMNS["loss"])["data"]
    assert traces[0]["line"]["color"] == traces[7]["line"]["color"]
    assert [trace["line"]["dash"] for trace in traces] == ["solid"] * 7 + ["dash"]


def test_values_that_a_logarithmic_axis_cannot_show_leave_a_gap():
    (trace,) = basic.line_chart(np.arange(3), ["a"], np.array([[1.0], [0.0], [-1.0]]), COLUMNS["loss"])["data"]
    np.testing.assert_array_equal(decode(trace["y"]), [1.0, np.nan, np.nan])


def test_a_step_is_marked_in_a_figure_over_steps():
    line = basic.line_chart(np.arange(3), ["a"], np.ones((3, 1)), COLUMNS["loss"])
    assert basic.mark_step(line, 2)["layout"]["shapes"][0]["x0"] == 2


def test_a_figure_that_is_not_over_steps_is_not_marked():
    bars = layer_figures.flow_budget(["out"], {"flow_gate": np.zeros(1)})
    assert basic.mark_step(bars, 2) is bars


def test_stretches_and_a_step_are_marked_together():
    figure = basic.heatmap(np.arange(4), ["a"], np.ones((4, 1)), COLUMNS["loss"])
    marked = basic.mark_step(basic.mark_stretches(figure, [(1, 2)]), 3)
    (bar, line) = marked["layout"]["shapes"]
    assert (bar["x0"], bar["x1"], line["x0"]) == (0.5, 2.5, 3)


def test_stretches_of_a_figure_that_is_not_over_steps_are_not_marked():
    bars = layer_figures.flow_budget(["out"], {"flow_gate": np.zeros(1)})
    assert basic.mark_stretches(bars, [(1, 2)]) is bars


def test_a_smoothed_line_has_the_recorded_values_faint_behind_it():
    values = np.array([[1.0], [3.0], [np.nan], [2.0]])
    faint, line = basic.line_chart(np.arange(4), ["a"], values, COLUMNS["activation_mean"], smoothing=0.5)["data"]
    np.testing.assert_array_equal(decode(faint["y"]), values[:, 0])
    assert faint["opacity"] < 0.5
    np.testing.assert_allclose(decode(line["y"]), debiased_average(values, 0.5)[:, 0])
    np.testing.assert_array_equal(decode(line["customdata"]), values[:, 0])


def test_without_smoothing_a_line_is_drawn_once():
    values = np.random.default_rng(0).normal(size=[9, 2])
    data = basic.line_chart(np.arange(9), ["a", "b"], values, COLUMNS["activation_mean"], smoothing=[0.0, 0.6])["data"]
    assert [trace["meta"] for trace in data] == ["b", "a", "b"]


@pytest.mark.parametrize(("replicas", "kind"), [(7, "scatter"), (8, "heatmap")])
def test_from_eight_replicas_on_they_are_rows(replicas, kind):
    figure = basic.replica_chart(np.arange(3), np.ones([3, replicas]), COLUMNS["replica_cosine"])
    assert {trace["type"] for trace in figure["data"]} == {kind}


def test_many_replicas_are_drawn_as_their_range_and_those_farthest_from_the_median():
    values = np.tile(np.linspace(0.4, 0.6, 65, dtype=np.float32), [3, 1])
    values[:, [7, 50]] = [[-0.9, 0.99]] * 3
    values[0] = np.nan
    lines = {trace["name"]: decode(trace["y"]) for trace in replica_lines(values)}
    assert {"replica 7", "replica 50"} < set(lines)
    assert len(lines) == 3 + basic.OUTLIERS
    np.testing.assert_array_equal(lines["median"], np.median(values, axis=1))
    np.testing.assert_array_equal(lines["smallest"], values[:, 7])
    np.testing.assert_array_equal(lines["largest"], values[:, 50])


def replica_lines(values):
    return basic.replica_chart(np.arange(len(values)), values, COLUMNS["replica_cosine"], smoothing=0.6)["data"]
