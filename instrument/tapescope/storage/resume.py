"""The earlier records in a run's directory: cut at the step where it goes on, or set aside where it begins anew."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from tapescope.rules import engine
from tapescope.rules.record_view import run_layout
from tapescope.storage import captured_step, event_reader, tfrecord
from tapescope.storage.printable import describe_error, one_line
from tapescope.storage.run import Run, columns_by_name
from tapescope.storage.run_index import Progress, read_progress, read_spikes
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series.spikes import RunSpikes

REPLACED = "replaced"
"""Folder in a run's directory with the records of earlier runs in it."""
_STATUS = metadata.tag("status")


_STATE_ARRAYS = ("rows", "elements", "examples")

_NUMBER = re.compile(r"_\d+(?=[/#]|$)")


class Resume(NamedTuple):
    """The point at which a run goes on."""

    step: int
    """The first step that is recorded anew."""
    state: Mapping[str, np.ndarray]
    """What `Recorder.state` returned after the step before."""


def check_resume(directory: str | os.PathLike[str], resume: Resume, variables: Sequence[str]) -> None:
    """Raise ValueError unless a run can go on in a directory. Nothing is changed.

    Args:
      directory: of the run.
      resume: where it is to go on.
      variables: names of the variables of its Probe; empty if the model is not built yet.
    """
    missing = [name for name in _STATE_ARRAYS if resume.state and name not in resume.state]
    if missing:
        raise ValueError(
            "`resume` must be a Resume of a step from 0 and of what `Recorder.state()` returned, or {}; got one with a "
            f"state without {', '.join(missing)}"
        )
    try:
        recorded = Run(directory).variables
    except (FileNotFoundError, ValueError, KeyError):  # nothing that could be continued, or no record yet
        return
    if recorded and variables and not _may_be_same_model(recorded, variables):
        raise ValueError(
            f"`resume` must continue a run of the Probe's model; {os.fspath(directory)} has a run of another one, with "
            f"the variables {one_line(', '.join(recorded[:4]))}, ...: use another directory"
        )


def _may_be_same_model(recorded: Sequence[str], variables: Sequence[str]) -> bool:
    """Return whether two lists of variables have a name in common, or are the same but for what Keras adds.

    Some names may be new, as where a layer is no longer frozen.
    """
    return bool(set(recorded) & set(variables)) or are_names_of_one_model(recorded, variables)


def are_names_of_one_model(recorded: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether two lists of names are the same but for what Keras adds.

    Keras numbers the names of models and layers for each process, so those of a model that is built again may all
    differ: `sequential_1/dense_2`. A model that is loaded may have its variables without its own name in front.
    """
    before, now = ([_NUMBER.sub("", name) for name in listed] for listed in (recorded, names))
    return len(before) == len(now) and all(map(differ_by_scope_at_most, before, now))


def differ_by_scope_at_most(path: str, other: str) -> bool:
    """Return whether two paths are equal, but for a scope in front of one of them."""
    shorter, longer = sorted((path, other), key=len)
    return f"/{longer}".endswith(f"/{shorter}")


def cut_records(directory: str | os.PathLike[str], step: int) -> None:
    """Remove the events of `step` and later steps, and all statuses, from tapescope's files in a directory.

    No reader then needs to know that there was a restart. TensorBoard's two loaders handle one differently, by tag or
    not at all. Each file is replaced atomically, so the process may be killed at any time. Files of other programs stay
    as they are. Of a file that is damaged a copy is left in the folder REPLACED: a part of it may still be read.

    Raises:
      OSError: a file cannot be read or written.
    """
    for path in event_reader.find_event_files(directory).own:
        damage: list[str] = []
        sizes = [len(record) + tfrecord.FRAMING_BYTES for record in _kept_records(path, step, damage)]
        if damage:
            folder = os.path.join(directory, REPLACED)
            os.makedirs(folder, exist_ok=True)
            copy = shutil.copy2(path, os.path.join(folder, _unread_name(path)))
            logging.warning(
                "tapescope: the run goes on without the rest of %s: %s. A copy is %s", path, damage[0], copy
            )
        if len(sizes) <= 1:  # the version alone
            os.remove(path)
        elif os.path.getsize(path) != sum(sizes):
            _replace(path, os.path.join(directory, ".cut"), step)


def set_aside(directory: str, paths: Sequence[str]) -> None:
    """Move the files of an earlier run to the folder REPLACED, under names that no reader takes for event files.

    Its captured steps go with them: a replay would take them for the new run's.

    The description of a tag holds for all files of a directory. With another model's files beside them, the records of
    the new run could not be read.

    Args:
      directory: of the run.
      paths: of tapescope's files there.
    """
    folder = os.path.join(directory, REPLACED)
    try:
        os.makedirs(folder, exist_ok=True)
        for path in paths:
            os.replace(path, os.path.join(folder, _unread_name(path)))
        if captured_step.list_captured(directory):
            number = sum(name.startswith(captured_step.FOLDER) for name in os.listdir(folder))
            os.rename(
                captured_step.directory(directory),
                os.path.join(folder, f"{captured_step.FOLDER}_{number}" if number else captured_step.FOLDER),
            )
    except OSError as error:
        logging.warning(
            "tapescope: the earlier records of %s stay there, and may hide the new ones (%s): use another directory",
            directory,
            describe_error(error),
        )
    else:
        logging.info("tapescope: %s is recorded anew; its earlier records are in %s", directory, folder)


def _unread_name(path: str) -> str:
    """Return a name for an event file that no reader takes for one."""
    return os.path.basename(path).replace(".tfevents.", ".")


def _replace(path: str, temporary: str, step: int) -> None:
    try:
        tfrecord.write(temporary, _kept_records(path, step, []))
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _kept_records(path: str, step: int, damage: list[str]) -> Iterator[bytes]:
    """Yield the records of a file before `step`, without statuses; append to `damage` what cannot be read, and why."""
    records = tfrecord.read(path)
    while True:
        try:
            record = next(records)
            event = event_reader.parse_event(path, record)
        except StopIteration:
            return
        except tfrecord.DamagedError as error:
            damage.append(str(error))
            return
        except ValueError as error:
            damage.append(str(error))
            continue
        if event.step >= step and not event.file_version:
            continue
        values = [value for value in event.summary.value if value.tag != _STATUS]
        if len(values) < len(event.summary.value):
            if not values:
                continue
            del event.summary.value[:]
            event.summary.value.extend(values)
            record = event.SerializeToString()
        yield record


def recorded_run(directory: str | os.PathLike[str]) -> Run | None:
    """Return the run in a directory; None if no record can be read."""
    try:
        run = Run(directory)
        return run if len(run.steps) else None
    except (FileNotFoundError, ValueError):
        return None


def recorded_rules(run: Run) -> engine.RuleEngine | None:
    """Return the rules as they stood after the last record of a run; None if they cannot be applied."""
    try:
        layout = run_layout(run.variables, run.layers, run.details)
        return engine.judge(layout, run.steps, columns_by_name(run))
    except (FileNotFoundError, ValueError):
        return None
    except Exception:  # a damaged run must not keep the training from going on
        logging.exception("tapescope: the rules cannot be applied to the earlier records of %s", run.logdir)
        return None


def recorded_progress(run: Run) -> Progress:
    """Return the progress of a run; that of a new one if it cannot be read."""
    try:
        return read_progress(run)
    except Exception:  # a damaged run must not keep the training from going on
        return Progress()


def recorded_spikes(run: Run) -> RunSpikes:
    """Return the spikes of a run; those of a new one if it cannot be read."""
    try:
        return read_spikes(run)
    except Exception:  # a damaged run must not keep the training from going on
        return RunSpikes()
