"""Every route through TensorBoard's WSGI application, with both of its loaders."""

import csv
import io
import json
import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from plotly import graph_objects
from scripts.testbed import synthetic
from scripts.testbed.hostile import HOSTILE
from scripts.testbed.synthetic import Spec
from tensorboard.plugins.hparams import summary_v2

from tapescope.analysis import scaling
from tapescope.storage.run import Run
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures.encoding import decode
from tensorboard_plugin_tapescope.plugin import VIEWS, read_pages
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.hyperparameters import ABSENT
from tensorboard_plugin_tapescope.series.smoothing import smooth
from tensorboard_plugin_tapescope.views import budget, compare, layer, overview, replicas
from tensorboard_plugin_tapescope.views.grid import GRID_COLUMNS, Grid
from tensorboard_plugin_tapescope.views.query import Query
from tests.plugin.conftest import STEPS, application

WEIRD = "we <b>ird/'quoted\""


def panels(answer) -> dict[str, dict]:
    """Return the panels of an answer by key."""
    assert answer.status_code == 200, answer.get_data(as_text=True)[:300]
    return {panel["key"]: panel for panel in json.loads(answer.data)["panels"]}


def csv_rows(answer) -> list[dict[str, str]]:
    """Return the lines of a CSV answer."""
    assert answer.status_code == 200, answer.get_data(as_text=True)[:300]
    return list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))


@pytest.fixture
def rows(tensorboard) -> dict[str, dict]:
    """Return the overview's summaries by run."""
    return {row["name"]: row for row in tensorboard.get("runs").json["runs"]}


def test_the_overview_lists_all_runs(rows):
    assert set(rows) == {"healthy", "vanishing", "two replicas", WEIRD}


def test_the_overview_has_state_step_and_findings(rows):
    row = rows["vanishing"]
    assert (row["state"], row["step"], row["findings"]) == ("ended", 390, {"error": 1, "warning": 1, "info": 1})


def test_the_overview_has_the_most_severe_finding(rows):
    assert rows["vanishing"]["headline"]["severity"] == "error"


def test_findings_of_all_runs_are_listed_the_most_severe_first(tensorboard, rows):
    found = tensorboard.get("findings").json["findings"]
    expected = {name: sum(row["findings"].values()) for name, row in rows.items() if sum(row["findings"].values())}
    assert Counter(finding["run"] for finding in found) == expected
    ranks = [("error", "warning", "info").index(finding["severity"]) for finding in found]
    assert ranks == sorted(ranks)


def test_the_worst_layer_is_that_of_the_most_severe_finding(rows):
    worst = rows["vanishing"]["worst"]
    assert (worst["layer"], worst["words"]) == ("hidden_1", "vanishing")


def test_without_findings_the_worst_layer_has_the_smallest_gradient(rows):
    assert rows["healthy"]["worst"]["words"].startswith("smallest gradient")


def test_the_overview_has_the_number_of_replicas(rows):
    assert rows["two replicas"]["replicas"] == 2


def test_the_overhead_is_measuring_over_training_between_two_records(rows):
    assert rows["vanishing"]["overhead"] == pytest.approx(3.1 / (50 * 10))


def test_a_cost_below_0_is_shown_as_0():
    family = metadata.Family("step", ("measure_ms", "step_ms"))
    table = tables.Table(family, np.arange(3), np.arange(3.0), np.array([[-0.9, 2.0]] * 3))
    assert (overview.measuring_cost(table), overview.measuring_overhead(table)) == (0, 0)


def test_the_overview_has_the_share_of_spikes(rows):
    assert rows["healthy"]["spikes"] == {"loss": 0.0125, "gradient": None}


def test_the_overview_has_the_last_loss(rows):
    assert rows["vanishing"]["loss"] == pytest.approx(2.3 * math.exp(-3) + 0.05)


def test_the_overview_has_the_last_validation(rows):
    assert rows["vanishing"]["validation_loss"] == pytest.approx(2.3 * math.exp(-3) + 0.25)
    assert rows["two replicas"]["validation_loss"] is None


def test_each_run_has_its_own_colour(rows):
    assert len({row["colour"] for row in rows.values()}) == 4


def test_the_usual_gap_is_that_of_all_records_although_some_were_dropped():
    kept = np.sort(np.random.default_rng(0).choice(np.arange(0, 50_000, 10), 1000, replace=False))
    assert np.median(np.diff(kept)) > 20
    assert overview.usual_gap(np.diff(kept), 10) == 10


def test_the_usual_gap_is_not_that_of_a_start_with_a_record_every_step():
    steps = np.concatenate([np.arange(20), np.arange(20, 4000, 10)])
    assert overview.usual_gap(np.diff(steps), 10) == 10


@pytest.mark.parametrize("closer", [[], [5000, 5001, 5002, 5003]])
def test_records_of_every_step_at_the_start_and_after_findings_are_not_the_usual_ones(closer):
    steps = np.unique(np.concatenate([np.arange(50), np.arange(60, 150, 20), np.arange(1000, 8000, 1000), closer]))
    assert overview.steps_between_records(steps, np.isin(steps, closer[1:])) == 1000


def test_a_poll_without_changes_is_answered_in_few_bytes(tensorboard):
    version = tensorboard.get("runs").json["version"]
    assert tensorboard.get("runs", known=version).json == {"version": version, "unchanged": True}


@pytest.fixture
def flow_panel(tensorboard) -> dict:
    """Return the view Flow of the healthy run's delta norms."""
    return panels(tensorboard.get("view", view="flow", run="healthy", column="delta_norm"))["flow"]


def test_flow_has_the_recorded_numbers(flow_panel):
    rng = np.random.default_rng(0)
    spec = Spec(decay=0.9)
    row = [column.name for column in metadata.LAYER_COLUMNS].index("delta_norm")
    recorded = [synthetic.record(spec, step, 390, rng)["layers"][row] for step in STEPS]
    np.testing.assert_array_equal(decode(flow_panel["figure"]["data"][0]["customdata"]), np.stack(recorded, axis=1))


def test_flow_has_the_recorded_steps_and_layers(flow_panel):
    (trace,) = flow_panel["figure"]["data"]
    np.testing.assert_array_equal(decode(trace["x"]), STEPS)
    assert trace["y"] == list(Spec().layer_names()) == flow_panel["rows"]


def test_flow_draws_the_records_that_have_a_seldom_column(tensorboard):
    answer = tensorboard.get("view", view="flow", run="healthy", column="stable_rank")
    (trace,) = panels(answer)["flow"]["figure"]["data"]
    np.testing.assert_array_equal(decode(trace["x"]), [0, 200])
    assert np.isfinite(decode(trace["z"])).all()


def test_flow_defines_the_column(flow_panel):
    hover = flow_panel["figure"]["data"][0]["hovertemplate"].replace("<br>", " ")
    assert metadata.COLUMNS["delta_norm"].definition in hover


def test_worst_first_puts_the_smallest_gradient_on_top(tensorboard):
    worst = panels(tensorboard.get("view", view="flow", run="vanishing", order="worst"))["flow"]
    last = decode(worst["figure"]["data"][0]["customdata"])[:, -1]
    assert (np.diff(last) >= 0).all()


def test_worst_first_has_the_rows_of_the_forward_order(tensorboard):
    forward = panels(tensorboard.get("view", view="flow", run="vanishing"))["flow"]
    worst = panels(tensorboard.get("view", view="flow", run="vanishing", order="worst"))["flow"]
    assert sorted(worst["rows"]) == sorted(forward["rows"])
    assert forward["rows"][0] == "hidden_1"


def test_the_layer_view_has_all_its_figures(tensorboard):
    layer = panels(tensorboard.get("view", view="layer", run="vanishing", layer="hidden_2"))
    assert {key for key, panel in layer.items() if panel["figure"]} == {
        *("gradient_norm", "update_ratio", "weight_norm", "delta_norm", "output", "shares", "units"),
        *("activation_histogram_1", "gradient_histogram_2", "gradient_histogram_3"),
    }


def test_the_budget_of_the_last_step_states_the_loss_of_gradient(tensorboard):
    note = panels(tensorboard.get("view", view="budget", run="vanishing"))["budget"]["note"]
    assert "At step 390 the gradient shrinks by" in note
    assert "The largest loss is in the relu layer hidden_" in note


def test_the_budget_of_a_range_is_a_mean(tensorboard):
    note = panels(tensorboard.get("view", view="budget", run="vanishing", first=100, last=200))["budget"]["note"]
    assert "In the mean of 11 steps from 100 to 200" in note


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Return TensorBoard over a run in which no gradient passes the weights of any layer."""
    logdir = tmp_path_factory.mktemp("cut")
    with np.errstate(divide="ignore"):
        synthetic.write(logdir / "cut", Spec(decay=0.0), range(3))
    return application(logdir, fast=False, runs=1, last=2)


def test_the_budget_names_the_layer_that_no_gradient_passes(cut):
    note = panels(cut.get("view", view="budget", run="cut"))["budget"]["note"]
    assert "no gradient arrives at the first layer's weights: none passes the weights of the layer output." in note


def test_the_budget_of_a_step_without_a_finite_gain_is_not_a_gain_of_0():
    family = metadata.Family("layers", ("flow_gate", "flow_weight"), ("hidden", "output"))
    values = np.stack([np.zeros([2, 2]), np.full([2, 2], np.nan)])
    table = tables.Table(family, np.arange(2), np.arange(2.0), values)
    (panel,) = budget.budget(SimpleNamespace(table=lambda run, name: table), Query(("run",)))
    assert "No gain of these layers is known at the last step" in panel.empty


def test_the_budget_of_a_gradient_that_is_0_everywhere_names_the_layer_that_it_does_not_pass():
    family = metadata.Family("layers", ("flow_gate", "flow_weight"), ("hidden", "output"))
    values = np.broadcast_to([[math.nan, -math.inf], [math.nan, math.nan]], [2, 2, 2])
    table = tables.Table(family, np.arange(2), np.arange(2.0), values)
    (panel,) = budget.budget(SimpleNamespace(table=lambda run, name: table), Query(("run",)))
    assert panel.figure is None
    assert panel.empty.endswith("none passes the activation of the layer output.")


def test_panels_of_a_layer_without_a_finite_number_do_not_say_that_it_was_not_measured():
    family = metadata.Family("layers", tuple(column.name for column in metadata.LAYER_COLUMNS), ("hidden",))
    layers = tables.Table(family, np.arange(2), np.arange(2.0), np.full([2, len(family.columns), 1], np.nan))
    counts = metadata.Family("activation_histogram", (), ("hidden",))
    found = {
        "layers": layers,
        "activation_histogram": layers._replace(family=counts, values=np.zeros([2, 1, metadata.BINS])),
    }
    run = SimpleNamespace(tags={"layers": SimpleNamespace(family=family)})
    snapshot = SimpleNamespace(runs={"run": run}, table=lambda run, name: found.get(name))
    shown = {panel.key: panel.empty for panel in layer.layer(snapshot, Query(("run",)))}
    assert shown["output"] == "No record has a finite output of this layer."
    assert shown["activation_histogram_0"] == "No record has a finite element to count."
    assert shown["delta_norm"].startswith("Every recorded value of delta norm is absent or not finite in this run.")


@pytest.mark.parametrize(("layer", "part", "found"), [(0, "flow_gate", (0, "flow_gate")), (0, "flow_weight", None)])
def test_of_the_first_layer_only_the_activation_keeps_the_gradient_from_its_weights(layer, part, found):
    gains = {name: np.zeros([2, 3]) for name in ("flow_gate", "flow_weight")}
    gains[part][:, layer] = -np.inf
    assert budget._find_block(gains, [2, 1, 0]) == found


def test_a_line_of_zeros_on_a_logarithmic_axis_states_the_reason(cut):
    panel = panels(cut.get("view", view="layer", run="cut", layer="hidden_1"))["gradient_norm"]
    assert panel["figure"] is None
    assert panel["empty"].startswith("No recorded value is above 0, and a logarithmic axis has no place for 0.")


def test_few_steps_have_no_ticks_between_two(cut):
    flow = panels(cut.get("view", view="flow", run="cut"))["flow"]["figure"]
    assert flow["layout"]["xaxis"]["dtick"] == 1


@pytest.fixture
def compared(tensorboard) -> dict[str, dict]:
    """Return the panels of Compare for two runs, of five and eight layers."""
    return panels(tensorboard.get("view", view="compare", run=["healthy", "vanishing"]))


def test_compare_has_a_heatmap_a_ratio_and_histograms(compared):
    assert set(compared) == {"run healthy", "run vanishing", "ratio vanishing", "gradient", "activation"}


def test_compare_has_each_runs_share_of_spikes(compared):
    assert compared["run vanishing"]["note"].endswith(" Share of spikes: loss 1.2 %.")


def test_compared_runs_share_a_colour_scale(compared):
    first, second = (compared[f"run {run}"]["figure"]["data"][0] for run in ("healthy", "vanishing"))
    assert (first["zmin"], first["zmax"]) == (second["zmin"], second["zmax"])


def test_all_heatmaps_of_compare_are_aligned(compared):
    figures = [compared[key]["figure"] for key in ("run healthy", "run vanishing", "ratio vanishing")]
    assert figures[0]["layout"]["margin"] == figures[1]["layout"]["margin"] == figures[2]["layout"]["margin"]


def test_rows_of_the_ratio_are_labelled_with_layer_and_variable(compared):
    labels = compared["ratio vanishing"]["figure"]["data"][0]["y"]
    assert labels[:2] == ["hidden_1/kernel", "hidden_1/bias"]


def test_the_ratio_names_what_only_one_run_has(compared):
    assert "Only in vanishing: hidden_5/kernel" in compared["ratio vanishing"]["note"]


def test_the_ratio_ends_where_the_other_run_ends():
    family = metadata.Family("variables", ("gradient_norm",), ("hidden/kernel",))

    def grid_of(steps: range) -> Grid:
        values = np.ones([len(steps), 1])
        return Grid(tables.Table(family, np.array(steps), np.array(steps, float), values), values, ("hidden",))

    long, short = grid_of(range(0, 100, 5)), grid_of(range(0, 50, 10))
    figure = compare._ratio("long", "short", long, short, Query(("long", "short")), 0).figure
    drawn = dict(zip(decode(figure["data"][0]["x"]), decode(figure["data"][0]["z"])[0], strict=True))
    assert [step for step, value in drawn.items() if not np.isnan(value)] == list(range(0, 55, 5))


def test_replicas_has_all_its_figures(tensorboard):
    shown = panels(tensorboard.get("view", view="replicas", run=["two replicas", "healthy"]))
    assert set(shown) == {"replica_norm", "replica_cosine", "replica_sign", "noise", "scaling"}
    assert all(panel["figure"] for panel in shown.values())


def test_each_replica_has_a_line(tensorboard):
    norms = panels(tensorboard.get("view", view="replicas", run="two replicas"))["replica_norm"]
    assert [trace["name"] for trace in norms["figure"]["data"]] == ["replica 0", "replica 1"]


def test_replicas_that_are_compared_as_a_whole_have_no_variables():
    """A variable that was chosen for another run does not matter."""
    columns = tuple(column.name for column in metadata.REPLICA_COLUMNS)
    details = {"replicas": 65}
    family = metadata.Family("replicas", columns, (metadata.ALL_VARIABLES,), details)
    values = np.random.default_rng(0).random([4, len(columns) * 65, 1], np.float32)
    table = tables.Table(family, np.arange(4), np.arange(4.0), values)
    shown = replicas._differences(table, Query(("many",), variable="hidden/kernel"))
    assert [panel.key for panel in shown] == ["replica_norm", "replica_cosine", "replica_sign"]
    assert all("Over all variables. The 4 replicas farthest from the median" in panel.note for panel in shown)


@pytest.mark.parametrize(
    ("asked", "key", "reason"),
    [
        ({"view": "replicas"}, "one", "one replica"),
        ({"view": "replicas"}, "noise", "needs two or more replicas"),
        ({"view": "replicas"}, "scaling", "Tick runs of the same program"),
        ({"view": "flow", "column": "noise_scale"}, "flow", "absent"),
        ({"view": "compare"}, "compare", "Tick two or more runs"),
    ],
)
def test_a_panel_without_a_figure_states_the_reason(tensorboard, asked, key, reason):
    panel = panels(tensorboard.get("view", run="healthy", **asked))[key]
    assert panel["figure"] is None
    assert reason in panel["empty"]


RANGES = [("flow", "flow", "step"), ("layer", "gradient_norm", "step"), ("compare", "run vanishing", "step")]


@pytest.mark.parametrize(("view", "key", "column"), RANGES)
def test_a_range_of_steps_is_drawn_alone(tensorboard, view, key, column):
    asked = {"view": view, "run": ["vanishing", "healthy"], "first": 95, "last": 200}
    x = decode(panels(tensorboard.get("view", **asked))[key]["figure"]["data"][0]["x"])
    assert (x[0], x[-1], len(x)) == (100, 200, 11)


@pytest.mark.parametrize(("view", "key", "column"), RANGES)
def test_the_csv_of_a_range_has_its_steps_only(tensorboard, view, key, column):
    asked = {"view": view, "run": ["vanishing", "healthy"], "first": 95, "last": 200}
    steps = {int(row[column]) for row in csv_rows(tensorboard.get("csv", panel=key, **asked))}
    assert steps == set(range(100, 201, 10))


def test_a_step_is_marked_with_a_line(tensorboard):
    figure = panels(tensorboard.get("view", view="flow", run="healthy", step=40))["flow"]["figure"]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [40]


def test_csv_has_every_number_of_a_figure(tensorboard):
    lines = csv_rows(tensorboard.get("csv", view="flow", run="healthy", column="gradient_norm", panel="flow"))
    assert lines[0].keys() == {"step", "row", "value"}
    figure = panels(tensorboard.get("view", view="flow", run="healthy"))["flow"]["figure"]
    shown = decode(figure["data"][0]["customdata"]).ravel()
    np.testing.assert_allclose([float(line["value"]) for line in lines], shown, rtol=1e-6)


def test_every_figure_of_a_layer_has_a_csv(tensorboard):
    keys = panels(tensorboard.get("view", view="layer", run="healthy"))
    answers = [tensorboard.get("csv", view="layer", run="healthy", panel=key) for key in keys]
    assert len(answers) == 10
    assert {(answer.status_code, answer.mimetype) for answer in answers} == {(200, "text/csv")}


def test_names_and_messages_like_markup_are_sent_unchanged(tensorboard):
    details = tensorboard.get("run", run=WEIRD).json
    assert details["layers"] == list(HOSTILE)
    assert details["findings"][0]["message"] == "<img src=x onerror=alert(2)> & more"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_like_markup_are_escaped_in_figures(tensorboard, name):
    answer = tensorboard.get("view", view="layer", run=WEIRD, layer=name)
    text = json.dumps([panel["figure"] for panel in panels(answer).values()])
    assert "<script" not in text.replace('"meta": "<script', "").replace('"rows": ["<script', "")


def test_names_like_markup_are_escaped_in_row_labels(tensorboard):
    flow = panels(tensorboard.get("view", view="flow", run=WEIRD, column="delta_norm"))["flow"]
    assert flow["rows"] == list(HOSTILE)
    assert "&lt;script&gt;" in flow["figure"]["data"][0]["y"][0]


def test_names_like_formulas_are_escaped_in_csv(tensorboard):
    lines = csv_rows(tensorboard.get("csv", view="flow", run=WEIRD, column="delta_norm", panel="flow"))
    assert {"'=1+1", "слой_層_طبقة"} <= {line["row"] for line in lines}


@pytest.mark.parametrize(
    ("route", "parameters", "code", "words"),
    [
        ("view", {}, 400, "run is missing"),
        ("view", {"run": "no such"}, 404, "no run 'no such'"),
        ("run", {"run": "../healthy"}, 404, "no run"),
        ("view", {"run": "healthy", "view": "nonsense"}, 404, "must be one of flow, layer"),
        ("view", {"run": "healthy", "column": "loss; drop"}, 404, "column 'loss; drop' is unknown"),
        ("view", {"run": "healthy", "column": "loss"}, 404, "not one of a layer or variable"),
        ("view", {"run": "healthy", "view": "layer", "layer": "x" * 9999}, 404, "no layer"),
        ("view", {"run": "two replicas", "view": "replicas", "variable": "x"}, 404, "no variable 'x'"),
        ("view", {"run": "healthy", "order": "best"}, 400, "must be one of forward, worst"),
        ("view", {"run": "healthy", "dark": "yes"}, 400, "must be one of 0, 1"),
        ("view", {"run": "healthy", "first": "-1"}, 400, "whole number"),
        ("view", {"run": "healthy", "first": "9" * 40}, 400, "whole number"),
        ("view", {"run": "healthy", "first": "5", "last": "4"}, 400, "must not be after"),
        ("view", {"run": "healthy", "view": "budget", "first": "11", "last": "12"}, 404, "No step from 11 to 12"),
        ("view", {"run": "healthy", "step": "٣"}, 400, "whole number"),
        ("view", {"run": [str(n) for n in range(99)]}, 400, "at most 64"),
        ("csv", {"run": "healthy", "view": "layer", "panel": "nothing"}, 404, "panel 'nothing' is unknown"),
        ("csv", {"run": "healthy", "view": "replicas", "panel": "one"}, 404, "has no numbers"),
        ("static/../plugin.py", {}, 404, "no page"),
        ("static/..%2f..%2fmetadata.py", {}, 404, "no page"),
        ("static//etc/passwd", {}, 404, "no page"),
    ],
)
def test_an_impossible_request_is_refused_in_a_sentence(tensorboard, route, parameters, code, words):
    answer = tensorboard.get(route, **parameters)
    assert answer.status_code == code
    assert words in answer.json["error"]
    assert len(answer.json["error"]) < 400


def test_no_combination_of_parameters_is_a_server_error(tensorboard):
    rng = random.Random(0)
    words = "0 -1 1e9 NaN healthy gradient_norm replica_norm units_dead hidden_1"
    values = ["", *words.split(), *HOSTILE]
    names = ["run", "view", "column", "layer", "variable", "order", "first", "last", "step", "dark", "panel", "known"]
    for _ in range(300):
        asked = {name: rng.choice([*values, *VIEWS]) for name in rng.sample(names, rng.randint(0, 6))}
        asked["run"] = rng.choice(["healthy", "vanishing", WEIRD, "two replicas", *values])
        answer = tensorboard.get(rng.choice(["view", "csv", "run", "runs"]), **asked)
        assert answer.status_code in (200, 400, 404), (asked, answer.get_data(as_text=True)[:200])


@pytest.mark.parametrize("view", ["flow", "compare"])
def test_every_column_of_a_layer_or_variable_is_drawn(tensorboard, view):
    runs = ["two replicas", "healthy"]
    codes = {column: tensorboard.get("view", view=view, run=runs, column=column).status_code for column in GRID_COLUMNS}
    assert set(codes.values()) == {200}, codes


@pytest.mark.parametrize("view", ["flow", "compare"])
def test_every_other_column_is_refused(tensorboard, view):
    runs = ["two replicas", "healthy"]
    others = set(tables.COLUMNS) - GRID_COLUMNS
    codes = {column: tensorboard.get("view", view=view, run=runs, column=column).status_code for column in others}
    assert set(codes.values()) == {404}, codes


def test_every_file_of_the_page_is_served(tensorboard):
    served = {
        name: tensorboard.client.get(f"/data/plugin/tapescope/static/{name}").data for name in sorted(read_pages())
    }
    assert served == read_pages()


def test_modules_are_served_as_javascript(tensorboard):
    assert tensorboard.client.get("/data/plugin/tapescope/static/index.js").mimetype.endswith("/javascript")


def test_plotly_is_served(tensorboard):
    assert b"plotly.js v" in tensorboard.client.get("/data/plugin/tapescope/plotly.js").data[:200]


def test_tensorboard_loads_the_page_s_module(tensorboard):
    entry = tensorboard.client.get("/data/plugin_entry.html?name=tapescope")
    assert "./static/index.js" in entry.get_data(as_text=True)


def test_a_request_that_is_not_a_get_is_refused(tensorboard):
    assert tensorboard.client.post("/data/plugin/tapescope/runs").status_code == 405


def test_the_tab_is_listed_and_shown(tensorboard):
    listing = tensorboard.client.get("/data/plugins_listing").json["tapescope"]
    assert (listing["tab_name"], listing["enabled"]) == ("Gradients", True)


def test_routes_are_below_a_path_prefix(logdir):
    prefixed = application(logdir, True, 4, "/proxy/6006", STEPS[-1])
    assert len(prefixed.get("runs").json["runs"]) == 4
    assert prefixed.client.get("/data/plugin/tapescope/runs").status_code == 404


@pytest.mark.parametrize("view", VIEWS)
def test_plotly_accepts_every_figure(tensorboard, view):
    drawn = [
        p for p in panels(tensorboard.get("view", view=view, run=["two replicas", "healthy"])).values() if p["figure"]
    ]
    assert drawn
    for panel in drawn:
        graph_objects.Figure(panel["figure"])  # raises on a property that it does not know


def test_a_smoothed_layer_has_faint_recorded_lines(tensorboard):
    asked = {"view": "layer", "run": "vanishing", "layer": "hidden_2"}
    plain = panels(tensorboard.get("view", **asked))["gradient_norm"]["figure"]["data"]
    smoothed = panels(tensorboard.get("view", **asked, smoothing="0.6"))["gradient_norm"]["figure"]["data"]
    assert [trace["y"] for trace in smoothed[:2]] == [trace["y"] for trace in plain]
    assert [trace["customdata"] for trace in smoothed[2:]] == [trace["y"] for trace in plain]
    np.testing.assert_allclose(
        decode(smoothed[2]["y"]), smooth(decode(plain[0]["y"])[:, None], 0.6, "log")[:, 0], rtol=1e-6
    )


def test_the_newer_part_of_a_smoothed_line_is_the_end_of_the_whole(tensorboard):
    asked = {"view": "layer", "run": "vanishing", "layer": "hidden_2", "smoothing": "0.9"}
    whole = panels(tensorboard.get("view", **asked))["gradient_norm"]["figure"]["data"]
    newer = panels(tensorboard.get("view", **asked, since="350"))["gradient_norm"]["figure"]["data"]
    for name in ("y", "customdata"):
        np.testing.assert_array_equal(decode(newer[2][name]), decode(whole[2][name])[-len(decode(newer[2]["x"])) :])


def test_csv_has_the_recorded_numbers_whatever_the_smoothing(tensorboard):
    asked = {"view": "layer", "run": "vanishing", "layer": "hidden_2", "panel": "gradient_norm"}
    assert tensorboard.get("csv", **asked, smoothing="0.9").data == tensorboard.get("csv", **asked).data


@pytest.mark.parametrize("smoothing", ["1", "-0.5", "nan", "a lot", "0.9999"])
def test_an_impossible_smoothing_is_named(tensorboard, smoothing):
    answer = tensorboard.get("view", view="layer", run="healthy", smoothing=smoothing)
    assert answer.status_code == 400
    assert "smoothing must be a number from 0 to 0.999" in answer.json["error"]


def test_the_noise_scale_is_that_of_tapescope_scaling(tensorboard, logdir):
    noise = panels(tensorboard.get("view", view="replicas", run="two replicas"))["noise"]
    whole = scaling.noise_scale(Run(logdir / "two replicas"))
    assert (
        f"All records and variables: {whole.scale:,.4g} examples ({whole.low:,.4g} to {whole.high:,.4g})"
        in noise["note"]
    )
    assert decode(noise["figure"]["data"][-1]["y"])[-1] == pytest.approx(whole.scale, rel=1e-5)


def test_the_noise_scale_of_one_variable_can_be_asked_for(tensorboard, logdir):
    variable = "hidden_2/kernel"
    noise = panels(tensorboard.get("view", view="replicas", run="two replicas", variable=variable))["noise"]
    whole = scaling.noise_scale(Run(logdir / "two replicas"), variable)
    assert f"variable {variable}: {whole.scale:,.4g}" in noise["note"]


@pytest.mark.parametrize("fast", [True, False])
def test_compare_has_the_hyperparameters_of_the_runs(tmp_path, fast):
    for name, rate in (("a", 0.1), ("b", 0.2), ("c", None)):
        writer = synthetic.Writer(tmp_path / name, Spec(depth=2, histograms=False))
        if rate is not None:
            writer.file.add_summary(summary_v2.hparams_pb({"rate": rate, "seed": 1}, trial_id=name))
        writer.write(0)
        writer.status(0, "ended")
        writer.file.close()
    compared = panels(application(tmp_path, fast, 3).get("view", view="compare", run=["a", "b", "c"]))
    panel = compared["hyperparameters"]
    assert panel["table"]["differing"] == {"rate": ["0.1", "0.2", ABSENT]}
    assert panel["table"]["equal"] == {"seed": "1"}
    assert "None recorded for c." in panel["note"]


def test_compare_of_runs_without_hyperparameters_has_no_table(compared):
    assert "hyperparameters" not in compared


@pytest.mark.parametrize("view", VIEWS)
def test_every_figure_of_a_column_has_its_definition_at_hand(tensorboard, view):
    runs = ["two replicas", "healthy"] if view in ("compare", "replicas") else ["healthy"]
    for panel in panels(tensorboard.get("view", view=view, run=runs)).values():
        if panel["figure"]:
            assert panel["help"] or "Share of the" in panel["note"] or "Decades by which" in panel["note"], panel["key"]
