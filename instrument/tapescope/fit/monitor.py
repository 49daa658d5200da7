"""The Monitor: the records of a Recorder, from `model.fit`, as a Keras callback.

Measured batches run a second train function. Keras makes and compiles it as it does fit's own, around the model's
`train_step`. All other batches run fit's own. README.md in this folder lists what is patched, when, and until when.
"""

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from absl import logging

from tapescope.capture import private_api
from tapescope.capture.objective import Objective
from tapescope.fit import first_run, optimizer_steps, run_directory, train_step_hooks
from tapescope.fit.first_run import FirstRun
from tapescope.fit.train_step_hooks import LossCall
from tapescope.probe import Probe
from tapescope.recorder import Recorder
from tapescope.schedule import Schedule, as_schedule
from tapescope.slow_measurement import SLOW_STEPS, check_slow_every
from tapescope.statistics import replicas
from tapescope.statistics.layers import Examples
from tapescope.statistics.reading import Reading
from tapescope.storage.captures import check_mode
from tapescope.storage.event_file import absolute
from tapescope.storage.resume import Resume
from tapescope.storage.sinks import Sink, check_sinks
from tapescope.tape import MeasuringTape

_lock = threading.Lock()
_monitors: "weakref.WeakValueDictionary[str, Monitor]" = weakref.WeakValueDictionary()
"""The last Monitor of this process that recorded in each directory."""
_OUTPUT_PREFIX = "tapescope/"
"""Prefix of a reading's fields among the outputs of the measured train function."""


class Monitor(keras.callbacks.Callback):
    """A callback that records gradients, activations and units of `model.fit`, for the Gradients tab.

    A second `fit` of the same model continues the run, and so does a new Monitor whose fit begins at a later epoch. Any
    other new Monitor begins the run anew. A fit of another model is recorded beside it, in `logdir`_2, `logdir`_3, ...
    A fit that cannot be measured is trained as without Monitor; why is logged once.

    The column `loss` is that of the measured batch; the scalar `loss` is fit's own, the mean over the epoch so far. If
    the optimizer accumulates gradients, the next batch that changes weights is measured, and the recorded gradient is
    the accumulated one. If it clips them, `applied_norm` is the norm after clipping.

    Args:
      logdir: the run's directory. By default a new one in `runs`, named by the model and the time; the first fit makes
        it, and prints how to look at it.
      when: which batches to measure, counted from the first; `tapescope.auto()` by default. With `steps_per_execution`
        above 1, it is asked once for each execution and counts executions. The record is then of the execution's last
        batch.
      on_finding: "stop" ends the training when the rules find an error; "continue" only records it.
      layers: as for `tapescope.Probe`.
      window_examples: as for `tapescope.Probe`.
      histograms: as for `tapescope.Probe`.
      exact: as for `tapescope.Probe`.
      strict: as for `tapescope.Probe`.
      examples: as for `tapescope.Probe`.
      sinks: as for `tapescope.Recorder`.
      capture: "on_finding" keeps each measured batch that shows a spike, a NaN or Inf, or an error, with weights and
        optimizer before it, as `tapescope.Recorder` does; `tapescope.replay(run, step, model)` runs it again. Not with
        `steps_per_execution` above 1.
      slow_every: as for `tapescope.Recorder`.

    Raises:
      ValueError: `on_finding`, `capture` or `slow_every` has another value.
      OSError: in `fit`: the directory cannot be written, or another program writes there.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str] | None = None,
        when: Schedule | None = None,
        *,
        on_finding: Literal["continue", "stop"] = "continue",
        layers: str | None = None,
        window_examples: int = 1024,
        histograms: bool = True,
        exact: bool = True,
        strict: bool = False,
        examples: Examples = None,
        sinks: Sequence[str | Sink] = (),
        capture: str = "never",
        slow_every: int = SLOW_STEPS,
    ):
        super().__init__()
        if on_finding not in ("continue", "stop"):
            raise ValueError(f'`on_finding` must be "continue" or "stop"; got {on_finding!r}')
        self._on_finding = on_finding
        check_sinks(sinks)
        check_mode(capture)
        check_slow_every(slow_every)
        self._sinks = sinks
        self._capture = capture
        self._slow_every = slow_every
        self._given_logdir = logdir
        self._when = as_schedule(when)
        self._probe_options: dict[str, Any] = {
            "layers": layers,
            "window_examples": window_examples,
            "histograms": histograms,
            "exact": exact,
            "strict": strict,
            "examples": examples,
        }
        self._begin_without_run()

    def _begin_without_run(self) -> None:
        """Set what a Monitor knows before its first fit."""
        self.logdir: str | None = None if self._given_logdir is None else os.fspath(self._given_logdir)
        """The run's directory; None before the first fit of a Monitor that was given none."""
        self._runs = 1
        """Models recorded, each as a run of its own."""
        self._probe: Probe | None = None
        self._probed_model: Any = None
        self._learning_rate: float | None = None
        """Of the optimizer, when the first fit began."""
        self._executions = 0
        """Executions ended, in all fits."""
        self._wanted: bool | None = None
        """The schedule's answer for the next execution to end; None before it was asked."""
        self._batches = 0
        """Batches ended, in all fits."""
        self._batches_before_epoch = 0
        self._executions_before_epoch = 0
        self._due = False
        """Whether the schedule has asked for a measured batch that has not run yet."""
        self._plain_function: Any = None
        self._measured_function: Any = None
        """None in a fit that is not measured."""
        self._measured_step: Any = None
        """The `train_step` of `_measured_function`."""
        self._first_run: FirstRun | None = None
        """While the measured train function runs for the first time."""
        self._has_run = False
        """True once the measured train function has run in this fit."""
        self._reading: Reading | None = None
        self._batch: Any = None
        """Of the reading, where batches are captured."""
        self._has_validated = False
        """True after a validation in this epoch."""
        self._claimed = False
        """Whether the directory is this Monitor's, in this fit."""
        self._recording = False
        """Whether the recorder is open."""
        self._resume: Resume | None = None
        self.recorder: Recorder | None = None
        """The Recorder of the current or last fit."""

    def _begin_next_run(self) -> None:
        """Forget the model so far, as in a cross-validation that passes one Monitor to each fit."""
        before, runs = self.logdir, self._runs + 1
        self._begin_without_run()
        self._runs = runs
        if self.logdir is not None:
            self.logdir = f"{self.logdir.rstrip(os.sep)}_{runs}"
            logging.warning(
                "tapescope: this Monitor has recorded another model in %s; it records this one in %s",
                before,
                self.logdir,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments: a copy, such as a tuner makes for each trial, has not recorded anything yet."""
        kept = ("_on_finding", "_given_logdir", "_when", "_probe_options", "_sinks", "_capture", "_slow_every")
        return {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        vars(self).update(state)
        self._begin_without_run()

    def on_train_begin(self, logs: Any = None) -> None:
        """Make the measured train function."""
        model: Any = self.model
        self._close_recorder("interrupted")  # still open where the fit before has raised
        self._measured_function = None
        self._has_run = False
        self._reading = None
        if self._probe is not None and model is not self._probed_model:
            self._begin_next_run()
        if self._probe is None:
            self._probe = self._make_probe(model)
            self._probed_model = model
        if self._probe is None or not self._claim_directory(self._probe):
            return
        if self._learning_rate is None:
            self._learning_rate = _learning_rate(model.optimizer)
        self._when.pause()
        if model.train_function is None:  # a loop of `train_on_batch` that calls its callbacks itself
            model.make_train_function()
        self._plain_function = _without_monitors(model.train_function)
        if model.train_function is not self._plain_function:  # a fit raised before a measured batch ran
            self._due = True
        with self._probe._state.failsafe.contain():
            self._make_measured_function(self._probe)

    def _make_measured_function(self, probe: Probe) -> None:
        """Make the train function of measured batches, and put fit's own back."""
        model: Any = self.model
        # A graph of a `train_step` that is a tf.function has no measuring tape, or would keep one.
        train_step = private_api.python_function(model.train_step)
        self._measured_step = self._measured_train_step(probe, train_step)
        try:
            with train_step_hooks.patch_attribute(model, "train_step", self._measured_step):
                model.make_train_function(force=True)
            self._measured_function = model.train_function
        finally:
            model.train_function = self._plain_function

    def _make_probe(self, model: Any) -> Probe | None:
        """Return the probe of a model; None, and a warning, where it cannot be measured."""
        try:
            return Probe(model, **self._probe_options)
        except ValueError as error:
            if self._probe_options["strict"]:
                raise
            logging.warning("tapescope: this fit is not measured: %s", error)
            return None

    def _claim_directory(self, probe: Probe) -> bool:
        """Return whether this Monitor records in this fit. Choose the directory if none was given.

        A Monitor of this process whose fit has raised may still hold the directory, and nobody may have a name for it:
        it is closed. One that records the same fit keeps it.
        """
        if self.logdir is None:
            model: Any = self.model
            if replicas.should_write(probe._state.variables()):
                self.logdir = run_directory.make_directory(model.name)
                print(run_directory.how_to_look(self.logdir), flush=True)
            else:
                self.logdir = run_directory.PARENT
        directory = os.path.realpath(absolute(self.logdir))
        with _lock:
            other = _monitors.get(directory)
            if other is not None and other is not self and other._claimed:
                if other.params is self.params:
                    logging.warning("tapescope: two Monitors of one fit write to %s; only the first records", directory)
                    return False
                other._close_recorder("interrupted")
            _monitors[directory] = self
            self._claimed = True
        return True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Open the recorder in the first epoch; remember how many batches there were before.

        Keras counts the batches of each epoch from 0.
        """
        if self._claimed and not self._recording:
            self._open_recorder(epoch)
        self._batches_before_epoch = self._batches
        self._executions_before_epoch = self._executions

    def _open_recorder(self, epoch: int) -> None:
        model: Any = self.model
        if self._probe is None or self.logdir is None:
            return
        if self._resume is None and epoch:
            # Another program has trained the epochs before, or none has recorded them.
            steps = (self.params or {}).get("steps")
            self._batches = int(model.optimizer.iterations) if steps is None else epoch * steps
            self._resume = Resume(self._batches, {})
        about = {"program": "model.fit", "replicas": model.distribute_strategy.num_replicas_in_sync}
        if self._capture != "never" and model.steps_per_execution > 1:
            logging.warning(
                "tapescope: no batch is captured with steps_per_execution=%d: use 1", model.steps_per_execution
            )
            self._capture = "never"
        self.recorder = Recorder(
            self.logdir,
            self._probe,
            self._when,
            about,
            self._resume,
            sinks=self._sinks,
            capture=self._capture,
            optimizer=model.optimizer,
            capture_weights=False,  # copied here, because a batch may be measured later than the schedule said
            slow_every=self._slow_every,
        )
        if self.recorder._copies is not None:
            self.recorder._copies.checks_batch = False  # a batch that cannot be stored must not stop the fit
        self._recording = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Choose the train function of this execution."""
        model: Any = self.model
        if self._measured_function is None or self._probe is None or self._probe.failure:
            return
        plain_function = _without_monitors(model.train_function)
        if plain_function is not None and plain_function is not self._plain_function:  # a callback has made it anew
            self._plain_function = plain_function
            self._has_run = False
            with self._probe._state.failsafe.contain():
                self._make_measured_function(self._probe)
        # Keras also begins a batch that does not come, where it did not know the number of them.
        if self._wanted is None:
            self._wanted = self._when(self._executions)
        else:
            self._when.pause()
        self._due = self._due or self._wanted
        is_free = model.train_function is self._plain_function  # another Monitor may measure this one
        if self._due and is_free and optimizer_steps.next_batch_updates(model.optimizer, model.steps_per_execution):
            self._due = False
            model.train_function = self._run_measured_once

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the reading of this execution, if it has one.

        Keras before 3.11 gives the number of its first batch, newer versions that of its last one.
        """
        model: Any = self.model
        self._executions += 1
        self._wanted = None
        executions = self._executions - self._executions_before_epoch
        step = self._batches_before_epoch + max(batch, executions * model.steps_per_execution - 1)
        self._batches = step + 1
        if self._reading is None or self.recorder is None:
            return
        scalars = {name: value for name, value in (logs or {}).items() if name != "val_loss"}  # of an output `val`
        self.recorder.write(step, self._reading, scalars=scalars, batch=self._batch)
        self._reading = None
        self._batch = None
        if self._on_finding == "stop" and any(f.severity == "error" for f in self.recorder.findings):
            model.stop_training = True

    def on_test_begin(self, logs: Any = None) -> None:
        """Keep the time of validation out of the schedule's step times."""
        self._when.pause()
        self._has_validated = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the metrics of validation."""
        if not self._has_validated:  # `val_loss` may be the loss of an output whose name is `val`
            return
        self._has_validated = False
        metrics = {k.replace("val_", "validation/", 1): v for k, v in (logs or {}).items() if k.startswith("val_")}
        if metrics and self.recorder is not None:
            self.recorder.scalars(max(0, self._batches - 1), metrics)

    def on_train_end(self, logs: Any = None) -> None:
        """Close the recorder. Fit's own train function is in place already."""
        self._close_recorder("completed")

    def _close_recorder(self, reason: str) -> None:
        if self.recorder is not None and self._recording:
            self._resume = Resume(self._batches, self.recorder.state())
            self.recorder.close(reason)
        self._recording = False
        self._claimed = False

    def _run_measured_once(self, iterator: Any) -> Any:
        """Run the measured train function in place of `model.train_function`, which is put back before.

        Older versions of Keras look `train_step` up when the function is traced, newer ones when it is made.
        """
        model: Any = self.model
        model.train_function = self._plain_function
        private_api.trace_train_function(self._plain_function, iterator)
        copies = self.recorder and self.recorder._copies
        if copies:
            self._batch = next(iterator)
            copies.copy_state()
            iterator = [self._batch]
        assert self._probe is not None
        with train_step_hooks.patch_attribute(model, "train_step", self._measured_step):
            outputs = self._run_first(self._probe, iterator) if not self._has_run else self._measured_function(iterator)
        self._has_run = True
        if self._probe.failure or not isinstance(outputs, dict):
            return outputs
        self._take_reading(self._probe, outputs)
        return outputs

    def _run_first(self, probe: Probe, iterator: Any) -> Any:
        """Run the measured train function for the first time; if it fails, undo it and run fit's own."""
        failsafe = probe._state.failsafe
        if failsafe.strict or not first_run.can_be_undone(self.model, iterator):
            return self._measured_function(iterator)
        self._first_run = FirstRun(iterator)
        try:
            return self._measured_function(self._first_run.batch())
        except Exception as error:
            if not self._first_run.undo():
                raise
            outputs = self._plain_function(self._first_run.batch())  # raises what is wrong with the step itself
            failsafe.give_up(error)
            return outputs
        finally:
            self._first_run = None

    def _take_reading(self, probe: Probe, outputs: dict[str, Any]) -> None:
        """Take the reading out of the outputs of the measured train function."""
        fields: list[Any] = [outputs.pop(_OUTPUT_PREFIX + field, None) for field in Reading._fields]
        with probe._state.failsafe.contain():
            if all(field is None for field in fields):
                raise ValueError(
                    f"the train function of {type(self.model).__name__} does not run its `train_step`, or that returns "
                    "no dict: write the loop with tapescope.Probe instead of Monitor"
                )
            self._reading = Reading(*fields)

    def _measured_train_step(self, probe: Probe, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a `train_step` that also returns the fields of its reading, as further outputs."""

        def measured_train_step(data: Any) -> Any:
            model: Any = self.model
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
                reading = self._read(probe, used_tapes, loss_calls, loss_scales, sums_before)
            fields = {} if reading is None else reading._asdict()
            return {**outputs, **{_OUTPUT_PREFIX + name: value for name, value in fields.items()}}

        return measured_train_step

    def _read(
        self,
        probe: Probe,
        tapes: Sequence[MeasuringTape],
        loss_calls: Sequence[LossCall],
        loss_scales: Sequence[Any],
        sums_before: Mapping[int, tf.Tensor],
    ) -> Reading | None:
        """Return the reading of a `train_step` that used these tapes."""
        model: Any = self.model
        if not tapes:
            raise ValueError(
                f"the train_step of {type(model).__name__} must take the gradient of its trainable variables from "
                "a tf.GradientTape; it took no gradient, or in a tf.function of its own: write the loop with "
                "tapescope.Probe instead of Monitor"
            )
        last_tape, *other_tapes = reversed(tapes)
        last_tape.objective = _objective(model, loss_calls)._replace(learning_rate=self._learning_rate)
        loss_scale = loss_scales[-1] if loss_scales else None
        variables, gradients = zip(*last_tape.variable_gradients(*other_tapes), strict=True)
        aggregated, applied = optimizer_steps.aggregated_and_applied(
            model,
            sums_before,
            variables=variables,
            gradients=gradients,
            loss_scale=loss_scale,
        )
        return last_tape.reading(*other_tapes, aggregated=aggregated, applied=applied, loss_scale=loss_scale)


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
    monitor = Monitor(os.curdir)
    monitor.set_model(model)
    probe = Probe(model, strict=True)
    monitor._learning_rate = _learning_rate(model.optimizer)
    monitor._plain_function = _without_monitors(model.train_function)
    monitor._make_measured_function(probe)

    def step(batch: Any) -> Reading:
        outputs = monitor._measured_function([batch])
        monitor._take_reading(probe, outputs)
        assert monitor._reading is not None
        return monitor._reading

    return step, probe


def _learning_rate(optimizer: Any) -> float | None:
    """Return the learning rate of an optimizer as it is now; None where it has none that is a number."""
    try:
        rate: Any = keras.ops.convert_to_tensor(optimizer.learning_rate)
        return float(rate)
    except Exception:  # an optimizer of the user's own may have anything
        return None


def _objective(model: Any, calls: Sequence[LossCall]) -> Objective:
    """Return what a model is trained for, from the calls of its `compute_loss` in one step.

    A `train_step` that calls it several times compares outputs with other targets than the data set's, as that of a GAN
    does: nothing is said then.
    """
    if len(calls) != 1:
        return Objective()
    call = calls[0]
    is_number = tf.is_tensor(call.value) and call.value.shape.rank == 0  # a model's own may return several
    return Objective(
        loss=model.loss,
        targets=call.targets,
        outputs=call.outputs,
        metrics=[m.name for group in model.metrics for m in getattr(group, "metrics", ())],
        sample_weights=call.sample_weights,
        loss_value=call.value if is_number else None,
        output_names=getattr(model, "output_names", None) or (),
    )


def _without_monitors(train_function: Any) -> Any:
    """Return fit's own train function, also where a callback that raised has left a Monitor's in its place."""
    while isinstance(getattr(train_function, "__self__", None), Monitor):
        train_function = train_function.__self__._plain_function
    return train_function
