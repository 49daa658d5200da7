"""A run that goes on at an earlier step: the later records are removed from its files."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from tensorboard.compat.proto import event_pb2

from tapescope.rules import engine
from tapescope.rules.record_view import run_layout
from tapescope.storage import event_reader, tfrecord
from tapescope.storage.run import Run
from tensorboard_plugin_tapescope import metadata

_STATUS = metadata.tag("status")


class Resume(NamedTuple):
    """The point at which a run goes on."""

    step: int
    """The first step that is recorded anew."""
    state: Mapping[str, np.ndarray]
    """What `Recorder.state` returned after the step before."""


def cut_records(directory: str | os.PathLike[str], step: int) -> None:
    """Remove the events of `step` and later steps, and all statuses, from a directory's files.

    No reader then needs to know that there was a restart. TensorBoard's two loaders handle one differently, by tag or
    not at all. Each file is replaced atomically, so the process may be killed at any time.

    Raises:
      OSError: a file cannot be read or written.
    """
    for path in event_reader.list_event_files(directory):
        kept = []
        for record in tfrecord.read(path):  # a truncated record is left out
            event = event_pb2.Event.FromString(record)
            if event.step >= step and not event.file_version:
                continue
            values = [value for value in event.summary.value if value.tag != _STATUS]
            if len(values) < len(event.summary.value):
                if not values:
                    continue
                del event.summary.value[:]
                event.summary.value.extend(values)
                record = event.SerializeToString()
            kept.append(record)
        if len(kept) <= 1:  # the version alone
            os.remove(path)
        elif os.path.getsize(path) != sum(len(record) + tfrecord.FRAMING_BYTES for record in kept):
            temporary = os.path.join(directory, ".cut")
            with open(temporary, "wb") as file:
                file.write(tfrecord.frame(kept))
            os.replace(temporary, path)


def replay_rules(directory: str | os.PathLike[str]) -> engine.RuleEngine | None:
    """Return the rules as they stood after the last record of a directory; None if there is no record."""
    try:
        run = Run(directory)
    except (FileNotFoundError, ValueError):
        return None
    if not len(run.steps):
        return None
    layout = run_layout(run.variables, run.layers, run.details)
    return engine.replay(layout, run.steps, {name: run[name] for name in run.columns if name in metadata.COLUMNS})
