"""The Recorder: from a Reading in the training to a record on disk, without stopping the training.

`write` queues a Reading for a background thread and returns. A record that cannot be written is counted, and the first
one is logged. Records that come faster than the disk takes them are thinned out, counted and logged. Both end by
themselves as soon as the disk is fast and has room again: see storage/README.md.
"""

import atexit
import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tapescope.capture.selection import is_variable
from tapescope.probe import Probe
from tapescope.rules.finding import Finding
from tapescope.schedule import WORKERS_INTERVAL, Schedule, as_schedule, every, uses_clock
from tapescope.slow_measurement import SLOW_STEPS, SlowMeasurement, check_slow_every
from tapescope.statistics import replicas
from tapescope.statistics.reading import STEP_COLUMNS, Reading
from tapescope.step_copies import StepCopies, count_bytes
from tapescope.storage import captures, summaries
from tapescope.storage.background import BackgroundWriter, Job
from tapescope.storage.captures import CapturedSteps
from tapescope.storage.directory import DirectoryLock, absolute
from tapescope.storage.printable import describe, describe_error
from tapescope.storage.resume import Resume
from tapescope.storage.run import Run
from tapescope.storage.run_writer import RunWriter
from tapescope.storage.sinks import Sink, check_sinks
from tapescope.storage.summaries import Step

FIRST_NONFINITE_WAIT_SECONDS = 1.0
"""Longest wait of the training for the first record with a NaN or Inf."""
_SCHEDULE = "schedule/"
"""Prefix of what the schedule has chosen, in the Recorder's state."""
_SCALARS_BYTES = 1000
"""Bytes that a record without a reading counts for in the queue."""
_NOT_CLOSED = "the program ended without closing its recorder"
"""Reason for the status of a run whose program may also have failed."""
_NONFINITE_COLUMNS = [STEP_COLUMNS.index(f"first_nonfinite_{direction}") for direction in ("forward", "backward")]


class Recorder:
    """The writer of one run's event files; a context manager.

    Any thread may write, in the order of the steps. A process that was forked from this one may not.

    Several workers that train a model together may each have a Recorder, made after the model is built. Only the
    chief's writes, because a reading is of all replicas already.

    Args:
      logdir: the run's directory, made if it does not exist. It stays the same one when the program changes its own.
      probe: whose readings are recorded.
      when: the schedule that decides, and that the loop calls; each record states what measuring cost. By default
        `tapescope.auto()`, as `recorder.when`; with several workers `tapescope.every(10)`.
      about: fields of the run's status: anything that JSON can hold. Its state, its reason and its numbers of records
        stay tapescope's own.
      resume: where the run goes on, if it was recorded here before. Records of that step and later ones are removed.
      strict_io: stop the training when a record cannot be written: the next call raises OSError.
      sinks: tools that get at most 20 numbers of each record, and the findings: "wandb", "mlflow", "trackio",
        "webhook:URL", or objects with the methods `start`, `scalars`, `finding` and `end`. They delay nothing; what
        they do not take is counted and logged.
      capture: "on_finding" keeps what is needed to run a measured step again, if it shows a spike, a NaN or Inf, or an
        error: the `batch` that `write` is given, and weights and random state before the step, which are copied when
        `when` says that a step is measured. At most 8 steps and 1 GiB are kept, in the directory `captures`. The batch
        is data: "never", the default, keeps none. `tapescope.replay` runs a captured step again.
      optimizer: whose variables are kept with a captured step as well.
      capture_weights: whether weights are copied. With False, the program restores them itself before a replay.
      slow_every: steps from one record with the slow columns to the next: norms of the optimizer's moments, and stable
        ranks of the weights. They are measured by `write`, of the weights as they are then, at the first record after
        each `slow_every` steps; 0 for never.

    Raises:
      OSError: the directory cannot be written, or another Recorder writes there.
      ValueError: an argument cannot be right, or `resume` is of a run of another model; nothing is removed. Or several
        workers train, and `when` depends on the clock.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        probe: Probe,
        when: Schedule | None = None,
        about: Mapping[str, Any] | None = None,
        resume: Resume | None = None,
        *,
        strict_io: bool = False,
        sinks: Sequence[str | Sink] = (),
        capture: str = "never",
        optimizer: Any = None,
        capture_weights: bool = True,
        slow_every: int = SLOW_STEPS,
    ):
        if not isinstance(probe, Probe):
            raise ValueError(f"`probe` must be the tapescope.Probe of the model; got {type(probe).__name__}")
        check_sinks(sinks)
        captures.check_mode(capture)
        check_slow_every(slow_every)
        _check_about(about or {})
        resume = None if resume is None else _check_resume(resume)
        self.logdir: str = absolute(logdir)
        self._probe_state = probe._state
        self._has_written = False
        self._measured_before = self._probe_state.tape_entered
        self.when: Schedule = self._choose_schedule(when)
        """The schedule that decides which steps are measured."""
        self._slow = SlowMeasurement(self._probe_state, slow_every, resume)
        if resume is not None:
            resume = self._restore_schedule(self._slow.without_state(resume))
        self._noted = self.when.about()
        self._strict = strict_io
        self._was_nonfinite = False
        self._closed = False
        self._looked_at: set[str] = set()
        """Rules after whose findings the schedule has looked closer."""
        self._reading_bytes = 0
        self._process = os.getpid()
        self._closing = threading.Lock()
        self._copies: StepCopies | None = None
        """None where no step is captured."""
        self._writer: BackgroundWriter | None = None
        """None in all workers but the chief."""
        if not replicas.should_write(self._probe_state.variables()):
            return
        self._lock = logdir if isinstance(logdir, DirectoryLock) else DirectoryLock(self.logdir)
        captured = CapturedSteps(self.logdir) if capture == "on_finding" else None
        if captured is not None:
            self._copies = StepCopies(captured, self._probe_state, optimizer)
        about = {**self._noted, **(about or {})}
        try:
            self._writer = BackgroundWriter(
                RunWriter(self.logdir, self._lock, self._probe_state, about, resume, sinks, captured)
            )
        except BaseException:
            self._lock.release()
            raise
        if self._copies is not None and capture_weights:
            self._copies.begin(resume.step if resume else 0)
            self.when._before_measured = self._copies.copy_state
        self._looked_at = {finding.rule for finding in self.findings}
        atexit.register(self._close_at_exit)

    def _choose_schedule(self, when: Schedule | None) -> Schedule:
        """Return the schedule; of several workers all must measure the same steps."""
        schedule = as_schedule(when)
        if not uses_clock(schedule) or not replicas.has_other_workers(self._probe_state.variables()):
            return schedule
        if when is None:
            return every(WORKERS_INTERVAL)
        raise ValueError(
            "`when` must choose the same steps in all workers of a MultiWorkerMirroredStrategy; got a schedule that "
            f"depends on each one's own clock: use tapescope.every({WORKERS_INTERVAL})"
        )

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings so far; a record or two behind the training."""
        return self._writer.run_writer.findings if self._writer else ()

    @property
    def lost(self) -> int:
        """Number of records that could not be written."""
        return self._writer.lost if self._writer else 0

    @property
    def left_out(self) -> int:
        """Number of records that were left out because the disk was slower than they came."""
        return self._writer.queue.left_out if self._writer else 0

    def write(
        self,
        step: int,
        reading: Reading | None,
        scalars: Mapping[str, Any] | None = None,
        examples: float | None = None,
        batch: Any = None,
        indices: Any = None,
    ) -> None:
        """Record one step, without waiting for the disk.

        There is one exception. If the reading is the first with a NaN or Inf, and on the CPU, `write` waits up to
        FIRST_NONFINITE_WAIT_SECONDS until it is on disk, because a program often ends then.

        Args:
          step: its number; numbers rise over the whole training.
          reading: of the step; under a strategy, what `strategy.run` returned. None records the scalars only.
          scalars: by tag, floats or tensors with one element; "loss" is also shown in the Gradients tab. What is not
            one real number is left out, and logged once.
          examples: number of examples trained on so far. If None, those of the recorded steps are counted, and a step
            between them as the largest one.
          batch: what the step was given, such as `(x, y)`: tensors or arrays in nested tuples, lists and dicts. It is
            kept if the Recorder captures the step, and costs nothing otherwise.
          indices: of the batch's examples in the training data, integers [B], by which a replay then names them.

        Raises:
          OSError: with `strict_io`, an earlier record could not be written.
          ValueError: the reading is not of this Recorder's Probe, the Recorder is closed, or the batch is to be
            captured and cannot be stored.
        """
        step = _check_step(step)
        examples_seen = math.nan if examples is None else _check_examples(examples)
        self._check_reading(reading)
        self._has_written = self._has_written or reading is not None
        _check_mapping("scalars", scalars or {})
        if reading is not None and self._copies is not None:
            self._copies.offer(step, batch, indices)
        numbers = {tag: _read_now(value) for tag, value in (scalars or {}).items()}
        record_step = Step(step, examples_seen=examples_seen)
        size = _SCALARS_BYTES
        is_first_nonfinite = False
        if reading is not None:
            reading = Reading(*map(_to_tensor, reading))
            self._reading_bytes = self._reading_bytes or sum(map(count_bytes, reading))
            is_first_nonfinite = self._is_first_nonfinite(reading)
            # A job of 0 bytes is never left out.
            size = 0 if is_first_nonfinite else _SCALARS_BYTES + self._reading_bytes
            cost = self.when.cost
            record_step = record_step._replace(
                step_ms=cost.step_ms, measure_ms=cost.measure_ms, is_closer=self.when._is_closer
            )
            if not math.isnan(cost.overhead_pct):
                numbers["measure_overhead_pct"] = cost.overhead_pct
                numbers["measure_overhead_error_pct"] = cost.overhead_error_pct
            self._note_schedule()
            self._look_closer()
        slow = None if reading is None or self._writer is None else self._slow.measure(step)
        wall_time = time.time()
        self._put(lambda run_writer: run_writer.write(record_step, reading, numbers, wall_time, slow), size)
        if is_first_nonfinite:
            self._wait(FIRST_NONFINITE_WAIT_SECONDS)

    def _is_first_nonfinite(self, reading: Reading) -> bool:
        """Return whether a reading has a NaN or Inf and the one before had none, as far as is known without waiting.

        Raises:
          ValueError: the reading was summed over the replicas.
        """
        first_nonfinite = _known_first_nonfinite(reading)
        if min(first_nonfinite, default=-1) < -1:
            raise ValueError(
                "`reading` must be what `strategy.run` returned, as it is: each replica has the numbers of the "
                "global batch; got a sum over the replicas"
            )
        was_nonfinite = self._was_nonfinite
        self._was_nonfinite = max(first_nonfinite, default=-1) >= 0
        return self._was_nonfinite and not was_nonfinite

    def _restore_schedule(self, resume: Resume) -> Resume:
        """Choose what the schedule of the run so far has chosen, and return the state without it.

        The run's last status knows the choice also if it was made after the checkpoint.
        """
        prefix = len(_SCHEDULE)
        chosen = {name[prefix:]: v.item() for name, v in resume.state.items() if name.startswith(_SCHEDULE)}
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            chosen |= Run(self.logdir).status
        self.when.restore(chosen)
        return resume._replace(state={n: a for n, a in resume.state.items() if not n.startswith(_SCHEDULE)})

    def _note_schedule(self) -> None:
        """Write into the run's status what the schedule has chosen by itself."""
        chosen = self.when.about()
        if chosen != self._noted:
            self._noted = chosen
            self._put(lambda run_writer: run_writer.add_about(chosen))

    def _look_closer(self) -> None:
        """Let the schedule measure every step for a while after the first warning or error of each rule."""
        found = {finding.rule for finding in self.findings if finding.severity != "info"}
        new = found - self._looked_at
        if new:
            self._looked_at = found
            if replicas.is_single_worker(self._probe_state.variables()):
                self.when._look_closer()

    def _check_reading(self, reading: Any) -> None:
        """Raise ValueError unless the reading is of this Recorder's Probe."""
        if reading is None:
            return
        if not isinstance(reading, Reading):
            raise ValueError(
                "`reading` must be what `tape.reading()` returned, of a tape that `probe.tape(measure)` made; got "
                f"{type(reading).__name__}. A tf.GradientTape has no reading"
            )
        layouts = [layout.names for layout in self._probe_state.layouts]
        variables, layers = (summaries.first_replica(part).shape[-1] for part in reading[:2])
        if (variables, layers) not in [(len(names.variables), len(names.layers)) for names in layouts]:
            raise ValueError(
                f"`reading` must be of the Probe that this Recorder was made with; got one of {variables} variables "
                f"and {layers} layers: make a Recorder for each Probe"
            )

    def scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Record scalars of a step that is not measured, such as validation metrics.

        Args:
          step: its number.
          scalars: by tag, floats or tensors with one element.
        """
        self.write(step, None, scalars)

    def hparams(self, hparams: Mapping[str, Any]) -> None:
        """Record the run's hyperparameters for TensorBoard's HParams tab.

        Args:
          hparams: bool, float, int or str by name; other values are converted to str, and so is an int that is too
            large for a float.
        """
        _check_mapping("hparams", hparams)
        plain = {_as_hparam(str(name)): _as_hparam(value) for name, value in hparams.items()}
        self._put(lambda run_writer: run_writer.write_hparams(plain))

    def graph(self, graph: tf.Graph) -> None:
        """Record a graph for TensorBoard's Graphs tab, such as `step.get_concrete_function(...).graph`."""
        self._put(lambda run_writer: run_writer.write_graph(graph))

    def state(self) -> dict[str, np.ndarray]:
        """Wait until all records are on disk, and return what a later Recorder needs to go on: see `Resume`."""
        written: list[dict[str, np.ndarray]] = []
        self._put(lambda run_writer: written.append(run_writer.state()))
        self._wait()
        if self._writer is not None and not written:
            raise RuntimeError(f"the state of {self.logdir} cannot be told: a line in the log says why")
        state = {name: array for part in written for name, array in part.items()} | self._slow.state()
        return state | {_SCHEDULE + name: np.array(value) for name, value in self.when.about().items()}

    def close(self, reason: str = "completed") -> None:
        """Write all queued records and the end of the run, and return when they are on disk. Idempotent.

        Args:
          reason: why the run has ended, for its status.

        Raises:
          OSError: with `strict_io`, a record could not be written.
        """
        if self._writer is None or os.getpid() != self._process:
            return
        with self._closing:
            if not self._closed:
                measured = self._probe_state.tape_entered and not self._measured_before
                is_failure = reason != "completed" and (reason != _NOT_CLOSED or hasattr(sys, "last_value"))
                if measured and not is_failure and not self._has_written and not self._probe_state.failure:
                    logging.warning(
                        "tapescope: steps were measured, but no reading of them was written to %s: return "
                        "`tape.reading()` from the step, and pass it to `recorder.write`",
                        self.logdir,
                    )
                self._closed = True
                if self._copies is not None and self.when._before_measured == self._copies.copy_state:
                    self.when._before_measured = None  # unless it is another Recorder's by now
                self._writer.end(reason)
                atexit.unregister(self._close_at_exit)
            self._writer.join()
            self._lock.release()
        if self.lost:
            logging.error("tapescope: %d of the records of %s could not be written", self.lost, self.logdir)
        self._raise_if_strict()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self._strict = False  # the error that is under way says more
        reason = kind.__name__ if error is None else describe_error(error)
        self.close("interrupted" if issubclass(kind, KeyboardInterrupt) else reason)

    def _put(self, job: Job, size: int = 0) -> None:
        """Queue a job that holds `size` bytes."""
        if self._closed:
            raise ValueError(f"the recorder of {self.logdir} is closed; make a new one to go on")
        if self._writer is None:
            return
        if os.getpid() != self._process:
            raise ValueError(
                f"the recorder of {self.logdir} belongs to the process that this one was forked from: write there, or "
                "make a Recorder with another directory here"
            )
        self._raise_if_strict()
        self._writer.put(job, size)

    def _raise_if_strict(self) -> None:
        if self._strict and self._writer and self._writer.error:
            raise self._writer.error

    def _wait(self, seconds: float | None = None) -> None:
        """Wait until all queued jobs are done, at most for `seconds`."""
        if self._writer and not self._closed:
            self._writer.wait(seconds)

    def _close_at_exit(self) -> None:
        self.close(_NOT_CLOSED)


def _check_step(step: Any) -> int:
    """Return the number of a step, which may also be an array or a tensor with one element."""
    try:
        number = int(step)
        if number == step and number >= 0:
            return number
    except (TypeError, ValueError):
        pass
    raise ValueError(f"`step` must be a whole number from 0, which rises over the training; got {describe(step)}")


def _check_resume(resume: Any) -> Resume:
    """Return a Resume whose step is an int; it may also be a tensor or a variable, as a checkpoint holds it."""
    got = type(resume).__name__
    if isinstance(resume, Resume):
        got = f"one with step {describe(resume.step)}, and a {type(resume.state).__name__} as its state"
        if isinstance(resume.state, Mapping):
            with contextlib.suppress(ValueError):
                return resume._replace(step=_check_step(resume.step))
    raise ValueError(
        "`resume` must be a Resume of a step from 0 and of what `Recorder.state()` returned, or {}; got " + got
    )


def _check_examples(examples: Any) -> float:
    """Return a number of examples, or NaN, which may also be an array or a tensor with one element."""
    try:
        number = float(examples)
        if not number < 0:
            return number
    except (TypeError, ValueError):
        pass
    raise ValueError(f"`examples` must be the number of examples trained on so far; got {describe(examples)}")


def _check_mapping(name: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"`{name}` must be a dict of values by name; got {type(values).__name__}")


def _check_about(about: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(about), default=describe)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`about` must be a mapping of what JSON can hold, with names as keys ({error}): convert it to text"
        ) from None


def _read_now(value: Any) -> Any:
    """Return a scalar that the program does not change later, when the recorder's thread reads it."""
    if is_variable(value):
        return tf.convert_to_tensor(value)
    return value.copy() if isinstance(value, np.ndarray) else value


def _to_tensor(part: Any) -> Any:
    """Return a part of a reading as a tensor: of all replicas the first one's; a coordinator fetches arrays."""
    part = summaries.first_replica(part)
    return part if tf.is_tensor(part) else tf.convert_to_tensor(part)


def _as_hparam(value: Any) -> Any:
    """Return a value that TensorBoard can hold as a hyperparameter."""
    if isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) <= sys.float_info.max):
        return value
    return describe(value).encode(errors="backslashreplace").decode()  # a path may not be UTF-8


def _known_first_nonfinite(reading: Reading) -> list[float]:
    """Return the first layer with a NaN or Inf forward and backward, -1 for none. Empty if a GPU must be waited for."""
    if "CPU:" not in reading.step.device:
        return []
    step = reading.step.numpy().view(np.float32)
    return [float(step[column]) for column in _NONFINITE_COLUMNS]
