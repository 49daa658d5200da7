"""Progress on stderr: a tqdm bar in a terminal, a line every few seconds elsewhere."""

import io
import sys
from typing import Any, TextIO

from tqdm import tqdm

BAR_S = 0.1
"""Seconds between updates of a bar in a terminal."""
LINE_S = 5.0
"""Seconds between lines elsewhere."""


class _Bar(tqdm):
    """A tqdm bar whose loss is read only when the bar is drawn, because reading it waits for the device."""

    monitor_interval = 0  # no thread: `miniters` is 1, so every update looks at the clock
    loss: Any = None
    batch_size: int = 0

    @property
    def format_dict(self) -> dict[str, Any]:
        fields = dict(super().format_dict)
        rate = fields["rate"]
        if not rate:
            rate = (fields["n"] - fields["initial"]) / max(fields["elapsed"], 1e-9)
        loss = "" if self.loss is None else f"  loss {float(self.loss):.4g}"
        examples = f"  {rate * self.batch_size:,.0f} examples/s" if self.batch_size else ""
        return fields | {"details": loss + examples}


class Progress:
    """How much is done, how fast, and how long the rest takes."""

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        batch_size: int = 0,
        stream: TextIO | None = None,
        enabled: bool = True,
    ):
        """Make a progress display that is empty until the first update.

        Args:
            total: Number of units.
            unit: The unit's name in the plural.
            batch_size: Examples in a unit, to show examples/s; 0 shows none.
            stream: Where to print; by default stderr.
            enabled: Whether to print at all.
        """
        self._total = total
        self._unit = unit
        self._batch_size = batch_size
        self._stream = stream or sys.stderr
        self._in_terminal = self._stream.isatty()
        self._enabled = enabled
        self._bar: _Bar | None = None
        self._printed = -1
        """`done` of the last line."""

    def update(self, done: int, loss: Any = None) -> None:
        """Show that `done` units are done, if the last display is old enough.

        Args:
            done: Number of units done so far.
            loss: float32 [], read only when it is shown.
        """
        if not self._enabled:
            return
        if self._bar is None:
            self._bar = self._start(done)
        self._bar.loss = loss
        drawn = self._bar.update(done - self._bar.n)
        if drawn and not self._in_terminal:
            self._print_line()

    def close(self) -> None:
        """Show the last state and end the line."""
        if self._bar is None:
            return
        if not self._in_terminal and self._printed != self._bar.n:
            self._print_line()
        self._bar.close()

    def _start(self, done: int) -> _Bar:
        """Return a bar whose clock starts now: the first step is mostly tracing and says nothing about the rate."""
        bar = "{bar:24} " if self._in_terminal else ""
        made = _Bar(
            total=self._total,
            initial=done,
            # Lines are printed here, because tqdm ends only its last display with a newline.
            file=self._stream if self._in_terminal else io.StringIO(),
            mininterval=BAR_S if self._in_terminal else LINE_S,
            miniters=1,
            bar_format=f"{bar}{{n}}/{{total}} {self._unit}{{details}}  {{remaining}} left",
        )
        made.batch_size = self._batch_size
        return made

    def _print_line(self) -> None:
        assert self._bar is not None
        self._printed = self._bar.n
        print(str(self._bar), file=self._stream, flush=True)
