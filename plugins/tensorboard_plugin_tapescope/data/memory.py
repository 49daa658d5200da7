"""Memory that was freed, and that the C library keeps. Without glibc nothing is done."""

import contextlib
import ctypes
import sys

KEPT_BYTES = 2 << 20
"""Free memory at the end of a heap that is kept. By itself glibc raises it to 64 MiB with the first large arrays."""

MAPPED_BYTES = 4 << 20
"""Blocks of so many bytes are given back as soon as they are free. It has to be set with the other."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def limit_kept_memory() -> None:
    """Let no thread keep what a request has freed, if this process is TensorBoard's own.

    TensorBoard answers each request in a thread of its own, to which glibc gives a heap. `malloc_trim` leaves the free
    memory at the end of such a heap alone: a view of several runs left 10 MiB in each. A program that runs TensorBoard
    beside a training keeps its own settings.
    """
    program = getattr(sys.modules.get("__main__"), "__spec__", None)
    if "tensorboard.main" in sys.modules or getattr(program, "name", None) == "tensorboard.main":
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_ARENA_MAX, 1)
            libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
            libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def release_memory() -> None:
    """Return the memory of a read to the system. glibc would keep up to three times what was read."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
