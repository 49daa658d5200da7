"""The rule engine: a fold from the records of a run to findings.

A finding says what is wrong, in which layer, since which step, by which numbers, and what to try. The same fold runs
in the recorder's thread and offline in `tapescope check`, so both find the same. Nothing here opens a file.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from tapescope.rules import gradient_flow, replica_issues, replicas, training
from tapescope.rules import layers as layer_rules
from tapescope.rules.finding import SEVERITIES, Finding
from tapescope.rules.history import History
from tapescope.rules.record_view import Record, RunLayout
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import tables

Rule = Callable[[History], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    gradient_flow.no_gradient,
    layer_rules.poor_initialization,
    gradient_flow.vanishing,
    gradient_flow.exploding,
    gradient_flow.gradient_spike,
    layer_rules.dead_units,
    layer_rules.saturation,
    training.update_too_large,
    training.update_too_small,
    training.always_clipped,
    replicas.replica_outlier,
)
"""Rules about causes, in the order in which they run; README.md has the order of all rules."""

RULES_PER_LAYER = {"no_gradient", "poor_initialization", "dead_units", "dying_units", "saturation"}
"""Rules that may name several layers, each once. The others name the worst layer, once."""


class RuleEngine:
    """Takes the records of a run one after another, and keeps what the rules find in them."""

    def __init__(self, layout: RunLayout):
        self.findings: tuple[Finding, ...] = ()
        """In the order in which they were found; each once, with the highest severity that it had."""
        self._history = History(layout)

    def add(self, record: Record) -> list[Finding]:
        """Add the next record; return the findings that are new or more severe than before."""
        self._history.add(record)
        return [finding for finding in self._apply_rules() if self._keep(finding)]

    def _apply_rules(self) -> Iterator[Finding]:
        yield from replica_issues.replica_issues(self._history)
        yield from gradient_flow.non_finite(self._history)
        if any(f.rule == "non_finite" and f.severity == "error" for f in self.findings):
            yield from training.update_too_large(self._history)  # a possible cause; other numbers mean nothing now
            return
        for rule in RULES:
            yield from rule(self._history)
        if any(f.severity != "info" and f.rule not in replica_issues.NAMES for f in self.findings):
            yield from training.falls_regardless(self._history)
        else:
            yield from training.loss_not_falling(self._history)

    def _keep(self, finding: Finding) -> bool:
        """Store the finding if it is new or more severe than before; return whether it is."""
        finding = finding._replace(evidence={k: v for k, v in finding.evidence.items() if math.isfinite(v)})
        before = next((f for f in self.findings if _key(f) == _key(finding)), None)
        if before is None:
            self.findings = (*self.findings, finding)
            return True
        if SEVERITIES.index(finding.severity) >= SEVERITIES.index(before.severity):
            return False
        worse = finding._replace(step=before.step)
        self.findings = tuple(worse if f is before else f for f in self.findings)
        return True


def _key(finding: Finding) -> tuple[str, str | None]:
    """Return what makes two findings the same one."""
    return finding.rule, finding.layer if finding.rule in RULES_PER_LAYER else None


def unpack_columns(family: Family, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of one tensor of a family by name, as a Record holds them."""
    return {name: tables.unpack_column(family, tensor[None], name)[0] for name in family.columns}


def split_records(steps: np.ndarray, columns: Mapping[str, np.ndarray]) -> Iterator[Record]:
    """Yield the records of a finished run, as the recorder passed them to the rules.

    Args:
      steps: the recorded steps, [T].
      columns: columns by name, [T, ...] each. A column that is shorter is absent from the later records.
    """
    ruled = {name: values for name, values in columns.items() if name in metadata.COLUMNS}
    for t, step in enumerate(steps):
        yield Record(int(step), {name: values[t] for name, values in ruled.items() if t < len(values)})


def replay(layout: RunLayout, steps: np.ndarray, columns: Mapping[str, np.ndarray]) -> RuleEngine:
    """Return an engine that has seen all records; see `split_records` for the arguments."""
    engine = RuleEngine(layout)
    for record in split_records(steps, columns):
        engine.add(record)
    return engine
