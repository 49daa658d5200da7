"""The state of a Probe that its tapes and its Recorder share."""

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from tapescope.capture import keras_kinds
from tapescope.capture.attention import AttentionCall, StreamPoint
from tapescope.capture.keras_replica_issues import ReplicaIssue
from tapescope.capture.layer_hooks import Capture, LayerCall
from tapescope.capture.objective import DataTensors
from tapescope.capture.selection import Names, Selection, merge_names
from tapescope.capture.training_mode import LayerModes, layer_modes
from tapescope.failsafe import Failsafe

_NOT_SEEN = (
    "it was not called inside the tape, or in a graph traced before, or by a layer around it that skips its "
    "`__call__`, as TimeDistributed does: choose that one by `layers=`"
)
_IN_CELL = "it is inside of a recurrent cell, which runs once a time step: the row of the RNN around it is measured"


class Layout(NamedTuple):
    """The rows of the readings of one traced program; another program of the same Probe may have others."""

    names: Names
    variables: Sequence[Any]
    """The V trainable variables, in the order of their rows."""


class ProbeState:
    """Selection, options, and what the measured steps have told so far.

    It is the Probe for the rest of the package: users have no promise about it.
    """

    def __init__(
        self,
        selection: Selection,
        failsafe: Failsafe,
        *,
        window_examples: int,
        histograms: bool,
        exact: bool,
        loss: Any = None,
        examples: Any = None,
    ):
        self.selection = selection
        self.failsafe = failsafe
        self.window_examples = window_examples
        self.histograms = histograms
        self.exact = exact
        self.loss = loss
        """The loss function that the program says it trains with; None where it says none."""
        self.examples = examples
        """How many examples a batch has, or a function that says it; see `tapescope.Probe`."""
        self.data: DataTensors | None = None
        """The rows of data of a reading, without the tensors; None until a measured step was traced."""
        self.names: Names | None = None
        """The rows of all readings so far, matched by name; None until a measured step was traced."""
        self.layouts: list[Layout] = []
        """The rows of each kind of reading; `Reading.layout` is an index of this list, which only grows."""
        self.skipped: dict[str, str] = {}
        """Reason by the name of each layer that could not be measured."""
        self.layer_modes = LayerModes()
        """Layers of the first measured step that act otherwise in training."""
        self.replica_issues: tuple[ReplicaIssue, ...] | None = None
        """What Keras does otherwise in this step with several replicas; None until one was measured."""
        self.optimizer_called = False
        """Whether a measured step called one of Keras' optimizers."""
        self._optimizers: list[weakref.ref[Any]] = []
        """These, the latest last. They are not kept alive: an optimizer may hold twice the weights."""
        self._noted_unmeasured = False
        self.tape_entered = False
        """Whether a measuring tape was entered."""

    @property
    def failure(self) -> str | None:
        """Where and why measuring failed; None while it did not."""
        return self.failsafe.failure

    def variables(self) -> list[Any]:
        """Return the V trainable variables."""
        return self.selection.variables()

    def note_optimizers(self, called: Sequence[Any]) -> None:
        """Note the optimizers that a measured step has called."""
        if called:
            self.optimizer_called = True
            called = [optimizer for optimizer in called if not keras_kinds.is_legacy(optimizer)]
            others = [o for o in self.optimizers() if not any(o is optimizer for optimizer in called)]
            self._optimizers = [weakref.ref(optimizer) for optimizer in (*others, *called)]

    def optimizers(self) -> list[Any]:
        """Return Keras' optimizers that measured steps have called, the latest last."""
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def note_unmeasured(self, variables: Sequence[Any]) -> None:
        """Say once that gradients of variables that the models do not train are not measured."""
        if variables and not self._noted_unmeasured:
            self._noted_unmeasured = True
            logging.info(
                "tapescope: the gradient of %s is taken and not measured, because the models of the Probe do not train "
                "it. If another model does, pass all models, as in Probe([generator, discriminator])",
                variables[0].name,
            )

    def set_names(
        self,
        calls: Sequence[LayerCall],
        captures: Sequence[Capture],
        variables: Sequence[Any],
        attention_calls: Sequence[AttentionCall] = (),
        stream: Sequence[StreamPoint] = (),
    ) -> int:
        """Note the rows of a step that is traced, and return the index of its layout.

        Args:
          calls: the layers' rows, in forward order.
          captures: of all tapes of the step.
          variables: the V variables that the step trains.
          attention_calls: whose heads are rows.
          stream: the points of the residual stream that are rows.
        """
        names = self.selection.names(calls, variables, attention_calls, stream)
        if self.names is None:
            self._set_skipped(calls, captures)
            self.layer_modes = layer_modes([capture.training_mode for capture in captures])
            self.names = names
        else:
            self._add_rows(self.names, names)
        without_sources = names._replace(sources=())  # eager steps do not know them
        for index, layout in enumerate(self.layouts):
            if layout.names._replace(sources=()) == without_sources:
                self.layouts[index] = layout._replace(variables=list(variables))
                return index
        self.layouts.append(Layout(names, list(variables)))
        return len(self.layouts) - 1

    def _add_rows(self, known: Names, names: Names) -> None:
        merged = merge_names(known, names)
        self.names = merged
        self.skipped = {k: reason for k, reason in self.skipped.items() if k not in names.layers or reason != _NOT_SEEN}
        units = dict(zip(merged.layers, merged.units, strict=True))
        for layer, number in zip(names.layers, names.units, strict=True):
            if number != units[layer]:
                self.skipped[layer] = (
                    f"the number of its units changes between steps, from {units[layer]} to {number}: the states of "
                    "its units are not recorded from there on; its other columns are"
                )
        added = [
            *(*merged.variables[len(known.variables) :], *merged.layers[len(known.layers) :]),
            *(*merged.heads[len(known.heads) :], *merged.residual[len(known.residual) :]),
        ]
        if added:
            logging.log_first_n(
                logging.INFO,
                "tapescope: a step measures rows that those before do not have, such as %s. They are added to the run; "
                "a record is NaN where its step does not have a row",
                1,
                added[0],
            )

    def set_data(self, data: DataTensors) -> list[str]:
        """Fix the rows of data at the first trace, and return their names. A later step may lack some of them."""
        if self.data is None:
            self.data = data._replace(tensors=(), weights=())
        names = [row.name for row in self.data.rows]
        if further := [row.name for row in data.rows if row.name not in names]:
            logging.log_first_n(
                logging.WARNING,
                "tapescope: `%s` is not recorded, because the first measured step did not have it: pass the same "
                "`targets` and `outputs` to `tape.reading()` in every step",
                1,
                further[0],
            )
        return names

    def _set_skipped(self, calls: Sequence[LayerCall], captures: Sequence[Capture]) -> None:
        self.skipped = {layer: reason for capture in captures for layer, reason in capture.skipped.items()}
        measured = {call.name for call in calls}
        for layer, reason in self.skipped.items():
            what = "one call of layer" if layer in measured else "layer"
            logging.warning("tapescope does not measure %s %s: %s", what, layer, reason)
        called = {id(call.layer) for call in calls}
        chosen = captures[0].chosen
        for layer, (path, _) in chosen.items():
            if layer not in called:
                self.skipped.setdefault(path, _NOT_SEEN)
        for path in self.selection.layers_in_cells():
            self.skipped.setdefault(path, _IN_CELL)
        if not chosen and self.selection.pattern is not None:
            logging.warning("tapescope measures no layer: none of the model's matches %r", self.selection.pattern)
        if chosen and not calls:
            logging.warning("tapescope measures no layer: %s", "; ".join(map(": ".join, self.skipped.items())))
