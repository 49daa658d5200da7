"""Damage stays within its boundary: a tag, a run, a request. No file and no URL costs more than that."""

import json
import logging
import time

import numpy as np
import pytest
from scripts.testbed.hostile import Datum, Provider, Tab, good
from scripts.testbed.synthetic import Spec
from tensorboard import errors
from tensorboard.backend.experiment_id import ExperimentIdMiddleware
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client

from tensorboard_plugin_tapescope.data import table_cache
from tensorboard_plugin_tapescope.plugin import VIEWS, GradientsPlugin
from tensorboard_plugin_tapescope.views import overview

ROUTES = ("runs", "run", "view", "csv")
DAY_SECONDS = 24 * 3600


def with_content(run, **changes):
    """Return the run with other fields in the description of its layers."""
    series = run["tapescope/layers"]
    content = json.dumps({**json.loads(series.content), **changes}).encode()
    return {**run, "tapescope/layers": series._replace(content=content)}


def with_text(run, family, text):
    """Return the run with another text as its status, or as its finding."""
    array = np.array(text.encode(), object)
    tag = f"tapescope/{family}"
    return {**run, tag: run[tag]._replace(data=[Datum(0, 1e9, array if family == "status" else array[None])])}


def statuses(tab, run, **parameters):
    """Return the status of every route for a run."""
    return {tab.checked(route, run=run, **parameters).status_code for route in ROUTES}


@pytest.mark.parametrize("schema", [float("inf"), float("-inf"), float("nan"), 10**400, [1], {"a": 1}, None, "x"])
def test_a_schema_that_is_not_a_number_costs_its_tag_alone(schema):
    tab = Tab({"good": good(), "bad": with_content(good(), schema=schema)})
    assert statuses(tab, "good") == {200}
    rows = {row["name"]: row["problems"] for row in tab.get("runs").json["runs"]}
    assert rows["good"] == []
    assert rows["bad"][0].startswith("tapescope/layers: ")


def test_a_description_that_is_nested_too_deeply_costs_its_tag_alone():
    run = good()
    deep = {**run, "tapescope/layers": run["tapescope/layers"]._replace(content=b"[" * 10**6)}
    tab = Tab({"good": run, "bad": deep})
    assert statuses(tab, "good") == {200}
    assert "RecursionError" in tab.get("runs").json["runs"][0]["problems"][0]


class FailingProvider(Provider):
    """A provider that raises for one run, and an exception that nobody expects."""

    error: type[Exception] = EOFError

    def read_tensors(self, ctx=None, *, downsample, run_tag_filter, **asked):
        if "bad" in run_tag_filter.runs:
            raise self.error
        return super().read_tensors(ctx, downsample=downsample, run_tag_filter=run_tag_filter, **asked)


@pytest.mark.parametrize("error", [EOFError, RecursionError, MemoryError, ArithmeticError, AssertionError, KeyError])
def test_a_run_that_cannot_be_read_does_not_affect_others(error):
    class Failing(FailingProvider):
        pass

    Failing.error = error
    tab = Tab({"good": good(), "bad": good()}, Failing)
    assert statuses(tab, "good") == {200}
    assert tab.get("view", run="good").data == Tab({"good": good()}).get("view", run="good").data


@pytest.fixture
def failing_views(monkeypatch):
    """Let each view fail for the run "bad", as a fault of ours would."""

    def failing(draw):
        def fail(snapshot, query):
            if "bad" in query.runs:
                raise ZeroDivisionError("a fault")
            return draw(snapshot, query)

        return fail

    for name, draw in list(VIEWS.items()):
        monkeypatch.setitem(VIEWS, name, failing(draw))


@pytest.mark.parametrize("view", list(VIEWS))
def test_a_run_that_cannot_be_drawn_is_left_out_of_a_view_and_named(failing_views, view):
    tab = Tab({"good": good(), "bad": good(), "other": good()})
    panels = tab.checked("view", view=view, run=["good", "bad", "other"]).json["panels"]
    assert panels[-1]["title"] == "bad"
    assert "ZeroDivisionError" in panels[-1]["empty"]
    assert panels[:-1] == tab.get("view", view=view, run=["good", "other"]).json["panels"]


@pytest.mark.parametrize("view", [view for view in VIEWS if view != "compare"])
def test_a_run_without_a_record_says_so_in_every_view(view):
    tab = Tab({"empty": {"tapescope/status": good()["tapescope/status"]}, "good": good()})
    (panel,) = tab.checked("view", view=view, run=["empty", "good"]).json["panels"]
    assert panel["empty"].startswith("No step of this run is recorded")


def test_a_run_of_which_nothing_can_be_read_says_why():
    broken = {"tapescope/layers": good()["tapescope/layers"]._replace(content=b"{")}
    (panel,) = Tab({"broken": broken}).checked("view", run="broken").json["panels"]
    assert panel["empty"].startswith("No step of this run can be read: tapescope/layers: ")


def test_a_single_run_that_cannot_be_drawn_is_an_error_with_the_reason(failing_views):
    answer = Tab({"bad": good()}).get("view", run="bad")
    assert answer.status_code == 400
    assert "ZeroDivisionError" in answer.json["error"]


def test_a_run_that_cannot_be_summarized_has_the_reason_among_its_problems(monkeypatch):
    def fail(snapshot, name):
        if name == "bad" and snapshot.runs[name].tags:
            raise ZeroDivisionError
        return []

    monkeypatch.setattr(overview, "gradient_profile", fail)
    rows = {row["name"]: row for row in Tab({"bad": good(), "good": good()}).checked("runs").json["runs"]}
    assert "ZeroDivisionError" in rows["bad"]["problems"][-1]
    assert rows["good"]["problems"] == []


class UnlistedProvider(Provider):
    """A provider whose listing fails."""

    error: Exception = RuntimeError("gone \ud800")

    def list_tensors(self, ctx=None, **_):
        raise self.error


def test_a_listing_that_fails_is_answered_with_the_reason(caplog):
    with caplog.at_level(logging.CRITICAL):  # pytest-xdist cannot send a log that has a lone surrogate
        answer = Tab({}, UnlistedProvider).get("runs")
    assert answer.status_code == 500
    assert "RuntimeError" in answer.json["error"]


def test_tensorboards_own_errors_are_left_to_tensorboard():
    class Missing(UnlistedProvider):
        error = errors.NotFoundError("no experiment")

    with pytest.raises(errors.NotFoundError):
        Tab({}, Missing).get("runs")


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400", "-3", "true", "[1]", '"x"', "2.5", "null"])
def test_an_impossible_number_of_replicas_is_ignored(number):
    bad = with_text(good(), "status", f'{{"state": "ended", "replicas": {number}, "steps": {number}}}')
    tab = Tab({"good": good(), "bad": bad})
    assert tab.checked("view", view="replicas", run=["good", "bad"]).status_code == 200
    row = tab.get("runs").json["runs"][0]
    assert (row["replicas"], row["steps"]) == (None, None)


@pytest.mark.parametrize(
    "text", ["[" * 99999, "1" + "0" * 9999, '{"step": 1e999}', '{"step": ' + "9" * 400 + "}", "\0"]
)
def test_a_finding_that_cannot_be_read_is_counted(text):
    rows = Tab({"bad": with_text(good(), "findings", text)}).checked("runs").json["runs"]
    assert rows[0]["problems"] == ["1 findings cannot be read"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("route", ["/static/index.js", "/static/none.js", "/plotly.js", "/csv"])
def test_no_route_answers_a_request_that_changes_something(route, method):
    assert Tab({"good": good()}).client.open(route, method=method).status_code == 405


def test_a_lone_surrogate_in_a_name_has_no_effect_on_any_route():
    tab = Tab({"run": good(Spec(depth=2, units=2, layers=("\ud800", "b")))})
    assert statuses(tab, "run") == {200}


def shifted(seconds):
    """Return a run whose newest record is that old, by this machine's clock."""
    newest = time.time() - seconds
    return {
        tag: series._replace(data=[Datum(d.step, newest - 5 + d.step, d.numpy) for d in series.data])
        for tag, series in good().items()
    }


def state(tab):
    return tab.get("runs").json["runs"][0]["state"]


@pytest.mark.parametrize("seconds", [0, 300, -300, 3 * 3600, -3 * 3600])
def test_a_clock_that_is_wrong_does_not_make_a_run_stalled(seconds):
    assert state(Tab({"run": shifted(seconds)})) == "training"


def test_a_run_that_was_left_days_ago_is_stalled():
    assert state(Tab({"run": shifted(3 * DAY_SECONDS)})) == "stalled"


@pytest.fixture
def late(monkeypatch):
    """Return a function that lets the tab's clock go on."""
    monkeypatch.setattr(table_cache, "LISTING_SECONDS", -1.0)
    real = time.monotonic
    passed = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + passed[0])

    def go_on(seconds):
        passed[0] += seconds

    return go_on


@pytest.mark.parametrize("seconds", [0, 300, -300])
def test_a_run_without_a_new_record_while_the_tab_looks_is_stalled(late, seconds):
    tab = Tab({"run": shifted(seconds)})
    state(tab)
    late(120)
    assert state(tab) == "stalled"


def test_a_run_with_new_records_is_training_again(late):
    tab = Tab({"run": shifted(300)})
    state(tab)
    late(120)
    tab.provider.runs = {"run": shifted(290)}
    assert state(tab) == "training"


def experiments(runs, names):
    """Request the runs of many experiments, and return the plugin's cache."""
    plugin = GradientsPlugin(TBContext(data_provider=Provider(runs)))
    apps = plugin.get_plugin_apps()
    client = Client(
        ExperimentIdMiddleware(
            lambda env, start: apps[env["PATH_INFO"].removeprefix("/data/plugin/tapescope")](env, start)
        )
    )
    for name in names:
        assert client.get(f"/experiment/{name}/data/plugin/tapescope/runs").status_code == 200
    return plugin._cache


def test_listings_and_summaries_of_few_experiments_are_kept():
    ended = with_text(good(), "status", '{"state": "ended"}')
    cache = experiments({"a": ended, "b": ended}, [f"e{i}" for i in range(20)])
    assert list(cache._listings) == [f"e{i}" for i in range(16, 20)]
    assert len(cache.summaries) == 2 * table_cache.KEPT_EXPERIMENTS


def test_summaries_of_runs_that_are_gone_are_dropped(late):
    ended = with_text(good(), "status", '{"state": "ended"}')
    cache = experiments({"a": ended, "b": ended}, ["e"])
    del cache.provider.runs["a"]
    cache.snapshot(None, "e")
    assert list(cache.summaries) == [("e", "b")]


def test_texts_count_by_their_bytes():
    million = json.dumps({"rule": "r", "severity": "info", "step": 1, "message": "m" * 1_000_000})
    cache = experiments({f"run {i}": with_text(good(), "findings", million) for i in range(30)}, ["e"])
    entries = [entry.table.values for entry in cache.small_tables._entries.values()]
    texts = [text for values in entries if values.dtype == object for record in values for text in np.ravel(record)]
    assert sum(map(len, texts)) <= table_cache.SMALL_TABLES_BYTES
