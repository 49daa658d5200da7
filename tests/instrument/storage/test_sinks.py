"""Sinks: what they get, that they delay nothing, and the real tools, offline, read back by their own readers."""

import importlib.util
import json
import math
import time

import numpy as np
import pytest
from scripts.testbed.records import eager_steps
from scripts.testbed.sinks import import_trackio
from scripts.testbed.webhooks import webhook

import tapescope
from tapescope.storage import sinks
from tapescope.storage.resume import Resume


class Kept:
    """A sink that keeps its calls."""

    def __init__(self):
        self.calls = []

    def start(self, run, about):
        self.calls.append(("start", run, about))

    def scalars(self, step, scalars):
        self.calls.append(("scalars", step, scalars))

    def finding(self, finding):
        self.calls.append(("finding", finding))

    def end(self, reason):
        self.calls.append(("end", reason))


class Broken(Kept):
    """A sink that raises."""

    def scalars(self, step, scalars):
        raise RuntimeError("no network")


class Slow(Kept):
    """A sink that never comes back."""

    def scalars(self, step, scalars):
        time.sleep(3600)


def record(logdir, *used, steps=3, **options):
    probe, step = eager_steps(poisoned_at=2)
    with tapescope.Recorder(logdir, probe, sinks=used, **options) as recorder:
        for n in range(steps):
            recorder.write(n, step(n), {"loss": 1.0 / (n + 1), "accuracy": 0.5})
    return recorder


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    sink = Kept()
    record(tmp_path_factory.mktemp("kept"), sink)
    return sink.calls


def test_a_run_begins_and_ends(calls):
    assert calls[0][0] == "start"
    assert calls[0][2]["state"] == "training"
    assert calls[-1] == ("end", "completed")


def test_each_record_has_at_most_twenty_finite_numbers(calls):
    records = [call[2] for call in calls if call[0] == "scalars"]
    assert len(records) == 3
    assert all(len(numbers) <= sinks.MAX_SCALARS for numbers in records)
    assert all(math.isfinite(value) for numbers in records for value in numbers.values())


def test_records_have_norms_findings_and_the_programs_scalars(calls):
    numbers = next(call[2] for call in calls if call[0] == "scalars")
    assert {"loss", "accuracy", "gradient_norm_global", "delta_norm_min", "findings_error"} <= numbers.keys()


def test_findings_come_with_advice(calls):
    found = [call[1] for call in calls if call[0] == "finding"]
    assert "non_finite" in [finding["rule"] for finding in found]
    assert all(finding["advice"] for finding in found)


class Painter(Kept):
    """A sink that takes pictures."""

    def picture(self, step, heatmap):
        self.calls.append(("picture", step, heatmap))


def test_a_sink_that_takes_pictures_gets_one_after_16_records_and_at_the_end(tmp_path):
    painter, other = Painter(), Kept()
    record(tmp_path, painter, other, steps=18)
    pictures = [(call[1], call[2].values.shape) for call in painter.calls if call[0] == "picture"]
    assert pictures == [(15, (16, 2)), (17, (18, 2))]
    assert painter.calls[-1][0] == "end"
    assert "picture" not in [call[0] for call in other.calls]


def test_many_scalars_are_cut_and_ours_come_first():
    numbers = sinks.choose_scalars({f"mine_{n}": 1.0 for n in range(50)}, {"delta_norm": np.ones(3)}, [])
    assert len(numbers) == sinks.MAX_SCALARS
    assert "delta_norm_min" in numbers


def test_the_norm_of_the_whole_gradient_is_that_of_the_scalars_tab():
    norms = {"gradient_norm": np.array([3.0, np.nan, 4.0])}
    assert sinks.choose_scalars({}, norms, [])["gradient_norm_global"] == 5.0
    assert "gradient_norm_global" not in sinks.choose_scalars({}, {"gradient_norm": np.array([np.nan])}, [])


def test_a_sink_that_raises_costs_no_record_and_is_said(tmp_path, caplog):
    assert record(tmp_path, Broken()).lost == 0
    assert "the sink Broken failed: RuntimeError: no network" in caplog.text
    assert "the sink Broken did not take 3 records or findings" in caplog.text
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]


class NeverBegins(Kept):
    """A sink that cannot begin a run."""

    def start(self, run, about):
        raise RuntimeError("no network")


def test_a_sink_that_cannot_begin_gets_nothing_more(tmp_path, caplog):
    sink = NeverBegins()
    record(tmp_path, sink)
    assert not sink.calls
    assert "the sink NeverBegins did not take" in caplog.text


def test_a_run_that_goes_on_does_not_send_old_findings_again(tmp_path):
    probe, step = eager_steps(poisoned_at=2)
    for resume in (None, Resume(3, {})):
        sink = Kept()
        with tapescope.Recorder(tmp_path, probe, resume=resume, sinks=[sink]) as recorder:
            for n in range(3) if resume is None else range(3, 5):
                recorder.write(n, step(n), {"loss": 1.0})
        found = [call[1]["rule"] for call in sink.calls if call[0] == "finding"]
        assert ("non_finite" in found) == (resume is None)


def test_a_sink_that_hangs_delays_neither_records_nor_the_end_for_long(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sinks, "END_SECONDS", 0.2)
    other = Kept()
    began = time.monotonic()
    record(tmp_path, Slow(), other)
    assert time.monotonic() - began < 5
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]
    assert other.calls[-1][0] == "end"
    assert "the sink Slow did not take" in caplog.text


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(sinks, "MAX_WAITING", 5)
    thread = sinks.SinkThread("slow", Slow)
    for n in range(50):
        thread.put("scalars", n, {})
    assert len(thread._waiting) <= 5
    assert thread.left_out > 30


@pytest.mark.parametrize(
    ("used", "message"),
    [
        ("wandb", r"`sinks` must be a list; got 'wandb': write sinks=\['wandb'\]"),
        (["tensorboard"], "`sinks` must hold wandb, mlflow, trackio, webhook:URL"),
        (["webhook:ftp://x"], "with http:// or https://"),
        ([3], "or objects with the methods start, scalars, finding and end; got int"),
    ],
)
def test_a_wrong_sink_is_refused(tmp_path, used, message):
    probe, _ = eager_steps()
    with pytest.raises(ValueError, match=message):
        tapescope.Recorder(tmp_path, probe, sinks=used)


def test_a_missing_package_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    probe, _ = eager_steps()
    with pytest.raises(ValueError, match=r"pip install 'tapescope\[mlflow\]'"):
        tapescope.Recorder(tmp_path, probe, sinks=["mlflow"])


@pytest.fixture
def server():
    with webhook() as found:
        yield found


def test_a_webhook_gets_json(tmp_path, server):
    url, bodies = server
    record(tmp_path, f"webhook:{url}")
    assert [body["event"] for body in bodies][:2] == ["start", "scalars"]
    assert bodies[-1]["event"] == "end"
    assert {body["run"] for body in bodies} == {str(tmp_path)}
    assert [body["step"] for body in bodies if body["event"] == "scalars"] == [0, 1, 2]
    assert any(body["finding"]["rule"] == "non_finite" for body in bodies if body["event"] == "finding")


def test_a_server_that_is_not_there_costs_no_record(tmp_path, caplog):
    assert record(tmp_path, "webhook:http://127.0.0.1:9/").lost == 0
    assert "the sink webhook failed: URLError" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_reads_the_run_back(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setattr(sinks, "END_SECONDS", 120)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    record(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient((tmp_path / "store").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tapescope").experiment_id])
    history = client.get_metric_history(run.info.run_id, "tapescope/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert run.info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(run.info.run_id, "tapescope")] == [
        "tapescope/delta_norm_00000002.png"
    ]
    assert json.loads(run.data.tags["tapescope.non_finite"])["advice"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_writes_the_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setattr(sinks, "END_SECONDS", 120)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    record(tmp_path / "run", "wandb")
    (path,) = (tmp_path / "run").rglob("*.wandb")
    # wandb has no reader of this file in Python any more; the names of what was logged are plain text in it. A process
    # of its own writes the file.
    wanted = (b"tapescope/loss", b"tapescope/gradient_norm_global", b"non_finite")
    deadline = time.monotonic() + 60
    while (absent := [name for name in wanted if name not in path.read_bytes()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert absent == []
    (picture,) = (tmp_path / "run").rglob("*.png")
    assert picture.name.startswith("delta_norm_2_")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trackio_reads_the_run_back(tmp_path, monkeypatch):
    import_trackio(tmp_path / "store", monkeypatch)
    monkeypatch.setattr(sinks, "END_SECONDS", 120)
    record(tmp_path / "run", "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("tapescope")
    losses = [row["tapescope/loss"] for row in SQLiteStorage.get_logs("tapescope", name) if "tapescope/loss" in row]
    assert losses[:2] == [1.0, 0.5]
    assert len(list((tmp_path / "store").rglob("*.png"))) == 1
