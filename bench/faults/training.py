"""Weights with the probe on, off and failing, compared bit by bit: precisions, replicas, dropout, random networks."""

import functools
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import pytest
import tensorflow as tf
from bench.faults.row import Row, print_rows
from scripts.testbed import dropout_training, networks

import tapescope
from tapescope.statistics import layers as layer_statistics

COMBINATIONS = (
    ("float32", 1),
    ("mixed_bfloat16", 1),
    ("mixed_float16", 1),
    ("float32", 2),
    ("float32", 4),
)


def compare_trainings(dtype: str, replicas: int, steps: int) -> Row:
    """Compare the weights of trainings with and without a probe."""
    train = functools.partial(dropout_training.train, dtype=dtype, replicas=replicas, steps=steps)
    expected, _, _ = train(lambda model: None)
    found = {
        "on": train(tapescope.Probe)[0],
        "off": train(tapescope.Probe, measure=lambda n: False)[0],
        "every third step": train(tapescope.Probe, measure=lambda n: n % 3 == 0)[0],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_statistics, "layer_rows", dropout_training.fail)
        found["failing"] = train(tapescope.Probe)[0]
    different = [
        name
        for name, weights in found.items()
        if not all(np.array_equal(a, b) for a, b in zip(weights, expected, strict=True))
    ]
    result = f"different: {', '.join(different)}" if different else f"bitwise equal: probe {', '.join(found)}"
    unit = "replica" if replicas == 1 else "replicas"
    return Row(f"weights after {steps} steps, {dtype}, {replicas} {unit}, dropout", result, not different)


def compare_random_networks(number: int) -> list[Row]:
    """Compare networks with branches, sums, normalization, attention and dropout; half have an unknown batch size."""
    counts = {known: {"bitwise equal": 0, "different": 0, "different without measuring": 0} for known in (True, False)}
    for seed in range(number):
        network = functools.partial(networks.random_network, seed)
        options = networks.random_options(seed)
        plain = networks.train(network, False, **options)
        measured = networks.train(network, True, **options)
        if networks.same_bits(plain, measured):
            outcome = "bitwise equal"
        else:
            # Some networks' gradients are added in an order that TensorFlow itself changes in one training of ten.
            again = (networks.train(network, False, **options) for _ in range(40))
            steady = all(networks.same_bits(plain, other) for other in again)
            outcome = "different" if steady else "different without measuring"
        counts[options["known"]][outcome] += 1
    rows = []
    for known, allowed in ((True, 0), (False, 0.02)):
        batches = "known size" if known else "unknown size (at most one in fifty may differ)"
        test = f"weights after 3 steps, random networks, selected layers, batches of {batches}"
        result = ", ".join(f"{count} {name}" for name, count in counts[known].items())
        rows.append(Row(test, result, counts[known]["different"] <= allowed * sum(counts[known].values())))
    return rows


def main() -> None:
    """Print the rows of the table."""
    quick = "--quick" in sys.argv
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
    )
    rows = [compare_trainings(dtype, replicas, 20 if quick else 200) for dtype, replicas in COMBINATIONS]
    print_rows([*rows, *compare_random_networks(10 if quick else 200)])


if __name__ == "__main__":
    main()
