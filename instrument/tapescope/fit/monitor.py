"""The Monitor: the records of a Recorder, from `model.fit`, as a Keras callback.

Measured batches run a second train function, see `train_functions`. All other batches run fit's own. README.md in this
folder lists what is patched, when, and until when.
"""

import functools
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal

import keras
from absl import logging

from tapescope.capture import private_api
from tapescope.fit import first_run, optimizer_steps, run_directory, train_functions
from tapescope.fit.train_functions import TrainFunctions
from tapescope.probe import Probe, check_options
from tapescope.recorder import Recorder
from tapescope.schedule import WORKERS_INTERVAL, Schedule, as_schedule, every, uses_clock
from tapescope.slow_measurement import SLOW_STEPS, check_slow_every
from tapescope.statistics import replicas
from tapescope.statistics.layers import Examples
from tapescope.statistics.reading import Reading
from tapescope.storage.captures import check_mode
from tapescope.storage.directory import absolute
from tapescope.storage.resume import Resume
from tapescope.storage.scalars import is_validation_loss
from tapescope.storage.sinks import Sink, check_sinks

_lock = threading.Lock()
_monitors: "weakref.WeakValueDictionary[str, Monitor]" = weakref.WeakValueDictionary()
"""The Monitors of this process that have claimed a directory: also one whose fit has raised."""
_abandoned: list[Recorder] = []
"""Open recorders of Monitors that are gone, because their fit has raised. The next fit closes them."""


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
      when: which batches to measure, counted from the first; `tapescope.auto()` by default. Several workers have
        `tapescope.every(10)` in the place of a schedule that depends on the clock. With `steps_per_execution` above 1,
        it is asked once for each execution and counts executions. The record is then of the execution's last batch.
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
        `steps_per_execution` above 1 or a `make_train_function` of the model's own.
      slow_every: as for `tapescope.Recorder`.

    Raises:
      ValueError: `logdir` is not a path, or another argument cannot be right whatever the model is.
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
        if logdir is not None:
            absolute(logdir)
        check_sinks(sinks)
        check_mode(capture)
        check_slow_every(slow_every)
        check_options(layers, window_examples, examples)
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

    def _implements_train_batch_hooks(self) -> bool:
        """Raise ValueError: only `fit` of tf_keras asks a callback for this."""
        raise ValueError(
            "Monitor must be a callback of Keras 3's `fit`; got that of tf_keras (Keras 2): write the loop with "
            "tapescope.Probe, which measures models of both, or build the model with `import keras`"
        )

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
        self._was_kept_waiting = False
        """True after another Monitor of the fit measured a batch that the schedule had asked for."""
        self._has_recorded = False
        self._functions: TrainFunctions | None = None
        """None in a fit that is not measured."""
        self._reading: Reading | None = None
        self._batch: Any = None
        """Of the reading, where batches are captured."""
        self._has_validated = False
        """True after a validation in this epoch."""
        self._claimed: str | None = None
        """The directory that is this Monitor's in this fit; None before it is claimed."""
        self._recording = False
        """Whether the recorder is open."""
        self._abandon: weakref.finalize[[Recorder], Monitor] | None = None
        """Hands on a recorder that is still open when this Monitor is gone."""
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
        self._functions = None
        self._reading = None
        if self._probe is not None and model is not self._probed_model:
            self._begin_next_run()
        if self._probe is None:
            self._probe = self._make_probe(model)
            self._probed_model = model
        if self._probe is None or not self._claim_directory(self._probe):
            return
        if uses_clock(self._when) and replicas.has_other_workers(self._probe._state.variables()):
            logging.info("tapescope: with several workers every %d batches are measured", WORKERS_INTERVAL)
            self._when = every(WORKERS_INTERVAL)
        if self._learning_rate is None:
            self._learning_rate = train_functions.learning_rate(model.optimizer)
        self._when.pause()
        if model.train_function is None:  # a loop of `train_on_batch` that calls its callbacks itself
            model.make_train_function()
        plain = _without_monitors(model.train_function)
        if model.train_function is not plain:  # a fit raised before a measured batch ran
            self._due = True
        self._functions = self._make_functions(model, self._probe, plain)

    def _make_functions(self, model: Any, probe: Probe, plain: Any) -> TrainFunctions:
        return TrainFunctions(model, probe, plain, self._learning_rate, (self.params or {}).get("steps"))

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
        self.logdir = absolute(self.logdir)  # the same one when the program changes its own
        directory = os.path.realpath(self.logdir)
        with _lock:
            while _abandoned:  # each holds a thread and a model
                _abandoned.pop().close("interrupted")
            other = _monitors.get(directory)
            if other is not None and other is not self:
                if other.params is self.params:
                    logging.warning("tapescope: two Monitors of one fit write to %s; only the first records", directory)
                    return False
                other._close_recorder("interrupted")
            _monitors[directory] = self
            self._claimed = directory
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
        if self._capture != "never" and not first_run.takes_one_batch(model):
            logging.warning(
                "tapescope: no batch is captured, because one call of the train function may train several: use "
                "steps_per_execution=1 and the `make_train_function` of Keras"
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
        self._abandon = weakref.finalize(self, _abandoned.append, self.recorder)
        self._abandon.atexit = False  # the recorder closes itself there
        self._recording = True

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Choose the train function of this execution."""
        model: Any = self.model
        if self._functions is None or self._probe is None or self._probe.failure:
            return
        plain = _without_monitors(model.train_function)
        if plain is not None and plain is not self._functions.plain:  # a callback has made it anew
            self._functions = self._make_functions(model, self._probe, plain)
        current = model.train_function
        if isinstance(current, _MeasuredOnce) and current.func == self._run_measured:
            return  # it is twice among the callbacks
        # Keras also begins a batch that does not come, where it did not know the number of them.
        if self._wanted is None:
            self._wanted = self._when(self._executions)
        else:
            self._when.pause()
        self._due = self._due or self._wanted
        is_free = model.train_function is self._functions.plain  # another Monitor may measure this one
        self._was_kept_waiting |= self._due and not is_free
        if self._due and is_free and optimizer_steps.next_batch_updates(model.optimizer, model.steps_per_execution):
            self._due = False
            model.train_function = _MeasuredOnce(self._run_measured, self._functions)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write the reading of this execution, if it has one.

        Keras before 3.11 gives the number of its first batch, newer versions that of its last one.
        """
        model: Any = self.model
        is_measuring = self._functions is not None and self._probe is not None and not self._probe.failure
        if is_measuring and self._wanted is None:  # the same batch ends again
            return
        self._executions += 1
        self._wanted = None
        executions = self._executions - self._executions_before_epoch
        step = self._batches_before_epoch + max(batch, executions * model.steps_per_execution - 1)
        self._batches = step + 1
        if self._reading is None or self.recorder is None:
            return
        scalars = {_training_tag(name): value for name, value in (logs or {}).items()}
        self.recorder.write(step, self._reading, scalars=scalars, batch=self._batch)
        self._has_recorded = True
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
        if self._was_kept_waiting and not self._has_recorded:
            logging.warning(
                "tapescope: another Monitor of this fit measured each batch that was due, and nothing is recorded in "
                "%s: pass one Monitor, or measure fewer batches with `when`",
                self.logdir,
            )
        self._close_recorder("completed")

    def _close_recorder(self, reason: str) -> None:
        if self.recorder is not None and self._recording:
            self._resume = Resume(self._batches, self.recorder.state())
            self.recorder.close(reason)
            if self._abandon is not None:
                self._abandon.detach()
        self._recording = False
        if self._claimed and _monitors.get(self._claimed) is self:
            del _monitors[self._claimed]
        self._claimed = None

    def _run_measured(self, functions: TrainFunctions, iterator: Any) -> Any:
        """Run the measured train function in place of `model.train_function`, which is put back before."""
        model: Any = self.model
        model.train_function = functions.plain
        private_api.trace_train_function(functions.plain, iterator)
        copies = self.recorder and self.recorder._copies
        if copies:
            self._batch = next(iterator)
            copies.copy_state()
            iterator = [self._batch]
        outputs, self._reading = functions.measure(iterator)
        return outputs


class _MeasuredOnce(functools.partial[Any]):
    """The train function of a model until it is called; its first argument has the model's own."""


def _without_monitors(train_function: Any) -> Any:
    """Return fit's own train function, also where a callback that raised has left a Monitor's in its place."""
    while isinstance(train_function, _MeasuredOnce):
        train_function = train_function.args[0].plain
    return train_function


def _training_tag(name: str) -> str:
    """Return the tag of a batch's metric: the loss of an output that is named `val` or `test` is not a validation's."""
    return f"training/{name}" if is_validation_loss(name) else name
