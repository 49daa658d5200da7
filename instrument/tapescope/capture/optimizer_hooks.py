"""Hooks that see which optimizers take a measured step's gradients as the tape returned them, one replica's own.

One hook on `apply` of Keras' optimizers is installed once. It passes every call through, and keeps the calls of this
thread between a measuring tape's `gradient` and its reading. Only steps with several replicas use it: there it matters
whether the gradients were summed before `apply`.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import keras

_MOST_CALLS = 8
"""Calls to keep. No step has more optimizers, and a step that never asks for its reading must not hold more tensors."""


class _Thread(threading.local):
    calls: deque[tuple[Any, list[Any]]] | None = None
    """Optimizers and the gradients that they got; None while no reading is due."""


_thread = _Thread()
_lock = threading.Lock()


def start_recording() -> None:
    """Keep this thread's calls of `apply` from here on."""
    _install_hook(keras.optimizers.Optimizer)
    _install_hook(keras.optimizers.LossScaleOptimizer)
    if _thread.calls is None:
        _thread.calls = deque(maxlen=_MOST_CALLS)


def stop_recording(gradients: Sequence[Any]) -> list[Any]:
    """Return the optimizers that got one of these very gradients since `start_recording`, and keep no more calls."""
    calls = _thread.calls or ()
    _thread.calls = None
    wanted = {id(g) for g in gradients if g is not None}
    return [optimizer for optimizer, applied in calls if wanted & {id(g) for g in applied}]


def _install_hook(optimizer_class: type) -> None:
    with _lock:
        original: Any = optimizer_class.apply  # type: ignore[attr-defined]
        if getattr(original, "_tapescope", False):
            return

        def apply(self: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
            if _thread.calls is not None:
                grads = list(grads)
                _thread.calls.append((self, grads))
            return original(self, grads, *args, **kwargs)

        apply.__wrapped__ = original  # type: ignore[attr-defined]
        apply._tapescope = True  # type: ignore[attr-defined]
        optimizer_class.apply = apply  # type: ignore[attr-defined]
