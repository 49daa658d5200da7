"""What a `train_step` uses while a measured one runs or is traced: tapes and loss scales, noted in passing.

`tf.GradientTape` and an optimizer's `scale_loss` are stood in for, and put back. Both count their users, for replica
threads take turns inside one step, and both note only what this thread does.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tapescope.probe import Probe
from tapescope.tape import MeasuringTape


class _Here(threading.local):
    """What this thread's `train_step` has used; None outside one."""

    probe: Probe | None = None
    tapes: list[MeasuringTape] | None = None
    scales: list[Any] | None = None


_here = _Here()
_lock = threading.Lock()
_users = 0
_real = tf.GradientTape


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Has `value` as an attribute of that very object, and leaves the object as it was."""
    fields = vars(owner)
    own, had = fields.get(name), name in fields
    fields[name] = value
    try:
        yield
    finally:
        fields.update({name: own} if had else {})
        if not had:
            del fields[name]


def _tape(persistent: bool = False, watch_accessed_variables: bool = True) -> tf.GradientTape:
    """A measuring tape for each outermost one of a measured `train_step`."""
    open_already = _here.tapes and not _here.tapes[-1].closed
    if _here.probe is None or _here.tapes is None or _here.probe.failure or open_already:
        return _real(persistent, watch_accessed_variables)
    tape = MeasuringTape(_here.probe._state, persistent, watch_accessed_variables)
    _here.tapes.append(tape)
    return tape


@contextlib.contextmanager
def tapes(probe: Probe) -> Iterator[list[MeasuringTape]]:
    """Has `tf.GradientTape` make measuring tapes in this thread; a list of them."""
    global _users
    with _lock:
        _users += 1
        tf.GradientTape = _tape
    _here.probe, _here.tapes = probe, []
    try:
        yield _here.tapes
    finally:
        _here.probe = _here.tapes = None
        with _lock:
            _users -= 1
            if not _users:
                tf.GradientTape = _real


class _ScaleLoss:
    """Stands in for an optimizer's `scale_loss`: notes what it multiplies with, which a custom step may leave out."""

    def __init__(self, real: Any):
        self.real = real
        self.users = 0

    def __call__(self, loss: Any) -> Any:
        if _here.scales is not None:
            one = tf.ones([])
            scale = self.real(one)
            _here.scales += [] if scale is one else [scale]
        return self.real(loss)


@contextlib.contextmanager
def scales(optimizer: Any) -> Iterator[list[Any]]:
    """What losses are multiplied with before the backward pass: empty where they are not."""
    if optimizer is None:
        yield []
        return
    fields = vars(optimizer)
    with _lock:
        if not isinstance(fields.get("scale_loss"), _ScaleLoss):
            fields["scale_loss"] = _ScaleLoss(optimizer.scale_loss)
        standin = fields["scale_loss"]
        standin.users += 1
    _here.scales = []
    try:
        yield _here.scales
    finally:
        _here.scales = None
        with _lock:
            standin.users -= 1
            if not standin.users:
                del fields["scale_loss"]
