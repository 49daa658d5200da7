"""Hooks that see the tensors of a model's layers while a measured step runs or is traced.

One hook on `Layer.__call__` of Keras, and of tf_keras, is installed once. It passes every call through, unless this
thread is inside a measuring tape that measures the layer. It then keeps the layer's input, the pre-activation z and the
output a. Tapes may be nested or open at the same time, as the two of a GAN are. Each keeps the layers of its own probe.

Nothing is computed here. While a layer runs, an `_ObservedActivation` takes the place of its `activation` attribute.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tapescope.capture import activations, attention, keras_kinds, private_api
from tapescope.capture.activations import Activation
from tapescope.capture.attention import NO_TRANSFORMER, AttentionCapture, TransformerLayers
from tapescope.capture.data_path import DataPath
from tapescope.capture.shared_patch import patch_for_good, shared_patch
from tapescope.capture.training_mode import TrainingMode
from tapescope.failsafe import Failsafe, attribute_errors_to


class LayerCall(NamedTuple):
    """One call of a layer, or one tapped tensor, with its gradients after the backward pass."""

    name: str
    """The same for every call of a layer."""
    activation: Activation
    input: tf.Tensor | None
    z: tf.Tensor | None
    """Input of the activation (pre-activation)."""
    a: tf.Tensor
    """Output of the layer."""
    layer: Any
    number: int
    """Position in the order of calls; every tape that sees a call has the same number for it."""
    measured: Any = None
    """Tensor to measure instead of `a`, or instead of `z` where the activation is differentiated."""
    measured_input: Any = None
    """Tensor to measure instead of the input of the first call; the inputs of later calls are outputs of layers."""
    deltas: tuple[Any, Any, Any] = (None, None, None)
    """Gradients of the loss with respect to a, z and input; None where there is none."""

    @property
    def differentiated(self) -> bool:
        """Whether the activation is applied to z again, for its derivative: then `a` is not measured."""
        return self.activation.function is not None and self.z is not None


_ONE_EXAMPLE = "it runs inside tf.vectorized_map, whose body TensorFlow traces for one example"
_OTHER_GRAPH = "it runs inside a graph of its own (a loop's body, or a tf.function within the step)"


def current_graph() -> Any:
    """Return the graph that operations are added to; None in eager mode."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class Capture:
    """The calls that one tape has seen; a context manager that is active in this thread while it is entered."""

    def __init__(
        self,
        chosen: dict[int, tuple[str, Activation]],
        failsafe: Failsafe,
        models: Sequence[Any] = (),
        transformer: TransformerLayers = NO_TRANSFORMER,
    ):
        self.data_path = DataPath(models)
        """The inputs and outputs of the models."""
        self.training_mode = TrainingMode()
        self.chosen = chosen
        """Name and activation of the layers to measure, by their id."""
        self.failsafe = failsafe
        self._graph = current_graph()
        self._map = private_api.vectorized_map()
        self.attention = AttentionCapture(transformer, self._graph)
        """The attention heads and the residual stream."""
        self.calls: list[LayerCall] = []
        self.skipped: dict[str, str] = {}
        """Reason by the name of each layer that cannot be measured."""

    def __enter__(self) -> "Capture":
        _install_hooks()
        _thread.captures = [*_thread.captures, self]
        return self

    def __exit__(self, *exc_info: object) -> None:
        _thread.captures = [c for c in _thread.captures if c is not self]

    def is_in_graph(self, layer: Any) -> bool:
        """Return whether the step itself runs a layer; keep the reason where not.

        A graph within the step (a loop's body, a `tf.function`) is left as it is: a plain step may run it again.
        """
        graph = current_graph()
        reason = self._why_not_in_graph(graph)
        if reason and id(layer) in self.chosen and not private_api.is_scratch_graph(graph):
            self.skipped[self.chosen[id(layer)][0]] = reason
        return reason is None

    def _why_not_in_graph(self, graph: Any) -> str | None:
        """Return why what runs in a graph is not of the step itself; None where it is."""
        if graph is not self._graph:
            return _OTHER_GRAPH
        return None if private_api.vectorized_map() == self._map else _ONE_EXAMPLE

    def add(self, call: LayerCall) -> None:
        """Keep a call whose output can be measured; keep the reason for any other."""
        reason = self._why_not_measurable(call.a)
        if reason:
            self.skipped[call.name] = reason
            return
        layer_input = call.input if self._why_not_measurable(call.input) is None else None
        z = call.z if self._why_not_measurable(call.z) is None else None
        self.calls.append(call._replace(input=layer_input, z=z))

    def _why_not_measurable(self, tensor: Any) -> str | None:
        if not isinstance(tensor, tf.Tensor):
            return f"its output is not a tensor but {type(tensor).__name__}"
        if not tensor.dtype.is_floating:
            return f"its output is {tensor.dtype.name}, not floating point"
        if tensor.shape.rank is None or (tensor.shape.rank > 1 and tensor.shape[-1] is None):
            return f"the last axis of its output, the units, has no known size: shape {tensor.shape}"
        return self._why_not_in_graph(None if hasattr(tensor, "numpy") else tensor.graph)


@tf.autograph.experimental.do_not_convert
def tap(name: str, tensor: tf.Tensor, activation: Any = None) -> tf.Tensor:
    """Mark a tensor as a layer's output and return it unchanged. It costs nothing in a step that is not measured.

    It is for `tf.Module`s, plain functions, and Keras operations that are not layers.

    Args:
      name: of the row.
      tensor: any floating-point tensor of the step.
      activation: the function that made it, or the name of one of Keras'. It says when an element is saturated; without
        it `saturated` is NaN.

    Returns:
      The same tensor.
    """
    if _thread.captures:
        described = activations.UNKNOWN if activation is None else activations.describe(activation)
        call = LayerCall(
            name=name,
            activation=described,
            input=None,
            z=None,
            a=tensor,
            layer=None,
            number=next(_numbers),
        )
        for capture in _thread.captures:
            with capture.failsafe.contain(), attribute_errors_to(name):
                capture.add(call)
    return tensor


@contextlib.contextmanager
def pause_capture() -> Iterator[None]:
    """Keep no calls of this thread: a backward pass may run layers again, as that of `tf.recompute_grad` does."""
    captures = _thread.captures
    _thread.captures = []
    try:
        yield
    finally:
        _thread.captures = captures


def named_layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every layer below `model` with its path, such as `"encoder/dense"`, depth first.

    Recurrent cells are not layers here. Equal names in one model are numbered: `dense`, `dense_2`.
    """
    if isinstance(model, keras_kinds.layers("RNN")):
        return
    taken: set[str] = set()
    for layer in private_api.sublayers(model):
        if isinstance(layer, keras_kinds.layers("InputLayer")):
            continue
        name = prefix + layer.name
        number = 2
        while name in taken:
            name = f"{prefix}{layer.name}_{number}"
            number += 1
        taken.add(name)
        yield name, layer
        yield from named_layers(layer, f"{name}/")


def has_activation(layer: Any) -> bool:
    """Return whether a layer is measured unless the user chose others."""
    is_chosen = activations.is_function(layer) or isinstance(layer, keras_kinds.layers("RNN"))
    return is_chosen or callable(getattr(layer, "activation", None))


class _Thread(threading.local):
    captures: Sequence[Capture] = ()
    """Captures of the tapes that are open, the innermost last."""

    def __init__(self) -> None:
        self.activation_inputs: list[list[Any]] = []
        """Inputs of the activation of each measured layer that is running now, the innermost layer last."""


_thread = _Thread()
_numbers = itertools.count()


class _ObservedActivation:
    """A layer's activation that keeps its input."""

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _thread.activation_inputs:
            _thread.activation_inputs[-1].append(next(iter((*args, *kwargs.values())), None))
        return self.function(*args, **kwargs)

    # A layer may look at its activation, so this one says of itself what the function would.

    @property
    def __class__(self) -> Any:
        return type(self.function)

    def __eq__(self, other: object) -> bool:
        return self.function == other

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return repr(self.function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "function":
            object.__setattr__(self, name, value)
        else:
            setattr(self.function, name, value)


def _observe_activation(layer: Any) -> contextlib.AbstractContextManager[None]:
    """Put an `_ObservedActivation` into the layer for the time of one call."""
    if not callable(vars(layer).get("activation")):
        return contextlib.nullcontext()
    return shared_patch(layer, "activation", _ObservedActivation)


def _install_hooks() -> None:
    """Patch `Layer.__call__`, the first time that a measured step begins. It stays patched."""
    for layer_class in keras_kinds.layers("Layer"):
        patch_for_good(layer_class, "__call__", _hook)


def _hook(original: Any) -> Any:
    def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:
        inside = []
        if _thread.captures and not any(map(private_api.is_keras_tensor, _leaves((args, kwargs)))):
            inside = [c for c in _thread.captures if c.is_in_graph(layer)]
        if not inside:  # nor where a model only builds itself
            return original(layer, *args, **kwargs)
        for capture in inside:
            with capture.failsafe.contain():
                capture.data_path.begin_call(layer, args)
                capture.training_mode.begin_call(layer, args, kwargs)
        captures = [c for c in inside if id(layer) in c.chosen]
        attends = any(c.attention.observes(layer) for c in inside)
        try:
            with attention.observe(layer) if attends else contextlib.nullcontext([]) as observed:
                if captures:
                    output = _measured_call(captures, original, layer, args, kwargs)
                else:
                    output = original(layer, *args, **kwargs)
        finally:
            for capture in inside:
                capture.training_mode.end_call()
        for capture in inside:
            with capture.failsafe.contain():
                capture.data_path.end_call(layer, args, output)
                capture.attention.end_call(layer, args, kwargs, output, observed)
        return output

    return __call__


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in lists, tuples and dicts; `tf.nest` sorts keys, which may be of several types."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _measured_call(captures: Sequence[Capture], original: Any, layer: Any, args: tuple, kwargs: dict) -> Any:
    layer_input = None
    try:
        layer_input = _separate_input(args[0]) if args else None
        if layer_input is not None:
            args = (layer_input, *args[1:])
    except Exception as error:  # of all captures, because they share the input
        for capture in captures:
            with capture.failsafe.contain(), attribute_errors_to(capture.chosen[id(layer)][0]):
                raise error
    _thread.activation_inputs.append([])
    try:
        with _observe_activation(layer):
            output = original(layer, *args, **kwargs)
    finally:
        activation_inputs = _thread.activation_inputs.pop()
    number = next(_numbers)
    for capture in captures:
        name, activation = capture.chosen[id(layer)]
        with capture.failsafe.contain(), attribute_errors_to(name):
            z = None
            if activations.is_function(layer):
                z = layer_input
            elif len(activation_inputs) == 1:
                z = activation_inputs[0]
            call = LayerCall(
                name=name,
                activation=activation,
                input=layer_input,
                z=z,
                a=next((t for t in tf.nest.flatten(output) if t is not None), output),
                layer=layer,
                number=number,
            )
            capture.add(call)
    return output


def _separate_input(tensor: Any) -> tf.Tensor | None:
    """Wrap a layer's input in `tf.identity`, so that its gradient counts this layer's path only.

    Return None for an input that is not a floating-point tensor. No data moves.
    """
    if not (isinstance(tensor, tf.Tensor) and tensor.dtype.is_floating):
        return None
    separate = tf.identity(tensor)
    private_api.copy_keras_metadata(tensor, separate)
    return separate
