"""What a model needs so that several replicas train it as one device would; see docs/distributed.md."""

import keras

from tapescope.capture import keras_replica_issues


def prepare(model: keras.Model, optimizer: keras.optimizers.Optimizer, replicas: int) -> None:
    """Gives each replica random numbers of its own. Raises ValueError where Keras would train something else."""
    if replicas == 1:
        return
    keras_replica_issues.own_random_numbers(model)
    wrong = [
        fault for fault in keras_replica_issues.of_step([model], [optimizer]) if fault.kind != "overflow"
    ]  # the step sees to it
    if wrong:
        raise ValueError(f"with {replicas} replicas {'; '.join(map(keras_replica_issues.words, wrong))}")


def sums_once(optimizer: keras.optimizers.Optimizer) -> bool:
    """Keeps `apply` from summing over the replicas what is summed already; False where this Keras has no such step.

    Keras does not tell the sum that it makes, and has no switch for it. The alternative is to sum twice in a step that
    measures or clips.
    """
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        return False
    optimizer._all_reduce_sum_gradients = list
    return True
