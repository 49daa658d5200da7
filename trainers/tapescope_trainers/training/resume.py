"""What --resume makes of a directory that may hold an earlier run. Decided before TensorFlow is imported."""

import json
import os
import shutil
from typing import Any

from tapescope_trainers.flags import Options

FREE = {
    *("logdir", "data_dir", "epochs", "steps", "validate_every", "measure_every", "max_overhead_pct", "on_finding"),
    *("serve", "port", "progress", "checkpoint_every", "resume"),
    *("strategy", "devices", "cluster", "workers", "collective"),
}
"""Flags that may change where a run goes on; of the strategy only the number of replicas matters."""


def folder(logdir: str) -> str:
    """Where a run's checkpoints are."""
    return os.path.join(logdir, "checkpoints")


def check(options: Options) -> bool:
    """Whether there is a run to go on with. Raises ValueError where --logdir is not what --resume wants."""
    saved = os.path.join(folder(options.logdir), "checkpoint")
    if os.path.exists(saved) and options.resume != "never":
        _same(options)
        return True
    if options.resume == "must":
        raise ValueError(
            f"--resume=must: {options.logdir} has no checkpoint: leave the flag out to start, with --checkpoint_every=N"
        )
    if options.resume == "never":
        shutil.rmtree(folder(options.logdir), ignore_errors=True)
        for path in _records(options.logdir):
            os.remove(path)
    elif _records(options.logdir):
        raise ValueError(
            f"--logdir={options.logdir} holds a run without checkpoints, which cannot go on: take another directory, "
            f"or --resume=never to replace that run"
        )
    return False


def begin(options: Options, replicas: int) -> None:
    """Notes by which flags a new run is made."""
    os.makedirs(folder(options.logdir), exist_ok=True)
    path = os.path.join(folder(options.logdir), "flags.json")
    with open(f"{path}.new", "w") as file:
        json.dump({**_fixed(options), "replicas": replicas}, file, indent=1)
    os.replace(f"{path}.new", path)


def check_replicas(options: Options, replicas: int) -> None:
    """Raises ValueError where the run that goes on had another number of replicas."""
    before = _noted(options.logdir).get("replicas", replicas)
    if before != replicas:
        raise ValueError(
            f"--devices={options.devices} with --strategy={options.strategy} makes {replicas} replicas, and the run in "
            f"{options.logdir} has {before}: take as many, or --resume=never to start over"
        )


def _same(options: Options) -> None:
    before, now = _noted(options.logdir), _fixed(options)
    for name, value in now.items():
        if name in before and before[name] != value:
            given, was = (f"--{name}={v}" if v is not None else f"no --{name}" for v in (value, before[name]))
            raise ValueError(
                f"{given}: the run in {options.logdir} was begun with {was}, and cannot go on otherwise: take that, "
                f"another --logdir, or --resume=never to start over"
            )


def _fixed(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options._asdict().items() if name not in FREE}


def _noted(logdir: str) -> dict[str, Any]:
    path = os.path.join(folder(logdir), "flags.json")
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): --resume=never starts the run over") from None


def _records(logdir: str) -> list[str]:
    return [os.path.join(logdir, name) for name in os.listdir(logdir) if ".tfevents." in name]
