"""Which optimizers a measured step hands its gradients to, as the tape gave them, each replica its own.

One hook on `apply` of Keras' optimizers, set once, passes every call through; those between a measuring tape's
`gradient` and its reading, in the same thread, are noted. Only under replicas: there it makes a difference whether what
an optimizer gets was summed before.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import keras

_REMEMBERED = 8
"""Calls; more optimizers than that has no step, and one that never asks for its reading shall keep nothing alive."""


class _Thread(threading.local):
    calls: deque[tuple[Any, list[Any]]] | None = None
    """Optimizers, and what they were given; None while no reading is due."""


_thread = _Thread()
_lock = threading.Lock()


def note() -> None:
    """From here on this thread's calls of `apply` are noted."""
    _install(keras.optimizers.Optimizer)
    _install(keras.optimizers.LossScaleOptimizer)
    if _thread.calls is None:
        _thread.calls = deque(maxlen=_REMEMBERED)


def optimizers(gradients: Sequence[Any]) -> list[Any]:
    """Those that since `note` were given one of these very gradients; ends the notes."""
    calls, _thread.calls = _thread.calls or (), None
    own = {id(g) for g in gradients if g is not None}
    return [optimizer for optimizer, given in calls if own & {id(g) for g in given}]


def _install(of: type) -> None:
    with _lock:
        original: Any = of.apply  # type: ignore[attr-defined]
        if getattr(original, "_tapescope", False):
            return

        def apply(self: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
            if _thread.calls is not None:
                grads = list(grads)
                _thread.calls.append((self, grads))
            return original(self, grads, *args, **kwargs)

        apply.__wrapped__ = original  # type: ignore[attr-defined]
        apply._tapescope = True  # type: ignore[attr-defined]
        of.apply = apply  # type: ignore[attr-defined]
