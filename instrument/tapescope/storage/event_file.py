"""TensorBoard event files, written whole: one event holds all the summaries of a step.

`tf.summary` makes one event a value, through one op dispatch each; a record of 200 layers would cost the training
process tens of milliseconds of Python. Here a record is one protocol buffer and one write.
"""

import contextlib
import functools
import itertools
import math
import os
import socket
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.util import tensor_util

from tapescope.storage.claim import Claim
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family

RETRY_SECONDS = 1.0
FRAMING_BYTES = 16
"""Of each record in an event file: its length and two checksums."""


class Value(NamedTuple):
    """One summary of a step."""

    tag: str
    tensor: tensor_pb2.TensorProto
    about: Family | summary_pb2.SummaryMetadata
    """What the first event of the tag says of it."""
    array: np.ndarray | None = None
    """What `tensor` holds, where it is numbers of one of tapescope's own families."""


_numbers = itertools.count()
_SCALAR_SHAPE = tensor_shape_pb2.TensorShapeProto()


def _builtin(plugin: str, data_class: int) -> summary_pb2.SummaryMetadata:
    return summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin), data_class=data_class
    )


_START = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
_SCALARS = _builtin("scalars", summary_pb2.DATA_CLASS_SCALAR)
_HISTOGRAMS = _builtin("histograms", summary_pb2.DATA_CLASS_TENSOR)
_BARS = np.stack([metadata.bin_edges()[:-1], metadata.bin_edges()[1:], np.zeros(metadata.BINS)], axis=1)
"""Left, right and count of each bin, [B, 3]."""
_TYPES = {
    np.dtype(np.float32): types_pb2.DT_FLOAT,
    np.dtype(np.float64): types_pb2.DT_DOUBLE,
    np.dtype(np.int32): types_pb2.DT_INT32,
    np.dtype(np.uint8): types_pb2.DT_UINT8,
}


def scalar(tag: str, value: float) -> Value:
    """A point in TensorBoard's Scalars tab."""
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=_SCALAR_SHAPE, float_val=[value])
    return Value(tag, tensor, _SCALARS)


def histogram(tag: str, counts: np.ndarray) -> Value:
    """A slice in TensorBoard's Histograms tab: `[k, 3]` of left, right, count; empty outer bins are left out.

    `counts` [B] are over `metadata.bin_edges`.
    """
    filled = np.flatnonzero(counts)
    inside = slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 0)
    bars = _BARS[inside].copy()
    bars[:, 2] = counts[inside]
    return Value(tag, _proto(bars), _HISTOGRAMS)


def tensor(family: Family, array: np.ndarray) -> Value:
    """The tensor of one of tapescope's own families."""
    return Value(family.tag, _proto(array), family, array)


def _proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """As `tensor_util.make_tensor_proto`, which takes ten times as long."""
    return tensor_pb2.TensorProto(
        dtype=_TYPES[array.dtype], tensor_shape=_shape(array.shape), tensor_content=array.tobytes()
    )


@functools.lru_cache(maxsize=1024)
def _shape(sizes: tuple[int, ...]) -> tensor_shape_pb2.TensorShapeProto:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in sizes])


def text(family: Family, texts: str | Sequence[str]) -> Value:
    """JSON text in one of tapescope's own families: a string, or a vector of strings."""
    several = not isinstance(texts, str)
    strings = [t.encode() for t in (texts if several else [texts])]
    shape = tensor_shape_pb2.TensorShapeProto()
    if several:
        shape.dim.add(size=len(strings))
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=strings)
    return Value(family.tag, proto, family)


def array(tag: str, tensor: tensor_pb2.TensorProto, step: int) -> np.ndarray:
    """What a tensor holds. ValueError where it claims more: to repeat one number a billion times takes 4 GB."""
    claimed = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    if not tensor.tensor_content and claimed > (held := tensor.ByteSize()):
        raise ValueError(f"{tag} at step {step} claims {claimed:,} numbers and holds {held} bytes")
    return tensor_util.make_ndarray(tensor)


class EventFile:
    """The event files of one run; a context of one writer, and not thread-safe.

    A record is on disk when `add` returns, whole, or OSError is raised and it is not there at all. A file that could
    not take a record is cut back to its last whole one and left: the next record begins a new file, which describes
    every tag anew. A new file is tried at most once in RETRY_SECONDS. So it is where the file was removed.

    Raises OSError where the directory cannot be made or written.
    """

    def __init__(self, logdir: str | os.PathLike[str], claim: Claim | None = None):
        self._logdir, self._claim = os.fspath(logdir), claim
        self._failed: tuple[float, OSError] | None = None
        """When and why the last try failed; None where there is a file to write to."""
        self._begin()

    @property
    def failing(self) -> bool:
        """Whether there is no file that takes records now."""
        return self._failed is not None

    def add(self, step: int, values: Iterable[Value], wall_time: float | None = None) -> None:
        """Appends one event. Only the first value of a tag keeps its metadata: readers take it from there."""
        self._ready()
        summary = summary_pb2.Summary()
        for value in values:
            written = summary.value.add(tag=value.tag, tensor=value.tensor)
            if value.tag not in self._described:
                about = value.about
                written.metadata.CopyFrom(about.metadata() if isinstance(about, Family) else about)
        self._append(event_pb2.Event(step=step, wall_time=wall_time or time.time(), summary=summary))
        self._described.update(value.tag for value in summary.value)

    def add_summary(self, summary: summary_pb2.Summary) -> None:
        """Appends a summary that another plugin's library made (HParams)."""
        self._ready()
        self._append(event_pb2.Event(wall_time=time.time(), summary=summary))

    def add_graph(self, graph: tf.Graph) -> None:
        """Appends a graph for TensorBoard's Graphs tab."""
        self._ready()
        graph_def = graph.as_graph_def(add_shapes=True)
        self._append(event_pb2.Event(wall_time=time.time(), graph_def=graph_def.SerializeToString()))

    def add_start(self, step: int) -> None:
        """Says that a program begins at `step`: a reader that already has later ones drops them."""
        self._ready()
        self._append(event_pb2.Event(step=step, wall_time=time.time(), session_log=_START))

    def close(self) -> None:
        """Nothing is lost without it: every record is on disk already."""
        if not self._failed:
            self._writer.close()

    def _ready(self) -> None:
        """Sees to it that there is a file to append to."""
        if self._failed:
            since, why = self._failed
            if time.monotonic() - since < RETRY_SECONDS:
                raise OSError(*why.args)
            self._begin()
        elif _is_gone(self.path):  # with its directory; to write on into it would fail nowhere and reach nobody
            self._writer.close()
            self._begin()

    def _begin(self) -> None:
        # Readers take a directory's files in the order of their names, so the time comes first, to the microsecond.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}.v2"
        self.path: str = os.path.join(self._logdir, name)
        self._described: set[str] = set()
        self._records = self._bytes = 0
        try:
            self._claim.renew() if self._claim else os.makedirs(self._logdir, exist_ok=True)
            self._writer = tf.io.TFRecordWriter(self.path)
        except (OSError, tf.errors.OpError) as error:
            raise self._fail(error) from None
        self._failed = None
        self._append(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def _append(self, event: event_pb2.Event) -> None:
        record = event.SerializeToString()
        try:
            self._writer.write(record)
            self._writer.flush()
        except tf.errors.OpError as error:
            failed = self._fail(error)
            with contextlib.suppress(tf.errors.OpError):
                self._writer.close()
            with contextlib.suppress(OSError):
                # What nobody will append to any more shall end with a whole record, or not be there at all.
                os.truncate(self.path, self._bytes) if self._records > 1 else os.remove(self.path)
            raise failed from None
        self._records += 1
        self._bytes += len(record) + FRAMING_BYTES

    def _fail(self, error: OSError | tf.errors.OpError) -> OSError:
        why = error.message if isinstance(error, tf.errors.OpError) else str(error)
        failed = OSError(f"cannot write {self.path}: {why}")
        self._failed = time.monotonic(), failed
        return failed


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # not to be seen is not to be gone: the file is open, and takes records
        return False
    return False
