"""Checkpoints of all that a step depends on, so that a training that goes on is bit for bit one that never stopped."""

import io
import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

KEPT = 3


class Arrays(tf.train.experimental.PythonState):
    """What is no variable: NumPy arrays by name."""

    def __init__(self) -> None:
        self.arrays: Mapping[str, Any] = {}

    def serialize(self) -> bytes:
        file = io.BytesIO()
        np.savez(file, **self.arrays)
        return file.getvalue()

    def deserialize(self, string_value: bytes) -> None:
        with np.load(io.BytesIO(string_value), allow_pickle=False) as file:
            self.arrays = dict(file)


class Checkpoints:
    """Those of one run, in one directory: the last KEPT, each by the number of steps that were done.

    Of several workers only the chief `writes`; the others read what it wrote, and save into a folder that is thrown
    away, for TensorFlow wants all to take part.
    """

    def __init__(
        self, directory: str, model: keras.Model, optimizer: keras.optimizers.Optimizer, *, writes: bool = True
    ):
        weights = {id(v) for v in model.weights}
        # The states of seed generators, as Dropout has: tf.train.Checkpoint does not find these in a model.
        random = [v for v in model.variables if id(v) not in weights]
        self._host = Arrays()
        whole = tf.train.Checkpoint(model=model, optimizer=optimizer, random=random, host=self._host)
        self._directory, self._scratch = directory, None if writes else tempfile.TemporaryDirectory()
        self._manager = tf.train.CheckpointManager(whole, self._scratch.name if self._scratch else directory, KEPT)

    def save(self, steps: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Saves the state after `steps` steps; `arrays` is what is no variable."""
        self._host.arrays = arrays
        self._manager.save(steps)

    def restore(self, steps: int | None = None) -> tuple[int, dict[str, np.ndarray]]:
        """Goes back to the checkpoint after `steps` steps, or the newest that can be read; that number, and its arrays.

        A damaged one is named in a warning. Raises ValueError where there is none left.
        """
        all_of_them = tf.train.get_checkpoint_state(self._directory)
        paths = all_of_them.all_model_checkpoint_paths if all_of_them else []
        for path in reversed([p for p in paths if steps is None or p.endswith(f"-{steps}")]):
            try:
                self._manager.checkpoint.restore(path).assert_existing_objects_matched()
            except Exception as error:  # TensorFlow has an exception of another type for every way to be damaged
                why = str(error).strip().partition("\n")[0]
                logging.getLogger(__name__).warning("checkpoint %s is damaged and left out: %s", path, why)
            else:
                return int(path.rpartition("-")[2]), dict(self._host.arrays)
        raise ValueError(
            f"no checkpoint {'' if steps is None else f'of step {steps} '}in {self._directory} can be read: all "
            f"workers must see one --logdir; --resume=never starts the run over"
        )


def position(metrics: Mapping[str, float], recorder: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A checkpoint's arrays: the last validation's metrics, and the recorder's state."""
    numbers: dict[str, Any] = {f"metrics/{name}": np.array(value) for name, value in metrics.items()}
    return numbers | {f"recorder/{name}": array for name, array in recorder.items()}


def parts(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What `position` was made of."""
    of = {kind: {k[len(kind) :]: v for k, v in arrays.items() if k.startswith(kind)} for kind in _KINDS}
    return {name: float(value) for name, value in of["metrics/"].items()}, of["recorder/"]


_KINDS = ("metrics/", "recorder/")
