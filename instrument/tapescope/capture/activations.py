"""Activation functions, and where they are saturated: one definition for every function.

An element is saturated where |f'(z)| is below 1 % of the largest |f'| of that function. It is flat where a bounded f
has f'(z) = 0 in the arithmetic that it runs in. For the monotone functions below, both are comparisons of the output
a = f(z) with a threshold. Any other elementwise function of Keras or TensorFlow is differentiated at z.

A function of the user's is never called to find something out, because a call may have an effect: a quantizer moves its
range, a layer is built. Its derivative is in the gradients of the step, f'(z) = (dL/dz) / (dL/da), and the largest one
is the largest that the batch shows.

Thresholds, from f' written in terms of a: sigmoid a(1-a), tanh 1-a^2, softsign (1-|a|)^2, softplus 1-exp(-a),
ELU a+alpha for z < 0, SELU a + scale*alpha for z < 0.
"""

import functools
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tapescope.capture import keras_kinds

SATURATED_SHARE = 0.01
"""Share of the largest |f'| below which an element is saturated."""

_INF = math.inf


class Activation(NamedTuple):
    """Name and thresholds of an activation function. Without `function`, the thresholds are on the output."""

    name: str
    saturated: tuple[float, float] = (-_INF, _INF)
    """An element is saturated low where a <= the first, high where a >= the second."""
    flat: tuple[float, float] | None = None
    """Bounds of a bounded function: its derivative is 0 where a <= the first or a >= the second."""
    function: Callable[[tf.Tensor], tf.Tensor] | None = None
    """The function itself, to be differentiated at z, where no threshold on the output says the same."""
    largest: float = 1.0
    """Largest |f'| of `function`."""
    nonnegative: bool = False
    """Whether all outputs are 0 or above."""
    from_gradients: bool = False
    """Whether |f'| is taken from the gradients of the step, as that of a function of the user's."""
    defined: bool = True
    """False where the function is not elementwise, or |f'| has no largest value: `saturated` is NaN."""


def _sigmoid_like(name: str) -> Activation:
    half_width = math.sqrt(0.25 * (1 - SATURATED_SHARE))
    return Activation(name, (0.5 - half_width, 0.5 + half_width), flat=(0.0, 1.0), nonnegative=True)


def _elu(name: str, alpha: float = 1.0, scale: float = 1.0) -> Activation:
    largest = scale * max(1.0, alpha)
    return Activation(name, (SATURATED_SHARE * largest - scale * alpha, _INF))


def _clipped_relu(top: float) -> Activation:
    return Activation("relu", (0.0, top), flat=(0.0, top), nonnegative=True)


_TANH = math.sqrt(1 - SATURATED_SHARE)
_SOFTSIGN = 1 - math.sqrt(SATURATED_SHARE)

LINEAR = Activation("linear")
UNKNOWN = Activation("unknown", defined=False)
_RELU = Activation("relu", (0.0, _INF), nonnegative=True)
_SOFTPLUS = Activation("softplus", (-math.log1p(-SATURATED_SHARE), _INF), nonnegative=True)

_k = keras.activations
_KNOWN: dict[Any, Activation] = {
    _k.linear: LINEAR,
    _k.relu: _RELU,
    tf.nn.relu: _RELU,
    _k.relu6: _clipped_relu(6.0),
    tf.nn.relu6: _clipped_relu(6.0),
    _k.leaky_relu: Activation("leaky_relu"),
    tf.nn.leaky_relu: Activation("leaky_relu"),
    _k.elu: _elu("elu"),
    tf.nn.elu: _elu("elu"),
    _k.selu: _elu("selu", 1.6732632423543772, 1.0507009873554805),
    tf.nn.selu: _elu("selu", 1.6732632423543772, 1.0507009873554805),
    _k.sigmoid: _sigmoid_like("sigmoid"),
    tf.nn.sigmoid: _sigmoid_like("sigmoid"),
    _k.hard_sigmoid: Activation("hard_sigmoid", (0.0, 1.0), flat=(0.0, 1.0), nonnegative=True),
    _k.tanh: Activation("tanh", (-_TANH, _TANH), flat=(-1.0, 1.0)),
    tf.nn.tanh: Activation("tanh", (-_TANH, _TANH), flat=(-1.0, 1.0)),
    _k.softsign: Activation("softsign", (-_SOFTSIGN, _SOFTSIGN)),
    tf.nn.softsign: Activation("softsign", (-_SOFTSIGN, _SOFTSIGN)),
    _k.softplus: _SOFTPLUS,
    tf.nn.softplus: _SOFTPLUS,
    _k.softmax: Activation("softmax", nonnegative=True, defined=False),
    tf.nn.softmax: Activation("softmax", nonnegative=True, defined=False),
    _k.log_softmax: Activation("log_softmax", defined=False),
}


def describe(function: Any) -> Activation:
    """Return the Activation of a callable, of the name of one of Keras' functions, or of None (linear)."""
    if isinstance(function, str) or function is None:
        function = keras.activations.get(function)
    if is_activation(function):
        return describe_layer(function)
    try:
        known = _KNOWN.get(function) or _KNOWN.get(getattr(_k, keras_kinds.legacy_name(function), None))
    except TypeError:  # the function is not hashable
        known = None
    if known is not None:
        return known
    if _is_of_a_library(function):
        return _differentiated(function)
    return Activation(getattr(function, "__name__", type(function).__name__), from_gradients=True)


FUNCTION_LAYERS = ("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax")
"""Names of Keras' layers that are an activation function."""


def is_function(layer: Any) -> bool:
    """Return whether a layer is an activation function."""
    return isinstance(layer, keras_kinds.layers(*FUNCTION_LAYERS))


def is_activation(layer: Any) -> bool:
    """Return whether a layer is an activation function, or applies one and does nothing else."""
    return is_function(layer) or isinstance(layer, keras_kinds.layers("Activation"))


def describe_layer(layer: Any) -> Activation:
    """Return the Activation of a layer that is one (`keras.layers.ReLU`) or has one (`Dense.activation`)."""
    if isinstance(layer, keras_kinds.layers("ReLU")):
        top = None if layer.max_value is None else float(layer.max_value)
        if layer.threshold or layer.negative_slope:
            return _differentiated_relu(float(layer.negative_slope), top, float(layer.threshold))
        return _RELU if top is None else _clipped_relu(top)
    if isinstance(layer, keras_kinds.layers("LeakyReLU")):
        slope = layer.alpha if keras_kinds.is_legacy(layer) else layer.negative_slope
        if abs(slope) >= SATURATED_SHARE:
            return Activation("leaky_relu")
        return _RELU._replace(name="leaky_relu", nonnegative=False)
    if isinstance(layer, keras_kinds.layers("ELU")):
        return _elu("elu", float(layer.alpha))
    if isinstance(layer, keras_kinds.layers("Softmax")):
        return Activation("softmax", nonnegative=True, defined=False)
    if isinstance(layer, keras_kinds.layers("PReLU")):
        return Activation("prelu", defined=False)  # the slope is learned, so the derivative has no fixed largest
    if isinstance(layer, keras_kinds.layers("RNN")):
        return Activation("recurrent", defined=False)
    return describe(layer.activation) if hasattr(layer, "activation") else LINEAR


def _is_of_a_library(function: Any) -> bool:
    """Return whether Keras or TensorFlow defines a function, so that a call of it has no effect."""
    if isinstance(function, functools.partial):
        arguments = (*function.args, *function.keywords.values())
        return all(isinstance(a, (bool, int, float)) for a in arguments) and _is_of_a_library(function.func)
    package = (getattr(function, "__module__", None) or "").split(".")[0]
    return isinstance(function, types.FunctionType) and package in ("keras", "tensorflow", "tf_keras")


@functools.lru_cache(maxsize=64)
def _differentiated_relu(negative_slope: float, max_value: float | None, threshold: float) -> Activation:
    function = functools.partial(
        keras.activations.relu, negative_slope=negative_slope, max_value=max_value, threshold=threshold
    )
    return _differentiated(function)._replace(name="relu")


@functools.lru_cache(maxsize=64)
def _differentiated(function: Any) -> Activation:
    """Return the Activation of a library's function, to be differentiated; an undefined one where that is not possible.

    The function is tried on a grid, outside any graph. It must be elementwise, and |f'| must have a largest value.
    """
    name = getattr(getattr(function, "func", function), "__name__", type(function).__name__)
    grid = np.linspace(-10, 10, 2001, dtype=np.float32)
    try:
        with tf.init_scope():
            of_column = function(tf.constant(grid[:, None])).numpy()[:, 0]
            of_row = function(tf.constant(grid[None, :])).numpy()[0]
    except Exception:  # not a function of one tensor
        return Activation(name, defined=False)
    slopes = np.abs(np.gradient(of_column, grid))  # central differences, because tapes do not record in an init_scope
    largest = slopes.max()
    largest_inside = slopes[np.abs(grid) <= 5].max()
    is_elementwise = np.allclose(of_row, of_column, rtol=1e-4, atol=1e-6)
    if is_elementwise and 0 < largest <= 1.01 * largest_inside:
        return Activation(name, function=function, largest=float(largest))
    return Activation(name, defined=False)
