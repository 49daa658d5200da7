"""Measures of the study's tests: functions from a finished training to one number."""

from collections.abc import Callable

import numpy as np

from tapescope_trainers.study.trial import Trial

Measure = Callable[[Trial], float]


def layer_mean(column: str, layer: int, phase: str) -> Measure:
    """Return the measure: mean of a column over a phase, for one layer by its position."""
    return lambda trial: trial.mean(column, layer, phase)


def activation_mean(column: str, activation: str, phase: str) -> Measure:
    """Return the measure: mean of a column over a phase and all layers with one activation."""
    return lambda trial: trial.mean(column, trial.layers(activation), phase)


def backward_gain(phase: str) -> Measure:
    """Return the measure: log10 of |dL/da| of the first hidden layer over that of the last, a layer in between."""

    def measure(trial: Trial) -> float:
        last = len(trial.run.layers) - 2
        delta = np.maximum(trial.run["delta_norm"][trial.rows(phase)], 1e-38)  # 0 if all units behind it are dead
        return float(np.mean(np.log10(delta[:, 0] / delta[:, last])) / last)

    return measure


def relative_update(trial: Trial) -> float:
    """Return log10 of the relative update of the first hidden layer's kernel over that of the last hidden layer's."""
    ratio = trial.run["update_ratio"][trial.rows("end")].mean(0)
    kernels = [i for i, name in enumerate(trial.run.variables) if name.endswith("kernel")]
    # 0 if the update is below the weights' last digit.
    first, last = np.maximum(ratio[[kernels[0], kernels[-2]]], 1e-12)
    return float(np.log10(first / last))


def accuracy(trial: Trial) -> float:
    """Return the validation accuracy in per cent."""
    return trial.accuracy
