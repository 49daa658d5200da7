"""The model: a regression network whose depth, width and activation are arguments."""

import keras
from keras import layers


def build(depth: int = 3, width: int = 32, activation: str = "relu") -> keras.Model:
    """Return an uncompiled model of 8 features and one output."""
    inputs = keras.Input((8,), name="features")
    x = inputs
    for n in range(1, depth + 1):
        x = layers.Dense(width, activation, kernel_regularizer=keras.regularizers.L2(1e-5), name=f"hidden_{n}")(x)
    return keras.Model(inputs, layers.Dense(1, name="output")(x), name="regression")
