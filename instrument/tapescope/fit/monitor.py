"""The Monitor: the records of a Recorder, from `model.fit`, as a Keras callback.

Measured batches run a second train function. Keras makes and compiles it as it does fit's own, around the model's
`train_step`. All other batches run fit's own. README.md in this folder lists what is patched, when, and until when.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras

from tapescope.capture.objective import Objective
from tapescope.fit import optimizer_steps, train_step_hooks
from tapescope.fit.train_step_hooks import LossCall
from tapescope.probe import Probe
from tapescope.recorder import Recorder
from tapescope.schedule import Schedule, auto
from tapescope.statistics.reading import Reading
from tapescope.storage.resume import Resume

_OUTPUT_PREFIX = "tapescope/"
"""Prefix of a reading's fields among the outputs of the measured train function."""


class Monitor(keras.callbacks.Callback):
    """A callback that records gradients, activations and units of `model.fit`, for the Gradients tab.

    A second `fit` of the same model continues the run. The column `loss` is that of the measured batch; the scalar
    `loss` is fit's own, the mean over the epoch so far. If the optimizer accumulates gradients, the next batch that
    changes weights is measured, and the recorded gradient is the accumulated one. If it clips them, `applied_norm` is
    the norm after clipping.

    Args:
      logdir: the run's directory.
      when: which batches to measure, counted from the first; `tapescope.auto()` by default. With `steps_per_execution`
        above 1, it is asked once for each execution and counts executions. The record is then of the execution's last
        batch.
      on_finding: "stop" ends the training when the rules find an error; "continue" only records it.
      layers: as for `tapescope.Probe`.
      window_examples: as for `tapescope.Probe`.
      histograms: as for `tapescope.Probe`.
      exact: as for `tapescope.Probe`.
      strict: as for `tapescope.Probe`.

    Raises:
      ValueError: `on_finding` has another value. In `fit`: the Monitor has recorded another model, or the model's
        `train_step` takes no gradient from a `tf.GradientTape`.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        when: Schedule | None = None,
        *,
        on_finding: Literal["continue", "stop"] = "continue",
        layers: str | None = None,
        window_examples: int = 1024,
        histograms: bool = True,
        exact: bool = True,
        strict: bool = False,
    ):
        super().__init__()
        if on_finding not in ("continue", "stop"):
            raise ValueError(f'`on_finding` must be "continue" or "stop"; got {on_finding!r}')
        self._on_finding = on_finding
        self._logdir = logdir
        self._when = auto() if when is None else when
        self._probe_options: dict[str, Any] = {
            "layers": layers,
            "window_examples": window_examples,
            "histograms": histograms,
            "exact": exact,
            "strict": strict,
        }
        self._probe: Probe | None = None
        self._probed_model: Any = None
        self._executions = 0
        """Executions begun, in all fits."""
        self._batches = 0
        """Batches ended, in all fits."""
        self._batches_before_epoch = 0
        self._due = False
        """Whether the schedule has asked for a measured batch that has not run yet."""
        self._plain_function: Any = None
        self._measured_function: Any = None
        self._reading: Reading | None = None
        self._recording = False
        """Whether the recorder is open."""
        self._resume: Resume | None = None
        self.recorder: Recorder | None = None
        """The Recorder of the current or last fit."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Make the measured train function, and open the recorder."""
        model: Any = self.model
        if self._probe is None:
            self._probe = Probe(model, **self._probe_options)
            self._probed_model = model
        elif model is not self._probed_model:
            raise ValueError(
                f"a Monitor must be used with one model; this one has recorded another model in {self._logdir}: "
                "make a new Monitor, with another `logdir`"
            )
        self._close_recorder("interrupted")  # still open where the fit before has raised
        self._when.pause()
        self._reading = None
        self._plain_function = _without_monitors(model.train_function)
        if model.train_function is not self._plain_function:  # a fit raised before a measured batch ran
            self._due = True
        measured_step = self._measured_train_step(self._probe, model.train_step)
        with train_step_hooks.patch_attribute(model, "train_step", measured_step):
            model.make_train_function(force=True)
        self._measured_function = model.train_function
        model.train_function = self._plain_function
        about = {"program": "model.fit", "replicas": model.distribute_strategy.num_replicas_in_sync}
        self.recorder = Recorder(self._logdir, self._probe, self._when, about, self._resume)
        self._recording = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember how many batches there were before: Keras counts each epoch's from 0."""
        self._batches_before_epoch = self._batches

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Choose the train function of this execution."""
        model: Any = self.model
        if self._when(self._executions):
            self._due = True
        self._executions += 1
        if self._due and optimizer_steps.next_batch_updates(model.optimizer, model.steps_per_execution):
            self._due = False
            model.train_function = self._run_measured_once

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the reading of this execution, if it has one."""
        step = self._batches_before_epoch + batch
        self._batches = step + 1
        if self._reading is None or self.recorder is None:
            return
        self.recorder.write(step, self._reading, scalars=dict(logs or {}))
        self._reading = None
        if self._on_finding == "stop" and any(f.severity == "error" for f in self.recorder.findings):
            model: Any = self.model
            model.stop_training = True

    def on_test_begin(self, logs: Any = None) -> None:
        """Keep the time of validation out of the schedule's step times."""
        self._when.pause()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write the metrics of validation."""
        metrics = {k.replace("val_", "validation/", 1): v for k, v in (logs or {}).items() if k.startswith("val_")}
        if metrics and self.recorder is not None:
            self.recorder.scalars(max(0, self._batches - 1), metrics)

    def on_train_end(self, logs: Any = None) -> None:
        """Close the recorder. Fit's own train function is in place already."""
        self._close_recorder("completed")

    def _close_recorder(self, reason: str) -> None:
        if self.recorder is None or not self._recording:
            return
        self._recording = False
        self._resume = Resume(self._batches, self.recorder.state())
        self.recorder.close(reason)

    def _run_measured_once(self, iterator: Any) -> Any:
        """Run the measured train function in place of `model.train_function`, which is put back before."""
        model: Any = self.model
        model.train_function = self._plain_function
        outputs = self._measured_function(iterator)
        fields: list[Any] = [outputs.pop(_OUTPUT_PREFIX + field, None) for field in Reading._fields]
        self._reading = None if self._probe is None or self._probe.failure else Reading(*fields)
        return outputs

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
            if probe.failure:
                return outputs
            if not used_tapes:
                raise ValueError(
                    f"the train_step of {type(model).__name__} must take the gradient of its trainable variables from "
                    "a tf.GradientTape; it took no gradient: write the loop with tapescope.Probe instead of Monitor"
                )
            last_tape, *other_tapes = reversed(used_tapes)
            last_tape.objective = _objective(model, loss_calls)
            loss_scale = loss_scales[-1] if loss_scales else None
            aggregated, applied = optimizer_steps.aggregated_and_applied(
                model.optimizer,
                sums_before,
                variables=probe._state.variables(),
                gradients=last_tape.variable_gradients(*other_tapes),
                loss_scale=loss_scale,
            )
            reading = last_tape.reading(*other_tapes, aggregated=aggregated, applied=applied, loss_scale=loss_scale)
            fields = {} if reading is None else reading._asdict()
            return {**outputs, **{_OUTPUT_PREFIX + name: value for name, value in fields.items()}}

        return measured_train_step


def _objective(model: Any, calls: Sequence[LossCall]) -> Objective:
    """Return what a model is trained for, from the calls of its `compute_loss` in one step.

    A `train_step` that calls it several times compares outputs with other targets than the data set's, as that of a GAN
    does: nothing is said then.
    """
    if len(calls) != 1:
        return Objective()
    call = calls[0]
    return Objective(
        loss=model.loss,
        targets=call.targets,
        outputs=call.outputs,
        metrics=[m.name for group in model.metrics for m in getattr(group, "metrics", ())],
        sample_weights=call.sample_weights,
        loss_value=call.value,
        output_names=getattr(model, "output_names", None) or (),
    )


def _without_monitors(train_function: Any) -> Any:
    """Return fit's own train function, also where a callback that raised has left a Monitor's in its place."""
    while isinstance(getattr(train_function, "__self__", None), Monitor):
        train_function = train_function.__self__._plain_function
    return train_function
