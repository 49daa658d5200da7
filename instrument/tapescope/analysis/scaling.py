"""Comparison of runs by their speed, and whether more replicas or larger batches pay."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tapescope.storage.run import Run, check_list, check_runs
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import noise_scale as noise_series
from tensorboard_plugin_tapescope.series import scaling as scaling_series
from tensorboard_plugin_tapescope.series import tables
from tensorboard_plugin_tapescope.series.noise_scale import NoiseScale


class Speed(NamedTuple):
    """Speed of a run, and whether a larger batch would help it."""

    run: str
    replicas: int
    batch: float
    """Examples per step, over all replicas."""
    examples_per_second: float
    """From the first record to the last, measuring and validation included."""
    efficiency: float
    """Examples per second and replica, over those of the fastest run with the fewest replicas."""
    step_ms: tuple[float, float, float]
    """5th, 50th and 95th percentile of the time of a step between records."""
    noise_scale: float
    """Over all records, in examples; NaN with one replica."""
    noise_interval: tuple[float, float] = (math.nan, math.nan)
    """95 % interval of the noise scale."""

    @property
    def worth(self) -> str:
        """Verdict on a larger batch by the noise scale; see `tensorboard_plugin_tapescope.series.noise_scale`."""
        if not self.noise_scale > 0 and self.replicas > 1:
            return "not known: the records are too few or too noisy for the noise scale"
        if not self.noise_scale > 0:
            return "not known: the noise scale needs two replicas"
        if self.batch < self.noise_scale / 2:
            return "yes: the batch is well below the noise scale, so twice the batch needs nearly half the steps"
        if self.batch < 2 * self.noise_scale:
            return "partly: the batch is near the noise scale, so twice the batch saves less than half the steps"
        return "no: the batch is beyond the noise scale, so a larger one hardly saves steps"


def scaling(runs: Sequence[Run]) -> list[Speed]:
    """Return the speed of each run, fewest replicas first.

    Raises:
      ValueError: there is no run, or a run has fewer than two records.
    """
    speeds = sorted((_measure_speed(run) for run in check_list(runs)), key=lambda speed: speed.replicas)
    rates = np.array([speed.examples_per_second for speed in speeds])
    efficiency = scaling_series.scaling_efficiency(rates, np.array([speed.replicas for speed in speeds]))
    return [speed._replace(efficiency=float(share)) for speed, share in zip(speeds, efficiency, strict=True)]


def describe_other_networks(runs: Sequence[Run]) -> str:
    """Return a sentence about the runs that have other layers than the first, "" if there are none."""
    layers = {str(run.logdir): Family("layers", names=run.layers, details=run.details) for run in runs}
    return scaling_series.describe_other_networks(layers)


def _measure_speed(run: Run) -> Speed:
    """Return the speed of a run; the efficiency, which needs the other runs, is NaN."""
    if len(run.steps) < 2:
        raise ValueError(f"{run.logdir} has fewer than two records; at least two are needed to compute the step time")
    step_ms = 1000 * np.diff(run.wall_times) / np.diff(run.steps)
    low, median, high = np.percentile(step_ms, [5, 50, 95]).tolist()
    noise = noise_scale(run)
    return Speed(
        run=run.logdir,
        replicas=tables.count(run.status.get("replicas")) or 1,
        batch=scaling_series.batch_size(run.steps, run["examples_seen"]),
        examples_per_second=scaling_series.wall_clock_rate(run.wall_times, run["examples_seen"]),
        efficiency=math.nan,
        step_ms=(low, median, high),
        noise_scale=noise.scale,
        noise_interval=(noise.low, noise.high),
    )


def noise_scale(run: Run, variable: str | None = None) -> NoiseScale:
    """Return the gradient noise scale over all records of a run, with its 95 % interval.

    The noise scale is the batch size beyond which more examples per step bring little: McCandlish, Kaplan, Amodei, "An
    Empirical Model of Large-Batch Training", 2018.

    Args:
      run: a run that was trained on two replicas or more.
      variable: the variable that is meant; all together by default.

    Returns:
      The noise scale and its interval in examples. All are NaN with one replica, the interval with fewer than 40
      records.

    Raises:
      ValueError: the run has no such variable.
    """
    check_runs(run)
    if variable is not None and variable not in run.variables:
        raise ValueError(f"`variable` must be one of {', '.join(run.variables)}; got {variable!r}")
    if "replica_norm" not in run.columns:
        return noise_series.UNKNOWN
    columns = slice(None) if variable is None else [run.variables.index(variable)]
    return noise_series.estimate_noise_scale(
        replica_norms=run["replica_norm"][:, :, columns],
        gradient_norms=run["gradient_norm"][:, columns],
        examples=noise_series.examples_per_step(run.steps, run["examples_seen"]),
    )
