"""The state of a Probe that its tapes and its Recorder share."""

from collections.abc import Sequence
from typing import Any

from absl import logging

from tapescope.capture.keras_replica_issues import ReplicaIssue
from tapescope.capture.layer_hooks import Capture, LayerCall
from tapescope.capture.selection import Names, Selection
from tapescope.failsafe import Failsafe, misuse_error

_NOT_SEEN = (
    "it was not called inside the tape, or in a graph traced before, or by a layer around it that skips its "
    "`__call__`, as TimeDistributed does: choose that one by `layers=`"
)


class ProbeState:
    """Selection, options, and what the measured steps have told so far.

    `variables()` and the plain attributes are for the Recorder; the rest is for tapes.
    """

    def __init__(
        self, selection: Selection, failsafe: Failsafe, *, window_examples: int, histograms: bool, exact: bool
    ):
        self.selection = selection
        self.failsafe = failsafe
        self.window_examples = window_examples
        self.histograms = histograms
        self.exact = exact
        self.names: Names | None = None
        """The rows of a reading; None until a measured step was traced."""
        self.skipped: dict[str, str] = {}
        """Reason by the name of each layer that could not be measured."""
        self.replica_issues: tuple[ReplicaIssue, ...] | None = None
        """What Keras does otherwise in this step with several replicas; None until one was measured."""
        self.tape_entered = False
        """Whether a measuring tape was entered."""

    @property
    def failure(self) -> str | None:
        """Where and why measuring failed; None while it did not."""
        return self.failsafe.failure

    def variables(self) -> list[Any]:
        """Return the V trainable variables."""
        return self.selection.variables()

    def set_names(self, calls: Sequence[LayerCall], captures: Sequence[Capture]) -> None:
        """Fix the rows' names at the first trace; raise ValueError for a later trace that has other rows.

        Args:
          calls: the rows, in forward order.
          captures: of all tapes of the step.
        """
        names = self.selection.names(calls)
        if self.names is None:
            self._set_skipped(calls, captures)
            self.names = names
        elif names._replace(sources=self.names.sources) != self.names:  # eager steps do not know their sources
            raise misuse_error(
                f"the step must measure the rows that it had when it was first traced; they differ in "
                f"{_difference(names, self.names)}. The model was changed, or another program uses this Probe: "
                "make a new Probe, and a Recorder, for each"
            )

    def _set_skipped(self, calls: Sequence[LayerCall], captures: Sequence[Capture]) -> None:
        self.skipped = {layer: reason for capture in captures for layer, reason in capture.skipped.items()}
        for layer, reason in self.skipped.items():
            logging.warning("tapescope does not measure layer %s: %s", layer, reason)
        called = {id(call.layer) for call in calls}
        chosen = captures[0].chosen
        for layer, (path, _) in chosen.items():
            if layer not in called:
                self.skipped.setdefault(path, _NOT_SEEN)
        if chosen and not calls:
            logging.warning("tapescope measures no layer: %s", "; ".join(map(": ".join, self.skipped.items())))


def _difference(now: Names, before: Names) -> str:
    for rows, former_rows in ((now.layers, before.layers), (now.variables, before.variables)):
        if set(rows) != set(former_rows):
            return ", ".join(sorted(set(rows) ^ set(former_rows)))
    for layer, units, former_units in zip(now.layers, now.units, before.units, strict=False):
        if units != former_units:
            return f"`{layer}`, which has {units} units and had {former_units}"
    return "their order, activations or variables"
