"""On a machine with NVIDIA GPUs: are the readings right there, and what do they cost? One command, one file of results.

    python -m bench.gpu [--json=FILE] [--repeats=40]

1. One measured step of each network of `bench.cost` on the GPU, against the same step on the CPU, column by column.
2. The same over all GPUs with MirroredStrategy, against one GPU on the whole batch.
3. Milliseconds a step (medians, interleaved): plain, not measured, measured; ratios; and kernel launches a step,
   counted by TensorFlow's profiler.

Ends with exit code 1 where a reading differs, and 2 where there is no GPU.
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
"""Relative, and to the column's largest: convolutions on a GPU may round their inputs to TensorFloat-32."""


def read_on(device, name):
    """One measured step's reading."""
    with tf.device(device):
        step, _ = Trained(name).probed()
        read: Any = step(True)[1]
    return summaries.to_host(read)


def differences(read, expected):
    """By column, how far the reading is from the one expected where it is by more than the tolerance."""
    found = {}
    for column in (*reading.VARIABLE_COLUMNS, *reading.LAYER_COLUMNS):
        if column.startswith("noise_scale"):  # one device has none
            continue
        a, b = (np.asarray(r.column(column), np.float64) for r in (read, expected))
        # Shares and counts move by the elements that rounding takes across a threshold.
        scale = np.maximum(np.abs(b), max(1e-12, 0.05 * float(np.nanmax(np.abs(b), initial=0))))
        with np.errstate(invalid="ignore"):  # of two infinities
            off = np.nanmax(np.abs(a - b) / scale, initial=0)
        if off > TOLERANCE or not np.array_equal(np.isnan(a), np.isnan(b)):
            found[column] = float(off)
    for part in ("gradient_histogram", "activation_histogram"):
        totals = [getattr(r, part).sum(1) for r in (read, expected)]
        if not np.array_equal(*totals):
            found[part] = float(np.abs(totals[0] - totals[1]).max())
    return found


def mirrored(name):
    """The reading of one step over all GPUs: each has its share of the same batch."""
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
    """Kernel launches a step, from the profiler's trace; None where it has none."""
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
    trained = Trained(name)
    plain, (full, _), (lean, _) = trained.plain(), trained.probed(), trained.probed(histograms=False)
    table = {
        "plain": lambda: plain().numpy(),
        "unmeasured": lambda: full(False)[0].numpy(),
        "lean": lambda: lean(True)[0].numpy(),
        "all": lambda: full(True)[0].numpy(),
    }
    for run in table.values():
        run()
    result = interleaved(table, repeats)
    for program, run in table.items():
        result[program]["launches"] = launches(run)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="gpu.json")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--networks", default=",".join(TITLES))
    parser.add_argument("--cpu", action="store_true", help="run the program itself on the CPU: to see that it works")
    given = parser.parse_args()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and not given.cpu:
        print("bench.gpu: TensorFlow sees no GPU here: pip install 'tensorflow[and-cuda]' on a machine that has one")
        sys.exit(2)
    device = "GPU:0" if gpus else "CPU:0"
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    print(f"{page.machine()}\n{len(gpus)} GPUs: {', '.join(names)}\n")
    results, wrong = {}, False
    print("| network | program | ms | ratio to plain | kernel launches a step |\n|---|---|---|---|---|")
    for name in given.networks.split(","):
        expected = read_on("CPU:0", name)
        of = results[name] = {"differs from the CPU": differences(read_on(device, name), expected)}
        count, read = mirrored(name)
        of[f"{count} replicas differ from one"] = {} if _normalises(name) else differences(read, expected)
        with tf.device(device):
            of["cost"] = cost(name, given.repeats)
        for program, row in of["cost"].items():
            print(
                f"| {TITLES[name]} | {program} | {row['ms']:.3f} | {row['ratio']:.3f} | {row['launches']} |", flush=True
            )
        wrong |= any(found for what, found in of.items() if "differ" in what)
    print("\n" + ("readings differ: see below" if wrong else "all readings agree"))
    for name, of in results.items():
        print(
            f"{name}: " + "; ".join(f"{what}: {found or 'nowhere'}" for what, found in of.items() if "differ" in what)
        )
    with open(given.json, "w", encoding="utf-8") as file:
        json.dump({"machine": page.machine(), "gpus": names, "results": results}, file, indent=1)
    sys.exit(wrong)


def _normalises(name):
    """Whether replicas rightly differ: batch normalisation takes each one's own share of the batch."""
    return any("batch_normalization" in layer.name for layer in Trained(name).model._flatten_layers())


if __name__ == "__main__":
    main()
