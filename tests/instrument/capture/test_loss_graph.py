"""Losses that do not treat a batch as examples are told from others, as Keras computes them in a graph."""

import keras
import pytest
import tensorflow as tf

from tapescope.capture.loss_graph import is_of_all_pairs, is_sum_over_batch, repeated_activation

SUMS = {
    "sum": keras.losses.MeanSquaredError(reduction="sum"),
    "all elements": lambda y, out: tf.reduce_sum((out - y) ** 2),
    "negative": lambda y, out: -tf.reduce_sum(-((out - y) ** 2)),
    "of means": lambda y, out: tf.reduce_sum(tf.reduce_mean((out - y) ** 2, -1), 0),
}
MEANS = {
    "mean": keras.losses.MeanSquaredError(),
    "of sums": lambda y, out: tf.reduce_mean(tf.reduce_sum((out - y) ** 2, -1)),
    "an example": lambda y, out: tf.reduce_sum((out - y) ** 2, -1),
    "divided": lambda y, out: tf.reduce_sum((out - y) ** 2) / tf.cast(tf.shape(y)[0], tf.float32),
    "times a share": lambda y, out: tf.reduce_sum((out - y) ** 2) * 0.125,
    "with a penalty": lambda y, out: tf.reduce_mean((out - y) ** 2) + tf.reduce_sum(out**2) / 100,
}


def found(detect, loss, batch, units=3, **options):
    """Return what is said of a loss as a model computes it, with a batch of known or unknown size."""
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(units, **options)])
    model.compile(loss=loss)
    said = []

    @tf.function(input_signature=[tf.TensorSpec([batch, units])] * 2)
    def compute(targets, outputs):
        said.append(detect(model.compute_loss(y=targets, y_pred=outputs), targets, outputs))

    compute.get_concrete_function()
    return said[-1]


def is_sum(loss, _, outputs):
    return is_sum_over_batch(loss, outputs)


@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("name", [*SUMS, *MEANS])
def test_a_sum_over_the_batch_is_told_from_a_mean(name, batch):
    assert found(is_sum, (SUMS | MEANS)[name], batch) == (name in SUMS)


def test_a_sum_over_an_axis_that_is_not_the_batch_is_none():
    assert not found(is_sum, lambda y, out: tf.reduce_sum(tf.reduce_mean((out - y) ** 2, 0)), 8)


def test_a_regularizer_ends_the_search():
    assert not found(is_sum, SUMS["all elements"], 8, kernel_regularizer="l2")


def test_a_loss_outside_of_a_graph_is_not_known():
    assert not is_sum_over_batch(tf.reduce_sum(tf.ones([8, 3])), tf.ones([8, 3]))


def cross_entropy(y, out):
    return -tf.reduce_mean(y * tf.math.log(out) + (1 - y) * tf.math.log(1 - out))


PAIRS = {
    "absolute error": lambda y, out: tf.reduce_mean(tf.abs(y[:, 0] - out)),
    "of outputs without an axis": lambda y, out: tf.reduce_mean(tf.abs(y - tf.squeeze(out, -1))),
    "cross-entropy": lambda y, out: cross_entropy(tf.reshape(y, [-1]), tf.sigmoid(out)),
    "squared difference": lambda y, out: tf.reduce_mean(tf.math.squared_difference(y, out[:, 0])),
}
OWN = {
    "of Keras": keras.losses.MeanAbsoluteError(),
    "of the same shape": lambda y, out: tf.reduce_mean(tf.abs(y[:, 0] - out[:, 0])),
    "of pairs of outputs": lambda y, out: tf.reduce_mean(tf.abs(out - out[:, 0])) + tf.reduce_mean(y),
    "with weights": lambda y, out: tf.reduce_mean(tf.square(y - out)[:, 0] * (1 + y)),
    "of quantiles": lambda y, out: tf.reduce_mean(tf.maximum(tf.constant([0.1, 0.9]) * (y - out), 0)),
}


@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("name", [*PAIRS, *OWN])
def test_a_loss_of_all_pairs_is_told_from_one_of_examples(name, batch):
    assert found(is_of_all_pairs, (PAIRS | OWN)[name], batch, units=1) == (name in PAIRS)


def softmax_loss(y, out):
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(y, out))


def sparse_loss(y, out):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.argmax(y, -1), out))


def sigmoid_loss(y, out):
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, out))


REPEATED = {
    "softmax": (softmax_loss, "softmax", ("softmax", "softmax")),
    "of classes": (sparse_loss, "softmax", ("softmax", "softmax")),
    "sigmoid": (sigmoid_loss, "sigmoid", ("sigmoid", "sigmoid")),
    "a softmax of sigmoids": (softmax_loss, "sigmoid", ("softmax", "sigmoid")),
    "a weighted loss": (lambda y, out: 8.0 * softmax_loss(y, out) + 1.0, "softmax", ("softmax", "softmax")),
    "a softmax of ReLU": (softmax_loss, "relu", ("softmax", "relu")),
    "a sigmoid of ReLU": (sigmoid_loss, "relu", ("sigmoid", "relu")),
    "logits": (softmax_loss, None, None),
    "logits of tanh": (sigmoid_loss, "tanh", None),
    "probabilities": (keras.losses.CategoricalCrossentropy(), "softmax", None),
    "binary probabilities": (keras.losses.BinaryCrossentropy(), "sigmoid", None),
    "logarithms": (lambda y, out: softmax_loss(y, tf.math.log(out)), "softmax", None),
}


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("name", REPEATED)
def test_an_activation_that_the_loss_applies_again_is_found(name, dtype):
    loss, activation, expected = REPEATED[name]
    layer = keras.layers.Dense(3, activation, dtype=dtype)
    model = keras.Sequential([keras.Input([3]), layer])
    said = []

    @tf.function
    def step(x, y):
        said.append(repeated_activation(loss(y, tf.cast(model(x, training=True), tf.float32))))

    step.get_concrete_function(tf.ones([8, 3]), tf.ones([8, 3]))
    assert said == [expected]


@pytest.mark.parametrize("name", [*PAIRS, *OWN])
def test_without_targets_only_a_difference_is_of_all_pairs(name):
    def detect(loss, _, outputs):
        return is_of_all_pairs(loss, None, outputs)

    assert found(detect, (PAIRS | OWN)[name], None, units=1) == (name in PAIRS and name != "cross-entropy")


@pytest.mark.parametrize("name", [*PAIRS, *OWN])
def test_without_outputs_only_a_difference_is_of_all_pairs(name):
    def detect(loss, targets, _):
        return is_of_all_pairs(loss, targets, None)

    assert found(detect, (PAIRS | OWN)[name], None, units=1) == (name in PAIRS and name != "cross-entropy")
