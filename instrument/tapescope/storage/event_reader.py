"""The events of a run's files, read without TensorFlow."""

import math
import os
from collections.abc import Iterator

import numpy as np
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import event_pb2, tensor_pb2
from tensorboard.util import tensor_util

from tapescope.storage import tfrecord


def list_event_files(directory: str | os.PathLike[str]) -> list[str]:
    """Return the event files directly in a directory, in the order in which they were begun."""
    if not os.path.isdir(directory):
        return []
    return sorted(os.path.join(directory, name) for name in os.listdir(directory) if ".tfevents." in name)


def read_events(path: str) -> Iterator[event_pb2.Event]:
    """Yield the events of a file, up to the first record that is truncated or damaged.

    Raises:
      OSError: the file cannot be read.
      ValueError: a record is whole but not an event.
    """
    for record in tfrecord.read(path):
        try:
            yield event_pb2.Event.FromString(record)
        except DecodeError:
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
