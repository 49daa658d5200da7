"""Readings on NVIDIA GPUs compared with the CPU, and the cost of measuring there, in one command.

    python -m bench.gpu [--json=FILE] [--repeats=40]

1. One measured step of each network of `bench.cost` on the GPU, compared with the same step on the CPU by column.
2. The same over all GPUs with MirroredStrategy, compared with one device on the whole batch.
3. Milliseconds a step (medians, interleaved) of the plain, the unmeasured and the measured step, their ratios, and the
   kernel launches a step, counted by TensorFlow's profiler.

The exit code is 1 if a reading differs, and 2 if there is no GPU.
"""

import argparse
import glob
import gzip
import json
import os
import re
import sys
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from bench.cost import page
from bench.cost.networks import TITLES, Trained
from bench.cost.steps import interleaved

import tapescope
from tapescope.statistics import reading
from tapescope.storage import summaries

TOLERANCE = 2e-2
"""Relative, also to the column's largest value. Convolutions on a GPU may round their inputs to TensorFloat-32."""


def read_on(device, name):
    """Return the reading of one measured step."""
    with tf.device(device):
        step, _ = Trained(name).probed()
        read: Any = step(True)[1]
    return summaries.to_host(read)


def differences(read, expected):
    """Return the relative difference of each column that differs by more than the tolerance."""
    found = {}
    for column in (*reading.VARIABLE_COLUMNS, *reading.LAYER_COLUMNS):
        if column.startswith("noise_scale"):  # NaN on one device
            continue
        a = np.asarray(read.column(column), np.float64)
        b = np.asarray(expected.column(column), np.float64)
        # Shares and counts change by the elements that rounding moves across a threshold.
        scale = np.maximum(np.abs(b), max(1e-12, 0.05 * float(np.nanmax(np.abs(b), initial=0))))
        with np.errstate(invalid="ignore"):  # the difference of two infinities
            difference = np.nanmax(np.abs(a - b) / scale, initial=0)
        if difference > TOLERANCE or not np.array_equal(np.isnan(a), np.isnan(b)):
            found[column] = float(difference)
    for part in ("gradient_histogram", "activation_histogram"):
        totals = [getattr(r, part).sum(1) for r in (read, expected)]
        if not np.array_equal(*totals):
            found[part] = float(np.abs(totals[0] - totals[1]).max())
    return found


def mirrored(name):
    """Return the number of replicas and the reading of one step over all GPUs, which share the same batch."""
    strategy = tf.distribute.MirroredStrategy()
    count = strategy.num_replicas_in_sync
    with strategy.scope():
        trained = Trained(name)
    probe = tapescope.Probe(trained.model)
    parts = [np.array_split(np.asarray(t), count) for t in (trained.x, trained.y)]

    def in_replica(x, y):
        with probe.tape(True) as tape:
            output = tf.cast(trained.model(x, training=True), tf.float32)
            each = tf.keras.losses.categorical_crossentropy(y, output)
            loss = tf.reduce_sum(each) / len(trained.labels)
        trained.apply(tape, loss)
        return tape.reading()

    x, y = (
        strategy.experimental_distribute_values_from_function(lambda c, p=p: tf.constant(p[c.replica_id_in_sync_group]))
        for p in parts
    )
    return count, summaries.to_host(tf.function(lambda: strategy.run(in_replica, (x, y)))())


def launches(run, steps=5):
    """Return the kernel launches a step from the profiler's trace; None if there is no trace."""
    logdir = tempfile.mkdtemp()
    tf.profiler.experimental.start(logdir)
    for _ in range(steps):
        run()
    tf.profiler.experimental.stop()
    paths = glob.glob(os.path.join(logdir, "**", "*.trace.json.gz"), recursive=True)
    if not paths:
        return None
    with gzip.open(paths[0], "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    return sum(bool(re.search(r"[Ll]aunchKernel", name)) for name in names) / steps


def cost(name, repeats):
    """Time the programs of `bench.cost` on this device, and count their kernel launches."""
    trained = Trained(name)
    plain = trained.plain()
    full, _ = trained.probed()
    lean, _ = trained.probed(histograms=False)
    programs = {
        "plain": lambda: plain().numpy(),
        "unmeasured": lambda: full(False)[0].numpy(),
        "lean": lambda: lean(True)[0].numpy(),
        "all": lambda: full(True)[0].numpy(),
    }
    for run in programs.values():
        run()
    result = interleaved(programs, repeats)
    for program, run in programs.items():
        result[program]["launches"] = launches(run)
    return result


def main():
    """Compare, time, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="gpu.json")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--networks", default=",".join(TITLES))
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, to try the program")
    options = parser.parse_args()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and not options.cpu:
        print(
            "bench.gpu needs a GPU, and TensorFlow found none: pip install 'tensorflow[and-cuda]' on a machine with one"
        )
        sys.exit(2)
    device = "GPU:0" if gpus else "CPU:0"
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    print(f"{page.machine()}\n{len(gpus)} GPUs: {', '.join(names)}\n")
    results = {}
    wrong = False
    print("| network | program | ms | ratio to plain | kernel launches a step |\n|---|---|---|---|---|")
    for name in options.networks.split(","):
        expected = read_on("CPU:0", name)
        count, read = mirrored(name)
        compared = {
            "differs from the CPU": differences(read_on(device, name), expected),
            f"{count} replicas differ from one": {} if _normalizes(name) else differences(read, expected),
        }
        with tf.device(device):
            costs = cost(name, options.repeats)
        results[name] = {**compared, "cost": costs}
        for program, row in costs.items():
            cells = (TITLES[name], program, f"{row['ms']:.3f}", f"{row['ratio']:.3f}", str(row["launches"]))
            print(f"| {' | '.join(cells)} |", flush=True)
        wrong |= any(compared.values())
    print("\n" + ("readings differ, see below" if wrong else "all readings agree"))
    for name, result in results.items():
        found = [f"{key}: {value or 'nowhere'}" for key, value in result.items() if key != "cost"]
        print(f"{name}: {'; '.join(found)}")
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({"machine": page.machine(), "gpus": names, "results": results}, file, indent=1)
    sys.exit(wrong)


def _normalizes(name):
    """Tell whether replicas may differ, because batch normalization uses each replica's share of the batch."""
    return any("batch_normalization" in layer.name for layer in Trained(name).model._flatten_layers())


if __name__ == "__main__":
    main()
