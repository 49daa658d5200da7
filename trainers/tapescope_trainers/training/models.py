"""The networks of --preset. The first three are Examples 1 to 3 of the text that the study tests.

Every network takes flat examples `[B, pixels]`, as those three do; the networks for images restore `shape`. It ends in
`classes` values that are used as probabilities, and trains on their categorical cross-entropy. Layers have names that
read well in a plot.
"""

import math
from collections.abc import Callable

import keras
from keras import layers

Shape = tuple[int, ...]


def build(
    preset: str,
    shape: Shape,
    classes: int,
    *,
    activation: str | None = None,
    depth: int | None = None,
    width: int | None = None,
    initializer: str | None = None,
    mixed_precision: str = "none",
) -> keras.Model:
    """Return a network with new weights. None means the default of the preset.

    Args:
        preset: A name from `flags.PRESETS`.
        shape: Shape of one example.
        classes: Number of outputs.
        activation: Activation of the hidden layers. Examples 1 to 3 ignore it and the three arguments that follow.
        depth: Number of hidden layers or blocks.
        width: Units, filters or features of a hidden layer.
        initializer: Initializer of the kernels.
        mixed_precision: A value from `flags.PRECISIONS`.

    Raises:
        ValueError: The network cannot take examples of this shape, or is deeper than Keras can build.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if mixed_precision == "none" else f"mixed_{mixed_precision}")
    try:
        if preset in _EXAMPLES:
            return _EXAMPLES[preset](shape, classes)
        make, default_depth, default_width = _SHAPED[preset]
        kernel = initializer or "glorot_uniform"
        return make(shape, classes, activation or "relu", depth or default_depth, width or default_width, kernel)
    except RecursionError:  # Keras follows the layers by recursion
        raise ValueError(f"--depth={depth} of --preset={preset} is deeper than Keras can build: use less") from None
    finally:
        keras.config.set_dtype_policy(policy)


def relu_sigmoid(shape: Shape, classes: int) -> keras.Model:
    """Return Example 1: hidden ReLU, sigmoid output."""
    return _stacked(shape, classes, "relu", "sigmoid", "relu_sigmoid")


def sigmoid_relu(shape: Shape, classes: int) -> keras.Model:
    """Return Example 2: hidden sigmoid, ReLU output. If all outputs of an example are 0 its loss is 0/0, NaN."""
    return _stacked(shape, classes, "sigmoid", "relu", "sigmoid_relu")


def parallel_branches(shape: Shape, classes: int) -> keras.Model:
    """Return Example 3: a ReLU and a sigmoid branch in parallel, concatenated, softmax output."""
    inputs = _input(shape)
    branches = [
        layers.Dense(64, activation="relu", name="relu_branch")(inputs),
        layers.Dense(64, activation="sigmoid", name="sigmoid_branch")(inputs),
    ]
    merged = layers.Concatenate(name="merged")(branches)
    return keras.Model(inputs, _output(classes, "softmax")(merged), name="parallel_branches")


def mlp(shape: Shape, classes: int, activation: str, depth: int, width: int, kernel: str) -> keras.Model:
    """Return `depth` dense layers of `width` units."""
    inputs = _input(shape)
    x = inputs
    for n in range(1, depth + 1):
        x = layers.Dense(width, activation, kernel_initializer=kernel, name=f"hidden_{n}")(x)
    return keras.Model(inputs, _output(classes, "softmax", kernel)(x), name="mlp")


def cnn(shape: Shape, classes: int, activation: str, depth: int, width: int, kernel: str) -> keras.Model:
    """Return `depth` 3x3 convolutions of `width` filters; every second one halves the size, down to 2 pixels."""
    inputs = _input(shape)
    x = _image(inputs, shape)
    for n in range(1, depth + 1):
        conv = layers.Conv2D(
            width, 3, padding="same", activation=activation, kernel_initializer=kernel, name=f"conv_{n}"
        )
        x = conv(x)
        if n % 2 == 0 and min(x.shape[1:3]) >= 4:
            x = layers.MaxPooling2D(name=f"pool_{n}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, _output(classes, "softmax", kernel)(x), name="cnn")


def resnet(shape: Shape, classes: int, activation: str, depth: int, width: int, kernel: str) -> keras.Model:
    """Return `depth` residual blocks of two 3x3 convolutions; the middle block halves the size.

    Group normalisation, because the statistics of batch normalisation would depend on the number of replicas.
    """
    inputs = _input(shape)
    x = _image(inputs, shape)

    def conv(name: str, strides: int = 1, size: int = 3) -> layers.Layer:
        return layers.Conv2D(width, size, strides, padding="same", kernel_initializer=kernel, name=name)

    def norm(name: str) -> layers.Layer:
        return layers.GroupNormalization(groups=_group_count(width), name=name)

    x = layers.Activation(activation, name="stem_act")(norm("stem_norm")(conv("stem")(x)))
    for n in range(1, depth + 1):
        strides = 2 if n == depth // 2 + 1 and depth > 1 else 1
        y = layers.Activation(activation, name=f"block_{n}_act_1")(
            norm(f"block_{n}_norm_1")(conv(f"block_{n}_conv_1", strides)(x))
        )
        y = norm(f"block_{n}_norm_2")(conv(f"block_{n}_conv_2")(y))
        shortcut = conv(f"block_{n}_shortcut", strides, 1)(x) if strides > 1 else x
        x = layers.Activation(activation, name=f"block_{n}_act_2")(layers.Add(name=f"block_{n}_add")([y, shortcut]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, _output(classes, "softmax", kernel)(x), name="resnet")


def transformer(shape: Shape, classes: int, activation: str, depth: int, width: int, kernel: str) -> keras.Model:
    """Return `depth` pre-norm encoder blocks over an image's rows, or the steps of a `[time, features]` example."""
    if len(shape) < 2:
        raise ValueError(f"examples must be [time, features] or images; got shape {shape}: use --preset=mlp")
    inputs = _input(shape)
    rows = layers.Reshape((shape[0], math.prod(shape[1:])), name="rows")(inputs)
    x = Positions(name="positions")(layers.Dense(width, kernel_initializer=kernel, name="embed")(rows))
    heads = next(h for h in (4, 2, 1) if width % h == 0)
    for n in range(1, depth + 1):
        y = layers.LayerNormalization(name=f"block_{n}_norm_1")(x)
        y = layers.MultiHeadAttention(heads, width // heads, kernel_initializer=kernel, name=f"block_{n}_attention")(
            y, y
        )
        x = layers.Add(name=f"block_{n}_add_1")([x, y])
        y = layers.LayerNormalization(name=f"block_{n}_norm_2")(x)
        y = layers.Dense(2 * width, activation, kernel_initializer=kernel, name=f"block_{n}_hidden")(y)
        y = layers.Dense(width, kernel_initializer=kernel, name=f"block_{n}_project")(y)
        x = layers.Add(name=f"block_{n}_add_2")([x, y])
    x = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(name="norm")(x))
    return keras.Model(inputs, _output(classes, "softmax", kernel)(x), name="transformer")


class Positions(layers.Layer):
    """A layer that adds a learned vector to every position of `[batch, time, features]`."""

    def build(self, input_shape):
        """Create the vectors, float32 [time, features]."""
        self.positions = self.add_weight(shape=input_shape[1:], initializer="random_normal", name="positions")

    def call(self, inputs):
        """Return the inputs plus the vectors."""
        return inputs + keras.ops.cast(self.positions, inputs.dtype)


def _stacked(shape: Shape, classes: int, hidden: str, output: str, name: str) -> keras.Model:
    dense = layers.Dense(64, activation=hidden, name="hidden")
    return keras.Sequential([_input(shape), dense, _output(classes, output)], name=name)


def _output(classes: int, activation: str, kernel: str = "glorot_uniform") -> layers.Layer:
    """Return the output layer, always in float32: probabilities in half precision round to 0 and 1."""
    return layers.Dense(classes, activation=activation, kernel_initializer=kernel, dtype="float32", name="output")


def _input(shape: Shape):
    return keras.Input((math.prod(shape),), name="input")


def _image(inputs, shape: Shape):
    """Reshape flat examples to images; `[height, width]` becomes `[height, width, 1]`."""
    if len(shape) not in (2, 3):
        raise ValueError(
            f"examples must be [height, width] or [height, width, channels]; got shape {shape}: use --preset=mlp"
        )
    return layers.Reshape((*shape, 1)[:3], name="image")(inputs)


def _group_count(width: int) -> int:
    """Return the number of groups to normalise `width` filters by."""
    return next(g for g in (8, 4, 2, 1) if width % g == 0)


_EXAMPLES: dict[str, Callable[[Shape, int], keras.Model]] = {
    "relu_sigmoid": relu_sigmoid,
    "sigmoid_relu": sigmoid_relu,
    "parallel_branches": parallel_branches,
}
_SHAPED: dict[str, tuple[Callable[..., keras.Model], int, int]] = {
    "mlp": (mlp, 4, 64),
    "cnn": (cnn, 4, 32),
    "resnet": (resnet, 4, 32),
    "transformer": (transformer, 2, 64),
}
"""By preset: the function that builds it, its default depth and default width."""
