"""Copies of what a measured step starts from: a Recorder that captures steps offers them until the record is judged."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.capture import private_api
from tapescope.capture.selection import variable_path
from tapescope.capture.state import ProbeState
from tapescope.storage import captured_step
from tapescope.storage.captured_step import SavedVariable
from tapescope.storage.captures import CapturedSteps, Offer


class _State(NamedTuple):
    """Copies of variables before a step."""

    model: Sequence[SavedVariable] | None = None
    optimizer: Sequence[SavedVariable] | None = None


class StepCopies:
    """Weights before the measured step under way, and the batch that it was given.

    Args:
      captured: what keeps the offered steps.
      state: of the probe whose model is copied.
      optimizer: whose variables are copied as well, or None.
    """

    def __init__(self, captured: CapturedSteps, state: ProbeState, optimizer: Any):
        self.checks_batch = True
        """Whether the first batch is checked, which raises what is wrong with all batches alike."""
        self._captured = captured
        self._probe_state = state
        self._optimizer = optimizer
        self._with_weights = False
        self._before: _State | None = None
        """Of the measured step under way, if it was copied."""
        self._after: tuple[int, _State] | None = None
        """The last step and the state after it, in a loop that measures without asking the schedule; else None."""

    def begin(self, first_step: int) -> None:
        """Copy the state before the first step; later ones are copied by `copy_state`."""
        self._with_weights = True
        self._after = first_step - 1, self._copy()

    def copy_state(self) -> None:
        """Copy the state before a measured step; the next `offer` takes it."""
        self._before = self._copy()
        self._after = None

    def _copy(self) -> _State:
        with self._probe_state.failsafe.contain():
            model = _copy_variables(self._probe_state.selection.all_variables())
            built = private_api.is_built(self._optimizer)
            return _State(model, _copy_variables(self._optimizer.variables) if built else None)
        return _State()

    def offer(self, step: int, batch: Any, indices: Any) -> None:
        """Keep batch and state of a step until its record is judged.

        Raises:
          ValueError: the first batch cannot be stored.
        """
        state = self._before
        if state is None and self._after is not None:
            last, after = self._after
            state = after if last == step - 1 else None  # nothing has trained the model in between
            self._after = step, self._copy()
        state = state or _State()
        self._before = None
        if self.checks_batch:
            self.checks_batch = False
            self._check(batch)
        kept = tf.nest.map_structure(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, batch)
        saved = [variable.value for variable in (*(state.model or ()), *(state.optimizer or ()))]
        parts = [leaf.values for leaf in tf.nest.flatten(batch) if isinstance(leaf, tf.distribute.DistributedValues)]
        self._captured.offer(
            step,
            Offer(
                make_batch=partial(captured_step.to_arrays, kept, _to_host),
                indices=None if indices is None else _indices_to_host(indices),
                model=state.model,
                optimizer=state.optimizer,
                replicas=[len(part) for part in parts[0]] if parts else (),
                size=sum(value.nbytes for value in saved) + sum(map(count_bytes, tf.nest.flatten(batch))),
            ),
        )

    def _check(self, batch: Any) -> None:
        if batch is None and self._with_weights:
            logging.warning(
                "tapescope: steps are captured without their batch, and cannot be run again: pass it, as in "
                "`recorder.write(step, reading, batch=(x, y))`"
            )
        captured_step.to_arrays(batch, _to_host)


def _copy_variables(variables: Sequence[Any]) -> list[SavedVariable] | None:
    """Return copies on the host; None where there is nothing to copy yet."""
    if not variables:
        return None
    return [SavedVariable(variable_path(v), np.array(v.numpy())) for v in variables]


def _indices_to_host(indices: Any) -> np.ndarray:
    is_array = isinstance(indices, (tf.distribute.DistributedValues, tf.Tensor, tf.Variable))
    array = np.array(_to_host(indices) if is_array else indices)
    if array.dtype.kind not in "iu":
        raise ValueError(f"`indices` must be integers, one for each example of the batch; got {array.dtype}")
    return array


def _to_host(leaf: Any) -> Any:
    """Return a leaf of a batch as an array; the parts of all replicas one after another."""
    if isinstance(leaf, tf.distribute.DistributedValues):
        return np.concatenate([np.asarray(part) for part in leaf.values])  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(leaf, tf.Tensor):
        return leaf.numpy()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(leaf, (np.ndarray, np.generic, bool, int, float, str, bytes)):
        return leaf
    raise TypeError(f"convert the {type(leaf).__name__} to arrays")


def count_bytes(leaf: Any) -> int:
    """Return the bytes of a tensor, array or value of all replicas, as far as they are known."""
    parts = leaf.values if isinstance(leaf, tf.distribute.DistributedValues) else [leaf]
    return sum(
        part.nbytes if isinstance(part, np.ndarray) else part.dtype.size * (part.shape.num_elements() or 0)
        for part in parts
        if hasattr(part, "dtype") and part is not None
    )
