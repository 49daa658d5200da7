"""What a model needs so that several replicas train it as one device would; see docs/distributed.md."""

import keras
import tensorflow as tf

from tapescope import faults


def prepare(model: keras.Model, optimizer: keras.optimizers.Optimizer, replicas: int) -> None:
    """Gives each replica random numbers of its own. Raises ValueError where Keras would train something else."""
    if replicas == 1:
        return
    for layer in faults.layers(model):
        for generator in getattr(layer, "_seed_generators", ()):
            _own(generator)
        layer.own_random = True
    # Overflow is seen to by the step.
    wrong = [*faults.of_model(model), *(line for line in faults.of_optimizer(optimizer) if "overflow" not in line)]
    if wrong:
        raise ValueError(f"with {replicas} replicas {'; '.join(wrong)}")


def sums_once(optimizer: keras.optimizers.Optimizer) -> bool:
    """Keeps `apply` from summing over the replicas what is summed already; False where this Keras has no such step.

    Keras does not tell the sum that it makes, and has no switch for it. The alternative is to sum twice in a step that
    measures or clips.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        return False
    optimizer._all_reduce_sum_gradients = list
    return True


def _own(generator: keras.random.SeedGenerator) -> None:
    """Adds the replica's number to the seeds that it gives: the state is mirrored, and the same on all."""
    draw = generator.next

    def next(ordered: bool = True):
        seed = draw(ordered)
        here = tf.distribute.get_replica_context()
        if here is None:
            return seed
        number = tf.cast(here.replica_id_in_sync_group, seed.dtype)
        return seed + tf.stack([number * 1_000_003, tf.zeros_like(number)])

    generator.next = next
