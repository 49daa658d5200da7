"""The numbers of a measured step that a replay looks at."""

from typing import Any

import numpy as np

from tapescope.capture.selection import Names
from tapescope.replays.answer import MeasuredStep, total_norm
from tapescope.statistics.reading import Reading
from tapescope.storage import summaries


def read_step(reading: Reading, names: Names) -> MeasuredStep:
    """Return the numbers of a reading whose rows have these names."""
    host: Any = summaries.to_host(reading)
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
