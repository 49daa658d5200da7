"""Weights after 200 steps with the probe on, off and failing, to the bit: dtypes, 1, 2 and 4 replicas, dropout on."""

import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)

from bench.faults import Row, told  # noqa: E402
from tests.instrument import test_guard as on  # noqa: E402

import tapescope  # noqa: E402
from tapescope import outputs  # noqa: E402


def main() -> None:
    """A row a combination."""
    steps = 20 if "--quick" in sys.argv else 200
    rows = []
    combinations = [("float32", 1), ("mixed_bfloat16", 1), ("mixed_float16", 1), ("float32", 2), ("float32", 4)]
    for dtype, replicas in combinations:
        how = {"dtype": dtype, "replicas": replicas, "steps": steps}
        without, _, _ = on.trained(lambda model: None, **how)
        runs = {}
        for name, measure in (("on", None), ("off", lambda n: False), ("every third", lambda n: n % 3 == 0)):
            runs[name], _, _ = on.trained(tapescope.Probe, measure=measure, **how)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outputs, "layer_rows", on.breaks)
            runs["failing"], _, _ = on.trained(tapescope.Probe, **how)
        other = [
            name
            for name, weights in runs.items()
            if not all(np.array_equal(a, b) for a, b in zip(weights, without, strict=True))
        ]
        seen = f"differs: {', '.join(other)}" if other else f"the same bits: probe {', '.join(runs)}"
        promise = f"weights after {steps} steps, {dtype}, {replicas} replica{'s' * (replicas > 1)}, dropout"
        rows.append(Row(promise, seen, not other))
    told(rows)


if __name__ == "__main__":
    main()
