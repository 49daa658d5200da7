"""Networks of other kinds than those of networks.py, for the second part."""

from collections.abc import Callable
from typing import Any

import keras
from bench.calibration.data import Data
from bench.calibration.networks import finish, inputs_of
from keras import layers

Build = Callable[[Data], keras.Model]


def conv1d(
    depth: int = 3, filters: int = 24, activation: Any = "relu", init: str = "he_normal", norm: Any = None
) -> Build:
    """Return convolutions over time, strided once, with global max pooling at the end."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, depth + 1):
            function = activation[n - 1] if isinstance(activation, list) else activation
            options = {"strides": 2 if n == 2 else 1, "padding": "same", "kernel_initializer": init}
            x = layers.Conv1D(filters, 5, activation=None if norm else function, name=f"hidden_{n}", **options)(x)
            if norm:
                x = layers.Activation(function, name=f"act_{n}")(norm()(x))
        return finish(data, inputs, layers.GlobalMaxPooling1D()(x))

    return build


def autoencoder(width: int = 48, code: int = 12, activation: str = "relu", init: str = "he_normal") -> Build:
    """Return an encoder and a decoder around a narrow code."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n, size in enumerate((width, code, width), 1):
            x = layers.Dense(size, activation, kernel_initializer=init, name=f"hidden_{n}")(x)
        return finish(data, inputs, x)

    return build


def densenet(depth: int = 4, width: int = 24, activation: str = "relu") -> Build:
    """Return dense layers that each read the outputs of all layers before."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, depth + 1):
            y = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{n}")(x)
            x = layers.Concatenate()([x, y])
        return finish(data, inputs, x)

    return build


def gated(blocks: int = 2, width: int = 48, activation: str = "relu") -> Build:
    """Return layers whose outputs are each multiplied by a sigmoid gate."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, blocks + 1):
            x = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{n}")(x)
            x = layers.Multiply()([x, layers.Dense(width, "sigmoid", name=f"gate_{n}")(x)])
        return finish(data, inputs, x)

    return build


def with_dropout(depth: int = 3, width: int = 96, activation: str = "relu", rate: float = 0.3) -> Build:
    """Return dense layers, each followed by dropout."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, depth + 1):
            x = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{n}")(x)
            x = layers.Dropout(rate, seed=n)(x)
        return finish(data, inputs, x)

    return build


def residual_cnn(
    blocks: int = 2, filters: int = 16, activation: str = "relu", norm: Any = layers.BatchNormalization
) -> Build:
    """Return blocks of two normalized convolutions, with the activation after the addition."""

    def build(data: Data) -> keras.Model:
        inputs = inputs_of(data)
        options = {"padding": "same", "kernel_initializer": "he_normal"}
        x = layers.Conv2D(filters, 3, activation=activation, name="hidden_1", **options)(inputs)
        for n in range(1, blocks + 1):
            y = layers.Conv2D(filters, 3, name=f"hidden_{2 * n}", **options)(x)
            y = layers.Activation(activation, name=f"act_{2 * n}")(norm()(y))
            y = norm()(layers.Conv2D(filters, 3, name=f"hidden_{2 * n + 1}", **options)(y))
            x = layers.Activation(activation, name=f"act_{2 * n + 1}")(layers.Add()([x, y]))
        return finish(data, inputs, layers.GlobalAveragePooling2D()(x))

    return build


def bag_of_words(width: int = 32, activation: str = "relu", depth: int = 2) -> Build:
    """Return dense layers on the mean of embedded words."""

    def build(data: Data) -> keras.Model:
        inputs = keras.Input(data.x.shape[1:], dtype="int32", name="input")
        x = layers.GlobalAveragePooling1D()(layers.Embedding(40, width, name="embedding")(inputs))
        for n in range(1, depth + 1):
            x = layers.Dense(width, activation, name=f"hidden_{n}")(x)
        return finish(data, inputs, x)

    return build


def attention(width: int = 32, heads: int = 4, blocks: int = 1, activation: str = "relu") -> Build:
    """Return post-norm encoder blocks on embedded words."""

    def build(data: Data) -> keras.Model:
        inputs = keras.Input(data.x.shape[1:], dtype="int32", name="input")
        x = layers.Embedding(40, width, name="embedding")(inputs)
        for n in range(1, blocks + 1):
            y = layers.MultiHeadAttention(heads, width // heads, name=f"attention_{n}")(x, x)
            x = layers.LayerNormalization()(layers.Add()([x, y]))
            y = layers.Dense(2 * width, activation, name=f"hidden_{2 * n - 1}")(x)
            y = layers.Dense(width, name=f"hidden_{2 * n}")(y)
            x = layers.LayerNormalization()(layers.Add()([x, y]))
        return finish(data, inputs, layers.GlobalAveragePooling1D()(x))

    return build
