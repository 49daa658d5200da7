"""One training step as two programs, measured and plain, with the same code under every strategy.

Forward pass, backward pass and each replica's statistics are one function, which XLA may compile. Collectives and the
optimizer, which XLA cannot compile here, come after it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope import Probe
from tapescope_trainers.training import replicated
from tapescope_trainers.training.objective import UserObjective


class Outcome(NamedTuple):
    """The results of a step on its global batch."""

    loss: tf.Tensor
    """Mean over the examples, float32 []."""
    metrics: dict[str, tf.Tensor]
    """Of a preset "accuracy": the share of the examples that it classified correctly before the update, float32 []."""
    reading: Any
    """Argument of `recorder.write`; None in the plain program."""


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
    objective: UserObjective | None = None,
) -> Callable[..., Outcome]:
    """Return a compiled `step(x, y, measure)`, where `measure` is a Python bool.

    With `accumulate_steps` M each replica computes its share of the batch in M parts, in sequence, and sums their
    gradients: the same step in the memory of one part.

    Args:
        model: Maps examples to probabilities.
        optimizer: Must be built.
        probe: Measures the model.
        strategy: Runs the step on its replicas.
        batch_size: Examples in a step, over all replicas.
        clip_norm: Largest norm of the global batch's gradient.
        accumulate_steps: Parts of a replica's share.
        jit_compile: Compile forward pass, backward pass and statistics with XLA.
        objective: Of a model of the user; None for a preset.

    Raises:
        ValueError: With several replicas, model or optimizer would train something else than on one device.
    """
    replicated.prepare(model, optimizer, strategy.num_replicas_in_sync)
    variables = model.trainable_variables
    calls = strategy.num_replicas_in_sync * accumulate_steps
    has_dynamic_scale = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    sums_first = (
        strategy.num_replicas_in_sync > 1 and not has_dynamic_scale and replicated.disable_all_reduce(optimizer)
    )

    def forward_backward(x, y, scale, measure):
        with probe.tape(measure) as tape:
            outputs = model(x, training=True)
            if objective is None:
                loss = tf.reduce_sum(cross_entropy(y, outputs)) / batch_size
                metrics = {"accuracy": correct_count(y, outputs) / batch_size}
            else:
                # Replicas and parts have equal shares of the batch.
                loss = (objective.mean(y, outputs) + _regularization(model)) / calls
                metrics = {}
            target = loss if scale is None else loss * scale
        gradients: Any = tape.gradient(target, variables)
        if objective is None:
            return loss, metrics, gradients, tape.partial(loss_scale=scale)
        # A variable that the loss does not depend on: collectives and sums need a tensor.
        gradients = [tf.zeros_like(v) if g is None else g for g, v in zip(gradients, variables, strict=True)]
        return loss, metrics, gradients, tape.partial(loss_scale=scale, targets=y, outputs=outputs)

    if jit_compile:
        forward_backward = tf.function(forward_backward, jit_compile=True)

    def accumulate(x, y, scale, measure):
        """Return the sums over the parts of a batch, and a list of what the probe read in each part."""
        total: Any = None
        partials = []
        for part_x, part_y in zip(_split(x, accumulate_steps), _split(y, accumulate_steps), strict=True):
            # In sequence, or all parts would be in memory at the same time.
            with tf.control_dependencies(total[2] if total else []):
                *summands, partial = forward_backward(part_x, part_y, scale, measure)
                total = tf.nest.map_structure(tf.add, total, summands) if total else summands
            partials.append(partial)
        return *total, partials

    def in_replica(x, y, measure):
        # Read before `apply`, which may change it; this step's gradients were scaled by the present value.
        scale = tf.identity(optimizer.dynamic_scale.value) if has_dynamic_scale else None
        compute = accumulate if accumulate_steps > 1 else forward_backward
        loss, metrics, gradients, partial = compute(x, y, scale, measure)
        to_apply: Any = gradients
        aggregated: Any = None
        applied: Any = None
        if sums_first or clip_norm or has_dynamic_scale:
            aggregated = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
            to_apply = aggregated if sums_first else gradients
        if clip_norm or has_dynamic_scale:
            factor = _clip_factor(aggregated, clip_norm or float("inf"), scale)
            to_apply = [gradient * factor for gradient in to_apply]
            applied = to_apply if sums_first else [gradient * factor for gradient in aggregated]
        optimizer.apply(to_apply, variables)
        reading = probe.reading(partial, gradients, aggregated=aggregated, applied=applied, loss_scale=scale)
        return Outcome(loss, metrics, reading)

    @tf.function
    def step(x, y, measure):
        outcome = strategy.run(in_replica, args=(x, y, measure))
        loss = strategy.reduce("SUM", outcome.loss, axis=None)
        metrics = {name: strategy.reduce("SUM", value, axis=None) for name, value in outcome.metrics.items()}
        return Outcome(loss, metrics, outcome.reading)

    return step


def _split(batch: Any, parts: int) -> list[Any]:
    """Return the parts of a batch, whose tensors may be in a dict."""
    split = [tf.split(tensor, parts) for tensor in tf.nest.flatten(batch)]
    return [tf.nest.pack_sequence_as(batch, list(part)) for part in zip(*split, strict=True)]


def _regularization(model: keras.Model) -> Any:
    """Return the sum of the losses that a model of the user adds itself, such as those of its regularizers."""
    return tf.add_n([tf.cast(loss, tf.float32) for loss in model.losses]) if model.losses else 0.0


def make_evaluation(model: keras.Model, strategy: tf.distribute.Strategy) -> Callable[..., tf.Tensor]:
    """Return a compiled `evaluate(x, y)` of a global batch.

    It returns the sum of the losses, the number of correct examples and the number of examples, float32 [3].
    """

    def in_replica(x, y):
        probabilities = model(x, training=False)
        return tf.stack(
            [
                tf.reduce_sum(cross_entropy(y, probabilities)),
                correct_count(y, probabilities),
                tf.cast(tf.shape(y)[0], tf.float32),
            ]
        )

    @tf.function(reduce_retracing=True)
    def evaluate(x, y):
        return strategy.reduce("SUM", strategy.run(in_replica, args=(x, y)), axis=None)

    return evaluate


def cross_entropy(y: tf.Tensor, probabilities: tf.Tensor) -> Any:
    """Return the categorical cross-entropy of each example as Keras defines it on probabilities: normalised, clipped.

    Given the output tensor of a sigmoid or softmax itself, Keras uses the logits behind it and leaves that activation
    out of the gradient; for a sigmoid it computes another function. The identity prevents that, so that a saturated
    output is visible. See docs/decisions/0013-loss-on-probabilities.md.

    Args:
        y: One-hot labels, float32 [B, classes].
        probabilities: float32 [B, classes].

    Returns:
        float32 [B].
    """
    return keras.losses.categorical_crossentropy(y, tf.identity(probabilities))


def correct_count(y: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Return the number of examples whose largest probability is at the label, float32 []."""
    return tf.reduce_sum(tf.cast(tf.argmax(y, -1) == tf.argmax(probabilities, -1), tf.float32))


def _clip_factor(total: Sequence[tf.Tensor], clip_norm: float, scale: tf.Tensor | None) -> tf.Tensor:
    """Return the factor that brings the norm of the global batch's gradient `total` down to `clip_norm`.

    Keras clips and looks for overflow before its optimizer sums over the replicas. It clips each replica by that
    replica's own norm, and applies NaN if only another replica overflowed. Multiplying each replica's gradients by one
    common factor clips their sum. If the sum is not finite the factor is NaN, so that all replicas skip the step.
    """
    norm = tf.linalg.global_norm(total)
    if scale is not None:
        norm /= scale
    return tf.where(tf.math.is_finite(norm), tf.minimum(1.0, clip_norm / norm), float("nan"))
