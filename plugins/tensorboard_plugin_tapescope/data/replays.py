"""Answers of `tapescope replay`, read from the run's directory: they are files beside the records."""

import glob
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from tensorboard_plugin_tapescope import metadata

MAX_FILE_BYTES = 1 << 20
"""A larger file is not an answer of ours."""
MAX_ANSWERS = 20
"""The newest steps are shown."""
MAX_EXAMPLES = 10


def read_replays(logdir: str | None, run: str) -> list[dict[str, Any]]:
    """Return the replayed steps of a run, the newest step first. What cannot be read is left out.

    Args:
      logdir: TensorBoard's --logdir; None where it reads runs in another way, which has no files.
      run: name of a run that TensorBoard has listed.
    """
    if not logdir:
        return []
    pattern = os.path.join(glob.escape(os.path.join(os.path.expanduser(logdir), run)), "captures", "replay-*.json")
    found = [answer for path in glob.glob(pattern) if (answer := _read(path)) is not None]
    return sorted(found, key=lambda answer: -answer["step"])[:MAX_ANSWERS]


def _read(path: str) -> dict[str, Any] | None:
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > MAX_FILE_BYTES:
            return None
        with open(path, encoding="utf-8") as file:
            return _clean(json.load(file))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # a damaged or foreign file
        return None


def _clean(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are shown, with the types that the page expects."""
    layer = answer.get("first_layer")
    return {
        "step": int(answer["step"]),
        "reproduced": bool(answer["reproduced"]),
        "difference": _number(answer.get("difference")),
        "loss": _number(answer.get("loss")),
        "gradient_norm": _number(answer.get("gradient_norm")),
        "first_layer": layer and {"layer": str(layer["layer"]), "reason": str(layer["reason"])},
        "count": len(answer["examples"]),
        "examples": [
            {
                "index": int(example["index"]),
                "loss": _number(example.get("loss")),
                "gradient_norm": _number(example.get("gradient_norm")),
                "inputs": [_input(part) for part in example.get("inputs", ())],
            }
            for example in answer["examples"][:MAX_EXAMPLES]
        ],
        "variants": [
            {"change": str(v["change"]), "loss_after": _number(v.get("loss_after"))} for v in answer.get("variants", ())
        ],
        "notes": [str(note) for note in answer.get("notes", ())],
    }


def _input(part: Mapping[str, Any]) -> dict[str, Any]:
    values = [_number(value) for value in part["values"][: metadata.MAX_REPLAY_VALUES]]
    return {"name": str(part["name"]), "shape": [int(size) for size in part["shape"]], "values": values}


def _number(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
