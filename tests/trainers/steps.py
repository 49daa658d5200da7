"""Helpers: a network after some steps."""

import itertools
from collections.abc import Callable

import numpy as np

from tapescope_trainers.flags import Options
from tapescope_trainers.training import build


def after(
    steps: int, options: Options, measure: Callable[[int], bool] = lambda n: False, readings: list | None = None
) -> list[np.ndarray]:
    """The trainable variables after `steps` steps; the readings are put into a list that is given."""
    parts = build.prepare(options)
    parts.recorder.close()
    one_step = build.make_step(options, parts)
    batches = parts.strategy.experimental_distribute_dataset(parts.batches)
    for n, (x, y) in enumerate(itertools.islice(batches, steps)):
        reading = one_step(x, y, measure(n)).reading
        if readings is not None and reading is not None:
            readings.append(reading)
    return [v.numpy() for v in parts.model.trainable_variables]
