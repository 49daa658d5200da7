"""TensorBoard as a child process, for as long as a `with` block lasts."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator


@contextlib.contextmanager
def tensorboard(logdir: str, port: int = 0) -> Iterator[str]:
    """Starts TensorBoard over `logdir` and gives its address. Raises ValueError where `port` is taken."""
    port = _free(port)
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", f"--port={port}"]
    # A session of its own: Ctrl-C is for the training, which still has to write its last records.
    child = subprocess.Popen(
        [*command, "--reload_interval=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        if child.poll() not in (None, 0):
            print(f"TensorBoard ended early, code {child.returncode}; see why: {' '.join(command)}", file=sys.stderr)
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stay(address: str, names: list[str]) -> None:
    """In a terminal: waits until a signal's name is in `names`, so that one can go on looking."""
    if sys.stdin.isatty() and not names:
        print(f"TensorBoard goes on at {address}; Ctrl-C ends it", file=sys.stderr, flush=True)
        while not names:
            time.sleep(0.2)


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"--port={port} cannot be used ({error.strerror}): leave it out to take a free one"
            ) from None
        return probe.getsockname()[1]
