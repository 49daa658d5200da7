"""A run that goes on at an earlier step: the records of what then never happened are taken out of its files."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.proto import event_pb2

from tapescope.rules import engine
from tapescope.storage import event_file
from tapescope.storage.run import Run, event_files
from tensorboard_plugin_tapescope import metadata

_STATUS = metadata.tag("status")


class Resume(NamedTuple):
    """Where a run goes on."""

    step: int
    """The first that is recorded anew."""
    state: Mapping[str, np.ndarray]
    """What `Recorder.state` returned after the step before."""


def cut(directory: str | os.PathLike[str], step: int) -> None:
    """Takes the events of `step` and later out of a directory's files, and how the run stood.

    No reader then needs to know that there was a restart: TensorBoard's two loaders see one in different ways, by tag
    or not at all. Each file is replaced in one go, so to be killed in between does no harm.
    """
    for path in event_files(directory):
        kept = []
        for record in event_file_loader.RawEventFileLoader(path).Load():  # leaves out one that is not whole
            event = event_pb2.Event.FromString(record)
            if event.step >= step and not event.file_version:
                continue
            told = [value for value in event.summary.value if value.tag != _STATUS]
            if len(told) < len(event.summary.value):
                if not told:
                    continue
                del event.summary.value[:]
                event.summary.value.extend(told)
                record = event.SerializeToString()
            kept.append(record)
        if len(kept) <= 1:  # the version
            os.remove(path)
        elif os.path.getsize(path) != sum(len(record) + event_file.FRAMING_BYTES for record in kept):
            new = os.path.join(directory, ".cut")
            with tf.io.TFRecordWriter(new) as writer:
                for record in kept:
                    writer.write(record)
            os.replace(new, path)


def watch(directory: str | os.PathLike[str]) -> engine.Watch | None:
    """The rules as they stood after the last record; None where there is none."""
    try:
        run = Run(directory)
    except (FileNotFoundError, ValueError):
        return None
    if "gradient_norm" not in run.columns:
        return None
    return engine.replayed(run)
