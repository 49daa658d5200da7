"""Connections between the workers outside TensorFlow: all are present, have the same flags, and are still alive.

TensorFlow waits an hour for a missing worker, fails with many lines if flags differ, and needs ten seconds to notice a
lost worker. Here every worker holds one TCP connection to the chief. The chief listens on its own port, which it leaves
to TensorFlow once all workers have connected. Messages are lines of JSON.
"""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tapescope_trainers.distributed.cluster import Cluster

PATIENCE_S = 60.0
"""How long workers wait for each other at the start, in seconds."""
GOODBYE_S = 10.0
"""How long the chief waits for the others at the end, in seconds."""
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
            _send(connection, message)

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

    def start(self) -> None:
        """Start a thread for each connection that receives messages."""
        for index in self._sockets:
            thread = threading.Thread(target=self._listen, args=(index,), name=f"tapescope-link-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

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
        with contextlib.suppress(OSError, ValueError), self._sockets[index].makefile("r", encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                if "bye" in message:
                    return
                if "error" in message or "lost" in message:
                    self._report_loss(index, message.get("error") or message["lost"], message)
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
                    _send(connection, message)
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
    greeting = {"index": cluster.index, "addresses": cluster.addresses, "flags": dict(flags)}
    greeting = json.loads(json.dumps(greeting))
    deadline = time.monotonic() + patience_s
    if cluster.chief:
        sockets = _accept_workers(cluster, greeting, deadline, patience_s)
    else:
        sockets = _connect_to_chief(cluster, greeting, deadline, patience_s)
    link = Link(cluster, sockets)
    link.start()
    if cluster.chief:
        link.send(joined=True)
    else:
        try:
            # The chief may have started up to `patience_s` later than this worker.
            link.receive("joined", 2 * patience_s + 5)
        except ValueError:
            link._close()
            raise
    return link


def _accept_workers(cluster: Cluster, greeting: dict, deadline: float, patience_s: float) -> dict[int, socket.socket]:
    sockets: dict[int, socket.socket] = {}
    port = int(cluster.addresses[0].rpartition(":")[2])
    try:
        server = socket.create_server(("", port), backlog=len(cluster.addresses))
    except OSError as error:
        raise ValueError(f"{cluster.name(0)} cannot listen ({error.strerror}): use a free port") from None
    with server:
        while len(sockets) < len(cluster.addresses) - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [cluster.name(i) for i in range(1, len(cluster.addresses)) if i not in sockets]
                _refuse(sockets, f"no connection from {', '.join(missing)} within {patience_s:g} s: was it started?")
            connection.settimeout(5)
            theirs = _read_greeting(connection)
            if theirs is None:
                connection.close()
                continue
            _keep_alive(connection)
            sockets[int(theirs["index"])] = connection
            if difference := _difference(greeting, theirs):
                _refuse(sockets, difference)
    return sockets


def _connect_to_chief(cluster: Cluster, greeting: dict, deadline: float, patience_s: float) -> dict[int, socket.socket]:
    host, _, port = cluster.addresses[0].rpartition(":")
    while True:
        try:
            timeout = max(0.1, deadline - time.monotonic())
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
            _keep_alive(connection)
            connection.sendall(f"{json.dumps(greeting)}\n".encode())
            return {0: connection}
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise ValueError(
                    f"the chief, {cluster.name(0)}, cannot be reached within {patience_s:g} s "
                    f"({error.strerror or error}): was it started, and is its address right?"
                ) from None
            time.sleep(0.2)


def _difference(chiefs: dict, theirs: dict) -> str | None:
    """Return one line on how a worker's greeting differs from the chief's, or None."""
    worker = f"worker {theirs['index']}"
    if theirs["addresses"] != chiefs["addresses"]:
        return (
            f"the list of workers is {chiefs['addresses']} on worker 0 and {theirs['addresses']} on {worker}: "
            f"use the same list"
        )
    for name, value in chiefs["flags"].items():
        other = theirs["flags"].get(name)
        if other != value:
            return f"--{name} is {value} on worker 0 and {other} on {worker}: start all workers with the same flags"
    return None


def _read_greeting(connection: socket.socket) -> dict[str, Any] | None:
    """Return a worker's first message; None if the client is not a worker."""
    try:
        with connection.makefile("r", encoding="utf-8") as lines:
            greeting = json.loads(lines.readline())
        return greeting if {"index", "addresses", "flags"} <= greeting.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _refuse(sockets: Mapping[int, socket.socket], line: str) -> NoReturn:
    """Send the error to all workers that have connected, and raise it."""
    for connection in sockets.values():
        _send(connection, {"error": line})
        connection.close()
    raise ValueError(line)


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the listening thread notices a lost worker
        connection.sendall(f"{json.dumps(message)}\n".encode())


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel probe an idle connection, so that it fails within about SILENCE_S seconds."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", SILENCE_S // 3), ("TCP_KEEPINTVL", SILENCE_S // 6), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
