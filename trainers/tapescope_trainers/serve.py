"""TensorBoard as a child process, which lives as long as a `with` block."""

import contextlib
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

_PROGRAM = """
import os, runpy, sys, threading

def end_with_parent():
    sys.stdin.buffer.read()
    os._exit(0)

threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv[0] = "tensorboard"
runpy.run_module("tensorboard.main", run_name="__main__", alter_sys=True)
"""
"""TensorBoard, which ends when its stdin does: the kernel closes that pipe also if the parent is killed."""


@contextlib.contextmanager
def tensorboard(logdir: str, port: int = 0) -> Iterator[str]:
    """Run TensorBoard over `logdir` and yield its address.

    Args:
        logdir: Directory of the runs.
        port: TCP port; 0 chooses a free one.

    Raises:
        ValueError: The port is in use.
    """
    port = _free_port(port)
    arguments = [f"--logdir={logdir}", "--host=127.0.0.1", f"--port={port}"]
    # In a session of its own: Ctrl-C is meant for the training, which still has to write its last records.
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments, "--reload_interval=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        if child.poll() not in (None, 0):
            command = shlex.join([sys.executable, "-m", "tensorboard.main", *arguments])
            print(
                f"TensorBoard ended early with exit code {child.returncode}. To see why, run: {command}",
                file=sys.stderr,
            )
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for_signal(address: str, received: list[str]) -> None:
    """Keep TensorBoard up until a signal's name is in `received`; return at once if stdin is not a terminal."""
    if sys.stdin.isatty() and not received:
        print(f"TensorBoard is still at {address}. Press Ctrl-C to end it.", file=sys.stderr, flush=True)
        while not received:
            time.sleep(0.2)


def _free_port(port: int) -> int:
    """Return `port`, or a free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"--port={port} cannot be used ({error.strerror}): leave it out to use a free one"
            ) from None
        return probe.getsockname()[1]
