"""One training step of a dense chain, in each of the ways that a program may run it."""

import keras
import numpy as np
import tensorflow as tf
from scripts.testbed.models import mirrored

import tapescope
from tapescope.storage import summaries

MODES = ("eager", "function", "jit", "replicas", "jit_replicas")


def squared_error(x, y, model, global_elements):
    """The local part of the mean over the global batch."""
    return tf.reduce_sum(tf.square(tf.cast(model(x, training=True), tf.float32) - y)) / global_elements


def measured_step(mode, make_model, x, y, loss=squared_error, make_optimizer=None, **probe_options):
    """Builds a model, measures one step of it on the batch, and returns the reading as NumPy and the model.

    Under replicas the batch is split evenly; the reading is the first replica's.
    """
    make_optimizer = make_optimizer or (lambda: keras.optimizers.SGD(0.1))
    count = 2 if "replicas" in mode else 1
    strategy = mirrored(2) if count > 1 else None
    with strategy.scope() if strategy else tf.distribute.get_strategy().scope():
        model, optimizer = make_model(), make_optimizer()
        optimizer.build(model.trainable_variables)
    before = [v.numpy() for v in model.trainable_variables]
    probe = tapescope.Probe(model, **probe_options)
    elements = float(np.prod(y.shape))

    def backward(x, y):
        with probe.tape(True) as tape:
            value = loss(x, y, model, elements)
        return tape.gradient(value, model.trainable_variables), tape

    def step(x, y):
        gradients, tape = backward(x, y)
        optimizer.apply(gradients, model.trainable_variables)
        return tape.reading()

    @tf.function(jit_compile=True)
    def compiled_part(x, y):
        gradients, tape = backward(x, y)
        return gradients, tape.partial()

    def step_of_two_parts(x, y):
        gradients, partial = compiled_part(x, y)
        optimizer.apply(gradients, model.trainable_variables)
        return probe.reading(partial, gradients)

    if mode == "eager":
        read = step(tf.constant(x), tf.constant(y))
    elif mode == "function":
        read = tf.function(step)(x, y)
    elif mode == "jit":
        read = tf.function(step, jit_compile=True)(x, y)
    else:
        part = step_of_two_parts if mode == "jit_replicas" else step
        shares = [np.split(t, count) for t in (x, y)]

        def share_of(i):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(shares[i][context.replica_id_in_sync_group])
            )

        read = tf.function(lambda x, y: strategy.run(part, (x, y)))(share_of(0), share_of(1))
    return summaries.on_host(read), model, before, probe
