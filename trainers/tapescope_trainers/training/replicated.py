"""Preparation of a model and its optimizer for several replicas; docs/distributed.md says what Keras does otherwise."""

import keras

from tapescope.capture import keras_replica_issues, private_api
from tapescope.rules.replica_issues import issue_text


def prepare(model: keras.Model, optimizer: keras.optimizers.Optimizer, replicas: int) -> None:
    """Give each replica its own random numbers.

    Raises:
        ValueError: With several replicas, Keras would train something else than on one device.
    """
    if replicas == 1:
        return
    keras_replica_issues.own_random_numbers(model)
    issues = keras_replica_issues.replica_issues([model], [optimizer])
    unsolved = [issue for issue in issues if issue.kind != "overflow"]  # `step.make` handles overflow
    if unsolved:
        raise ValueError(f"with {replicas} replicas {'; '.join(map(issue_text, unsolved))}")


def disable_all_reduce(optimizer: keras.optimizers.Optimizer) -> bool:
    """Keep `apply` from summing gradients over the replicas, for a step that passes sums already.

    Keras neither returns its sum nor has a switch for it, so a step that measures or clips would sum twice.

    Returns:
        Whether this version of Keras has the method that is replaced.
    """
    return private_api.skip_all_reduce(optimizer)
