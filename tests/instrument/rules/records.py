"""Synthetic records of a healthy run, and changes to them: what the tests of the rules share."""

import numpy as np

from tapescope.rules import engine, record_view
from tapescope.rules.data_view import DataRow, OutputObjective
from tapescope.rules.finding import SEVERITIES
from tapescope.rules.record_view import Record

LAYERS = ("hidden_1", "hidden_2", "hidden_3", "output")
VARIABLES = tuple(f"{layer}/{kind}" for layer in LAYERS for kind in ("kernel", "bias"))
DETAILS = {
    "units": [20, 20, 20, 5],
    "activations": ["relu", "tanh", "elu", "softmax"],
    "variables": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "sources": [[], [0], [1], [2]],
    "skipped": {},
}
LAYOUT = record_view.run_layout(VARIABLES, LAYERS, DETAILS)
OBJECTIVE = OutputObjective(
    output=-1,
    target=-1,
    layer="output",
    activation="softmax",
    activation_before="",
    units=5,
    target_units=1,
    loss="custom",
    from_logits=False,
    ignores_class=False,
    logits_taken=False,
    sums_examples=False,
    metrics=(),
    loss_measured=True,
    weighted=False,
    learning_rate=0.001,
)
"""An output and its loss, without data."""
NAN = np.nan
LAYER = {name: slice(2 * i, 2 * i + 2) for i, name in enumerate(LAYERS)}
"""Rows of each layer's kernel and bias."""
ALL = slice(0, 8)
KERNELS = slice(0, 8, 2)


def healthy(t, replicas=0):
    """Return columns of the t-th record of a healthy run: they are noisy, and the loss falls."""
    rng = np.random.default_rng(t)
    noise = np.exp(0.3 * rng.normal(size=8))
    columns = {
        "gradient_norm": 0.1 * noise,
        "applied_norm": 0.1 * noise,
        "weight_norm": np.array([8, 0 if t == 0 else 0.001] * 4, float),
        "gradient_max": 0.01 * noise,
        "gradient_zero": np.zeros(8),
        "gradient_nonfinite": np.zeros(8),
        "update_ratio": np.array([1e-3, np.inf if t == 0 else 0.2] * 4),
        "activation_mean": np.zeros(4),
        "activation_std": np.full(4, 0.6),
        "activation_zero": np.array([0.5, 0, 0, 0]),
        "activation_nonfinite": np.zeros(4),
        "saturated": np.array([0.5, 0.1, 0.2, NAN]),
        "delta_norm": np.array([0.03, 0.04, 0.05, NAN]),
        "flow_gate": np.array([-0.15, -0.1, -0.05, NAN]) + 0.02 * rng.normal(size=4),
        "flow_weight": np.array([NAN, 0.1, 0.1, 0.1]) + 0.02 * rng.normal(size=4),
        "flow_between": np.array([NAN, 0, 0, 0]),
        "units_dead": np.full(4, NAN) if t < 4 else np.array([2.0, 0, 0, 0]),
        "window_examples": np.float64(NAN if t < 4 else 512),
        "loss": np.float64(2.3 * 0.97**t),
        "first_nonfinite_forward": np.float64(-1),
        "first_nonfinite_backward": np.float64(-1),
    }
    if replicas:
        columns["replica_norm"] = 0.1 * np.exp(0.5 * rng.normal(size=[replicas, 8]))
        columns["replica_cosine"] = np.clip(0.5 + 0.1 * rng.normal(size=[replicas, 8]), -1, 1)
    return columns


def find(count=60, change=None, layout=LAYOUT, replicas=0, severity="warning"):
    """Return findings at least as severe, after `count` records four steps apart.

    Args:
        count: Number of records.
        change: `change(t, columns)` alters the columns of each record in place.
        layout: Layout of the run.
        replicas: Number of replicas.
        severity: The least severe that is returned.
    """
    rules = engine.RuleEngine(layout)
    for t in range(count):
        columns = healthy(t, replicas)
        if change:
            change(t, columns)
        rules.add(Record(4 * t, columns))
    counted = SEVERITIES[: SEVERITIES.index(severity) + 1]
    return [finding for finding in rules.findings if finding.severity in counted]


def put(column, index, value, since=0):
    """Return a change that writes a value to a column, from record number `since` on; index None for a number."""

    def change(t, columns):
        if t >= since:
            if index is None:
                columns[column] = np.float64(value)
            else:
                columns[column][index] = value

    return change


def both(*changes):
    """Return a change that applies several."""

    def change(t, columns):
        for single in changes:
            single(t, columns)

    return change


def only_finding(findings, rule):
    """Return the only finding, which must be of that rule."""
    assert [finding.rule for finding in findings] == [rule]
    return findings[0]


FLAT = put("loss", None, 2.3)
"""A loss that does not fall."""


VALUES = LAYOUT._replace(
    data=(DataRow(name="target", kind="target", integer=False, followers=(), normalizers=(), weighted=False),),
    objectives=(OBJECTIVE._replace(target=0, units=1, activation="linear", loss="mean_squared_error"),),
)
"""The layout of a regression."""


def targets(std):
    """Return a change that adds targets of this standard deviation, for `VALUES`: its square is a constant's loss."""

    def change(_, columns):
        columns |= {"data_elements": np.array([320.0]), "data_nonfinite": np.zeros(1)}
        columns |= {"data_mean": np.zeros(1), "data_std": np.array([std])}

    return change


def noisy_flat(t, columns):
    """Change the loss to one that does not fall but varies, and let the weights move far."""
    columns["loss"] = np.float64(2.3 + loss_noise(t))
    columns["update_ratio"][::2] = 5e-3


def loss_noise(t):
    """Return the noise of a loss at record t."""
    return 0.05 * np.random.default_rng(1000 + t).normal()
