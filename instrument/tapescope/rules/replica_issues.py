"""Rules about what Keras does differently with several replicas than with one. README.md says how a rule is written.

A Probe finds at the first measured step that a model or an optimizer asks for it, and each record of the replicas says
so; see `capture/keras_replica_issues.py`. The rules judge by the numbers whether it does harm. docs/distributed.md
says what to do instead.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tapescope.rules.finding import Finding, format_share, name_layers
from tapescope.rules.history import History
from tapescope.rules.record_view import RecordView
from tensorboard_plugin_tapescope.metadata import CLIPPING_SETTINGS

FEW_EXAMPLES = 16
"""Examples that batch normalization averages over: with fewer its error rises (Wu and He, "Group Normalization", 2018,
figure 1)."""
NAMES = {"batch_norm_of_a_share", "same_random_numbers", "clipped_before_sum", "overflow_missed", "mean_of_a_share"}
"""Names of these rules. They say nothing about how well the gradient arrives."""


class IssueText(NamedTuple):
    """Effect of an issue, and its cure."""

    effect: str
    cure: str


ISSUE_TEXTS = {
    "batch_norm": IssueText(
        "normalizes each replica by its own share of the batch, and keeps the moving statistics of the first replica",
        "pass synchronized=True",
    ),
    "random_numbers": IssueText(
        "draws the same random numbers on all replicas, so their examples share masks",
        "call tapescope.own_random_numbers(model) before the first step",
    ),
    "clipping": IssueText(
        "clips each replica's gradients before they are summed",
        "clip the sum in the step instead of in the optimizer",
    ),
    "overflow": IssueText(
        "looks for overflow on the first replica only, and applies NaN if another one overflowed",
        "make all gradients NaN where their sum is not finite, before `apply`",
    ),
    "mean_of_share": IssueText(
        "sums the gradients of all replicas, and the loss is the mean over one replica's share of the batch",
        "divide the loss by `strategy.num_replicas_in_sync`, use `tf.nn.compute_average_loss`, or for `compile(loss=)` "
        "return a number for each example",
    ),
    "accumulation": IssueText(
        "fails under replicas (keras#20582)",
        "sum the gradients of several parts of the batch before `apply`",
    ),
}
"""By kind; all settings that clip share one."""


def issue_text(issue: tuple[str, str | None, float | None]) -> str:
    """Return one line about an issue: who does what, and the cure.

    Args:
      issue: its kind (a key of ISSUE_TEXTS, or one of CLIPPING_SETTINGS), the layer that causes it (None for the
        optimizer), and the value of the setting that asks for it (None where it is not a setting).
    """
    kind, layer, value = issue
    setting = kind if value is None else f"{kind}={value:g}"
    optimizer = {
        "overflow": "LossScaleOptimizer",
        "accumulation": f"gradient_accumulation_steps={value or 0:g}",
        "mean_of_share": "SGD",
    }
    text = _text(kind)
    return f"{layer or optimizer.get(kind, setting)} {text.effect}: {text.cure}"


def _text(kind: str) -> IssueText:
    return ISSUE_TEXTS["clipping" if kind in CLIPPING_SETTINGS else kind]


def replica_issues(history: History) -> Iterator[Finding]:
    """Judge the issues that the records name, each kind once. Kinds of a later version are ignored."""
    issues = history.layout.replica_issues
    if not issues or "replica_norm" not in history.latest.columns:
        return
    replicas = len(history.latest.columns["replica_norm"])
    first = {kind: (layer, 0.0 if value is None else value) for kind, layer, value in reversed(issues)}
    for kind in dict.fromkeys(kind for kind, _, _ in issues):
        layer, value = first[kind]
        layers = sum(other == kind for other, _, _ in issues)
        if kind == "batch_norm":
            yield _batch_norm(history, layer, layers, replicas)
        elif kind == "random_numbers":
            yield _random_numbers(history, layer, layers, replicas)
        elif kind == "overflow":
            yield _overflow(history, replicas)
        elif kind == "mean_of_share":
            yield _mean_of_share(history, replicas)
        elif kind in CLIPPING_SETTINGS:
            yield _clipping(history, kind, value, replicas)


def _batch_norm(history: History, layer: str | None, layers: int, replicas: int) -> Finding:
    examples = _batch_size(history) / replicas
    verb = "normalizes" if layers == 1 else "normalize"
    return Finding(
        rule="batch_norm_of_a_share",
        version=1,
        severity="warning" if examples < FEW_EXAMPLES else "info",
        layer=layer,
        step=_first_step(history),
        message=f"{name_layers(layer, layers)} {verb} the {examples:.0f} examples of each replica separately, and of "
        f"the {replicas} moving statistics those of the first replica are kept",
        evidence={"examples": examples, "layers": layers, "replicas": replicas},
        advice=_advice("batch_norm"),
    )


def _random_numbers(history: History, layer: str | None, layers: int, replicas: int) -> Finding:
    verb = "draws" if layers == 1 else "draw"
    return Finding(
        rule="same_random_numbers",
        version=1,
        severity="warning",
        layer=layer,
        step=_first_step(history),
        message=f"{name_layers(layer, layers)} {verb} the same random numbers on all {replicas} replicas, so their "
        "examples share masks, and the noise does not average out",
        evidence={"layers": layers, "replicas": replicas},
        advice=_advice("random_numbers"),
    )


def _clipping(history: History, setting: str, limit: float, replicas: int) -> Finding:
    """Judge clipping by how often it acts: at half of the records it does harm."""
    share = float(np.mean([_clips(view, setting, limit) for view in history.window]))
    longest = max(float(np.nanmax(_whole_norms(view))) for view in history.window)
    return Finding(
        rule="clipped_before_sum",
        version=1,
        severity="warning" if share >= 0.5 else "info",
        layer=None,
        step=_first_step(history),
        message=f"the optimizer's {setting}={limit:g} clips the gradients of each of {replicas} replicas and then sums "
        f"them, so that the sum may be {replicas} times as large and have another direction; it acts at "
        f"{format_share(share)} of the records",
        evidence={
            setting: limit,
            "share_of_records": share,
            "replica_norm_largest": longest,
            "replicas": replicas,
        },
        advice=_advice(setting),
    )


def _clips(view: RecordView, setting: str, limit: float) -> bool:
    """Return whether some replica's gradient was clipped.

    Only where it is certain: for `clipvalue` the records have the largest element of the sum only, and for `clipnorm`,
    with many replicas, the norm of all variables together.
    """
    if setting == "clipvalue":
        replicas = len(view.columns["replica_norm"])
        return bool(np.nanmax(view.columns["gradient_max"], initial=0) > limit * replicas)
    if setting != "clipnorm":
        return bool(np.any(_whole_norms(view) > limit))
    norms = _replica_norms(view)
    variables = len(view.columns["gradient_norm"])
    if norms.shape[1] < variables:  # of all together: the largest of V norms is at least this one over the root of V
        limit *= math.sqrt(variables)
    return bool(np.any(norms > limit))


def _overflow(history: History, replicas: int) -> Finding:
    """Report an error once it has happened: then all weights are NaN, which counts as 0 in their norm."""
    variables = history.layout.variable_count
    last_two = list(history.window)[-2:]
    squares = [float(np.nansum(np.square(view.column("weight_norm", variables)))) for view in last_two]
    happened = len(squares) == 2 and squares[0] > 0 and squares[1] == 0
    message = f"the loss scale's optimizer looks for overflow on the first of {replicas} replicas only"
    if happened:
        message += f"; between steps {last_two[0].step} and {history.latest.step} an overflow on another replica has "
        message += "made all weights NaN"
    return Finding(
        rule="overflow_missed",
        version=1,
        severity="error" if happened else "warning",
        layer=None,
        step=_first_step(history),
        message=message,
        evidence={"weight_norm": squares[-1] ** 0.5, "replicas": replicas},
        advice=_advice("overflow"),
    )


def _mean_of_share(history: History, replicas: int) -> Finding:
    return Finding(
        rule="mean_of_a_share",
        version=1,
        severity="warning",
        layer=None,
        step=_first_step(history),
        message=f"the loss is the mean over one replica's share of the batch, and the optimizer sums the gradients of "
        f"{replicas} replicas: a step is {replicas} times that of one device",
        evidence={"replicas": replicas},
        advice=_advice("mean_of_share"),
    )


def _first_step(history: History) -> int:
    return (history.first or history.latest).step


def _advice(kind: str) -> str:
    cure = _text(kind).cure
    return f"{cure[0].upper()}{cure[1:]}."


def _replica_norms(view: RecordView) -> np.ndarray:
    """Return norms of the replicas' own gradients, [R, V]."""
    return np.asarray(view.columns["replica_norm"], float)


def _whole_norms(view: RecordView) -> np.ndarray:
    """Return norms of the replicas' own gradients over all variables, [R]."""
    return np.sqrt(np.nansum(np.square(_replica_norms(view)), axis=1))


def _batch_size(history: History) -> float:
    """Return examples per step over all replicas."""
    oldest = history.window[0]
    latest = history.latest
    steps = latest.step - oldest.step
    examples = latest.number("examples_seen") - oldest.number("examples_seen")
    return examples / steps if steps else latest.number("examples_seen") / (latest.step + 1)
