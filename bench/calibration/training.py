"""The training of one set-up with tapescope, and the quantities of other tools from the same steps."""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from bench.calibration.data import Data
from bench.calibration.setup import Setup

import tapescope
from tapescope.rules import finding

REPLICAS = 4
EXTRAS = "extras.npz"
"""File next to a run's event files: all losses, and the quantities of other tools."""


class Trial(NamedTuple):
    """The results of a training."""

    run: tapescope.Run
    live: tuple[Any, ...]
    """Findings that the recorder reported while training."""
    extras: list[dict[str, np.ndarray]]
    """By record, the quantities that only other tools use: see `_extras`."""
    fall: float
    """Share of the loss of the first steps that was gone in the last ones."""
    seconds: float


def _loss(data: Data) -> Callable[[Any, Any], Any]:
    if data.classes == 0:
        return keras.losses.MeanSquaredError(reduction=None)
    if data.classes == 1:
        return keras.losses.BinaryCrossentropy(reduction=None)
    return keras.losses.SparseCategoricalCrossentropy(reduction=None)


def trial(setup: Setup, keep: str) -> Trial:
    """Train a set-up, or read its training in the directory `keep`; an empty `keep` keeps nothing."""
    if not keep:
        with tempfile.TemporaryDirectory() as logdir:
            _train(setup, logdir)
            return _trial(logdir)
    logdir = os.path.join(keep, setup.key)
    if not os.path.exists(os.path.join(logdir, EXTRAS)):
        shutil.rmtree(logdir, ignore_errors=True)
        _train(setup, logdir)
    return _trial(logdir)


def _trial(logdir: str) -> Trial:
    run = tapescope.Run(logdir)
    with np.load(os.path.join(logdir, EXTRAS)) as kept:
        columns = {name: kept[name] for name in kept}
    losses = columns.pop("losses")
    seconds = float(columns.pop("seconds"))
    extras = [{name: rows[t] for name, rows in columns.items()} for t in range(len(run.steps))]
    early = float(np.median(losses[:5]))
    late = float(np.median(losses[-20:]))
    fall = (early - late) / abs(early) if math.isfinite(late) else -math.inf
    live = tuple(finding.from_json(f) for f in run.findings)
    return Trial(run=run, live=live, extras=extras, fall=fall, seconds=seconds)


def _train(setup: Setup, logdir: str) -> None:
    began = time.perf_counter()
    keras.utils.set_random_seed(setup.seed)
    keras.backend.clear_session()
    data = setup.data(setup.seed)
    strategy = tf.distribute.get_strategy()
    if setup.replicas > 1:
        # TensorFlow numbers its own collectives anew in each strategy of a process, so they would clash.
        copies = tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(setup.replicas)], copies)
    with strategy.scope():
        model = setup.network(data)
        optimizer = setup.optimizer()
        optimizer.build(model.trainable_variables)
    if setup.fault.start:
        setup.fault.start(model)
    loss = _loss(data)
    probe = tapescope.Probe(model, window_examples=512, histograms=False, loss=loss)
    step = _step(setup, model, optimizer, probe, loss)
    run_step = step if setup.replicas == 1 else _replicated(step, strategy, setup)

    every = setup.every or setup.fault.every
    rng = np.random.default_rng(setup.seed)
    losses = []
    extras = []
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(setup.steps):
            chosen = rng.integers(0, len(data.x), setup.batch)
            batch = data.x[chosen], data.y[chosen]
            if setup.fault.hook:
                batch = setup.fault.hook(n, model, batch, rng)
            loss, reading, quantities = run_step(*batch, n % every == 0)
            losses.append(float(loss))
            if reading is not None:
                recorder.write(n, reading, {"loss": losses[-1]})
                extras.append({name: np.asarray(t) for name, t in quantities.items()})
    columns = {name: np.stack([row[name] for row in extras]) for name in extras[0]}
    np.savez(os.path.join(logdir, EXTRAS), losses=losses, seconds=time.perf_counter() - began, **columns)


def _step(setup: Setup, model, optimizer, probe: tapescope.Probe, loss_of) -> Callable[..., Any]:
    slowed = [
        (v, factor) for name, factor in setup.fault.rates.items() for v in model.get_layer(name).trainable_variables
    ]

    @tf.function(reduce_retracing=True, autograph=False)
    def step(x, y, measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_sum(loss_of(y, model(x, training=True))) / setup.batch
        gradients = tape.gradient(loss, model.trainable_variables)
        pairs = [(g, v) for g, v in zip(gradients, model.trainable_variables, strict=True) if g is not None]
        clipped = None
        if setup.fault.clip is not None:
            norm = tf.linalg.global_norm([g for g, _ in pairs])
            factor = setup.fault.clip / tf.maximum(norm, setup.fault.clip)
            pairs = [(g * factor, v) for g, v in pairs]
            clipped = [None if g is None else g * factor for g in gradients]
        before = [tf.identity(v) for v, _ in slowed]
        optimizer.apply_gradients(pairs)
        for (v, factor), old in zip(slowed, before, strict=True):
            v.assign(old + factor * (v - old))
        quantities = {}
        if measure and setup.replicas == 1:
            quantities = _extras(tape.calls, gradients, setup.batch)
        return loss, tape.reading(applied=clipped, targets=y), quantities

    return step


def _replicated(step: Callable[..., Any], strategy, setup: Setup) -> Callable[..., Any]:
    @tf.function
    def run(x, y, measure):
        loss, reading, quantities = strategy.run(step, (x, y, measure))
        return strategy.reduce("SUM", loss, axis=None), reading, quantities

    def split(x, y, measure):
        shares = list(zip(np.split(x, setup.replicas), np.split(y, setup.replicas), strict=True))
        if setup.fault.odd_replica:
            shares[-1] = setup.fault.odd_replica(*shares[-1])
        parts = [
            strategy.experimental_distribute_values_from_function(
                lambda c, i=i: tf.constant(shares[c.replica_id_in_sync_group][i])
            )
            for i in (0, 1)
        ]
        return run(*parts, measure)

    return split


def _extras(calls: Sequence[Any], gradients: Sequence[Any], batch: int) -> dict[str, Any]:
    """Return the quantities that other tools use and no column holds.

    [V] `mean_abs`: mean absolute element of the gradient. [L] `inactive`: share of units with an output above 0 on less
    than 1 % of the batch; `nonpositive`: share of outputs at or below 0; `beyond_5`: share of pre-activations outside
    [-5, 5]; `extreme`: share outside 9.5 for tanh, outside [-23, 17] for sigmoid; `rho`: share of units whose mean
    absolute output, scaled to [-1, 1], is above 0.85; `tanh_97`: share of absolute outputs above 0.97 of tanh.
    [sum U] `quiet`: whether the 95th percentile of the unit's absolute outputs is below 1e-5.
    """
    rows: dict[str, list[Any]] = {
        name: [] for name in ("inactive", "nonpositive", "beyond_5", "extreme", "rho", "tanh_97")
    }
    quiet = []
    for call in calls:
        a = tf.reshape(call.a, [-1, call.a.shape[-1]])
        z = a if call.z is None else tf.reshape(call.z, [-1, call.a.shape[-1]])
        kind = call.activation.name
        low, high = {"tanh": (-9.5, 9.5), "sigmoid": (-23.0, 17.0)}.get(kind, (-np.inf, np.inf))
        scaled = {"tanh": a, "sigmoid": 2 * a - 1}.get(kind, tf.zeros_like(a))
        rank = int(0.95 * (batch - 1))
        quiet.append(tf.sort(tf.abs(a), axis=0)[tf.minimum(rank, tf.shape(a)[0] - 1)] < 1e-5)
        rows["inactive"].append(_share(tf.reduce_mean(tf.cast(a > 0, tf.float32), 0) < 0.01))
        rows["nonpositive"].append(_share(a <= 0))
        rows["beyond_5"].append(_share(tf.abs(z) > 5))
        rows["extreme"].append(_share((z < low) | (z > high)))
        rows["rho"].append(_share(tf.reduce_mean(tf.abs(scaled), 0) > 0.85))
        rows["tanh_97"].append(_share(tf.abs(a) > 0.97) if kind == "tanh" else tf.constant(0.0))
    mean = [tf.constant(np.nan) if g is None else tf.reduce_mean(tf.abs(g)) for g in gradients]
    return {"mean_abs": tf.stack(mean), "quiet": tf.concat(quiet, 0), **{k: tf.stack(v) for k, v in rows.items()}}


def _share(where: Any) -> Any:
    return tf.reduce_mean(tf.cast(where, tf.float32))


def configure_process() -> None:
    """Make four logical CPUs for the replicas and silence TensorFlow; call this before TensorFlow starts."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * REPLICAS
    )
