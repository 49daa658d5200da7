"""Networks of other kinds than those of networks.py, for the second part. Made as they are."""

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
    """Convolutions over time, strided once, with the largest output of all times at the end."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, depth + 1):
            own = activation[n - 1] if isinstance(activation, list) else activation
            options = {"strides": 2 if n == 2 else 1, "padding": "same", "kernel_initializer": init}
            x = layers.Conv1D(filters, 5, activation=None if norm else own, name=f"hidden_{n}", **options)(x)
            if norm:
                x = layers.Activation(own, name=f"act_{n}")(norm()(x))
        return finish(data, inputs, layers.GlobalMaxPooling1D()(x))

    return build


def autoencoder(width: int = 48, code: int = 12, activation: str = "relu", init: str = "he_normal") -> Build:
    """Down to a code and up again."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n, size in enumerate((width, code, width), 1):
            x = layers.Dense(size, activation, kernel_initializer=init, name=f"hidden_{n}")(x)
        return finish(data, inputs, x)

    return build


def densenet(depth: int = 4, width: int = 24, activation: str = "relu") -> Build:
    """Each layer reads the outputs of all before it."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, depth + 1):
            y = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{n}")(x)
            x = layers.Concatenate()([x, y])
        return finish(data, inputs, x)

    return build


def gated(blocks: int = 2, width: int = 48, activation: str = "relu") -> Build:
    """Layers whose outputs are multiplied with a sigmoid gate of their own."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n in range(1, blocks + 1):
            x = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{n}")(x)
            x = layers.Multiply()([x, layers.Dense(width, "sigmoid", name=f"gate_{n}")(x)])
        return finish(data, inputs, x)

    return build


def with_dropout(depth: int = 3, width: int = 96, activation: str = "relu", rate: float = 0.3) -> Build:
    """Dense layers, each followed by dropout."""

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
    """Blocks of two normalised convolutions; the activation comes after the addition."""

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
    """The mean of embedded words, and dense layers."""

    def build(data: Data) -> keras.Model:
        inputs = keras.Input(data.x.shape[1:], dtype="int32", name="input")
        x = layers.GlobalAveragePooling1D()(layers.Embedding(40, width, name="embedding")(inputs))
        for n in range(1, depth + 1):
            x = layers.Dense(width, activation, name=f"hidden_{n}")(x)
        return finish(data, inputs, x)

    return build


def attention(width: int = 32, heads: int = 4, blocks: int = 1, activation: str = "relu") -> Build:
    """Embedded words, and encoder blocks with the normalisation after the addition."""

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
