"""Recorder: the only writer of summaries.

`write` hands a Reading to a background thread and returns; the thread turns it into one event a step: tapescope's own
families, and beside them scalars and histograms for TensorBoard's own tabs. A record that cannot be written never
stops the training: it is counted, and said.
"""

import json
import math
import os
import queue
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tapescope import events, finding, records, replicas, restart, rules, view
from tapescope.probe import Probe
from tapescope.reading import Reading
from tapescope.records import Step
from tapescope.restart import Resume
from tapescope.schedule import Schedule
from tapescope.units import Ledger
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

FLUSH_SECONDS = 1.0
RULED = tuple(metadata.tag(family) for family in ("variables", "layers", "step", "replicas"))
"""Tags of what the rules look at."""
QUEUED_RECORDS = 10_000


class Recorder:
    """Writes what a Probe reads into the event file of one run; a context manager.

    Args:
      logdir: the run's directory, made if it does not exist.
      probe: whose readings these are.
      when: the schedule that decides; where given, each record says what measuring cost.
      about: what the run is, for its status: anything that JSON can hold.
      resume: where a run goes on that was recorded here before. The records of that step and later ones are removed.

    Where several workers train a model together, each may have a Recorder, made once the model is built: the chief's
    alone writes. What it is given is of all replicas already.

    Raises OSError, at once, where the directory cannot be written.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        probe: Probe,
        when: Schedule | None = None,
        about: Mapping[str, Any] | None = None,
        resume: Resume | None = None,
    ):
        self.logdir: str = os.fspath(logdir)
        self.lost: int = 0
        """Records that could not be written."""
        self.findings: tuple[finding.Finding, ...] = ()
        """What the rules have found so far. Replaced, never changed, by the background thread: safe to read at any
        time, and a record or two behind the training."""
        self._probe = probe
        self._has_read = False
        self._when = when
        self._about = dict(about or {}, started=time.time(), tensorflow=tf.__version__, keras=keras.__version__)
        self._closed, self._silent = False, not replicas.speaks_for_all(probe._selection.variables())
        if self._silent:
            return
        self._resume = resume or Resume(0, {})
        self._ledger: Ledger | None = None
        self._watch: rules.Watch | None = None
        self._judging = True
        if resume:
            restart.cut(self.logdir, resume.step)
            self._watch = restart.watch(self.logdir)
            self.findings = self._watch.findings if self._watch else ()
        self._file = events.EventFile(self.logdir)
        self._families: dict[str, Family] = {}
        self._last_step = max(0, self._resume.step - 1)
        self._queue: queue.Queue[Any] = queue.Queue(QUEUED_RECORDS)
        self._file.add_start(self._resume.step)
        self._file.add(0, [self._status("training", "")])
        self._file.flush()
        self._thread = threading.Thread(target=self._run, name="tapescope-recorder", daemon=True)
        self._thread.start()

    def write(
        self,
        step: int,
        reading: Reading | None,
        scalars: Mapping[str, Any] | None = None,
        examples: float | None = None,
    ) -> None:
        """Records one step; returns without waiting for the disk.

        Args:
          step: its number; numbers rise.
          reading: of the step; under a strategy, what `strategy.run` returned. None records the scalars only.
          scalars: by their tag, float or a tensor with one element; "loss" is also shown in the Gradients tab.
          examples: trained on so far. By default (step + 1) times the examples of this step.
        """
        self._check(reading)
        numbers = dict(scalars or {})
        seen = math.nan if examples is None else float(examples)
        about = Step(int(step), examples_seen=seen)
        if self._when is not None and reading is not None:
            cost = self._when.cost
            about = about._replace(step_ms=cost.step_ms, measure_ms=cost.measure_ms)
            if not math.isnan(cost.overhead_pct):
                numbers["measure_overhead_pct"] = cost.overhead_pct
                numbers["measure_overhead_error_pct"] = cost.overhead_error_pct
        wall_time = time.time()
        self._put(lambda: self._write(about, reading, numbers, wall_time))

    def _check(self, reading: Any) -> None:
        if reading is None:
            return
        if not isinstance(reading, Reading):
            raise ValueError(
                f"`reading` ({type(reading).__name__}) must be what `tape.reading()` returned, of a tape that "
                "`probe.tape(measure)` made; a tf.GradientTape has none"
            )
        names, self._has_read = self._probe.names, True
        variables, layers = (records.first_replica(part).shape[-1] for part in reading[:2])
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
        from tensorboard.plugins.hparams import summary_v2

        known = (bool, int, float, str)
        plain = {name: value if isinstance(value, known) else str(value) for name, value in hparams.items()}
        self._put(lambda: self._file.add_summary(summary_v2.hparams_pb(plain, trial_id=self.logdir)))

    def graph(self, graph: tf.Graph) -> None:
        """Records a graph for TensorBoard's Graphs tab, such as `step.get_concrete_function(...).graph`."""
        self._put(lambda: self._file.add_graph(graph))

    def state(self) -> dict[str, np.ndarray]:
        """Waits until all that was handed over is on disk; then what a later Recorder needs to go on: see `Resume`."""
        state: dict[str, np.ndarray] = {}
        if self._silent:
            return state
        done = threading.Event()

        def job() -> None:
            try:
                state.update(self._ledger.state() if self._ledger else self._resume.state)
                self._file.flush()
            finally:
                done.set()

        self._queue.put(job)
        done.wait()
        return state

    def close(self, reason: str = "completed") -> None:
        """Writes what is queued and that the run has ended, and why; returns when it is on disk. Idempotent."""
        if self._closed or self._silent:
            return
        if self._probe._used and not self._has_read:
            logging.warning(
                "tapescope: steps were measured, and %s got no record: return `tape.reading()` from the step, and give "
                "it to `recorder.write`",
                self.logdir,
            )
        self._put(lambda: self._file.add(self._last_step, [self._status("ended", reason)]))
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        if self.lost:
            logging.error("tapescope: %d records of %s could not be written", self.lost, self.logdir)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else f"{kind.__name__}: {error}")

    def _put(self, job: Any) -> None:
        if self._closed:
            raise ValueError(f"the recorder of {self.logdir} is closed; make a new one to go on")
        if self._silent:
            return
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._lose(f"the disk is slower than the records, and {QUEUED_RECORDS} wait")

    def _lose(self, why: object) -> None:
        self.lost += 1
        if self.lost == 1:
            logging.error(
                "tapescope cannot write to %s (%s); training goes on, unwritten records are counted", self.logdir, why
            )

    def _run(self) -> None:
        flushed = time.monotonic()
        while True:
            try:
                job = self._queue.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                job = False
            try:
                if job:
                    job()
                if job is None or not job or time.monotonic() - flushed > FLUSH_SECONDS:
                    self._file.flush()
                    flushed = time.monotonic()
                if job is None:
                    self._file.close()
            except Exception as error:  # whatever fails here, it must not end the thread while training goes on
                self._lose(error)
            if job is None:
                return

    # What is below runs in the background thread.

    def _status(self, state: str, reason: str) -> events.Value:
        status = {"state": state, "reason": reason, "lost": self.lost, "skipped": self._probe.skipped, **self._about}
        return events.text(Family("status"), json.dumps(status))

    def _write(self, step: Step, read: Reading | None, scalars: Mapping[str, Any], wall_time: float) -> None:
        self._last_step = max(self._last_step, step.number)
        numbers = {tag: float(np.asarray(records.first_replica(value)).item()) for tag, value in scalars.items()}
        names = self._probe.names
        values = []
        if read is not None and names is not None:
            if self._ledger is None:
                self._ledger = Ledger(names.units, self._probe.window_examples)
                if self._resume.state:
                    self._ledger.restore(self._resume.state)
                self._say_what_is_thinned(len(names.layers))
            read = records.on_host(read)
            step = step._replace(loss=numbers.get("loss", math.nan))
            values += records.families(step, read, names, self._ledger, self._probe.skipped, self._probe.faults)
            values += records.for_builtin_tabs(read, names, self._ledger.verdict)
        values += [events.scalar(tag, number) for tag, number in numbers.items()]
        columns = self._columns(values)
        self._file.add(step.number, values, wall_time)
        if columns and self._judging:
            try:
                self._judge(view.Record(step.number, columns))
            except Exception:  # a finding less is no reason to lose records
                self._judging = False
                logging.exception("tapescope: a rule failed; %s gets no more findings", self.logdir)

    def _columns(self, values: list[events.Value]) -> dict[str, np.ndarray]:
        """What is on the wire, by column: the rules get the same numbers live as from a run that is read back."""
        columns: dict[str, np.ndarray] = {}
        for value in values:
            if value.array is not None and isinstance(value.about, Family) and value.tag in RULED:
                self._families.setdefault(value.tag, value.about)
                columns.update(rules.columns(value.about, value.array))
        return columns

    def _judge(self, record: view.Record) -> None:
        first = self._watch is None
        if self._watch is None:
            of = self._families.get
            variables, layers, each = (of(metadata.tag(f), Family(f)) for f in ("variables", "layers", "replicas"))
            self._watch = rules.Watch(view.subject(variables.names, layers.names, layers.details | each.details))
        new = self._watch.add(record)
        if not new and not first:  # the first time an empty list says that the rules are at work
            return
        self.findings = self._watch.findings
        texts = [finding.to_json(f) for f in self.findings]
        self._file.add(record.step, [events.text(Family("findings"), texts)])
        for found in new:
            if found.severity != "info":
                logging.warning("tapescope: %s. %s", found.message, found.advice)

    def _say_what_is_thinned(self, layers: int) -> None:
        shown = len(records.thinned(layers))
        if shown < layers:
            logging.info(
                "TensorBoard's own tabs get %d of the %d layers of %s; the Gradients tab has all of them",
                shown,
                layers,
                self.logdir,
            )
