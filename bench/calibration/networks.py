"""Networks of the set-ups: each function takes a few options and returns a function from data to a model.

Hidden layers are `hidden_1`, `hidden_2`, ..., the last one is `output`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from bench.calibration.data import Data
from keras import layers

from tapescope_trainers.training import models

Activation = str | Callable[[Any], Any]


def inputs_of(data: Data):
    """Return the model's input."""
    return keras.Input(data.x.shape[1:], name="input")


def finish(data: Data, inputs: Any, x: Any, activation: str | None = None) -> keras.Model:
    """Return the model, with the output layer that suits the data."""
    default = {0: "linear", 1: "sigmoid"}.get(data.classes, "softmax")
    units = data.classes or data.y.shape[1]
    return keras.Model(inputs, layers.Dense(units, activation or default, name="output")(x))


def _each(activations: Activation | Sequence[Activation], depth: int) -> list[Activation]:
    several = not isinstance(activations, str) and isinstance(activations, Sequence)
    return list(activations) if several else [activations] * depth  # type: ignore[list-item]


def mlp(
    depth: int = 3,
    width: int = 64,
    activation: Activation | Sequence[Activation] = "relu",
    init: Any = None,
    norm: type | None = None,
    output: str | None = None,
    shut: int = 0,
    dropout: float = 0.0,
) -> Callable[[Data], keras.Model]:
    """Return dense layers, normalized if `norm` is given; the gradient stops after layer number `shut`."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        if len(x.shape) > 2:
            x = layers.Flatten()(x)
        for n, f in enumerate(_each(activation, depth), 1):
            kernel = init or ("he_normal" if f in ("relu", "elu", "leaky_relu", "gelu", "silu") else "glorot_uniform")
            x = layers.Dense(width, None if norm else f, kernel_initializer=kernel, name=f"hidden_{n}")(x)
            if norm:
                x = layers.Activation(f, name=f"act_{n}")(norm(name=f"norm_{n}")(x))
            if dropout:
                x = layers.Dropout(dropout, seed=n)(x)
            if n == shut:
                x = Stop(name="stop")(x)
        return finish(data, inputs, x, output)

    return build


class Stop(layers.Layer):
    """A layer that stops the gradient."""

    def call(self, inputs):
        return tf.stop_gradient(inputs)


def cnn(
    depth: int = 3,
    filters: int = 16,
    activation: Activation | Sequence[Activation] = "relu",
    init: Any = "he_normal",
    norm: type | None = None,
) -> Callable[[Data], keras.Model]:
    """Return 3 x 3 convolutions on images, pooled after the first and averaged at the end."""

    def build(data: Data) -> keras.Model:
        x = inputs = inputs_of(data)
        for n, f in enumerate(_each(activation, depth), 1):
            conv = layers.Conv2D(
                filters, 3, padding="same", activation=None if norm else f, kernel_initializer=init, name=f"hidden_{n}"
            )
            x = conv(x)
            if norm:
                x = layers.Activation(f, name=f"act_{n}")(norm(name=f"norm_{n}")(x))
            if n == 1:
                x = layers.MaxPooling2D()(x)
        return finish(data, inputs, layers.GlobalAveragePooling2D()(x))

    return build


def residual(blocks: int = 3, width: int = 48, activation: str = "relu", norm: bool = True):
    """Return blocks of layer normalization and two dense layers, each with a skip connection."""

    def build(data: Data) -> keras.Model:
        inputs = inputs_of(data)
        x = layers.Dense(width, name="hidden_1")(layers.Flatten()(inputs) if data.x.ndim > 2 else inputs)
        for n in range(blocks):
            y = layers.LayerNormalization(name=f"norm_{n + 1}")(x) if norm else x
            y = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{2 * n + 2}")(y)
            x = layers.Add()([x, layers.Dense(width, name=f"hidden_{2 * n + 3}")(y)])
        return finish(data, inputs, x)

    return build


def branches(first: str = "relu", second: str = "sigmoid", width: int = 64, init: Any = "glorot_uniform"):
    """Return two parallel layers, concatenated: the third example of the text that the project starts from."""

    def build(data: Data) -> keras.Model:
        inputs = inputs_of(data)
        sides = [
            layers.Dense(width, f, kernel_initializer=init, name=f"hidden_{n}")
            for n, f in enumerate((first, second), 1)
        ]
        return finish(data, inputs, layers.Concatenate()([side(inputs) for side in sides]))

    return build


def transformer(width: int = 32, blocks: int = 2, activation: str = "gelu"):
    """Return pre-norm encoder blocks over the rows of an image."""

    def build(data: Data) -> keras.Model:
        inputs = inputs_of(data)
        x = layers.Dense(width, name="hidden_1")(inputs)
        n = 1
        for block in range(blocks):
            y = layers.LayerNormalization()(x)
            x = layers.Add()([x, layers.MultiHeadAttention(2, width // 2, name=f"attention_{block + 1}")(y, y)])
            y = layers.Dense(2 * width, activation, name=f"hidden_{n + 1}")(layers.LayerNormalization()(x))
            x = layers.Add()([x, layers.Dense(width, name=f"hidden_{n + 2}")(y)])
            n += 2
        return finish(data, inputs, layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))

    return build


def recurrent(width: int = 32, kind: type = layers.LSTM):
    """Return a recurrent layer over rows, a dense layer and the output."""

    def build(data: Data) -> keras.Model:
        inputs = inputs_of(data)
        x = layers.Dense(width, "relu", name="hidden_2")(kind(width, name="hidden_1")(inputs))
        return finish(data, inputs, x)

    return build


def preset(name: str, **options: Any) -> Callable[[Data], keras.Model]:
    """Return a network of `tapescope-train` for the digits; see `tapescope_trainers.training.models`."""
    return lambda data: models.build(name, (8, 8), data.classes, **options)
