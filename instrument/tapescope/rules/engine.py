"""The rule engine: a fold from the records of a run to findings.

A finding says what is wrong, in which layer, since which step, by which numbers, and what to try. The same fold runs
in the recorder's thread and offline in `tapescope check`, so both find the same. Nothing here opens a file.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from tapescope.rules import (
    data,
    gradient_flow,
    loss_mismatch,
    losses,
    outputs,
    replica_issues,
    replicas,
    targets,
    updates,
)
from tapescope.rules import layers as layer_rules
from tapescope.rules.alarm import find_alarm
from tapescope.rules.finding import SEVERITIES, Finding
from tapescope.rules.history import History
from tapescope.rules.record_view import Record, RunLayout
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import tables

Rule = Callable[[History], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    losses.impossible_loss,
    gradient_flow.no_gradient,
    layer_rules.constant_output,
    layer_rules.poor_initialization,
    gradient_flow.vanishing,
    gradient_flow.exploding,
    gradient_flow.gradient_spike,
    layer_rules.dead_units,
    layer_rules.saturation,
    layer_rules.strong_dropout,
    updates.update_too_large,
    updates.update_not_applied,
    updates.update_too_small,
    updates.always_clipped,
    losses.overfitting,
    losses.validation_differs,
    updates.decayed_weights,
    updates.frozen_layers,
    replicas.replica_outlier,
)
"""Rules about causes, in the order in which they run; README.md has the order of all rules."""

OBJECTIVE_RULES: tuple[Rule, ...] = (
    outputs.output_activation,
    targets.labels_degenerate,
    targets.targets_out_of_range,
    loss_mismatch.loss_mismatch,
    data.unscaled_data,
    layer_rules.inference_mode,
)
"""Rules about what the training was given: data, labels and loss. They hold whatever the numbers do."""

RULES_PER_LAYER = {rule.__name__ for rule in OBJECTIVE_RULES} | {
    "no_gradient",
    "poor_initialization",
    "dead_units",
    "dying_units",
    "saturation",
    "strong_dropout",
}
"""Rules that may name several layers, each once. The others name the worst layer, once."""


REVISED = {
    *("update_too_large", "update_not_applied", "dead_units", "frozen_layers", "strong_dropout"),
    *("loss_not_falling", "slow_learning"),
}
"""Rules whose warnings are lowered to info once the network has learned in spite of them, or weights have moved. Errors
stay."""

LEARNING_GOES_ON = {*replica_issues.NAMES, "inference_mode", "gradient_spike", "overfitting", "validation_differs"}
"""Rules whose findings are no reason why a loss would not fall."""


class RuleEngine:
    """Takes the records of a run one after another, and keeps what the rules find in them."""

    def __init__(self, layout: RunLayout):
        self.findings: tuple[Finding, ...] = ()
        """In the order in which they were found; each once, with the highest severity that it had, unless it was
        lowered to info."""
        self.alarm: str | None = None
        """Why the step of the last record is one to capture; see `find_alarm`."""
        self._history = History(layout)
        self._index: dict[tuple[str, str | None], int] = {}
        """Of the finding about a rule and a layer. A finding may be about several layers that follow each other."""
        self._lowered: set[int] = set()
        """Findings that were lowered to info; only an error raises them again."""

    def add(self, record: Record) -> list[Finding]:
        """Add the next record; return the findings that are new or have another severity than before."""
        with np.errstate(all="ignore"):  # numbers that are not finite are judged, not warned of
            self._history.add(record)
            changed = {index: None for found in self._apply_rules() for index in self._keep(found)}
            new = [self.findings[index] for index in changed]
            self.alarm = find_alarm(self._history, new)
        return new

    def extend(self, layout: RunLayout) -> None:
        """Go on with a layout that has further variables or layers behind those that are there."""
        self._history.extend(layout)

    def _apply_rules(self) -> Iterator[Iterable[Finding]]:
        """Yield the findings of one rule after another: later ones ask what earlier ones found."""
        yield replica_issues.replica_issues(self._history)
        yield replicas.replicas_diverged(self._history)
        for rule in OBJECTIVE_RULES:
            yield rule(self._history)
        yield gradient_flow.non_finite(self._history)
        if any(f.rule == "non_finite" and f.severity == "error" for f in self.findings):
            yield updates.update_too_large(self._history)  # a possible cause; other numbers mean nothing now
            return
        for rule in RULES:
            yield rule(self._history)
        if self._history.learned or self._history.beats_constant:
            yield [_lowered(f) for f in self.findings if (f.rule, f.severity) == ("loss_not_falling", "warning")]
        if any(f.severity != "info" and f.rule not in LEARNING_GOES_ON for f in self.findings):
            yield losses.falls_regardless(self._history)
        else:
            yield losses.slow_learning(self._history)
            yield losses.loss_not_falling(self._history)

    def _keep(self, found: Iterable[Finding]) -> list[int]:
        """Store the findings of one rule in one record; return the indices of those that are new or have changed."""
        changed: list[int] = []
        best: dict[int, Finding] = {}
        for finding, layers in merge_neighbors(list(found), self._history.layout):
            finding = finding._replace(evidence={k: v for k, v in finding.evidence.items() if math.isfinite(v)})
            keys = [(finding.rule, layer) for layer in layers] if finding.rule in RULES_PER_LAYER else []
            keys = keys or [(finding.rule, None)]
            known = [self._index[key] for key in keys if key in self._index]
            index = self._index.get((finding.rule, finding.layer), known[0] if known else len(self.findings))
            if not known:
                self.findings = (*self.findings, finding)
                changed.append(index)
            elif index not in best or _rank(finding) < _rank(best[index]):
                best[index] = finding
            for key in keys:
                self._index.setdefault(key, index)
        for index, finding in best.items():
            before = self.findings[index]
            raised = _rank(finding) < _rank(before) and (index not in self._lowered or finding.severity == "error")
            lowered = (finding.severity, before.severity) == ("info", "warning") and finding.rule in REVISED
            if raised or lowered:
                self._lowered = self._lowered | {index} if lowered else self._lowered - {index}
                kept = (*self.findings[:index], finding._replace(step=before.step), *self.findings[index + 1 :])
                self.findings = kept
                changed.append(index)
        return changed


def _lowered(finding: Finding) -> Finding:
    return finding._replace(severity="info", message=f"{finding.message}; since then it has fallen")


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def merge_neighbors(found: Sequence[Finding], layout: RunLayout) -> Iterator[tuple[Finding, list[str | None]]]:
    """Yield the findings of one rule with the layers that each is about: one finding for a run of layers.

    Layers follow each other if nothing but layers without weights or without an activation lies between, and variables
    that no measured layer owns if nothing does. Of a run the first of the most severe is named. An info is merged with
    infos only.
    """
    by_layer = {f.layer: f for f in found if f.layer is not None and f.rule in RULES_PER_LAYER}
    if len(by_layer) < len(found) or len(found) < 2:
        yield from ((finding, [finding.layer]) for finding in found)
        return
    position = {name: i for i, name in enumerate(layout.groups)}
    has_weights = np.bincount(layout.owned[0], minlength=len(layout.groups)) > 0
    runs: dict[str, list[Finding]] = {}
    for finding in sorted(found, key=lambda f: position.get(f.layer or "", len(position))):
        name = str(finding.layer)
        at = position.get(name, -1)
        is_layer = 0 <= at < layout.layer_count
        source = layout.source[at] if is_layer else at - 1 if at > layout.layer_count else -1
        while (
            is_layer
            and source >= 0
            and layout.groups[source] not in by_layer
            and (layout.activations[source] == "linear" or not has_weights[source])
        ):
            source = layout.source[source]
        before = runs.get(layout.groups[source], []) if source >= 0 else []
        follows = bool(before) and before[-1].layer == layout.groups[source]
        alike = bool(before) and (before[-1].rule, before[-1].severity == "info") == (
            finding.rule,
            finding.severity == "info",
        )
        runs[name] = before if follows and alike else []
        runs[name].append(finding)
    for run in {id(run): run for run in runs.values()}.values():
        worst = min(run, key=_rank)
        if len(run) > 1:
            what = "layers" if position.get(run[0].layer or "", -1) < layout.layer_count else "variables"
            others = f"in {len(run)} {what} that follow each other, from `{run[0].layer}` to `{run[-1].layer}`"
            worst = worst._replace(
                message=f"{worst.message}; the same holds {others}",
                evidence={**worst.evidence, what: float(len(run))},
            )
        yield worst, [finding.layer for finding in run]


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


def judge(layout: RunLayout, steps: np.ndarray, columns: Mapping[str, np.ndarray]) -> RuleEngine:
    """Return an engine that has seen all records; see `split_records` for the arguments."""
    engine = RuleEngine(layout)
    for record in split_records(steps, columns):
        engine.add(record)
    return engine
