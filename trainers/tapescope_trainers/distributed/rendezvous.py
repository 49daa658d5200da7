"""The arrival of the workers: each connects to the chief and sends a greeting with its index, addresses and flags.

Whoever else connects to the chief's port is a stranger: it is ignored, costs no worker any time, and can send no more
than GREETING_BYTES within GREETING_S.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from tapescope_trainers.distributed.cluster import Cluster

GREETING_BYTES = 1 << 20
"""Longest greeting."""
GREETING_S = 5.0
"""Longest time from a connection to the end of its greeting, in seconds."""
STRANGERS = 100
"""Number of connections without a greeting that are kept. The oldest is closed for a new one."""


class Greeting(NamedTuple):
    """The first message of a worker."""

    index: int
    addresses: list[str]
    flags: dict[str, Any]


class _Visitor(NamedTuple):
    """A connection that has not sent its greeting yet."""

    connection: socket.socket
    since: float
    received: bytearray


def make_greeting(cluster: Cluster, flags: Mapping[str, Any]) -> Greeting:
    """Return the greeting of this worker, with values as JSON has them."""
    return Greeting(cluster.index, list(cluster.addresses), json.loads(json.dumps(dict(flags))))


def send_line(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message as a line of JSON. A lost worker is noticed by who listens to it."""
    with contextlib.suppress(OSError):
        connection.sendall(f"{json.dumps(message)}\n".encode())


def accept_workers(cluster: Cluster, greeting: Greeting, patience_s: float) -> dict[int, socket.socket]:
    """Wait at the chief for the greetings of all other workers.

    Returns:
        By index, the connections.

    Raises:
        ValueError: A worker is missing, was started twice, or has other flags. All that came are told.
    """
    deadline = time.monotonic() + patience_s
    sockets: dict[int, socket.socket] = {}
    visitors: list[_Visitor] = []
    with _listen(cluster) as server, selectors.DefaultSelector() as selector:
        try:
            selector.register(server, selectors.EVENT_READ)
            while len(sockets) < len(cluster.addresses) - 1 or _forget_closed(sockets):
                now = time.monotonic()
                for visitor in [v for v in visitors if now - v.since > GREETING_S]:
                    _dismiss(visitor, visitors, selector)
                if now >= deadline:
                    missing = [cluster.name(i) for i in range(1, len(cluster.addresses)) if i not in sockets]
                    _refuse(
                        sockets, f"no connection from {', '.join(missing)} within {patience_s:g} s: was it started?"
                    )
                for key, _ in selector.select(min(0.5, deadline - now)):
                    if key.data is None:
                        _admit(server, visitors, selector)
                    elif (theirs := _read_greeting(key.data, visitors, selector)) is not None:
                        _add_worker(cluster, greeting, theirs, key.data.connection, sockets)
        except BaseException as error:
            for connection in sockets.values():
                send_line(connection, {"error": f"{cluster.name(0)} ended: {type(error).__name__} {error}"})
                connection.close()
            raise
        finally:
            for visitor in visitors:
                visitor.connection.close()
    return sockets


def connect_to_chief(cluster: Cluster, greeting: Greeting, patience_s: float) -> socket.socket:
    """Connect to the chief and send the greeting.

    Raises:
        ValueError: The chief cannot be reached.
    """
    host, _, port = cluster.addresses[0].rpartition(":")
    deadline = time.monotonic() + patience_s
    while True:
        try:
            timeout = max(0.1, deadline - time.monotonic())
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout)
            connection.sendall(f"{json.dumps(greeting._asdict())}\n".encode())
            return connection
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise ValueError(
                    f"the chief, {cluster.name(0)}, cannot be reached within {patience_s:g} s "
                    f"({error.strerror or error}): was it started, and is its address right?"
                ) from None
            time.sleep(0.2)


def _listen(cluster: Cluster) -> socket.socket:
    """Return the chief's socket. It takes connections over IPv4, and over IPv6 where the machine has both."""
    port = int(cluster.addresses[0].rpartition(":")[2])
    backlog = len(cluster.addresses) + STRANGERS
    try:
        with contextlib.suppress(OSError, ValueError):  # no IPv6 here; a port in use is found again below
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=backlog)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{cluster.name(0)} cannot listen ({reason}): use a free port") from None


def _admit(server: socket.socket, visitors: list[_Visitor], selector: selectors.BaseSelector) -> None:
    try:
        connection, _ = server.accept()
    except OSError:  # it has gone already
        return
    connection.setblocking(False)
    visitors.append(_Visitor(connection, time.monotonic(), bytearray()))
    selector.register(connection, selectors.EVENT_READ, visitors[-1])
    if len(visitors) > STRANGERS:
        _dismiss(visitors[0], visitors, selector)


def _dismiss(visitor: _Visitor, visitors: list[_Visitor], selector: selectors.BaseSelector) -> None:
    visitors[:] = [v for v in visitors if v.connection is not visitor.connection]
    selector.unregister(visitor.connection)
    visitor.connection.close()


def _read_greeting(visitor: _Visitor, visitors: list[_Visitor], selector: selectors.BaseSelector) -> Greeting | None:
    """Return a worker's greeting; None if it is not complete yet, or if the client is not a worker."""
    if visitor.connection.fileno() < 0:  # dismissed for another
        return None
    try:
        received = visitor.connection.recv(1 << 16)
    except BlockingIOError:
        return None
    except OSError:
        received = b""
    visitor.received.extend(received)
    line, newline, rest = visitor.received.partition(b"\n")
    if received and not newline and len(visitor.received) <= GREETING_BYTES:
        return None
    greeting = _parse(bytes(line)) if newline and not rest else None
    if greeting is None:
        _dismiss(visitor, visitors, selector)
        return None
    selector.unregister(visitor.connection)
    visitors[:] = [v for v in visitors if v.connection is not visitor.connection]
    return greeting


def _parse(line: bytes) -> Greeting | None:
    """Return the greeting in a line; None if it is anything else."""
    try:
        fields = json.loads(line)
        greeting = Greeting(fields["index"], fields["addresses"], fields["flags"])
        addresses = isinstance(greeting.addresses, list) and all(isinstance(a, str) for a in greeting.addresses)
        if type(greeting.index) is int and addresses and isinstance(greeting.flags, dict):
            return greeting if 0 <= greeting.index < len(greeting.addresses) else None
    except Exception:  # the boundary of a connection: whatever else comes is not a greeting
        return None
    return None


def _add_worker(
    cluster: Cluster,
    greeting: Greeting,
    theirs: Greeting,
    connection: socket.socket,
    sockets: dict[int, socket.socket],
) -> None:
    """Add a worker, or refuse all if it does not fit."""
    connection.settimeout(GREETING_S)
    _forget_closed(sockets)  # a worker that was started again
    before = sockets.get(theirs.index)
    if difference := _difference(greeting, theirs):
        _refuse({**sockets, theirs.index: connection, -1: before or connection}, difference)
    if before is not None or not theirs.index:
        line = f"two workers have the index {theirs.index} of {cluster.name(theirs.index)}: give each its own"
        _refuse({**sockets, -1: connection}, line)
    sockets[theirs.index] = connection


def _forget_closed(sockets: dict[int, socket.socket]) -> bool:
    """Remove the workers that have gone since their greeting; return whether there were any."""
    gone = [index for index, connection in sockets.items() if _is_closed(connection)]
    for index in gone:
        sockets.pop(index).close()
    return bool(gone)


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed a connection, on which it has sent nothing else."""
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(GREETING_S)


def _difference(chiefs: Greeting, theirs: Greeting) -> str | None:
    """Return one line on how a worker's greeting differs from the chief's, or None."""
    worker = f"worker {theirs.index}"
    if theirs.addresses != chiefs.addresses:
        return (
            f"the list of workers is {chiefs.addresses} on worker 0 and {theirs.addresses} on {worker}: "
            f"use the same list"
        )
    for name in sorted({*chiefs.flags, *theirs.flags}):
        value = chiefs.flags.get(name)
        other = theirs.flags.get(name)
        if other != value:
            return f"--{name} is {value} on worker 0 and {other} on {worker}: start all workers with the same flags"
    return None


def _refuse(sockets: Mapping[int, socket.socket], line: str) -> NoReturn:
    """Send the error to all workers that have connected, and raise it."""
    for connection in sockets.values():
        send_line(connection, {"error": line})
        connection.close()
    raise ValueError(line)
