"""Many look at many runs: what TensorBoard is asked for is counted; bench/faults/load.py has the seconds."""

import threading
import time

import numpy as np
import pytest
from scripts.testbed.hostile import Provider, Tab, good

from tensorboard_plugin_tapescope.data import table_cache
from tensorboard_plugin_tapescope.figures.encoding import decode

LOOK = ("step", "status", "findings", "variables", "layers")


class Counted(Provider):
    """A slow provider that notes what it was asked: the records of each read, and their tags."""

    def __init__(self, runs):
        super().__init__(runs)
        self.lists, self.reads = 0, []

    def list_tensors(self, ctx=None, **asked):
        self.lists += 1
        time.sleep(0.05)
        return super().list_tensors(ctx, **asked)

    def read_tensors(self, ctx=None, *, downsample, run_tag_filter, **asked):
        read = super().read_tensors(ctx, downsample=downsample, run_tag_filter=run_tag_filter, **asked)
        self.reads.append(sum(len(data) for tags in read.values() for data in tags.values()))
        return read


def at(step, run):
    """The run with its last record again, as of a later (or earlier) step."""
    return {
        tag: series._replace(data=[*series.data, series.data[-1]._replace(step=step, wall_time=2e9 + step)])
        for tag, series in run.items()
    }


def ended(run):
    """The run with a last word."""
    status = run["tapescope/status"]
    text = np.array(b'{"state": "ended"}', object)
    return {**run, "tapescope/status": status._replace(data=[status.data[0]._replace(numpy=text)])}


@pytest.fixture
def tab(monkeypatch):
    """Six runs of 6 steps, two of which train, and a listing for every request."""
    monkeypatch.setattr(table_cache, "LISTING_SECONDS", 0.0)
    runs = {f"run {i}": good() if i >= 4 else ended(good()) for i in range(6)}
    made = Tab(runs, Counted)
    made.runs = runs
    return made


def test_who_asks_at_the_same_time_shares_one_listing_and_one_read(tab, monkeypatch):
    monkeypatch.setattr(table_cache, "LISTING_SECONDS", 60.0)
    answers, ready = [], threading.Barrier(8)

    def ask():
        ready.wait()
        answers.append(tab.get("runs").data)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == 1
    assert tab.provider.lists == 1
    assert tab.provider.reads == [6 * 6, 6 * len(LOOK)]  # all records of `step`, the last of the rest


def test_a_poll_reads_the_last_records_of_the_runs_that_have_news_and_no_others(tab):
    tab.get("runs")
    tab.provider.reads.clear()
    for step in (7, 9, 30):  # in between others may have come
        tab.runs["run 4"] = at(step, tab.runs["run 4"])
        rows = {row["name"]: row for row in tab.get("runs").json["runs"]}
        assert rows["run 4"]["step"] == step
    assert len(rows["run 4"]["losses"]) == 6 + 3
    assert len(rows["run 5"]["losses"]) == 6
    assert tab.provider.reads == [len(LOOK)] * 3
    tab.get("runs")
    assert tab.provider.reads == [len(LOOK)] * 3


def test_a_run_that_went_back_is_read_whole(tab):
    tab.get("runs")
    before = tab.runs["run 4"]
    tab.runs["run 4"] = {tag: s._replace(data=s.data[:3]) for tag, s in before.items()}
    rows = {row["name"]: row for row in tab.get("runs").json["runs"]}
    assert rows["run 4"]["losses"] == rows["run 5"]["losses"][:3]


def test_what_is_said_of_a_run_that_has_ended_is_said_anew_when_it_goes_on(tab):
    first = {row["name"]: row for row in tab.get("runs").json["runs"]}
    tab.runs["run 0"] = at(8, {**tab.runs["run 0"], "tapescope/status": tab.runs["run 5"]["tapescope/status"]})
    second = {row["name"]: row for row in tab.get("runs").json["runs"]}
    assert (first["run 0"]["state"], first["run 0"]["step"]) == ("ended", 5)
    assert (second["run 0"]["state"], second["run 0"]["step"]) == ("training", 8)
    assert second["run 1"] == first["run 1"]


def test_while_a_run_writes_its_tables_grow_by_the_last_record_until_it_is_time_to_read_them_whole(tab, monkeypatch):
    def view(**asked):
        answer = tab.get("view", run="run 4", **asked).json
        (trace,) = answer["panels"][0]["figure"]["data"]
        return decode(trace["x"]).tolist(), answer.get("whole_until")

    monkeypatch.setattr(table_cache, "READ_TIME_SHARE", 1e-9)  # not before the end of this test
    assert view() == ([0, 1, 2, 3, 4, 5], None)
    tab.provider.reads.clear()
    for step in (7, 9, 11, 12):  # all of them between two looks
        tab.runs["run 4"] = at(step, tab.runs["run 4"])
    assert view() == ([0, 1, 2, 3, 4, 5, 12], 5)
    tab.runs["run 4"] = at(20, tab.runs["run 4"])
    assert view(since=5) == ([5, 12, 20], 5)
    assert view(first=12) == ([12, 20], 5)
    assert tab.provider.reads == [1, 1]
    rows = tab.get("csv", run="run 4").text.splitlines()[1:]
    whole = [0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 20]
    assert sorted({int(row.split(",")[0]) for row in rows}) == whole
    assert view() == (whole, None)
    tab.runs["run 4"] = at(21, tab.runs["run 4"])
    monkeypatch.setattr(table_cache, "READ_TIME_SHARE", 1e9)
    tab.get("csv", run="run 4")
    tab.runs["run 4"] = at(23, at(22, tab.runs["run 4"]))
    assert view() == ([*whole, 21, 22, 23], None)
