"""What Keras' optimizers do to gradients inside `apply`, where no tape sees it: accumulate several batches', and clip.

Their `gradient_accumulation_steps`, `clipnorm`, `global_clipnorm` and `clipvalue`, in the order in which they apply
them; of a LossScaleOptimizer, those of the one inside it. A Monitor records the gradient before and after.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tapescope.capture import private_api
from tapescope.statistics.reading import dense


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def _steps(optimizer: Any) -> int:
    return getattr(_inner(optimizer), "gradient_accumulation_steps", None) or 1


def updates(optimizer: Any, steps_per_execution: int = 1) -> bool:
    """Whether the next batch changes the weights. Of an execution of several batches, one does."""
    steps = _steps(optimizer)
    if steps == 1 or steps_per_execution > 1:
        return True
    return (private_api.batches_seen(_inner(optimizer)) + 1) % steps == 0


def state(optimizer: Any) -> Mapping[int, tf.Tensor]:
    """The sum of the gradients of the batches before this one, by the variable's id; empty where none are summed."""
    inner = _inner(optimizer)
    if _steps(inner) == 1 or not inner.built:
        return {}
    return {id(v): tf.identity(total) for v, total in private_api.accumulated_gradients(inner)}


def given(
    optimizer: Any, before: Mapping[int, tf.Tensor], variables: Sequence[Any], gradients: Sequence[Any], scale: Any
) -> tuple[list[Any] | None, list[Any] | None]:
    """The whole gradient, where batches were accumulated, and what is left of it, where it is clipped; else None.

    Args:
      optimizer: Keras'; or None.
      before: `state`, as it was before the step.
      variables: the V variables.
      gradients: theirs, in this batch.
      scale: what the loss was multiplied with, or None.
    """
    inner, whole = _inner(optimizer), None
    if before:
        # The sums are of gradients without a loss scale: it is taken out before they are added.
        factor = 1.0 if scale is None else scale
        parts = [(dense(g), before.get(id(v))) for v, g in zip(variables, gradients, strict=True)]
        whole = [None if g is None else (g + (0.0 if s is None else s * factor)) / _steps(inner) for g, s in parts]
    left = _clipped(inner, whole or [dense(g) for g in gradients], scale)
    return whole, left


def _clipped(optimizer: Any, gradients: list[Any], scale: Any) -> list[Any] | None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return None
    clipnorm, clipvalue, factor = optimizer.clipnorm, optimizer.clipvalue, 1.0 if scale is None else scale
    if clipnorm:
        return [None if g is None else tf.clip_by_norm(g, clipnorm * factor) for g in gradients]
    if optimizer.global_clipnorm:
        return tf.clip_by_global_norm(gradients, optimizer.global_clipnorm * factor)[0]
    if clipvalue:
        return [None if g is None else tf.clip_by_value(g, -clipvalue * factor, clipvalue * factor) for g in gradients]
    return None
