"""The first run of a measured train function, undone if it fails: the batch is then trained plainly.

A graph that was traced without an error may still fail when it runs: memory does not suffice for the measuring, or XLA
does not have one of its operations. What has run once is taken to run again.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

MAX_STATE_BYTES = 2**31
"""Models with more variables are not copied, and the first failure of their measured step ends the fit."""


class FirstRun:
    """One batch, and copies of the variables that a train step may change.

    Args:
      iterator: `tf.data.Iterator`, of which one batch is taken; or a list of one batch.

    Raises:
      StopIteration: the iterator has ended.
    """

    def __init__(self, iterator: Any):
        self._copies: list[tuple[Any, np.ndarray]] | None = None
        self._was_traced = False
        if isinstance(iterator, list):
            self._batches: Any = iterator
            return
        batch: list[Any] = []
        # The same types and unknown sizes as the iterator's, so that its trace serves for this batch.
        self._batches = tf.data.Dataset.from_generator(lambda: batch, output_signature=iterator.element_spec)
        batch.append(next(iterator))

    def batch(self) -> Iterator[Any]:
        """Return a new iterator over the batch."""
        return iter(self._batches) if isinstance(self._batches, tf.data.Dataset) else self._batches

    def copy_state(self, model: Any) -> None:
        """Copy variables to the host when `train_step` was traced: all have been made, and none has changed."""
        self._was_traced = True
        with tf.init_scope():
            variables = _variables(model)
            if sum(v.dtype.size * (v.shape.num_elements() or 0) for v in variables) <= MAX_STATE_BYTES:
                copies = [(v, np.array(v.numpy())) for v in variables]
                if all(v.shape.is_compatible_with(value.shape) for v, value in copies):  # else one has no value yet
                    self._copies = copies

    def undo(self) -> bool:
        """Give the variables the values before the run; return whether that is possible."""
        for variable, value in self._copies or ():
            variable.assign(value)
        return self._copies is not None or not self._was_traced


def takes_one_batch(model: Any) -> bool:
    """Return whether one call of the train function trains one batch; a model's own one may take several."""
    is_of_keras = getattr(model.make_train_function, "__func__", None) is keras.Model.make_train_function
    return is_of_keras and model.steps_per_execution == 1


def can_be_undone(model: Any, iterator: Any) -> bool:
    """Return whether a failed run can be: one compiled step, on one replica."""
    is_one_step = takes_one_batch(model) and not model.run_eagerly
    return is_one_step and isinstance(iterator, (tf.data.Iterator, list))


def _variables(model: Any) -> list[tf.Variable]:
    """Return weights, random state, metrics, the optimizer's variables, and those that the model has as attributes."""
    groups = (model.variables, model.metrics_variables, getattr(model.optimizer, "variables", ()))
    found: list[Any] = [variable.value for group in groups for variable in group]
    found += [part for part in tf.train.TrackableView(model).descendants() if isinstance(part, tf.Variable)]
    return list({id(variable): variable for variable in found}.values())
