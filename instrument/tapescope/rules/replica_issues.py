"""Rules about what Keras does otherwise with several replicas than with one; made as those in rules_flow.py.

That a model or an optimizer asks for it is known from the first record on (faults.py); the numbers say whether it does
harm. docs/distributed.md tells what is done instead.
"""

from collections.abc import Iterator

import numpy as np

from tapescope.capture.keras_replica_issues import CLIPPING, WORDS
from tapescope.rules.finding import Finding, percent
from tapescope.rules.history import History
from tapescope.rules.record_view import View

FEW = 16
"""Examples to normalise by: with fewer, batch normalisation's error rises (Wu and He, "Group Normalization", 2018,
figure 1)."""
NAMES = {"batch_norm_of_a_share", "same_random_numbers", "clipped_before_sum", "overflow_missed"}
"""They say nothing of how well the gradient arrives."""


def otherwise(seen: History) -> Iterator[Finding]:
    """What the step was found to do, each kind once."""
    if not seen.of.faults or "replica_norm" not in seen.now.columns:
        return
    replicas = len(seen.now.columns["replica_norm"])
    first: dict[str, tuple[str | None, float]] = {}
    for kind, layer, value in seen.of.faults:
        first.setdefault(kind, (layer, 0.0 if value is None else value))
    for kind, (layer, value) in first.items():
        layers = sum(fault[0] == kind for fault in seen.of.faults)
        if kind == "batch_norm":
            yield _batch_norm(seen, layer, layers, replicas)
        elif kind == "random_numbers":
            yield _random_numbers(seen, layer, layers, replicas)
        elif kind == "overflow":
            yield _overflow(seen, replicas)
        elif kind in CLIPPING:
            yield _clipping(seen, kind, value, replicas)


def _batch_norm(seen: History, layer: str | None, layers: int, replicas: int) -> Finding:
    share = _batch(seen) / replicas
    return _finding(
        seen,
        "batch_norm_of_a_share",
        "warning" if share < FEW else "info",
        layer,
        f"`{layer}`{_more(layers)} {_by(layers, 'normalises')} {share:.0f} examples of a replica at a time, and of the "
        f"{replicas} moving statistics those of the first are kept",
        {"examples": share, "layers": layers, "replicas": replicas},
        "batch_norm",
    )


def _random_numbers(seen: History, layer: str | None, layers: int, replicas: int) -> Finding:
    return _finding(
        seen,
        "same_random_numbers",
        "warning",
        layer,
        f"`{layer}`{_more(layers)} {_by(layers, 'draws')} the same random numbers on all {replicas} replicas, so their "
        "examples share masks, and the noise is not averaged out",
        {"layers": layers, "replicas": replicas},
        "random_numbers",
    )


def _clipping(seen: History, setting: str, value: float, replicas: int) -> Finding:
    """It does harm where it acts: at half of the records, as the gradient is usually."""
    acts = [_clips(v, setting, value) for v in seen.window]
    share = float(np.mean(acts))
    longest = max(float(np.nanmax(np.sqrt(np.nansum(np.square(_own(v)), axis=1)))) for v in seen.window)
    return _finding(
        seen,
        "clipped_before_sum",
        "warning" if share >= 0.5 else "info",
        None,
        f"the optimizer's {setting}={value:g} clips each of {replicas} replicas' gradients and then sums them, so that "
        f"the sum may be {replicas} times as large, and have another direction; it acts at {percent(share)} of the "
        "records",
        {setting: value, "share_of_records": share, "replica_norm_largest": longest, "replicas": replicas},
        "clipping",
    )


def _clips(view: View, setting: str, value: float) -> bool:
    """Whether some replica's gradient was clipped. By `clipvalue`, where it is certain: of the elements only the
    largest of the sum is known.
    """
    if setting == "clipvalue":
        return bool(np.nanmax(view.columns["gradient_max"], initial=0) > value * len(_own(view)))
    norms = _own(view)
    return bool(np.any((norms if setting == "clipnorm" else np.sqrt(np.nansum(np.square(norms), axis=1))) > value))


def _overflow(seen: History, replicas: int) -> Finding:
    """Worst where it has happened: all weights are NaN, which count as 0 in their norm."""
    weights = [float(np.nansum(np.square(v.column("weight_norm", seen.of.variables)))) for v in list(seen.window)[-2:]]
    happened = len(weights) == 2 and weights[0] > 0 and weights[1] == 0
    message = f"the loss scale's optimizer looks for overflow on the first of {replicas} replicas only"
    if happened:
        since = list(seen.window)[-2].step
        message += f"; between steps {since} and {seen.now.step} another one's overflow has made all weights NaN"
    return _finding(
        seen,
        "overflow_missed",
        "error" if happened else "warning",
        None,
        message,
        {"weight_norm": weights[-1] ** 0.5, "replicas": replicas},
        "overflow",
    )


def _finding(
    seen: History, rule: str, severity: str, layer: str | None, message: str, evidence: dict[str, float], kind: str
) -> Finding:
    step, (_, cure) = seen.first.step if seen.first else seen.now.step, WORDS[kind]
    return Finding(rule, 1, severity, layer, step, message, evidence, f"{cure[0].upper()}{cure[1:]}.")


def _own(view: View) -> np.ndarray:
    """Norms of the replicas' own gradients, [R, V]."""
    return np.asarray(view.columns["replica_norm"], float)


def _batch(seen: History) -> float:
    """Examples a step."""
    old, new = seen.window[0], seen.now
    steps, examples = new.step - old.step, new.number("examples_seen") - old.number("examples_seen")
    return examples / steps if steps else new.number("examples_seen") / (new.step + 1)


def _more(layers: int) -> str:
    return f" and {layers - 1} more" if layers > 1 else ""


def _by(layers: int, verb: str) -> str:
    return verb.removesuffix("s") if layers > 1 else verb
