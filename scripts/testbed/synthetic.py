"""Synthetic runs to test and measure the tab: the wire contract, filled with numbers that have a known shape.

    from scripts.testbed.synthetic import Spec, write
    write("runs/vanishing", Spec(depth=12, decay=0.4), steps=range(0, 1000, 10))

The gradient of layer i of n is `decay ** (n - i)`, so `decay` 0.4 vanishes and 1.0 is healthy; a share of units dies.
"""

import json
import math
import os
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tapescope.storage import event_file, event_values
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family


class Spec(NamedTuple):
    """The properties of a synthetic run."""

    depth: int = 5
    units: int = 16
    decay: float = 0.8
    dying: float = 0.2
    """Share of the units that are dead at the end."""
    replicas: int = 1
    bias: bool = True
    histograms: bool = True
    budget: bool = True
    added_layers: int = 0
    """Number of the last layers that the first record does not have."""
    layers: tuple[str, ...] = ()
    """Names to use instead of `hidden_1` .. `output`."""
    heads: int = 0
    """Number of attention heads of each layer."""
    findings: tuple[dict, ...] = ()
    step_seconds: float = 0.05
    seed: int = 0

    def layer_names(self) -> tuple[str, ...]:
        return self.layers or (*(f"hidden_{i + 1}" for i in range(self.depth - 1)), "output")

    def variable_names(self) -> tuple[str, ...]:
        kinds = ("kernel", "bias") if self.bias else ("kernel",)
        return tuple(f"{layer}/{kind}" for layer in self.layer_names() for kind in kinds)


DEFAULT = Spec()
SLOW_STEPS = 200
"""Steps from one record with a stable rank to the next."""
_VARIABLE_COLUMNS = (*metadata.VARIABLE_COLUMNS, *metadata.SLOW_COLUMNS)

_DATA = {
    "data_rows": [
        {"name": "input", "kind": "input", "integer": False, "followers": ["trained"], "normalizers": []},
        {"name": "target", "kind": "target", "integer": True, "weighted": False},
        {"name": "output", "kind": "output", "integer": False},
    ],
    "objectives": [
        {
            "output": "output",
            "target": "target",
            "layer": "output",
            "activation": "linear",
            "activation_before": "relu",
            "units": 10,
            "target_units": 1,
            "loss": "sparse_categorical_crossentropy",
            "from_logits": True,
            "ignores_class": False,
            "logits_taken": False,
            "sums_examples": False,
            "metrics": ["accuracy"],
            "learning_rate": 0.001,
            "loss_measured": False,
            "weighted": False,
        }
    ],
}
"""Details of the family `data`: one input, and digits as labels."""


def families(spec: Spec) -> dict[str, Family]:
    """Return the description of each family by its name."""
    layers = spec.layer_names()
    variables = spec.variable_names()
    kinds = len(variables) // len(layers)
    details = {
        "units": [spec.units] * len(layers),
        "activations": ["relu"] * (len(layers) - 1) + ["linear"],
        "variables": [list(range(kinds * i, kinds * (i + 1))) for i in range(len(layers))],
        "sources": [[i - 1] if i else [] for i in range(len(layers))],
        "skipped": {},
    }
    described = {
        "variables": Family("variables", tuple(c.name for c in _VARIABLE_COLUMNS), variables),
        "layers": Family("layers", tuple(c.name for c in metadata.LAYER_COLUMNS), layers, details),
        "step": Family("step", tuple(c.name for c in metadata.STEP_COLUMNS)),
        "units": Family("units", (), layers, {"units": details["units"]}),
        "data": Family("data", tuple(c.name for c in metadata.DATA_COLUMNS), ("input", "target", "output"), _DATA),
        "findings": Family("findings"),
        "status": Family("status"),
    }
    if spec.histograms:
        described["gradient_histogram"] = Family("gradient_histogram", (), variables)
        described["activation_histogram"] = Family("activation_histogram", (), layers)
    if spec.replicas > 1:
        columns = tuple(c.name for c in metadata.REPLICA_COLUMNS)
        described["replicas"] = Family("replicas", columns, variables, {"replicas": spec.replicas})
    if spec.heads:
        names = tuple(f"{layer}/head_{n}" for layer in layers for n in range(spec.heads))
        described["heads"] = Family("heads", tuple(c.name for c in metadata.HEAD_COLUMNS), names)
        described["residual"] = Family("residual", tuple(c.name for c in metadata.RESIDUAL_COLUMNS), layers)
    return described


def _histogram(scale: np.ndarray, edges: np.ndarray, rng: np.random.Generator, size: int = 512) -> np.ndarray:
    """Return int32 counts [rows, BINS] of normal samples of each scale; a fifth of them are exactly 0."""
    samples = rng.normal(size=(len(scale), size)) * scale[:, None]
    samples[:, : size // 5] = 0
    inside = np.clip(np.searchsorted(edges, samples, side="right") - 1, 0, metadata.BINS - 1)
    inside[samples == 0] = metadata.SIDE_BINS
    return np.stack([np.bincount(row, minlength=metadata.BINS) for row in inside]).astype(np.int32)


def record(spec: Spec, step: int, total: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the arrays of the numeric families at a step, by family name."""
    depth = len(spec.layer_names())
    kinds = 2 if spec.bias else 1
    progress = step / max(total, 1)
    noise = np.exp(rng.normal(scale=0.15, size=depth))
    delta = spec.decay ** np.arange(depth - 1, -1, -1) * np.exp(-2 * progress) * noise
    gradient = np.repeat(delta, kinds) * np.tile([1.0, 0.3][:kinds], depth)
    dead = np.floor(spec.units * spec.dying * progress * np.linspace(1, 0, depth))
    weight = np.full(depth * kinds, 4.0) + progress
    # Parts of the gradient that add up to it, of which some noise cancels.
    replicas = np.exp(rng.normal(scale=0.1, size=(spec.replicas, depth * kinds))) * 1.2 * gradient / spec.replicas
    zero = 0.3 + 0.5 * dead / spec.units
    known = {
        "gradient_norm": gradient,
        "applied_norm": np.minimum(gradient, 1),
        "weight_norm": weight,
        "gradient_max": gradient / 3,
        "gradient_zero": np.full(depth * kinds, 0.2),
        "gradient_nonfinite": np.zeros(depth * kinds),
        "update_ratio": 0.01 * gradient / weight,
        "update_norm": 0.01 * gradient,
        "stable_rank": np.full(depth * kinds, math.nan if step % SLOW_STEPS else 3.0),
        "activation_mean": 0.4 * noise,
        "activation_std": noise,
        "activation_min": np.zeros(depth),
        "activation_max": 4 * noise,
        "activation_zero": zero,
        "activation_nonfinite": np.zeros(depth),
        "saturated": zero,
        "delta_norm": delta,
        "units_dead": dead,
        "units_dormant": dead * 0.5,
        "units_saturated": np.zeros(depth),
        "units_revived": np.floor(0.1 * dead),
        "loss": 2.3 * np.exp(-3 * progress) + 0.05,
        "validation_loss": 2.3 * np.exp(-3 * progress) + 0.25 if spec.replicas == 1 else math.nan,
        "examples_seen": 128 * (step + 1),
        "window_examples": 1024,
        "measure_ms": 3.1,
        "step_ms": 1000 * spec.step_seconds,
        "loss_spike_share": 0.0125,
        "first_nonfinite_forward": -1,
        "first_nonfinite_backward": -1,
    }
    if spec.budget:
        between = np.zeros(depth)
        weights = np.log10(spec.decay) + 0.3 + 0.05 * rng.normal(size=depth)
        known |= {"flow_gate": np.full(depth, -0.3), "flow_weight": weights, "flow_between": between}
    if spec.replicas > 1:
        known |= {"noise_scale": 200 + 40 * rng.normal(size=depth * kinds), "noise_scale_total": 220}
    tensors = {
        "variables": _rows(_VARIABLE_COLUMNS, known, depth * kinds).astype(np.float32),
        "layers": _rows(metadata.LAYER_COLUMNS, known, depth).astype(np.float32),
        "step": _rows(metadata.STEP_COLUMNS, known, 1)[:, 0],
        "units": _states(spec, dead),
        "data": _data_rows(rng),
    }
    if spec.replicas > 1:
        cosine = np.clip(0.9 + 0.05 * rng.normal(size=replicas.shape), -1, 1)
        same = np.zeros_like(replicas)
        rows = [replicas, cosine, 0.5 + cosine / 3, same + 4711, same, same]
        tensors["replicas"] = np.concatenate(rows).astype(np.float32)
    if spec.heads:
        share = np.linspace(0.1, 0.9, depth * spec.heads) * (1 - 0.5 * progress)
        of_heads = {"attention_logit_max": 4 / share, "attention_entropy": share, "attention_first": 1 - share}
        of_depth = {"residual_rms": np.arange(1, depth + 1) * (1 + progress), "residual_nonfinite": 0}
        tensors["heads"] = _rows(metadata.HEAD_COLUMNS, of_heads, depth * spec.heads).astype(np.float32)
        tensors["residual"] = _rows(metadata.RESIDUAL_COLUMNS, of_depth, depth).astype(np.float32)
    if spec.histograms:
        edges = metadata.bin_edges()
        tensors["gradient_histogram"] = _histogram(gradient, edges, rng)
        tensors["activation_histogram"] = _histogram(noise, edges, rng)
    return tensors


def _rows(columns: tuple[metadata.Column, ...], known: dict[str, np.ndarray], width: int) -> np.ndarray:
    """Return an array [C, width] with a row for each column; columns that are not in `known` are NaN."""
    return np.stack([np.broadcast_to(known.get(c.name, np.nan), width) for c in columns])


def _data_rows(rng: np.random.Generator) -> np.ndarray:
    """Return float32 [C, 3]: normal inputs and outputs, and whole numbers from 0 to 9 as targets."""
    values = np.stack([rng.normal(size=128), rng.integers(10, size=128), rng.normal(size=128)])
    known = {
        "data_elements": 128,
        "data_nonfinite": 0,
        "data_rms": np.sqrt(np.square(values).mean(1)),
        "data_mean": values.mean(1),
        "data_std": values.std(1),
        "data_min": values.min(1),
        "data_max": values.max(1),
        "data_zero": (values == 0).mean(1),
        "data_whole": (values == np.floor(values)).mean(1),
        "data_negative": (values < 0).mean(1),
        "data_above_one": (values > 1).mean(1),
        "data_below_minus_one": (values < -1).mean(1),
    }
    return _rows(metadata.DATA_COLUMNS, known, 3).astype(np.float32)


def _states(spec: Spec, dead: np.ndarray) -> np.ndarray:
    """Return uint8 states [sum U]: the first units of each layer die one after another, the last is always on."""
    code = {name: i for i, name in enumerate(metadata.UNIT_STATES)}
    states = np.full((len(dead), spec.units), code["alive"], np.uint8)
    states[:, -1] = code["always_on"]
    states[np.arange(spec.units) < dead[:, None]] = code["dead"]
    states[np.arange(spec.units) == dead[:, None]] = code["dormant"]
    return states.reshape(-1)


def finding(layer: str | None = "hidden_1", step: int = 40, severity: str = "error", **fields) -> dict:
    """Return a finding as the rules write it."""
    message = f"The gradient of {layer} is 5 decades below that of the last layer."
    base = {"rule": "vanishing", "version": 1, "severity": severity, "layer": layer, "step": step}
    evidence = {"gradient_norm": 1e-7, "decades": 5.0}
    return {**base, "message": message, "evidence": evidence, "advice": "Use a ReLU with He initialization.", **fields}


class Writer:
    """Appends the records of a synthetic run, as the recorder would."""

    def __init__(self, logdir: str | os.PathLike[str], spec: Spec, total: int = 1000):
        self.spec = spec
        self.total = total
        self.families = families(spec)
        self.rng = np.random.default_rng(spec.seed)
        self.file = event_file.EventFile(logdir)

    def use(self, spec: Spec) -> None:
        """Go on with other layers."""
        self.spec = spec
        self.families = families(spec)

    def rows(self, step: int, wall_time: float | None = None) -> None:
        """Write all variables and layers, as where some were added."""
        details = self.families["layers"].details
        content = {
            **{key: details[key] for key in ("units", "activations", "sources", "skipped")},
            "variables": self.spec.variable_names(),
            "layers": self.spec.layer_names(),
            "layer_variables": details["variables"],
        }
        family = Family("rows", schema=metadata.ROWS_SCHEMA)
        self.file.add(step, [event_values.text(family, json.dumps(content))], wall_time)

    def status(self, step: int, state: str, wall_time: float | None = None) -> None:
        started = time.time() - 60
        status = {"state": state, "reason": "", "replicas": self.spec.replicas, "steps": self.total, "started": started}
        self.file.add(step, [event_values.text(self.families["status"], json.dumps(status))], wall_time)

    def findings(self, step: int, wall_time: float | None = None) -> None:
        texts = [json.dumps(f) for f in self.spec.findings]
        self.file.add(step, [event_values.text(self.families["findings"], texts)], wall_time)

    def write(self, step: int, wall_time: float | None = None, units: bool = True) -> None:
        tensors = record(self.spec, step, self.total, self.rng)
        if not units:
            tensors.pop("units")
        self.file.add(step, [event_values.tensor(self.families[f], t) for f, t in tensors.items()], wall_time)


def write(
    logdir: str | os.PathLike[str], spec: Spec = DEFAULT, steps: Iterable[int] = range(0, 500, 10), state: str = "ended"
) -> None:
    """Write a whole run, with `units` only at every fourth record, where a window of examples ends."""
    steps = list(steps)
    total = steps[-1] if steps else 0
    writer = Writer(logdir, spec, total)
    start = time.time() - spec.step_seconds * total
    writer.status(0, "training", start)
    if spec.added_layers and steps:
        kept = spec.layer_names()[: -spec.added_layers]
        writer.use(spec._replace(layers=kept))
    for count, step in enumerate(steps):
        if count == 1 and spec.added_layers:
            writer.use(spec)
            writer.rows(step, start + spec.step_seconds * step)
        writer.write(step, start + spec.step_seconds * step, units=count % 4 == 3)
    writer.findings(total)
    writer.status(total, state)
    writer.file.close()


def write_newer(logdir: str | os.PathLike[str]) -> None:
    """Write a run of a later schema, which this version does not know."""
    file = event_file.EventFile(logdir)
    later = Family("layers", ("activation_mean",), ("hidden_1",), {}, metadata.SCHEMA + 1)
    file.add(0, [event_values.tensor(later, np.zeros((1, 1), np.float32))])
    file.close()
