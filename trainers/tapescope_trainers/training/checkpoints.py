"""Checkpoints of everything that a step depends on, so that a resumed training is bit-identical to an unbroken one."""

import glob
import io
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tapescope.storage.text_file import write_whole
from tapescope_trainers.training.resume import list_checkpoints, remove

KEPT = 3
"""Number of checkpoints that are kept, beside those from which captured steps are replayed."""
MAX_CAPTURE_BYTES = 4 << 30
"""Most bytes of the latter; the newest is kept in any case."""
_GRAPH_NODE = re.compile(r"\{\{.*?\}\}|\[Op:\w+\].*")
"""What TensorFlow adds to an error of the file system."""
_METRICS = "metrics/"
_RECORDER = "recorder/"


class Arrays(tf.train.experimental.PythonState):
    """NumPy arrays by name, saved in a checkpoint beside the variables."""

    def __init__(self) -> None:
        self.arrays: Mapping[str, Any] = {}

    def serialize(self) -> bytes:
        """Return the arrays as the bytes of an npz file."""
        file = io.BytesIO()
        np.savez(file, **self.arrays)
        return file.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        """Read the arrays from the bytes of an npz file."""
        with np.load(io.BytesIO(string_value), allow_pickle=False) as file:
            self.arrays = dict(file)


class Checkpoints:
    """The last KEPT checkpoints of one run in one directory, each named by the number of steps done.

    Those from which captured steps are replayed are kept as well.

    Only the chief of several workers `writes` them. The other workers read the chief's, and save to a temporary
    directory, because TensorFlow requires every worker to take part. Nothing is written before the first `save`.
    """

    def __init__(
        self,
        directory: str,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *,
        writes: bool = True,
        captured: Callable[[], Sequence[int]] = tuple,
    ):
        self._captured = captured
        weights = {id(variable) for variable in model.weights}
        # The states of seed generators, such as Dropout's, which tf.train.Checkpoint does not find in a model.
        seeds = [variable for variable in model.variables if id(variable) not in weights]
        self._host = Arrays()
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, random=seeds, host=self._host)
        self._directory = os.path.abspath(directory)
        # TensorFlow looks for a checkpoint's files by a pattern, so it gets a path without wildcards.
        self._plain = self._directory
        if re.search(r"[*?\[\\]", self._directory):
            self._plain = os.path.join(self._make_temporary(), "checkpoints")
            os.symlink(self._directory, self._plain)
        self._written = self._plain if writes else self._make_temporary()

    def save(self, steps: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Save the state after `steps` steps; `arrays` is the state that is not in variables.

        Raises:
            OSError: It cannot be written. Earlier checkpoints stay.
        """
        self._host.arrays = arrays
        directory = self._written
        try:
            os.makedirs(os.path.realpath(directory), exist_ok=True)
            self._checkpoint.write(os.path.join(directory, f"ckpt-{steps}"))
            found = list_checkpoints(directory)
            before = [number for number in found if number < steps]
            kept = sorted({*self._of_captured(before), *[*before, steps][-KEPT:]})
            lines = [f'model_checkpoint_path: "ckpt-{steps}"']
            lines += [f'all_model_checkpoint_paths: "ckpt-{number}"' for number in kept]
            write_whole(os.path.join(directory, "checkpoint"), "\n".join(lines) + "\n")
        except (tf.errors.OpError, OSError) as error:
            self._remove(directory, steps)
            reason = " ".join(_GRAPH_NODE.sub("", str(error)).split()).replace(self._written, self._directory)
            raise OSError(f"checkpoint of step {steps} cannot be written: {reason}") from None
        for number in set(found) - set(kept):
            self._remove(directory, number)

    def restore(self, steps: int | None = None) -> tuple[int, dict[str, np.ndarray]]:
        """Restore a checkpoint. A damaged one is named in a warning.

        Args:
            steps: Number of steps done at the checkpoint; by default the newest that can be read.

        Returns:
            The number of steps done, and the arrays passed to `save`.

        Raises:
            ValueError: No checkpoint can be read.
        """
        for number in reversed(list_checkpoints(self._directory)):
            if steps not in (None, number):
                continue
            name = f"ckpt-{number}"
            try:
                self._checkpoint.read(os.path.join(self._plain, name)).assert_existing_objects_matched()
            except Exception as error:  # TensorFlow raises another type for each kind of damage
                reason = str(error).strip().partition("\n")[0]
                path = os.path.join(self._directory, name)
                logging.getLogger(__name__).warning("checkpoint %s is damaged and skipped: %s", path, reason)
            else:
                return number, dict(self._host.arrays)
        raise ValueError(
            f"no checkpoint {'' if steps is None else f'of step {steps} '}in {self._directory} can be read: put a copy "
            f"of one back, or use another --logdir. All workers must see the same one"
        )

    def _of_captured(self, found: Sequence[int]) -> list[int]:
        """Return the checkpoints from which captured steps are replayed: of each, the newest that is not after it."""
        bases = [[number for number in found if number <= step] for step in self._captured()]
        kept: list[int] = []
        size = 0
        for number in sorted({base[-1] for base in bases if base}, reverse=True):
            paths = glob.glob(os.path.join(glob.escape(self._written), f"ckpt-{number}.*"))
            size += sum(map(os.path.getsize, paths))
            if not kept or size <= MAX_CAPTURE_BYTES:
                kept.append(number)
        return kept

    def _make_temporary(self) -> str:
        directory = tempfile.mkdtemp(prefix="tapescope-")
        weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
        return directory

    def _remove(self, directory: str, steps: int) -> None:
        """Remove a checkpoint, or what there is of one."""
        for name in os.listdir(directory):
            if re.fullmatch(rf"ckpt-{steps}[._].*|checkpoint\.new", name):
                remove(os.path.join(directory, name))


def pack(metrics: Mapping[str, float], recorder: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint.

    Args:
        metrics: Metrics of the last validation.
        recorder: The recorder's state.
    """
    arrays = {f"{_METRICS}{name}": np.array(value) for name, value in metrics.items()}
    return arrays | {f"{_RECORDER}{name}": array for name, array in recorder.items()}


def unpack(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the metrics and the recorder's state that were given to `pack`."""
    metrics = {name.removeprefix(_METRICS): float(a) for name, a in arrays.items() if name.startswith(_METRICS)}
    recorder = {name.removeprefix(_RECORDER): a for name, a in arrays.items() if name.startswith(_RECORDER)}
    return metrics, recorder
