"""Replicas and workers against one device, and runs that are killed and go on.

    python -m bench.replicas [--kills=20] [--steps=300] [--table=docs/replicas.md]

One network on real digits: on one device, on four logical CPU devices, and as two workers on loopback. How far readings
and weights differ, examples a second, collectives in the graph of a step. Then a run that is killed with SIGKILL at
random moments and started again by the same command each time, against the same run undisturbed.
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
BETWEEN = 100
"""Steps from one kill to the next, on average."""


def finish(logdir, *arguments):
    with Trainer(logdir, *NETWORK, *arguments) as trainer:
        trainer.finish()


def finish_workers(logdir, *arguments):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        where = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    with workers(logdir, where, *NETWORK, *arguments) as trainers:
        for trainer in trainers:
            trainer.finish()


def apart(found, expected):
    """The largest difference of two arrays, relative to the larger element of each pair."""
    both = np.isfinite(found) & np.isfinite(expected)
    scale = np.maximum(np.abs(found), np.abs(expected))[both]
    different = np.abs(found.astype(float)[both] - expected.astype(float)[both])
    return float(np.max(different / np.where(scale > 1e-12, scale, 1), initial=0))


def agreement(logdir, expected):
    """The largest relative differences: of any number of the readings, and of any variable's weights."""
    found, one = tapescope.Run(logdir), tapescope.Run(expected)
    a, b = variables(logdir), variables(expected)
    weights = [n for n in b if "/_trainable_variables/" in n or n.startswith("model/")]
    norm = np.linalg.norm
    return {
        "readings": max(apart(found[column], one[column]) for column in COLUMNS),
        "weights": float(max(norm(a[n] - b[n]) / max(norm(b[n]), 1e-12) for n in weights)),
    }


def speed(logdir):
    """Examples a second, by the median time of a plain step."""
    run = tapescope.Run(logdir)
    return 64 / np.nanmedian(run["step_ms"][len(run.steps) // 2 :]) * 1000


def collectives(logdir):
    """All-reduces in the graph of one replica: of the plain step, and of the measured one."""
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


def killed(count, seed, folder):
    """A run that is killed `count` times and the undisturbed one, compared bit by bit.

    Each resume starts where the one before left off: were a single one not exact, the end would not be the same.
    """
    choice = random.Random(seed)
    whole, cut = folder / "whole", folder / "killed"
    steps = BETWEEN * (count + 2)
    arguments = ("--depth=2", f"--steps={steps}", "--checkpoint_every=20", "--validate_every=70")
    finish(whole, *arguments)
    moments = []
    for aim in sorted(choice.randrange(BETWEEN * count) for _ in range(count)):
        with Trainer(cut, *NETWORK, *arguments) as trainer:
            until(trainer, lambda aim=aim: newest(cut) >= aim)
            time.sleep(choice.uniform(0, 0.3))
            trainer.send(signal.SIGKILL)
            said = trainer.wait()
            if trainer.code != -signal.SIGKILL:
                raise SystemExit(f"exit code {trainer.code} before it was killed {count} times: {said}")
        moments.append(newest(cut))
        print(f"killed after checkpoint {moments[-1]}", flush=True)
    finish(cut, *arguments)
    found, expected = variables(cut), variables(whole)
    run, other = tapescope.Run(cut), tapescope.Run(whole)
    return {
        "kills": count,
        "checkpoints": moments,
        "steps": steps,
        "variables": len(expected),
        "variables that differ": [n for n in expected if not np.array_equal(found[n], expected[n])],
        "records": len(run.steps),
        "every step once": run.steps.tolist() == list(range(0, steps, 5)),
        "columns": len(other.columns) - len(TIMES),
        "columns that differ": [
            c for c in other.columns if c not in TIMES and not np.array_equal(run[c], other[c], equal_nan=True)
        ],
    }


def table(rows, counts, kills):
    """docs/replicas.md."""
    columns = ", ".join(f"`{c}`" for c in COLUMNS)
    lines = [
        "# Replicas and workers against one device",
        "",
        "Made by `python -m bench.replicas --table=docs/replicas.md`: a convolutional network on real digits, batch "
        f"64, every fifth step measured, on {os.cpu_count()} processors. Differences are relative: the largest of any "
        f"number in {columns}, and of any variable's weights at the end, by norm. Replicas and workers share the "
        "processors with each other, so examples/s are no gain here, only the price.",
        "",
        "| | steps | examples/s | largest difference of a reading | of the weights |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, (steps, rate, apart) in rows.items():
        differences = [f"{apart[key]:.1e}" for key in ("readings", "weights")] if apart else ["-", "-"]
        lines.append(f"| {name} | {steps} | {rate:.0f} | {' | '.join(differences)} |")
    plain, measured = counts
    lines += ["", f"Collectives in a step of four replicas: {plain:g} in a plain one, {measured:g} in a measured one."]
    if kills:
        moments = ", ".join(map(str, kills["checkpoints"]))
        differ = [f"{len(kills[f'{what} that differ'])} of {kills[what]} {what}" for what in ("variables", "columns")]
        lines += [
            "",
            f"A run of {kills['steps']} steps was killed with SIGKILL at {kills['kills']} random moments (the newest "
            f"checkpoint was then of step {moments}) and started again by the same command each time. Against the run "
            f"that nothing stopped {differ[0]} of the last checkpoint differ in any bit, and {differ[1]} of the "
            f"records, times left out. Each of the {kills['records']} records is there once: "
            f"{'yes' if kills['every step once'] else 'NO'}.",
        ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", metavar="FILE", help="also write this page")
    options = parser.parse_args()
    rows, kills = {}, None
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
            kills = killed(options.kills, options.seed, folder)
            print(kills, flush=True)
        page = table(rows, collectives(folder / "counted"), kills)
    print(page)
    if options.table:
        Path(options.table).write_text(page)


if __name__ == "__main__":
    main()
