"""A set-up trained with several seeds, and a finished training read back as the numbers that the claims need.

Tracing a measured step takes longer than training one of these small networks with it. So the seeds of a set-up share
one program: before each, the model gets the weights of a new model, and the optimizer its first state.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from tapescope.storage.text_file import check_regular
from tapescope_trainers.study import grid
from tapescope_trainers.study.grid import Setup

BATCH = 64
WINDOW_STEPS = 16
"""Measured steps in a window of the unit counts."""
FIRST_STEPS = WINDOW_STEPS
"""The first steps are all measured,"""
EVERY = 50
"""then every 50th,"""
LAST_STEPS = 2 * WINDOW_STEPS
"""and the last steps again: so many that a whole window lies within them."""
DONE = "study.json"
"""The file that marks a run as complete."""


def train(
    setup: Setup,
    seeds: Iterable[int],
    steps: int,
    logdir: str,
    on_run: Callable[[], Any] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train one run a seed in `logdir/NAME/seed-N`, except those that are complete.

    Args:
        setup: The set-up.
        seeds: One run each.
        steps: Training steps of each run.
        logdir: Directory of the study.
        on_run: Called after each run.
        should_stop: Asked before each run; True leaves out the rest.
    """
    missing = [seed for seed in seeds if read_metrics(setup, seed, steps, logdir) is None]
    if not missing:
        return
    import keras
    import tensorflow as tf

    import tapescope
    from tapescope_trainers.training import data, loop, resume, step
    from tapescope_trainers.training.progress import Progress

    keras.backend.clear_session()
    strategy = tf.distribute.get_strategy()
    examples = data.load("digits")
    model = grid.build(setup, examples.shape, examples.classes)
    optimizer = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[setup.optimizer](setup.learning_rate)
    optimizer.build(model.trainable_variables)
    first_state = [variable.numpy() for variable in optimizer.variables]
    probe = tapescope.Probe(
        model, window_examples=WINDOW_STEPS * BATCH, histograms="sigmoid" in setup.network and len(setup.hidden) <= 2
    )
    train_step = step.make(model, optimizer, probe, strategy, batch_size=BATCH)
    evaluate = step.make_evaluation(model, strategy)
    for seed in missing:
        if should_stop():
            return
        directory = path(setup, seed, logdir)
        for stale in resume.event_files(directory):  # of a run that was interrupted
            os.remove(stale)
        keras.utils.set_random_seed(seed)
        model.set_weights(grid.build(setup, examples.shape, examples.classes).get_weights())
        for variable, value in zip(optimizer.variables, first_state, strict=True):
            variable.assign(value)
        examples = data.load("digits", seed=seed)
        examples = examples._replace(scale=examples.scale * setup.input_scale)
        validation_batches = data.validation_batches(examples, len(examples.x_valid))
        about = setup._asdict() | {"seed": seed, "steps": steps}
        when = tapescope.Schedule(lambda n: n < FIRST_STEPS or n % EVERY == 0 or n >= steps - LAST_STEPS)
        with tapescope.Recorder(directory, probe, when, about={"program": "tapescope-study", **about}) as recorder:
            recorder.hparams(about)
            result = loop.train(
                train_step,
                data.batches(examples, BATCH, seed),
                lambda batches=validation_batches: loop.validation_metrics(evaluate, batches),
                recorder,
                steps=steps,
                batch_size=BATCH,
                when=when,
                validate_every=steps,
                progress=Progress(steps, "steps", enabled=False),
                received=[],
            )
        # Renamed last, when everything else is on disk: if the file exists, the run is complete.
        with open(os.path.join(directory, f".{DONE}"), "w") as file:
            json.dump(about | {"metrics": result.metrics}, file)
        os.replace(file.name, os.path.join(directory, DONE))
        on_run()


def path(setup: Setup, seed: int, logdir: str) -> str:
    """Return the directory of one run."""
    return os.path.join(logdir, setup.name, f"seed-{seed}")


def read_metrics(setup: Setup, seed: int, steps: int, logdir: str) -> dict[str, float] | None:
    """Return the validation metrics of a complete run; None if no run of this set-up and length is complete."""
    try:
        with open(check_regular(os.path.join(path(setup, seed, logdir), DONE))) as file:
            fields = json.load(file)
    except (OSError, ValueError):
        return None
    metrics = fields.pop("metrics", None)
    return metrics if fields == setup._asdict() | {"seed": seed, "steps": steps} else None


class Trial(NamedTuple):
    """A finished training."""

    accuracy: float
    """On the validation examples, in per cent."""
    loss: float
    """On the validation examples."""
    run: Any
    """tapescope.Run: the records."""

    def rows(self, phase: str) -> np.ndarray:
        """Return which records are of a phase, "start" or "end", bool [T]."""
        steps = self.run.steps
        return steps < FIRST_STEPS if phase == "start" else steps > steps[-1] - LAST_STEPS

    def layers(self, activation: str) -> list[int]:
        """Return the indices of the layers with this activation."""
        return [i for i, name in enumerate(self.run.details["activations"]) if name == activation]

    def mean(self, column: str, layer: int | list[int], phase: str) -> float:
        """Return the mean over the records of a phase and over layers, without NaN."""
        return float(np.nanmean(self.run[column][self.rows(phase)][:, layer]))

    def dead_share(self, layers: list[int], phase: str) -> float:
        """Return the share of the layers' units that are dead in the first or the last full window."""
        counts = self.run["units_dead"]
        counts = counts[np.isfinite(counts[:, 0])][0 if phase == "start" else -1]
        return float(counts[layers].sum() / np.take(self.run.details["units"], layers).sum())

    def share_between(self, low: float, high: float, layer: int, phase: str) -> float:
        """Return the share of a layer's outputs from `low` to `high`, both of them edges of the histogram's bins."""
        from tensorboard_plugin_tapescope.metadata import bin_edges

        first, last = np.searchsorted(bin_edges(), (low, high))
        counts = self.run["activation_histogram"][self.rows(phase), layer].sum(0)
        return float(counts[first:last].sum() / counts.sum())


def load(setup: Setup, seed: int, steps: int, logdir: str) -> Trial:
    """Read a complete run.

    Raises:
        ValueError: The run is not complete.
    """
    from tapescope import Run

    metrics = read_metrics(setup, seed, steps, logdir)
    if metrics is None:
        raise ValueError(
            f"{path(setup, seed, logdir)} is not complete: run tapescope-study again, which trains what is missing"
        )
    return Trial(100 * metrics["validation/accuracy"], metrics["validation/loss"], Run(path(setup, seed, logdir)))
