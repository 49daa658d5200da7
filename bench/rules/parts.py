"""What set-ups are made of: data, networks and faults, each a small function with one thing to choose."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

# --- Data: arrays x and y, of which a batch is drawn at random.


class Data(NamedTuple):
    """Examples and how a network's answers to them are judged."""

    x: np.ndarray
    y: np.ndarray
    classes: int
    """0: regression of one number; 1: yes or no."""


def digits(seed: int) -> Data:
    """1797 handwritten digits as 64 numbers between 0 and 1."""
    x, y = load_digits(return_X_y=True)
    return Data((x / 16).astype(np.float32), y.astype(np.int32), 10)


def images(seed: int) -> Data:
    """The digits as 8 x 8 images."""
    data = digits(seed)
    return data._replace(x=data.x.reshape(-1, 8, 8, 1))


def rows(seed: int) -> Data:
    """The digits as sequences of 8 rows."""
    data = digits(seed)
    return data._replace(x=data.x.reshape(-1, 8, 8))


def clusters(seed: int) -> Data:
    """4000 standardized points around 15 centres in 20 dimensions, three to each of five classes."""
    rng = np.random.default_rng(seed)
    centres, which = rng.normal(size=[15, 20]) * 1.2, rng.integers(0, 15, 4000)
    return Data((centres[which] + rng.normal(size=[4000, 20])).astype(np.float32), (which % 5).astype(np.int32), 5)


def rings(seed: int) -> Data:
    """Yes or no: which of two noisy rings in the plane, with 6 more coordinates of noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 4000)
    angle, radius = rng.uniform(0, 2 * np.pi, 4000), 1 + y + 0.15 * rng.normal(size=4000)
    plane = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    x = np.concatenate([plane, 0.3 * rng.normal(size=[4000, 6])], 1)
    return Data(x.astype(np.float32), y.astype(np.float32)[:, None], 1)


def friedman(seed: int) -> Data:
    """Regression: Friedman's first function of ten uniform numbers (1991), standardized."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=[4000, 10])
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y - y.mean()) / y.std() + 0.1 * rng.normal(size=4000)
    return Data((x * 2 - 1).astype(np.float32), y.astype(np.float32)[:, None], 0)


# --- Networks: (data) -> model. Hidden layers are `hidden_1`, ..., the last one is `output`.

Activation = str | Callable[[Any], Any]


def _inputs(data: Data):
    return keras.Input(data.x.shape[1:], name="input")


def _output(data: Data, activation: str | None = None) -> layers.Layer:
    activation = activation or ("linear", "sigmoid")[data.classes] if data.classes < 2 else activation or "softmax"
    return layers.Dense(max(data.classes, 1), activation, name="output")


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
) -> Callable[[Data], keras.Model]:
    """Dense layers, normalised where `norm` is given; `shut`: after that layer the gradient is stopped."""

    def build(data: Data) -> keras.Model:
        x = inputs = _inputs(data)
        if len(x.shape) > 2:
            x = layers.Flatten()(x)
        for n, f in enumerate(_each(activation, depth), 1):
            kernel = init or ("he_normal" if f in ("relu", "elu", "leaky_relu", "gelu", "silu") else "glorot_uniform")
            x = layers.Dense(width, None if norm else f, kernel_initializer=kernel, name=f"hidden_{n}")(x)
            if norm:
                x = layers.Activation(f, name=f"act_{n}")(norm(name=f"norm_{n}")(x))
            if n == shut:
                x = Stop(name="stop")(x)
        return keras.Model(inputs, _output(data, output)(x))

    return build


class Stop(layers.Layer):
    """No gradient comes back through it."""

    def call(self, inputs):
        return tf.stop_gradient(inputs)


def cnn(
    depth: int = 3,
    filters: int = 16,
    activation: Activation | Sequence[Activation] = "relu",
    init: Any = "he_normal",
    norm: type | None = None,
) -> Callable[[Data], keras.Model]:
    """3 x 3 convolutions on images, halved once, averaged at the end."""

    def build(data: Data) -> keras.Model:
        x = inputs = _inputs(data)
        for n, f in enumerate(_each(activation, depth), 1):
            conv = layers.Conv2D(
                filters, 3, padding="same", activation=None if norm else f, kernel_initializer=init, name=f"hidden_{n}"
            )
            x = conv(x)
            if norm:
                x = layers.Activation(f, name=f"act_{n}")(norm(name=f"norm_{n}")(x))
            if n == 1:
                x = layers.MaxPooling2D()(x)
        return keras.Model(inputs, _output(data)(layers.GlobalAveragePooling2D()(x)))

    return build


def residual(blocks: int = 3, width: int = 48, activation: str = "relu", norm: bool = True):
    """Two dense layers around each of which a skip connection leads; layer normalisation before them."""

    def build(data: Data) -> keras.Model:
        inputs = _inputs(data)
        x = layers.Dense(width, name="hidden_1")(layers.Flatten()(inputs) if data.x.ndim > 2 else inputs)
        for n in range(blocks):
            y = layers.LayerNormalization(name=f"norm_{n + 1}")(x) if norm else x
            y = layers.Dense(width, activation, kernel_initializer="he_normal", name=f"hidden_{2 * n + 2}")(y)
            x = layers.Add()([x, layers.Dense(width, name=f"hidden_{2 * n + 3}")(y)])
        return keras.Model(inputs, _output(data)(x))

    return build


def branches(first: str = "relu", second: str = "sigmoid", width: int = 64, init: Any = "glorot_uniform"):
    """Two layers side by side, concatenated: the third example of the text that the project starts from."""

    def build(data: Data) -> keras.Model:
        inputs = _inputs(data)
        sides = [
            layers.Dense(width, f, kernel_initializer=init, name=f"hidden_{n}")
            for n, f in enumerate((first, second), 1)
        ]
        return keras.Model(inputs, _output(data)(layers.Concatenate()([side(inputs) for side in sides])))

    return build


def transformer(width: int = 32, blocks: int = 2, activation: str = "gelu"):
    """Pre-norm encoder blocks over the rows of an image."""

    def build(data: Data) -> keras.Model:
        inputs = _inputs(data)
        x, n = layers.Dense(width, name="hidden_1")(inputs), 1
        for block in range(blocks):
            y = layers.LayerNormalization()(x)
            x = layers.Add()([x, layers.MultiHeadAttention(2, width // 2, name=f"attention_{block + 1}")(y, y)])
            y = layers.Dense(2 * width, activation, name=f"hidden_{n + 1}")(layers.LayerNormalization()(x))
            x, n = layers.Add()([x, layers.Dense(width, name=f"hidden_{n + 2}")(y)]), n + 2
        return keras.Model(inputs, _output(data)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))))

    return build


def recurrent(width: int = 32, kind: type = layers.LSTM):
    """A recurrent layer over rows, a dense one and the output."""

    def build(data: Data) -> keras.Model:
        inputs = _inputs(data)
        x = layers.Dense(width, "relu", name="hidden_2")(kind(width, name="hidden_1")(inputs))
        return keras.Model(inputs, _output(data)(x))

    return build


# --- Faults and other things done to a network, its data, or at a step.


def scaled(layer: str, factor: float):
    """The first weights of a layer times a factor."""

    def do(model: keras.Model) -> None:
        kernel = model.get_layer(layer).kernel
        kernel.assign(kernel * factor)

    return do


def all_scaled(factor: float):
    """The first weights of all hidden layers times a factor."""

    def do(model: keras.Model) -> None:
        for layer in model.layers:
            if layer.name.startswith("hidden"):
                layer.kernel.assign(layer.kernel * factor)

    return do


def biased(layer: str, value: float):
    """The biases of a layer start at a value."""

    def do(model: keras.Model) -> None:
        bias = model.get_layer(layer).bias
        bias.assign(tf.fill(bias.shape, value))

    return do


def negative(layer: str):
    """All weights of a layer below 0: with inputs above 0 a ReLU layer is dead."""

    def do(model: keras.Model) -> None:
        kernel = model.get_layer(layer).kernel
        kernel.assign(-tf.abs(kernel))

    return do


Batch = tuple[np.ndarray, np.ndarray]
Hook = Callable[[int, keras.Model, Batch, np.random.Generator], Batch]
"""(step, model, batch, random numbers) -> batch: what happens before a step."""


def bias_drops(layer: str, at: int, by: float) -> Hook:
    """At a step a layer's biases fall, as after one wild update."""

    def hook(n, model, batch, rng):
        if n == at:
            bias = model.get_layer(layer).bias
            bias.assign(bias - by)
        return batch

    return hook


def random_labels(n, model, batch, rng):
    """Labels drawn anew for every batch."""
    x, y = batch
    return x, rng.permutation(y)


def constant_inputs(n, model, batch, rng):
    """All examples of a batch are the same: the labels cannot be told from them."""
    x, y = batch
    return np.broadcast_to(x.mean(0, keepdims=True), x.shape).copy(), y


def inputs_times(factor: float) -> Hook:
    """Data that nobody scaled."""
    return lambda n, model, batch, rng: (batch[0] * np.float32(factor), batch[1])


def bad_batches(every: int, factor: float) -> Hook:
    """Now and then a batch that is out of scale."""

    def hook(n, model, batch, rng):
        return (batch[0] * np.float32(factor), batch[1]) if n and n % every == 0 else batch

    return hook


def nan_input(at: int) -> Hook:
    """One NaN in one example."""

    def hook(n, model, batch, rng):
        if n == at:
            batch[0].flat[7] = np.nan
        return batch

    return hook


class Poison:
    """An activation that works until a step at which it divides by 0, or from there on has no finite derivative."""

    def __init__(self, at: int, backward: bool = False):
        self.at, self.backward = at, backward
        self.on = tf.Variable(0.0, trainable=False)
        self.__name__ = "poisoned"

    def __call__(self, z):
        if self.backward:  # the root of a square: |z|, but 0 * inf on the way back where z is 0
            square = tf.square(z * (1 - self.on))
            return tf.nn.relu(z) + self.on * tf.sqrt(square)
        return tf.nn.relu(z) / (1 - self.on)

    def hook(self, n, model, batch, rng):
        """Takes effect at its step."""
        if n == self.at:
            self.on.assign(1.0)
        return batch
