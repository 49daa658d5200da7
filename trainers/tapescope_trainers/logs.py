"""Log lines on the terminal: none from TensorFlow's C++ code, and the library's warnings as plain lines."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import absl.logging


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
