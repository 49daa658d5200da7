"""A training with dropout that measures, does not measure, or fails to measure."""

import keras
import numpy as np
import tensorflow as tf
from scripts.testbed.steps import mirrored

STEPS = 30
RNG = np.random.default_rng(11)
X = RNG.normal(size=[16, 6]).astype(np.float32)
Y = RNG.normal(size=[16, 2]).astype(np.float32)


def network(dtype="float32"):
    """Return two dense layers with dropout between them, and an output."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, "relu", name="first", dtype=dtype),
            layers.Dropout(0.2),
            layers.Dense(4, "tanh", name="second", dtype=dtype),
            layers.Dense(2, name="last"),
        ]
    )


def train(make_probe, *, steps=STEPS, measure=None, dtype="float32", replicas=1, on_reading=lambda reading: None):
    """Train for some steps.

    Args:
        make_probe: Makes the model's Probe; returns None to train without one.
        steps: Number of steps.
        measure: Tells by its number whether a step is measured; None measures every step.
        dtype: The policy of the two hidden layers.
        replicas: Number of replicas.
        on_reading: Called with each step's reading, which may be None.

    Returns:
        The weights at the end, the Probe, and the last step's reading.
    """
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model = network(dtype)
        optimizer = keras.optimizers.Adam(0.01)
        if dtype == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    probe = make_probe(model)

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
        if replicas == 1:
            return tf.constant(data)
        parts = np.split(data, replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    x = share(X)
    y = share(Y)
    reading = None
    for n in range(steps):
        reading = step(x, y, measure(n) if measure else bool(probe))
        on_reading(reading)
    return [v.numpy() for v in model.trainable_variables], probe, reading


def fail(*args, **kwargs):
    """Raise, in place of a function of the library."""
    raise ValueError("made to fail")
