"""TensorBoard as a child process, which lives as long as a `with` block."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator


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
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={logdir}", "--host=127.0.0.1", f"--port={port}"]
    # In a session of its own: Ctrl-C is meant for the training, which still has to write its last records.
    child = subprocess.Popen(
        [*command, "--reload_interval=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        if child.poll() not in (None, 0):
            print(
                f"TensorBoard ended early with exit code {child.returncode}. To see why, run: {' '.join(command)}",
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
