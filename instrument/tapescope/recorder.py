"""Recorder: takes what a Probe reads from the training to the disk, and never stops the training for it.

`write` hands a Reading to a background thread and returns. What cannot be written is counted, and said once; what comes
faster than the disk takes it is thinned out, counted, and said; both go on as before as soon as they can.
"""

import atexit
import math
import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.probe import Probe
from tapescope.rules import finding
from tapescope.schedule import Schedule
from tapescope.statistics import replicas
from tapescope.statistics.reading import STEP_COLUMNS, Reading
from tapescope.storage import summaries
from tapescope.storage.background import Job, Writer
from tapescope.storage.claim import Claim
from tapescope.storage.resume import Resume
from tapescope.storage.run_writer import Scribe
from tapescope.storage.summaries import Step

PROMPT_SECONDS = 1.0
"""The longest that the first record with a NaN or Inf keeps the training waiting."""
_SCALAR_BYTES = 1000
_NONFINITE = [STEP_COLUMNS.index(f"first_nonfinite_{way}") for way in ("forward", "backward")]


class Recorder:
    """Writes what a Probe reads into the event file of one run; a context manager.

    Args:
      logdir: the run's directory, made if it does not exist.
      probe: whose readings these are.
      when: the schedule that decides; where given, each record says what measuring cost.
      about: what the run is, for its status: anything that JSON can hold.
      resume: where a run goes on that was recorded here before. The records of that step and later ones are removed.
      strict_io: where a record cannot be written, stop the training: the next call raises OSError.

    Where several workers train a model together, each may have a Recorder, made once the model is built: the chief's
    alone writes. What it is given is of all replicas already.

    Any thread may write, in the order of the steps. A process that was forked from this one may not.

    Raises OSError, at once, where the directory cannot be written, or another Recorder writes there.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        probe: Probe,
        when: Schedule | None = None,
        about: Mapping[str, Any] | None = None,
        resume: Resume | None = None,
        *,
        strict_io: bool = False,
    ):
        self.logdir: str = os.fspath(logdir)
        self._probe = probe
        self._has_read, self._used_before = False, probe._used
        self._when, self._strict = when, strict_io
        self._bad, self._closed = False, False
        self._reading_bytes = 0
        self._process, self._closing = os.getpid(), threading.Lock()
        self._writer: Writer | None = None
        """None in all workers but the chief."""
        if not replicas.speaks_for_all(probe._selection.variables()):
            return
        self._claim = Claim(self.logdir)
        try:
            self._writer = Writer(Scribe(self.logdir, self._claim, probe, about or {}, resume))
        except BaseException:
            self._claim.release()
            raise
        atexit.register(self._at_exit)

    @property
    def findings(self) -> tuple[finding.Finding, ...]:
        """What the rules have found so far; a record or two behind the training."""
        return self._writer.scribe.findings if self._writer else ()

    @property
    def lost(self) -> int:
        """Records that could not be written."""
        return self._writer.lost if self._writer else 0

    @property
    def left_out(self) -> int:
        """Records that were left out because the disk was slower than they came."""
        return self._writer.backlog.left_out if self._writer else 0

    def write(
        self,
        step: int,
        reading: Reading | None,
        scalars: Mapping[str, Any] | None = None,
        examples: float | None = None,
    ) -> None:
        """Records one step; returns without waiting for the disk.

        Only where a reading is the first with a NaN or Inf, and on the processor, it waits up to PROMPT_SECONDS until
        that is on disk: what happens to a program next is then often its end.

        Args:
          step: its number; numbers rise over the whole training.
          reading: of the step; under a strategy, what `strategy.run` returned. None records the scalars only.
          scalars: by their tag, float or a tensor with one element; "loss" is also shown in the Gradients tab.
          examples: trained on so far. By default (step + 1) times the examples of this step.
        """
        self._check(reading)
        numbers = dict(scalars or {})
        seen = math.nan if examples is None else float(examples)
        about = Step(int(step), examples_seen=seen)
        size, first_bad = _SCALAR_BYTES, False
        if reading is not None:
            reading = Reading(*map(summaries.first_replica, reading))
            self._reading_bytes = self._reading_bytes or sum(_bytes(part) for part in reading)
            bad = _is_known_bad(reading)
            first_bad, self._bad = bad and not self._bad, bad
            size = 0 if first_bad else size + self._reading_bytes
            if self._when is not None:
                cost = self._when.cost
                about = about._replace(step_ms=cost.step_ms, measure_ms=cost.measure_ms)
                if not math.isnan(cost.overhead_pct):
                    numbers["measure_overhead_pct"] = cost.overhead_pct
                    numbers["measure_overhead_error_pct"] = cost.overhead_error_pct
        wall_time = time.time()
        self._put(lambda scribe: scribe.write(about, reading, numbers, wall_time), size)
        if first_bad:
            self._wait(PROMPT_SECONDS)

    def _check(self, reading: Any) -> None:
        if reading is None:
            return
        if not isinstance(reading, Reading):
            raise ValueError(
                f"`reading` ({type(reading).__name__}) must be what `tape.reading()` returned, of a tape that "
                "`probe.tape(measure)` made; a tf.GradientTape has none"
            )
        names, self._has_read = self._probe.names, True
        variables, layers = (summaries.first_replica(part).shape[-1] for part in reading[:2])
        if names is None or (variables, layers) != (len(names.variables), len(names.layers)):
            raise ValueError(
                f"`reading` ({variables} variables, {layers} layers) is not of the Probe that this Recorder was given: "
                "give each Probe a Recorder of its own"
            )

    def scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Records scalars of a step that is not measured, such as validation metrics."""
        self.write(step, None, scalars)

    def hparams(self, hparams: Mapping[str, Any]) -> None:
        """Records the run's hyperparameters for TensorBoard's HParams tab: bool, float, int or str by name."""
        known = (bool, int, float, str)
        plain = {name: value if isinstance(value, known) else str(value) for name, value in hparams.items()}
        self._put(lambda scribe: scribe.hparams(plain))

    def graph(self, graph: tf.Graph) -> None:
        """Records a graph for TensorBoard's Graphs tab, such as `step.get_concrete_function(...).graph`."""
        self._put(lambda scribe: scribe.graph(graph))

    def state(self) -> dict[str, np.ndarray]:
        """Waits until all that was handed over is on disk; then what a later Recorder needs to go on: see `Resume`."""
        state: dict[str, np.ndarray] = {}
        self._put(lambda scribe: state.update(scribe.state()))
        self._wait()
        return state

    def close(self, reason: str = "completed") -> None:
        """Writes what is queued and that the run has ended, and why; returns when it is on disk. Idempotent."""
        if self._writer is None or os.getpid() != self._process:
            return
        with self._closing:
            if not self._closed:
                used = self._probe._used and not self._used_before
                if used and not self._has_read and not self._probe.failure:
                    logging.warning(
                        "tapescope: steps were measured, and %s got no record: return `tape.reading()` from the step, "
                        "and give it to `recorder.write`",
                        self.logdir,
                    )
                self._closed = True
                self._writer.end(reason)
                atexit.unregister(self._at_exit)
            self._writer.join()
            self._claim.release()
        if self.lost:
            logging.error("tapescope: %d records of %s could not be written", self.lost, self.logdir)
        self._stop_if_strict()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self._strict = False  # the error that is under way says more
        self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else f"{kind.__name__}: {error}")

    def _put(self, job: Job, size: int = 0) -> None:
        if self._closed:
            raise ValueError(f"the recorder of {self.logdir} is closed; make a new one to go on")
        if self._writer is None:
            return
        if os.getpid() != self._process:
            raise ValueError(
                f"the recorder of {self.logdir} belongs to the process that this one was forked from: write there, or "
                "make one with a directory of its own here"
            )
        self._stop_if_strict()
        self._writer.put(job, size)

    def _stop_if_strict(self) -> None:
        if self._strict and self._writer and self._writer.error:
            raise self._writer.error

    def _wait(self, seconds: float | None = None) -> None:
        """Until all that was handed over is written, or for so long."""
        if self._writer and not self._closed:
            self._writer.wait(seconds)

    def _at_exit(self) -> None:
        self.close("the program ended without closing its recorder")


def _bytes(part: Any) -> int:
    return 0 if part is None else part.dtype.size * (part.shape.num_elements() or 0)


def _is_known_bad(reading: Reading) -> bool:
    """Whether the reading has a NaN or Inf. False where to look would be to wait for a GPU."""
    if "CPU:" not in reading.step.device:
        return False
    step = reading.step.numpy()
    return any(step[column] >= 0 for column in _NONFINITE)
