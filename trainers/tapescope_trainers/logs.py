"""Log lines on the terminal: none from TensorFlow's C++ code, and the library's warnings as plain lines."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, TextIO

import absl.logging


class _Stream:
    """A text stream whose output is dropped when it cannot be written, as on a full disk or into a closed pipe."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # a closed stream raises ValueError
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def protect_streams() -> None:
    """Let no failure of stdout or stderr end the program, such as a log file on a full disk.

    A closed descriptor is opened on the null device: otherwise an event file could get its number, and whatever is
    printed would be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", closefd=False))
        if name != "stdin" and not isinstance(getattr(sys, name), _Stream):
            setattr(sys, name, _Stream(getattr(sys, name)))


def import_tensorflow() -> Any:
    """Import TensorFlow without its C++ log lines, unless TF_CPP_MIN_LOG_LEVEL is set in the environment.

    That variable is not enough: TensorFlow 2.21 writes four lines of level INFO while it is imported, before its log
    library knows the level. So file descriptor 2 is redirected to a temporary file during the import. The text in it is
    shown if the import fails.

    Returns:
        The module `tensorflow`.
    """
    if "tensorflow" not in sys.modules and "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        with _captured_stderr():
            import tensorflow
    import tensorflow

    return tensorflow


@contextlib.contextmanager
def plain_lines() -> Iterator[None]:
    """Send log records of level WARNING and above to stderr as plain lines that do not break a progress bar."""
    logging.getLogger("tensorflow").setLevel(logging.WARNING)  # INFO has a line for each collective
    logging.getLogger("absl").addFilter(_not_from_saver)
    root = logging.getLogger()
    absls = absl.logging.get_absl_handler()  # its lines begin with a thread's number and a file of ours
    ours = _Handler(logging.WARNING)
    root.removeHandler(absls)
    root.addHandler(ours)
    try:
        yield
    finally:
        root.removeHandler(ours)
        root.addHandler(absls)


class _Handler(logging.Handler):
    """A handler that prints above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # in the extra `trainers`, whose absence `train.run` reports

        tqdm.write(self.format(record), file=sys.stderr)


def _not_from_saver(record: logging.LogRecord) -> bool:
    """Return False for the records of TensorFlow's functional_saver.py, which has one for each checkpoint."""
    return record.filename != "functional_saver.py"


@contextlib.contextmanager
def _captured_stderr() -> Iterator[None]:
    """Send file descriptor 2 to a temporary file; show its text if the block raises."""
    try:
        saved = os.dup(2)
    except OSError:  # closed by whoever started the program
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(saved, file.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
