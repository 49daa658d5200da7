"""Replicas and workers against one device, and runs that are killed and go on.

    python bench/replicas.py [--kills=20] [--steps=300] [--json=FILE]

One network on real digits: on one device, on four logical CPU devices, and as two workers on loopback. How far readings
and weights differ, examples a second, collectives in the graph of a step. Then a run that is killed with SIGKILL at
random moments and started again by the same command each time, against the same run undisturbed.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tapescope

NETWORK = ("--preset=cnn", "--width=16", "--measure_every=5", "--window_examples=512", "--noprogress")
WAYS = {
    "one device": [()],
    "four replicas": [("--strategy=mirrored", "--devices=cpu:4")],
    "two workers": [("--strategy=multi_worker",)] * 2,
}
COLUMNS = ("loss", "gradient_norm", "weight_norm", "activation_mean", "activation_std", "saturated", "delta_norm")
TIMES = {"step_ms", "measure_ms"}


def start(logdir, arguments, tf_config=None):
    command = [sys.executable, "-m", "tapescope_trainers.train", f"--logdir={logdir}", *arguments]
    environment = os.environ | ({"TF_CONFIG": tf_config} if tf_config else {})
    with open(f"{logdir}.log", "w") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def train(logdir, way, arguments):
    """Trains to the end in as many processes as the way has."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in WAYS[way]]
    workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    try:
        for index, more in enumerate(WAYS[way]):
            config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            processes.append(start(logdir, (*arguments, *more), json.dumps(config) if len(workers) > 1 else None))
        codes = [process.wait(600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise SystemExit(f"{way}: exit codes {codes}")


def variables(logdir):
    """Of the newest checkpoint, but for the number of saves."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(os.path.join(logdir, "checkpoints")))
    names = [n for n in reader.get_variable_to_shape_map() if n.endswith("VARIABLE_VALUE") and "save_counter" not in n]
    return {name: reader.get_tensor(name) for name in names}


def apart(found, expected):
    """The largest difference of two arrays, relative to the larger element of each pair."""
    both = np.isfinite(found) & np.isfinite(expected)
    scale = np.maximum(np.abs(found), np.abs(expected))[both]
    different = np.abs(found.astype(float)[both] - expected.astype(float)[both])
    return float(np.max(different / np.where(scale > 1e-12, scale, 1), initial=0))


def agreement(logdir, expected):
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


def collectives():
    """All-reduces in the graph of one replica: of the plain step, and of the measured one."""
    from tapescope_trainers import flags, step, train

    options = flags.parse(["x", f"--logdir={tempfile.mkdtemp()}", *NETWORK, *WAYS["four replicas"][0]])
    parts = train.prepare(options)
    parts.recorder.close()
    one_step = step.make(parts.model, parts.optimizer, parts.probe, parts.strategy, batch_size=64)
    spec = parts.strategy.experimental_distribute_dataset(parts.batches).element_spec
    counts = {}
    for name, measure in (("plain", False), ("measured", True)):
        graph = one_step.get_concrete_function(*spec, measure).graph
        kinds = [op.type for op in graph.get_operations() if re.search("Collective|NcclAllReduce", op.type)]
        counts[name] = len(kinds) / parts.strategy.num_replicas_in_sync
    return counts


def killed(count, seed, folder):
    """A run that is killed `count` times and the undisturbed one, compared bit by bit.

    Each resume starts where the one before left off: were a single one not exact, the end would not be the same.
    """
    choice = random.Random(seed)
    whole, cut = os.path.join(folder, "whole"), os.path.join(folder, "killed")
    steps = 400 * count
    arguments = (*NETWORK, "--depth=2", f"--steps={steps}", "--checkpoint_every=20", "--validate_every=70")
    train(whole, "one device", arguments)
    moments = []
    for aim in sorted(choice.randrange(steps - 200) for _ in range(count)):
        process = start(cut, arguments)
        while process.poll() is None and newest(cut) < aim:
            time.sleep(0.01)
        time.sleep(choice.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        if code := process.wait() + signal.SIGKILL:
            with open(f"{cut}.log") as log:
                raise SystemExit(f"exit code {code - signal.SIGKILL} before it was killed {count} times: {log.read()}")
        moments.append(newest(cut))
    train(cut, "one device", arguments)
    found, expected = variables(cut), variables(whole)
    run, other = tapescope.Run(cut), tapescope.Run(whole)
    return {
        "kills": count,
        "newest checkpoint at each": moments,
        "variables that differ": sum(not np.array_equal(found[n], expected[n]) for n in expected),
        "records": len(run.steps),
        "every step once": run.steps.tolist() == list(range(0, steps, 5)),
        "columns that differ": [
            c for c in other.columns if c not in TIMES and not np.array_equal(run[c], other[c], equal_nan=True)
        ],
    }


def newest(logdir):
    """Steps in the newest checkpoint; -1 without one."""
    path = tf.train.latest_checkpoint(os.path.join(logdir, "checkpoints"))
    return int(path.rpartition("-")[2]) if path else -1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json")
    options = parser.parse_args()
    found = {"processors": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            logdir = os.path.join(folder, way.replace(" ", "_"))
            train(logdir, way, (*NETWORK, f"--steps={options.steps}", f"--checkpoint_every={options.steps}"))
            found[way] = {"examples/s": round(speed(logdir))}
            if way != "one device":
                found[way] |= agreement(logdir, os.path.join(folder, "one_device"))
            print(way, found[way], flush=True)
        found["collectives a step"] = collectives()
        print("collectives a step", found["collectives a step"], flush=True)
        if options.kills:
            found["killed"] = killed(options.kills, options.seed, folder)
            print("killed", found["killed"], flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
