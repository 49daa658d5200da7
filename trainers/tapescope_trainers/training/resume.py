"""The decision whether a run continues, made from --resume and --logdir before TensorFlow is imported.

Nothing is changed until everything has been checked and the directory is locked. An earlier run is then moved aside,
and removed only when the new one has begun.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from tapescope.storage import captured_step, event_reader, run_index
from tapescope.storage.text_file import check_regular, write_whole
from tapescope_trainers.flags import Options

CHANGEABLE = {
    "logdir",
    "data_dir",
    "epochs",
    "steps",
    "validate_every",
    "measure_every",
    "max_overhead_pct",
    "on_finding",
    "capture",
    "slow_every",
    "serve",
    "port",
    "progress",
    "checkpoint_every",
    "resume",
    "strategy",
    "devices",
    "cluster",
    "workers",
    "collective",
    "sink",
    "strict_io",
}
"""Flags that may change when a run continues; of the strategy only the number of replicas matters."""


_FLAGS = "flags.json"
_CHECKPOINT = re.compile(r"ckpt-(\d+)\.index")
_CHECKPOINT_FILE = re.compile(r"ckpt-\d+[._].*|step-\d+\.npz|replay-\d+\.json|(checkpoint|flags\.json)(\.new)?")


def checkpoint_directory(logdir: str) -> str:
    """Return the directory of a run's checkpoints."""
    return os.path.join(logdir, "checkpoints")


def list_checkpoints(directory: str) -> list[int]:
    """Return the numbers of steps of the checkpoints in a directory, by their own names, in rising order.

    TensorFlow's list of them, the file `checkpoint`, may be damaged or missing.
    """
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name)))


def check(options: Options) -> bool:
    """Return whether there is a run to continue. Nothing is changed.

    Raises:
        ValueError: The content of --logdir does not fit --resume, or the run was begun with other flags.
    """
    found = list_checkpoints(checkpoint_directory(options.logdir))
    if found and options.resume != "never":
        _check_flags(options)
        return True
    if options.resume == "must":
        raise ValueError(
            f"--resume=must: {options.logdir} has no checkpoint: to start a run, leave the flag out and add "
            f"--checkpoint_every=N"
        )
    if options.resume == "auto" and event_files(options.logdir):
        raise ValueError(
            f"--logdir={options.logdir} holds a run without checkpoints, which cannot continue: use another directory, "
            f"or --resume=never to replace that run"
        )
    return False


@contextlib.contextmanager
def replaced(logdir: str) -> Iterator[None]:
    """Move an earlier run's records and checkpoints aside; remove them after the block, or put them back if it raises.

    The files of other programs stay where they are. If the program is killed within the block, the earlier run is in
    the directories `.replaced-*`.
    """
    moved: list[tuple[str, str]] = []
    folders: list[str] = []
    try:
        for directory, paths in _files_by_directory(logdir):
            if paths:
                # Inside the directory itself, which may be a link to another disk.
                folders.append(tempfile.mkdtemp(prefix=".replaced-", dir=directory))
            for path in paths:
                aside = os.path.join(folders[-1], os.path.basename(path))
                os.replace(path, aside)
                moved.append((path, aside))
    except BaseException:
        _put_back(moved, folders)
        raise
    try:
        yield
    except BaseException:
        for _, paths in _files_by_directory(logdir):  # of the run that could not begin
            for path in paths:
                remove(path)
        _put_back(moved, folders)
        raise
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _put_back(moved: list[tuple[str, str]], folders: list[str]) -> None:
    for path, aside in moved:
        os.replace(aside, path)
    for folder in folders:
        os.rmdir(folder)


def remove(path: str) -> None:
    """Remove a file or a directory, as far as that is possible."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.remove(path)


def _files_by_directory(logdir: str) -> Iterator[tuple[str, list[str]]]:
    indexes = [os.path.join(logdir, name) for name in (run_index.JSON_NAME, run_index.MARKDOWN_NAME)]
    yield logdir, [*event_files(logdir), *filter(os.path.isfile, indexes)]
    for directory in state_directories(logdir):
        names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        yield directory, [os.path.join(directory, name) for name in names if _CHECKPOINT_FILE.fullmatch(name)]


def state_directories(logdir: str) -> tuple[str, str]:
    """Return the directories that may hold checkpoints of a run: to continue from, and to replay captured steps."""
    return checkpoint_directory(logdir), captured_step.directory(logdir)


def begin(options: Options, replicas: int, directory: str, data: Any, model: Any) -> None:
    """Write a new run's flags to a file, with what else is compared before it continues or is replayed.

    Args:
        options: The command line.
        replicas: Their number.
        directory: Of the run's checkpoints.
        data: Its training and validation examples.
        model: Its Keras model.
    """
    os.makedirs(directory, exist_ok=True)
    about = {
        "replicas": replicas,
        "directory": os.getcwd(),
        "data_checksum": checksum(data),
        "weight_shapes": weight_shapes(model),
    }
    write_whole(os.path.join(directory, _FLAGS), json.dumps({**options._asdict(), **about}, indent=1))


def weight_shapes(model: Any) -> list[list[int]]:
    """Return the shapes of a model's weights, in their order."""
    return [list(weight.shape) for weight in model.weights]


def checksum(data: Any) -> str:
    """Return a checksum of the training examples, in their order: arrays, or dicts of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (data.x_train, data.y_train):
        for name, array in sorted(part.items()) if isinstance(part, dict) else [("", part)]:
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def check_replicas(options: Options, replicas: int) -> None:
    """Raise ValueError if the run that continues had another number of replicas."""
    before = _read_flags(options.logdir).get("replicas", replicas)
    if before != replicas:
        raise ValueError(
            f"--devices={options.devices} with --strategy={options.strategy} makes {replicas} replicas, but the run in "
            f"{options.logdir} has {before}: use as many, or --resume=never to start over"
        )


def _check_flags(options: Options) -> None:
    before = _read_flags(options.logdir)
    for name, value in _fixed(options).items():
        if name in before and before[name] != value:
            raise ValueError(
                f"{_flag(name, value)}: the run in {options.logdir} was begun with {_flag(name, before[name])} and can "
                f"only continue with that: use it, another --logdir, or --resume=never to start over"
            )


def _flag(name: str, value: Any) -> str:
    return f"no --{name}" if value is None else f"--{name}={value}"


def _fixed(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options._asdict().items() if name not in CHANGEABLE}


def _read_flags(logdir: str) -> dict[str, Any]:
    return read_flags(checkpoint_directory(logdir))


def read_flags(directory: str) -> dict[str, Any]:
    """Return the flags that a run was begun with, and what `begin` has added.

    Raises:
        ValueError: They cannot be read.
    """
    path = os.path.join(directory, _FLAGS)
    try:
        with open(check_regular(path)) as file:
            fields = json.load(file)
        if not isinstance(fields, dict):
            raise ValueError(f"it holds {type(fields).__name__}")
    except Exception as error:  # the boundary of a file: whatever is wrong with it, its run cannot be compared
        raise ValueError(
            f"{path} cannot be read ({' '.join(str(error).split())}), so it is not known whether the flags are those "
            f"that the run was begun with: put a copy of the file back, or use another --logdir"
        ) from None
    return fields


def event_files(directory: str) -> list[str]:
    """Return the paths of tapescope's event files in a directory; empty if it does not exist."""
    return event_reader.find_event_files(directory).own
