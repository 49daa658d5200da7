"""Scribe: what is written of a run, in what order. One Recorder's background thread is all that calls it.

A record is one event with all summaries of its step: tapescope's own families, and scalars and histograms for
TensorBoard's own tabs. The rules look at each record once it is on disk.
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.probe import Probe
from tapescope.rules import engine, finding, record_view
from tapescope.statistics.reading import Reading
from tapescope.storage import event_file, summaries
from tapescope.storage import resume as resuming
from tapescope.storage.claim import Claim
from tapescope.storage.resume import Resume
from tapescope.storage.summaries import Step
from tapescope.storage.unit_ledger import Ledger
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

RULED = tuple(metadata.tag(family) for family in ("variables", "layers", "step", "replicas"))
"""Tags of what the rules look at."""


class Scribe:
    """Writes the records of one run; each method raises OSError where the disk does not take what it is given."""

    def __init__(self, logdir: str, claim: Claim, probe: Probe, about: Mapping[str, Any], resume: Resume | None):
        self.logdir = logdir
        self.findings: tuple[finding.Finding, ...] = ()
        """What the rules have found so far; replaced, never changed."""
        self._probe = probe
        self._about = dict(about, started=time.time(), tensorflow=tf.__version__, keras=keras.__version__)
        self._resume = resume or Resume(0, {})
        self._ledger: Ledger | None = None
        self._watch: engine.Watch | None = None
        self._judging = True
        if resume:
            resuming.cut(logdir, resume.step)
            self._watch = resuming.watch(logdir)
            self.findings = self._watch.findings if self._watch else ()
        self._families: dict[str, Family] = {}
        self._last_step = self._last_measured = self._resume.step - 1
        self._file = event_file.EventFile(logdir, claim)
        self._file.add_start(self._resume.step)
        self.status("training")

    @property
    def failing(self) -> bool:
        """Whether the last record was not taken."""
        return self._file.failing

    def status(self, state: str, reason: str = "", lost: int = 0, left_out: int = 0) -> None:
        """How the run stands, with the numbers of records that were not written."""
        counts = {"lost": lost, "left_out": left_out}
        status = {"state": state, "reason": reason, **counts, "skipped": self._probe.skipped, **self._about}
        self._file.add(max(0, self._last_step), [event_file.text(Family("status"), json.dumps(status))])

    def hparams(self, hparams: Mapping[str, Any]) -> None:
        """The run's hyperparameters for the HParams tab."""
        from tensorboard.plugins.hparams import summary_v2

        self._file.add_summary(summary_v2.hparams_pb(dict(hparams), trial_id=self.logdir))

    def graph(self, graph: tf.Graph) -> None:
        """A graph for the Graphs tab."""
        self._file.add_graph(graph)

    def state(self) -> dict[str, np.ndarray]:
        """What a later Scribe needs to go on."""
        return dict(self._ledger.state() if self._ledger else self._resume.state)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write(self, step: Step, read: Reading | None, scalars: Mapping[str, Any], wall_time: float) -> None:
        """One record. ValueError for a measured step that is not above the one before."""
        numbers = {tag: float(np.asarray(summaries.first_replica(value)).item()) for tag, value in scalars.items()}
        names = self._probe.names
        values = []
        if read is not None and names is not None:
            if step.number <= self._last_measured:
                raise ValueError(
                    f"step {step.number} comes after step {self._last_measured}, and readers would drop all that is "
                    "later: count the steps over the whole training, not by epoch"
                )
            self._last_measured = step.number
            if self._ledger is None:
                self._ledger = self._first(names)
            read = summaries.on_host(read)
            step = step._replace(loss=numbers.get("loss", math.nan))
            values += summaries.families(step, read, names, self._ledger, self._probe.skipped, self._probe.faults)
            values += summaries.for_builtin_tabs(read, names, self._ledger.verdict)
        values += [event_file.scalar(tag, number) for tag, number in numbers.items()]
        columns = self._columns(values)
        self._file.add(step.number, values, wall_time)
        self._last_step = max(self._last_step, step.number)
        found = self._judge(record_view.Record(step.number, columns)) if columns and self._judging else None
        if found is not None:
            self._file.add(step.number, [event_file.text(Family("findings"), found)])

    def _first(self, names: Any) -> Ledger:
        ledger = Ledger(names.units, self._probe.window_examples)
        if self._resume.state:
            ledger.restore(self._resume.state)
        shown = len(summaries.thinned(len(names.layers)))
        if shown < len(names.layers):
            logging.info(
                "TensorBoard's own tabs get %d of the %d layers of %s; the Gradients tab has all of them",
                shown,
                len(names.layers),
                self.logdir,
            )
        return ledger

    def _columns(self, values: list[event_file.Value]) -> dict[str, np.ndarray]:
        """What is on the wire, by column: the rules get the same numbers live as from a run that is read back."""
        columns: dict[str, np.ndarray] = {}
        for value in values:
            if value.array is not None and isinstance(value.about, Family) and value.tag in RULED:
                self._families.setdefault(value.tag, value.about)
                columns.update(engine.columns(value.about, value.array))
        return columns

    def _judge(self, record: record_view.Record) -> list[str] | None:
        """All findings as JSON, where there is a new one; the first time also an empty list: the rules are at work."""
        first = self._watch is None
        try:
            if self._watch is None:
                of = self._families.get
                variables, layers, each = (of(metadata.tag(f), Family(f)) for f in ("variables", "layers", "replicas"))
                self._watch = engine.Watch(
                    record_view.subject(variables.names, layers.names, layers.details | each.details)
                )
            new = self._watch.add(record)
        except Exception:  # a finding less is no reason to lose records
            self._judging = False
            logging.exception("tapescope: a rule failed; %s gets no more findings", self.logdir)
            return None
        for found in new:
            if found.severity != "info":
                logging.warning("tapescope: %s. %s", found.message, found.advice)
        if not new and not first:
            return None
        self.findings = self._watch.findings
        return [finding.to_json(f) for f in self.findings]
