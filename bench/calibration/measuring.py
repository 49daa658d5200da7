"""One set-up, trained, with what tapescope and the other tools say of it."""

import logging
import os
import sys
from typing import NamedTuple

from bench.calibration import setups, tools, training

from tapescope.rules import engine, record_view


class Found(NamedTuple):
    """A finding of a rule, or an alarm of a tool."""

    rule: str
    """Of a tool, its kind of alarm."""
    layer: str | None
    reported: int
    """The step of the record at which it was reported."""
    severity: str


class Result(NamedTuple):
    """What one set-up gave."""

    name: str
    family: str
    seed: int
    part: str
    replicas: int
    rule: str | None
    layers: tuple[str, ...]
    also: tuple[str, ...]
    begins: int
    found: list[Found]
    tools: dict[tuple[str, int], list[Found]]
    """By tool and patience."""
    fall: float
    seconds: float


def measure(index: int, keep: str) -> Result:
    """Trains the set-up of that number, and asks everyone."""
    logging.disable(logging.WARNING)
    setup = setups.all_setups()[index]
    trial = training.trial(setup, keep)
    watch = engine.Watch(record_view.subject(trial.run.variables, trial.run.layers, trial.run.details))
    found = [
        Found(f.rule, f.layer, record.step, f.severity)
        for record in engine.records(trial.run)
        for f in watch.add(record)
    ]
    seen = list(tools.records(trial))
    others = {
        (name, patience): [Found(a.kind, a.layer, -1, "warning") for a in tools.alarms(seen, tool, patience)]
        for name, tool in tools.TOOLS.items()
        for patience in (1, 5)
    }
    fault = setup.fault
    return Result(
        *(setup.name, setup.family, setup.seed, setup.part, setup.replicas),
        *(fault.rule, fault.layers, fault.also, fault.begins),
        *(found, others, trial.fall, trial.seconds),
    )


def start() -> None:
    """Of a process that measures."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  TensorFlow's greetings
    training.quiet_process()
