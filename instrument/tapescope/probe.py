"""Probe: what of a model is measured, and the tape that measures it.

The plain program holds a plain `tf.GradientTape`: its graph is the one that the user's own step would have. The
measured program asks the same backward pass for a few gradients more (with respect to each layer's output,
pre-activation and input) and reduces all of it to a `Reading`: a few small tensors, whatever the size of the model.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope import backward, capture, faults, flow, handed, replicas
from tapescope import reading as readings
from tapescope.guard import Guard, blaming, misuse
from tapescope.reading import Partial, Reading
from tapescope.selection import Names, Selection, is_variable

_as_it_is = tf.autograph.experimental.do_not_convert
"""AutoGraph would rewrite this whole library where it traces a step that calls it: seconds, for nothing."""


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
        self.faults: tuple[faults.Fault, ...] | None = None
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

    @_as_it_is
    def tape(self, measure: bool, persistent: bool = False, watch_accessed_variables: bool = True) -> "Tape":
        """A `tf.GradientTape` that also has `reading()`; where `measure` is False it is nothing more than a tape."""
        if not isinstance(measure, (bool, np.bool_)):
            raise ValueError(
                f"`measure` ({measure!r}) must be a Python bool, which makes two programs of one tf.function; "
                "pass `when(n)`, not a tensor"
            )
        kind = MeasuringTape if measure and not self.failure else Tape
        return kind(self, persistent, watch_accessed_variables)

    @_as_it_is
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
            given_to = handed.optimizers(lists["gradients"])
            if self.faults is None:  # else another replica's thread was here
                self.faults = faults.of_step(self._selection.models, given_to)
        own, total, given = (
            None if gs is None else _unscaled(gs, names.variables, loss_scale) for gs in lists.values()
        )
        owners = np.zeros([len(names.layers), len(names.variables)], bool)
        for layer, variables in enumerate(names.layer_variables):
            owners[layer, list(variables)] = True
        weights = [tf.convert_to_tensor(v) for v in self._selection.variables()]
        feeds = flow.latest(names.sources)
        return readings.complete(partial, own or [], total, given, weights, tf.constant(owners), feeds)

    def _agree(self, calls: list[capture.Call], seen: list[capture.Capture]) -> None:
        """Fixes the rows' names at the first trace; refuses a later one that has others."""
        names = self._selection.names(calls)
        if self.names is None:
            self.skipped = {layer: why for one in seen for layer, why in one.skipped.items()}
            for layer, why in self.skipped.items():
                logging.warning("tapescope does not measure layer %s: %s", layer, why)
            called, chosen = {id(call.layer) for call in calls}, seen[0].chosen
            for layer, (path, _) in chosen.items():
                if layer not in called:
                    self.skipped.setdefault(path, "it was not called inside the tape, or in a graph traced before")
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


_numbers = itertools.count()


class Tape(tf.GradientTape):
    """The tape of the plain program; its readings are None."""

    def __init__(self, probe: Probe, persistent: bool, watch_accessed_variables: bool):
        super().__init__(persistent, watch_accessed_variables)
        self._probe = probe

    def partial(self, *others: "Tape", loss_scale: Any = None) -> Partial | None:
        """What this replica knows, for `Probe.reading`; for a step whose first part is compiled by XLA."""
        return None

    def reading(
        self,
        *others: "Tape",
        aggregated: Sequence[Any] | None = None,
        applied: Sequence[Any] | None = None,
        loss_scale: Any = None,
    ) -> Reading | None:
        """What this step showed; call it after the optimizer's step. See `Probe.reading` for the arguments.

        `others` are further tapes of the same probe in this step, as where a generator and a discriminator have one
        each: each layer is read from the one that trains it.
        """
        return None


class MeasuringTape(Tape):
    """The tape of the measured program."""

    def __init__(self, probe: Probe, persistent: bool, watch_accessed_variables: bool):
        super().__init__(probe, persistent, watch_accessed_variables)
        self._capture: capture.Capture | None = None
        self._passes: list[backward.Pass] = []
        self._entered: bool = False
        self.closed: bool = False

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient of the model's variables was taken."""
        return any(one.gradients for one in self._passes)

    @_as_it_is
    def __enter__(self) -> "MeasuringTape":
        if self._entered:
            raise misuse("this tape was used before: call `probe.tape(measure)` once for every step")
        self._entered = True
        with self._probe._guard():  # first: what is raised here must leave no tape open
            self._capture = capture.Capture(self._probe._selection.layers(), self._probe._guard)
        # It must outlast a backward pass that fails, for the plain one that is then taken in its place.
        asked, self._persistent = self._persistent, True
        super().__enter__()
        self._persistent = asked
        self._probe._used = True
        if self._capture is not None:
            self._capture.__enter__()
        return self

    @_as_it_is
    def __exit__(self, typ: Any, value: Any, traceback: Any) -> None:
        if self._capture is not None:
            self._capture.__exit__()
        super().__exit__(typ, value, traceback)
        self.closed = True

    @_as_it_is
    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: tf.UnconnectedGradients = tf.UnconnectedGradients.NONE,
    ) -> Any:
        """As `tf.GradientTape.gradient`: the values are those of the plain tape."""
        if not self._entered:
            raise misuse("`tape.gradient` was called outside a step: use `with probe.tape(measure) as tape:` first")
        known = {id(v): v for v in self._probe._selection.variables()}
        for source in tf.nest.flatten(sources):
            if id(source) not in known and is_variable(source):
                raise misuse(
                    f"`sources` has a variable that the Probe does not know: {source.name}; "
                    "pass all models to Probe, as in Probe([generator, discriminator])"
                )
        guard, fault, held = self._probe._guard, None, self._tape
        if self._capture is not None and not guard.failure:
            try:
                return self._measured(target, sources, known, self._capture, output_gradients, unconnected_gradients)
            except Exception as error:
                if guard.strict:
                    raise
                fault, self._tape = error, held
        plain = super().gradient(target, sources, output_gradients, unconnected_gradients)
        if fault is not None:  # else it was the user's own, and raised just now
            guard.fail(fault)
        return plain

    def _measured(
        self,
        target: Any,
        sources: Any,
        known: Mapping[int, Any],
        seen: capture.Capture,
        output_gradients: Any,
        unconnected_gradients: tf.UnconnectedGradients,
    ) -> Any:
        """The gradients that were asked for; those that measuring needs besides are kept."""
        flat, calls = tf.nest.flatten(sources), tuple(seen.calls)
        tensors = [t for call in calls for t in (call.a, call.z, call.input)]
        with capture.paused():
            found = super().gradient(target, [*flat, *(t for t in tensors if t is not None)], output_gradients)
        own, more = found[: len(flat)], iter(found[len(flat) :])
        deltas = [None if t is None else next(more) for t in tensors]
        self._passes.append(
            backward.Pass(
                number=next(_numbers),
                calls=calls,
                deltas=list(zip(*[iter(deltas)] * 3, strict=True)),
                gradients={id(s): g for s, g in zip(flat, own, strict=True) if id(s) in known},
                weights={v: tf.identity(variable) for v, variable in known.items()},
            )
        )
        if replicas.context()[1] > 1:
            handed.note()
        if unconnected_gradients == tf.UnconnectedGradients.ZERO:
            own = [tf.zeros_like(s) if g is None else g for s, g in zip(flat, own, strict=True)]
        return tf.nest.pack_sequence_as(sources, own)

    def _together(self, others: Sequence[Tape]) -> backward.Together:
        tapes = [self, *others]
        for tape in tapes:
            if not isinstance(tape, MeasuringTape) or tape._probe is not self._probe:
                raise misuse("`others` must be measuring tapes of the same Probe and the same step")
            if not tape._passes:
                raise misuse("`tape.reading()` was called before `tape.gradient()`: there is no gradient to read yet")
        return backward.together([one for tape in tapes for one in tape._passes], self._probe._selection)

    def own(self, *others: Tape) -> list[Any]:
        """The gradients that these tapes gave, of the V variables."""
        return self._together(others).gradients

    @_as_it_is
    def partial(self, *others: Tape, loss_scale: Any = None) -> Partial | None:
        if self._probe.failure:
            return None
        with self._probe._guard():
            all_ = self._together(others)
            captures = [t._capture for t in (self, *others) if isinstance(t, MeasuringTape)]
            self._probe._agree(all_.calls, [c for c in captures if c is not None])
            own = _unscaled(all_.gradients, self._probe.variables, loss_scale)
            deltas = [
                _unscaled(ds, [call.name] * 3, loss_scale) for call, ds in zip(all_.calls, all_.deltas, strict=True)
            ]
            return readings.measure(all_.calls, deltas, own, all_.weights, self._probe.histograms)
        return None

    @_as_it_is
    def reading(
        self,
        *others: Tape,
        aggregated: Sequence[Any] | None = None,
        applied: Sequence[Any] | None = None,
        loss_scale: Any = None,
    ) -> Reading | None:
        partial = self.partial(*others, loss_scale=loss_scale)
        own = [] if partial is None else self.own(*others)
        return self._probe.reading(partial, own, aggregated=aggregated, applied=applied, loss_scale=loss_scale)


def _unscaled(gradients: Sequence[Any], names: Sequence[str], loss_scale: Any) -> list[tf.Tensor | None]:
    """Dense, float32, and without the loss scale."""
    found = []
    for name, gradient in zip(names, gradients, strict=True):
        with blaming(name):
            plain = readings.dense(gradient)
            found.append(plain if plain is None or loss_scale is None else plain / tf.cast(loss_scale, tf.float32))
    return found
