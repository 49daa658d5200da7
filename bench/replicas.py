"""Replicas and workers compared with one device, and runs that are killed and resumed.

    python -m bench.replicas [--kills=20] [--steps=300] [--table=docs/replicas.md]

Train one network on real digits on one device, on four logical CPU devices, and as two workers on loopback. Compare
readings and weights, and measure examples a second and the collectives in the graph of a step. Then kill a run with
SIGKILL at random moments, start it again by the same command each time, and compare it with an undisturbed run.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
from scripts.testbed.processes import Trainer, newest, until, variables, workers

import tapescope
from tapescope_trainers import flags
from tapescope_trainers.training import build

NETWORK = ("--preset=cnn", "--width=16", "--measure_every=5", "--window_examples=512", "--noprogress")
FOUR = ("--strategy=mirrored", "--devices=cpu:4")
COLUMNS = ("loss", "gradient_norm", "weight_norm", "activation_mean", "activation_std", "saturated", "delta_norm")
TIMES = {"step_ms", "measure_ms"}
STEPS_BETWEEN_KILLS = 100
"""On average."""


def finish(logdir, *arguments):
    """Train to the end."""
    with Trainer(logdir, *NETWORK, *arguments) as trainer:
        trainer.finish()


def finish_workers(logdir, *arguments):
    """Train two workers to the end."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    with workers(logdir, addresses, *NETWORK, *arguments) as trainers:
        for trainer in trainers:
            trainer.finish()


def largest_difference(found, expected):
    """Return the largest difference of two arrays, relative to the larger element of each pair."""
    both = np.isfinite(found) & np.isfinite(expected)
    scale = np.maximum(np.abs(found), np.abs(expected))[both]
    different = np.abs(found.astype(float)[both] - expected.astype(float)[both])
    return float(np.max(different / np.where(scale > 1e-12, scale, 1), initial=0))


def agreement(logdir, expected):
    """Return the largest relative differences of any number of the readings, and of any variable's weights."""
    run = tapescope.Run(logdir)
    reference = tapescope.Run(expected)
    a = variables(logdir)
    b = variables(expected)
    weights = [n for n in b if "/_trainable_variables/" in n or n.startswith("model/")]
    norm = np.linalg.norm
    return {
        "readings": max(largest_difference(run[column], reference[column]) for column in COLUMNS),
        "weights": float(max(norm(a[n] - b[n]) / max(norm(b[n]), 1e-12) for n in weights)),
    }


def speed(logdir):
    """Return the examples a second, by the median time of a plain step."""
    run = tapescope.Run(logdir)
    return 64 / np.nanmedian(run["step_ms"][len(run.steps) // 2 :]) * 1000


def collectives(logdir):
    """Count the all-reduces of one replica in the graphs of the plain and of the measured step."""
    options = flags.parse(["x", f"--logdir={logdir}", *NETWORK, *FOUR])
    parts = build.prepare(options)
    parts.recorder.close()
    one_step = build.make_step(options, parts)
    spec = parts.strategy.experimental_distribute_dataset(parts.batches).element_spec
    counts = []
    for measure in (False, True):
        graph = one_step.get_concrete_function(*spec, measure).graph
        kinds = [op.type for op in graph.get_operations() if re.search("Collective|NcclAllReduce", op.type)]
        counts.append(len(kinds) / parts.strategy.num_replicas_in_sync)
    return counts


def kill(count, seed, folder):
    """Kill a run `count` times and compare it bit by bit with an undisturbed one.

    Each resume continues the one before, so a single inexact resume would change the end.
    """
    rng = random.Random(seed)
    undisturbed = folder / "undisturbed"
    resumed = folder / "killed"
    steps = STEPS_BETWEEN_KILLS * (count + 2)
    arguments = ("--depth=2", f"--steps={steps}", "--checkpoint_every=20", "--validate_every=70")
    finish(undisturbed, *arguments)
    moments = []
    for step in sorted(rng.randrange(STEPS_BETWEEN_KILLS * count) for _ in range(count)):
        with Trainer(resumed, *NETWORK, *arguments) as trainer:
            until(trainer, lambda step=step: newest(resumed) >= step)
            time.sleep(rng.uniform(0, 0.3))
            trainer.send(signal.SIGKILL)
            output = trainer.wait()
            if trainer.code != -signal.SIGKILL:
                raise SystemExit(f"exit code {trainer.code} before it was killed {count} times: {output}")
        moments.append(newest(resumed))
        print(f"killed after checkpoint {moments[-1]}", flush=True)
    finish(resumed, *arguments)
    found = variables(resumed)
    expected = variables(undisturbed)
    run = tapescope.Run(resumed)
    reference = tapescope.Run(undisturbed)
    return {
        "kills": count,
        "checkpoints": moments,
        "steps": steps,
        "variables": len(expected),
        "variables that differ": [n for n in expected if not np.array_equal(found[n], expected[n])],
        "records": len(run.steps),
        "every step once": run.steps.tolist() == list(range(0, steps, 5)),
        "columns": len(reference.columns) - len(TIMES),
        "columns that differ": [
            name
            for name in reference.columns
            if name not in TIMES and not np.array_equal(run[name], reference[name], equal_nan=True)
        ],
    }


def table(rows, counts, kills):
    """Return the page docs/replicas.md."""
    columns = ", ".join(f"`{c}`" for c in COLUMNS)
    lines = [
        "# Replicas and workers compared with one device",
        "",
        "Generated by `python -m bench.replicas --table=docs/replicas.md`: a convolutional network on real digits, "
        f"batch 64, every fifth step measured, on {os.cpu_count()} processors. Differences are relative: the largest "
        f"of any number in {columns}, and of any variable's weights at the end, by norm. Replicas and workers share "
        "the processors, so examples/s show the cost of replication and not its gain.",
        "",
        "| | steps | examples/s | largest difference of a reading | of the weights |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (steps, rate, difference) in rows.items():
        cells = [f"{difference[key]:.1e}" for key in ("readings", "weights")] if difference else ["-", "-"]
        lines.append(f"| {name} | {steps} | {rate:.0f} | {' | '.join(cells)} |")
    plain, measured = counts
    lines += ["", f"Collectives in a step of four replicas: {plain:g} in a plain one, {measured:g} in a measured one."]
    if kills:
        moments = ", ".join(map(str, kills["checkpoints"]))
        differ = [f"{len(kills[f'{what} that differ'])} of {kills[what]} {what}" for what in ("variables", "columns")]
        lines += [
            "",
            f"A run of {kills['steps']} steps was killed with SIGKILL at {kills['kills']} random moments and started "
            f"again by the same command each time. The newest checkpoint was then of step {moments}. Compared with "
            f"the undisturbed run, {differ[0]} of the last checkpoint differ in any bit, and {differ[1]} of the "
            f"records, without times. Each of the {kills['records']} records is present once: "
            f"{'yes' if kills['every step once'] else 'NO'}.",
        ]
    return "\n".join(lines) + "\n"


def main():
    """Train, compare, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", metavar="FILE", help="also write the page to this file")
    options = parser.parse_args()
    rows = {}
    kills = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = (f"--steps={options.steps}", f"--checkpoint_every={options.steps}")
        finish(folder / "one", *arguments)
        rows["one device"] = options.steps, speed(folder / "one"), None
        finish(folder / "four", *arguments, *FOUR)
        finish_workers(folder / "two", *arguments)
        for name, at in (("four replicas", folder / "four"), ("two workers", folder / "two")):
            rows[name] = options.steps, speed(at), agreement(at, folder / "one")
        print(rows, flush=True)
        if options.kills:
            kills = kill(options.kills, options.seed, folder)
            print(kills, flush=True)
        page = table(rows, collectives(folder / "counted"), kills)
    print(page)
    if options.table:
        Path(options.table).write_text(page)


if __name__ == "__main__":
    main()
