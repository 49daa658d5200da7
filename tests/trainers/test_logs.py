"""Output of the trainers that cannot be written."""

import io
import sys

import pytest

from tapescope_trainers import logs


class Full(io.TextIOWrapper):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    flush = close = lambda self: None


@pytest.fixture
def streams(monkeypatch):
    """Let a test replace the standard streams."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    return monkeypatch


def test_a_full_disk_drops_what_is_printed(streams):
    streams.setattr(sys, "stderr", Full(io.BytesIO()))
    logs.protect_streams()
    print("lost", file=sys.stderr, flush=True)


def test_a_closed_stream_drops_what_is_printed(streams):
    stream = io.TextIOWrapper(io.BytesIO())
    streams.setattr(sys, "stdout", stream)
    logs.protect_streams()
    stream.close()
    print("lost", flush=True)


def test_a_terminal_of_ascii_gets_escape_sequences(streams):
    buffer = io.BytesIO()
    streams.setattr(sys, "stdout", io.TextIOWrapper(buffer, "ascii"))
    logs.protect_streams()
    print("runs/\u65e5", flush=True)
    assert buffer.getvalue() == b"runs/\\u65e5\n"


def test_streams_are_replaced_once(streams):
    logs.protect_streams()
    stream = sys.stderr
    logs.protect_streams()
    assert sys.stderr is stream
