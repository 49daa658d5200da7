"""Several runs compared by how fast they were, and whether more replicas or larger batches pay."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tapescope.analysis import noise
from tapescope.storage.run import Run


class Speed(NamedTuple):
    """How fast a run was, and whether a larger batch would still help it."""

    run: str
    replicas: int
    batch: float
    """Examples a step, over all replicas."""
    examples_per_second: float
    """From the first record to the last, measuring and validation included."""
    efficiency: float
    """Examples a second and replica, over those of the run with the fewest replicas."""
    step_ms: tuple[float, float, float]
    """5th, 50th and 95th percentile, between records, of the time of a step."""
    noise_scale: float
    """Over all records, examples; NaN with one replica."""
    noise_interval: tuple[float, float] = (math.nan, math.nan)
    """Of 95 %."""

    @property
    def worth(self) -> str:
        """What the noise scale says of a larger batch; see `tapescope.analysis.noise`."""
        if not self.noise_scale > 0:
            return "not known: it takes two replicas to tell"
        if self.batch < self.noise_scale / 2:
            return "yes: the batch is well below the noise scale, so twice the batch needs nearly half the steps"
        if self.batch < 2 * self.noise_scale:
            return "partly: the batch is near the noise scale, so twice the batch saves less than half the steps"
        return "no: the batch is beyond the noise scale, so a larger one hardly saves steps"


def scaling(runs: Sequence[Run]) -> list[Speed]:
    """How the runs scale, fewest replicas first. Raises ValueError for a run with fewer than two records."""
    speeds = []
    for run in runs:
        if len(run.steps) < 2:
            raise ValueError(f"{run.logdir} has fewer than two records, which it takes to tell how long a step is")
        seconds, steps, examples = (np.diff(x) for x in (run.wall_times, run.steps, run["examples_seen"]))
        low, median, high = np.percentile(1000 * seconds / steps, [5, 50, 95]).tolist()
        scale = noise.of_run(run)
        speeds.append(
            Speed(
                run.logdir,
                int(run.status.get("replicas", 1)),
                float(np.median(examples / steps)),
                float(examples.sum() / max(seconds.sum(), 1e-9)),
                math.nan,
                (low, median, high),
                scale.scale,
                (scale.low, scale.high),
            )
        )
    speeds.sort(key=lambda s: s.replicas)
    base = speeds[0].examples_per_second / speeds[0].replicas
    return [s._replace(efficiency=s.examples_per_second / s.replicas / base) for s in speeds]
