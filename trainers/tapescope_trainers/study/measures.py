"""What a test of the study measures: functions from a finished training to one number."""

from collections.abc import Callable

import numpy as np

from tapescope_trainers.study.trial import Trial

Measure = Callable[[Trial], float]


def mean(column: str, layer: int, phase: str) -> Measure:
    """Of one layer, by its position."""
    return lambda t: t.mean(column, layer, phase)


def over(column: str, kind: str, phase: str) -> Measure:
    """Mean over the hidden layers with one activation."""
    return lambda t: t.mean(column, t.layers(kind), phase)


def backward_gain(phase: str) -> Measure:
    """Decades a layer: log10 of |dL/da| of the first hidden layer over that of the last, by the layers in between."""

    def measure(t: Trial) -> float:
        last = len(t.run.layers) - 2
        delta = np.maximum(t.run["delta_norm"][t.rows(phase)], 1e-38)  # 0 where all units behind it are dead
        return float(np.mean(np.log10(delta[:, 0] / delta[:, last])) / last)

    return measure


def learning(t: Trial) -> float:
    """Decades: the relative update of the first hidden layer's kernel over that of the last hidden layer's."""
    ratio = t.run["update_ratio"][t.rows("end")].mean(0)
    kernels = [i for i, name in enumerate(t.run.variables) if name.endswith("kernel")]
    first, last = np.maximum(ratio[[kernels[0], kernels[-2]]], 1e-12)  # an update below the weights' last digit is 0
    return float(np.log10(first / last))


def accuracy(t: Trial) -> float:
    """Of the validation examples, per cent."""
    return t.accuracy
