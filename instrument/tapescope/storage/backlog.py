"""What waits to be written, between the training and the thread that writes: in order, and within a bound of bytes.

Where the disk is slower than the records come, every second one that waits is left out, and of those that come every
second from then on; where that is not enough, every fourth stays, and so on, until nothing waits any more. What is
written so covers the whole time evenly, and the training neither waits nor runs out of memory.
"""

import threading
from collections import deque
from typing import Any

MOST_BYTES = 64 << 20
"""Readings wait where they were made: with a GPU, in its memory."""


class Backlog:
    """A queue of jobs for one reader. Safe to use from many threads."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self.left_out = 0
        """Records that were left out."""
        self._most_bytes, self._bytes = most_bytes, 0
        self._jobs: deque[tuple[Any, int]] = deque()
        self._stride, self._skip = 1, 0
        """One record of so many is taken; so many are left out before the next."""
        self._changed = threading.Condition()

    def put(self, job: Any, size: int = 0) -> None:
        """Adds a job that holds `size` bytes; one of 0 bytes is never left out."""
        with self._changed:
            if size and self._skip:
                self._skip -= 1
                self.left_out += 1
                return
            while self._bytes and self._bytes + size > self._most_bytes:
                self._thin()
            self._jobs.append((job, size))
            self._bytes += size
            self._skip = self._stride - 1 if size else self._skip
            self._changed.notify()

    def get(self) -> Any:
        """The next job; waits for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            job, size = self._jobs.popleft()
            self._bytes -= size
            if not self._bytes:
                self._stride, self._skip = 1, 0
            return job

    def _thin(self) -> None:
        kept, out = deque[tuple[Any, int]](), False
        for job, size in self._jobs:
            if size and out:
                self._bytes -= size
                self.left_out += 1
            else:
                kept.append((job, size))
            out = out != bool(size)
        if len(kept) == len(self._jobs):  # a single record, and a large one
            kept, self._bytes = deque((job, size) for job, size in kept if not size), 0
            self.left_out += 1
        self._jobs = kept
        self._stride *= 2
