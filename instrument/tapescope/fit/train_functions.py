"""The train functions of one fit: Keras' own, and one that also measures its batch.

Keras makes and compiles both in the same way, around the model's `train_step`.
"""

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tapescope.capture import optimizer_hooks, private_api
from tapescope.capture.objective import Objective
from tapescope.fit import first_run, optimizer_steps, train_step_hooks
from tapescope.fit.first_run import FirstRun
from tapescope.fit.train_step_hooks import LossCall
from tapescope.probe import Probe
from tapescope.statistics.reading import Reading
from tapescope.tape import MeasuringTape

_OUTPUT_PREFIX = "tapescope/"
"""Prefix of a reading's fields among the outputs of the measured train function."""


class TrainFunctions:
    """The train function that `fit` runs, and the measured one, which is made here and traced at its first batch.

    A measured function that cannot be made leaves `probe.failure`, and nothing may be measured then.

    Args:
      model: compiled.
      probe: of the model.
      plain: the model's train function; None where there is none yet.
      learning_rate: of the optimizer when the training began; None if it is unknown.
      batches_per_epoch: None if it is unknown.
    """

    def __init__(
        self,
        model: Any,
        probe: Probe,
        plain: Any,
        learning_rate: float | None,
        batches_per_epoch: int | None = None,
    ):
        self.plain = plain
        self._model = model
        self._probe = probe
        self._learning_rate = learning_rate
        self._batches_per_epoch = batches_per_epoch
        self._first_run: FirstRun | None = None
        """While the measured function runs for the first time."""
        self._has_run = False
        self._measured: Any = None
        # A graph of a `train_step` that is a tf.function has no measuring tape, or would keep one.
        self._measured_step = self._make_measured_step(private_api.python_function(model.train_step))
        with probe._state.failsafe.contain():
            self._measured = self._make_measured()

    def measure(self, iterator: Any) -> tuple[Any, Reading | None]:
        """Train one execution with the measured function.

        Older versions of Keras look `train_step` up when the function is traced, newer ones when it is made.

        Args:
          iterator: of the data set, or a list of one batch.

        Returns:
          What the plain function returns, and the reading; None if the measuring has failed.
        """
        with train_step_hooks.patch_attribute(self._model, "train_step", self._measured_step):
            outputs = self._measured(iterator) if self._has_run else self._run_first(iterator)
        self._has_run = True
        if self._probe.failure or not isinstance(outputs, dict):
            return outputs, None
        return outputs, self._take_reading(outputs)

    def _make_measured(self) -> Any:
        """Return the train function of measured batches; the model keeps its own."""
        model = self._model
        try:
            with train_step_hooks.patch_attribute(model, "train_step", self._measured_step):
                model.make_train_function(force=True)
            return model.train_function
        finally:
            model.train_function = self.plain

    def _run_first(self, iterator: Any) -> Any:
        """Run the measured function for the first time; if it fails, undo it and run the plain one."""
        failsafe = self._probe._state.failsafe
        if failsafe.strict or not first_run.can_be_undone(self._model, iterator):
            return self._measured(iterator)
        self._first_run = FirstRun(iterator)
        try:
            return self._measured(self._first_run.batch())
        except Exception as error:
            if not self._first_run.undo() or _is_of_optimizer(error):
                raise
            outputs = self.plain(self._first_run.batch())  # raises what is wrong with the step itself
            failsafe.give_up(error)
            return outputs
        finally:
            self._first_run = None

    def _take_reading(self, outputs: dict[str, Any]) -> Reading | None:
        """Take the reading out of the outputs of the measured function."""
        fields: list[Any] = [outputs.pop(_OUTPUT_PREFIX + field, None) for field in Reading._fields]
        with self._probe._state.failsafe.contain():
            if all(field is None for field in fields):
                raise ValueError(
                    f"the train function of {type(self._model).__name__} does not run its `train_step`, or that "
                    "returns no dict: write the loop with tapescope.Probe instead of Monitor"
                )
            return Reading(*fields)
        return None

    def _make_measured_step(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a `train_step` that also returns the fields of its reading, as further outputs."""

        def measured_train_step(data: Any) -> Any:
            model, probe = self._model, self._probe
            sums_before = optimizer_steps.accumulated_sums(model.optimizer)
            with (
                train_step_hooks.record_loss_scales(model.optimizer) as loss_scales,
                train_step_hooks.record_losses(model) as loss_calls,
                train_step_hooks.measure_tapes(probe) as tapes,
            ):
                outputs = train_step(data)
            used_tapes = [tape for tape in tapes if tape.has_gradient]
            if self._first_run is not None:
                with contextlib.suppress(Exception):  # variables of an unbuilt model, in the first of its two traces
                    self._first_run.copy_state(model)
            if probe.failure or not isinstance(outputs, dict):
                return outputs
            reading = None
            with probe._state.failsafe.contain():
                reading = self._read(used_tapes, loss_calls, loss_scales, sums_before)
            fields = {} if reading is None else reading._asdict()
            return {**outputs, **{_OUTPUT_PREFIX + name: value for name, value in fields.items()}}

        return measured_train_step

    def _read(
        self,
        tapes: Sequence[MeasuringTape],
        loss_calls: Sequence[LossCall],
        loss_scales: Sequence[Any],
        sums_before: Mapping[int, tf.Tensor],
    ) -> Reading | None:
        """Return the reading of a `train_step` that used these tapes."""
        if not tapes:
            raise ValueError(
                f"the train_step of {type(self._model).__name__} must take the gradient of its trainable variables "
                "from a tf.GradientTape; it took none, or only in a tf.function, a tf.cond or another tape within it: "
                "write the loop with tapescope.Probe instead of Monitor"
            )
        last_tape, *other_tapes = reversed(tapes)
        last_tape.objective = _objective(self._model, loss_calls)._replace(
            differentiated=last_tape.objective.differentiated,
            learning_rate=self._learning_rate,
            batches_per_epoch=self._batches_per_epoch,
        )
        loss_scale = loss_scales[-1] if loss_scales else None
        variables, gradients = zip(*last_tape.variable_gradients(*other_tapes), strict=True)
        aggregated, applied = optimizer_steps.aggregated_and_applied(
            self._model,
            sums_before,
            variables=variables,
            gradients=gradients,
            loss_scale=loss_scale,
        )
        return last_tape.reading(*other_tapes, aggregated=aggregated, applied=applied, loss_scale=loss_scale)


def _is_of_optimizer(error: Exception) -> bool:
    """Return whether an optimizer raised an error while the step was traced: measuring has no part in what it does."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [name for name in modules if name.startswith("tapescope.")]
    return own[-1:] == [optimizer_hooks.__name__] and modules[-1] != own[-1]


def measured_step(model: Any) -> tuple[Callable[[Any], Reading], Probe]:
    """Return a function that trains a compiled model on one batch, as `fit` does, and returns its reading.

    Args:
      model: compiled; its weights and optimizer change with each call.

    Returns:
      The function and the probe of its readings.

    Raises:
      ValueError: the model is not compiled. In a call: it cannot be measured.
    """
    if getattr(model, "optimizer", None) is None:
        raise ValueError(f"the model {model.name} must be compiled, as it was for `fit`: call model.compile first")
    probe = Probe(model, strict=True)
    functions = TrainFunctions(model, probe, model.train_function, learning_rate(model.optimizer))

    def step(batch: Any) -> Reading:
        _, reading = functions.measure([batch])
        assert reading is not None  # a strict probe raises
        return reading

    return step, probe


def learning_rate(optimizer: Any) -> float | None:
    """Return the learning rate of an optimizer as it is now; None where it has none that is a number."""
    try:
        rate: Any = keras.ops.convert_to_tensor(optimizer.learning_rate)
        return float(rate)
    except Exception:  # an optimizer of the user's own may have anything
        return None


def _objective(model: Any, calls: Sequence[LossCall]) -> Objective:
    """Return what a model is trained for, from the calls of its `compute_loss` in one step.

    A `train_step` that calls it several times compares outputs with other targets than the data set's, as that of a GAN
    does: nothing is said then. Nor is the loss if it compares by another one than the compiled.
    """
    if len(calls) != 1:
        return Objective()
    call = calls[0]
    is_number = tf.is_tensor(call.value) and call.value.shape.rank == 0  # a model's own may return several
    return Objective(
        loss=model.loss if call.is_compiled else None,
        targets=call.targets,
        outputs=call.outputs,
        metrics=[m.name for group in model.metrics for m in getattr(group, "metrics", ())],
        sample_weights=call.sample_weights,
        loss_value=call.value if is_number else None,
        output_names=getattr(model, "output_names", None) or (),
    )
