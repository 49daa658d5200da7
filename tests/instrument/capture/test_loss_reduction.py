"""A loss that is the sum over the batch is told from a mean, as Keras computes it in a graph."""

import keras
import pytest
import tensorflow as tf

from tapescope.capture.loss_reduction import is_sum_over_batch

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


def found(loss, batch, **options):
    """Return what is said of a loss as a model computes it, with a batch of known or unknown size."""
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(3, **options)])
    model.compile(loss=loss)
    said = []

    @tf.function(input_signature=[tf.TensorSpec([batch, 3])])
    def compute(outputs):
        value = model.compute_loss(y=tf.zeros_like(outputs), y_pred=outputs)
        said.append(is_sum_over_batch(value, outputs))

    compute.get_concrete_function()
    return said[-1]


@pytest.mark.parametrize("batch", [8, None])
@pytest.mark.parametrize("name", [*SUMS, *MEANS])
def test_a_sum_over_the_batch_is_told_from_a_mean(name, batch):
    assert found((SUMS | MEANS)[name], batch) == (name in SUMS)


def test_a_sum_over_an_axis_that_is_not_the_batch_is_none():
    assert not found(lambda y, out: tf.reduce_sum(tf.reduce_mean((out - y) ** 2, 0)), 8)


def test_a_regularizer_ends_the_search():
    assert not found(SUMS["all elements"], 8, kernel_regularizer="l2")


def test_a_loss_outside_of_a_graph_is_not_known():
    assert not is_sum_over_batch(tf.reduce_sum(tf.ones([8, 3])), tf.ones([8, 3]))
