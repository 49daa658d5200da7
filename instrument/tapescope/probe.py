"""Probe: chooses what of a model is measured, and makes the tapes that measure it.

The plain program holds a plain `tf.GradientTape`, so its graph is the one that the user's own step would have. The
measured program asks the same backward pass for a few gradients more: with respect to each layer's output,
pre-activation and input. All of it is reduced to a `Reading`, a few small tensors whatever the size of the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope.capture import objective
from tapescope.capture.keras_replica_issues import ReplicaIssue
from tapescope.capture.selection import Names, Selection, compile_pattern
from tapescope.capture.state import ProbeState
from tapescope.failsafe import Failsafe, misuse_error
from tapescope.statistics import partial as partials
from tapescope.statistics.layers import Examples
from tapescope.statistics.partial import Partial
from tapescope.statistics.reading import Reading
from tapescope.tape import MeasuringTape, Tape, complete_reading, without_autograph


def check_options(layers: Any, window_examples: Any, examples: Any) -> None:
    """Raise ValueError if an argument of Probe cannot be right whatever the model is."""
    compile_pattern(layers)
    if isinstance(window_examples, bool) or not isinstance(window_examples, int) or window_examples < 1:
        raise ValueError(f"`window_examples` must be a positive number of examples; got {window_examples!r}")
    if not (examples is None or callable(examples) or (type(examples) is int and examples > 0)):
        raise ValueError(f"`examples` must be a positive number, a function of a shape, or None; got {examples!r}")


class Probe:
    """Chooses what of a model is measured, and makes the tapes that measure it.

    Args:
      model: a model of Keras 3 or of tf_keras of any kind, a `tf.Module`, a variable, or a list of these.
      layers: a regular expression, searched in the layers' paths: those that match are measured, whether they have an
        activation or not. None: every layer that has one. Tapped tensors are always measured.
      window_examples: the number of examples on which a unit must be silent to count as dead.
      histograms: whether the elements of gradients and activations are also counted into histograms.
      exact: whether a measured step keeps the bits of a plain one. Some operations are then computed twice or copied,
        and some inputs in the traced graph are replaced. With False the graph of the step is left alone: every tensor
        is measured as it is, and TensorFlow may round the step otherwise while it is measured.
      strict: raise what fails inside measuring. By default the step is then the plain one, and a warning says why.
      loss: the loss function that the step trains with: the name of one of Keras', a `keras.losses.Loss`, a function,
        or a list or dict of them, one for each output. With the targets that `tape.reading(targets=)` is given, the
        rules say whether output, loss and labels fit each other.
      examples: how many examples a batch of one replica has, where that is not the first axis of the first layer's
        output (recurrent layers with time first, nodes of a graph): a number, or a function from the shape of that
        output, an int32 tensor, to it, such as `lambda shape: shape[1]`.

    Raises:
      ValueError: the model has no trainable variable, the pattern matches nothing, or an argument cannot be right.
    """

    def __init__(
        self,
        model: Any,
        layers: str | None = None,
        *,
        window_examples: int = 1024,
        histograms: bool = True,
        exact: bool = True,
        strict: bool = False,
        loss: Any = None,
        examples: Examples = None,
    ):
        objective.check_loss(loss)
        check_options(layers, window_examples, examples)
        self._state = ProbeState(
            Selection(model, layers),
            Failsafe(strict),
            window_examples=window_examples,
            histograms=histograms,
            exact=exact,
            loss=loss,
            examples=examples,
        )

    @property
    def window_examples(self) -> int:
        """The number of examples on which a unit must be silent to count as dead."""
        return self._state.window_examples

    @property
    def histograms(self) -> bool:
        """Whether elements are counted into histograms."""
        return self._state.histograms

    @property
    def exact(self) -> bool:
        """Whether a measured step keeps the bits of a plain one."""
        return self._state.exact

    @property
    def names(self) -> Names | None:
        """The rows of a reading; None until a measured step was traced."""
        return self._state.names

    @property
    def skipped(self) -> dict[str, str]:
        """The layers that could not be measured, and why."""
        return self._state.skipped

    @property
    def faults(self) -> tuple[ReplicaIssue, ...] | None:
        """The replica issues: what Keras does otherwise in this step with several replicas; None until measured."""
        return self._state.replica_issues

    @property
    def failure(self) -> str | None:
        """Where and why measuring failed, after which nothing is measured; None while it did not."""
        return self._state.failure

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the V trainable variables."""
        return self._state.selection.variable_names()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the L layers in forward order; empty until a measured step was traced."""
        return self.names.layers if self.names else ()

    @without_autograph
    def tape(self, measure: bool, persistent: bool = False, watch_accessed_variables: bool = True) -> Tape:
        """Return a `tf.GradientTape` that also has `reading()`.

        Args:
          measure: whether it measures; if not, it is a plain tape whose readings are None.
          persistent: as for `tf.GradientTape`.
          watch_accessed_variables: as for `tf.GradientTape`.

        Raises:
          ValueError: `measure` is not a Python bool.
        """
        if not isinstance(measure, (bool, np.bool_)):
            raise ValueError(
                f"`measure` must be a Python bool, which makes two programs of one tf.function; got {measure!r}: "
                "pass `when(n)`, not a tensor"
            )
        tape_class = MeasuringTape if measure and not self.failure else Tape
        return tape_class(self._state, persistent, watch_accessed_variables)

    @without_autograph
    def reading(
        self,
        partial: Partial | Sequence[Partial | None] | None,
        gradients: Sequence[Any],
        *,
        aggregated: Sequence[Any] | None = None,
        applied: Sequence[Any] | None = None,
        loss_scale: Any = None,
    ) -> Reading | None:
        """Return the Reading that `tape.partial()` becomes, outside XLA and after the optimizer's step.

        With several replicas the collectives are here: the gradients' all-reduce, unless `aggregated` is passed, and a
        small one for all other numbers. All lists are in the order of the model's trainable variables.

        Args:
          partial: from `tape.partial()`, of this step; of an accumulated step, a list of those of all its tapes.
          gradients: what `tape.gradient` returned, or its sum: under replicas, each one's own.
          aggregated: the gradient of the whole batch, where the program has it: summed over the replicas, or over the
            small batches of an accumulated step. It is the one recorded.
          applied: what the optimizer got, where it differs (clipped); summed over replicas if `aggregated` is.
          loss_scale: what the loss was multiplied with before `tape.gradient`; gradients are recorded without it.

        Returns:
          The Reading; None where `partial` is None or holds None only.

        Raises:
          ValueError: a list does not have an element for each trainable variable.
        """
        parts = [partial] if isinstance(partial, Partial) else [part for part in partial or () if part is not None]
        if any(isinstance(part.layout, tf.distribute.DistributedValues) for part in parts):
            raise misuse_error(
                "`partial` must be of one replica; got those of all replicas: call `probe.reading` in a function that "
                "`strategy.run` runs"
            )
        if not isinstance(partial, Partial):
            partial = None
            with self._state.failsafe.contain():
                partial = partials.accumulate(parts) if parts else None
        return complete_reading(
            self._state,
            partial,
            gradients,
            aggregated=aggregated,
            applied=applied,
            loss_scale=loss_scale,
            ready={},
        )
