"""Event files of killed writers and of a full disk, and files cut at every byte, read by Run and by TensorBoard."""

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
from bench.faults import attacks
from bench.faults.row import Row, print_rows
from scripts.testbed.records import eager_steps, loaded_steps
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util

import tapescope


def record_forever(directory: pathlib.Path, pipe: int) -> None:
    """Train and record without end; write a byte to the pipe for each step that was passed to the recorder."""
    probe, step = eager_steps()
    recorder = tapescope.Recorder(directory, probe)
    for n in range(10**9):
        recorder.write(n, step(n), {"loss": 1.0})
        os.write(pipe, b".")


def kill_writer(directory: pathlib.Path, rng: random.Random) -> int:
    """Fork a writer and kill it; return the number of steps that it had passed to the recorder.

    TensorFlow must not have started in this process, because it does not survive a fork.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        with open(os.devnull, "w") as silent:
            os.dup2(silent.fileno(), 2)
        record_forever(directory, write_end)
    os.close(write_end)
    steps = len(os.read(read_end, 1))
    time.sleep(rng.uniform(0, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while part := os.read(read_end, 1 << 16):
        steps += len(part)
    os.close(read_end)
    return steps


def last_steps_of_data_server(logdir: pathlib.Path, expected: dict[str, int], seconds: float = 60) -> dict[str, int]:
    """Return the last step of each run in TensorBoard's data server, as soon as they are as expected or time is up."""
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=server_ingester.get_server_binary(),
        logdir=str(logdir),
        reload_interval=1,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
    )
    ingester.start()
    found: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and found != expected:
        listing = ingester.data_provider.list_tensors(None, experiment_id="", plugin_name="tapescope")
        found = {run: tags["tapescope/variables"].max_step for run, tags in listing.items() if len(tags) > 1}
        time.sleep(0.5)
    return found


def kill(logdir: pathlib.Path, times: int) -> Row:
    """Kill writers at random moments; every file must be complete up to its last record for three readers."""
    rng = random.Random(0)
    unwritten = []
    wrong = []
    expected = {}
    for i in range(times):
        name = f"run_{i:03}"
        passed = kill_writer(logdir / name, rng)
        steps = tapescope.Run(logdir / name).steps.tolist()
        if steps != list(range(len(steps))) or (steps and loaded_steps(logdir / name) != steps):
            wrong.append(name)
        unwritten.append(passed - len(steps))
        if steps:  # without steps it was killed while it wrote the first record
            expected[name] = steps[-1]
    found = last_steps_of_data_server(logdir, expected)
    wrong += [name for name, step in expected.items() if found.get(name) != step]
    result = (
        f"{times - len(wrong)} read completely by Run and both loaders; records passed to the recorder and not yet "
        f"written: at most {max(unwritten)}"
    )
    return Row(f"kill -9 at {times} random moments", result, not wrong)


def fill_disk(mount: pathlib.Path) -> Row:
    """Record on a tmpfs of 512 KiB that fills up, and free space on it."""
    test = "a disk (tmpfs of 512 KiB) that fills up and then has space again"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", mount], capture_output=True).returncode:
        return Row(test, "skipped: mounting is not permitted here", True)
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
            full_at = n
            lost = recorder.lost
            ballast.unlink()
            time.sleep(1.1)
            for _ in range(20):
                recorder.write(n, reading, {"loss": 1.0})
                recorder._wait()
                n += 1
        run = tapescope.Run(mount / "run")
        passed = lost == recorder.lost and len(run.steps) == n - lost == len(loaded_steps(mount / "run"))
        passed = passed and run.status["lost"] == lost and run.steps[-1] == n - 1
        result = f"{full_at - lost} written, {lost} lost and counted, then 20 more; training continued"
        return Row(test, result, passed)
    finally:
        subprocess.run(["umount", mount], check=False)


def cut_file(directory: pathlib.Path, every: int) -> Row:
    """Cut the file of a short run at every byte, and read it."""
    probe, step = eager_steps()
    with tapescope.Recorder(directory / "whole", probe) as recorder:
        for n in range(3):
            recorder.write(n, step(n), {"loss": 1.0})
    (path,) = (directory / "whole").glob("*.tfevents.*")
    content = path.read_bytes()
    (directory / "cut").mkdir()
    before = 0
    wrong = 0
    lengths = range(0, len(content), every)
    for length in lengths:
        (directory / "cut" / path.name).write_bytes(content[:length])
        found = 0
        with contextlib.suppress(ValueError, KeyError):  # there is no record of a step yet
            steps = tapescope.Run(directory / "cut").steps
            found = len(steps)
            wrong += not np.array_equal(steps, np.arange(found))
        wrong += found < before
        before = found
    return Row(f"a file cut at {len(lengths)} places, read by Run", f"{wrong} read wrongly", not wrong and before == 3)


def main() -> None:
    """Print the rows of the table."""
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for name in ("killed", "mount", "cut"):
            (root / name).mkdir()
        rows = [kill(root / "killed", 5 if quick else 100)]  # first, because it forks
        rows.append(fill_disk(root / "mount"))
        rows.append(cut_file(root / "cut", 97 if quick else 1))
        rows += attacks.on_the_files(root)
    print_rows(rows)


if __name__ == "__main__":
    main()
