"""The replica issues of a step: what Keras does otherwise with several replicas than with one.

Found by experiment with Keras 3.15 under MirroredStrategy and MultiWorkerMirroredStrategy; docs/distributed.md says
what happens in each case. A Probe looks for them at the first measured step, the records carry them, and
rules/replica_issues.py reports them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture import keras_kinds, private_api
from tapescope.capture.layer_hooks import named_layers
from tensorboard_plugin_tapescope.metadata import CLIPPING_SETTINGS


class ReplicaIssue(NamedTuple):
    """A replica issue, as it is in the details of the replicas' records."""

    kind: str
    """A key of `rules.replica_issues.ISSUE_TEXTS`, or one of CLIPPING_SETTINGS."""
    layer: str | None
    """None where the optimizer has the issue."""
    value: float | None
    """Value of the setting that has the issue; None where it is not a setting."""


def replica_issues(models: Sequence[Any], optimizers: Sequence[Any]) -> tuple[ReplicaIssue, ...]:
    """Return the issues of all models and optimizers of a step, each once.

    Args:
      models: Keras models or layers, or `tf.Module`s that hold some.
      optimizers: Keras optimizers.
    """
    issues: list[ReplicaIssue] = []
    for model in models:
        issues.extend(model_issues(model))
    for optimizer in optimizers:
        issues.extend(optimizer_issues(optimizer))
    return tuple(dict.fromkeys(issues))


def model_issues(model: Any) -> Iterator[ReplicaIssue]:
    """Yield an issue for each layer that has one.

    Batch normalization sees its own replica's share of the batch where it should see all. Random layers draw the same
    numbers on all replicas where each should draw its own.
    """
    names = {id(at): name for name, at in named_layers(model)} if isinstance(model, keras.layers.Layer) else {}
    for layer in _all_layers(model):
        name = names.get(id(layer), layer.name)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.synchronized:
            yield ReplicaIssue("batch_norm", name, None)
        if _draws(layer) and not getattr(layer, "own_random", False):
            yield ReplicaIssue("random_numbers", name, None)


def _draws(layer: keras.layers.Layer) -> bool:
    """Return whether a layer draws random numbers: a cell of an RNN has a generator also if it drops nothing."""
    rates = [getattr(layer, name, None) for name in ("dropout", "recurrent_dropout")]
    known = [rate for rate in rates if isinstance(rate, (int, float))]
    return bool(private_api.seed_generators(layer)) and (not known or any(known))


def mean_of_share_issues(optimizers: Sequence[Any]) -> tuple[ReplicaIssue, ...]:
    """Return the issue of a loss that is the mean over one replica's share: what sums gradients takes longer steps.

    Adam and others divide by the gradient's size, and take the same step.
    """
    takes_longer = any(isinstance(keras_kinds.inner_optimizer(o), keras.optimizers.SGD) for o in optimizers)
    return (ReplicaIssue("mean_of_share", None, None),) if takes_longer else ()


def optimizer_issues(optimizer: Any) -> Iterator[ReplicaIssue]:
    """Yield an issue for each setting that Keras applies to a replica's own gradients, before they are summed."""
    inner = keras_kinds.inner_optimizer(optimizer)
    for setting in CLIPPING_SETTINGS:
        if getattr(inner, setting, None):
            yield ReplicaIssue(setting, None, float(getattr(inner, setting)))
    if getattr(inner, "gradient_accumulation_steps", None):
        yield ReplicaIssue("accumulation", None, float(inner.gradient_accumulation_steps))
    if inner is not optimizer:
        yield ReplicaIssue("overflow", None, None)


def own_random_numbers(model: Any) -> None:
    """Give each replica its own random numbers in all layers that draw some.

    The state of their generators is mirrored, so it is the same on all replicas. The replica's number is therefore
    added to every seed.

    Args:
      model: a Keras model or layer, or a `tf.Module` that holds some.
    """
    for layer in _all_layers(model):
        if getattr(layer, "own_random", False):
            continue
        for generator in private_api.seed_generators(layer):
            _add_replica_number(generator)
        layer.own_random = True


def _add_replica_number(generator: keras.random.SeedGenerator) -> None:
    draw = generator.next

    def next(ordered: bool = True):
        seed = draw(ordered)
        context = tf.distribute.get_replica_context()
        if context is None:
            return seed
        number = tf.cast(context.replica_id_in_sync_group, seed.dtype)
        return seed + tf.stack([number * 1_000_003, tf.zeros_like(number)])

    generator.next = next


def _all_layers(model: Any) -> Iterator[keras.layers.Layer]:
    """Yield all layers in a model, or in what a tf.Module holds, each once."""
    if isinstance(model, keras.layers.Layer):
        yield from private_api.flatten_layers(model)
    else:
        for module in getattr(model, "submodules", ()):
            if isinstance(module, keras.layers.Layer):
                yield module
