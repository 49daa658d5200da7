"""One training step, measured: of any model, or of a dense chain in each of the ways a program may run it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tapescope
from tapescope.storage import summaries

MODES = ("eager", "function", "jit", "replicas", "jit_replicas")


class Step(NamedTuple):
    """The results of one step."""

    loss: Any
    gradients: Any
    reading: Any


def measured(
    probe: tapescope.Probe,
    loss: Callable[[], Any],
    variables: Sequence[Any],
    optimizer: Any = None,
    measure: bool = True,
    persistent: bool = False,
    **reading: Any,
) -> Step:
    """Take one step under the probe's tape.

    Args:
        probe: Provides the tape.
        loss: Computes the loss; called without arguments while the tape records.
        variables: The sources of the gradient.
        optimizer: Applies the gradients before the reading is taken; by default the weights stay as they are.
        measure: Whether the tape measures.
        persistent: Whether the tape is persistent.
        **reading: Passed to `tape.reading`.

    Returns:
        The loss, its gradients and the reading, which is None where `measure` is False.
    """
    with probe.tape(measure, persistent=persistent) as tape:
        value = loss()
    gradients = tape.gradient(value, variables)
    if optimizer is not None:
        optimizer.apply(gradients, variables)
    return Step(value, gradients, tape.reading(**reading))


@functools.cache
def mirrored(replicas: int) -> tf.distribute.MirroredStrategy:
    """Return the strategy that all tests of this process share.

    TensorFlow numbers collectives anew in each strategy, so two strategies of one process would clash. Only the one of
    two replicas uses TensorFlow's own collectives; the others copy to one device and add there.
    """
    operations = None if replicas == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)], operations)


def dense_chain(widths, activations, inputs, seed=0, **kwargs) -> keras.Model:
    """Build dense layers `layer0`, `layer1`, ... with random biases; `kwargs` go to each layer."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(width, activation=activation, name=f"layer{i}", bias_initializer="random_normal", **kwargs)
        for i, (width, activation) in enumerate(zip(widths, activations, strict=True))
    ]
    return keras.Sequential([keras.layers.Input((inputs,)), *layers], name="chain")


def squared_error(x, y, model, global_elements):
    """Return this replica's part of the mean squared error over the global batch."""
    return tf.reduce_sum(tf.square(tf.cast(model(x, training=True), tf.float32) - y)) / global_elements


def measured_step(mode, make_model, x, y, loss=squared_error, make_optimizer=None, **probe_options):
    """Build a model and measure one step on the batch, run in one of `MODES`.

    Under replicas the batch is split evenly, and the reading is the first replica's.

    Returns:
        The reading as NumPy arrays, the model, its weights before the step, and the probe.
    """
    if make_optimizer is None:
        make_optimizer = functools.partial(keras.optimizers.SGD, 0.1)
    count = 2 if "replicas" in mode else 1
    strategy = mirrored(2) if count > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model = make_model()
        optimizer = make_optimizer()
        optimizer.build(model.trainable_variables)
    before = [v.numpy() for v in model.trainable_variables]
    probe = tapescope.Probe(model, **probe_options)
    elements = float(np.prod(y.shape))

    def step(x, y):
        return measured(probe, lambda: loss(x, y, model, elements), model.trainable_variables, optimizer).reading

    @tf.function(jit_compile=True)
    def compiled_part(x, y):
        with probe.tape(True) as tape:
            value = loss(x, y, model, elements)
        return tape.gradient(value, model.trainable_variables), tape.partial()

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
        replica_step = step_of_two_parts if mode == "jit_replicas" else step
        shares = [np.split(t, count) for t in (x, y)]

        def share_of(i):
            return strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(shares[i][context.replica_id_in_sync_group])
            )

        read = tf.function(lambda x, y: strategy.run(replica_step, (x, y)))(share_of(0), share_of(1))
    return summaries.to_host(read), model, before, probe
