"""Reads and listings that the tab asks TensorBoard for, counted. bench/faults/load.py measures the times."""

import json
import threading
import time

import numpy as np
import pytest
from scripts.testbed import synthetic
from scripts.testbed.hostile import SMALL, Datum, Provider, Series, Tab, good

from tensorboard_plugin_tapescope.data import table_cache
from tensorboard_plugin_tapescope.data.table_cache import CachedTable, LruCache, count_bytes
from tensorboard_plugin_tapescope.figures.encoding import decode
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series.tables import Table

SUMMARY_FAMILIES = ("step", "status", "findings", "layers")
RECORDED = [0, 1, 2, 3, 4, 5]


class CountingProvider(Provider):
    """A slow provider that counts its listings, and the records of each read."""

    def __init__(self, runs):
        super().__init__(runs)
        self.lists = 0
        self.reads = []

    def list_tensors(self, ctx=None, **asked):
        self.lists += 1
        time.sleep(0.05)
        return super().list_tensors(ctx, **asked)

    def read_tensors(self, ctx=None, *, downsample, run_tag_filter, **asked):
        read = super().read_tensors(ctx, downsample=downsample, run_tag_filter=run_tag_filter, **asked)
        self.reads.append(sum(len(data) for tags in read.values() for data in tags.values()))
        return read


def with_record(step, run):
    """Return the run with its last record repeated at a later or earlier step."""
    return {
        tag: series._replace(data=[*series.data, series.data[-1]._replace(step=step, wall_time=2e9 + step)])
        for tag, series in run.items()
    }


def ended(run):
    """Return the run with the status `ended`."""
    status = run["tapescope/status"]
    text = np.array(b'{"state": "ended"}', object)
    return {**run, "tapescope/status": status._replace(data=[status.data[0]._replace(numpy=text)])}


@pytest.fixture
def tab(monkeypatch):
    """Return the tab over six runs of 6 steps, two of which train, with a listing for every request."""
    monkeypatch.setattr(table_cache, "LISTING_SECONDS", 0.0)
    runs = {f"run {i}": good() if i >= 4 else ended(good()) for i in range(6)}
    made = Tab(runs, CountingProvider)
    made.runs = runs
    return made


def summaries(tab) -> dict[str, dict]:
    return {row["name"]: row for row in tab.get("runs").json["runs"]}


@pytest.fixture
def concurrent_answers(tab, monkeypatch) -> list[bytes]:
    """Return what eight threads get that ask for the runs at the same time."""
    monkeypatch.setattr(table_cache, "LISTING_SECONDS", 60.0)
    answers = []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        answers.append(tab.get("runs").data)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_concurrent_requests_get_one_answer(concurrent_answers):
    assert len(concurrent_answers) == 8
    assert len(set(concurrent_answers)) == 1


@pytest.mark.usefixtures("concurrent_answers")
def test_concurrent_requests_share_one_listing(tab):
    assert tab.provider.lists == 1


@pytest.mark.usefixtures("concurrent_answers")
def test_concurrent_requests_share_one_read(tab):
    # All records of `step`, and the last of the others.
    assert tab.provider.reads == [6 * 6, 6 * len(SUMMARY_FAMILIES)]


def test_a_poll_reads_only_the_last_records_of_changed_runs(tab):
    tab.get("runs")
    tab.provider.reads.clear()
    tab.runs["run 4"] = with_record(7, tab.runs["run 4"])
    assert summaries(tab)["run 4"]["step"] == 7
    assert tab.provider.reads == [len(SUMMARY_FAMILIES)]


def test_a_poll_without_changes_reads_nothing(tab):
    tab.get("runs")
    tab.provider.reads.clear()
    tab.get("runs")
    assert tab.provider.reads == []


def test_a_sparkline_grows_by_the_last_record_of_each_poll(tab):
    tab.get("runs")
    for step in (7, 9, 30):
        tab.runs["run 4"] = with_record(step, tab.runs["run 4"])
        rows = summaries(tab)
    assert len(rows["run 4"]["losses"]) == 6 + 3
    assert len(rows["run 5"]["losses"]) == 6


def test_a_run_that_restarted_from_an_earlier_step_is_read_whole(tab):
    tab.get("runs")
    before = tab.runs["run 4"]
    tab.runs["run 4"] = {tag: series._replace(data=series.data[:3]) for tag, series in before.items()}
    rows = summaries(tab)
    assert rows["run 4"]["losses"] == rows["run 5"]["losses"][:3]


def test_a_run_that_goes_on_after_its_end_is_summarized_again(tab):
    assert summaries(tab)["run 0"]["state"] == "ended"
    tab.runs["run 0"] = with_record(8, {**tab.runs["run 0"], "tapescope/status": tab.runs["run 5"]["tapescope/status"]})
    row = summaries(tab)["run 0"]
    assert (row["state"], row["step"]) == ("training", 8)


def test_other_runs_keep_their_summary(tab):
    before = summaries(tab)["run 1"]
    tab.runs["run 0"] = with_record(8, tab.runs["run 0"])
    assert summaries(tab)["run 1"] == before


def flow_steps(tab, **asked) -> tuple[list[float], int | None]:
    """Return the steps of the view Flow, and the step behind which some may be missing."""
    answer = tab.get("view", run="run 4", **asked).json
    (trace,) = answer["panels"][0]["figure"]["data"]
    return decode(trace["x"]).tolist(), answer.get("whole_until")


@pytest.fixture
def live_tab(tab, monkeypatch):
    """Return the tab whose run 4 has written 4 records since its tables were read, which is not due again soon."""
    monkeypatch.setattr(table_cache, "READ_TIME_SHARE", 1e-9)
    assert flow_steps(tab) == (RECORDED, None)
    tab.provider.reads.clear()
    for step in (7, 9, 11, 12):
        tab.runs["run 4"] = with_record(step, tab.runs["run 4"])
    return tab


def test_a_live_table_grows_by_the_newest_record(live_tab):
    assert flow_steps(live_tab) == ([*RECORDED, 12], 5)
    assert live_tab.provider.reads == [1, 1]  # of the layers, and of the steps for the marked stretches


def test_a_live_table_keeps_the_step_behind_which_records_are_missing(live_tab):
    flow_steps(live_tab)
    live_tab.runs["run 4"] = with_record(20, live_tab.runs["run 4"])
    assert flow_steps(live_tab) == ([*RECORDED, 12, 20], 5)


def test_an_unchanged_live_table_is_not_read_again(live_tab):
    flow_steps(live_tab)
    flow_steps(live_tab, first=2)
    assert live_tab.provider.reads == [1, 1]


def test_the_newer_part_of_a_live_table_can_be_asked_for(live_tab):
    assert flow_steps(live_tab, since=5) == ([5, 12], 5)


def test_the_csv_of_a_live_run_has_every_record(live_tab):
    flow_steps(live_tab)
    lines = live_tab.get("csv", run="run 4").text.splitlines()[1:]
    assert sorted({int(line.split(",")[0]) for line in lines}) == [*RECORDED, 7, 9, 11, 12]


def test_a_live_table_is_complete_after_a_whole_read(live_tab):
    flow_steps(live_tab)
    live_tab.get("csv", run="run 4")
    assert flow_steps(live_tab) == ([*RECORDED, 7, 9, 11, 12], None)


def test_a_live_table_is_read_whole_when_it_is_due(tab, monkeypatch):
    monkeypatch.setattr(table_cache, "READ_TIME_SHARE", 1e9)
    flow_steps(tab)
    for step in (7, 9):
        tab.runs["run 4"] = with_record(step, tab.runs["run 4"])
    assert flow_steps(tab) == ([*RECORDED, 7, 9], None)


def entry(size: int) -> CachedTable:
    """Return a cached table of so many bytes."""
    return CachedTable(None, Table(Family("step"), np.zeros(0), np.zeros(0), np.zeros(size, np.uint8)))


def test_the_least_recently_used_table_is_dropped():
    cache = LruCache(2 * count_bytes(entry(10).table))
    cache.put(("a",), entry(10))
    cache.put(("b",), entry(10))
    cache.get(("a",))
    cache.put(("c",), entry(10))
    assert [name for name in "abc" if cache.get((name,))] == ["a", "c"]


def test_a_table_larger_than_the_limit_is_kept_alone():
    cache = LruCache(2 * count_bytes(entry(10).table))
    cache.put(("a",), entry(10))
    cache.put(("b",), entry(5000))
    assert [name for name in "ab" if cache.get((name,))] == ["b"]


def test_a_table_that_nobody_asks_for_is_dropped(monkeypatch):
    size = count_bytes(entry(10).table)
    cache = LruCache(10 * size, idle_bytes=size)
    cache.put(("a",), entry(10))
    cache.put(("b",), entry(10))
    assert cache.bytes == 2 * size  # both are in use
    monkeypatch.setattr(table_cache, "IDLE_SECONDS", 0.0)
    cache.drop()
    assert cache.bytes == size
    assert cache.get(("a",)) is None


@pytest.mark.parametrize("column", ["gradient_norm", "saturated", "dead_share"])
def test_compare_keeps_one_column_of_each_run(tab, column):
    tab.checked("view", view="compare", run=["run 0", "run 1"], column=column)
    kept = tab.plugin._cache.whole_tables._entries
    grids = {key: entry.table for key, entry in kept.items() if key[2] in ("variables", "layers")}
    assert {key[1] for key in grids} == {"run 0", "run 1"}
    assert all(table.values.shape[1] == 1 for table in grids.values())


def test_a_live_column_grows_by_the_newest_record(live_tab):
    asked = {"view": "compare", "run": ["run 4", "run 5"]}
    live_tab.checked("view", **asked)
    live_tab.runs["run 4"] = with_record(20, live_tab.runs["run 4"])
    reads = len(live_tab.provider.reads)
    panels = {panel["key"]: panel for panel in live_tab.checked("view", **asked).json["panels"]}
    assert decode(panels["run run 4"]["figure"]["data"][0]["x"])[-2:].tolist() == [12, 20]
    assert max(live_tab.provider.reads[reads:]) <= 1


def grown(steps=6):
    """Return a run whose last layer was added after the first record."""
    wide = SMALL._replace(layers=("first", "second", "added"))
    narrow = wide._replace(layers=("first", "second"))
    before = good(narrow, steps=1)
    after = good(wide, steps)
    run = {
        tag: series._replace(data=[*series.data, *after[tag].data[1:]]) if tag in after else series
        for tag, series in before.items()
    }
    details = synthetic.families(wide)["layers"].details
    rows = {
        "variables": wide.variable_names(),
        "layers": wide.layers,
        "layer_variables": details["variables"],
        **{key: details[key] for key in ("units", "activations", "sources", "skipped")},
    }
    family = Family("rows", schema=2)
    text = np.array(json.dumps(rows).encode(), object)
    return {**run, family.tag: Series(family.metadata().plugin_data.content, [Datum(1, 1e9 + 1, text)])}


def test_the_tab_shows_layers_that_were_added():
    tab = Tab({"grown": grown()})
    answer = tab.checked("view", view="flow", run="grown")
    assert answer.status_code == 200
    assert b"added" in answer.data


def test_the_tab_shows_a_layer_that_was_added():
    tab = Tab({"grown": grown()})
    answer = tab.checked("view", view="layer", run="grown", layer="added")
    assert answer.status_code == 200
