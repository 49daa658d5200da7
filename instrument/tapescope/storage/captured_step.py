"""A captured step: what is needed to run one step of a training again, in one npz file without pickle.

The file `captures/step-N.npz` of a run holds arrays and a JSON text. The text says what each array is, so that a batch
of nested tuples, lists and dicts comes back as it was.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope.storage.printable import describe_error
from tapescope.storage.text_file import check_regular

FOLDER = "captures"
"""Of a run's directory."""
FORMAT = 1
_FILE = re.compile(r"step-(\d+)\.npz")
_ABOUT = "about"
_PORTABLE = "fiubc"
"""Kinds of arrays that NumPy itself stores; others of a fixed size are stored as bytes, with the name of their type."""


class SavedVariable(NamedTuple):
    """The value of a variable before the step."""

    name: str
    value: np.ndarray


class CapturedStep(NamedTuple):
    """A step that can be run again, with the numbers that it is compared with."""

    step: int
    reason: str
    """Why it was captured."""
    loss: float
    gradient_norm: Mapping[str, float]
    """By variable, as recorded."""
    batch: Any
    """Arrays in nested tuples, lists and dicts; None where it was not given."""
    indices: np.ndarray | None
    """Of the batch's examples in the training data, [B]; None where they are not known."""
    model: Sequence[SavedVariable] | None
    """Weights and random state of the Probe's models before the step; None where they are not known."""
    optimizer: Sequence[SavedVariable] | None
    replicas: Sequence[int]
    """Examples of each replica, where the batch was theirs; empty with one."""


def directory(logdir: str | os.PathLike[str]) -> str:
    """Return the directory of a run's captured steps."""
    return os.path.join(logdir, FOLDER)


def path(logdir: str | os.PathLike[str], step: int) -> str:
    """Return the path of a captured step."""
    return os.path.join(directory(logdir), f"step-{step}.npz")


def list_captured(logdir: str | os.PathLike[str]) -> list[int]:
    """Return the captured steps of a run in rising order."""
    folder = directory(logdir)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def to_arrays(value: Any, convert: Callable[[Any], Any] = np.asarray) -> Any:
    """Return a batch with its leaves as arrays that can be stored.

    Args:
      value: arrays or tensors in nested tuples, lists and dicts.
      convert: from a leaf to an array.

    Raises:
      ValueError: a part cannot be stored without pickle.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("`batch` must have dicts with str keys to be captured")
        return {key: to_arrays(item, convert) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [to_arrays(item, convert) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if value is None:
        return None
    try:
        array = convert(value)
    except Exception as error:  # a class of the user
        raise ValueError(
            f"`batch` has a {type(value).__name__} that is not an array ({describe_error(error)})"
        ) from None
    if not isinstance(array, np.ndarray) and not np.isscalar(array):
        raise ValueError(f"`batch` has a {type(value).__name__}, which is not an array")
    array = np.array(array)  # a copy: the loop may use its buffer again
    if array.dtype == object and all(isinstance(item, bytes) for item in array.flat):
        text = array.astype("S")
        if np.array_equal(text.astype(object), array):  # a byte 0 at the end would be lost
            return text
    if array.dtype.hasobject:
        raise ValueError(
            f"`batch` must be arrays of numbers or text in tuples, lists and dicts to be captured; got a "
            f"{type(value).__name__} of objects, which only pickle could store: pass the arrays that it is made of"
        )
    return array


def write(logdir: str, captured: CapturedStep) -> int:
    """Write a captured step as a whole, and return the size of its file in bytes.

    Raises:
      OSError: it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}

    def store(array: np.ndarray) -> dict[str, Any]:
        name = f"array_{len(arrays)}"
        entry = {"array": name}
        if array.dtype.kind not in _PORTABLE + "SUMm":
            entry["type"] = array.dtype.name  # such as bfloat16, which NumPy does not know
            array = array.view(f"u{array.dtype.itemsize}")
        arrays[name] = array
        return entry

    def describe(value: Any) -> Any:
        if isinstance(value, dict):
            return {"dict": {key: describe(item) for key, item in value.items()}}
        if isinstance(value, (tuple, list)):
            return {type(value).__name__: [describe(item) for item in value]}
        return None if value is None else store(value)

    def describe_state(variables: Sequence[SavedVariable] | None) -> Any:
        return None if variables is None else [{"name": v.name, **store(v.value)} for v in variables]

    about = {
        "format": FORMAT,
        "step": captured.step,
        "reason": captured.reason,
        "batch": describe(captured.batch),
        "indices": None if captured.indices is None else store(captured.indices),
        "model": describe_state(captured.model),
        "optimizer": describe_state(captured.optimizer),
        "variables": list(captured.gradient_norm),
        "replicas": list(captured.replicas),
    }
    arrays["loss"] = np.array(captured.loss, np.float64)
    arrays["gradient_norm"] = np.array(list(captured.gradient_norm.values()), np.float32)
    arrays[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    os.makedirs(directory(logdir), exist_ok=True)
    target = path(logdir, captured.step)
    temporary = f"{target}.new"
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return os.path.getsize(target)


def read(logdir: str | os.PathLike[str], step: int) -> CapturedStep:
    """Read a captured step.

    Raises:
      ValueError: it was not captured, or its file is damaged.
    """
    found = list_captured(logdir)
    if step not in found:
        listed = f"captured are {', '.join(map(str, found))}" if found else "none is"
        raise ValueError(
            f'step {step} of {os.fspath(logdir)} was not captured; {listed}: train with capture="on_finding", which '
            "keeps the measured steps that show a spike, a NaN or an error"
        )
    file = path(logdir, step)
    try:
        with open(check_regular(file), "rb") as opened, np.load(opened) as stored:
            return _from_arrays({name: stored[name] for name in stored.files})
    except Exception as error:  # the boundary of a file: each kind of damage raises another type
        raise ValueError(f"{file} is damaged ({describe_error(error)}): put a copy of it back") from None


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> CapturedStep:
    about = json.loads(arrays[_ABOUT].tobytes())
    if about["format"] > FORMAT:
        raise ValueError(f"it is of format {about['format']}, which is newer than this version: update tapescope")

    def load(entry: Mapping[str, Any]) -> np.ndarray:
        array = arrays[entry["array"]]
        return array.view(np.dtype(entry["type"])) if "type" in entry else array

    def restore(entry: Any) -> Any:
        if entry is None:
            return None
        if "dict" in entry:
            return {key: restore(item) for key, item in entry["dict"].items()}
        for kind in (tuple, list):
            if kind.__name__ in entry:
                return kind(map(restore, entry[kind.__name__]))
        return load(entry)

    def restore_state(entries: Any) -> list[SavedVariable] | None:
        return None if entries is None else [SavedVariable(entry["name"], load(entry)) for entry in entries]

    norms = arrays["gradient_norm"].tolist()
    return CapturedStep(
        step=int(about["step"]),
        reason=str(about["reason"]),
        loss=float(arrays["loss"]),
        gradient_norm=dict(zip(map(str, about["variables"]), norms, strict=True)),
        batch=restore(about["batch"]),
        indices=restore(about["indices"]),
        model=restore_state(about["model"]),
        optimizer=restore_state(about["optimizer"]),
        replicas=tuple(map(int, about["replicas"])),
    )
