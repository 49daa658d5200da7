"""One training step as two programs, measured and plain, the same code under every strategy.

Forward, backward and each replica's own statistics are one function, which XLA may compile; what XLA cannot hold,
collectives and the optimizer, comes after it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope import Probe
from tapescope_trainers.training import replicated


class Outcome(NamedTuple):
    """What a step says of its global batch."""

    loss: tf.Tensor
    """Mean over the examples, float32 []."""
    accuracy: tf.Tensor
    """Share of the examples that the model got right, before the update, float32 []."""
    reading: Any
    """What `recorder.write` takes; None in the plain program."""


def make(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    probe: Probe,
    strategy: tf.distribute.Strategy,
    *,
    batch_size: int,
    clip_norm: float | None = None,
    accumulate_steps: int = 1,
    jit_compile: bool = False,
) -> Callable[..., Outcome]:
    """`step(x, y, measure)`; `measure` is a Python bool. The optimizer must be built.

    With `accumulate_steps` M each replica goes through its share of the batch in M parts, one after another, and sums
    their gradients: the step is the same, and needs the memory of one part. Raises ValueError where model or optimizer
    ask for what several replicas would do otherwise than one device.
    """
    replicated.prepare(model, optimizer, strategy.num_replicas_in_sync)
    variables = model.trainable_variables
    dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    once = strategy.num_replicas_in_sync > 1 and not dynamic and replicated.sums_once(optimizer)

    def forward_backward(x, y, scale, measure):
        with probe.tape(measure) as tape:
            probabilities = model(x, training=True)
            loss = tf.reduce_sum(cross_entropy(y, probabilities)) / batch_size
            target = loss if scale is None else loss * scale
        gradients: Any = tape.gradient(target, variables)
        return loss, right(y, probabilities) / batch_size, gradients, tape.partial(loss_scale=scale)

    if jit_compile:
        forward_backward = tf.function(forward_backward, jit_compile=True)

    def in_parts(x, y, scale, measure):
        """The sums over the parts of a batch, and what each of them showed."""
        total: Any = None
        partials = []
        for part in zip(tf.split(x, accumulate_steps), tf.split(y, accumulate_steps), strict=True):
            # One after another, or all of them are in memory together.
            with tf.control_dependencies(total[2] if total else []):
                *found, partial = forward_backward(*part, scale, measure)
                total = tf.nest.map_structure(tf.add, total, found) if total else found
            partials.append(partial)
        return *total, partials

    def in_replica(x, y, measure):
        # Read here: `apply` may change it, and this step's gradients were made with the present one.
        scale = tf.identity(optimizer.dynamic_scale.value) if dynamic else None
        loss, accuracy, gradients, partial = (in_parts if accumulate_steps > 1 else forward_backward)(
            x, y, scale, measure
        )
        given: Any = gradients
        aggregated: Any = None
        applied: Any = None
        if once or clip_norm or dynamic:
            aggregated = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
            given = aggregated if once else gradients
        if clip_norm or dynamic:
            factor = _shrinking(aggregated, clip_norm or float("inf"), scale)
            given = [g * factor for g in given]
            applied = given if once else [g * factor for g in aggregated]
        optimizer.apply(given, variables)
        reading = probe.reading(partial, gradients, aggregated=aggregated, applied=applied, loss_scale=scale)
        return Outcome(loss, accuracy, reading)

    @tf.function
    def step(x, y, measure):
        parts = strategy.run(in_replica, args=(x, y, measure))
        loss, accuracy = (strategy.reduce("SUM", part, axis=None) for part in parts[:2])
        return Outcome(loss, accuracy, parts.reading)

    return step


def make_evaluation(model: keras.Model, strategy: tf.distribute.Strategy) -> Callable[..., tf.Tensor]:
    """`evaluate(x, y)`: float32 [3], over a global batch: sum of losses, number right, number of examples."""

    def in_replica(x, y):
        probabilities = model(x, training=False)
        return tf.stack(
            [
                tf.reduce_sum(cross_entropy(y, probabilities)),
                right(y, probabilities),
                tf.cast(tf.shape(y)[0], tf.float32),
            ]
        )

    @tf.function(reduce_retracing=True)
    def evaluate(x, y):
        return strategy.reduce("SUM", strategy.run(in_replica, args=(x, y)), axis=None)

    return evaluate


def cross_entropy(y: tf.Tensor, probabilities: tf.Tensor) -> Any:
    """Categorical cross-entropy of each example on the probabilities, as Keras defines it: normalised, then clipped.

    Given the very output of a sigmoid or softmax, Keras takes the logits behind it instead and leaves that activation
    out of the gradient (for a sigmoid it computes another function). The identity is there to prevent that: a saturated
    output shall show.
    """
    return keras.losses.categorical_crossentropy(y, tf.identity(probabilities))


def right(y: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Number of examples whose largest probability is at the label."""
    return tf.reduce_sum(tf.cast(tf.argmax(y, -1) == tf.argmax(probabilities, -1), tf.float32))


def _shrinking(total: Sequence[tf.Tensor], clip_norm: float, scale: tf.Tensor | None) -> tf.Tensor:
    """The factor that brings the norm of the global batch's gradient `total` down to `clip_norm`.

    Keras clips, and looks for overflow, before its optimizer sums over the replicas: it clips each replica by its own
    norm, and applies NaN where only another replica overflowed. To multiply each replica's gradients by one common
    factor clips their sum; where the sum is not finite the factor is NaN, so that all replicas skip the step alike.
    """
    norm = tf.linalg.global_norm(total)
    if scale is not None:
        norm /= scale
    return tf.where(tf.math.is_finite(norm), tf.minimum(1.0, clip_norm / norm), float("nan"))
