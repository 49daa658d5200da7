"""The rules about a replica that differs from the others. README.md says how a rule is written."""

from collections.abc import Iterator

import numpy as np

from tapescope.rules.finding import Finding, format_factor
from tapescope.rules.history import LONG, WINDOW, History
from tapescope.rules.record_view import RecordView, lower_median

OUTLIER_NORM_DECADES = np.log10(3)
OUTLIER_NORM_DECADES_LONG = np.log10(1.5)
"""The smaller difference, for one that has lasted for LONG records."""
OUTLIER_COSINE = 0.4
ONE_SIDED_SHARE = 0.9
"""Of the records. By chance a replica's gradient is longer than the others' at half of them, however noisy a batch is,
and at 27 of 30 once in a hundred thousand times."""


def replica_outlier(history: History) -> Iterator[Finding]:
    """Report one replica whose gradient has another norm than the others', or another direction."""
    if len(history.replica_differences) < WINDOW:
        return
    steps = [step for step, _ in history.replica_differences]
    differences = np.stack([difference for _, difference in history.replica_differences])  # [T, 2, R]
    low, high = lower_median(differences), -lower_median(-differences)
    usual = np.where(np.abs(low) <= np.abs(high), low, high)  # of two replicas, the same with another sign
    one_sided = np.mean(np.sign(differences) == np.sign(usual), axis=0) >= ONE_SIDED_SHARE
    norm_limit = OUTLIER_NORM_DECADES if len(differences) < LONG else OUTLIER_NORM_DECADES_LONG
    limits = np.array([norm_limit, OUTLIER_COSINE])
    excess = np.where(one_sided, np.nan_to_num(np.abs(usual), posinf=99), 0) / limits[:, None]
    if not excess.max() >= 1:
        return
    # Of two replicas each is the other's outlier. Name the longer one, unless the other has no gradient at all.
    preferred = np.where(np.isinf(usual), usual < 0, usual > 0)
    kind, replica = np.unravel_index(np.argmax(excess + np.where(preferred, 1e-6, 0.0)), excess.shape)
    decades, cosine = usual[:, replica]
    if kind == 0:
        difference = f"is {format_factor(10.0**decades)} as long as that of the others"
    else:
        difference = f"has another direction than that of the others: its cosine to the mean differs by {cosine:+.2f}"
    on_usual_side = np.sign(differences[:, kind, replica]) == np.sign(usual[kind, replica])
    yield Finding(
        rule="replica_outlier",
        version=1,
        severity="warning",
        layer=None,
        step=steps[int(np.argmax(on_usual_side))],
        message=f"the gradient of replica {replica} {difference}",
        evidence={
            "replica": float(replica),
            "norm_ratio": float(10.0**decades),
            "cosine_difference": float(cosine),
        },
        advice="Compare this replica's data with that of the others: its shard, its labels, its preprocessing.",
    )


def replicas_diverged(history: History) -> Iterator[Finding]:
    """Report replicas whose weights are not the same any more: a single bit is enough, and none comes back."""
    latest = history.latest
    if "replica_checksum" not in latest.columns or latest.number("first_nonfinite_forward", -1) >= 0:
        return
    differs = _different_weights(latest)
    if not differs.any():
        return
    distances = np.where(differs, np.asarray(latest.columns.get("replica_difference", differs), float), -np.inf)
    replica, variable = np.unravel_index(np.argmax(np.nan_to_num(distances, nan=-np.inf)), distances.shape)
    layout = history.layout
    count = int(differs.any(0).sum())
    if differs.shape[1] == layout.variable_count:
        owners: dict[int, int] = dict(zip(layout.owned[1].tolist(), layout.owned[0].tolist(), strict=True))
        layer: str | None = layout.groups[owners[int(variable)]]
        extent = f" in {count} of {differs.shape[1]} variables"
        most = f"replica {replica} and `{layout.variable_names[variable]}` differ most"
    else:  # so many replicas that all variables are compared together
        layer = None
        extent = ""
        most = f"{int(differs.sum())} of {len(differs)} differ from replica 0, and replica {replica} differs most"
    yield Finding(
        rule="replicas_diverged",
        version=1,
        severity="error",
        layer=layer,
        step=history.first_step(_different_weights),
        message=f"the replicas have different weights{extent}, so they train different networks; {most}",
        evidence={
            "replica": float(replica),
            "variables": float(count),
            "difference": float(distances[replica, variable]),
        },
        advice="Look for what one replica does and the others do not: a gradient that is not summed over the replicas, "
        "weights that are assigned or restored on one of them only, or a step that only one of them skips.",
    )


def _different_weights(view: RecordView) -> np.ndarray:
    """Return which replica's weights are not those of replica 0, bool [R, V]."""
    checksums = np.asarray(view.columns.get("replica_checksum", np.zeros([1, 1])), float)
    return np.abs(checksums - checksums[:1]) > 0
