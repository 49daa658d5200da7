"""Hooks that see whether a measured step calls an optimizer, and which take its gradients as the tape returned them.

One hook on `apply` of Keras' optimizers, and on `apply_gradients` of those of tf_keras, is installed once. It passes
every call through, and notes the calls of this thread between a measuring tape's `gradient` and its reading. The
gradients of calls of `apply` are kept in steps with several replicas only: there it matters whether they were summed
before.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import keras

from tapescope.capture import keras_kinds
from tapescope.capture.shared_patch import patch_for_good

_MOST_CALLS = 8
"""Calls to keep. No step has more optimizers, and a step that never asks for its reading must not hold more tensors."""


class _Thread(threading.local):
    calls: deque[tuple[Any, list[Any]]] | None = None
    """Optimizers and the gradients that they got; None while no reading is due, or with one replica."""
    waits: bool = False
    """Whether a reading is due."""
    called: tuple[Any, ...] = ()
    """The optimizers that were called since."""


_thread = _Thread()


def start_recording(keeps_gradients: bool = True) -> None:
    """Note this thread's calls of `apply` from here on.

    Args:
      keeps_gradients: whether `stop_recording` is to compare the gradients of each call.
    """
    for optimizer_class in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
        patch_for_good(optimizer_class, "apply", _hook)
    for optimizer_class in keras_kinds.legacy_optimizers():
        patch_for_good(optimizer_class, "apply_gradients", _legacy_hook)
    if not _thread.waits:
        _thread.waits = True
        _thread.called = ()
    if keeps_gradients and _thread.calls is None:
        _thread.calls = deque(maxlen=_MOST_CALLS)


def called_optimizers() -> tuple[Any, ...]:
    """Return the optimizers that were called since `start_recording`, which begins anew at its next call."""
    called = _thread.called
    _thread.waits = False
    _thread.called = ()
    return called


def stop_recording(gradients: Sequence[Any]) -> list[Any]:
    """Return the optimizers that got one of these very gradients since `start_recording`, and keep no more calls."""
    calls = _thread.calls or ()
    _thread.calls = None
    wanted = {id(g) for g in gradients if g is not None}
    return [optimizer for optimizer, applied in calls if wanted & {id(g) for g in applied}]


def _hook(original: Any) -> Any:
    def apply(self: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        _note_call(self)
        if _thread.calls is not None:
            grads = list(grads)
            _thread.calls.append((self, grads))
        return original(self, grads, *args, **kwargs)

    return apply


def _legacy_hook(original: Any) -> Any:
    """Note the calls of tf_keras' optimizers. They sum gradients over replicas themselves, so those are not kept."""

    def apply_gradients(self: Any, *args: Any, **kwargs: Any) -> Any:
        _note_call(self)
        return original(self, *args, **kwargs)

    return apply_gradients


def _note_call(optimizer: Any) -> None:
    if _thread.waits and not any(optimizer is called for called in _thread.called):
        _thread.called = (*_thread.called, optimizer)[-_MOST_CALLS:]
