"""Sees the tensors that flow through a model while a measured step runs or is traced.

One hook on `keras.layers.Layer.__call__`, set once, passes every call through untouched unless this thread is inside a
measuring tape; then the chosen layers' calls are noted: the input, the tensor z that goes into the activation, and
the output a. Where tapes are nested or open side by side (as a GAN's two are), each notes the layers of its own probe.
Nothing is computed here and no layer is changed: while a layer runs, its `activation` attribute is stood in for by a
`_Witness`, which is shared and counted because replica threads take turns inside one layer.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture import activations
from tapescope.capture.activations import Activation
from tapescope.failsafe import Guard, blaming


class Call(NamedTuple):
    """One call of a layer, or one tapped tensor."""

    name: str
    """The same for each call of a layer."""
    activation: Activation
    input: tf.Tensor | None
    z: tf.Tensor | None
    """Into the activation (pre-activation)."""
    a: tf.Tensor
    """Out of the layer."""
    layer: Any
    number: int
    """In the order of calls; of one call the same on all tapes that see it."""
    read: Any = None
    """What is measured in place of `a`, or of z where that is differentiated."""
    given: Any = None
    """What is measured in place of the input, of the first call alone: the inputs of the others were outputs."""

    @property
    def differentiated(self) -> bool:
        """Whether the function is applied to z again, for its derivative: then `a` is not read at all."""
        return self.activation.function is not None and self.z is not None


class Capture:
    """What one tape has seen so far; a context manager that is among this thread's open ones while it is entered."""

    def __init__(self, chosen: dict[int, tuple[str, Activation]], guard: Guard):
        self.chosen = chosen
        """By the layer's id: what to call it, and what its activation is."""
        self.guard = guard
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self.calls: list[Call] = []
        self.skipped: dict[str, str] = {}

    def __enter__(self) -> "Capture":
        _install()
        _thread.captures = [*_thread.captures, self]
        return self

    def __exit__(self, *exc_info: object) -> None:
        _thread.captures = [c for c in _thread.captures if c is not self]

    def note(self, call: Call) -> None:
        """Keeps a call whose output can be measured; says why of the others."""
        why_not = self._why_not(call.a)
        if why_not:
            self.skipped[call.name] = why_not
            return
        keep = [t if self._why_not(t) is None else None for t in (call.input, call.z)]
        self.calls.append(call._replace(input=keep[0], z=keep[1]))

    def _why_not(self, tensor: Any) -> str | None:
        if not isinstance(tensor, tf.Tensor):
            return f"its output is no tensor but {type(tensor).__name__}"
        if not tensor.dtype.is_floating:
            return f"its output is {tensor.dtype.name}, not floating point"
        if tensor.shape.rank is None or (tensor.shape.rank > 1 and tensor.shape[-1] is None):
            return f"the last axis of its output, the units, has no known size: shape {tensor.shape}"
        graph = None if hasattr(tensor, "numpy") else tensor.graph
        if graph is not self._graph:
            return "it runs inside a graph of its own (a loop's body, or a tf.function within the step)"
        return None


@tf.autograph.experimental.do_not_convert
def tap(name: str, tensor: tf.Tensor, activation: Any = None) -> tf.Tensor:
    """Marks any tensor as a layer's output; returns it unchanged. Costs nothing in a step that is not measured.

    For `tf.Module`s, plain functions, and Keras operations that are no layers. `activation` (a function, the name of
    one of Keras', or None where not known) says when an element counts as saturated; None leaves `saturated` NaN.
    """
    if _thread.captures:
        described = activations.UNKNOWN if activation is None else activations.describe(activation)
        call = Call(name, described, None, None, tensor, None, next(_numbers))
        with _thread.captures[0].guard(), blaming(name):
            for capture in _thread.captures:
                capture.note(call)
    return tensor


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Notes nothing in this thread: a backward pass may run layers again, as that of `tf.recompute_grad` does."""
    captures, _thread.captures = _thread.captures, []
    try:
        yield
    finally:
        _thread.captures = captures


def named_layers(model: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Every layer below `model` with its path, depth first: `"encoder/dense"`. Recurrent cells are no layers."""
    taken: set[str] = set()
    for layer in model._layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        name, again = prefix + layer.name, 2
        while name in taken:
            name, again = f"{prefix}{layer.name}_{again}", again + 1
        taken.add(name)
        yield name, layer
        if not isinstance(layer, keras.layers.RNN):
            yield from named_layers(layer, f"{name}/")


_LAYERS_THAT_ARE_ACTIVATIONS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
)


def has_activation(layer: keras.layers.Layer) -> bool:
    """Whether a layer is measured unless the user chose others."""
    return isinstance(layer, _LAYERS_THAT_ARE_ACTIVATIONS) or callable(getattr(layer, "activation", None))


class _Thread(threading.local):
    captures: Sequence[Capture] = ()
    """Of the tapes that are open, the innermost last."""

    def __init__(self) -> None:
        self.running: list[list[tf.Tensor]] = []
        """What went into the activation of each measured layer that is running now, innermost last."""


_thread = _Thread()
_numbers = itertools.count()
_lock = threading.Lock()


class _Witness:
    """Stands in for `layer.activation` while the layer runs: notes what goes in, then calls the real one."""

    def __init__(self, real: Any):
        self.real = real
        self.users = 0

    def __call__(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        if _thread.running:
            _thread.running[-1].append(z)
        return self.real(z, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextlib.contextmanager
def _witnessed(layer: keras.layers.Layer) -> Iterator[None]:
    """Has a `_Witness` in the layer for the time of one call."""
    fields = layer.__dict__
    if not callable(fields.get("activation")):
        yield
        return
    with _lock:
        witness = fields["activation"]
        if not isinstance(witness, _Witness):
            witness = fields["activation"] = _Witness(witness)
        witness.users += 1
    try:
        yield
    finally:
        with _lock:
            witness.users -= 1
            if not witness.users:
                fields["activation"] = witness.real


def _install() -> None:
    """Hooks `Layer.__call__`, the first time that a measured step begins."""
    with _lock:
        original = keras.layers.Layer.__call__
        if getattr(original, "_tapescope", False):
            return

        def __call__(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
            captures = [c for c in _thread.captures if id(layer) in c.chosen]
            if not captures:
                return original(layer, *args, **kwargs)
            return _measured_call(captures, original, layer, args, kwargs)

        __call__.__wrapped__ = original  # type: ignore[attr-defined]
        __call__._tapescope = True  # type: ignore[attr-defined]
        keras.layers.Layer.__call__ = __call__


def _measured_call(captures: Sequence[Capture], original: Any, layer: Any, args: tuple, kwargs: dict) -> Any:
    name, mine, given = captures[0].chosen[id(layer)][0], None, args
    with captures[0].guard(), blaming(name):
        mine = _own(args[0]) if args else None
        given = args if mine is None else (mine, *args[1:])
    _thread.running.append([])
    try:
        with _witnessed(layer):
            output = original(layer, *given, **kwargs)
    finally:
        into_activation = _thread.running.pop()
    with captures[0].guard(), blaming(name):
        if isinstance(layer, _LAYERS_THAT_ARE_ACTIVATIONS):
            z = mine
        else:
            z = into_activation[0] if len(into_activation) == 1 else None
        first = next((t for t in tf.nest.flatten(output) if t is not None), output)
        number = next(_numbers)
        for capture in captures:
            name, activation = capture.chosen[id(layer)]
            capture.note(Call(name, activation, mine, z, first, layer, number))
    return output


def _own(given: Any) -> tf.Tensor | None:
    """The layer's own name for what it is given (no data moves); None where that is no floating-point tensor.

    The gradient with respect to a layer's input must be the part that flows through this layer alone. Keras keeps masks
    and logits as attributes of the tensor.
    """
    if not (isinstance(given, tf.Tensor) and given.dtype.is_floating):
        return None
    mine = tf.identity(given)
    for attribute in ("_keras_mask", "_keras_logits"):
        if hasattr(given, attribute):
            setattr(mine, attribute, getattr(given, attribute))
    return mine
