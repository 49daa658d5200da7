"""Checkpoints of everything that a step depends on, so that a resumed training is bit-identical to an unbroken one."""

import io
import logging
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

KEPT = 3
"""Number of checkpoints that are kept."""
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

    Only the chief of several workers `writes` them. The other workers read the chief's, and save to a temporary
    directory, because TensorFlow requires every worker to take part.
    """

    def __init__(
        self, directory: str, model: keras.Model, optimizer: keras.optimizers.Optimizer, *, writes: bool = True
    ):
        weights = {id(variable) for variable in model.weights}
        # The states of seed generators, such as Dropout's, which tf.train.Checkpoint does not find in a model.
        seeds = [variable for variable in model.variables if id(variable) not in weights]
        self._host = Arrays()
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, random=seeds, host=self._host)
        self._directory = directory
        self._scratch = None if writes else tempfile.TemporaryDirectory()
        self._manager = tf.train.CheckpointManager(checkpoint, self._scratch.name if self._scratch else directory, KEPT)

    def save(self, steps: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Save the state after `steps` steps; `arrays` is the state that is not in variables."""
        self._host.arrays = arrays
        self._manager.save(steps)

    def restore(self, steps: int | None = None) -> tuple[int, dict[str, np.ndarray]]:
        """Restore a checkpoint. A damaged one is named in a warning.

        Args:
            steps: Number of steps done at the checkpoint; by default the newest that can be read.

        Returns:
            The number of steps done, and the arrays passed to `save`.

        Raises:
            ValueError: No checkpoint can be read.
        """
        state = tf.train.get_checkpoint_state(self._directory)
        paths = list(state.all_model_checkpoint_paths) if state else []
        if steps is not None:
            paths = [path for path in paths if path.endswith(f"-{steps}")]
        for path in reversed(paths):
            try:
                self._manager.checkpoint.restore(path).assert_existing_objects_matched()
            except Exception as error:  # TensorFlow raises another type for each kind of damage
                reason = str(error).strip().partition("\n")[0]
                logging.getLogger(__name__).warning("checkpoint %s is damaged and skipped: %s", path, reason)
            else:
                return int(path.rpartition("-")[2]), dict(self._host.arrays)
        raise ValueError(
            f"no checkpoint {'' if steps is None else f'of step {steps} '}in {self._directory} can be read: all "
            f"workers must see the same --logdir; --resume=never starts the run over"
        )


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
