"""Probe: what of a model is measured; it makes the tapes that measure it.

The plain program holds a plain `tf.GradientTape`: its graph is the one that the user's own step would have. The
measured program asks the same backward pass for a few gradients more (with respect to each layer's output,
pre-activation and input) and reduces all of it to a `Reading`: a few small tensors, whatever the size of the model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.capture import graph_isolation, keras_replica_issues, layer_graph, layer_hooks, optimizer_hooks
from tapescope.capture.selection import Names, Selection
from tapescope.failsafe import Guard, misuse
from tapescope.statistics import reading as readings
from tapescope.statistics import replicas
from tapescope.statistics.reading import Partial, Reading
from tapescope.tape import MeasuringTape, Tape, as_it_is, unscaled

_NOT_SEEN = (
    "it was not called inside the tape, or in a graph traced before, or by a layer around it that skips its "
    "`__call__`, as TimeDistributed does: choose that one by `layers=`"
)


class Probe:
    """Says what of a model is measured; makes the tapes that measure it.

    Args:
      model: a Keras 3 model of any kind, a `tf.Module`, a variable, or a list of these.
      layers: a regular expression, searched in the layers' paths: those that match are measured, whether they have an
        activation or not. None: every layer that has one. Tapped tensors are always measured.
      window_examples: the number of examples on which a unit must be silent to count as dead.
      histograms: whether the elements of gradients and activations are also counted into histograms.
      strict: raise what fails inside measuring. By default the step is then the plain one, and a warning says why.

    Raises ValueError for a model without a trainable variable and for a pattern that matches nothing.
    """

    def __init__(
        self,
        model: Any,
        layers: str | None = None,
        *,
        window_examples: int = 1024,
        histograms: bool = True,
        strict: bool = False,
    ):
        if isinstance(window_examples, bool) or not isinstance(window_examples, int) or window_examples < 1:
            raise ValueError(f"`window_examples` ({window_examples!r}) must be a positive number of examples")
        self.window_examples = window_examples
        self.histograms = histograms
        self.names: Names | None = None
        """What the rows of a reading are; None until a measured step was traced."""
        self.skipped: dict[str, str] = {}
        """Layers that could not be measured, and why."""
        self.faults: tuple[keras_replica_issues.Fault, ...] | None = None
        """What Keras does otherwise in this step with several replicas; None until one was measured."""
        self._used = False
        """Whether a measuring tape was entered."""
        self._selection = Selection(model, layers)
        self._guard = Guard(strict)

    @property
    def failure(self) -> str | None:
        """Where and why measuring failed, after which nothing is measured; None where it did not."""
        return self._guard.failure

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the V trainable variables."""
        return self._selection.variable_names()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the L layers in forward order; empty until a measured step was traced."""
        return self.names.layers if self.names else ()

    @as_it_is
    def tape(self, measure: bool, persistent: bool = False, watch_accessed_variables: bool = True) -> Tape:
        """A `tf.GradientTape` that also has `reading()`; where `measure` is False it is nothing more than a tape."""
        if not isinstance(measure, (bool, np.bool_)):
            raise ValueError(
                f"`measure` ({measure!r}) must be a Python bool, which makes two programs of one tf.function; "
                "pass `when(n)`, not a tensor"
            )
        kind = MeasuringTape if measure and not self.failure else Tape
        return kind(self, persistent, watch_accessed_variables)

    @as_it_is
    def reading(
        self,
        partial: Partial | Sequence[Partial | None] | None,
        gradients: Sequence[Any],
        *,
        aggregated: Sequence[Any] | None = None,
        applied: Sequence[Any] | None = None,
        loss_scale: Any = None,
    ) -> Reading | None:
        """Completes what `tape.partial()` returned, outside XLA and after the optimizer's step; None for None.

        With several replicas the collectives are here: the gradients' all-reduce, unless `aggregated` spares it, and
        one small one for everything else. All lists are in the order of the model's trainable variables.

        Args:
          partial: from `tape.partial()`, of this step; of one that accumulates, of each of its tapes in a list.
          gradients: what `tape.gradient` returned, or its sum: under replicas, each one's own.
          aggregated: the gradient of the whole batch, where the program has it: summed over the replicas, or over the
            small batches of an accumulated step. It is the one recorded.
          applied: what the optimizer was given, where it is not the same (clipped); summed over replicas if
            `aggregated` is.
          loss_scale: what the loss was multiplied with before `tape.gradient`; gradients are recorded without it.
        """
        if not isinstance(partial, Partial):
            parts = [one for one in partial or () if one is not None]
            partial = None
            with self._guard():
                partial = readings.accumulated(parts) if parts else None
        if partial is None or self.names is None or self.failure:
            return None
        lists = {"gradients": gradients, "aggregated": aggregated, "applied": applied}
        for name, given in lists.items():
            if given is not None and len(given) != len(self.names.variables):
                raise misuse(
                    f"`{name}` has {len(given)} elements, the model {len(self.names.variables)} trainable variables: "
                    "pass the whole list, with None where there is no gradient"
                )
        with self._guard():
            return self._complete(partial, lists, loss_scale)
        return None

    def _complete(self, partial: Partial, lists: dict[str, Any], loss_scale: Any) -> Reading:
        names: Any = self.names
        if replicas.context()[1] > 1:
            given_to = optimizer_hooks.optimizers(lists["gradients"])
            if self.faults is None:  # else another replica's thread was here
                self.faults = keras_replica_issues.of_step(self._selection.models, given_to)
        own, total, given = (
            None if gs is None else unscaled(graph_isolation.aside(gs), names.variables, loss_scale)
            for gs in lists.values()
        )
        owners = np.zeros([len(names.layers), len(names.variables)], bool)
        for layer, variables in enumerate(names.layer_variables):
            owners[layer, list(variables)] = True
        weights = [tf.convert_to_tensor(v) for v in self._selection.variables()]
        feeds = layer_graph.latest(names.sources)
        return readings.complete(partial, own or [], total, given, weights, owners, feeds)

    def _agree(self, calls: list[layer_hooks.Call], seen: list[layer_hooks.Capture]) -> None:
        """Fixes the rows' names at the first trace; refuses a later one that has others."""
        names = self._selection.names(calls)
        if self.names is None:
            self.skipped = {layer: why for one in seen for layer, why in one.skipped.items()}
            for layer, why in self.skipped.items():
                logging.warning("tapescope does not measure layer %s: %s", layer, why)
            called, chosen = {id(call.layer) for call in calls}, seen[0].chosen
            for layer, (path, _) in chosen.items():
                if layer not in called:
                    self.skipped.setdefault(path, _NOT_SEEN)
            if chosen and not calls:
                logging.warning("tapescope measures no layer: %s", "; ".join(map(": ".join, self.skipped.items())))
            self.names = names
        elif names._replace(sources=self.names.sources) != self.names:  # eager steps do not know their sources
            raise misuse(
                f"the step measures other rows than when it was first traced ({_difference(names, self.names)}): "
                "the model was changed, or another program uses this Probe: make a new Probe, and a Recorder, for each"
            )


def _difference(now: Names, before: Names) -> str:
    for rows, others in ((now.layers, before.layers), (now.variables, before.variables)):
        if set(rows) != set(others):
            return ", ".join(sorted(set(rows) ^ set(others)))
    for layer, units, others in zip(now.layers, now.units, before.units, strict=False):
        if units != others:
            return f"`{layer}` has {units} units and had {others}"
    return "their order, activations or variables"
