"""The slow columns: numbers of weights and optimizer as they are between two steps.

They read all weights several times, and nothing of the step itself. So they are not in the measured program but in one
of their own, which the Recorder calls now and then. See docs/decisions/0065-slow-columns-between-steps.md.

Letters: V variables.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture.optimizer_state import Moments
from tapescope.statistics import reductions, single_pass, stable_rank
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.batched_ops import concat, constant, distinct_tensors, expand_columns

NAN = float("nan")


class SlowRows(NamedTuple):
    """The slow columns of one step, not finished yet."""

    rows: tf.Tensor
    """First and second moment, Frobenius norm, and `stable_rank.ROWS` more by variable, float32 [3 + ROWS, V]."""
    names: tuple[str, ...]
    """Of the V variables."""

    def columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return `metadata.SLOW_COLUMNS` by name, for these variables; NaN where one is unknown."""
        first, second, frobenius, *rows = self.rows.numpy()
        columns = {
            "first_moment_norm": first,
            "second_moment_norm": second,
            "stable_rank": stable_rank.stable_ranks(frobenius, np.array(rows)),
        }
        place = {name: i for i, name in enumerate(self.names)}
        at = [place.get(name, -1) for name in names]
        return {name: np.append(column, NAN)[at] for name, column in columns.items()}


def measurement(variables: Sequence[Any], moments: Moments, equations: Mapping[int, str]) -> Callable[[], tf.Tensor]:
    """Return a compiled function that measures the variables as they are when it is called.

    Args:
      variables: V of them.
      moments: of these.
      equations: of EinsumDense layers, by the id of their kernel.

    Returns:
      The function; it returns `SlowRows.rows`.
    """

    def measure() -> tf.Tensor:
        both = (*moments.first, *moments.second)
        kept = [None if v is None else tensor_statistics.as_float32(tf.convert_to_tensor(v)) for v in both]
        matrices = [_matrix(tf.convert_to_tensor(v), equations.get(id(v))) for v in variables]
        size = len(variables)
        tensors = [*kept, *matrices]
        norms = constant(np.full(len(tensors), NAN))
        if distinct_tensors(tensors):
            norms = single_pass.compiled(lambda: reductions.run(tensor_statistics.norms(tensors)))
        rows = constant(np.full([stable_rank.ROWS, size], NAN))
        present = distinct_tensors(matrices)
        if present:  # not compiled for a GPU: its products are a library's, and XLA would take seconds for its steps
            rows = expand_columns(stable_rank.bidiagonal_rows(present), matrices)
        return concat([tf.reshape(norms, [3, size]), rows], 0)

    return tf.function(measure, autograph=False)


def _matrix(weight: tf.Tensor, equation: str | None) -> tf.Tensor | None:
    axes = stable_rank.input_axes(tuple(weight.shape), equation)
    if axes is None or weight.dtype.is_complex:
        return None
    return stable_rank.as_matrix(tensor_statistics.as_float32(weight), axes)
