"""A network whose layers can be made to produce a NaN or an infinity, forward or backward."""

import functools
import itertools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tapescope

LAYERS = ("conv", "norm_gelu", "dense", "gate", "out")
AT = 2
"""The step at which it happens."""
RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=[4, 6, 6, 2]).astype(np.float32), RNG.normal(size=[4, 3]).astype(np.float32)


@tf.custom_gradient
def poisoned_forward(x, wrong):
    """Adds `wrong` to one element; the gradient passes."""
    return x + _first(x, wrong), lambda upstream: (upstream, None)


@tf.custom_gradient
def poisoned_backward(x, wrong):
    """The identity, whose gradient has `wrong` in it."""
    return tf.identity(x), lambda upstream: (upstream + _first(upstream, wrong), None)


def _first(x, wrong):
    """`wrong` at the first element, and 0 elsewhere."""
    return tf.cast(tf.where(tf.reshape(tf.range(tf.size(x)), tf.shape(x)) == 0, wrong, 0.0), x.dtype)


def network(dtype, switches, poison):
    """Convolution, normalisation, GELU, sigmoid and an output; each may be poisoned behind its activation."""

    def with_switch(name, function):
        return lambda z: poison(function(z), switches[name])

    layer = functools.partial(keras.layers.Dense, dtype=dtype)
    kinds = {
        "conv": keras.layers.Conv2D(3, 3, activation=with_switch("conv", tf.nn.relu), name="conv", dtype=dtype),
        "norm_gelu": keras.layers.Activation(with_switch("norm_gelu", tf.nn.gelu), name="norm_gelu", dtype=dtype),
        "dense": layer(5, activation=with_switch("dense", tf.nn.tanh), name="dense"),
        "gate": layer(4, activation=with_switch("gate", tf.nn.sigmoid), name="gate"),
        "out": layer(3, activation=with_switch("out", tf.identity), name="out"),
    }
    normal = keras.layers.LayerNormalization(dtype=dtype)
    flat = keras.layers.Flatten(dtype=dtype)
    order = [kinds["conv"], normal, kinds["norm_gelu"], flat, kinds["dense"], kinds["gate"], kinds["out"]]
    return keras.Sequential([keras.Input(X.shape[1:]), *order])


class Case(NamedTuple):
    """What became of one bad number."""

    layer: str
    at: int
    """The step at which it came."""
    run: tapescope.Run
    """What a kill -9 right after that step would have left: nothing was closed."""
    expected: list[int]
    """First bad layer by step."""
    findings: list[tuple[str | None, int]]
    """Layer and step of each finding of the rule."""


def cases(dtype, poison, directory, ats=(AT,), wrong=np.nan):
    """Puts `wrong` at every layer in turn, at each of the steps `ats`; yields a Case each."""
    keras.utils.set_random_seed(1)
    switches = {name: tf.Variable(0.0) for name in LAYERS}
    model = network(dtype, switches, poison)
    optimizer = keras.optimizers.SGD(1e-3)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, strict=True)
    start = [v.numpy() for v in model.trainable_variables]

    @tf.function
    def step(x, y):
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(model(x, training=True), tf.float32) - y))
            scaled = optimizer.scale_loss(loss) if dtype == "mixed_float16" else loss
        gradients = tape.gradient(scaled, model.trainable_variables)
        scale = optimizer.dynamic_scale if dtype == "mixed_float16" else None
        optimizer.apply(gradients, model.trainable_variables)
        return loss, tape.reading(loss_scale=scale)

    for at, (index, layer) in itertools.product(ats, enumerate(LAYERS)):
        for variable, value in zip(model.trainable_variables, start, strict=True):
            variable.assign(value)
        recorder = tapescope.Recorder(directory / f"{layer}_{at}", probe)
        for n in range(at + 1):
            switches[layer].assign(wrong if n == at else 0.0)
            loss, reading = step(X, Y)
            recorder.write(n, reading, {"loss": loss})
        run = tapescope.Run(directory / f"{layer}_{at}")
        recorder.close()
        switches[layer].assign(0.0)
        found = [(f.layer, f.step) for f in recorder.findings if f.rule == "non_finite"]
        yield Case(layer, at, run, [-1] * at + [index], found)
