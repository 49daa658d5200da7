"""The loop: steps, readings to the recorder, validation at intervals, and an end that loses nothing."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tapescope import Recorder, Schedule
from tapescope_trainers.training.progress import Progress
from tapescope_trainers.training.step import Outcome


class Result(NamedTuple):
    """How a training went."""

    steps: int
    metrics: dict[str, float]
    """The last validation's."""
    interrupted: str | None
    """Name of the signal that ended it before its time."""


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
    signals: list[str],
    stop_on_error: bool = False,
    ends: Callable[[int, bool], bool] | None = None,
    start: int = 0,
    metrics: dict[str, float] | None = None,
    save: Callable[[int, dict[str, float]], None] | None = None,
    save_every: int | None = None,
) -> Result:
    """Trains up to step `steps`, or less far where a name appears in `signals`; it is looked at between steps.

    With `stop_on_error` an error that the rules find puts its name there. With several workers `ends` says whether one
    of them wishes to end: all end after the same step. Where it goes on after `start` steps, `batches` begin there and
    `metrics` are the last validation's. `save` is given the steps done and the metrics every `save_every` steps and at
    the end.
    """
    metrics = dict(metrics or {})
    done = saved = start
    for x, y in batches:
        wish = bool(signals)
        if (ends(done, wish) if ends else wish) or done >= steps:
            break
        outcome = step(x, y, when(done))
        if outcome.reading is not None:
            scalars = {"loss": outcome.loss, "accuracy": outcome.accuracy}
            recorder.write(done, outcome.reading, scalars=scalars, examples=(done + 1) * batch_size)
            if stop_on_error:
                signals += [f"{f.rule} in {f.layer or 'the loss'}" for f in recorder.findings if f.severity == "error"]
        done += 1
        if progress.due(done):
            progress.report(done, float(outcome.loss))
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
    interrupted = signals[0] if signals else "another worker" if done < steps else None
    return Result(done, metrics, interrupted)


def validation(evaluate: Callable[..., tf.Tensor], batches: Iterable) -> dict[str, float]:
    """Mean loss and accuracy over all of `batches`."""
    loss, right, count = sum((evaluate(x, y).numpy() for x, y in batches), np.zeros(3)).tolist()
    return {"validation/loss": loss / count, "validation/accuracy": right / count}
