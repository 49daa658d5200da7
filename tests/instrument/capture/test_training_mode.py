"""Layers that run as in inference: those that nobody told that they train, and those of which it is meant."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tapescope

X = np.random.default_rng(0).normal(size=[8, 4]).astype("float32")


class DefaultsToInference(keras.Model):
    """A model that passes `training` on, as many tutorials write it."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, activation="relu")
        self.norm = layers.BatchNormalization(name="norm")
        self.out = layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.norm(self.hidden(x), training=training))


class Attends(keras.Model):
    """A model whose dropout is inside of a layer of Keras."""

    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 2, dropout=0.1)
        self.out = layers.Dense(1)

    def call(self, x):
        x = x[:, :, None]
        return self.out(self.attention(x, x)[:, 0])


class Fails(layers.Layer):
    """A layer that the model around it can do without."""

    def call(self, x, training=True):
        raise ValueError


class Recovers(keras.Model):
    """A model that goes on after an error in one of its layers."""

    def __init__(self):
        super().__init__()
        self.fails = Fails()
        self.drop = layers.Dropout(0.5, name="drop")
        self.out = layers.Dense(1)

    def call(self, x):
        with contextlib.suppress(ValueError):
            x = self.fails(x)
        return self.out(self.drop(x))


def sequential(*stack):
    return keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="relu"), *stack, layers.Dense(1)])


def both():
    return sequential(layers.BatchNormalization(name="norm"), layers.Dropout(0.5, name="drop"))


def frozen():
    return sequential(layers.BatchNormalization(name="norm", trainable=False))


def transfer(*stack):
    """Return a model around another one that it keeps in inference, as Keras' guide on transfer learning has it."""
    base = sequential(layers.BatchNormalization(name="norm"))
    x = keras.Input((4,))
    return keras.Model(x, keras.Sequential([*stack, layers.Dense(1)])(base(x, training=False)))


def layer_modes(model, compiled, **options):
    model(X)
    probe = tapescope.Probe(model, histograms=False)

    def step(x):
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(model(x, **options))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    (tf.function(step) if compiled else step)(tf.constant(X))
    return probe._state.layer_modes


def untold_layers(*args, **options):
    return [layer.name for layer in layer_modes(*args, **options).inference_layers]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("make", "untold"),
    [
        (both, ["norm", "drop"]),
        (lambda: sequential(layers.GaussianNoise(0.1, name="noise")), ["noise"]),
        (DefaultsToInference, ["norm"]),
        (Attends, ["dropout"]),
        (Recovers, ["drop"]),
        (lambda: transfer(layers.Dropout(0.5, name="drop")), ["drop"]),
        (lambda: sequential(), []),
        (lambda: sequential(layers.Dropout(0.0)), []),
        (frozen, []),
        (transfer, []),
    ],
)
def test_layers_that_nobody_told_that_they_train(make, untold, compiled):
    keras.backend.clear_session()  # the numbers in names begin anew
    assert untold_layers(make(), compiled) == untold
    assert untold_layers(make(), compiled, training=True) == []
    assert untold_layers(make(), compiled, training=False) == []


def test_one_layer_that_trains_shows_that_the_others_are_meant():
    model = both()
    first, norm, drop, last = model.layers

    class Half(keras.Model):
        def call(self, x):
            return last(drop(norm(first(x)), training=True))

    half = Half()
    half.parts = model.layers
    assert untold_layers(half, compiled=True) == []


def test_a_tensor_may_say_either():
    assert untold_layers(sequential(layers.Dropout(0.5)), compiled=False, training=tf.constant(False)) == []


@pytest.mark.parametrize("compiled", [True, False])
def test_the_rate_and_the_units_of_dropout_are_noted(compiled):
    stack = (layers.Dropout(0.5, name="half"), layers.Dropout(0), layers.GaussianDropout(0.2, name="noise"))
    model = sequential(*stack, layers.BatchNormalization())
    assert layer_modes(model, compiled, training=True).dropouts == (("half", 0.5, 4), ("noise", 0.2, 4))
    assert layer_modes(model, compiled, training=False).dropouts == ()


def test_the_run_has_a_finding(tmp_path):
    model = both()
    probe = tapescope.Probe(model)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(model(X))
        tape.gradient(loss, model.trainable_variables)
        recorder.write(0, tape.reading())
    (finding,) = [f for f in tapescope.Run(tmp_path).findings if f["rule"] == "inference_mode"]
    assert "`norm` uses moving averages that are never updated, and `drop` changes nothing" in finding["message"]
