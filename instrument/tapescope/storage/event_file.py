"""The writer of a run's event files: all summaries of a step are one event, on disk as a whole or not at all.

`tf.summary` makes one event for each value, through one op dispatch each. A record of 200 layers would cost the
training process tens of milliseconds of Python. Here a record is one protocol buffer and one write: see
docs/decisions/0005-events-written-whole.md.
"""

import contextlib
import itertools
import math
import os
import re
import socket
import time
from collections.abc import Iterable

import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2

from tapescope.storage import event_reader
from tapescope.storage.directory import DirectoryLock
from tapescope.storage.event_values import Value
from tapescope.storage.tfrecord import FRAMING_BYTES
from tensorboard_plugin_tapescope.metadata import Family

RETRY_SECONDS = 1.0
"""Shortest time between two attempts to begin a file."""

_file_numbers = itertools.count()
_OWN_NAME = re.compile(r"events\.out\.tfevents\.(\d{10}\.\d{6})\.")
"""Start of the name of a file of ours. Other programs' names have whole seconds."""
_START = event_pb2.SessionLog(status=event_pb2.SessionLog.START)


class EventFile:
    """The event files of one run, of which one is open. Not thread-safe.

    When `add` returns, the record is on disk as a whole; when it raises OSError, nothing of it is. A file that could
    not take a record is cut back to its last whole one and closed. The next record begins a new file, which describes
    every tag anew. The same holds for a file that was removed. A new file is attempted at most once in RETRY_SECONDS.

    Args:
      logdir: the run's directory.
      lock: of the directory; it is renewed when a file is begun.

    Raises:
      OSError: the directory cannot be made or written.
    """

    def __init__(self, logdir: str | os.PathLike[str], lock: DirectoryLock | None = None):
        self._logdir = os.fspath(logdir)
        self._lock = lock
        self._failure: tuple[float, OSError] | None = None
        """Time and error of the last failed attempt; None while a file takes records."""
        self._begin_file()

    @property
    def failing(self) -> bool:
        """True while no file takes records."""
        return self._failure is not None

    def add(self, step: int, values: Iterable[Value], wall_time: float | None = None) -> None:
        """Append one event.

        Only the first value of a tag keeps its metadata, where readers look for it.

        Args:
          step: number of the step.
          values: all summaries of the step.
          wall_time: seconds since 1970; now if None.

        Raises:
          OSError: the event could not be written.
        """
        self._ensure_file()
        summary = summary_pb2.Summary()
        for value in values:
            written = summary.value.add(tag=_valid_tag(value.tag), tensor=value.tensor)
            if written.tag not in self._described_tags:
                description = value.description
                if isinstance(description, Family):
                    description = description.metadata()
                written.metadata.CopyFrom(description)
        self._append(event_pb2.Event(step=step, wall_time=wall_time or time.time(), summary=summary))
        self._described_tags.update(value.tag for value in summary.value)

    def add_summary(self, summary: summary_pb2.Summary) -> None:
        """Append a summary that another plugin's library made (HParams)."""
        self._ensure_file()
        self._append(event_pb2.Event(wall_time=time.time(), summary=summary))

    def add_graph(self, graph: tf.Graph) -> None:
        """Append a graph for TensorBoard's Graphs tab."""
        self._ensure_file()
        graph_def = graph.as_graph_def(add_shapes=True)
        self._append(event_pb2.Event(wall_time=time.time(), graph_def=graph_def.SerializeToString()))

    def add_start(self, step: int) -> None:
        """Append the start of a program at `step`: a reader that already has later steps drops them."""
        self._ensure_file()
        self._append(event_pb2.Event(step=step, wall_time=time.time(), session_log=_START))

    def retry(self) -> None:
        """Let the next event be tried at once, although one has just failed."""
        if self._failure:
            self._failure = -math.inf, self._failure[1]

    def close(self) -> None:
        """Close the file. Nothing is lost without it, because every record is on disk already."""
        if not self._failure:
            self._writer.close()

    def _ensure_file(self) -> None:
        """Begin a new file if the last one failed or was removed."""
        if self._failure:
            since, error = self._failure
            if time.monotonic() - since < RETRY_SECONDS:
                raise OSError(*error.args)
            self._begin_file()
        elif _is_removed(self.path):  # writing to it would not fail, and nobody could read it
            self._writer.close()
            self._begin_file()

    def _begin_file(self) -> None:
        number = next(_file_numbers)
        name = f"events.out.tfevents.{_time_stamp(self._logdir)}.{socket.gethostname()}.{os.getpid()}.{number}.v2"
        self.path: str = os.path.join(self._logdir, name)
        self._described_tags: set[str] = set()
        self._records = 0
        self._bytes = 0
        try:
            if self._lock:
                self._lock.renew()
            else:
                os.makedirs(self._logdir, exist_ok=True)
            self._writer = tf.io.TFRecordWriter(self.path)
        except (OSError, tf.errors.OpError) as error:
            raise self._note_failure(error) from None
        self._failure = None
        self._append(
            event_pb2.Event(
                wall_time=time.time(),
                file_version="brain.Event:2",
                source_metadata=event_pb2.SourceMetadata(writer=event_reader.WRITER),
            )
        )

    def _append(self, event: event_pb2.Event) -> None:
        record = event.SerializeToString()
        try:
            self._writer.write(record)
            self._writer.flush()
        except tf.errors.OpError as error:
            failure = self._note_failure(error)
            self._cut_back()
            raise failure from None
        self._records += 1
        self._bytes += len(record) + FRAMING_BYTES

    def _cut_back(self) -> None:
        """Close the file, and leave whole records only; remove it if it has only the version."""
        with contextlib.suppress(tf.errors.OpError):
            self._writer.close()
        with contextlib.suppress(OSError):
            if self._records > 1:
                os.truncate(self.path, self._bytes)
            else:
                os.remove(self.path)

    def _note_failure(self, error: OSError | tf.errors.OpError) -> OSError:
        reason = error.message if isinstance(error, tf.errors.OpError) else str(error)
        reason = reason.removeprefix(f"{self.path}; ")
        failure = OSError(f"cannot write {self.path}: {reason}")
        self._failure = (time.monotonic(), failure)
        return failure


def _time_stamp(directory: str) -> str:
    """Return the time for the name of a new file, to the microsecond: later than in the names of all files before.

    Readers take a directory's files in the order of their names. A clock may go back between two programs.
    """
    names = []
    with contextlib.suppress(OSError):
        names = os.listdir(directory)
    before = max((match[1] for name in names if (match := _OWN_NAME.match(name))), default="")
    stamp = f"{max(0.0, time.time()):017.6f}"
    if stamp > before:
        return stamp
    microseconds = min(int(before.replace(".", "")) + 1, 10**16 - 1)
    return f"{microseconds // 10**6:010d}.{microseconds % 10**6:06d}"


def _valid_tag(tag: str) -> str:
    """Return a tag with what UTF-8 cannot encode replaced. A layer may have such a name."""
    return tag.encode("utf-8", "replace").decode()


def _is_removed(path: str) -> bool:
    """Return whether a file is certainly removed. A path that cannot be looked at may be of an open file."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
