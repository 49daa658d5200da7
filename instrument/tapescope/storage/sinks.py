"""Sinks: other tools that get a few numbers of each record, and the findings, while a run is recorded.

The recorder's thread hands each of them over to a thread of the sink's own, through a bounded queue, so that a slow
server delays neither the training nor the records. What does not fit, or fails, is counted.
"""

import importlib
import importlib.util
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging

from tapescope.rules.finding import Finding
from tapescope.storage.printable import describe_error
from tensorboard_plugin_tapescope.series import spikes
from tensorboard_plugin_tapescope.series.findings import count_severities

MAX_SCALARS = 20
"""Numbers that a sink gets of a record."""
MAX_WAITING = 1000
"""Calls that wait for a sink; the oldest is left out first."""
END_SECONDS = 10.0
"""Longest wait for a sink at the end of the run."""
NAMES = ("wandb", "mlflow", "trackio", "webhook:URL")


@runtime_checkable
class Sink(Protocol):
    """A tool that shows runs. All methods are called by one thread, in this order; what they raise is counted.

    A sink may also have `picture(step, heatmap)`, which takes a `Heatmap` after 16, 32, 64, ... records and at the end.
    """

    def start(self, run: str, about: Mapping[str, Any]) -> None:
        """Begin a run: its directory, and the fields of its status."""
        ...

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take at most MAX_SCALARS finite numbers of a step."""
        ...

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Take a finding that is new or has another severity, with the fields of `tapescope.Finding`."""
        ...

    def end(self, reason: str) -> None:
        """End the run."""
        ...


class SinkThread:
    """The thread of one sink, and what waits for it.

    Args:
      name: of the sink, for messages.
      make: returns the sink; called in its thread, because importing it may take seconds.
    """

    def __init__(self, name: str, make: Callable[[], Sink]):
        self.failed = 0
        """Number of calls that have failed."""
        self.left_out = 0
        """Number of calls that were left out because the sink was too slow."""
        self._name = name
        self._make = make
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"tapescope-sink-{name}", daemon=True)
        self._thread.start()

    def put(self, method: str, *arguments: Any) -> None:
        """Queue a call of the sink, without waiting."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                del self._waiting[1]  # not the first, which begins the run
                self.left_out += 1
            self._waiting.append((method, arguments))
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait until the sink has ended the run, at most for `seconds`, and log what it did not take."""
        self._thread.join(max(0.0, seconds))
        missing = self.failed + self.left_out + len(self._waiting)
        if missing:
            logging.warning("tapescope: the sink %s did not take %d records or findings", self._name, missing)

    def _run(self) -> None:
        sink: Sink | None = None
        has_started = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                method, arguments = self._waiting.popleft()
            try:
                sink = sink or self._make()
                if not has_started and method != "start":  # a tool that could not begin a run takes nothing of it
                    self.failed += 1
                elif method != "picture" or hasattr(sink, method):
                    getattr(sink, method)(*arguments)
                    has_started = True
            except Exception as error:  # the boundary of a tool: the run is recorded all the same
                self.failed += 1
                if self.failed == 1:
                    logging.warning(
                        "tapescope: the sink %s failed: %s; later failures are counted",
                        self._name,
                        describe_error(error),
                    )
            if method == "end":
                return


def check_sinks(sinks: Sequence[str | Sink]) -> None:
    """Raise ValueError unless each is the name of a sink whose package is installed, or a sink."""
    if isinstance(sinks, str):
        raise ValueError(f"`sinks` must be a list; got {sinks!r}: write sinks=[{sinks!r}]")
    for sink in sinks:
        if not isinstance(sink, str):
            if not isinstance(sink, Sink):
                raise ValueError(
                    f"`sinks` must hold {', '.join(NAMES)}, or objects with the methods start, scalars, finding and "
                    f"end; got {type(sink).__name__}"
                )
        elif sink in NAMES[:3]:
            if importlib.util.find_spec(sink) is None:
                raise ValueError(f"the sink {sink} needs a package: pip install 'tapescope[{sink}]'")
        elif not sink.startswith(("webhook:http://", "webhook:https://")):
            raise ValueError(f"`sinks` must hold {', '.join(NAMES)}, with http:// or https://; got {sink!r}")


def start_sinks(sinks: Sequence[str | Sink], run: str, about: Mapping[str, Any]) -> list[SinkThread]:
    """Return a thread for each of the sinks, which begins the run."""
    threads = [_start(sink) for sink in sinks]
    for thread in threads:
        thread.put("start", run, dict(about))
    return threads


def _start(sink: str | Sink) -> SinkThread:
    if not isinstance(sink, str):
        return SinkThread(type(sink).__name__, lambda: sink)

    def make() -> Sink:
        # By name, because the services import this module.
        return importlib.import_module("tapescope.storage.sink_services").make(sink)

    return SinkThread(sink.partition(":")[0], make)


def join_all(threads: Sequence[SinkThread]) -> None:
    """Wait for the ends of all sinks, at most END_SECONDS."""
    deadline = time.monotonic() + END_SECONDS
    for thread in threads:
        thread.join(deadline - time.monotonic())


def choose_scalars(
    scalars: Mapping[str, float], columns: Mapping[str, np.ndarray], findings: Sequence[Finding]
) -> dict[str, float]:
    """Return at most MAX_SCALARS numbers of a record: extremes and sums over the layers, then the program's scalars.

    Args:
      scalars: what the program recorded with it.
      columns: of the record, by name; empty for a record of scalars only.
      findings: so far.
    """
    chosen: dict[str, float] = {"loss": float(scalars.get("loss", math.nan))}
    if columns:
        delta = _finite(columns, "delta_norm")
        positive = delta[delta > 0]
        chosen |= {
            "gradient_norm_global": float(spikes.total_norm(columns.get("gradient_norm", ()))),
            "update_ratio_min": _reduce(np.min, _finite(columns, "update_ratio")),
            "update_ratio_max": _reduce(np.max, _finite(columns, "update_ratio")),
            "delta_norm_min": _reduce(np.min, delta),
            "delta_norm_decades": _reduce(lambda d: np.log10(np.max(d) / np.min(d)), positive),
            "saturated_max": _reduce(np.max, _finite(columns, "saturated")),
            "units_dead": _reduce(np.sum, _finite(columns, "units_dead")),
            "units_dormant": _reduce(np.sum, _finite(columns, "units_dormant")),
            "gradient_nonfinite": _reduce(np.sum, _finite(columns, "gradient_nonfinite")),
            "noise_scale_total": _reduce(np.max, _finite(columns, "noise_scale_total")),
            **{f"findings_{name}": float(n) for name, n in count_severities(f.severity for f in findings).items()},
        }
    chosen |= {tag: float(value) for tag, value in scalars.items() if tag not in chosen}
    finite = [(tag, value) for tag, value in chosen.items() if math.isfinite(value)]
    return dict(finite[:MAX_SCALARS])


def _finite(columns: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    values = np.ravel(np.asarray(columns.get(name, np.zeros(0)), np.float64))
    return values[np.isfinite(values)]


def _reduce(reduction: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    return float(reduction(values)) if values.size else math.nan


def run_name(run: str) -> str:
    """Return the last two parts of a run's directory, which name it in a tool."""
    return "/".join(os.path.abspath(run).split(os.sep)[-2:])
