"""The writer of a run's event files: all summaries of a step are one event, on disk as a whole or not at all.

`tf.summary` makes one event for each value, through one op dispatch each. A record of 200 layers would cost the
training process tens of milliseconds of Python. Here a record is one protocol buffer and one write: see
docs/decisions/0005-events-written-whole.md.
"""

import contextlib
import functools
import itertools
import math
import os
import re
import socket
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

from tapescope.storage import event_reader
from tapescope.storage.tfrecord import FRAMING_BYTES
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

try:
    import fcntl
except ImportError:  # Windows has another kind of lock; there nothing is locked
    fcntl = None

RETRY_SECONDS = 1.0
"""Shortest time between two attempts to begin a file."""


class Value(NamedTuple):
    """One summary of a step."""

    tag: str
    tensor: tensor_pb2.TensorProto
    description: Family | summary_pb2.SummaryMetadata
    """Written with the first event of the tag."""
    array: np.ndarray | None = None
    """Content of `tensor`, for the numeric families of tapescope."""


_file_numbers = itertools.count()
_OWN_NAME = re.compile(r"events\.out\.tfevents\.(\d{10}\.\d{6})\.")
"""Start of the name of a file of ours. Other programs' names have whole seconds."""
_SCALAR_SHAPE = tensor_shape_pb2.TensorShapeProto()
_START = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
_SCALARS = summary_pb2.SummaryMetadata(
    plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class=summary_pb2.DATA_CLASS_SCALAR,
)
_HISTOGRAMS = summary_pb2.SummaryMetadata(
    plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="histograms"),
    data_class=summary_pb2.DATA_CLASS_TENSOR,
)
_EMPTY_BINS = np.stack([metadata.bin_edges()[:-1], metadata.bin_edges()[1:], np.zeros(metadata.BINS)], axis=1)
"""Left, right and count of each bin, [B, 3]."""
_TYPES = {
    np.dtype(np.float32): types_pb2.DT_FLOAT,
    np.dtype(np.float64): types_pb2.DT_DOUBLE,
    np.dtype(np.int32): types_pb2.DT_INT32,
    np.dtype(np.uint8): types_pb2.DT_UINT8,
}


def scalar(tag: str, value: float) -> Value:
    """Return a point for TensorBoard's Scalars tab."""
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=_SCALAR_SHAPE, float_val=[value])
    return Value(tag=tag, tensor=tensor, description=_SCALARS)


def histogram(tag: str, counts: np.ndarray) -> Value:
    """Return a slice for TensorBoard's Histograms tab: `[k, 3]` of left, right, count, without empty outer bins.

    Args:
      tag: of the summary.
      counts: over the bins of `metadata.bin_edges`, [B].
    """
    filled = np.flatnonzero(counts)
    inside = slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 0)
    bins = _EMPTY_BINS[inside].copy()
    bins[:, 2] = counts[inside]
    return Value(tag=tag, tensor=_make_proto(bins), description=_HISTOGRAMS)


def tensor(family: Family, array: np.ndarray) -> Value:
    """Return the tensor of one of tapescope's own families."""
    return Value(tag=family.tag, tensor=_make_proto(array), description=family, array=array)


def with_columns(family: Family, array: np.ndarray, columns: tuple[str, ...]) -> Value:
    """Return the tensor of a family with other columns: those that it lacks are NaN.

    Args:
      family: what the array is.
      array: it has one or more rows for each of the family's columns.
      columns: the ones to have, in their order.
    """
    parts = dict(zip(family.columns, np.split(array, max(1, len(family.columns))), strict=True))
    absent = np.full_like(next(iter(parts.values())), np.nan)
    return tensor(family._replace(columns=columns), np.concatenate([parts.get(name, absent) for name in columns]))


def text(family: Family, texts: str | Sequence[str]) -> Value:
    """Return JSON text of one of tapescope's own families: a string, or a vector of strings."""
    shape = tensor_shape_pb2.TensorShapeProto()
    if isinstance(texts, str):
        texts = [texts]
    else:
        shape.dim.add(size=len(texts))
    proto = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[text.encode() for text in texts]
    )
    return Value(tag=family.tag, tensor=proto, description=family)


def _make_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    # tensor_util.make_tensor_proto does the same in ten times the time.
    return tensor_pb2.TensorProto(
        dtype=_TYPES[array.dtype], tensor_shape=_make_shape(array.shape), tensor_content=array.tobytes()
    )


@functools.lru_cache(maxsize=1024)
def _make_shape(sizes: tuple[int, ...]) -> tensor_shape_pb2.TensorShapeProto:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in sizes])


def absolute(logdir: str | os.PathLike[str]) -> str:
    """Return a path that stays the same when the program changes its directory, with the home directory for `~`.

    Raises:
      ValueError: it is not a path, it is a URL, such as of a bucket, or its name is not UTF-8.
    """
    path = os.fspath(logdir) if isinstance(logdir, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise ValueError(
            f"`logdir` must be the path of a directory, a str or an os.PathLike; got {logdir!r}: pass one such as "
            '"runs/1"'
        )
    if "://" in path:
        raise ValueError(
            f"`logdir` must be a directory of this machine, where a file can be locked and appended to; got {path!r}: "
            "record to a local or a mounted directory, and copy it"
        )
    full = os.path.abspath(os.path.expanduser(path))
    try:
        full.encode()
    except UnicodeEncodeError:  # a byte that is not UTF-8
        raise ValueError(
            f"`logdir` must have a name in UTF-8, as TensorFlow needs it; got {full!r}: rename it"
        ) from None
    return full


class DirectoryLock:
    """An advisory lock: only one Recorder may write to a run directory, in this process and in others.

    The records of two would be mixed, and each reader would sort them in its own way. The operating system releases the
    lock when the process ends, also if a process that it forked goes on. A file system without locks, and Windows, keep
    nobody out: docs/decisions/0006.

    Raises:
      OSError: another Recorder holds the lock, or the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = os.fspath(directory)
        self._descriptor: int | None = None
        _locks.add(self)
        self.renew()

    def __fspath__(self) -> str:
        """Return the directory, so that a Recorder can be given the lock that the program holds already."""
        return self._directory

    def renew(self) -> None:
        """Make the directory, and lock it unless it is the one that is locked already.

        A directory that was removed and made again is another one.
        """
        try:
            os.makedirs(self._directory, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(
                f"`logdir` must be a directory; {self._directory} is a file or a link that leads nowhere: remove it, "
                "or pass another directory"
            ) from None
        if fcntl is None:
            return
        descriptor = os.open(self._directory, os.O_RDONLY)
        if self._descriptor is not None and os.path.sameopenfile(descriptor, self._descriptor):
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OSError(
                f"another Recorder writes to {self._directory}: close() it first, or give each run a directory"
            ) from None
        except OSError:  # NFS, for one, locks only what is open for writing
            os.close(descriptor)
            return
        self.release()
        self._descriptor = descriptor

    def release(self) -> None:
        """Unlock the directory. Idempotent."""
        if self._descriptor is not None and fcntl is not None:
            # Unlocked and not only closed: a child that was forked meanwhile has it open as well.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close the descriptor. The directory stays locked while another process has it open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_locks: "weakref.WeakSet[DirectoryLock]" = weakref.WeakSet()


def _forget_locks() -> None:
    """Close what a forked process got from its parent: a helper that outlives its parent must not hold its locks."""
    for lock in list(_locks):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


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
