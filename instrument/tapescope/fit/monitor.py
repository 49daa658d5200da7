"""Monitor: the same records from `model.fit`, as a callback.

A measured batch runs a second train function, made and compiled as fit makes its own, around the model's `train_step`;
all other batches run fit's, untouched. What `train_step` uses while it runs (or is traced) is stood in for, so that one
of the user's own is measured as well: see standins.py.
"""

import os
from collections.abc import Callable
from typing import Any, Literal

import keras

from tapescope.fit import optimizer_steps, train_step_hooks
from tapescope.probe import Probe
from tapescope.recorder import Recorder
from tapescope.schedule import Schedule, every
from tapescope.statistics.reading import Reading
from tapescope.storage.resume import Resume

_PREFIX = "tapescope/"
"""Of a reading's fields among the outputs of a measured train function."""


class Monitor(keras.callbacks.Callback):
    """Records gradients, activations and unit counts of `model.fit`, for the Gradients tab.

    Args:
      logdir: the run's directory.
      when: which batches to measure, counted from the first; every tenth by default. With `steps_per_execution` above 1
        it is asked once for all batches of an execution, and counts executions; the last batch's is the record.
      on_finding: "stop" ends the training once the rules find an error; "continue" only says it.
      layers: as for `tapescope.Probe`.
      window_examples: as for `tapescope.Probe`.
      histograms: as for `tapescope.Probe`.
      strict: as for `tapescope.Probe`.

    A second `fit` of the same model goes on where the first one ended. `loss` in the records is fit's own: the mean
    over the epoch so far. Where the optimizer accumulates gradients, the next batch that changes weights is measured,
    and the gradient is the accumulated one; where it clips them, `applied_norm` is what is left.
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
        strict: bool = False,
    ):
        super().__init__()
        if on_finding not in ("continue", "stop"):
            raise ValueError(f'`on_finding` ({on_finding!r}) must be "continue" or "stop"')
        self._on_finding = on_finding
        self._logdir = logdir
        self._when = when or every(10)
        self._options: dict[str, Any] = {"layers": layers, "window_examples": window_examples}
        self._options |= {"histograms": histograms, "strict": strict}
        self._probe: Probe | None = None
        self._measured_model: Any = None
        self._executions = self._batches = self._epoch_began = 0
        self._due = False
        self._resume: Resume | None = None
        self._reading: Reading | None = None
        self.recorder: Recorder | None = None
        """Of the fit that runs, or ran last."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the second train function."""
        model: Any = self.model
        if self._probe is None:
            self._probe, self._measured_model = Probe(model, **self._options), model
        elif model is not self._measured_model:
            raise ValueError(
                f"this Monitor has recorded another model in {self._logdir}: make a new one, with a `logdir` of its own"
            )
        self._end("interrupted")  # a fit before that raised
        self._when.pause()
        self._reading, self._plain = None, _fits_own(model.train_function)
        self._due |= model.train_function is not self._plain  # where a fit raised before a batch that was due
        with train_step_hooks.attribute(model, "train_step", self._measured(model.train_step)):
            model.make_train_function(force=True)
        self._measuring, model.train_function = model.train_function, self._plain
        about = {"program": "model.fit", "replicas": model.distribute_strategy.num_replicas_in_sync}
        self.recorder = Recorder(self._logdir, self._probe, self._when, about, self._resume)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keras counts batches anew."""
        self._epoch_began = self._batches

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Chooses the train function of this batch."""
        self._due |= self._when(self._executions)
        self._executions += 1
        model: Any = self.model
        if self._due and optimizer_steps.updates(model.optimizer, model.steps_per_execution):
            self._due = False
            model.train_function = self._one_measured_call

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Hands the reading over."""
        step = self._epoch_began + batch
        self._batches = step + 1
        if self._reading is not None and self.recorder is not None:
            self.recorder.write(step, self._reading, scalars=dict(logs or {}))
            self._reading = None
            if self._on_finding == "stop" and any(f.severity == "error" for f in self.recorder.findings):
                model: Any = self.model
                model.stop_training = True

    def on_test_begin(self, logs: Any = None) -> None:
        """Validation is no step."""
        self._when.pause()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records the validation's metrics."""
        found = {k.replace("val_", "validation/", 1): v for k, v in (logs or {}).items() if k.startswith("val_")}
        if found and self.recorder is not None:
            self.recorder.scalars(max(0, self._batches - 1), found)

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the run; fit's own train function is back already."""
        self._end("completed")

    def _end(self, reason: str) -> None:
        if self.recorder is not None and not self.recorder._closed:
            self._resume = Resume(self._batches, self.recorder.state())
            self.recorder.close(reason)

    def _one_measured_call(self, iterator: Any) -> Any:
        model: Any = self.model
        model.train_function = self._plain
        outputs = self._measuring(iterator)
        parts: list[Any] = [outputs.pop(_PREFIX + field, None) for field in Reading._fields]
        self._reading = None if self._probe is None or self._probe.failure else Reading(*parts)
        return outputs

    def _measured(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        assert self._probe is not None
        probe = self._probe

        def measured_step(data: Any) -> Any:
            model: Any = self.model
            before = optimizer_steps.state(model.optimizer)
            with train_step_hooks.scales(model.optimizer) as scales, train_step_hooks.tapes(probe) as tapes:
                outputs = train_step(data)
            used = [tape for tape in tapes if tape.has_gradient]
            if probe.failure:
                return outputs
            if not used:
                raise ValueError(
                    f"the train_step of {type(model).__name__} took no gradient of its trainable variables from a "
                    "tf.GradientTape: Monitor cannot measure it; write the loop with tapescope.Probe instead"
                )
            last, *others = reversed(used)
            scale = scales[-1] if scales else None
            variables, own = probe._state.variables(), last.variable_gradients(*others)
            aggregated, applied = optimizer_steps.given(model.optimizer, before, variables, own, scale)
            reading = last.reading(*others, aggregated=aggregated, applied=applied, loss_scale=scale)
            parts = {} if reading is None else reading._asdict()
            return {**outputs, **{_PREFIX + field: part for field, part in parts.items()}}

        return measured_step


def _fits_own(train_function: Any) -> Any:
    """Also where a callback that raised has left a Monitor's in its place."""
    while isinstance(getattr(train_function, "__self__", None), Monitor):
        train_function = train_function.__self__._plain
    return train_function
