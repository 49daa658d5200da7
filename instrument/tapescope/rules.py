"""From the records of a run to findings: what is wrong, where, since when, by which numbers, and what to try.

One fold does it, live in the recorder's thread and offline in `check`: so both say the same.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from tapescope import rules_flow, rules_layers, rules_replicas, rules_training
from tapescope.finding import SEVERITIES, Finding
from tapescope.history import History
from tapescope.runs import Run
from tapescope.view import Record, Subject, subject
from tensorboard_plugin_tapescope.metadata import Family

Rule = Callable[[History], Iterator[Finding]]

CAUSES: tuple[Rule, ...] = (
    rules_flow.no_gradient,
    rules_layers.poor_initialization,
    rules_flow.vanishing,
    rules_flow.exploding,
    rules_flow.gradient_spike,
    rules_layers.dead_units,
    rules_layers.saturation,
    rules_training.update_too_large,
    rules_training.update_too_small,
    rules_training.always_clipped,
    rules_training.replica_outlier,
)


PLACES = {"no_gradient", "poor_initialization", "dead_units", "dying_units", "saturation"}
"""Rules that may name several layers, each once; the others name the worst, once."""


class Watch:
    """Takes the records of a run one after another, and keeps what the rules find in them. Pure: no file, no thread."""

    def __init__(self, of: Subject):
        self.findings: tuple[Finding, ...] = ()
        """In the order in which they were found; each once, with the highest severity that it had."""
        self._seen = History(of)

    def add(self, record: Record) -> list[Finding]:
        """Takes the next record; returns what is new, or graver than before."""
        self._seen.add(record)
        return [finding for finding in self._found() if self._keep(finding)]

    def _found(self) -> Iterator[Finding]:
        yield from rules_replicas.otherwise(self._seen)
        yield from rules_flow.non_finite(self._seen)
        if any(f.rule == "non_finite" and f.severity == "error" for f in self.findings):
            yield from rules_training.update_too_large(self._seen)  # what led to it; nothing else has a meaning now
            return
        for rule in CAUSES:
            yield from rule(self._seen)
        ill = [f for f in self.findings if f.severity != "info" and f.rule not in rules_replicas.NAMES]
        yield from (rules_training.falls_regardless if ill else rules_training.loss_not_falling)(self._seen)

    def _keep(self, finding: Finding) -> bool:
        finding = finding._replace(evidence={k: v for k, v in finding.evidence.items() if math.isfinite(v)})
        before = next((f for f in self.findings if _key(f) == _key(finding)), None)
        if before is None:
            self.findings = (*self.findings, finding)
            return True
        if SEVERITIES.index(finding.severity) >= SEVERITIES.index(before.severity):
            return False
        graver = finding._replace(step=before.step)
        self.findings = tuple(graver if f is before else f for f in self.findings)
        return True


def _key(finding: Finding) -> tuple[str, str | None]:
    return finding.rule, finding.layer if finding.rule in PLACES else None


def columns(family: Family, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of one tensor of a family, by name: what a Record takes."""
    replicas = family.details.get("replicas")
    rows = tensor if replicas is None else tensor.reshape(-1, replicas, tensor.shape[-1])
    return dict(zip(family.columns, rows, strict=False))


def replayed(run: Run) -> Watch:
    """A Watch that has seen all records of a run that was read back."""
    watch = Watch(subject(run.variables, run.layers, run.details))
    for record in records(run):
        watch.add(record)
    return watch


def check(run: Run) -> tuple[Finding, ...]:
    """What the rules find in a run that was read back."""
    return replayed(run).findings


def records(run: Run) -> Iterator[Record]:
    """The records of a run, as the recorder made them."""
    of_all = {name: run[name] for name in run.columns if not name.endswith("_histogram") and name != "unit_state"}
    for t, step in enumerate(run.steps):
        yield Record(int(step), {name: values[t] for name, values in of_all.items() if t < len(values)})
