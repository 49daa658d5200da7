"""Attacks on tapescope-train: its flags, its directory, its data, its output, its workers. Each once cost a run."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
from bench.faults.row import Row, print_rows
from scripts.testbed.processes import Trainer, newest, until

import tapescope
from tapescope_trainers.distributed.cluster import Cluster
from tapescope_trainers.training import resume

FLAGS = ("--preset=mlp", "--depth=1", "--width=8", "--noprogress", "--measure_every=10", "--checkpoint_every=50")
ENDLESS = (*FLAGS, "--steps=100000000")


class Outcome(NamedTuple):
    """The end of a program."""

    code: int | None
    lines: list[str]

    def __str__(self) -> str:
        return f"exit code {self.code}, lines: {len(self.lines)}"


def _finish(logdir: pathlib.Path, *flags: str) -> Outcome:
    with Trainer(logdir, *FLAGS, *flags) as trainer:
        lines = trainer.wait()
        return Outcome(trainer.code, lines)


def _contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _refused(run: pathlib.Path, *flags: str) -> tuple[str, bool]:
    """Start a training that must be refused in one line and change nothing."""
    before = _contents(run)
    outcome = _finish(run, *flags)
    kept = _contents(run) == before
    return f"{outcome}, the run is {'kept' if kept else 'changed'}", kept and (outcome.code, len(outcome.lines)) == (
        2,
        1,
    )


def _continued(run: pathlib.Path, *flags: str) -> tuple[str, bool]:
    outcome = _finish(run, "--steps=150", *flags)
    steps = tapescope.Run(run).steps.tolist()
    return f"{outcome}, {len(steps)} records", outcome.code == 0 and steps == list(range(0, 150, 10))


def _live(run: pathlib.Path) -> tuple[str, bool]:
    with Trainer(run, *ENDLESS) as writer:
        until(writer, lambda: newest(run) > 150)
        outcome = _finish(run, "--steps=10", "--resume=never")
        until(writer, lambda: newest(run) > 1000)
        writer.send(signal.SIGTERM)
        writer.finish()
    steps = tapescope.Run(run).steps
    whole = np.array_equal(steps, np.arange(0, steps[-1] + 1, 10))
    return f"{outcome}; the other has {'all' if whole else 'not all'} records", outcome.code == 2 and whole


def _damaged_list(run: pathlib.Path) -> tuple[str, bool]:
    (run / "checkpoints" / "checkpoint").write_bytes(b"\xff\xfe")
    return _continued(run)


def _damaged_flags(run: pathlib.Path) -> tuple[str, bool]:
    (run / "checkpoints" / "flags.json").write_text("[" * 100_000)
    return _refused(run, "--steps=150")


def _linked(run: pathlib.Path) -> tuple[str, bool]:
    elsewhere = run.parent / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (run / "checkpoints").symlink_to(elsewhere)
    result, passed = _continued(run)
    return result, passed and resume.list_checkpoints(str(elsewhere))[-1] == 150


def _wildcards(run: pathlib.Path) -> tuple[str, bool]:
    odd = run.parent / "lr=[0.1] a*b? \\"
    shutil.copytree(run, odd)
    return _continued(odd)


def _output(run: pathlib.Path, redirection: str) -> tuple[str, bool]:
    logdir = run.parent / "output"
    flags = " ".join((*FLAGS, "--steps=150", f"--logdir={logdir}"))
    command = f"{sys.executable} -m tapescope_trainers.train {flags} {redirection}"
    done = subprocess.run(["bash", "-c", command], check=False)
    return f"exit code {done.returncode}", done.returncode == 0 and newest(logdir) == 150


def _data(run: pathlib.Path, change: Callable[[pathlib.Path], object]) -> tuple[str, bool]:
    path = run.parent / "data.npz"
    np.savez(path, x_train=np.zeros((640, 4), np.float32), y_train=np.arange(640) % 3)
    change(path)
    return _refused(run, "--resume=never", f"--data=npz:{path}")


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _huge_labels(path: pathlib.Path) -> None:
    np.savez(path, x_train=np.zeros((640, 4), np.float32), y_train=np.full(640, 2**31))


def _served(run: pathlib.Path) -> tuple[str, bool]:
    logdir = run.parent / "served"
    with Trainer(logdir, *ENDLESS, "--serve", real=True) as trainer:
        until(trainer, lambda: newest(logdir) > 50)
        trainer.send(signal.SIGKILL)
        trainer.wait()
    time.sleep(3)
    left = 0
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            left += f"--logdir={logdir}".encode() in (process / "cmdline").read_bytes()
    return f"{left} processes left", not left


def _addresses(count: int) -> tuple[str, ...]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(f"127.0.0.1:{s.getsockname()[1]}" for s in sockets)


def _worker(logdir: pathlib.Path, addresses: tuple[str, ...], index: int, *flags: str) -> Trainer:
    tf_config = Cluster(addresses, index).tf_config()
    return Trainer(logdir, "--strategy=multi_worker", *FLAGS, *flags, tf_config=tf_config)


def _strangers(run: pathlib.Path) -> tuple[str, bool]:
    addresses = _addresses(2)
    odd = {"index": 99, "addresses": addresses, "flags": [1]}
    with contextlib.ExitStack() as stack:
        logdir = run.parent / "workers"
        chief = stack.enter_context(_worker(logdir, addresses, 0, "--steps=100"))
        for content in (b"", b"[" * 100_000 + b"\n", f"{json.dumps(odd)}\n".encode(), b"x" * 10_000) * 25:
            connection = None
            while connection is None and chief.code is None:
                with contextlib.suppress(OSError):
                    host, _, port = addresses[0].rpartition(":")
                    connection = stack.enter_context(socket.create_connection((host, int(port))))
                    connection.sendall(content)
        other = stack.enter_context(_worker(logdir, addresses, 1, "--steps=100"))
        chief.wait()
        other.wait()
        return f"exit codes {chief.code} and {other.code}", chief.code == other.code == 0


def _one_index_twice(run: pathlib.Path) -> tuple[str, bool]:
    addresses = _addresses(3)
    with contextlib.ExitStack() as stack:
        trainers = [stack.enter_context(_worker(run, addresses, index, "--resume=never")) for index in (0, 1, 1)]
        lines = [trainer.wait() for trainer in trainers]
        named = all(len(one) == 1 and "two workers have the index 1" in one[0] for one in lines)
        codes = [trainer.code for trainer in trainers]
    return f"exit codes {codes}, {'named' if named else lines}", named and codes == [2, 2, 2]


def _terminated(run: pathlib.Path) -> tuple[str, bool]:
    with _worker(run, _addresses(2), 0, "--resume=never") as chief:
        time.sleep(5)
        chief.send(signal.SIGTERM)
        start = time.monotonic()
        chief.wait()
        seconds = time.monotonic() - start
        return f"exit code {chief.code} after {seconds:.0f} s", chief.code == 0 and seconds < 5


def _hangs(run: pathlib.Path) -> tuple[str, bool]:
    logdir = run.parent / "hang"
    addresses = _addresses(2)
    with (
        _worker(logdir, addresses, 0, "--steps=100000000") as chief,
        _worker(logdir, addresses, 1, "--steps=100000000") as other,
    ):
        until(chief, lambda: newest(logdir) > 50)
        other.send(signal.SIGSTOP)
        start = time.monotonic()
        lines = chief.wait()
        seconds = time.monotonic() - start
        named = f"worker 1 ({addresses[1]}) is lost" in lines[-1]
        return f"exit code {chief.code} after {seconds:.0f} s", named and chief.code == 3 and seconds < 60


ATTACKS: dict[str, Callable[[pathlib.Path], tuple[str, bool]]] = {
    "--resume=never with a batch that is too large": lambda run: _refused(run, "--resume=never", "--batch_size=100000"),
    "--resume=never on a run that another training writes": _live,
    "TensorFlow's list of checkpoints is damaged": _damaged_list,
    "flags.json is nested 100,000 deep": _damaged_flags,
    "the folder of checkpoints is a link": _linked,
    "wildcards and a backslash in --logdir": _wildcards,
    "a data file that is cut": lambda run: _data(run, _cut),
    "labels of 2^31": lambda run: _data(run, _huge_labels),
    "stderr on a full disk": lambda run: _output(run, "2>/dev/full"),
    "stdout and stderr closed": lambda run: _output(run, ">&- 2>&-"),
    "SIGKILL of a training with --serve": _served,
    "100 strangers at the chief's port": _strangers,
    "two workers with one index": _one_index_twice,
    "SIGTERM while a worker waits": _terminated,
    "a worker that is stopped by SIGSTOP": _hangs,
}


def main() -> None:
    """Print the rows of the table."""
    for test, attack in ATTACKS.items():
        with tempfile.TemporaryDirectory() as temporary:
            run = pathlib.Path(temporary) / "run"
            _finish(run, "--steps=100")
            try:
                result, passed = attack(run)
            except Exception as error:  # an attack that succeeds
                result, passed = f"{type(error).__name__}: {error}", False
            print_rows([Row(test, result, passed)])


if __name__ == "__main__":
    main()
