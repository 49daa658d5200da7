"""Damaged runs and impossible requests: they are refused in a sentence, and other runs are not affected."""

import csv
import io
import json
import pathlib
import random
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripts.testbed import hostile
from scripts.testbed.hostile import NAMES, Datum, Tab, good, request, spoiled
from scripts.testbed.synthetic import Spec

import tapescope
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import csv_export
from tensorboard_plugin_tapescope.series import flow_path, tables

# The same examples every time; no deadline, for nothing here is timed.
property_test = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers at the end of float32
@pytest.mark.parametrize("seed", [*range(20), 22, 24, 29, 150, 158, 198])
# bench/faults/tab.py found the last six: NaN counts, fractional states, booleans for numbers, a negative norm.
def test_damaged_runs_make_no_server_error_and_do_not_affect_others(seed):
    rng = random.Random(seed)
    runs = {f"bad {i}": spoiled(rng, good(hostile.SMALL._replace(replicas=rng.choice([1, 2])))) for i in range(3)}
    tab = Tab({"good": good(), **runs})
    alone = Tab({"good": good()})
    tab.checked("runs")
    for _ in range(25):
        route, asked = request(rng, ["good", *runs])
        tab.checked(route, **asked)
    for view in ("flow", "layer", "budget"):
        mine, other = (t.get("view", view=view, run="good") for t in (tab, alone))
        assert (mine.status_code, mine.data) == (200, other.data)
    rows = {row["name"]: row for row in tab.get("runs").json["runs"]}
    assert rows["good"]["problems"] == []


@property_test
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_description_is_read_or_raises_a_schema_error(content):
    try:
        family = metadata.parse(content)
    except metadata.SchemaError:
        return
    assert metadata.parse(family.metadata().plugin_data.content)[:3] == family[:3]


@property_test
@given(
    st.lists(st.text(max_size=8), max_size=4),
    st.lists(st.text(max_size=8), max_size=4),
    st.dictionaries(st.text(max_size=5), JSON, max_size=3),
)
def test_a_description_is_read_as_it_was_written(columns, names, details):
    family = metadata.Family("layers", tuple(columns), tuple(names), json.loads(json.dumps(details)))
    back = metadata.parse(family.metadata().plugin_data.content)
    assert (back.columns, back.names) == (family.columns, family.names)
    assert json.dumps(back.details) == json.dumps(family.details)


@property_test
@given(
    st.sampled_from(["layers", "variables", "step", "units", "replicas", "gradient_histogram", "other"]),
    st.lists(st.sampled_from(sorted(metadata.COLUMNS)), max_size=3),
    st.integers(0, 3),
    JSON,
    st.lists(
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["f4", "f8", "i4", "u1", "?", "O", "c8"])),
        max_size=4,
    ),
)
def test_a_table_has_the_declared_shape_for_any_records(name, columns, width, detail, arrays):
    details = {"units": detail, "replicas": detail, "variables": detail, "sources": detail}
    family = metadata.Family(name, tuple(columns), tuple(f"n{i}" for i in range(width)), details)
    data = [Datum(i, float(i), np.zeros(shape, kind)) for i, (shape, kind) in enumerate(arrays)]
    table = tables.table(family, data)
    assert len(table.steps) == len(table.seconds) == len(table.values) <= len(data)
    expected = tables.shape(family)
    assert expected is None or table.values.shape[1:] == expected
    assert all(0 <= i < width for i in flow_path.backward_path(detail, width))
    for column in tables.column_names(family) if name in ("layers", "variables") else ():
        assert tables.column(table, column).shape == (len(table.values), width)


@property_test
@given(st.text(max_size=12) | st.sampled_from(NAMES))
@example("\r")
@example("a\rb")
def test_no_name_becomes_a_formula_or_breaks_a_csv_line(name):
    name = name.encode("utf-8", "replace").decode()
    shown = name.replace("\0", "")
    figure = {
        "data": [{"type": "scatter", "meta": name, "x": [name, 1.0], "y": [1.0, -2.0]}],
        "layout": {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "value"}}},
    }
    rows = list(csv.reader(io.StringIO(csv_export.csv(figure), newline="")))
    assert [len(row) for row in rows] == [3, 3, 3]
    for cell in (rows[1][0], rows[1][1]):
        assert not re.match(r"\s*[=+\-@＝＋－＠]", cell)  # noqa: RUF001 (spreadsheets take the wide ones as well)
        assert cell in (shown, f"'{shown}")


def test_the_noise_scale_of_records_in_any_order_is_answered():
    run = good(hostile.SMALL._replace(replicas=2))
    series = run["tapescope/step"]
    run["tapescope/step"] = series._replace(data=[*series.data[3:], *series.data[:3]])
    assert Tab({"bad": run}).checked("view", view="replicas", run="bad").status_code == 200


def test_the_response_for_ten_thousand_layers_or_a_million_units_is_bounded():
    wide = good(Spec(depth=10_000, units=1, histograms=False), steps=3)
    large = good(Spec(depth=2, units=1_000_000, histograms=False), steps=2)
    tab = Tab({"wide": wide, "large": large})
    assert tab.checked("runs").status_code == 200
    for view, run in (("flow", "wide"), ("layer", "large")):
        answer = tab.checked("view", view=view, run=run)
        assert answer.status_code == 200
        assert len(answer.data) < 16 << 20, (view, run, len(answer.data))


GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
"""A file of each schema version, see its README.md. All later versions must read it."""

VERSIONS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def golden_run(request):
    """Return the run of each schema version."""
    return tapescope.Run(GOLDEN / request.param)


def test_each_schema_version_has_a_golden_file():
    assert [f"schema_{n}" for n in range(1, metadata.SCHEMA + 1)] == VERSIONS


def test_a_golden_file_has_its_steps_and_layers(golden_run):
    assert golden_run.steps.tolist() == [0, 10, 20]
    assert golden_run.layers == ("hidden_1", "output")


def test_a_golden_file_has_its_numbers(golden_run):
    np.testing.assert_allclose(golden_run["loss"], [2.35, 0.563199, 0.16451], rtol=1e-5)  # 2.3 exp(-3 t) + 0.05
    np.testing.assert_allclose(golden_run["step_ms"], 50)
    assert golden_run["gradient_histogram"][1:].sum() == 2 * 4 * 512
    assert golden_run["replica_norm"].shape == (3, 2, 4)


def test_the_golden_file_of_schema_2_has_added_rows_from_their_record_on():
    run = tapescope.Run(GOLDEN / "schema_2")
    np.testing.assert_array_equal(np.isnan(run["delta_norm"]), [[False, True], [False, False], [False, False]])
    assert run["gradient_histogram"].sum((1, 2)).tolist() == [2 * 512, 4 * 512, 4 * 512]
    assert run["data_max"][:, 1].tolist() == [9, 9, 9]


def test_a_golden_file_has_its_status_and_findings(golden_run):
    assert golden_run.status["state"] == "ended"
    assert [finding["rule"] for finding in golden_run.findings] == ["vanishing"]


def test_a_golden_file_has_all_columns(golden_run):
    assert {column.name for column in metadata.LAYER_COLUMNS} <= set(golden_run.columns)


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_requests_that_are_not_get_are_refused(method):
    tab = Tab({"good": good()})
    assert getattr(tab.client, method)("/runs").status_code == 405
