"""Accumulation and clipping, which Keras' optimizers do inside `apply`, where no tape sees it.

Both are computed a second time, in the order in which Keras applies them: `gradient_accumulation_steps`, then
`clipnorm`, `global_clipnorm` or `clipvalue`. Of a LossScaleOptimizer, those of its inner optimizer count.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tapescope.capture import private_api
from tapescope.capture.keras_kinds import inner_optimizer
from tapescope.statistics.partial import dense


def _accumulation_steps(optimizer: Any) -> int:
    return getattr(inner_optimizer(optimizer), "gradient_accumulation_steps", None) or 1


def next_batch_updates(optimizer: Any, steps_per_execution: int = 1) -> bool:
    """Return whether the optimizer changes weights in the next batch.

    Args:
      optimizer: of Keras; or None.
      steps_per_execution: batches that `fit` runs in one call. Of several, one is taken to change weights.
    """
    accumulation_steps = _accumulation_steps(optimizer)
    if accumulation_steps == 1 or steps_per_execution > 1:
        return True
    return (private_api.batches_seen(inner_optimizer(optimizer)) + 1) % accumulation_steps == 0


def accumulated_sums(optimizer: Any) -> Mapping[int, tf.Tensor]:
    """Return the sums of the gradients since the last update, by the variable's id; empty without accumulation."""
    inner = inner_optimizer(optimizer)
    if _accumulation_steps(inner) == 1 or not inner.built:
        return {}
    return {id(v): tf.identity(total) for v, total in private_api.accumulated_gradients(inner)}


def aggregated_and_applied(
    model: Any,
    sums_before: Mapping[int, tf.Tensor],
    variables: Sequence[Any],
    gradients: Sequence[Any],
    loss_scale: Any,
) -> tuple[list[Any] | None, list[Any] | None]:
    """Return the arguments `aggregated` and `applied` of `tape.reading`.

    Args:
      model: of Keras, with one optimizer, several of which each trains some of the variables, or none.
      sums_before: from `accumulated_sums`, before this batch.
      variables: V of them.
      gradients: of the variables in this batch, multiplied by `loss_scale`; None where there is none.
      loss_scale: the factor of the loss, or None.

    Returns:
      The mean gradient of the accumulated batches, or None without accumulation; and the clipped gradient, or None
      without clipping. Both are multiplied by `loss_scale`.
    """
    inner = inner_optimizer(model.optimizer)
    aggregated = None
    if sums_before:
        # The optimizer's sums are without the loss scale, and `tape.reading` takes it out of all gradients.
        factor = 1.0 if loss_scale is None else loss_scale
        steps = _accumulation_steps(inner)
        parts = [(dense(g), sums_before.get(id(v))) for v, g in zip(variables, gradients, strict=True)]
        aggregated = [None if g is None else (g + (0.0 if s is None else s * factor)) / steps for g, s in parts]
    unclipped = [dense(g) for g in gradients] if aggregated is None else aggregated
    return aggregated, _clip_by_each(_optimizers(model), variables, unclipped, loss_scale)


def _optimizers(model: Any) -> list[keras.optimizers.Optimizer]:
    """Return the model's optimizers: that of `compile`, those among its other attributes, and those inside of them."""
    values = [model.optimizer]
    for value in vars(model).values():
        # Not `+=`: Keras wraps a tuple of layers, and the wrapper adds itself to no list.
        elements = value.values() if isinstance(value, dict) else value
        values.extend(elements if isinstance(value, (dict, list, tuple)) else [value])
    inner = [o for o in map(inner_optimizer, values) if isinstance(o, keras.optimizers.Optimizer)]
    inner += [each for o in inner for each in getattr(o, "optimizers", ())]  # of a MultiOptimizer
    return list({id(o): o for o in inner}.values())


def _clip_by_each(
    optimizers: Sequence[Any], variables: Sequence[Any], gradients: list[Any], loss_scale: Any
) -> list[Any] | None:
    """Return the gradients with each optimizer's clipping of the variables that it trains; None if none clips."""
    clipped = list(gradients)
    any_clips = False
    for optimizer in optimizers:
        if not optimizer.built and optimizer is not optimizers[0]:  # the step has not used it
            continue
        own = {id(v) for v in private_api.trained_variables(optimizer)}
        at = [i for i, v in enumerate(variables) if id(v) in own] if own else list(range(len(variables)))
        results = _clip(optimizer, [gradients[i] for i in at], loss_scale)
        if results is not None:
            any_clips = True
            for i, result in zip(at, results, strict=True):
                clipped[i] = result
    return clipped if any_clips else None


def _clip(optimizer: Any, gradients: list[Any], loss_scale: Any) -> list[Any] | None:
    """Return what the optimizer's own clipping makes of scaled gradients; None where it does not clip."""
    factor = 1.0 if loss_scale is None else loss_scale
    if optimizer.clipnorm:
        return [None if g is None else tf.clip_by_norm(g, optimizer.clipnorm * factor) for g in gradients]
    if optimizer.global_clipnorm:
        return tf.clip_by_global_norm(gradients, optimizer.global_clipnorm * factor)[0]
    if optimizer.clipvalue:
        limit = optimizer.clipvalue
        return [None if g is None else tf.clip_by_value(g, -limit * factor, limit * factor) for g in gradients]
    return None
