"""One set-up trained with several seeds, and a finished training read back as the numbers that the claims ask for.

Tracing a measured step takes longer than training one of these small networks with it. So the seeds of a set-up share
one program: before each, the model gets the weights that a fresh one would have, and the optimizer its first state.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from tapescope_trainers.study import grid
from tapescope_trainers.study.grid import Setup

BATCH = 64
WINDOW_STEPS = 16
"""Measured steps in a window of the unit counts."""
FIRST_STEPS, EVERY, LAST_STEPS = WINDOW_STEPS, 50, 2 * WINDOW_STEPS
"""Measured are the first steps, every 50th, and the last: so many that a whole window lies within them."""
DONE = "study.json"


def train(
    setup: Setup,
    seeds: Iterable[int],
    steps: int,
    logdir: str,
    tick: Callable[[], Any] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains one run a seed, in `logdir/NAME/seed-N`, and leaves out those that are complete.

    `tick` is called after each run; where `stop` then says so, the rest is left.
    """
    missing = [seed for seed in seeds if completed(setup, seed, steps, logdir) is None]
    if not missing:
        return
    import keras
    import tensorflow as tf

    import tapescope
    from tapescope.storage.run import event_files
    from tapescope_trainers.training import data, loop, step
    from tapescope_trainers.training.progress import Progress

    keras.backend.clear_session()
    strategy = tf.distribute.get_strategy()
    examples = data.load("digits")
    model = grid.build(setup, examples.shape, examples.classes)
    optimizer = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[setup.optimizer](setup.learning_rate)
    optimizer.build(model.trainable_variables)
    first_state = [v.numpy() for v in optimizer.variables]
    probe = tapescope.Probe(
        model, window_examples=WINDOW_STEPS * BATCH, histograms="sigmoid" in setup.network and len(setup.hidden) <= 2
    )
    one_step = step.make(model, optimizer, probe, strategy, batch_size=BATCH)
    evaluate = step.make_evaluation(model, strategy)
    for seed in missing:
        if stop():
            return
        directory = path(setup, seed, logdir)
        for stale in event_files(directory):  # of a training that was interrupted
            os.remove(stale)
        keras.utils.set_random_seed(seed)
        model.set_weights(grid.build(setup, examples.shape, examples.classes).get_weights())
        for variable, value in zip(optimizer.variables, first_state, strict=True):
            variable.assign(value)
        examples = data.load("digits", seed=seed)
        examples = examples._replace(scale=examples.scale * setup.input_scale)
        held = data.validation(examples, len(examples.x_valid))
        about = setup._asdict() | {"seed": seed, "steps": steps}
        when = tapescope.Schedule(lambda n: n < FIRST_STEPS or n % EVERY == 0 or n >= steps - LAST_STEPS)
        with tapescope.Recorder(directory, probe, when, about={"program": "tapescope-study", **about}) as recorder:
            recorder.hparams(about)
            result = loop.train(
                one_step,
                data.batches(examples, BATCH, seed),
                lambda held=held: loop.validation(evaluate, held),
                recorder,
                steps=steps,
                batch_size=BATCH,
                when=when,
                validate_every=steps,
                progress=Progress(steps, BATCH, enabled=False),
                signals=[],
            )
        # Moved into place when all else is on disk: where it is, the run is complete.
        with open(os.path.join(directory, f".{DONE}"), "w") as file:
            json.dump(about | {"metrics": result.metrics}, file)
        os.replace(file.name, os.path.join(directory, DONE))
        tick()


def path(setup: Setup, seed: int, logdir: str) -> str:
    """The directory of one run."""
    return os.path.join(logdir, setup.name, f"seed-{seed}")


def completed(setup: Setup, seed: int, steps: int, logdir: str) -> dict[str, float] | None:
    """The validation metrics of a complete run; None where there is none of just this set-up and length."""
    try:
        with open(os.path.join(path(setup, seed, logdir), DONE)) as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    metrics = found.pop("metrics", None)
    return metrics if found == setup._asdict() | {"seed": seed, "steps": steps} else None


class Trial(NamedTuple):
    """A finished training."""

    accuracy: float
    """Of the validation examples, per cent."""
    loss: float
    run: Any
    """tapescope.Run: what the tape saw."""

    def rows(self, phase: str) -> np.ndarray:
        """Which records are of the "start" or of the "end" of the training."""
        steps = self.run.steps
        return steps < FIRST_STEPS if phase == "start" else steps > steps[-1] - LAST_STEPS

    def layers(self, kind: str) -> list[int]:
        """Indices of the layers with this activation."""
        return [i for i, a in enumerate(self.run.details["activations"]) if a == kind]

    def mean(self, column: str, layer: int | list[int], phase: str) -> float:
        """Mean over the phase's records and the layers, of what is defined."""
        return float(np.nanmean(self.run[column][self.rows(phase)][:, layer]))

    def dead(self, layers: list[int], phase: str) -> float:
        """Share of the layers' units that are dead in the first or the last full window."""
        counts = self.run["units_dead"]
        counts = counts[np.isfinite(counts[:, 0])][0 if phase == "start" else -1]
        return float(counts[layers].sum() / np.take(self.run.details["units"], layers).sum())

    def between(self, low: float, high: float, layer: int, phase: str) -> float:
        """Share of the layer's outputs from `low` to `high`, both of which must be edges of the histogram's bins."""
        from tensorboard_plugin_tapescope.metadata import bin_edges

        first, last = np.searchsorted(bin_edges(), (low, high))
        counts = self.run["activation_histogram"][self.rows(phase), layer].sum(0)
        return float(counts[first:last].sum() / counts.sum())


def load(setup: Setup, seed: int, steps: int, logdir: str) -> Trial:
    """A complete run, read back."""
    from tapescope import Run

    metrics = completed(setup, seed, steps, logdir)
    if metrics is None:
        raise ValueError(
            f"{path(setup, seed, logdir)} is not complete: run tapescope-study again, it goes on from there"
        )
    return Trial(100 * metrics["validation/accuracy"], metrics["validation/loss"], Run(path(setup, seed, logdir)))
