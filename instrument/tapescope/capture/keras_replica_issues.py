"""What Keras does otherwise with several replicas than with one, where a model or an optimizer asks for it.

Found by experiment with Keras 3.15 under MirroredStrategy and MultiWorkerMirroredStrategy; docs/distributed.md tells
what happens. A Probe looks for it at the first measured step, the records carry it, and rules_replicas.py says it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture.layer_hooks import named_layers


class Fault(NamedTuple):
    """One of them, as it is in the details of the replicas' records."""

    kind: str
    """A key of WORDS."""
    layer: str | None
    """None where the optimizer does it."""
    value: float | None
    """Of the setting that asks for it."""


WORDS = {
    "batch_norm": (
        "normalises each replica by its own share of the batch, and its moving statistics are those of the first",
        "pass synchronized=True",
    ),
    "random_numbers": (
        "draws the same random numbers on all replicas, so their examples share masks",
        "call tapescope.capture.keras_replica_issues.own_random_numbers(model) before the first step",
    ),
    "clipping": (
        "clips each replica's gradients before they are summed",
        "clip the sum, and leave it out of the optimizer",
    ),
    "overflow": (
        "looks for overflow on the first replica only, and applies NaN where another one overflowed",
        "make all gradients NaN where their sum is not finite, before `apply`",
    ),
    "accumulation": (
        "fails under replicas (keras#20582)",
        "sum the gradients of several parts of the batch before `apply`",
    ),
}
"""By kind: what happens, and what to do instead."""
CLIPPING = ("clipnorm", "global_clipnorm", "clipvalue")


def words(fault: Fault) -> str:
    """In one line."""
    setting = fault.kind if fault.value is None else f"{fault.kind}={fault.value:g}"
    names = {"overflow": "LossScaleOptimizer", "accumulation": f"gradient_accumulation_steps={fault.value or 0:g}"}
    happens, cure = WORDS["clipping" if fault.kind in CLIPPING else fault.kind]
    return f"{fault.layer or names.get(fault.kind, setting)} {happens}: {cure}"


def of_model(model: Any) -> Iterator[Fault]:
    """Of each layer that sees its own replica's share of the batch where it should see all, or the same as all where it
    should see its own.
    """
    names = {id(at): name for name, at in named_layers(model)} if isinstance(model, keras.layers.Layer) else {}
    for layer in layers(model):
        name = names.get(id(layer), layer.name)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.synchronized:
            yield Fault("batch_norm", name, None)
        if getattr(layer, "_seed_generators", None) and not getattr(layer, "own_random", False):
            yield Fault("random_numbers", name, None)


def of_optimizer(optimizer: Any) -> Iterator[Fault]:
    """Of each setting that Keras applies to a replica's own gradients, before they are summed."""
    inner = getattr(optimizer, "inner_optimizer", None) or optimizer
    for setting in CLIPPING:
        if getattr(inner, setting, None):
            yield Fault(setting, None, float(getattr(inner, setting)))
    if getattr(inner, "gradient_accumulation_steps", None):
        yield Fault("accumulation", None, float(inner.gradient_accumulation_steps))
    if inner is not optimizer:
        yield Fault("overflow", None, None)


def of_step(models: Sequence[Any], optimizers: Sequence[Any]) -> tuple[Fault, ...]:
    """Of all that takes part in a step, each once."""
    found = [*(f for m in models for f in of_model(m)), *(f for o in optimizers for f in of_optimizer(o))]
    return tuple(dict.fromkeys(found))


def own_random_numbers(model: Any) -> None:
    """Gives each replica random numbers of its own in all layers that draw some.

    Their state is mirrored, the same on all replicas: so the replica's number is added to the seeds that it gives.
    """
    for layer in layers(model):
        if getattr(layer, "own_random", False):
            continue
        for generator in getattr(layer, "_seed_generators", ()):
            _own(generator)
        layer.own_random = True


def _own(generator: keras.random.SeedGenerator) -> None:
    draw = generator.next

    def next(ordered: bool = True):
        seed = draw(ordered)
        here = tf.distribute.get_replica_context()
        if here is None:
            return seed
        number = tf.cast(here.replica_id_in_sync_group, seed.dtype)
        return seed + tf.stack([number * 1_000_003, tf.zeros_like(number)])

    generator.next = next


def layers(model: Any) -> Iterator[keras.layers.Layer]:
    """All layers in a model, or in what a tf.Module holds, each once."""
    if isinstance(model, keras.layers.Layer):
        yield from model._flatten_layers()
    else:
        for module in getattr(model, "submodules", ()):
            if isinstance(module, keras.layers.Layer):
                yield module
