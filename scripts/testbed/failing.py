"""A training with dropout that measures, does not, or fails to measure."""

import keras
import numpy as np
import tensorflow as tf
from scripts.testbed.steps import mirrored

STEPS = 30  # the benchmark takes 200
RNG = np.random.default_rng(11)
X = RNG.normal(size=[16, 6]).astype(np.float32)
Y = RNG.normal(size=[16, 2]).astype(np.float32)


def network(dtype="float32"):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    dense = [layers.Dense(5, "relu", name="first", dtype=dtype), layers.Dense(4, "tanh", name="second", dtype=dtype)]
    return keras.Sequential([keras.Input((6,)), dense[0], layers.Dropout(0.2), dense[1], layers.Dense(2, name="last")])


def trained(probe_of, *, steps=STEPS, measure=None, dtype="float32", replicas=1, see=lambda read: None):
    """The weights after so many steps, the probe, and what the last step returned as its reading."""
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model, optimizer = network(dtype), keras.optimizers.Adam(0.01)
        if dtype == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    probe = probe_of(model)

    def in_replica(x, y, measure):
        with probe.tape(measure) if probe else tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(tf.cast(model(x, training=True), tf.float32) - y)) / Y.size
            scaled = optimizer.scale_loss(loss) if dtype == "mixed_float16" else loss
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return tape.reading() if probe else None

    @tf.function
    def step(x, y, measure):
        return strategy.run(in_replica, (x, y, measure))

    def share(data):
        parts = np.split(data, replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    x, y = (share(X), share(Y)) if replicas > 1 else (tf.constant(X), tf.constant(Y))
    read = None
    for n in range(steps):
        read = step(x, y, measure(n) if measure else bool(probe))
        see(read)
    return [v.numpy() for v in model.trainable_variables], probe, read


def breaks(*args, **kwargs):
    raise ValueError("made to fail")
