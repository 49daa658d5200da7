"""SIGINT, SIGTERM and SIGHUP as requests to stop, so that the program can first write its last records."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

SIGHUP = getattr(signal, "SIGHUP", None)
"""None on Windows."""
SIGNALS = [number for number in (signal.SIGINT, signal.SIGTERM, SIGHUP) if number is not None]


class Stopped(Exception):
    """The first signal, raised where nothing is to be saved."""


_raising: list[bool] = []


@contextlib.contextmanager
def stoppable(received: Sequence[str]) -> Iterator[None]:
    """Raise Stopped at the first signal inside the block, and at once if it came before.

    Args:
        received: The list that `catch` yielded.
    """
    _raising.append(True)
    try:
        if received:
            raise Stopped(received[0])
        yield
    finally:
        _raising.pop()


@contextlib.contextmanager
def catch(received: list[str] | None = None) -> Iterator[list[str]]:
    """Append the names of signals to a list; raise KeyboardInterrupt at the second signal.

    A terminal that is closed may send SIGHUP twice, so it is never the second. One that is ignored, as under `nohup`,
    stays ignored.

    Args:
        received: The list to append to; by default a new one.

    Yields:
        The list. Outside the main thread it stays empty, because Python delivers signals to that thread only.
    """
    names: list[str] = [] if received is None else received

    def handle(number: int, frame: object) -> None:
        if names and number == SIGHUP:
            return
        if names:
            raise KeyboardInterrupt
        names.append(signal.Signals(number).name)
        if _raising:
            raise Stopped(names[0])

    if threading.current_thread() is not threading.main_thread():
        yield names
        return
    heeded = [number for number in SIGNALS if number != SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield names
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def take_back() -> None:
    """Install the handlers again, because TensorFlow's servers take SIGTERM for themselves."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.getsignal(number))
