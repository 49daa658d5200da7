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
"""The step at which the value appears."""
RNG = np.random.default_rng(4)
X = RNG.normal(size=[4, 6, 6, 2]).astype(np.float32)
Y = RNG.normal(size=[4, 3]).astype(np.float32)


@tf.custom_gradient
def poisoned_forward(x, wrong):
    """Add `wrong` to one element; the gradient passes unchanged."""
    return x + _at_first_element(x, wrong), lambda upstream: (upstream, None)


@tf.custom_gradient
def poisoned_backward(x, wrong):
    """Return the input, and add `wrong` to one element of the gradient."""
    return tf.identity(x), lambda upstream: (upstream + _at_first_element(upstream, wrong), None)


def _at_first_element(x, wrong):
    """Return zeros of the shape of `x`, with `wrong` as the first element."""
    return tf.cast(tf.where(tf.reshape(tf.range(tf.size(x)), tf.shape(x)) == 0, wrong, 0.0), x.dtype)


def network(dtype, switches, poison):
    """Return a convolution, a normalization with GELU, a tanh, a sigmoid and an output layer.

    Each activation is followed by `poison(output, switch)` with the layer's own switch.
    """

    def with_switch(name, function):
        return lambda z: poison(function(z), switches[name])

    dense = functools.partial(keras.layers.Dense, dtype=dtype)
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            keras.layers.Conv2D(3, 3, activation=with_switch("conv", tf.nn.relu), name="conv", dtype=dtype),
            keras.layers.LayerNormalization(dtype=dtype),
            keras.layers.Activation(with_switch("norm_gelu", tf.nn.gelu), name="norm_gelu", dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            dense(5, activation=with_switch("dense", tf.nn.tanh), name="dense"),
            dense(4, activation=with_switch("gate", tf.nn.sigmoid), name="gate"),
            dense(3, activation=with_switch("out", tf.identity), name="out"),
        ]
    )


class Case(NamedTuple):
    """The record of one run in which one layer produced a non-finite value at one step."""

    layer: str
    at: int
    """The step at which the value appeared."""
    run: tapescope.Run
    """The run as a kill -9 right after that step would have left it: nothing was closed."""
    expected: list[int]
    """The first non-finite layer by step; -1 where there is none."""
    findings: list[tuple[str | None, int]]
    """Layer and step of each finding of the rule `non_finite`."""


def cases(dtype, poison, directory, ats=(AT,), wrong=np.nan):
    """Yield a Case for each layer and each step in `ats`, with `wrong` as the value."""
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
        findings = [(f.layer, f.step) for f in recorder.findings if f.rule == "non_finite"]
        yield Case(layer=layer, at=at, run=run, expected=[-1] * at + [index], findings=findings)
