"""What a person sees while it trains: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from typing import TextIO

BAR = 24
"""Characters."""


class Progress:
    """Reports on `stream`, at most every `every_s` seconds: 0.1 in a terminal, 5 elsewhere."""

    def __init__(self, steps: int, batch_size: int, stream: TextIO | None = None, enabled: bool = True):
        self._steps, self._batch_size, self._enabled = steps, batch_size, enabled
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._every_s = 0.1 if self._live else 5.0
        self._start: tuple[float, int] | None = None
        """When, and after how many steps, the clock started."""
        self._shown = 0.0

    def due(self, done: int) -> bool:
        """Whether to report after `done` steps. Where it says no, the loss need not be fetched from the device."""
        now = time.monotonic()
        if self._start is None:  # the first step is mostly tracing and compiling: no rate comes from it
            self._start, self._shown = (now, done), now
        return self._enabled and (done == self._steps or now - self._shown >= self._every_s)

    def report(self, done: int, loss: float) -> None:
        self._shown = time.monotonic()
        since, first = self._start or (self._shown, done)
        rate = (done - first) / (self._shown - since) if done > first else 0.0
        left = _clock((self._steps - done) / rate) if rate else "--:--"
        text = f"{done}/{self._steps} steps  loss {loss:.4g}  {rate * self._batch_size:,.0f} examples/s  {left} left"
        if self._live:
            filled = BAR * done // self._steps
            text = f"\r{'#' * filled}{'.' * (BAR - filled)} {text}\x1b[K"
        print(text, end="" if self._live else "\n", file=self._stream, flush=True)

    def close(self) -> None:
        if self._live and self._enabled:
            print(file=self._stream, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"
