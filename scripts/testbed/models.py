"""A dense chain, and the strategy that all tests of a process share."""

import functools

import keras
import tensorflow as tf


@functools.cache
def mirrored(replicas) -> tf.distribute.MirroredStrategy:
    """One strategy for all tests of this process: TensorFlow numbers collectives anew in each, and they would clash.

    So only that of two replicas has TensorFlow's own collectives; others copy to one device and add there.
    """
    operations = None if replicas == 2 else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)], operations)


def dense_chain(widths, activations, inputs, seed=0, **kwargs) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [
        keras.layers.Dense(width, activation=activation, name=f"layer{i}", bias_initializer="random_normal", **kwargs)
        for i, (width, activation) in enumerate(zip(widths, activations, strict=True))
    ]
    return keras.Sequential([keras.layers.Input((inputs,)), *layers], name="chain")
