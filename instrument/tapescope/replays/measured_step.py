"""The numbers of a measured step that a replay looks at."""

from typing import Any, NamedTuple

import numpy as np

from tapescope.capture.selection import Names
from tapescope.replays.answer import total_norm
from tapescope.statistics.reading import Reading
from tapescope.storage import summaries


class MeasuredStep(NamedTuple):
    """Columns of a reading on the host."""

    gradient_norm: dict[str, float]
    """By variable."""
    applied_norm: float
    """L2 norm of the whole gradient that the optimizer got."""
    nonfinite: bool
    """Whether the gradient has a NaN or Inf."""
    layers: tuple[str, ...]
    largest: list[float]
    """Largest absolute value of each layer's output, [L]."""
    first_nonfinite: int
    """Index of the first layer in forward order that is not finite, or -1."""


def read_step(reading: Reading, names: Names) -> MeasuredStep:
    """Return the numbers of a reading whose rows have these names."""
    host: Any = summaries.to_host(Reading(*map(summaries.first_replica, reading)))
    norms = host.column("gradient_norm").tolist()
    largest = np.maximum(np.abs(host.column("activation_min")), np.abs(host.column("activation_max")))
    return MeasuredStep(
        gradient_norm=dict(zip(names.variables, norms, strict=True)),
        applied_norm=total_norm(host.column("applied_norm").tolist()),
        nonfinite=bool(np.any(host.column("gradient_nonfinite") > 0)),
        layers=names.layers,
        largest=largest.tolist(),
        first_nonfinite=int(host.column("first_nonfinite_forward")),
    )
