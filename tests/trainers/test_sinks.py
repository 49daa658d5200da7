"""`tapescope-train --sink`: what a webhook and the real tools get of a training."""

import importlib

import pytest
from scripts.testbed.sinks import import_trackio
from scripts.testbed.webhooks import webhook

import tapescope
from tapescope.storage import sinks
from tests.trainers import trainings

NETWORK = ("--preset=mlp", "--width=8", "--steps=20", "--measure_every=1", "--nohistograms")


@pytest.mark.slow
def test_a_webhook_gets_every_record_of_a_training(tmp_path):
    with webhook() as (url, bodies):
        trainings.run(tmp_path, *NETWORK, f"--sink=webhook:{url}")
    run = tapescope.Run(tmp_path)
    measured = [body for body in bodies if body["event"] == "scalars" and "delta_norm_min" in body["scalars"]]
    assert [body["step"] for body in measured] == run.steps.tolist()
    assert len(measured) == 20
    assert [body["event"] for body in (bodies[0], bodies[-1])] == ["start", "end"]


def mlflow_losses(directory):
    client = importlib.import_module("mlflow").MlflowClient((directory / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tapescope").experiment_id])
    return [point.value for point in client.get_metric_history(run.info.run_id, "tapescope/loss")]


def trackio_losses(directory):
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    (name,) = storage.get_runs("tapescope")
    return [row["tapescope/loss"] for row in storage.get_logs("tapescope", name) if "tapescope/loss" in row]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("tool", "losses"), [("mlflow", mlflow_losses), ("trackio", trackio_losses)])
def test_a_tool_reads_the_losses_of_a_training_back(tool, losses, tmp_path, monkeypatch):
    if tool == "trackio":
        import_trackio(tmp_path / "trackio", monkeypatch)
    pytest.importorskip(tool, reason=f"{tool} is not installed")
    monkeypatch.setattr(sinks, "END_SECONDS", 120)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trainings.run(tmp_path / "run", *NETWORK, f"--sink={tool}")
    read = losses(tmp_path)
    assert len(read) >= 20
    assert read[:20] == pytest.approx(tapescope.Run(tmp_path / "run")["loss"].tolist(), rel=1e-5)
