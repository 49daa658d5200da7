"""Trainers in processes: real ones, or forked from one that has imported TensorFlow, which takes seconds.

None outlives the tests: whoever starts a process ends it, and the kernel ends forked ones with their server, which ends
with the tests. Nothing is waited for longer than PATIENCE_S, which is long because a machine may be busy.
"""

import contextlib
import ctypes
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import tensorflow as tf

from tapescope_trainers.distributed.cluster import Cluster
from tapescope_trainers.training import resume

PATIENCE_S = 600.0
TENSORFLOW_LINE = re.compile(r"WARNING: All log|[IWE]\d{4} ")
"""The beginning of a log line of TensorFlow's C++ code."""
_PR_SET_PDEATHSIG = 1  # of Linux: the signal to send when the parent ends
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tapescope_trainers.train", "tapescope_trainers.training.loop", "sklearn.datasets"])


class Trainer:
    """A running `tapescope-train`; a context manager that ends it."""

    def __init__(self, logdir: Path, *arguments: str, tf_config: str = "", real: bool = False):
        self._temporary = tempfile.mkdtemp(prefix="tapescope-trainer-")  # its own: an ended process removes nothing
        self._stderr = os.path.join(self._temporary, "stderr")
        Path(self._stderr).touch()
        argv = [f"--logdir={logdir}", *arguments]
        environment = {"TMPDIR": self._temporary} | ({"TF_CONFIG": tf_config} if tf_config else {})
        self._process: subprocess.Popen | BaseProcess
        if real:
            command = [sys.executable, "-m", "tapescope_trainers.train", *argv]
            with open(self._stderr, "w") as file:
                self._process = subprocess.Popen(
                    command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=file
                )
        else:
            self._process = _forks.Process(target=_main, args=(argv, environment, self._stderr), daemon=True)
            self._process.start()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.send(signal.SIGKILL)
        self.wait(30)
        shutil.rmtree(self._temporary, ignore_errors=True)  # a TensorBoard of its own may still end

    @property
    def code(self) -> int | None:
        """The exit code, -N if signal N ended the process; None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        return self._process.exitcode

    @property
    def output(self) -> str:
        """The text on stderr so far, without TensorFlow's log lines."""
        lines = Path(self._stderr).read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not TENSORFLOW_LINE.match(line))

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.code is None and self._process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def wait(self, seconds: float = PATIENCE_S) -> list[str]:
        """Wait for the end and return the lines of `output`."""
        if isinstance(self._process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        else:
            self._process.join(seconds)
        assert self.code is not None, f"it still runs after {seconds:g} s; its output: {self.output}"
        return self.output.splitlines()

    def finish(self) -> list[str]:
        """Wait for the end, require exit code 0, and return the lines of `output`."""
        lines = self.wait()
        assert self.code == 0, lines
        return lines


def _main(argv: list[str], environment: dict[str, str], stderr: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # which was found before the fork: find TMPDIR
    from tapescope_trainers import train

    train.main(["tapescope-train", *argv])


@contextlib.contextmanager
def workers(logdir: Path, addresses: Sequence[str], *arguments: str, real: bool = False) -> Iterator[list[Trainer]]:
    """Run a worker for each address; all of them are ended with the block."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Trainer(
                    logdir,
                    "--strategy=multi_worker",
                    *arguments,
                    tf_config=Cluster(tuple(addresses), index).tf_config(),
                    real=real,
                )
            )
            for index in range(len(addresses))
        ]


def until(trainer: Trainer, condition: Callable[[], bool]) -> None:
    """Wait for a condition while the trainer runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert trainer.code is None, trainer.wait()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def newest(logdir: Path) -> int:
    """Return the number of steps in the newest checkpoint; -1 if there is none."""
    path = tf.train.latest_checkpoint(resume.checkpoint_directory(str(logdir)))
    return int(path.rpartition("-")[2]) if path else -1


def variables(logdir: Path) -> dict[str, np.ndarray]:
    """Return the variables in the newest checkpoint by name: weights, the optimizer's, states of random generators.

    The number of saves is left out.
    """
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(resume.checkpoint_directory(str(logdir))))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}
