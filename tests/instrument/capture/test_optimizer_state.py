"""Moments of Keras' optimizers, by the public names of their variables."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tapescope.capture import optimizer_state

FOUND = {
    "SGD": (None, None),
    "momentum": ("momentum", None),
    "Adam": ("momentum", "velocity"),
    "AdamW": ("momentum", "velocity"),
    "Nadam": ("momentum", "velocity"),
    "Lamb": ("momentum", "velocity"),
    "Lion": ("momentum", None),
    "Adamax": ("momentum", None),
    "RMSprop": (None, "velocity"),
    "centered": ("average_gradient", "velocity"),
    "Adagrad": (None, "accumulator"),
    "Adadelta": (None, "accumulated_grad"),
    "Ftrl": (None, "accumulator"),
    "Adafactor": (None, "velocity"),
}
"""What is found in each optimizer."""
MADE = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "centered": lambda: keras.optimizers.RMSprop(0.1, momentum=0.9, centered=True),
}


def variables(name="layer"):
    layer = keras.layers.Dense(2, name=name)
    layer.build([None, 3])
    return layer.trainable_variables


def kinds(moments):
    """Return what an optimizer calls the first and the second moment of the first variable."""
    return [None if part[0] is None else part[0].name.rpartition("kernel_")[2] for part in moments]


@pytest.mark.parametrize("name", FOUND)
def test_moments_of_each_optimizer(name):
    trained = variables()
    optimizer = MADE.get(name, lambda: getattr(keras.optimizers, name)(0.1))()
    optimizer.build(trained)
    moments = optimizer_state.find_moments([optimizer], trained)
    assert kinds(moments) == list(FOUND[name])
    for part in moments:
        for variable, moment in zip(trained, part, strict=True):
            assert moment is None or moment.shape == variable.shape


def test_equal_paths_are_told_apart_by_their_order():
    trained = [*variables(), *variables()]
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(trained)
    optimizer.apply([float(i) * tf.ones(v.shape) for i, v in enumerate(trained, 1)], trained)
    moments = optimizer_state.find_moments([optimizer], trained[::-1])
    np.testing.assert_allclose([m.numpy().max() for m in moments.first], [0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_names_without_a_path_are_in_the_order_of_the_variables():
    """Keras 3.6 names the accumulators of Adagrad so."""
    trained = variables()
    kept = [keras.Variable(np.zeros(v.shape), name="accumulator") for v in trained]
    optimizer = types.SimpleNamespace(variables=[keras.Variable(0, name="iteration"), *kept])
    moments = optimizer_state.find_moments([optimizer], trained)
    assert [id(v) for v in moments.second] == [id(v) for v in kept]


def test_plain_variables_of_tensorflow():
    trained = [tf.Variable([[1.0, 2.0]], name="w"), tf.Variable([3.0], name="b")]
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(trained)
    optimizer.apply([2 * tf.ones(v.shape) for v in trained], trained)
    moments = optimizer_state.find_moments([optimizer], trained)
    np.testing.assert_allclose([m.numpy().max() for m in moments.first], [0.2, 0.2], rtol=1e-6)


def test_a_loss_scale_optimizer_has_those_inside_it():
    trained = variables()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1))
    optimizer.build(trained)
    assert kinds(optimizer_state.find_moments([optimizer], trained)) == ["momentum", "velocity"]


def test_each_of_several_optimizers_has_its_own_variables():
    first, second, untrained = variables("first"), variables("second"), variables("untrained")
    adam, adagrad = keras.optimizers.Adam(0.1), keras.optimizers.Adagrad(0.1)
    adam.build(first)
    adagrad.build(second)
    moments = optimizer_state.find_moments([adam, adagrad], [*first, *second, *untrained])
    assert [m is not None for m in moments.first] == [True, True, False, False, False, False]
    assert [m is not None for m in moments.second] == [True, True, True, True, False, False]


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer")
def test_a_multi_optimizer_has_those_inside_it():
    first, second = variables("first"), variables("second")
    inside = {"first": keras.optimizers.Adam(0.1), "second": keras.optimizers.Adagrad(0.1)}
    optimizer = keras.optimizers.MultiOptimizer(lambda variable: inside[variable.path.partition("/")[0]])
    optimizer.build([*first, *second])
    moments = optimizer_state.find_moments([optimizer], [*second, *first])
    assert [m is not None for m in moments.first] == [False, False, True, True]
    assert [m is not None for m in moments.second] == [True, True, True, True]


def test_averages_of_weights_are_not_moments():
    trained = variables()
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    optimizer.build(trained)
    assert optimizer_state.find_moments([optimizer], trained).first == [None, None]


def test_without_an_optimizer_there_are_none():
    assert optimizer_state.find_moments([], variables()) == ([None, None], [None, None])
