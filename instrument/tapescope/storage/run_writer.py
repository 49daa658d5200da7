"""The content of a run's event files, in order. The background thread of one Recorder is the only caller.

A record is one event with all summaries of its step: tapescope's own families, and scalars and histograms for
TensorBoard's own tabs. The rules judge each record after it is on disk.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.capture.selection import Names
from tapescope.capture.state import ProbeState
from tapescope.rules import engine, finding
from tapescope.rules.record_view import Record, RunLayout, run_layout
from tapescope.statistics.reading import Reading
from tapescope.statistics.slow_columns import SlowRows
from tapescope.storage import event_file, event_reader, event_values, summaries
from tapescope.storage import resume as resuming
from tapescope.storage.captures import CapturedSteps
from tapescope.storage.consecutive_gradients import ConsecutiveGradients
from tapescope.storage.directory import DirectoryLock
from tapescope.storage.event_values import Value
from tapescope.storage.examples_seen import ExamplesSeen
from tapescope.storage.heatmap import COLUMN, Heatmap, HeatmapHistory
from tapescope.storage.printable import describe, printable
from tapescope.storage.resume import Resume
from tapescope.storage.rows import RunRows, recorded_rows
from tapescope.storage.run import columns_by_tag
from tapescope.storage.run_index import IndexFile
from tapescope.storage.scalars import ScalarReader, validation_loss
from tapescope.storage.sinks import Sink, SinkThread, choose_scalars, join_all, start_sinks
from tapescope.storage.summaries import Step
from tapescope.storage.unit_ledger import Ledger
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.spikes import RunSpikes

JUDGED_TAGS = tuple(metadata.tag(family) for family in ("variables", "layers", "step", "replicas", "data"))
"""Tags of the families whose columns the rules use."""

_VALIDATION_LOSS = "validation_loss"
"""Name of an array in the state."""

RESERVED = {"state", "reason", "lost", "left_out", "last_step", "skipped", "failure", "started", "tensorflow", "keras"}
"""Fields of a status that `about` cannot set."""


class RunWriter:
    """The records, status and findings of one run. Each method raises OSError when the disk does not take them.

    Args:
      logdir: the run's directory.
      lock: of the directory.
      probe_state: of the Probe whose readings are written.
      about: fields of every status.
      resume: where the run goes on, if it was recorded here before.
      sinks: tools that get some of the numbers.
      captures: steps that are kept if their record raises an alarm; None if none is.
    """

    def __init__(
        self,
        logdir: str,
        lock: DirectoryLock,
        probe_state: ProbeState,
        about: Mapping[str, Any],
        resume: Resume | None,
        sinks: Sequence[str | Sink] = (),
        captures: CapturedSteps | None = None,
    ):
        self.logdir = logdir
        self._captures = captures
        self.findings: tuple[finding.Finding, ...] = ()
        """Findings of the rules so far. The tuple is replaced and never changed, so any thread may read it."""
        self._probe_state = probe_state
        self._about = dict(about, started=time.time(), tensorflow=tf.__version__, keras=keras.__version__)
        self._scalars = ScalarReader()
        if reserved := RESERVED & set(about):
            logging.warning(
                "tapescope: `about` cannot set %s, which tapescope sets itself", ", ".join(sorted(reserved))
            )
        self._resume = resume or Resume(0, {})
        self._rows: RunRows | None = None
        """The rows of the run; None until its first record."""
        self._index = IndexFile(logdir)
        self._spikes = RunSpikes()
        self._gradients = ConsecutiveGradients(self._resume.state)
        self._examples_seen = ExamplesSeen(self._resume.state)
        self._validation_loss = float(self._resume.state.get(_VALIDATION_LOSS, math.nan))
        self._recorded_columns: dict[str, tuple[str, ...]] = {}
        """Columns of each family in the records from which the run goes on: another version may have had others."""
        self._status: dict[str, Any] = {}
        self._heatmap = HeatmapHistory()
        """What the sinks get pictures of."""
        self._ledger: Ledger | None = None
        self._engine: engine.RuleEngine | None = None
        self._rules_failed = False
        self._recorded_names: Names | None = None
        """The rows of the records from which the run goes on."""
        if resume:
            self._continue_run(resume)
        self._published = self.findings
        """Findings that the sinks have got, or got when the run was recorded before."""
        self._families: dict[str, Family] = {}
        self._last_step = self._resume.step - 1
        self._last_measured = self._resume.step - 1
        files = event_reader.find_event_files(logdir)
        self._file = event_file.EventFile(logdir, lock)
        if not files.others:  # a start hides what other programs recorded at later steps, such as a tf.summary writer
            self._file.add_start(self._resume.step)
        self._sinks: list[SinkThread] = []
        self.write_status("training")
        if files.own and not resume:
            resuming.set_aside(logdir, files.own)
        self._sinks = start_sinks(sinks, logdir, self._status)

    def _continue_run(self, resume: Resume) -> None:
        """Remove the records from a step on, and take over what the others say.

        Raises:
          OSError: a file cannot be read or written.
          ValueError: the run cannot go on there; nothing is removed.
        """
        resuming.check_resume(self.logdir, resume, self._probe_state.selection.variable_names())
        resuming.cut_records(self.logdir, resume.step)
        recorded = resuming.recorded_run(self.logdir)
        if recorded is None:
            return
        self._recorded_names = recorded_rows(recorded)
        self._engine = resuming.recorded_rules(recorded)
        self.findings = self._engine.findings if self._engine else ()
        self._index.progress = resuming.recorded_progress(recorded)
        self._spikes = resuming.recorded_spikes(recorded)
        self._recorded_columns = columns_by_tag(recorded)

    @property
    def failing(self) -> bool:
        """True if the last record was not taken."""
        return self._file.failing

    @property
    def has_ended(self) -> bool:
        """True once the last status is that of the end."""
        return self._status.get("state") == "ended"

    def write_status(self, state: str, reason: str = "", lost: int = 0, left_out: int = 0) -> None:
        """Write the state of the run, with the numbers of records that were lost or left out."""
        if state != "training":
            self._file.retry()  # there is no later status
        self._status = status = self._about | {
            "state": state,
            "reason": reason,
            "lost": lost,
            "left_out": left_out,
            "last_step": self._last_step,
            "skipped": self._probe_state.skipped,
        }
        if self._probe_state.failure:
            status["failure"] = self._probe_state.failure
        self._file.add(
            max(0, self._last_step), [event_values.text(Family("status"), json.dumps(status, default=describe))]
        )
        self._update_index(now=True)

    def add_about(self, fields: Mapping[str, Any]) -> None:
        """Add fields to every status from now on, and write one."""
        self._about |= fields
        self.write_status("training")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the run's hyperparameters for the HParams tab."""
        from tensorboard.plugins.hparams import summary_v2

        self._file.add_summary(summary_v2.hparams_pb(dict(hparams), trial_id=self.logdir))

    def write_graph(self, graph: tf.Graph) -> None:
        """Write a graph for the Graphs tab."""
        self._file.add_graph(graph)

    def state(self) -> dict[str, np.ndarray]:
        """Return what a later RunWriter needs to go on."""
        if self._ledger is None:
            return dict(self._resume.state)
        validation = {_VALIDATION_LOSS: np.array(self._validation_loss)}
        return self._ledger.state() | self._gradients.state() | self._examples_seen.state() | validation

    def close(self) -> None:
        """Close the file, and end the run in the sinks."""
        try:
            self._file.close()
        finally:
            if self._sinks:
                self._publish_picture(self._last_step, self._heatmap.latest())
            for sink in self._sinks:
                sink.put("end", str(self._status.get("reason") or ""))
            join_all(self._sinks)

    def write(
        self,
        step: Step,
        reading: Reading | None,
        scalars: Mapping[str, Any],
        wall_time: float,
        slow: SlowRows | None = None,
    ) -> None:
        """Write one record, and the findings if there is a new one.

        Args:
          step: the host's part of the record.
          reading: tensors; None records the scalars only.
          scalars: by tag, numbers or tensors with one element; others are left out, see `ScalarReader`.
          wall_time: seconds since 1970.
          slow: what was measured besides, where it was this step's turn.

        Raises:
          OSError: the disk does not take the record.
          ValueError: a measured step is not above the one before.
        """
        numbers = self._scalars.read(scalars)
        values: list[Value] = []
        rows_grew = False
        if reading is not None:
            if step.number <= self._last_measured:
                raise ValueError(
                    f"`step` must rise over the whole training; got {step.number} after {self._last_measured}, and "
                    "readers would drop all later records: count the steps over the whole training, not by epoch, and "
                    "after going back to a checkpoint pass its state as `resume` to a new Recorder"
                )
            self._last_measured = step.number
            step = step._replace(
                loss=numbers.get("loss", math.nan),
                optimizer_called=self._probe_state.optimizer_called,
                validation_loss=self._validation_loss,
            )
            host_reading = summaries.to_host(reading)
            if "replicas" not in self._about:
                compared = host_reading.replicas
                self.add_about({"replicas": 1 if compared is None else compared.shape[1]})
            values, rows_grew = self._reading_values(step, host_reading, slow)
        self._validation_loss = validation_loss(numbers, self._validation_loss)
        values += [event_values.scalar(tag, number) for tag, number in numbers.items()]
        columns = self._judged_columns(values)
        self._file.add(step.number, [self._with_recorded_columns(value) for value in values], wall_time)
        self._last_step = max(self._last_step, step.number)
        self._index.progress = self._index.progress.add(step.number, wall_time, numbers, columns)
        texts = None
        if columns and not self._rules_failed:
            texts = self._judge(Record(step.number, columns), rows_grew)
            if texts is not None:
                self._file.add(step.number, [event_values.text(Family("findings"), texts)])
        if reading is not None:
            self._capture(step, columns)
        self._update_index(now=texts is not None)
        self._publish(step.number, numbers, columns)

    def _capture(self, step: Step, columns: Mapping[str, np.ndarray]) -> None:
        """Let the step be captured if the rules raised an alarm at its record."""
        if self._captures is None or self._rows is None:
            return
        alarm = None if self._rules_failed or self._engine is None else self._engine.alarm
        norms = dict(zip(self._rows.names.variables, columns["gradient_norm"].tolist(), strict=False))
        self._captures.judge(step.number, alarm, float(columns["loss"]), norms)

    def _publish(self, step: int, numbers: Mapping[str, float], columns: Mapping[str, np.ndarray]) -> None:
        if not self._sinks:
            return
        scalars = choose_scalars(numbers, columns, self.findings)
        new = [found._asdict() for found in self.findings if found not in self._published]
        self._published = self.findings
        for sink in self._sinks:
            sink.put("scalars", step, scalars)
            for found in new:
                sink.put("finding", found)
        if COLUMN in columns and self._rows is not None:
            self._publish_picture(step, self._heatmap.add(step, self._rows.names.layers, columns[COLUMN]))

    def _publish_picture(self, step: int, heatmap: Heatmap | None) -> None:
        if heatmap is not None:
            for sink in self._sinks:
                sink.put("picture", step, heatmap)

    def _update_index(self, *, now: bool) -> None:
        names = self._rows.names if self._rows else self._recorded_names
        layers, units = (names.layers, names.units) if names else ((), ())
        self._index.update(self._status, self.findings, layers, units, now=now)

    def _reading_values(self, step: Step, reading: Any, slow: SlowRows | None) -> tuple[list[Value], bool]:
        """Return the summaries of a reading, and whether it has rows that the run did not have.

        Args:
          step: the host's part of the record.
          reading: from `summaries.to_host`.
          slow: of this step.
        """
        state = self._probe_state
        names = state.layouts[reading.layout].names
        rows = self._rows = self._rows or RunRows(self._recorded_names or names, names)
        names = rows.match(names)
        rows_grew = rows.add(names)
        ledger = self._ledger = self._ledger or self._make_ledger(rows.first)
        ledger.extend(rows.names.units)
        reading = rows.widen(reading, names)
        values = [rows.describe(state.skipped)] if rows_grew else []
        cosines, total = self._gradients.add(step.number, reading.gradient_sample, reading.column("gradient_norm"))
        further = {"gradient_cosine": cosines}
        if slow is not None:
            further |= slow._replace(names=rows.match_names(slow.names)).columns(rows.names.variables)
        seen = self._examples_seen.add(step.number, float(reading.column("examples")), step.examples_seen)
        step = step._replace(gradient_cosine_total=total, examples_seen=seen)
        values += self._families_of(step, reading, rows, ledger, further)
        values += summaries.make_builtin(reading, rows, names, ledger.verdict)
        return values, rows_grew

    def _families_of(
        self, step: Step, reading: Any, rows: RunRows, ledger: Ledger, further: Mapping[str, np.ndarray]
    ) -> list[Value]:
        """Return the step's tensors under tapescope's own tags; `further` has columns that are not in the reading."""
        state = self._probe_state
        examples = reading.column("examples")
        counts_units = bool(rows.names.layers) and math.isfinite(examples)  # not where a step has none of the layers
        closes_window = counts_units and ledger.add(reading.units, reading.elements, int(examples))
        values = [
            summaries.variables_family(reading, rows.first, further),
            summaries.step_family(step, reading, ledger.verdict, self._spikes),
        ]
        if rows.names.layers:
            values.append(
                summaries.layers_family(reading, rows.first, ledger.verdict, state.skipped, state.layer_modes)
            )
        if closes_window and ledger.verdict:
            values.append(summaries.units_family(rows.first, ledger.verdict))
        values += summaries.histogram_families(reading, rows.first)
        if reading.replicas is not None:
            values.append(summaries.replicas_family(reading, rows.first, state.replica_issues or ()))
        if state.data is not None and state.data.rows:
            values.append(summaries.data_family(reading, state.data))
        if rows.names.heads:
            values.append(summaries.heads_family(reading, rows.first))
        if rows.names.residual:
            values.append(summaries.residual_family(reading, rows.first))
        return values

    def _make_ledger(self, names: Names) -> Ledger:
        ledger = Ledger(names.units, self._probe_state.window_examples)
        if self._resume.state:
            try:
                ledger.restore(self._resume.state)
            except ValueError as error:
                logging.warning("tapescope: the open window of units in %s begins anew: %s", self.logdir, error)
        shown = len(summaries.thin_out(len(names.layers)))
        if shown < len(names.layers):
            logging.info(
                "TensorBoard's own tabs show %d of the %d layers of %s; the Gradients tab shows all of them",
                shown,
                len(names.layers),
                self.logdir,
            )
        return ledger

    def _judged_columns(self, values: list[event_values.Value]) -> dict[str, np.ndarray]:
        """Return the written numbers by column: the rules get the same during training as from a run read back."""
        columns: dict[str, np.ndarray] = {}
        for value in values:
            if value.array is not None and isinstance(value.description, Family) and value.tag in JUDGED_TAGS:
                self._families.setdefault(value.tag, value.description)
                columns.update(engine.unpack_columns(value.description, value.array))
        return columns

    def _with_recorded_columns(self, value: Value) -> Value:
        """Return a tensor with the columns that the run's first records have, which readers take it to have."""
        columns = self._recorded_columns.get(value.tag)
        if not columns or value.array is None or not isinstance(value.description, Family):
            return value
        if columns == value.description.columns:
            return value
        return event_values.with_columns(value.description, value.array, columns)

    def _layout(self) -> RunLayout:
        """Return the layout of the records that the rules get."""
        rows = {} if self._rows is None else {**self._rows.names._asdict()}
        variables, layers, replicas, data = (
            tables.extend(self._families.get(metadata.tag(family), Family(family)), rows)
            for family in ("variables", "layers", "replicas", "data")
        )
        return run_layout(variables.names, layers.names, layers.details | replicas.details | data.details)

    def _judge(self, record: Record, rows_grew: bool) -> list[str] | None:
        """Apply the rules to a record.

        Args:
          record: the newest one.
          rows_grew: whether it has rows that the ones before did not have.

        Returns:
          All findings as JSON if there is a new one, else None. The first call returns them in any case: an empty list
          in the file says that the rules are applied.
        """
        is_first = self._engine is None
        try:
            if self._engine is None:
                self._engine = engine.RuleEngine(self._layout())
            elif rows_grew:
                self._engine.extend(self._layout())
            new = self._engine.add(record)
        except Exception:  # a rule that fails must not cost records
            self._rules_failed = True
            logging.exception("tapescope: a rule failed; %s gets no more findings", self.logdir)
            return None
        for found in new:
            if found.severity != "info":
                logging.warning("tapescope: %s. %s", printable(found.message), printable(found.advice))
        if not new and not is_first:
            return None
        self.findings = self._engine.findings
        return [finding.to_json(f) for f in self.findings]
