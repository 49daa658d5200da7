"""Every route through TensorBoard's WSGI application, with both loaders; what is asked wrongly is refused in words."""

import csv
import io
import json
import math
import random

import numpy as np
import pytest
from plotly import graph_objects
from scripts.testbed import synthetic
from scripts.testbed.hostile import HOSTILE
from scripts.testbed.synthetic import Spec

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import encoding
from tensorboard_plugin_tapescope.plugin import VIEWS, read_pages
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.views import overview
from tests.plugin.conftest import STEPS, application

WEIRD = "we <b>ird/'quoted\""


def panels(answer) -> dict[str, dict]:
    """Panels by key."""
    assert answer.status_code == 200, answer.get_data(as_text=True)[:300]
    return {panel["key"]: panel for panel in json.loads(answer.data)["panels"]}


def test_overview_tells_state_findings_and_worst_layer(tensorboard):
    rows = {row["name"]: row for row in tensorboard.get("runs").json["runs"]}
    assert set(rows) == {"healthy", "vanishing", "two replicas", WEIRD}
    row = rows["vanishing"]
    assert (row["state"], row["step"], row["findings"]) == ("ended", 390, {"error": 1, "warning": 1, "info": 1})
    assert row["worst"]["layer"] == "hidden_1"
    assert row["worst"]["words"] == "vanishing"
    assert row["headline"]["severity"] == "error"
    assert rows["healthy"]["worst"]["words"].startswith("smallest gradient")
    assert rows["two replicas"]["replicas"] == 2
    assert row["overhead"] == pytest.approx(3.1 / (50 * 10))
    assert row["loss"] == pytest.approx(2.3 * math.exp(-3) + 0.05)
    assert len({row["colour"] for row in rows.values()}) == 4


def test_the_usual_gap_is_that_of_all_records_though_tensorboard_keeps_some():
    every = np.arange(0, 50_000, 10)
    kept = np.sort(np.random.default_rng(0).choice(every, 1000, replace=False))
    assert np.median(np.diff(kept)) > 20
    assert overview.usual_gap(np.diff(kept), 10) == 10
    began_with_each = np.concatenate([np.arange(20), np.arange(20, 4000, 10)])
    assert overview.usual_gap(np.diff(began_with_each), 10) == 10


def test_a_poll_that_brings_nothing_new_is_a_few_bytes(tensorboard):
    version = tensorboard.get("runs").json["version"]
    again = tensorboard.get("runs", known=version)
    assert again.json == {"version": version, "unchanged": True}


def test_flow_holds_the_recorded_numbers(tensorboard, logdir):
    panel = panels(tensorboard.get("view", view="flow", run="healthy", column="delta_norm"))["flow"]
    (trace,) = panel["figure"]["data"]
    rng, spec = np.random.default_rng(0), Spec(decay=0.9)
    row = [c.name for c in metadata.LAYER_COLUMNS].index("delta_norm")
    deltas = [synthetic.record(spec, step, 390, rng)["layers"][row] for step in range(0, 400, 10)]
    np.testing.assert_array_equal(encoding.decode(trace["customdata"]), np.stack(deltas, axis=1))
    np.testing.assert_array_equal(encoding.decode(trace["x"]), range(0, 400, 10))
    assert trace["y"] == list(spec.layer_names()) == panel["rows"]
    assert metadata.COLUMNS["delta_norm"].definition in trace["hovertemplate"].replace("<br>", " ")


def test_worst_first_puts_the_smallest_gradient_on_top(tensorboard):
    forward = panels(tensorboard.get("view", view="flow", run="vanishing"))["flow"]
    worst = panels(tensorboard.get("view", view="flow", run="vanishing", order="worst"))["flow"]
    last = encoding.decode(worst["figure"]["data"][0]["customdata"])[:, -1]
    assert (np.diff(last) >= 0).all()
    assert sorted(worst["rows"]) == sorted(forward["rows"])
    assert forward["rows"][0] == "hidden_1"


def test_layer_budget_compare_and_replicas_have_their_figures(tensorboard):
    layer = panels(tensorboard.get("view", view="layer", run="vanishing", layer="hidden_2"))
    drawn = {key for key, panel in layer.items() if panel["figure"]}
    assert drawn == {
        *("gradient_norm", "update_ratio", "weight_norm", "delta_norm", "output", "shares", "units"),
        *("activation_histogram_1", "gradient_histogram_2", "gradient_histogram_3"),
    }
    budget = panels(tensorboard.get("view", view="budget", run="vanishing"))["budget"]
    assert "loses" in budget["note"]
    several = panels(tensorboard.get("view", view="budget", run="vanishing", first=100, last=200))["budget"]
    assert "the mean of 11 steps from 100 to 200" in several["note"]
    assert "The relu layer hidden_" in several["note"]
    compare = panels(tensorboard.get("view", view="compare", run=["healthy", "vanishing"]))
    assert set(compare) == {"run healthy", "run vanishing", "ratio vanishing", "gradient", "activation"}
    first, second = (compare[f"run {run}"]["figure"]["data"][0] for run in ("healthy", "vanishing"))
    assert (first["zmin"], first["zmax"]) == (second["zmin"], second["zmax"])
    assert "Only in vanishing: hidden_5/kernel" in compare["ratio vanishing"]["note"]
    replicas = panels(tensorboard.get("view", view="replicas", run=["two replicas", "healthy"]))
    assert all(panel["figure"] for panel in replicas.values())
    assert [trace["name"] for trace in replicas["replica_norm"]["figure"]["data"]] == ["replica 0", "replica 1"]


def test_what_a_run_lacks_is_said_in_words(tensorboard):
    alone = panels(tensorboard.get("view", view="replicas", run="healthy"))
    assert "one replica" in alone["one"]["empty"]
    assert all(panel["figure"] is None for panel in alone.values())
    noise = panels(tensorboard.get("view", view="flow", run="healthy", column="noise_scale"))["flow"]
    assert "absent" in noise["empty"]
    single = panels(tensorboard.get("view", view="compare", run="healthy"))["compare"]
    assert "Tick two" in single["empty"]


def test_a_range_of_steps_is_drawn_alone_and_its_numbers_too(tensorboard):
    for view, key in (("flow", "flow"), ("layer", "gradient_norm"), ("compare", "run vanishing")):
        asked = {"view": view, "run": ["vanishing", "healthy"], "first": 95, "last": 200}
        x = encoding.decode(panels(tensorboard.get("view", **asked))[key]["figure"]["data"][0]["x"])
        assert (x[0], x[-1], len(x)) == (100, 200, 11)
        lines = tensorboard.get("csv", panel=key, **asked).get_data(as_text=True).splitlines()[1:]
        assert lines[0].split(",")[-3 if view != "layer" else 1] == "100"
        assert len(lines) % 11 == 0


def test_a_step_is_marked_with_a_line(tensorboard):
    figure = panels(tensorboard.get("view", view="flow", run="healthy", step=40))["flow"]["figure"]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [40]


def test_csv_holds_every_number_of_a_figure(tensorboard):
    answer = tensorboard.get("csv", view="flow", run="healthy", column="gradient_norm", panel="flow")
    assert answer.content_type.startswith("text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))
    assert len(lines) == 40 * 10
    assert lines[0].keys() == {"step", "row", "value"}
    figure = panels(tensorboard.get("view", view="flow", run="healthy"))["flow"]["figure"]
    shown = encoding.decode(figure["data"][0]["customdata"]).ravel()
    np.testing.assert_allclose([float(line["value"]) for line in lines], shown, rtol=1e-6)
    keys = panels(tensorboard.get("view", view="layer", run="healthy"))
    for key in keys:
        assert tensorboard.get("csv", view="layer", run="healthy", panel=key).status_code == 200


def test_names_that_look_like_markup_stay_text(tensorboard):
    about = tensorboard.get("run", run=WEIRD).json
    assert about["layers"] == list(HOSTILE)
    assert about["findings"][0]["message"] == "<img src=x onerror=alert(2)> & more"
    for name in HOSTILE:
        answer = tensorboard.get("view", view="layer", run=WEIRD, layer=name)
        text = json.dumps([p["figure"] for p in panels(answer).values()])
        assert "<script" not in text.replace('"meta": "<script', "").replace('"rows": ["<script', "")
    flow = panels(tensorboard.get("view", view="flow", run=WEIRD, column="delta_norm"))["flow"]
    assert flow["rows"] == list(HOSTILE)
    assert "&lt;script&gt;" in flow["figure"]["data"][0]["y"][0]
    body = tensorboard.get("csv", view="flow", run=WEIRD, column="delta_norm", panel="flow").get_data(as_text=True)
    rows = {line["row"] for line in csv.DictReader(io.StringIO(body))}
    assert "'=1+1" in rows
    assert "слой_層_طبقة" in rows


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
def test_what_cannot_be_answered_is_refused_in_a_sentence(tensorboard, route, parameters, code, words):
    answer = tensorboard.get(route, **parameters)
    assert answer.status_code == code
    assert words in answer.json["error"]
    assert len(answer.json["error"]) < 400


def test_no_parameter_makes_a_500(tensorboard):
    rng = random.Random(0)
    values = [
        "",
        "0",
        "-1",
        "1e9",
        "NaN",
        "healthy",
        "gradient_norm",
        "replica_norm",
        "units_dead",
        "hidden_1",
        *HOSTILE,
    ]
    names = ["run", "view", "column", "layer", "variable", "order", "first", "last", "step", "dark", "panel", "known"]
    for _ in range(300):
        asked = {name: rng.choice([*values, *VIEWS]) for name in rng.sample(names, rng.randint(0, 6))}
        asked["run"] = rng.choice(["healthy", "vanishing", WEIRD, "two replicas", *values])
        answer = tensorboard.get(rng.choice(["view", "csv", "run", "runs"]), **asked)
        assert answer.status_code in (200, 400, 404), (asked, answer.get_data(as_text=True)[:200])


def test_every_view_answers_for_every_column(tensorboard):
    for column in (*metadata.COLUMNS, *tables.DERIVED):
        for view in ("flow", "compare"):
            answer = tensorboard.get("view", view=view, run=["two replicas", "healthy"], column=column)
            held = (
                column in {c.name for c in metadata.VARIABLE_COLUMNS + metadata.LAYER_COLUMNS}
                or column in tables.DERIVED
            )
            assert answer.status_code == (200 if held else 404), column


def test_the_page_and_its_library_are_served(tensorboard):
    for name, content in read_pages().items():
        answer = tensorboard.client.get(f"/data/plugin/tapescope/static/{name}")
        assert (answer.status_code, answer.data) == (200, content)
    assert tensorboard.client.get("/data/plugin/tapescope/static/index.js").mimetype in (
        "text/javascript",
        "application/javascript",
    )
    answer = tensorboard.client.get("/data/plugin/tapescope/plotly.js")
    assert b"plotly.js v" in answer.data[:200]
    entry = tensorboard.client.get("/data/plugin_entry.html?name=tapescope")
    assert "./static/index.js" in entry.get_data(as_text=True)
    assert tensorboard.client.post("/data/plugin/tapescope/runs").status_code == 405


def test_the_tab_is_listed_and_only_data_make_it_active(tensorboard):
    listing = tensorboard.client.get("/data/plugins_listing").json["tapescope"]
    assert (listing["tab_name"], listing["enabled"]) == ("Gradients", True)


def test_under_a_path_prefix(logdir):
    prefixed = application(logdir, True, 4, "/proxy/6006", STEPS[-1])
    assert len(prefixed.get("runs").json["runs"]) == 4
    assert prefixed.client.get("/data/plugin/tapescope/runs").status_code == 404
    page = prefixed.client.get("/proxy/6006/data/plugin/tapescope/static/index.js")
    assert page.status_code == 200


def test_a_figure_is_what_plotly_itself_takes(tensorboard):
    for view in VIEWS:
        for panel in panels(tensorboard.get("view", view=view, run=["two replicas", "healthy"])).values():
            if panel["figure"]:
                graph_objects.Figure(panel["figure"])  # raises on a property that it does not know
