"""The way of the data: what each input meets first, and which layer makes each output."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tapescope

X = np.random.default_rng(0).normal(size=[8, 4, 4, 3]).astype("float32")
FLAT = X.reshape(8, -1)
SERIES = FLAT[:, :6, None]
WORDS = np.random.default_rng(1).integers(9, size=[8, 6]).astype("int32")


def data_of(model, x, compiled=True):
    """Return the rows of data and the objectives of one measured step, with the loss "mse" of zeros."""
    probe = tapescope.Probe(model, histograms=False, loss="mse")
    x = tf.nest.map_structure(tf.constant, x)

    def step(x):
        with probe.tape(True) as tape:
            result = model(x, training=True)
            loss = sum(keras.ops.mean(r) for r in keras.tree.flatten(result))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading(targets=tf.nest.map_structure(tf.zeros_like, result))

    (tf.function(step) if compiled else step)(x)
    return probe._state.data


def sequential(*stack, shape=(4, 4, 3), dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack])


def adapted():
    layer = layers.Normalization()
    layer.adapt(X)
    return layer


class Divided(keras.Model):
    """A model that scales its input itself."""

    def __init__(self):
        super().__init__()
        self.out = layers.Dense(1, name="out")

    def call(self, x):
        return self.out(layers.Flatten()(x) / 255)


def two_inputs():
    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="right", dtype="int32")
    words = layers.Flatten()(layers.Embedding(9, 2)(right))
    return keras.Model([left, right], layers.Dense(1, name="out")(layers.Concatenate()([left, words])))


WAYS = {
    "trained": (sequential(layers.Flatten(), layers.Dense(1)), X, [["trained"]], [[]]),
    "convolution": (sequential(layers.Conv2D(2, 2), layers.GlobalMaxPooling2D()), X, [["trained"]], [[]]),
    "dropout first": (sequential(layers.Dropout(0.1), layers.Flatten(), layers.Dense(1)), X, [["trained"]], [[]]),
    "pooled": (sequential(layers.MaxPooling2D(), layers.Flatten(), layers.Dense(1)), X, [["trained"]], [[]]),
    "rescaled": (
        *(sequential(layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(1)), X),
        *([[]], [["Rescaling"]]),
    ),
    "normalized": (sequential(adapted(), layers.Flatten(), layers.Dense(1)), X, [[]], [["Normalization"]]),
    "normalized behind": (
        *(sequential(layers.Conv2D(2, 2), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()), X),
        *([["trained"]], [["BatchNormalization"]]),
    ),
    "normalized behind an activation": (
        *(sequential(layers.Conv2D(2, 2, activation="relu"), layers.BatchNormalization()), X),
        *([["trained"]], [["BatchNormalization"]]),
    ),
    "divided": (Divided(), X, [[]], [[]]),
    "words": (
        sequential(layers.Embedding(9, 2), layers.Flatten(), shape=(6,), dtype="int32"),
        WORDS,
        [["embedding"]],
        [[]],
    ),
    "series": (
        sequential(layers.LSTM(3), layers.Dense(1), shape=(6, 1)),
        X.reshape(24, -1)[:, :6, None],
        [["trained"]],
        [[]],
    ),
    "nested": (
        *(sequential(keras.Sequential([layers.Flatten(), layers.Dense(2)]), layers.Dense(1)), X),
        *([["trained"]], [[]]),
    ),
    "two": (two_inputs(), [FLAT[:, :4], WORDS], [["trained"], ["embedding"]], [[], []]),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_what_an_input_meets_first(kind, compiled):
    model, x, followers, normalizers = WAYS[kind]
    inputs = [row for row in data_of(model, x, compiled).rows if row.kind == "input"]
    assert [list(row.followers) for row in inputs] == followers
    assert [list(row.normalizers) for row in inputs] == normalizers


def test_inputs_in_a_dict_have_its_keys_as_names():
    inputs = {name: keras.Input((2,), name=name) for name in ("a", "b")}
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()(list(inputs.values()))))
    rows = data_of(model, {"a": FLAT[:, :2], "b": FLAT[:, :2]}).rows
    assert [row.name for row in rows if row.kind == "input"] == ["input/a", "input/b"]


OUTPUTS = {
    "by an argument": (sequential(layers.Flatten(), layers.Dense(2, "softmax", name="out")), "out", "softmax", ""),
    "by a layer": (
        *(sequential(layers.Flatten(), layers.Dense(2, name="d"), layers.Activation("sigmoid", name="out")), "out"),
        *("sigmoid", "linear"),
    ),
    "two of them": (
        *(sequential(layers.Flatten(), layers.Dense(2, "relu"), layers.Softmax(name="out")), "out"),
        *("softmax", "relu"),
    ),
    "reshaped": (
        *(sequential(layers.Flatten(), layers.Dense(4, "tanh", name="out"), layers.Reshape((2, 2))), "out"),
        *("tanh", "unknown"),
    ),
    "linear": (sequential(layers.Flatten(), layers.Dense(2, name="out")), "out", "linear", ""),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_layer_that_makes_an_output_and_its_activation(kind, compiled):
    model, layer, activation, before = OUTPUTS[kind]
    (objective,) = data_of(model, X, compiled).objectives
    assert (objective["layer"], objective["activation"]) == (layer, activation)
    if before:
        assert objective["activation_before"] == before


def test_an_activation_that_is_no_layer_is_seen_in_the_graph():
    class Functional(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return tf.nn.softmax(self.dense(layers.Flatten()(x)))

    (objective,) = data_of(Functional(), X).objectives
    assert objective["activation"] == "softmax"


def test_each_of_several_outputs_has_its_own_objective():
    x = keras.Input((4,))
    model = keras.Model(x, {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(3, "softmax", name="b")(x)})
    found = data_of(model, FLAT[:, :4]).objectives
    assert [(o["layer"], o["activation"], o["units"], o["target"]) for o in found] == [
        ("a", "linear", 1, "target/a"),
        ("b", "softmax", 3, "target/b"),
    ]
