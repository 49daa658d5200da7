"""When the slow columns are measured, and their measurement by a Recorder: see `statistics.slow_columns`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tapescope.capture import optimizer_state, private_api
from tapescope.capture.state import ProbeState
from tapescope.failsafe import Failsafe
from tapescope.statistics import slow_columns
from tapescope.statistics.slow_columns import SlowRows
from tapescope.storage.resume import Resume

SLOW_STEPS = 1000
"""Default number of steps from one slow measurement to the next. It takes about as long as one step of a small network,
and less than that of a large one."""
_NEXT = "slow/next"
"""Name of the first step of the next measurement in a Recorder's state."""


def check_slow_every(steps: Any) -> None:
    """Raise ValueError unless `steps` is a number of steps."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"`slow_every` must be a number of steps, or 0 for never; got {steps!r}")


class SlowMeasurement:
    """Measures the slow columns after each `every` trained steps, at the first record from there on.

    Args:
      state: of the Probe.
      every: number of steps; 0 for never.
      resume: where a run goes on, or None.
    """

    def __init__(self, state: ProbeState, every: int, resume: Resume | None):
        self._probe_state = state
        self._every = every
        self._failsafe = Failsafe(state.failsafe.strict, "the slow columns are not measured any more")
        self._key: Any = None
        """Variables and moments that `_measure` was made for; kept, because ids are compared."""
        self._measure: Callable[[], Any] | None = None
        self._next = self._last_of_period(resume.step if resume else 0)
        if resume and _NEXT in resume.state:
            self._next = min(self._next, int(resume.state[_NEXT]))

    def _last_of_period(self, step: int) -> int:
        """Return the first step from `step` on with which a period of `every` steps is over."""
        return (step // self._every + 1) * self._every - 1 if self._every else -1

    def state(self) -> dict[str, np.ndarray]:
        """Return what a later object needs to go on."""
        return {_NEXT: np.array(self._next)} if self._every else {}

    @staticmethod
    def without_state(resume: Resume) -> Resume:
        """Return the state of a run without what `state` has returned."""
        return resume._replace(state={name: array for name, array in resume.state.items() if name != _NEXT})

    def measure(self, step: int) -> SlowRows | None:
        """Return the slow columns of the weights as they are; None if it is not this step's turn.

        After a failure it is None: see `Failsafe`.
        """
        if not self._every or self._failsafe.failure or step < self._next:
            return None
        self._next = self._last_of_period(step + 1)
        with self._failsafe.contain(), private_api.without_op_callbacks():
            return self._measure_rows()
        return None

    def _measure_rows(self) -> SlowRows:
        selection = self._probe_state.selection
        variables = selection.variables()
        moments = optimizer_state.find_moments(self._probe_state.optimizers(), variables)
        key = (variables, *moments)
        if self._measure is None or not _same(key, self._key):
            self._key = key
            self._measure = slow_columns.measurement(variables, moments, selection.einsum_equations())
        return SlowRows(self._measure(), selection.variable_names(variables))


def _same(key: Any, other: Any) -> bool:
    """Return whether two tuples of lists hold the same objects."""
    return other is not None and [[id(v) for v in part] for part in key] == [[id(v) for v in part] for part in other]
