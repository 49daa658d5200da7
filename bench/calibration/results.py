"""The result of one set-up: the findings of the rules and the alarms of other tools."""

import logging
import os
import sys
from typing import NamedTuple

from bench.calibration import setups, tools, training

from tapescope.analysis import check
from tapescope.rules import engine, record_view


class Detection(NamedTuple):
    """A finding of a rule, or an alarm of another tool."""

    rule: str
    """Of another tool, its kind of alarm."""
    layer: str | None
    reported: int
    """The step of the record that it was reported at; -1 for other tools."""
    severity: str


class Result(NamedTuple):
    """The detections in one set-up, and its fault."""

    name: str
    family: str
    seed: int
    part: str
    replicas: int
    rule: str | None
    """The rule to be found; None in a healthy set-up."""
    layers: tuple[str, ...]
    also: tuple[str, ...]
    """Rules that follow from the fault."""
    begins: int
    findings: list[Detection]
    alarms: dict[tuple[str, int], list[Detection]]
    """By tool and patience in records."""
    fall: float
    """Share of the first steps' loss that was gone in the last ones."""
    seconds: float


def measure(index: int, keep: str) -> Result:
    """Train the set-up of that number, and collect the findings and the other tools' alarms.

    Args:
        index: Position in `setups.all_setups()`.
        keep: Directory of the trainings; empty to keep none.

    Raises:
        RuntimeError: A new training's findings differ between the recorder and `check`.
    """
    logging.disable(logging.WARNING)
    setup = setups.all_setups()[index]
    trial = training.trial(setup, keep)
    rules = engine.RuleEngine(record_view.run_layout(trial.run.variables, trial.run.layers, trial.run.details))
    detections = [
        Detection(finding.rule, finding.layer, record.step, finding.severity)
        for record in check.records(trial.run)
        for finding in rules.add(record)
    ]
    lowered = {(f.rule, f.layer) for f in rules.findings if f.severity == "info"}
    detections = [d for d in detections if d.severity == "info" or (d.rule, d.layer) not in lowered]
    if not keep and rules.findings != trial.live:
        raise RuntimeError(f"{setup.key}: the recorder found {trial.live}, `check` found {rules.findings}")
    observations = list(tools.observations(trial))
    alarms = {
        (name, patience): [
            Detection(alarm.kind, alarm.layer, -1, "warning") for alarm in tools.alarms(observations, tool, patience)
        ]
        for name, tool in tools.TOOLS.items()
        for patience in (1, 5)
    }
    return Result(
        name=setup.name,
        family=setup.family,
        seed=setup.seed,
        part=setup.part,
        replicas=setup.replicas,
        rule=setup.fault.rule,
        layers=setup.fault.layers,
        also=setup.fault.also,
        begins=setup.fault.begins,
        findings=detections,
        alarms=alarms,
        fall=trial.fall,
        seconds=trial.seconds,
    )


def start_process() -> None:
    """Set up a process that measures."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  hides TensorFlow's log lines
    training.configure_process()
