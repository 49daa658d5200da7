"""The training loop: steps, readings passed to the recorder, validation at intervals, checkpoints, and a clean end."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tapescope import Recorder, Schedule
from tapescope_trainers.training.progress import Progress
from tapescope_trainers.training.step import Outcome


class Result(NamedTuple):
    """The outcome of a training."""

    steps: int
    metrics: dict[str, float]
    """Of the last validation."""
    interrupted: str | None
    """Name of the signal that ended it early."""


def train(
    step: Callable[..., Outcome],
    batches: Iterable,
    validate: Callable[[], dict[str, float]],
    recorder: Recorder,
    *,
    steps: int,
    batch_size: int,
    when: Schedule,
    validate_every: int,
    progress: Progress,
    received: list[str],
    stop_on_error: bool = False,
    should_stop: Callable[[int, bool], bool] | None = None,
    start: int = 0,
    metrics: dict[str, float] | None = None,
    save: Callable[[int, dict[str, float]], None] | None = None,
    save_every: int | None = None,
    begun: Callable[[], None] | None = None,
) -> Result:
    """Train up to step `steps`, or to the first step after a name appears in `received`.

    Args:
        step: `step(x, y, measure)`, one training step.
        batches: Pairs of examples and labels, beginning after `start` steps.
        validate: Computes the validation metrics.
        recorder: Writes readings and metrics.
        steps: Step to train up to, counted from the beginning of the run.
        batch_size: Examples in a step.
        when: Which steps to measure.
        validate_every: Steps between validations.
        progress: Shows the number of steps and the loss.
        received: Names of signals that ask to stop, read between steps.
        stop_on_error: Stop after an error that the rules find.
        should_stop: Of several workers: `should_stop(done, wish)` returns the same answer on all of them, so that all
            stop after the same step.
        start: Steps done before, in a run that continues.
        metrics: Of the last validation, in a run that continues.
        save: `save(done, metrics)` writes a checkpoint; called every `save_every` steps and at the end.
        save_every: Steps between checkpoints.
        begun: Called after the first step.

    Returns:
        The steps done, the last metrics, and what stopped the training early.
    """
    metrics = dict(metrics or {})
    done = start
    saved = start
    errors: list[str] = []
    for x, y in batches:
        stop = bool(received or errors)
        if should_stop:
            stop = should_stop(done, stop)
        if stop or done >= steps:
            break
        outcome = step(x, y, when(done))
        if outcome.reading is not None:
            scalars = {"loss": outcome.loss, **outcome.metrics}
            recorder.write(done, outcome.reading, scalars=scalars, examples=(done + 1) * batch_size)
            if stop_on_error:
                found = [finding for finding in recorder.findings if finding.severity == "error"]
                errors = [f"{finding.rule} in {finding.layer or 'the loss'}" for finding in found]
        if begun and done == start:
            begun()
        done += 1
        progress.update(done, outcome.loss)
        if done % validate_every == 0 or done == steps:
            when.pause()
            metrics = validate()
            recorder.scalars(done - 1, metrics)
        if save and save_every and done % save_every == 0:
            when.pause()
            save(done, metrics)
            saved = done
    if save and saved < done:
        save(done, metrics)
    progress.close()
    interrupted = None
    if received or errors:
        interrupted = [*received, *errors][0]
    elif done < steps:
        interrupted = "another worker"
    return Result(done, metrics, interrupted)


def validation_metrics(evaluate: Callable[..., tf.Tensor], batches: Iterable) -> dict[str, float]:
    """Return the mean loss and the accuracy over all of `batches`.

    Args:
        evaluate: Returns the sum of losses, the number of correct examples and of all examples, float32 [3].
        batches: Pairs of examples and labels.
    """
    loss, correct, count = sum((evaluate(x, y).numpy() for x, y in batches), np.zeros(3)).tolist()
    return {"validation/loss": loss / count, "validation/accuracy": correct / count}
