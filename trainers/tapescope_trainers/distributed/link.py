"""Connections between the workers outside TensorFlow: all are present, have the same flags, and are still alive.

TensorFlow waits an hour for a missing worker, in which no Python runs, fails with many lines if flags differ, and needs
ten seconds to notice a lost worker. Here every worker holds one TCP connection to the chief, which listens at its own
port and leaves it to TensorFlow once all have connected. Messages are lines of JSON. See
docs/decisions/0035-tensorflows-coordination-service.md.
"""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tapescope_trainers.distributed import rendezvous
from tapescope_trainers.distributed.cluster import Cluster
from tapescope_trainers.distributed.rendezvous import send_line

PATIENCE_S = 60.0
"""How long workers wait for each other at the start, in seconds."""
GOODBYE_S = 10.0
"""How long the chief waits for the others at the end, in seconds."""
LINE_BYTES = 1 << 20
"""Longest message."""
SILENCE_S = 30
"""Seconds until a machine that does not answer counts as lost; a process that ends is noticed at once."""


class Link:
    """The connections of one worker."""

    def __init__(self, cluster: Cluster, sockets: Mapping[int, socket.socket]):
        self.cluster = cluster
        self._sockets = dict(sockets)
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._on_loss: Callable[[str], None] | None = None
        self._loss: str | None = None
        self._ended = False

    def send(self, **message: Any) -> None:
        """Send a message from the chief to all workers, or from a worker to the chief."""
        for connection in self._sockets.values():
            send_line(connection, message)

    def receive(self, key: str, patience_s: float = 10 * PATIENCE_S) -> Any:
        """Return the value of `key` in the chief's next message.

        Raises:
            ValueError: The chief or another worker failed, or sent nothing for `patience_s` seconds.
        """
        try:
            message = self._inbox.get(timeout=patience_s)
        except queue.Empty:
            raise ValueError(f"no message from {self.cluster.name(0)} for {patience_s:g} s: check its log") from None
        if "error" in message:
            raise ValueError(message["error"])
        return message[key]

    def wait_for_all(self) -> None:
        """Return when every worker has called this.

        Raises:
            ValueError: A worker failed before, or is lost.
        """
        if self.cluster.chief:
            for _ in self._sockets:
                self.receive("ready")
            self.send(go=True)
        else:
            self.send(ready=True)
            self.receive("go")

    def start(self) -> None:
        """Start a thread for each connection that receives messages."""
        for index in self._sockets:
            thread = threading.Thread(target=self._listen, args=(index,), name=f"tapescope-link-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def loss(self, patience_s: float = 2) -> str | None:
        """Return one line on the worker that was lost or has failed, waiting a little for it; None if there is none."""
        deadline = time.monotonic() + patience_s
        while not self._loss and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._loss

    def on_loss(self, callback: Callable[[str], None]) -> None:
        """Call `callback` with one line, in another thread, when a worker is lost or has failed."""
        with self._lock:
            self._on_loss = callback
        if self._loss:
            callback(self._loss)

    def end(self, error: str | None = None) -> None:
        """End the connections; a worker that goes without this counts as lost. With an `error` all others end too.

        The chief waits a little for the others, because their TensorFlow reports errors if it goes first.
        """
        if self._ended:
            return
        self._ended = True
        if error:
            self.send(error=error)
        else:
            self.send(bye=True)
            if self.cluster.chief:
                for thread in self._threads:
                    thread.join(GOODBYE_S)
        self._close()

    def _close(self) -> None:
        self._ended = True
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _listen(self, index: int) -> None:
        # Whatever else than a message comes, or a failure of the connection, is the loss of the worker.
        with contextlib.suppress(Exception), self._sockets[index].makefile("rb") as lines:
            for line in iter(lambda: lines.readline(LINE_BYTES), b""):
                message = json.loads(line)
                if "bye" in message:
                    return
                if "error" in message or "lost" in message:
                    self._report_loss(index, str(message.get("error") or message["lost"]), message)
                    return
                self._inbox.put(message)
        lost = f"{self.cluster.name(index)} is lost"
        self._report_loss(index, lost, {"lost": lost})

    def _report_loss(self, index: int, line: str, message: dict[str, Any]) -> None:
        with self._lock:
            if self._ended or self._loss:
                return
            self._loss = line
            for other, connection in self._sockets.items():  # the chief passes it on to the other workers
                if other != index:
                    send_line(connection, message)
        self._inbox.put({"error": line})
        if self._on_loss:
            self._on_loss(line)


def join(cluster: Cluster, flags: Mapping[str, Any], patience_s: float = PATIENCE_S) -> Link:
    """Connect to the other workers and compare flags.

    Args:
        cluster: The workers.
        flags: Flags that must be equal on all workers.
        patience_s: How long to wait for the others, in seconds.

    Raises:
        ValueError: A worker is missing or has other flags. Every worker raises it, with one line.
    """
    greeting = rendezvous.make_greeting(cluster, flags)
    if cluster.chief:
        sockets = rendezvous.accept_workers(cluster, greeting, patience_s)
    else:
        sockets = {0: rendezvous.connect_to_chief(cluster, greeting, patience_s)}
    for connection in sockets.values():
        _keep_alive(connection)
    link = Link(cluster, sockets)
    link.start()
    try:
        if cluster.chief:
            link.send(joined=True)
        else:
            # The chief may have started up to `patience_s` later than this worker.
            link.receive("joined", 2 * patience_s + 5)
    except BaseException:
        link._close()
        raise
    return link


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel probe an idle connection, so that it fails within about SILENCE_S seconds."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", SILENCE_S // 3), ("TCP_KEEPINTVL", SILENCE_S // 6), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
