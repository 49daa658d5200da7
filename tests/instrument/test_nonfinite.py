"""A NaN put at every layer in turn, forward and backward, in three types: the first layer is named at the very step."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope

LAYERS = ("conv", "norm_gelu", "dense", "gate", "out")
AT = 2
"""The step at which it happens."""
RNG = np.random.default_rng(4)
X, Y = RNG.normal(size=[4, 6, 6, 2]).astype(np.float32), RNG.normal(size=[4, 3]).astype(np.float32)


@tf.custom_gradient
def poisoned_forward(x, wrong):
    """Adds NaN to one element; the gradient passes."""
    hit = tf.cast(tf.reshape(tf.range(tf.size(x)), tf.shape(x)) == 0, tf.float32) * wrong
    nan = tf.where(hit > 0, np.float32("nan"), 0.0)
    return x + tf.cast(nan, x.dtype), lambda upstream: (upstream, None)


@tf.custom_gradient
def poisoned_backward(x, wrong):
    """The identity, whose gradient has a NaN."""

    def gradient(upstream):
        hit = tf.cast(tf.reshape(tf.range(tf.size(upstream)), tf.shape(upstream)) == 0, tf.float32) * wrong
        return upstream + tf.cast(tf.where(hit > 0, np.float32("nan"), 0.0), upstream.dtype), None

    return tf.identity(x), gradient


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


@pytest.mark.parametrize("poison", [poisoned_forward, poisoned_backward], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_first_layer_is_named_at_the_very_step_and_on_disk(dtype, poison, tmp_path):
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

    way = "forward" if poison is poisoned_forward else "backward"
    for index, layer in enumerate(LAYERS):
        for variable, value in zip(model.trainable_variables, start, strict=True):
            variable.assign(value)
        recorder = tapescope.Recorder(tmp_path / layer, probe)
        for n in range(AT + 1):
            switches[layer].assign(float(n == AT))
            loss, reading = step(X, Y)
            recorder.write(n, reading, {"loss": loss})
        on_disk = tapescope.Run(tmp_path / layer)  # what a kill -9 would leave: nothing was closed
        assert on_disk.steps.tolist() == list(range(AT + 1))
        first = on_disk[f"first_nonfinite_{way}"].tolist()
        assert first == [-1] * AT + [index], layer
        if way == "backward":
            assert on_disk["first_nonfinite_forward"].tolist() == [-1] * (AT + 1)
        recorder.close()
        found = [f for f in recorder.findings if f.rule == "non_finite"]
        assert [(f.layer, f.step) for f in found][:1] == [(layer, AT)], found
        switches[layer].assign(0.0)
