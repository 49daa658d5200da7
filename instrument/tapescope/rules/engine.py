"""From the records of a run to findings: what is wrong, where, since when, by which numbers, and what to try.

One fold does it, live in the recorder's thread and offline in `check`: so both say the same.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from tapescope.rules import gradient_flow, replica_issues
from tapescope.rules import layers as layer_rules
from tapescope.rules import training as training_rules
from tapescope.rules.finding import SEVERITIES, Finding
from tapescope.rules.history import History
from tapescope.rules.record_view import Record, Subject, subject
from tapescope.storage.run import Run
from tensorboard_plugin_tapescope.metadata import Family

Rule = Callable[[History], Iterator[Finding]]

CAUSES: tuple[Rule, ...] = (
    gradient_flow.no_gradient,
    layer_rules.poor_initialization,
    gradient_flow.vanishing,
    gradient_flow.exploding,
    gradient_flow.gradient_spike,
    layer_rules.dead_units,
    layer_rules.saturation,
    training_rules.update_too_large,
    training_rules.update_too_small,
    training_rules.always_clipped,
    training_rules.replica_outlier,
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
        yield from replica_issues.otherwise(self._seen)
        yield from gradient_flow.non_finite(self._seen)
        if any(f.rule == "non_finite" and f.severity == "error" for f in self.findings):
            yield from training_rules.update_too_large(self._seen)  # what led to it; nothing else has a meaning now
            return
        for rule in CAUSES:
            yield from rule(self._seen)
        ill = [f for f in self.findings if f.severity != "info" and f.rule not in replica_issues.NAMES]
        yield from (training_rules.falls_regardless if ill else training_rules.loss_not_falling)(self._seen)

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
