"""The sinks by name. Each tool is imported when its sink is made, and configured by its own environment variables."""

import importlib
import json
import os
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

from tapescope.storage.heatmap import Heatmap
from tapescope.storage.printable import describe, to_json
from tapescope.storage.sinks import Sink, run_name

WEBHOOK_SECONDS = 10.0
"""Longest wait for a server's answer."""
PROJECT = "tapescope"
"""Project or experiment of a run, where the tool's own environment variable names no other."""


def make(name: str) -> Sink:
    """Return the sink of a name that `check_sinks` accepts."""
    if name.startswith("webhook:"):
        return Webhook(name.removeprefix("webhook:"))
    return {"wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}[name]()


def _draw(heatmap: Heatmap) -> Any:
    """Return a picture. Drawing is above storage, and is loaded by name when a picture is due."""
    return importlib.import_module("tapescope.analysis.picture").draw_heatmap(heatmap)


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a status as numbers and text."""
    return json.loads(json.dumps(dict(about), default=describe))


class Webhook:
    """A POST request with a JSON object for each call, whose field `event` is the name of the method."""

    def __init__(self, url: str):
        self._url = url
        self._run = ""

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Post the beginning of a run."""
        self._run = run
        self._post("start", about=_plain(about))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Post the numbers of a step."""
        self._post("scalars", step=step, scalars=dict(scalars))

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Post a finding."""
        self._post("finding", finding=dict(finding))

    def end(self, reason: str) -> None:
        """Post the end of the run."""
        self._post("end", reason=reason)

    def _post(self, event: str, **fields: Any) -> None:
        body = to_json({"event": event, "run": self._run, "time": time.time(), **fields}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
            pass


class WeightsAndBiases:
    """A run of Weights & Biases, with findings as alerts. `WANDB_MODE=offline` keeps it on this machine."""

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Begin a run."""
        wandb: Any = importlib.import_module("wandb")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._levels = {"error": wandb.AlertLevel.ERROR, "warning": wandb.AlertLevel.WARN}
        self._run = wandb.init(project=project, name=run_name(run), dir=run, config=_plain(about), reinit="create_new")

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log({f"tapescope/{tag}": value for tag, value in scalars.items()}, step=step)

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Send an alert, and keep the finding in the summary."""
        self._run.summary[f"tapescope/{finding['rule']}"] = f"{finding['severity']}: {finding['message']}"
        if finding["severity"] in self._levels:
            text = f"Step {finding['step']}: {finding['message']}. {finding['advice']}"
            self._run.alert(title=finding["rule"], text=text, level=self._levels[finding["severity"]])

    def picture(self, step: int, heatmap: Heatmap) -> None:
        """Log a picture."""
        image = importlib.import_module("wandb").Image(_draw(heatmap))
        self._run.log({f"tapescope/{heatmap.column}": image}, step=step)

    def end(self, reason: str) -> None:
        """End the run."""
        self._run.summary["tapescope/reason"] = reason
        self._run.finish()


class MLflow:
    """A run of MLflow, with findings as tags. `MLFLOW_TRACKING_URI` says where it is kept."""

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Begin a run."""
        self._mlflow: Any = importlib.import_module("mlflow")
        self._client: Any = self._mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(number, run_name=run_name(run)).info.run_id
        for field, value in _plain(about).items():
            self._client.log_param(self._id, field, str(value)[:500])

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a step in one request."""
        now = int(time.time() * 1000)
        make = self._mlflow.entities.Metric
        self._client.log_batch(self._id, [make(f"tapescope/{tag}", value, now, step) for tag, value in scalars.items()])

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Set a tag."""
        self._client.set_tag(self._id, f"tapescope.{finding['rule']}", to_json(dict(finding))[:5000])

    def picture(self, step: int, heatmap: Heatmap) -> None:
        """Log a picture as an artifact."""
        self._client.log_image(self._id, _draw(heatmap), f"tapescope/{heatmap.column}_{step:08d}.png")

    def end(self, reason: str) -> None:
        """End the run."""
        self._client.set_tag(self._id, "tapescope.reason", reason[:5000])
        self._client.set_terminated(self._id)


class Trackio:
    """A run of trackio, which keeps it on this machine unless a space is configured."""

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Begin a run."""
        trackio: Any = importlib.import_module("trackio")
        self._run = trackio.init(project=PROJECT, name=run_name(run), config=_plain(about))

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a step."""
        self._run.log({f"tapescope/{tag}": value for tag, value in scalars.items()}, step=step)

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Log a finding as text."""
        self._run.log({f"tapescope/{finding['rule']}": f"{finding['severity']}: {finding['message']}"})

    def picture(self, step: int, heatmap: Heatmap) -> None:
        """Log a picture."""
        image = importlib.import_module("trackio").Image(_draw(heatmap))
        self._run.log({f"tapescope/{heatmap.column}": image}, step=step)

    def end(self, reason: str) -> None:
        """End the run."""
        self._run.finish()
