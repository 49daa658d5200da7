"""Killed at random moments, a full disk, the same files cut at every byte: what both of TensorBoard's loaders find."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
from bench.faults.rows import Row, told
from scripts.testbed.records import eager_steps, loaded_steps
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util

import tapescope

Steps = dict[str, list[int]]


def writer(directory: pathlib.Path, to: int) -> None:
    """Trains and records for ever; tells of each step that was handed over by a byte."""
    probe, step = eager_steps()
    recorder = tapescope.Recorder(directory, probe)
    for n in range(10**9):
        recorder.write(n, step(n), {"loss": 1.0})
        os.write(to, b".")


def killed(directory: pathlib.Path, rng: random.Random) -> int:
    """Forks a writer (TensorFlow has not started in this process), kills it; the steps that it had handed over."""
    ear, mouth = os.pipe()
    child = os.fork()
    if not child:
        os.close(ear)
        with open(os.devnull, "w") as silent:
            os.dup2(silent.fileno(), 2)
        writer(directory, mouth)
    os.close(mouth)
    heard = len(os.read(ear, 1))
    time.sleep(rng.uniform(0, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(ear, 1 << 16):
        heard += len(part)
    os.close(ear)
    return heard


def fast(logdir: pathlib.Path, wanted: dict[str, int], seconds: float = 60) -> dict[str, int]:
    """The last step of each run by TensorBoard's data server, once they are as wanted or time is up."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=str(logdir),
        reload_interval=1,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )
    ingester.start()
    found: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and found != wanted:
        listing = ingester.data_provider.list_tensors(None, experiment_id="", plugin_name="tapescope")
        found = {run: tags["tapescope/variables"].max_step for run, tags in listing.items() if len(tags) > 1}
        time.sleep(0.5)
    return found


def killing(logdir: pathlib.Path, times: int) -> Row:
    """Each log is whole to the last record that was written, for three readers."""
    rng, behind, wrong, last = random.Random(0), [], [], {}
    for i in range(times):
        handed = killed(logdir / f"run_{i:03}", rng)
        steps = tapescope.Run(logdir / f"run_{i:03}").steps.tolist()
        if steps != list(range(len(steps))) or (steps and loaded_steps(logdir / f"run_{i:03}") != steps):
            wrong.append(i)
        behind.append(handed - len(steps))
        if steps:  # else it was killed while the first record was written
            last[f"run_{i:03}"] = steps[-1]
    found = fast(logdir, last)
    wrong += [run for run, step in last.items() if found.get(run) != step]
    seen = (
        f"{times - len(wrong)} read whole by Run and both loaders; at most {max(behind)} handed over, not yet written"
    )
    return Row(f"kill -9 at {times} random moments", seen, not wrong)


def full(mount: pathlib.Path) -> Row:
    """A tmpfs of 512 KiB that fills up, and has room again."""
    promise = "a disk (tmpfs of 512 KiB) that fills up and is made room on"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mount], capture_output=True).returncode:
        return Row(promise, "not tried: mounting is not permitted here", True)
    try:
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(300 << 10))
        probe, step = eager_steps()
        reading = step(0)
        with tapescope.Recorder(mount / "run", probe) as recorder:
            n = 0
            while recorder.lost < 20 and n < 10_000:
                recorder.write(n, reading, {"loss": 1.0})
                recorder._wait()
                n += 1
            full_at, lost = n, recorder.lost
            ballast.unlink()
            time.sleep(1.1)
            for _ in range(20):
                recorder.write(n, reading, {"loss": 1.0})
                recorder._wait()
                n += 1
        run = tapescope.Run(mount / "run")
        kept = lost == recorder.lost and len(run.steps) == n - lost == len(loaded_steps(mount / "run"))
        kept = kept and run.status["lost"] == lost and run.steps[-1] == n - 1
        return Row(promise, f"{full_at - lost} written, {lost} lost and counted, then 20 more; training went on", kept)
    finally:
        subprocess.run(["umount", mount], check=False)


def cut(directory: pathlib.Path, every: int) -> Row:
    """The file of a short run, cut at every byte."""
    probe, step = eager_steps()
    with tapescope.Recorder(directory / "whole", probe) as recorder:
        for n in range(3):
            recorder.write(n, step(n), {"loss": 1.0})
    (path,) = (directory / "whole").iterdir()
    content, before, wrong = path.read_bytes(), 0, 0
    (directory / "cut").mkdir()
    lengths = range(0, len(content), every)
    for length in lengths:
        (directory / "cut" / path.name).write_bytes(content[:length])
        found = 0
        with contextlib.suppress(ValueError, KeyError):  # no record of a step yet
            steps = tapescope.Run(directory / "cut").steps
            found = len(steps)
            wrong += not np.array_equal(steps, np.arange(found))
        wrong += found < before
        before = found
    return Row(f"a file cut at {len(lengths)} places, read by Run", f"{wrong} read wrongly", not wrong and before == 3)


def main() -> None:
    """The rows of the table."""
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for name in ("killed", "mount", "cut"):
            (root / name).mkdir()
        rows = [killing(root / "killed", 5 if quick else 100)]  # first: it forks
        told([*rows, full(root / "mount"), cut(root / "cut", 97 if quick else 1)])


if __name__ == "__main__":
    main()
