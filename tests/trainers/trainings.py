"""Trainings in the process of the tests."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tapescope_trainers import flags, train
from tapescope_trainers.training import build, resume


def parse(logdir: Path, *arguments: str) -> flags.Options:
    """Return the options of a command line without a progress display."""
    return flags.parse(["tapescope-train", f"--logdir={logdir}", "--noprogress", *arguments])


def run(
    logdir: Path, *arguments: str, change: Callable[[build.Training], Any] = lambda training: None
) -> build.Training:
    """Train as `tapescope-train` does, or continue the run in `logdir`.

    Args:
        logdir: Directory of the run.
        *arguments: Flags.
        change: Called before the first step.

    Returns:
        The training, whose model is trained.
    """
    options = parse(logdir, *arguments)
    training = build.prepare(options, continues=resume.check(options))
    change(training)
    train.train(options, training, [])
    return training


class Steps(NamedTuple):
    """The results of `take_steps`."""

    weights: list[np.ndarray]
    """Of the trainable variables."""
    readings: list[Any]
    """Of the measured steps."""


def take_steps(logdir: Path, steps: int, *arguments: str, measure: Callable[[int], bool] = lambda n: False) -> Steps:
    """Take the first training steps without writing records.

    Args:
        logdir: A directory. A training that was prepared in it before is replaced.
        steps: Number of steps.
        *arguments: Flags.
        measure: Which steps to measure.
    """
    options = parse(logdir, "--resume=never", *arguments)
    training = build.prepare(options)
    training.recorder.close()
    training.earlier.close()
    train_step = build.make_step(options, training.parts)
    batches = training.parts.strategy.experimental_distribute_dataset(training.batches)
    readings = []
    for n, (x, y) in enumerate(itertools.islice(batches, steps)):
        reading = train_step(x, y, measure(n)).reading
        if reading is not None:
            readings.append(reading)
    return Steps([variable.numpy() for variable in training.parts.model.trainable_variables], readings)
