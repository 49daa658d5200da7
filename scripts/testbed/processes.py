"""Trainers in processes of their own: real ones, or forked from one that has imported TensorFlow, which takes seconds.

None is left behind: who starts some ends them, and forked ones are ended by the kernel with the server that they come
from, which ends with the tests however these end. Nothing is waited for longer than PATIENCE_S: much, for a machine may
be busy.
"""

import contextlib
import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tapescope_trainers.distributed.cluster import Cluster
from tapescope_trainers.training import resume

PATIENCE_S = 600.0
TENSORFLOWS_OWN = re.compile(r"WARNING: All log|[IWE]\d{4} ")
_PR_SET_PDEATHSIG = 1  # of Linux: which signal comes when the parent ends
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tapescope_trainers.train", "tapescope_trainers.training.loop", "sklearn.datasets"])


class Trainer:
    """A `tapescope-train` that runs; a context manager that ends it."""

    def __init__(self, logdir: Path, *arguments: str, tf_config: str = "", real: bool = False):
        descriptor, self._said = tempfile.mkstemp(prefix="tapescope-said-")
        os.close(descriptor)
        argv, environment = [f"--logdir={logdir}", *arguments], {"TF_CONFIG": tf_config} if tf_config else {}
        self._fork = self._real = None
        if real:
            command = [sys.executable, "-m", "tapescope_trainers.train", *argv]
            with open(self._said, "w") as file:
                self._real = subprocess.Popen(
                    command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=file
                )
        else:
            self._fork = _forks.Process(target=_main, args=(argv, environment, self._said), daemon=True)
            self._fork.start()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.send(signal.SIGKILL)
        self.wait(30)
        os.unlink(self._said)

    @property
    def code(self) -> int | None:
        """Its exit code, -N where signal N ended it; None while it runs."""
        return self._real.poll() if self._real else self._fork.exitcode

    def send(self, number: int) -> None:
        """A signal; nothing where it has ended."""
        process = self._real or self._fork
        if self.code is None and process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def wait(self, seconds: float = PATIENCE_S) -> list[str]:
        """Until it has ended; what it said, without TensorFlow's lines."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._real.wait(seconds) if self._real else self._fork.join(seconds)
        said = Path(self._said).read_text()
        assert self.code is not None, f"it still runs after {seconds:g} s, and said: {said}"
        return [line for line in said.splitlines() if not TENSORFLOWS_OWN.match(line)]

    def finish(self) -> list[str]:
        """The same, where all went well."""
        said = self.wait()
        assert self.code == 0, said
        return said


def _main(argv: list[str], environment: dict[str, str], said: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.update(environment)
    from tapescope_trainers import train

    train.main(["tapescope-train", *argv])


@contextlib.contextmanager
def workers(logdir: Path, where: Sequence[str], *arguments: str, real: bool = False) -> Iterator[list[Trainer]]:
    """One for each address; all are gone at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Trainer(
                    logdir,
                    "--strategy=multi_worker",
                    *arguments,
                    tf_config=Cluster(tuple(where), index).tf_config(),
                    real=real,
                )
            )
            for index in range(len(where))
        ]


def until(trainer: Trainer, condition: Callable[[], bool]) -> None:
    """Waits while it runs."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert trainer.code is None, trainer.wait()
        assert time.monotonic() < end
        time.sleep(0.02)


def newest(logdir: Path) -> int:
    """Steps in the newest checkpoint; -1 without one."""
    path = tf.train.latest_checkpoint(resume.checkpoint_directory(str(logdir)))
    return int(path.rpartition("-")[2]) if path else -1


def variables(logdir: Path) -> dict[str, np.ndarray]:
    """All in the newest checkpoint but the number of saves: weights, the optimizer's, states of random generators."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(resume.checkpoint_directory(str(logdir))))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}
