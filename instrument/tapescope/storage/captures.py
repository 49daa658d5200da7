"""The captured steps of a run while it trains: kept in memory until they are judged, and bounded on disk.

The training thread offers each measured step. The writer thread judges it a record or two later, and writes it if the
record raises an alarm. At most MAX_PENDING_BYTES wait, so that a slow disk costs captures and not memory.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from tapescope.storage import captured_step
from tapescope.storage.captured_step import CapturedStep, SavedVariable
from tapescope.storage.printable import describe_error, one_line

MODES = ("on_finding", "never")
MAX_STEPS = 8
"""Most captured steps of a run on disk."""
MAX_BYTES = 1 << 30
"""Most bytes of them; the newest is kept in any case."""
MAX_PENDING_BYTES = 256 << 20
"""Most bytes of offered steps that wait to be judged; the newest is kept in any case."""


class Offer(NamedTuple):
    """A measured step that has not been judged yet."""

    make_batch: Callable[[], Any]
    """Returns the batch as arrays, and raises ValueError where it cannot be stored."""
    indices: np.ndarray | None
    """Of the batch's examples in the training data, [B]."""
    model: Sequence[SavedVariable] | None
    optimizer: Sequence[SavedVariable] | None
    replicas: Sequence[int]
    size: int
    """Bytes that it holds."""


def check_mode(capture: str) -> None:
    """Raise ValueError unless it is one of MODES."""
    if capture not in MODES:
        raise ValueError(f"`capture` must be {' or '.join(map(repr, MODES))}; got {capture!r}")


class CapturedSteps:
    """Offered steps of one run, and its captured ones."""

    def __init__(self, logdir: str):
        self._logdir = logdir
        self._pending: dict[int, Offer] = {}
        self._lock = threading.Lock()
        self._failed = False

    def offer(self, step: int, offer: Offer) -> None:
        """Keep a measured step until it is judged; the oldest that waits is dropped if there are too many."""
        with self._lock:
            self._pending[step] = offer
            while len(self._pending) > 1 and sum(o.size for o in self._pending.values()) > MAX_PENDING_BYTES:
                del self._pending[next(iter(self._pending))]

    def judge(self, step: int, alarm: str | None, loss: float, gradient_norm: Mapping[str, float]) -> None:
        """Write an offered step if there is an alarm, and forget it. A failure costs the capture only.

        Args:
          step: its number. Earlier ones are forgotten as well: their records were left out.
          alarm: why it is captured; None if it is not.
          loss: as recorded.
          gradient_norm: by variable, as recorded.
        """
        with self._lock:
            offer = self._pending.get(step)
            self._pending = {number: kept for number, kept in self._pending.items() if number > step}
        if alarm is None:
            return
        if offer is None:
            logging.warning(
                "tapescope: step %d shows %s and is not captured: records are written too slowly", step, alarm
            )
            return
        try:
            captured = CapturedStep(
                step=step,
                reason=alarm,
                loss=loss,
                gradient_norm=gradient_norm,
                batch=offer.make_batch(),
                indices=offer.indices,
                model=offer.model,
                optimizer=offer.optimizer,
                replicas=offer.replicas,
            )
            size = captured_step.write(self._logdir, captured)
        except Exception as error:  # whatever the batch or the disk does, the records go on
            if not self._failed:
                reason = str(error) if isinstance(error, (OSError, ValueError)) else describe_error(error)
                logging.warning("tapescope: step %d shows %s and cannot be captured: %s", step, alarm, one_line(reason))
            self._failed = True
            return
        logging.warning(
            "tapescope: step %d shows %s and is captured in %s (%.3g MB): replay it to see which examples caused it",
            step,
            alarm,
            captured_step.directory(self._logdir),
            size / 1e6,
        )
        self._drop_oldest(step)

    def _drop_oldest(self, newest: int) -> None:
        """Remove the oldest captured steps beyond the bounds, and say so."""
        sizes = {
            n: os.path.getsize(captured_step.path(self._logdir, n)) for n in captured_step.list_captured(self._logdir)
        }
        for number in sorted(sizes):
            if number == newest or (len(sizes) <= MAX_STEPS and sum(sizes.values()) <= MAX_BYTES):
                continue
            try:
                os.remove(captured_step.path(self._logdir, number))
            except OSError as error:  # the records go on
                logging.warning("tapescope: a captured step cannot be removed: %s", describe_error(error))
                return
            del sizes[number]
            logging.warning(
                "tapescope: the captured step %d of %s is removed: at most %d steps and %d MB are kept",
                number,
                self._logdir,
                MAX_STEPS,
                MAX_BYTES >> 20,
            )
