"""What the workers say to each other outside of TensorFlow: that they are there, agree, and are still alive.

TensorFlow waits for a missing worker for an hour, fails in many lines where flags differ, and needs ten seconds to see
that a worker is gone. Here every worker holds one TCP connection to the chief, over the chief's own port, which it
leaves to TensorFlow once all have come. Messages are lines of JSON. Only the standard library is needed.
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
"""How long workers wait for each other at the start, seconds."""
GOODBYE_S = 10.0
SILENCE_S = 30
"""After which a machine that answers no more counts as lost; a process that dies is seen at once."""


class Link:
    """The connections of one worker."""

    def __init__(self, cluster: Cluster, sockets: Mapping[int, socket.socket]):
        self.cluster = cluster
        self._sockets = dict(sockets)
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._on_loss: Callable[[str], None] | None = None
        self._loss: str | None = None
        self._ended = False

    def tell(self, **message: Any) -> None:
        """The chief to all workers, or a worker to the chief."""
        for to in self._sockets.values():
            _send(to, message)

    def hear(self, key: str, patience_s: float = 10 * PATIENCE_S) -> Any:
        """What the chief told under this key. Raises ValueError where it, or another worker, failed."""
        try:
            message = self._heard.get(timeout=patience_s)
        except queue.Empty:
            raise ValueError(f"{self.cluster.name(0)} said nothing for {patience_s:g} s: see what it does") from None
        if "error" in message:
            raise ValueError(message["error"])
        return message[key]

    def watch(self) -> None:
        """Starts to listen."""
        for index in self._sockets:
            thread = threading.Thread(target=self._listen, args=(index,), name=f"tapescope-link-{index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def on_loss(self, act: Callable[[str], None]) -> None:
        """`act` is called in another thread, with one line, when a worker is lost or has failed."""
        with self._lock:
            self._on_loss = act
        if self._loss:
            act(self._loss)

    def end(self, error: str | None = None) -> None:
        """Says good-bye: whoever is silent without is lost. With an `error` all the others end with it.

        The chief waits a little for the others to do so: TensorFlow's complain when it goes first.
        """
        if not self._ended:
            self._ended = True
            self.tell(**({"error": error} if error else {"bye": True}))
            for thread in self._threads if self.cluster.chief and not error else []:
                thread.join(GOODBYE_S)
            self._close()

    def _close(self) -> None:
        self._ended = True
        for one in self._sockets.values():
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _listen(self, index: int) -> None:
        with contextlib.suppress(OSError, ValueError), self._sockets[index].makefile("r", encoding="utf-8") as lines:
            for line in lines:
                message = json.loads(line)
                if "bye" in message:
                    return
                if "error" in message or "lost" in message:
                    self._lose(index, message.get("error") or message["lost"], message)
                    return
                self._heard.put(message)
        self._lose(index, f"{self.cluster.name(index)} is lost", {"lost": f"{self.cluster.name(index)} is lost"})

    def _lose(self, index: int, line: str, message: dict[str, Any]) -> None:
        with self._lock:
            if self._ended or self._loss:
                return
            self._loss = line
            for other, to in self._sockets.items():  # the chief tells the rest
                if other != index:
                    _send(to, message)
        self._heard.put({"error": line})
        if self._on_loss:
            self._on_loss(line)


def join(cluster: Cluster, flags: Mapping[str, Any], patience_s: float = PATIENCE_S) -> Link:
    """Waits until all workers are there and have the same flags. Raises ValueError of one line, on every worker."""
    hello = {"index": cluster.index, "addresses": cluster.addresses, "flags": dict(flags)}
    hello = json.loads(json.dumps(hello))
    until = time.monotonic() + patience_s
    sockets = _gather(cluster, hello, until, patience_s) if cluster.chief else _reach(cluster, hello, until, patience_s)
    link = Link(cluster, sockets)
    link.watch()
    if cluster.chief:
        link.tell(joined=True)
    else:
        # The chief's patience may have begun later, by as much as ours.
        try:
            link.hear("joined", 2 * patience_s + 5)
        except ValueError:
            link._close()
            raise
    return link


def _gather(cluster: Cluster, hello: dict, until: float, patience_s: float) -> dict[int, socket.socket]:
    sockets: dict[int, socket.socket] = {}
    port = int(cluster.addresses[0].rpartition(":")[2])
    try:
        server = socket.create_server(("", port), backlog=len(cluster.addresses))
    except OSError as error:
        raise ValueError(f"{cluster.name(0)} cannot listen ({error.strerror}): give it a free port") from None
    with server:
        while len(sockets) < len(cluster.addresses) - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                other, _ = server.accept()
            except TimeoutError:
                missing = [cluster.name(i) for i in range(1, len(cluster.addresses)) if i not in sockets]
                wrong = f"{', '.join(missing)} did not come within {patience_s:g} s: see whether it was started"
                _refuse(sockets, wrong)
            other.settimeout(5)
            said = _hello(other)
            if said is None:
                other.close()
            else:
                _keep_alive(other)
                sockets[int(said["index"])] = other
                if wrong := _differs(cluster, hello, said):
                    _refuse(sockets, wrong)
    return sockets


def _reach(cluster: Cluster, hello: dict, until: float, patience_s: float) -> dict[int, socket.socket]:
    host, _, port = cluster.addresses[0].rpartition(":")
    while True:
        try:
            chief = socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, until - time.monotonic()))
            _keep_alive(chief)
            chief.sendall(f"{json.dumps(hello)}\n".encode())
            return {0: chief}
        except OSError as error:
            if time.monotonic() + 0.2 > until:
                why = error.strerror or error
                raise ValueError(
                    f"the chief, {cluster.name(0)}, cannot be reached within {patience_s:g} s ({why}): see whether it "
                    f"was started, and is named rightly"
                ) from None
            time.sleep(0.2)


def _differs(cluster: Cluster, mine: dict, other: dict) -> str | None:
    """One line on what a worker has otherwise than the chief."""
    who = f"worker {other['index']}"
    if other["addresses"] != mine["addresses"]:
        return (
            f"the list of workers is {mine['addresses']} on worker 0 and {other['addresses']} on {who}: give one list"
        )
    for name, value in mine["flags"].items():
        if other["flags"].get(name) != value:
            theirs = other["flags"].get(name)
            return f"--{name} is {value} on worker 0 and {theirs} on {who}: start all workers with the same flags"
    return None


def _hello(other: socket.socket) -> dict[str, Any] | None:
    """What a worker says first; None from a stranger."""
    try:
        with other.makefile("r", encoding="utf-8") as lines:
            said = json.loads(lines.readline())
        return said if {"index", "addresses", "flags"} <= said.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _refuse(sockets: Mapping[int, socket.socket], line: str) -> NoReturn:
    for other in sockets.values():
        _send(other, {"error": line})
        other.close()
    raise ValueError(line)


def _send(to: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who is not there any more is found by listening
        to.sendall(f"{json.dumps(message)}\n".encode())


def _keep_alive(of: socket.socket) -> None:
    of.settimeout(None)
    of.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", SILENCE_S // 3), ("TCP_KEEPINTVL", SILENCE_S // 6), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            of.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
