"""Loss and gradient of each example of one step, as they were in that step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tapescope.replays.answer import Example
from tapescope_trainers.flags import Options
from tapescope_trainers.training.build import Parts
from tapescope_trainers.training.step import cross_entropy


def measure(parts: Parts, options: Options, batch: Any, drawn: Sequence[Any], finite: bool) -> list[Example]:
    """Return each example of a batch with its own loss and gradient.

    They are those that it had in the step: the whole batch goes through the model, with the same dropout masks and
    statistics of the batch, and the loss of one example is differentiated. A NaN or Inf spreads in that way, as 0 times
    it. Then each example goes through the model alone, in inference mode.

    Args:
        parts: The training; its model must be as it was before the step.
        options: The flags of the run.
        batch: `(x, y), indices`, as the step takes it.
        drawn: Variables that a forward pass changes, such as the state of dropout.
        finite: Whether loss and gradient of the step are finite.
    """
    run = _compile(parts, options)
    (x, y), index = batch
    examples: list[Example] = []
    alone: list[Example] = []
    size = options.batch_size // parts.strategy.num_replicas_in_sync // options.accumulate_steps
    for part in range(options.accumulate_steps):
        before = [variable.numpy() for variable in drawn]
        for at in range(size):
            with parts.strategy.scope():
                for variable, value in zip(drawn, before, strict=True):
                    variable.assign(value)
            examples += _run(run, x, y, index, part, at, alone=False)
            if not finite:
                alone += _run(run, x, y, index, part, at, alone=True)
        # The forward pass of the last example has left the state in which the next part begins.
    if finite:
        return examples
    # If all losses are lost, as with statistics of the batch, those alone say more.
    spread = not any(math.isfinite(example.loss) for example in examples)
    return alone if spread else [a._replace(loss=e.loss) for a, e in zip(alone, examples, strict=True)]


def _run(run: Callable[..., Any], x: Any, y: Any, index: Any, part: int, at: int, *, alone: bool) -> list[Example]:
    """Return one example of each replica."""
    numbers, indices = run(x, y, index, tf.constant(part), tf.constant(at), alone)
    pairs = [pair.numpy().tolist() for pair in numbers]
    return [Example(int(i), loss, norm) for i, (loss, norm) in zip(indices, pairs, strict=True)]


def _compile(parts: Parts, options: Options) -> Callable[..., Any]:
    """Return a compiled function of a batch and the place of an example in a part of each replica's share."""
    model = parts.model
    variables = model.trainable_variables
    dynamic_scale = getattr(parts.optimizer, "dynamic_scale", None)

    def compute(x, y, at, scale, alone):
        def take(tensors):
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, at[None]), tensors)

        with tf.GradientTape() as tape:
            outputs = model(take(x), training=False) if alone else take(model(x, training=True))
            if parts.objective:
                loss = parts.objective.mean(take(y), outputs)
            else:
                loss = tf.reduce_mean(cross_entropy(take(y), outputs))
            scaled = loss * scale
        found = [g for g in tape.gradient(scaled, variables) if g is not None]
        gradients = [tf.cast(tf.convert_to_tensor(g), tf.float32) / scale for g in found]
        # Divided first: the square of 1e30 is beyond float32.
        largest = tf.reduce_max([tf.reduce_max(tf.abs(g)) for g in gradients])
        unit = tf.where((largest > 0) & tf.math.is_finite(largest), largest, 1.0)
        norm = unit * tf.linalg.global_norm([g / unit for g in gradients])
        return tf.stack([tf.cast(loss, tf.float32), norm])

    if options.jit_compile:  # XLA draws other random numbers
        compute = tf.function(compute, jit_compile=True)

    def in_replica(x, y, index, part, at, alone):
        x, y, index = tf.nest.map_structure(
            lambda tensor: tf.stack(tf.split(tensor, options.accumulate_steps))[part], (x, y, index)
        )
        scale = tf.constant(1.0) if dynamic_scale is None else dynamic_scale.value / options.batch_size
        return compute(x, y, at, scale, alone), index[at]

    @tf.function
    def run(x, y, index, part, at, alone):
        results = parts.strategy.run(in_replica, args=(x, y, index, part, at, alone))
        return [parts.strategy.experimental_local_results(result) for result in results]

    return run
