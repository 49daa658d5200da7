"""Tables and figures as pure functions: what is thinned, clipped, ordered and named."""

import json
from typing import NamedTuple

import numpy as np
import pytest

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, csv_export, distributions, encoding, style, updates
from tensorboard_plugin_tapescope.figures import layer as layer_figures
from tensorboard_plugin_tapescope.metadata import COLUMNS, Family
from tensorboard_plugin_tapescope.series import findings, tables
from tensorboard_plugin_tapescope.series.tables import Table


class Datum(NamedTuple):
    """A record as the data provider gives it."""

    step: int
    wall_time: float
    numpy: np.ndarray


def layers(values: np.ndarray, **details_: object) -> Table:
    """A `layers` table of [T, L] values of one column, delta_norm."""
    family = Family("layers", ("delta_norm",), tuple(f"l{i}" for i in range(values.shape[1])), dict(details_))
    return tables.table(family, [Datum(i, float(i), row[None].astype(np.float32)) for i, row in enumerate(values)])


def test_typed_arrays_come_back_as_they_were():
    for array in (
        np.arange(6, dtype=np.int32),
        np.eye(3, dtype=np.float32),
        np.array([np.nan, -np.inf]),
        np.zeros((0, 4)),
    ):
        np.testing.assert_array_equal(encoding.decode(encoding.encode(array)), array)
    assert encoding.encode(np.arange(3))["dtype"] == "f8"  # browsers have no 64-bit integers that Plotly takes


def test_a_heatmap_gives_zero_a_colour_of_its_own_and_leaves_out_what_is_absent():
    values = np.array([[1e-4, 0.0, np.nan], [1e-1, 1e-2, np.inf]], np.float32)
    (trace,) = basic.heatmap(np.array([0, 5]), ["a", "b", "c"], values, COLUMNS["gradient_norm"])["data"]
    z = encoding.decode(trace["z"])
    assert (trace["zmin"], trace["zmax"]) == (-5, -1)
    assert trace["colorscale"][:2] == [[0, basic.ZERO], [0.25, basic.ZERO]]
    assert dict(zip(trace["colorbar"]["tickvals"], trace["colorbar"]["ticktext"], strict=True))[-4.5] == "0"
    np.testing.assert_allclose(z[0], [-4, -1], atol=1e-6)
    assert z[1, 0] == -4.5
    assert np.isnan(z[2, 0])
    np.testing.assert_array_equal(encoding.decode(trace["customdata"]), values.T)


def test_thinning_keeps_the_last_of_each_bucket_and_the_largest_count():
    steps, values = np.arange(0, 1000, 10), np.arange(100.0)[:, None]
    values[3] = 1000
    kept_steps, kept = basic.thin(steps, values, COLUMNS["gradient_norm"], 30)
    assert len(kept) <= 30
    assert kept_steps[-1] == 990
    assert kept[0, 0] == 1000  # the fourth of four, being the last
    counted_steps, counted = basic.thin(steps, values[::-1], COLUMNS["units_dead"], 30)
    assert counted[-1, 0] == 1000
    assert len(counted_steps) == len(counted)
    longer, _ = basic.thin(np.arange(0, 1200, 10), np.zeros((120, 1)), COLUMNS["gradient_norm"], 30)
    np.testing.assert_array_equal(longer[: len(kept_steps)], kept_steps)  # what was drawn stays where it is


def test_columns_are_evenly_spaced_whatever_steps_were_kept():
    steps = np.sort(np.random.default_rng(0).choice(np.arange(0, 8000, 4), 1000, replace=False))
    even, kept = basic.thin(steps, steps[:, None], COLUMNS["gradient_norm"], 300, even=True)
    assert set(np.diff(even)) == {basic.bucket_width(steps, 300)} == {32}
    assert even[0] - 31 == steps[0]
    last = steps[np.searchsorted(steps, even, side="right") - 1]
    np.testing.assert_array_equal(kept[:, 0], last)  # the last record up to that step
    assert basic.bucket_width(steps, 1000) == 1
    assert basic.bucket_width(np.zeros(9, np.int64), 3) == 1


def test_labels_are_escaped_short_and_different():
    names = ["<b>x</b>", "a\nb", "", "block/" * 20 + "one", "block/" * 20 + "one"]
    made = style.unique_labels(names)
    assert made[:3] == ["&lt;b&gt;x&lt;/b&gt;", "a b", "(no name)"]
    assert style.unique_labels(["net/a/kernel", "net/a/bias", "net/ab"]) == ["a/kernel", "a/bias", "ab"]
    assert style.unique_labels(["net/a/kernel"]) == ["net/a/kernel"]
    assert len(set(made)) == 5
    assert all(len(label) < 60 for label in made)


def test_worst_first_knows_which_side_is_bad():
    values = np.array([[1.0, 0.0, np.nan, 5.0]])
    assert tables.worst_first("gradient_norm", values).tolist() == [1, 0, 3, 2]
    assert tables.worst_first("saturated", values).tolist() == [3, 0, 1, 2]
    assert tables.worst_first("activation_mean", np.array([[0.1, -9.0, 1.0]])).tolist() == [1, 2, 0]
    assert tables.worst_first("gradient_norm", np.array([[1e-9, np.inf]])).tolist() == [1, 0]


def test_a_range_of_steps_holds_both_its_ends():
    table = layers(np.arange(8.0)[:, None])
    assert tables.between(table, 2, 5).steps.tolist() == [2, 3, 4, 5]
    assert len(tables.between(table, 9, 12).values) == 0


def test_records_of_another_shape_are_left_out():
    family = Family("layers", ("delta_norm",), ("a", "b"))
    data = [Datum(0, 0.0, np.ones((1, 2), np.float32)), Datum(1, 1.0, np.ones((1, 3), np.float32))]
    assert tables.table(family, data).steps.tolist() == [0]
    words = Datum(0, 0.0, np.full((1, 2), b"text", object))
    assert tables.table(family, [words]).values.shape == (0, 1, 2)


def test_a_derived_share_is_dead_units_over_units():
    family = Family("layers", ("units_dead",), ("a", "b"), {"units": [4, 0]})
    table = tables.table(family, [Datum(0, 0.0, np.array([[1, 0]], np.float32))])
    np.testing.assert_array_equal(tables.column(table, "dead_share"), [[0.25, np.nan]])
    assert "dead_share" in tables.column_names(family)
    assert "dead_share" not in tables.column_names(Family("layers", ("units_dead",), ("a", "b")))


@pytest.mark.parametrize("units", [None, "many", [1], [1, "2"], [-1, 2**40]])
def test_units_that_make_no_sense_count_as_none(units):
    assert sum(tables.units(Family("units", (), ("a", "b"), {"units": units}))) in (0, 1)


def test_the_budget_follows_what_feeds_each_layer():
    parts = {"flow_gate": np.array([-1.0, np.nan]), "flow_weight": np.array([0.5, -2.0])}
    figure = layer_figures.flow_budget(["out", "mid"], parts)
    bases = [encoding.decode(trace["base"]).tolist() for trace in figure["data"][:2]]
    assert bases == [[0, -0.5], [-1, -0.5]]
    assert encoding.decode(figure["data"][-1]["y"]).tolist() == [-0.5, -2.5]


def test_as_of_takes_the_last_record_before_a_step():
    table = layers(np.array([[1.0], [2.0], [3.0]]))._replace(steps=np.array([10, 20, 30]))
    found = tables.as_of(np.array([5, 10, 25, 99]), table, table.values[:, 0])
    np.testing.assert_array_equal(found[:, 0], [np.nan, 1, 2, 3])


def test_a_distribution_keeps_shares_and_leaves_out_the_gap_about_zero():
    counts = np.zeros((2, metadata.BINS), np.int64)
    edges = metadata.bin_edges()
    for value in (-1.0, 1e-9, 1.0):  # the middle bin holds exact zeros and what is nearly so
        counts[:, np.searchsorted(edges, value, side="right") - 1] += 5
    counts[:, metadata.SIDE_BINS] += 5
    (trace,) = distributions.distribution(np.array([0, 1]), counts, "gradient")["data"]
    share = encoding.decode(trace["z"])
    np.testing.assert_allclose(np.nansum(share, axis=0), 1)
    assert len(share) < metadata.BINS / 2
    ticks = distributions.distribution(np.array([0, 1]), counts, "gradient")["layout"]["yaxis"]
    at = dict(zip(ticks["ticktext"], ticks["tickvals"], strict=True))
    one = int(np.flatnonzero(np.isclose(trace["meta"]["rows"], 1.2, atol=0.3))[0])
    assert at["10<sup>0</sup>"] == pytest.approx(one - 0.5)
    assert at["0"] == pytest.approx(trace["meta"]["rows"].index(0))


def test_scaling_states_efficiency_against_the_fewest_replicas():
    figure = layer_figures.scaling_chart(["a", "b"], np.array([1.0, 4.0]), np.array([100.0, 300.0]))
    assert [trace["text"] for trace in figure["data"][1:]] == [["100%"], ["75%"]]


def test_findings_that_are_none_are_counted_and_the_rest_is_sorted():
    texts = [json.dumps({"rule": "r", "severity": s, "step": 1, "message": "m"}) for s in ("info", "error")]
    endless = '{"rule": "r", "severity": "info", "message": "m", "step": Infinity}'
    data = [Datum(0, 0.0, np.array([*texts, "{", "[]", '{"rule": 1}', "[" * 99999, endless], object))]
    found, unread = findings.parse_findings(tables.texts(tables.table(Family("findings"), data)))
    assert ([f["severity"] for f in found], unread) == (["error", "info"], 5)


def test_what_is_new_of_a_figure_is_the_rest_of_what_was_drawn():
    values = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    whole = basic.heatmap(np.arange(50), list("abc"), values, COLUMNS["gradient_norm"], max_steps=20)
    new = updates.newer_part(whole, 45)
    (old,), (trace,) = whole["data"], new["data"]
    assert (new["since"], new["begins"]) == (45, [3.0])
    assert encoding.decode(trace["x"]).tolist() == [47, 51]  # of buckets of four, the last is not yet full
    for name in ("z", "customdata"):
        np.testing.assert_array_equal(encoding.decode(trace[name]), encoding.decode(old[name])[:, -2:])
    assert (trace["y"], trace["zmin"]) == (old["y"], old["zmin"])
    line = basic.line_chart(np.arange(50), ["a"], values[:, :1], COLUMNS["loss"])
    np.testing.assert_array_equal(encoding.decode(updates.newer_part(line, 48)["data"][0]["y"]), values[48:, 0])
    bars = layer_figures.flow_budget(["out"], {"flow_gate": np.zeros(1)})
    assert updates.newer_part(bars, 48) is bars


def test_csv_never_starts_a_cell_as_a_formula():
    figure = basic.heatmap(np.array([0]), ["=1+1", "b"], np.ones((1, 2), np.float32), COLUMNS["saturated"])
    assert csv_export.csv(figure).splitlines() == ["step,row,value", "0,'=1+1,1", "0,b,1"]


def test_a_line_marks_a_step_only_where_x_is_of_steps():
    line = basic.line_chart(np.arange(3), ["a"], np.ones((3, 1)), COLUMNS["loss"])
    assert basic.mark_step(line, 2)["layout"]["shapes"][0]["x0"] == 2
    bars = layer_figures.flow_budget(["out"], {"flow_gate": np.zeros(1)})
    assert basic.mark_step(bars, 2) is bars
