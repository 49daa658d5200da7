"""The tapes that a Probe makes: the plain program's, which is a `tf.GradientTape`, and the measured program's."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tapescope.capture import backward_passes, graph_isolation, layer_hooks, optimizer_hooks
from tapescope.capture.selection import is_variable
from tapescope.failsafe import blaming, misuse
from tapescope.statistics import reading as readings
from tapescope.statistics import replicas
from tapescope.statistics.reading import Partial, Reading

if TYPE_CHECKING:
    from tapescope.probe import Probe

as_it_is = tf.autograph.experimental.do_not_convert
"""AutoGraph would rewrite this whole library where it traces a step that calls it: seconds, for nothing."""

_numbers = itertools.count()


class Tape(tf.GradientTape):
    """The tape of the plain program; its readings are None."""

    def __init__(self, probe: "Probe", persistent: bool, watch_accessed_variables: bool):
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

    def __init__(self, probe: "Probe", persistent: bool, watch_accessed_variables: bool):
        super().__init__(probe, persistent, watch_accessed_variables)
        self._capture: layer_hooks.Capture | None = None
        self._passes: list[backward_passes.Pass] = []
        self._entered: bool = False
        self.closed: bool = False

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient of the model's variables was taken."""
        return any(one.gradients for one in self._passes)

    @as_it_is
    def __enter__(self) -> "MeasuringTape":
        if self._entered:
            raise misuse("this tape was used before: call `probe.tape(measure)` once for every step")
        self._entered = True
        with self._probe._guard():  # first: what is raised here must leave no tape open
            self._capture = layer_hooks.Capture(self._probe._selection.layers(), self._probe._guard)
        # It must outlast a backward pass that fails, for the plain one that is then taken in its place.
        asked, self._persistent = self._persistent, True
        super().__enter__()
        self._persistent = asked
        self._probe._used = True
        if self._capture is not None:
            self._capture.__enter__()
        return self

    @as_it_is
    def __exit__(self, typ: Any, value: Any, traceback: Any) -> None:
        if self._capture is not None:
            self._capture.__exit__()
        super().__exit__(typ, value, traceback)
        self.closed = True

    @as_it_is
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
        seen: layer_hooks.Capture,
        output_gradients: Any,
        unconnected_gradients: tf.UnconnectedGradients,
    ) -> Any:
        """The gradients that were asked for; those that measuring needs besides are kept."""
        flat, calls = tf.nest.flatten(sources), tuple(seen.calls)
        tensors = [t for call in calls for t in (call.a, call.z, call.input)]
        with layer_hooks.paused():
            asked = [t for t in tensors if t is not None]
            found = super().gradient(target, [*flat, *asked], output_gradients)
        inputs = {id(call.input) for call in calls}
        found = graph_isolation.at_once(found, [len(flat) + i for i, t in enumerate(asked) if id(t) in inputs])
        own, more = found[: len(flat)], iter(found[len(flat) :])
        deltas = [None if t is None else next(more) for t in tensors]
        read = [call.z if call.differentiated else call.a for call in calls]
        first = calls[0].input if calls else None
        given, *others = graph_isolation.beside([first, *read, *deltas])
        beside = iter(others)
        calls = tuple(
            call._replace(read=next(beside), given=None if number else given) for number, call in enumerate(calls)
        )
        deltas = list(beside)
        self._passes.append(
            backward_passes.Pass(
                number=next(_numbers),
                calls=calls,
                deltas=list(zip(*[iter(deltas)] * 3, strict=True)),
                gradients={id(s): g for s, g in zip(flat, own, strict=True) if id(s) in known},
                weights={v: tf.convert_to_tensor(variable) for v, variable in known.items()},
            )
        )
        if replicas.context()[1] > 1:
            optimizer_hooks.note()
        if unconnected_gradients == tf.UnconnectedGradients.ZERO:
            own = [tf.zeros_like(s) if g is None else g for s, g in zip(flat, own, strict=True)]
        return tf.nest.pack_sequence_as(sources, own)

    def _together(self, others: Sequence[Tape]) -> backward_passes.Together:
        tapes = [self, *others]
        for tape in tapes:
            if not isinstance(tape, MeasuringTape) or tape._probe is not self._probe:
                raise misuse("`others` must be measuring tapes of the same Probe and the same step")
            if not tape._passes:
                raise misuse("`tape.reading()` was called before `tape.gradient()`: there is no gradient to read yet")
        return backward_passes.together([one for tape in tapes for one in tape._passes], self._probe._selection)

    def own(self, *others: Tape) -> list[Any]:
        """The gradients that these tapes gave, of the V variables."""
        return self._together(others).gradients

    @as_it_is
    def partial(self, *others: Tape, loss_scale: Any = None) -> Partial | None:
        if self._probe.failure:
            return None
        with self._probe._guard(), graph_isolation.apart():
            all_ = self._together(others)
            captures = [t._capture for t in (self, *others) if isinstance(t, MeasuringTape)]
            self._probe._agree(all_.calls, [c for c in captures if c is not None])
            own = unscaled(graph_isolation.aside(all_.gradients), self._probe.variables, loss_scale)
            deltas = [
                unscaled(ds, [call.name] * 3, loss_scale) for call, ds in zip(all_.calls, all_.deltas, strict=True)
            ]
            return readings.measure(all_.calls, deltas, own, all_.weights, self._probe.histograms)
        return None

    @as_it_is
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


def unscaled(gradients: Sequence[Any], names: Sequence[str], loss_scale: Any) -> list[tf.Tensor | None]:
    """Dense, float32, and without the loss scale."""
    found = []
    for name, gradient in zip(names, gradients, strict=True):
        with blaming(name):
            plain = readings.dense(gradient)
            found.append(plain if plain is None or loss_scale is None else plain / tf.cast(loss_scale, tf.float32))
    return found
