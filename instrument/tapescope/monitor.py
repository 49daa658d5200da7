"""Monitor: the same records from `model.fit`, as a callback.

A measured batch runs a second train function, made and compiled as fit makes its own, around the model's `train_step`;
all other batches run fit's, untouched. The second one finds the tape by standing in for `tf.GradientTape` while
`train_step` runs (or is traced), so a `train_step` of the user's own is measured as well.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import tensorflow as tf

from tapescope.probe import MeasuringTape, Probe
from tapescope.reading import Reading
from tapescope.recorder import Recorder
from tapescope.schedule import Schedule, every

_PREFIX = "tapescope/"
"""Of a reading's fields among the outputs of a measured train function."""


class Monitor(keras.callbacks.Callback):
    """Records gradients, activations and unit counts of `model.fit`, for the Gradients tab.

    Args:
      logdir: the run's directory.
      when: which batches to measure, counted from the first of this `fit`; every tenth by default.
      on_finding: "stop" ends the training once the rules find an error; "continue" only says it.
      layers: as for `tapescope.Probe`.
      window_examples: as for `tapescope.Probe`.
      histograms: as for `tapescope.Probe`.

    `loss` in the records is fit's own: the mean over the epoch so far.
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
    ):
        super().__init__()
        if on_finding not in ("continue", "stop"):
            raise ValueError(f'`on_finding` ({on_finding!r}) must be "continue" or "stop"')
        self._on_finding = on_finding
        self._logdir = logdir
        self._when = when or every(10)
        self._options = {"layers": layers, "window_examples": window_examples, "histograms": histograms}
        self._step = 0
        self._reading: Reading | None = None
        self.recorder: Recorder | None = None
        """Of the fit that runs, or ran last."""

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the second train function."""
        model: Any = self.model
        self._step, self._reading = 0, None
        self._probe = Probe(model, **self._options)
        self._plain, train_step = model.train_function, model.train_step
        own = vars(model).get("train_step")
        vars(model)["train_step"] = self._measured(train_step)
        try:
            model.make_train_function(force=True)
            self._measuring = model.train_function
        finally:
            vars(model).update({"train_step": own} if own else {})
            if own is None:
                del vars(model)["train_step"]
            model.train_function = self._plain
        about = {"program": "model.fit", "replicas": model.distribute_strategy.num_replicas_in_sync}
        self.recorder = Recorder(self._logdir, self._probe, self._when, about)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Chooses the train function of this batch."""
        if self._when(self._step):
            model: Any = self.model
            model.train_function = self._one_measured_call

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Hands the reading over."""
        if self._reading is not None and self.recorder is not None:
            self.recorder.write(self._step, self._reading, scalars=dict(logs or {}))
            self._reading = None
            if self._on_finding == "stop" and any(f.severity == "error" for f in self.recorder.findings):
                model: Any = self.model
                model.stop_training = True
        self._step += 1

    def on_test_begin(self, logs: Any = None) -> None:
        """Validation is no step."""
        self._when.pause()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records the validation's metrics."""
        found = {k.replace("val_", "validation/", 1): v for k, v in (logs or {}).items() if k.startswith("val_")}
        if found and self.recorder is not None:
            self.recorder.scalars(max(0, self._step - 1), found)

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the run; fit's own train function is back already."""
        if self.recorder is not None:
            self.recorder.close()

    def _one_measured_call(self, iterator: Any) -> Any:
        model: Any = self.model
        model.train_function = self._plain
        outputs = self._measuring(iterator)
        parts: list[Any] = [outputs.pop(_PREFIX + field, None) for field in Reading._fields]
        self._reading = Reading(*parts)
        return outputs

    def _measured(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def measured_step(data: Any) -> Any:
            model: Any = self.model
            optimizer = model.optimizer
            dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
            scale = tf.identity(optimizer.dynamic_scale.value) if dynamic else None
            with _tapes_of(self._probe) as tapes:
                outputs = train_step(data)
            used = [tape for tape in tapes if tape.has_gradient]
            if not used:
                raise ValueError(
                    f"the train_step of {type(model).__name__} took no gradient of its trainable variables from a "
                    "tf.GradientTape: Monitor cannot measure it; write the loop with tapescope.Probe instead"
                )
            reading = used[-1].reading(*used[:-1], loss_scale=scale)
            parts = {} if reading is None else reading._asdict()
            return {**outputs, **{_PREFIX + k: v for k, v in parts.items() if v is not None}}

        return measured_step


class _Here(threading.local):
    """The tapes that this thread's `train_step` has made; None outside one."""

    probe: Probe | None = None
    tapes: list[MeasuringTape] | None = None


_here = _Here()
_lock = threading.Lock()
_users = 0
_real = tf.GradientTape


def _tape(persistent: bool = False, watch_accessed_variables: bool = True) -> tf.GradientTape:
    """Stands in for `tf.GradientTape`: a measuring tape for the outermost one of a measured `train_step`."""
    open_already = _here.tapes and not _here.tapes[-1].closed
    if _here.probe is None or _here.tapes is None or open_already:
        return _real(persistent, watch_accessed_variables)
    tape = MeasuringTape(_here.probe, persistent, watch_accessed_variables)
    _here.tapes.append(tape)
    return tape


@contextlib.contextmanager
def _tapes_of(probe: Probe) -> Iterator[list[MeasuringTape]]:
    """Has `tf.GradientTape` make measuring tapes in this thread. Counted: replica threads take turns."""
    global _users
    with _lock:
        _users += 1
        tf.GradientTape = _tape
    _here.probe, _here.tapes = probe, []
    try:
        yield _here.tapes
    finally:
        _here.probe = _here.tapes = None
        with _lock:
            _users -= 1
            if not _users:
                tf.GradientTape = _real
