"""Ctrl-C and SIGTERM as a request, not a crash: the program ends where it can write what it knows."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def caught(into: list[str] | None = None) -> Iterator[list[str]]:
    """Collects SIGINT and SIGTERM as names in a list, for the program to end when it can; a second ends it at once."""
    names: list[str] = [] if into is None else into

    def catch(number: int, frame: object) -> None:
        if names:
            raise KeyboardInterrupt
        names.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # where Python gives no signals
        yield names
        return
    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield names
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
