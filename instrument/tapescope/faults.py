"""What Keras does otherwise with several replicas than with one, where a model or an optimizer asks for it.

Found by experiment with Keras 3.15 under MirroredStrategy and MultiWorkerMirroredStrategy; docs/distributed.md tells
what happens and what to do instead.
"""

from collections.abc import Iterator
from typing import Any

import keras


def of_model(model: Any) -> Iterator[str]:
    """One line for each layer that sees its own replica's share of the batch where it should see all, or the same as
    all where it should see its own.
    """
    for layer in layers(model):
        name = getattr(layer, "path", None) or layer.name
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized:
            yield (
                f"{name} normalises each replica by its own share of the batch, and its moving statistics are those of "
                f"the first: pass synchronized=True"
            )
        if getattr(layer, "_seed_generators", None) and not getattr(layer, "own_random", False):
            yield (
                f"{name} draws the same random numbers on all replicas, so their examples share masks: give it a seed "
                f"that depends on the replica"
            )


def of_optimizer(optimizer: Any) -> Iterator[str]:
    """One line for each setting that Keras applies to a replica's own gradients, before they are summed."""
    inner = getattr(optimizer, "inner_optimizer", None) or optimizer
    for setting in ("clipnorm", "global_clipnorm", "clipvalue"):
        if getattr(inner, setting, None):
            yield (
                f"{setting}={getattr(inner, setting)} clips each replica's gradients before they are summed: clip the "
                f"sum, and leave it out of the optimizer"
            )
    if getattr(inner, "gradient_accumulation_steps", None):
        yield "gradient_accumulation_steps fails under replicas (keras#20582): take a larger batch"
    if inner is not optimizer:
        yield (
            "LossScaleOptimizer looks for overflow on the first replica only, and applies NaN where another one "
            "overflowed: make all gradients NaN where the sum is not finite"
        )


def layers(model: Any) -> Iterator[keras.layers.Layer]:
    """All layers in a model, or in what a tf.Module holds, each once."""
    if isinstance(model, keras.layers.Layer):
        yield from model._flatten_layers()
    else:
        for module in getattr(model, "submodules", ()):
            if isinstance(module, keras.layers.Layer):
                yield module
