"""The alarm: whether a record shows something that is worth running its step again for."""

import math
from collections.abc import Sequence

from tapescope.rules.finding import Finding
from tapescope.rules.history import SPIKE_FACTOR, History
from tapescope.rules.record_view import RecordView

_KNOWN_RECORDS = 3
"""Records before one from which on it can be a spike."""


def find_alarm(history: History, changed: Sequence[Finding]) -> str | None:
    """Return why the latest record is one to capture, such as "a spike"; None if it is not.

    Unlike a finding, an alarm is raised each time: at every spike, and at the first record with a NaN or Inf after one
    without. A spike is known here before it has come back.

    Args:
      history: with the record.
      changed: findings that are new with the record, or have become more severe.
    """
    views = list(history.window)
    latest = views[-1]
    if _is_nonfinite(latest) and not (len(views) > 1 and _is_nonfinite(views[-2])):
        return "a NaN or Inf"
    if history.has_risen or _is_far_above(latest, views[:-1]):
        return "a spike"
    errors = [finding.rule for finding in changed if finding.severity == "error"]
    return f"the error {errors[0]}" if errors and not _is_nonfinite(latest) else None


def _is_nonfinite(view: RecordView) -> bool:
    """Return whether loss, activations or gradients are not finite, except in a step that a loss scale has skipped."""
    layers = max(view.number(f"first_nonfinite_{direction}", -1) for direction in ("forward", "backward"))
    lost = math.isinf(view.loss) or layers >= 0
    return lost and not (view.number("first_nonfinite_forward", -1) < 0 and view.number("skipped", 0) > 0)


def _is_far_above(latest: RecordView, before: Sequence[RecordView]) -> bool:
    """Return whether norm and loss are both far above their medians. Near a loss of 0, the norm alone may be."""
    if len(before) < _KNOWN_RECORDS:
        return False
    for name in ("norm", "loss"):
        values = sorted(value for view in before if math.isfinite(value := getattr(view, name)))
        if not values or not getattr(latest, name) > SPIKE_FACTOR * values[len(values) // 2] > 0:
            return False
    return True
