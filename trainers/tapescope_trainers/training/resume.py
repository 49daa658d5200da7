"""The decision whether a run continues, made from --resume and --logdir before TensorFlow is imported."""

import glob
import json
import os
import shutil
from typing import Any

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
}
"""Flags that may change when a run continues; of the strategy only the number of replicas matters."""


def checkpoint_directory(logdir: str) -> str:
    """Return the directory of a run's checkpoints."""
    return os.path.join(logdir, "checkpoints")


def check(options: Options) -> bool:
    """Return whether there is a run to continue. With --resume=never, remove the earlier run.

    Raises:
        ValueError: The content of --logdir does not fit --resume, or the run was begun with other flags.
    """
    index = os.path.join(checkpoint_directory(options.logdir), "checkpoint")
    if os.path.exists(index) and options.resume != "never":
        _check_flags(options)
        return True
    if options.resume == "must":
        raise ValueError(
            f"--resume=must: {options.logdir} has no checkpoint: to start a run, leave the flag out and add "
            f"--checkpoint_every=N"
        )
    if options.resume == "never":
        shutil.rmtree(checkpoint_directory(options.logdir), ignore_errors=True)
        for path in event_files(options.logdir):
            os.remove(path)
    elif event_files(options.logdir):
        raise ValueError(
            f"--logdir={options.logdir} holds a run without checkpoints, which cannot continue: use another directory, "
            f"or --resume=never to replace that run"
        )
    return False


def begin(options: Options, replicas: int) -> None:
    """Write the flags and the number of replicas of a new run to a file."""
    os.makedirs(checkpoint_directory(options.logdir), exist_ok=True)
    path = _flags_path(options.logdir)
    with open(f"{path}.new", "w") as file:
        json.dump({**_fixed(options), "replicas": replicas}, file, indent=1)
    os.replace(f"{path}.new", path)


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


def _flags_path(logdir: str) -> str:
    return os.path.join(checkpoint_directory(logdir), "flags.json")


def _read_flags(logdir: str) -> dict[str, Any]:
    path = _flags_path(logdir)
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): --resume=never starts the run over") from None


def event_files(directory: str) -> list[str]:
    """Return the paths of a run's event files; empty if the directory does not exist."""
    return glob.glob(os.path.join(glob.escape(directory), "*.tfevents.*"))
