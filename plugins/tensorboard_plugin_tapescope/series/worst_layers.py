"""The layers that deserve a look first, and why: in the tab, in index.json and in `tapescope status`."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tensorboard_plugin_tapescope.series import tables

NORM = "delta_norm"
"""The column by which layers are ranked of which no finding says anything."""
FIRST_NONFINITE = ("first_nonfinite_forward", "first_nonfinite_backward")
"""Columns of the step that have the number of a layer."""


class Reason(NamedTuple):
    """The reason for which a layer deserves a look."""

    name: str
    """The rule of a finding, `first_nonfinite` or `smallest_gradient`."""
    severity: str | None
    """Of the finding; None without one."""


def rank_layers(
    layers: Sequence[str],
    findings: Iterable[tuple[str | None, Reason]],
    first_nonfinite: Iterable[float],
    norms: np.ndarray,
) -> dict[str, Reason]:
    """Return layers with the reason of each, the worst first.

    Those that a warning or an error names come first, then the first ones with a NaN or Inf. The others are those with
    the smallest gradient at their output. A layer without a known gradient is left out.

    Args:
      layers: names of the L layers.
      findings: the layer of each, and rule and severity; the most important first.
      first_nonfinite: numbers of the first layers with a NaN or Inf in the last record, -1 or NaN for none.
      norms: of the gradient at the output of each layer in the last record, [L].
    """
    reasons: dict[str, Reason] = {}
    for layer, reason in findings:
        if layer is not None and layer in layers and reason.severity != "info":
            reasons.setdefault(layer, reason)
    for index in first_nonfinite:
        if 0 <= index < len(layers):
            reasons.setdefault(layers[int(index)], Reason("first_nonfinite", None))
    if norms.shape == (len(layers),) and np.isfinite(norms).any():
        for index in tables.worst_first(NORM, norms[None]):
            if norms[index] >= 0:  # neither NaN nor a damaged file's
                reasons.setdefault(layers[int(index)], Reason("smallest_gradient", None))
    return reasons


def describe_norm(norm: float, norms: np.ndarray) -> str:
    """Return how small the gradient of a layer is among those of all layers, [L]."""
    if not math.isfinite(norm):
        return "gradient is not finite"
    if norm == 0:
        return "gradient is exactly 0"
    largest = float(np.max(norms[np.isfinite(norms)], initial=0))
    decades = f"{math.log10(largest / norm):.1f}"
    if decades == "0.0":
        return f"smallest gradient, {100 * norm / largest:.0f} % of the largest"
    return f"smallest gradient, {decades} decades below the largest"
