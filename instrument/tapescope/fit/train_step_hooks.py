"""Patches of `tf.GradientTape`, `optimizer.scale_loss` and `model.compute_loss`: they record the use of a `train_step`.

They record only the use by the thread that runs or traces a measured `train_step`. Those of classes stay in place; the
others are there only while such a step runs. README.md in this folder lists all patches.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture import layer_hooks
from tapescope.capture.shared_patch import patch_for_good, shared_patch
from tapescope.probe import Probe
from tapescope.tape import MeasuringTape, without_autograph


class LossCall(NamedTuple):
    """One call of a model's `compute_loss`."""

    targets: Any
    outputs: Any
    sample_weights: Any
    value: Any
    is_compiled: bool
    """Whether Keras compared these by the loss that the model was compiled with."""


class _TrainStepUse(threading.local):
    """Record of what the `train_step` of this thread has used so far; None outside of one."""

    probe: Probe | None = None
    tapes: list[MeasuringTape] | None = None
    graph: Any = None
    """The graph that `train_step` is traced into; None in an eager one."""
    losses: list[LossCall] | None = None
    compared: list[dict[str, Any]] | None = None
    """Arguments of the calls of Keras' own `compute_loss` within the last one of the model's."""
    loss_model: Any = None
    loss_scales: list[Any] | None = None


_use = _TrainStepUse()


@contextlib.contextmanager
def patch_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of one object in this context, and then leave the object as it was.

    It goes around `__setattr__`, by which a Keras model would track the value.

    Args:
      owner: the object.
      name: of the attribute.
      value: of the attribute in this context.
    """
    attributes = vars(owner)
    had_own = name in attributes
    previous = attributes.get(name)
    attributes[name] = value
    try:
        yield
    finally:
        if had_own:
            attributes[name] = previous
        else:
            del attributes[name]


class _FitTape(MeasuringTape):
    """Tape that `tf.GradientTape(...)` makes in a measured `train_step`."""

    def __init__(self, persistent: bool = False, watch_accessed_variables: bool = True):
        if _use.probe is None or _use.tapes is None:
            raise RuntimeError("a measuring tape of fit was made outside of a measured train_step")
        super().__init__(_use.probe._state, persistent, watch_accessed_variables)
        _use.tapes.append(self)

    @without_autograph
    def gradient(self, *args: Any, **options: Any) -> Any:
        """Return what `MeasuringTape.gradient` returns; inside of another tape it is not measured."""
        if any(tape.is_open for tape in _use.tapes or () if tape is not self):
            return tf.GradientTape.gradient(self, *args, **options)
        was_open = self.is_open
        self.is_open = True  # the backward pass may use tapes, as that of `tf.recompute_grad` does
        try:
            return super().gradient(*args, **options)
        finally:
            self.is_open = was_open


def _new_tape(tape_class: type, *args: Any, **kwargs: Any) -> Any:
    """Replace `tf.GradientTape.__new__`: the tapes of a measured `train_step` are measuring tapes.

    Those in a graph of their own are plain ones, because a plain step may run it again.
    """
    is_measured = (
        tape_class is tf.GradientTape
        and _use.probe is not None
        and not _use.probe.failure
        and _use.graph is layer_hooks.current_graph()
    )
    return object.__new__(_FitTape if is_measured else tape_class)


def _install_hook() -> None:
    """Patch `tf.GradientTape`, the first time that a fit is measured. It stays patched.

    The class itself is patched, because a program may have imported it by its name.
    """
    if tf.GradientTape.__new__ is object.__new__:
        tf.GradientTape.__new__ = _new_tape  # type: ignore[method-assign]


@contextlib.contextmanager
def measure_tapes(probe: Probe) -> Iterator[list[MeasuringTape]]:
    """Let `tf.GradientTape(...)` make measuring tapes of a probe, in this thread and context.

    Args:
      probe: of the model that is trained.

    Yields:
      The list of the tapes made so far.
    """
    _install_hook()
    tapes: list[MeasuringTape] = []
    _use.probe = probe
    _use.tapes = tapes
    _use.graph = layer_hooks.current_graph()
    try:
        yield tapes
    finally:
        _use.probe = None
        _use.tapes = None
        _use.graph = None


class _Recorded:
    """A method of one object that also records its use; it takes the method's place as an attribute of the object."""

    def __init__(self, method: Any):
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


@contextlib.contextmanager
def _recorded(owner: Any, name: str, recorded_class: type[_Recorded], use: str) -> Iterator[list[Any]]:
    """Record the calls of a method in this thread and context.

    Args:
      owner: the object.
      name: of the method.
      recorded_class: what takes its place.
      use: the field of `_use` in which it is recorded.

    Yields:
      The list of what was recorded so far.
    """
    found: list[Any] = []
    with shared_patch(owner, name, recorded_class):
        setattr(_use, use, found)
        try:
            yield found
        finally:
            setattr(_use, use, None)


class _RecordedScaleLoss(_Recorded):
    """An optimizer's `scale_loss` that also records its factor. A custom `train_step` may not call it at all."""

    def __call__(self, loss: Any) -> Any:
        if _use.loss_scales is not None:
            one = tf.ones([])
            scale = self.method(one)
            if scale is not one:
                _use.loss_scales.append(scale)
        return self.method(loss)


@contextlib.contextmanager
def record_loss_scales(optimizer: Any) -> Iterator[list[Any]]:
    """Record the factors by which an optimizer scales losses, in this thread and context.

    Args:
      optimizer: of Keras; or None.

    Yields:
      The list of the factors so far; it stays empty where losses are not scaled.
    """
    if optimizer is None:
        yield []
        return
    with _recorded(optimizer, "scale_loss", _RecordedScaleLoss, "loss_scales") as scales:
        yield scales


class _RecordedComputeLoss(_Recorded):
    """A model's `compute_loss` that also records its arguments and its value.

    One of the model's own may encode targets before it calls that of Keras: the arguments of that call are recorded.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        if _use.losses is None:
            return self.method(*args, **options)
        compared = _use.compared = []
        value = self.method(*args, **options)
        is_compiled = len(compared) == 1
        given = compared[0] if is_compiled else _by_name(self.method, args) | options
        _use.losses.append(
            LossCall(
                targets=given.get("y"),
                outputs=given.get("y_pred"),
                sample_weights=given.get("sample_weight"),
                value=value,
                is_compiled=is_compiled,
            )
        )
        return value


def _hook_compute_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `compute_loss` of keras.Model that also records its arguments, for the model that is trained."""

    def compute_loss(model: Any, *args: Any, **options: Any) -> Any:
        if _use.compared is not None and model is _use.loss_model:
            _use.compared.append(dict(zip(("x", "y", "y_pred", "sample_weight"), args, strict=False)) | options)
        return original(model, *args, **options)

    return compute_loss


def _by_name(method: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    """Return positional arguments of a `compute_loss` by name: a model's own one may have other parameters."""
    parameters = inspect.signature(method).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += ("x", "y", "y_pred", "sample_weight")[len(names) :]  # it passes `*args` on to that of Keras
    return dict(zip(names, args, strict=False))


@contextlib.contextmanager
def record_losses(model: Any) -> Iterator[list[LossCall]]:
    """Record the calls of a model's `compute_loss`, in this thread and context.

    Args:
      model: of Keras. Its own `train_step` calls it once; another one may not call it at all.

    Yields:
      The list of the calls so far.
    """
    patch_for_good(keras.Model, "compute_loss", _hook_compute_loss)
    _use.loss_model = model
    try:
        with _recorded(model, "compute_loss", _RecordedComputeLoss, "losses") as calls:
            yield calls
    finally:
        _use.compared = None
        _use.loss_model = None
