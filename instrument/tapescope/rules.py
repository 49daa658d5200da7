"""From the records of a run to findings: what is wrong, where, since when, by which numbers, and what to try.

One fold does it, live in the recorder's thread and offline in `check`: so both say the same.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tapescope import progress, symptoms
from tapescope.history import History, Record, Subject, subject
from tapescope.runs import Run
from tapescope.symptoms import Finding
from tensorboard_plugin_tapescope.metadata import Family

SEVERITIES = ("error", "warning", "info")

Rule = Callable[[History], Iterator[Finding]]

CAUSES: tuple[Rule, ...] = (
    symptoms.no_gradient,
    symptoms.poor_initialization,
    symptoms.vanishing,
    symptoms.exploding,
    symptoms.gradient_spike,
    symptoms.dead_units,
    symptoms.saturation,
    progress.update_too_large,
    progress.update_too_small,
    progress.always_clipped,
    progress.replica_outlier,
)


class Watch:
    """Takes the records of a run one after another, and keeps what the rules find in them. Pure: no file, no thread."""

    def __init__(self, of: Subject):
        self.findings: tuple[Finding, ...] = ()
        """In the order in which they were found; each rule and layer once, with the highest severity it had."""
        self._seen = History(of)

    def add(self, record: Record) -> list[Finding]:
        """Takes the next record; returns what is new, or graver than before."""
        self._seen.add(record)
        new = [finding for finding in self._found() if self._keep(finding)]
        return new

    def _found(self) -> Iterator[Finding]:
        yield from symptoms.non_finite(self._seen)
        if any(f.rule == "non_finite" and f.severity == "error" for f in self.findings):
            yield from progress.update_too_large(self._seen)  # what led to it; nothing else has a meaning now
            return
        for rule in CAUSES:
            yield from rule(self._seen)
        ill = [f for f in self.findings if f.severity != "info"]
        yield from (progress.falls_regardless if ill else progress.loss_not_falling)(self._seen)

    def _keep(self, finding: Finding) -> bool:
        known = {(f.rule, f.layer): f for f in self.findings}
        before = known.get((finding.rule, finding.layer))
        if before is None:
            self.findings = (*self.findings, finding)
            return True
        if SEVERITIES.index(finding.severity) >= SEVERITIES.index(before.severity):
            return False
        graver = finding._replace(step=before.step)
        self.findings = tuple(graver if f is before else f for f in self.findings)
        return True


def columns(family: Family, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of one tensor of a family, by name: what a Record takes."""
    replicas = family.details.get("replicas")
    rows = tensor if replicas is None else tensor.reshape(-1, replicas, tensor.shape[-1])
    return dict(zip(family.columns, rows, strict=False))


def check(run: Run) -> tuple[Finding, ...]:
    """What the rules find in a run that was read back."""
    watch = Watch(subject(run.variables, run.layers, run.details))
    for record in records(run):
        watch.add(record)
    return watch.findings


def records(run: Run) -> Iterator[Record]:
    """The records of a run, as the recorder made them."""
    of_all = {name: run[name] for name in run.columns if not name.endswith("_histogram") and name != "unit_state"}
    for t, step in enumerate(run.steps):
        yield Record(int(step), {name: values[t] for name, values in of_all.items() if t < len(values)})


def to_json(finding: Finding) -> str:
    """As it is on the wire."""
    return json.dumps(finding._asdict())


def from_json(fields: dict[str, Any]) -> Finding:
    """One of `Run.findings`."""
    return Finding(**{name: fields[name] for name in Finding._fields})
