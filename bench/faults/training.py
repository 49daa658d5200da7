"""Weights with the probe on, off and failing, to the bit: dtypes, 1, 2 and 4 replicas, dropout; networks by chance."""

import functools
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

from bench.faults.rows import Row, told
from scripts.testbed import (
    dropout_training,
    networks,  # noqa: E402
)

import tapescope  # noqa: E402
from tapescope.statistics import layers as layer_statistics


def main() -> None:
    """A row a combination."""
    steps = 20 if "--quick" in sys.argv else 200
    rows = []
    combinations = [("float32", 1), ("mixed_bfloat16", 1), ("mixed_float16", 1), ("float32", 2), ("float32", 4)]
    for dtype, replicas in combinations:
        how = {"dtype": dtype, "replicas": replicas, "steps": steps}
        without, _, _ = dropout_training.train(lambda model: None, **how)
        runs = {}
        for name, measure in (("on", None), ("off", lambda n: False), ("every third", lambda n: n % 3 == 0)):
            runs[name], _, _ = dropout_training.train(tapescope.Probe, measure=measure, **how)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer_statistics, "layer_rows", dropout_training.fail)
            runs["failing"], _, _ = dropout_training.train(tapescope.Probe, **how)
        other = [
            name
            for name, weights in runs.items()
            if not all(np.array_equal(a, b) for a, b in zip(weights, without, strict=True))
        ]
        seen = f"differs: {', '.join(other)}" if other else f"the same bits: probe {', '.join(runs)}"
        promise = f"weights after {steps} steps, {dtype}, {replicas} replica{'s' * (replicas > 1)}, dropout"
        rows.append(Row(promise, seen, not other))
    told([*rows, *by_chance(10 if "--quick" in sys.argv else 200)])


def by_chance(number: int) -> list[Row]:
    """Networks with branches, sums, normalization, attention and dropout; half of them do not know the batch's size."""
    found = {known: {"the same bits": 0, "differ": 0, "differ without measuring": 0} for known in (True, False)}
    for seed in range(number):
        network = functools.partial(networks.random_network, seed)
        how = networks.random_options(seed)
        plain, measured = (networks.train(network, measure, **how) for measure in (False, True))
        if networks.same_bits(plain, measured):
            outcome = "the same bits"
        else:  # TensorFlow adds some networks' gradients in an order that one training in ten does not keep
            again = (networks.train(network, False, **how) for _ in range(40))
            steady = all(networks.same_bits(plain, other) for other in again)
            outcome = "differ" if steady else "differ without measuring"
        found[how["known"]][outcome] += 1
    rows = []
    for known, allowed in ((True, 0), (False, 0.02)):
        promise = "weights after 3 steps, networks by chance, layers chosen, batches of " + (
            "known size" if known else "unknown size (at most one in fifty may differ)"
        )
        seen = ", ".join(f"{count} {name}" for name, count in found[known].items())
        rows.append(Row(promise, seen, found[known]["differ"] <= allowed * sum(found[known].values())))
    return rows


if __name__ == "__main__":
    main()
