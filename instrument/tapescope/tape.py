"""The tapes of a Probe: a `tf.GradientTape` for the plain program, and one that measures for the measured program.

A number goes one way. The tape keeps layer calls and backward passes; `reading` merges the passes, reduces them to a
Partial, and completes that to a Reading.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import tensorflow as tf

from tapescope.capture import (
    backward_passes,
    graph_isolation,
    keras_replica_issues,
    layer_hooks,
    objective,
    optimizer_hooks,
    private_api,
)
from tapescope.capture.attention import AttentionCall, StreamPoint
from tapescope.capture.backward_passes import BackwardPass
from tapescope.capture.layer_hooks import Capture, LayerCall
from tapescope.capture.objective import Objective
from tapescope.capture.selection import Names, is_keras_variable, is_variable
from tapescope.capture.state import ProbeState
from tapescope.failsafe import attribute_errors_to, misuse_error
from tapescope.statistics import partial as partials
from tapescope.statistics import reading as readings
from tapescope.statistics import replicas
from tapescope.statistics.batched_ops import constant
from tapescope.statistics.data import DataTensor
from tapescope.statistics.partial import Partial
from tapescope.statistics.reading import Reading
from tapescope.statistics.tensors import Gradient, SparseGradient

without_autograph = tf.autograph.experimental.do_not_convert
"""AutoGraph would rewrite this whole library where it traces a step that calls it, which takes seconds."""

_pass_numbers = itertools.count()

ReadyGradients = dict[int, Gradient]
"""Gradients as they are recorded (float32, unscaled), by the id of what the tape or the optimizer has."""


class Tape(tf.GradientTape):
    """The tape of the plain program; its readings are None."""

    def __init__(self, state: ProbeState, persistent: bool, watch_accessed_variables: bool):
        super().__init__(persistent, watch_accessed_variables)
        self._state = state

    def partial(
        self, *others: "Tape", loss_scale: Any = None, loss: Any = None, targets: Any = None, outputs: Any = None
    ) -> Partial | None:
        """Return this replica's statistics for `Probe.reading`, for a step whose first part is compiled by XLA.

        Args:
          *others: as in `reading`.
          loss_scale: as in `Probe.reading`.
          loss: as in `reading`.
          targets: as in `reading`.
          outputs: as in `reading`.

        Returns:
          The Partial; None where the step is not measured.
        """
        return None

    def reading(
        self,
        *others: "Tape",
        aggregated: Sequence[Any] | None = None,
        applied: Sequence[Any] | None = None,
        loss_scale: Any = None,
        loss: Any = None,
        targets: Any = None,
        outputs: Any = None,
    ) -> Reading | None:
        """Return the Reading of this step; call it after the optimizer's step.

        Args:
          *others: further tapes of the same probe in this step, as where a generator and a discriminator have one each.
            Each layer is read from the tape that trains it.
          aggregated: as in `Probe.reading`.
          applied: as in `Probe.reading`.
          loss_scale: as in `Probe.reading`.
          loss: the loss function, as for `tapescope.Probe`, where it is not that of the Probe.
          targets: what the loss compares the outputs with; a list or dict where there are several. They are recorded,
            and with `loss` the rules say whether output, loss and labels fit each other.
          outputs: what the loss was given, where it is not what the model returned.

        Returns:
          The Reading; None where the step is not measured.

        Raises:
          ValueError: an argument cannot be right.
        """
        return None


class MeasuringTape(Tape):
    """The tape of the measured program."""

    def __init__(self, state: ProbeState, persistent: bool, watch_accessed_variables: bool):
        super().__init__(state, persistent, watch_accessed_variables)
        self._capture: Capture | None = None
        self._single_use: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        self._passes: list[BackwardPass] = []
        self._entered: bool = False
        self._was_read: bool = False
        self._takes_jacobian: bool = False
        self._took_jacobian: bool = False
        self.objective = Objective()
        """What the step is trained for, as far as the program says it."""
        self.is_open: bool = False
        """Whether what the step does now is inside of this tape."""

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient of the model's variables was taken."""
        return any(each.gradients for each in self._passes)

    @property
    def calls(self) -> list[LayerCall]:
        """The layers' calls that the tape has seen, in forward order."""
        return [] if self._capture is None else self._capture.calls

    @without_autograph
    def __enter__(self) -> "MeasuringTape":
        if self._was_read:
            raise misuse_error(
                "a tape must be used for one step; this one has given its reading: call `probe.tape(measure)` in each"
            )
        state = self._state
        if not self._entered:
            with state.failsafe.contain():  # first, because an error that is raised here must leave no tape open
                selection = state.selection
                self._capture = Capture(
                    selection.layers(), state.failsafe, selection.keras_models(), selection.transformer_layers()
                )
        self._entered = True
        # The plain backward pass needs the recording after the measured one has failed.
        with private_api.record_persistently(self):
            super().__enter__()
        state.tape_entered = True
        self.is_open = True
        self._single_use = private_api.trace_for_single_use(self)
        self._single_use.__enter__()
        if self._capture is not None:
            self._capture.__enter__()
        return self

    @without_autograph
    def __exit__(self, typ: Any, value: Any, traceback: Any) -> None:
        if self._capture is not None:
            self._capture.__exit__()
        self._single_use.__exit__(None, None, None)
        super().__exit__(typ, value, traceback)
        self.is_open = False

    @without_autograph
    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: tf.UnconnectedGradients = tf.UnconnectedGradients.NONE,
    ) -> Any:
        """Return what `tf.GradientTape.gradient` returns, with the values of the plain tape.

        Args:
          target: as there.
          sources: as there. Gradients of variables that the Probe's models do not train are not measured.
          output_gradients: as there.
          unconnected_gradients: as there.

        Raises:
          ValueError: the tape was not entered.
        """
        unconnected_gradients = tf.UnconnectedGradients(unconnected_gradients)
        if self._takes_jacobian:
            return super().gradient(target, sources, output_gradients, unconnected_gradients)
        if not self._entered:
            raise misuse_error(
                "`tape.gradient` must be called after a step; got a tape that was not entered: "
                "use `with probe.tape(measure) as tape:` first"
            )
        variables = self._variables_by_source()
        others = [s for s in tf.nest.flatten(sources) if id(s) not in variables and is_variable(s)]
        self._state.note_unmeasured(others)
        failsafe = self._state.failsafe
        failure = None
        if self._capture is not None and not failsafe.failure:
            recorded = private_api.recording(self)
            try:
                return self._measured_gradient(target, sources, variables, output_gradients, unconnected_gradients)
            except Exception as error:
                if failsafe.strict:
                    raise
                failure = error
                private_api.restore_recording(self, recorded)
        plain = super().gradient(target, sources, output_gradients, unconnected_gradients)
        if failure is not None:  # an error in the user's own code was raised by the plain pass just now
            failsafe.give_up(failure)
        return plain

    def _variables_by_source(self) -> dict[int, Any]:
        """Return the V variables by the ids of what may be a source: a variable of Keras, or the one behind it."""
        variables = self._state.variables()
        behind = {id(v.value): v for v in variables if is_keras_variable(v)}
        return behind | {id(v): v for v in variables}

    @without_autograph
    def jacobian(self, *args: Any, **options: Any) -> Any:
        """Return what `tf.GradientTape.jacobian` returns. It is not measured: its rows are not the loss's gradient."""
        with self._jacobian():
            return super().jacobian(*args, **options)

    @without_autograph
    def batch_jacobian(self, *args: Any, **options: Any) -> Any:
        """Return what `tf.GradientTape.batch_jacobian` returns, which is not measured either."""
        with self._jacobian():
            return super().batch_jacobian(*args, **options)

    @contextlib.contextmanager
    def _jacobian(self) -> Iterator[None]:
        """Leave out the gradients that are taken in this block."""
        self._takes_jacobian = self._took_jacobian = True
        try:
            yield
        finally:
            self._takes_jacobian = False

    def _measured_gradient(
        self,
        target: Any,
        sources: Any,
        variables: Mapping[int, Any],
        output_gradients: Any,
        unconnected_gradients: tf.UnconnectedGradients,
    ) -> Any:
        """Return the gradients that were asked for; keep them, and those of the layers, as a pass.

        `variables` are by the ids of their sources.
        """
        flat_sources = tf.nest.flatten(sources)
        of_calls = [(call.a, call.z, call.input) for call in self.calls]
        present = [t for of_call in of_calls for t in of_call if t is not None]
        with layer_hooks.pause_capture():
            gradients = super().gradient(target, [*flat_sources, *present], output_gradients)
        if self._state.exact:
            inputs = {id(call.input) for call in self.calls}
            positions = [len(flat_sources) + i for i, t in enumerate(present) if id(t) in inputs]
            gradients = graph_isolation.flatten_gradient_sums(gradients, positions)
        requested = gradients[: len(flat_sources)]
        remaining = iter(gradients[len(flat_sources) :])
        deltas = [tuple(None if t is None else next(remaining) for t in of_call) for of_call in of_calls]
        calls, attention, stream = self._measurable_calls(requested, deltas)
        backward_pass = BackwardPass(
            number=next(_pass_numbers),
            calls=calls,
            attention=attention,
            stream=stream,
            gradients={
                id(variables[id(s)]): g for s, g in zip(flat_sources, requested, strict=True) if id(s) in variables
            },
            variables={id(v): v for v in variables.values()},
            weights={id(v): tf.convert_to_tensor(v) for v in variables.values()},
        )
        self._passes.append(backward_pass)
        if self.objective.differentiated is None and tf.is_tensor(target):
            self.objective = self.objective._replace(differentiated=target)
        optimizer_hooks.start_recording(keeps_gradients=replicas.context()[1] > 1)
        if unconnected_gradients == tf.UnconnectedGradients.ZERO:
            requested = [tf.zeros_like(s) if g is None else g for s, g in zip(flat_sources, requested, strict=True)]
        return tf.nest.pack_sequence_as(sources, requested)

    def _measurable_calls(
        self, requested: Sequence[Any], deltas: Sequence[tuple[Any, ...]]
    ) -> tuple[list[LayerCall], list[AttentionCall], list[StreamPoint]]:
        """Return the calls with what is measured of each.

        Args:
          requested: the gradients that the step takes.
          deltas: the gradients of a, z and input of each call.
        """
        seen = None if self._capture is None else self._capture.attention
        attention, stream = ([], []) if seen is None else (seen.calls, seen.stream)
        fused: list[Any] = []
        if self._state.exact:
            deltas, fused = self._gradients_of_the_step(requested, deltas)
        tensors: Any = (
            self.calls[0].input if self.calls else None,
            [call.z if call.differentiated else call.a for call in self.calls],
            deltas,
            [call.tensors() for call in attention],
            [point.tensor for point in stream],
        )
        if self._state.exact:
            measured = graph_isolation.tensors_to_measure(tf.nest.flatten(tensors), fused)
            tensors = tf.nest.pack_sequence_as(tensors, measured)
        first_input, outputs, deltas, of_attention, of_stream = tensors
        calls = [
            call._replace(measured=output, measured_input=None if i else first_input, deltas=of_call)
            for i, (call, output, of_call) in enumerate(zip(self.calls, outputs, deltas, strict=True))
        ]
        attention = [call.replace_tensors(*of_call) for call, of_call in zip(attention, of_attention, strict=True)]
        stream = [point._replace(tensor=tensor) for point, tensor in zip(stream, of_stream, strict=True)]
        return calls, attention, stream

    def _gradients_of_the_step(
        self, requested: Sequence[Any], deltas: Sequence[tuple[Any, ...]]
    ) -> tuple[list[tuple[Any, ...]], list[Any]]:
        """Return the deltas to measure, and the outputs of linear layers that are fused because no gradient needs them.

        TensorFlow makes one operation of a frozen linear layer and its GELU. A backward pass for measuring alone would
        prevent that. Where there is such a layer, only deltas that the step computes are measured.
        """
        fusible = [list(filter(graph_isolation.is_fused_without_gradient, (c.z, c.a))) for c in self.calls]
        if not any(fusible):
            return list(deltas), []
        computed = graph_isolation.operations_behind(requested)
        kept: list[tuple[Any, ...]] = []
        fused: list[Any] = []
        for of_layer, of_call in zip(fusible, deltas, strict=True):
            is_computed = not computed.isdisjoint(graph_isolation.operations_of(of_call[:2]))
            kept.append(of_call if is_computed else (None, None, None))
            fused.extend([] if is_computed else of_layer)
        return (kept, fused) if fused else (list(deltas), [])

    def _merged_pass(self, others: Sequence[Tape]) -> BackwardPass:
        passes: list[BackwardPass] = []
        for tape in (self, *others):
            if not isinstance(tape, MeasuringTape) or tape._state is not self._state:
                raise misuse_error("`others` must be measuring tapes of the same Probe and the same step")
            if not tape._passes and tape._took_jacobian:
                raise ValueError("a jacobian is not measured, and this step has no gradient besides")
            if not tape._passes:
                raise misuse_error(
                    "`tape.reading()` must be called after `tape.gradient()`; this tape has no gradient yet"
                )
            passes.extend(tape._passes)
        return backward_passes.merge_passes(passes, self._state.selection)

    def variable_gradients(self, *others: Tape) -> list[tuple[Any, Any]]:
        """Return the V variables, each with the gradient that these tapes gave; None where there is none."""
        merged = self._merged_pass(others)
        return [(merged.variables[v], gradient) for v, gradient in merged.gradients.items()]

    @without_autograph
    def partial(
        self, *others: Tape, loss_scale: Any = None, loss: Any = None, targets: Any = None, outputs: Any = None
    ) -> Partial | None:
        if self._state.failure:
            return None
        self._set_objective(loss, targets, outputs)
        with self._state.failsafe.contain(), private_api.without_op_callbacks():
            return self._measure(self._merged_pass(others), others, loss_scale, ready={}, sum_follows=False)
        return None

    def _measure(
        self, merged: BackwardPass, others: Sequence[Tape], loss_scale: Any, ready: ReadyGradients, sum_follows: bool
    ) -> Partial:
        """Return the Partial; add the gradients to `ready`. They are not reduced if that of the whole batch follows."""
        state = self._state
        tapes = [t for t in (self, *others) if isinstance(t, MeasuringTape)]
        for tape in tapes:
            tape._was_read = True
        captures = [t._capture for t in tapes if t._capture is not None]
        measured_data = self._data_to_measure(captures)
        with graph_isolation.measuring_scope():
            trained = list(merged.variables.values())
            layout = state.set_names(merged.calls, captures, trained, merged.attention, merged.stream)
            names = state.layouts[layout].names
            gradients = reduced_gradients(state, names, list(merged.gradients.values()), loss_scale, ready)
            calls = []
            for call in merged.calls:
                with attribute_errors_to(call.name):
                    delta_a, delta_z, delta_input = (
                        _unscaled(partials.dense(delta), loss_scale) for delta in call.deltas
                    )
                calls.append(call._replace(deltas=(delta_a, delta_z, delta_input)))
            summed_later = sum_follows or replicas.context()[1] > 1
            return partials.measure(
                calls,
                None if summed_later else gradients,
                list(merged.weights.values()),
                state.histograms,
                examples=state.examples,
                tensors=measured_data,
                heads=merged.attention,
                stream=[point.tensor for point in merged.stream],
                loss=self.objective.loss_value,
                layout=layout,
            )

    def _set_objective(self, loss: Any, targets: Any, outputs: Any) -> None:
        objective.check_loss(loss)
        said = self.objective
        self.objective = said._replace(
            loss=loss if loss is not None else said.loss if said.loss is not None else self._state.loss,
            targets=said.targets if targets is None else targets,
            outputs=said.outputs if outputs is None else outputs,
        )

    def _data_to_measure(self, captures: Sequence[Capture]) -> list[DataTensor]:
        """Return the inputs, targets and outputs to measure."""
        data = objective.collect([capture.data_path for capture in captures], self.objective)
        tensors = data.tensors
        if self._state.exact:
            tensors = graph_isolation.tensors_to_measure(tensors)
        measured = {
            row.name: DataTensor(tensor, weights, has_classes=row.kind == "target")
            for row, tensor, weights in zip(data.rows, tensors, data.weights, strict=True)
        }
        names = self._state.set_data(data)
        unknown = DataTensor(constant([float("nan")]), None, has_classes=False)
        return [measured.get(name, unknown) for name in names]

    @without_autograph
    def reading(
        self,
        *others: Tape,
        aggregated: Sequence[Any] | None = None,
        applied: Sequence[Any] | None = None,
        loss_scale: Any = None,
        loss: Any = None,
        targets: Any = None,
        outputs: Any = None,
    ) -> Reading | None:
        if self._state.failure:
            return None
        self._set_objective(loss, targets, outputs)
        partial = None
        gradients: list[Any] = []
        ready: ReadyGradients = {}
        with self._state.failsafe.contain(), private_api.without_op_callbacks():
            merged = self._merged_pass(others)
            gradients = list(merged.gradients.values())
            partial = self._measure(merged, others, loss_scale, ready, sum_follows=aggregated is not None)
        return complete_reading(
            self._state,
            partial,
            gradients,
            aggregated=aggregated,
            applied=applied,
            loss_scale=loss_scale,
            ready=ready,
        )


def complete_reading(
    state: ProbeState,
    partial: Partial | None,
    gradients: Sequence[Any],
    *,
    aggregated: Sequence[Any] | None,
    applied: Sequence[Any] | None,
    loss_scale: Any,
    ready: ReadyGradients,
) -> Reading | None:
    """Return the Reading that a Partial becomes; see `Probe.reading` for the arguments.

    `ready` holds gradients that were made ready before, for the same `loss_scale`.
    """
    if partial is None or state.failure:
        return None
    layout = cast(int, partial.layout.shape[0])
    names, variables = state.layouts[layout]
    for name, values in (("gradients", gradients), ("aggregated", aggregated), ("applied", applied)):
        if values is not None and len(values) != len(names.variables):
            raise misuse_error(
                f"`{name}` must have an element for each of the {len(names.variables)} trainable variables; "
                f"got {len(values)}: pass the whole list, with None where there is no gradient"
            )
    with state.failsafe.contain(), private_api.without_op_callbacks() as checked:
        state.note_optimizers(optimizer_hooks.called_optimizers())
        if replicas.context()[1] > 1:
            optimizers = optimizer_hooks.stop_recording(gradients)
            if state.replica_issues is None:  # another replica's thread may have been here
                issues = keras_replica_issues.replica_issues(state.selection.models, optimizers)
                if state.data is not None and state.data.is_mean_of_share:
                    issues += keras_replica_issues.mean_of_share_issues(optimizers)
                state.replica_issues = issues
        reading = readings.complete(
            partial,
            reduced_gradients(state, names, gradients, loss_scale, ready),
            None if aggregated is None else reduced_gradients(state, names, aggregated, loss_scale, ready),
            None if applied is None else reduced_gradients(state, names, applied, loss_scale, ready),
            weights=[tf.convert_to_tensor(v) for v in variables],
            names=names,
            layout=layout,
        )
        return readings.as_bits(reading) if checked else reading
    return None


def reduced_gradients(
    state: ProbeState, names: Names, gradients: Sequence[Any], loss_scale: Any, ready: ReadyGradients
) -> list[Gradient]:
    """Return gradients as they are recorded, from `ready` where they are there; add the others to it."""
    for name, gradient in zip(names.variables, gradients, strict=True):
        if id(gradient) not in ready:
            with attribute_errors_to(name):
                measured = graph_isolation.gradient_to_measure(gradient) if state.exact else gradient
                ready[id(gradient)] = _unscaled(partials.to_reduce(measured), loss_scale)
    return [ready[id(gradient)] for gradient in gradients]


def _unscaled(gradient: Any, loss_scale: Any) -> Any:
    if gradient is None or loss_scale is None:
        return gradient
    if isinstance(gradient, SparseGradient):
        return gradient._replace(values=_unscaled(gradient.values, loss_scale))
    return gradient / tf.cast(loss_scale, tf.float32)
