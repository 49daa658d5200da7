"""The events of a run's files, read without TensorFlow."""

import itertools
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
from tensorboard.util import tensor_util

from tapescope.storage import tfrecord
from tapescope.storage.printable import describe_error, one_line
from tensorboard_plugin_tapescope import metadata

WRITER = "tapescope"
"""`source_metadata.writer` of our files' first event. TensorFlow's own writer gives another name there."""
FIRST_EVENTS = 20
"""Events of a file among which tapescope's first is. Hyperparameters and a graph may come before a record."""

_PREFIX = f"{metadata.PLUGIN_NAME}/"


class EventFiles(NamedTuple):
    """The files in a directory whose names are those of event files."""

    own: list[str]
    """Files that tapescope wrote, in the order in which they were begun."""
    others: list[str]
    """Regular files that other programs wrote, or that are empty or damaged from the start."""
    problems: list[str]
    """A sentence for each name that is skipped and is not just another program's file."""


def _list_names(directory: str | os.PathLike[str]) -> list[str]:
    if not os.path.isdir(directory):
        return []
    return sorted(os.path.join(directory, name) for name in os.listdir(directory) if ".tfevents." in name)


def find_event_files(directory: str | os.PathLike[str]) -> EventFiles:
    """Return the event files directly in a directory, by whose they are."""
    found = EventFiles([], [], [])
    for path in _list_names(directory):
        if not os.path.isfile(path):  # opening a FIFO would wait for its writer
            found.problems.append(one_line(f"skipped {path}: it is named like an event file and is not a file"))
            continue
        try:
            (found.own if is_own_file(path) else found.others).append(path)
        except Exception as error:  # the boundary of a file: it is skipped, whatever is wrong with it
            found.others.append(path)
            found.problems.append(one_line(f"skipped {path}: {describe_error(error)}"))
    return found


def is_own_file(path: str) -> bool:
    """Return whether tapescope wrote a file: its first event says so, or, in older files, one of the first is ours.

    Raises:
      OSError: the file cannot be read.
      ValueError: a record is whole but not an event.
    """
    for event in itertools.islice(read_events(path), FIRST_EVENTS):
        if event.source_metadata.writer:
            return event.source_metadata.writer == WRITER
        if any(value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME for value in event.summary.value):
            return True
    return False


def own_values(event: event_pb2.Event) -> Iterator[summary_pb2.Summary.Value]:
    """Yield the values of an event under tapescope's own tags."""
    return (value for value in event.summary.value if value.tag.startswith(_PREFIX))


def read_events(path: str) -> Iterator[event_pb2.Event]:
    """Yield the events of a file, up to the first record that is truncated or damaged.

    Raises:
      OSError: the file cannot be read.
      ValueError: a record is damaged, or whole but not an event.
    """
    for record in tfrecord.read(path):
        yield parse_event(path, record)


def parse_event(path: str, record: bytes) -> event_pb2.Event:
    """Return the event in a record of a file.

    Raises:
      ValueError: the record is not an event.
    """
    try:
        return event_pb2.Event.FromString(record)
    except Exception:  # each implementation of protocol buffers has its own error
        raise ValueError(f"{path} has a record that is not a TensorBoard event; remove the file") from None


def to_array(tag: str, tensor: tensor_pb2.TensorProto, step: int) -> np.ndarray:
    """Return the numbers or strings of a tensor.

    Raises:
      ValueError: the tensor claims more elements than it holds. To repeat one number a billion times takes 4 GB.
    """
    claimed = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    held = tensor.ByteSize()
    if not tensor.tensor_content and claimed > held:
        raise ValueError(f"{tag} at step {step} claims {claimed:,} numbers and holds {held} bytes")
    return tensor_util.make_ndarray(tensor)
