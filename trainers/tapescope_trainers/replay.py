"""Replay of one step of a run of `tapescope-train`: from a checkpoint, over the same batches, to the same bits.

Training is deterministic and a checkpoint holds all of its state. So any step can be run again that has a checkpoint at
or before it: plain steps lead to it, and the step itself is measured. No batch need be kept.
"""

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope.replays import answer
from tapescope.replays.answer import Example, MeasuredStep, Recorded, Replay, Variant
from tapescope.storage import captured_step
from tapescope.storage.run import Run
from tapescope_trainers import flags
from tapescope_trainers.flags import Options
from tapescope_trainers.training import build, resume


class Lost(NamedTuple):
    """The first step that left something that is not finite."""

    step: int
    subject: str
    """Of the sentence about it."""


class Origin(NamedTuple):
    """The checkpoint that a replay starts from, and the run's flags."""

    options: Options
    """The flags of the run."""
    directory: str
    """Of its checkpoints."""
    steps: int
    """Done at the checkpoint."""
    data_checksum: str | None
    """None in a run of an earlier version."""
    weight_shapes: list[list[int]] | None


def find_origin(logdir: str, step: int) -> Origin:
    """Return the newest checkpoint from which a step can be replayed.

    Raises:
        ValueError: There is none, or the flags of the run cannot be read.
    """
    found = [
        (steps, directory)
        for directory in resume.state_directories(logdir)
        for steps in resume.list_checkpoints(directory)
        if steps <= step
    ]
    if not found:
        raise ValueError(
            f"step {step} of {logdir} cannot be replayed: there is no checkpoint at or before it. Train with "
            f"--checkpoint_every=N, of which the last few are kept, or with --capture=on_finding, which keeps those "
            f"from which captured steps start"
        )
    steps, directory = max(found)
    stored = resume.read_flags(directory)
    fields: dict[str, Any] = {name: stored.get(name, flags.FLAGS[name].default) for name in Options._fields}
    options = Options(**fields)._replace(logdir=logdir, checkpoint_every=None, capture="never", sink=[])
    options = _resolve_paths(options, str(stored.get("directory") or os.getcwd()))
    if options.strategy == "multi_worker":  # the same replicas in one process
        options = options._replace(strategy="mirrored", devices=f"cpu:{stored.get('replicas', 1)}")
    _check_flags(options, directory)
    return Origin(options, directory, steps, stored.get("data_checksum"), stored.get("weight_shapes"))


def _check_flags(options: Options, directory: str) -> None:
    """Raise ValueError if a flag of a run has a value that the command line would not allow: its file was changed."""
    for name, value in options._asdict().items():
        if value is None or isinstance(value, list):
            continue
        parser = flags.FLAGS[name].parser
        try:
            parser.parse(value)
        except (TypeError, ValueError) as error:
            reason = error if isinstance(error, ValueError) else f"must be {parser.syntactic_help or 'text'}"
            raise ValueError(
                f"the flags in {directory} have --{name}={value}, which {reason}: put a copy of the file back"
            ) from None


def _resolve_paths(options: Options, directory: str) -> Options:
    """Return options whose paths hold in another working directory than the one that the run was started in."""
    if os.path.isdir(directory) and directory not in sys.path:
        sys.path.append(directory)
    changed: dict[str, Any] = {}
    for name in ("model", "data", "loss", "metrics", "data_dir"):
        value = getattr(options, name)
        prefix = "npz:" if value and value.startswith("npz:") else ""
        path = value.removeprefix(prefix) if value else ""
        is_path = prefix or name == "data_dir" or ".py:" in path
        if value and is_path and not path.startswith("~"):
            changed[name] = prefix + os.path.join(directory, path)
    return options._replace(**changed)


def replay(logdir: str, step: int) -> Replay:
    """Run a step of a run of `tapescope-train` again, and answer which examples explain it.

    Args:
        logdir: The run's directory.
        step: A step from 0 that has a checkpoint at or before it, such as a captured one.

    Raises:
        ValueError: There is no such checkpoint, or model or data are not those of the run.
    """
    run = Run(logdir)
    _check_step(run, step)
    origin = find_origin(logdir, step)
    parts = build.assemble(origin.options)
    _check_same(run, origin, parts)

    from tapescope_trainers.distributed import strategy
    from tapescope_trainers.training import checkpoints

    saved = checkpoints.Checkpoints(origin.directory, parts.model, parts.optimizer)
    train_step = build.make_step(origin.options, parts)
    with strategy.device_datasets_without_autotune():
        saved.restore(origin.steps)
        dataset = parts.strategy.experimental_distribute_dataset(parts.batches(origin.options, skip=origin.steps))
        lost: Lost | None = None
        for number, (x, y) in zip(itertools.count(origin.steps), dataset, strict=False):
            if number == step:
                return _Replayer(run, origin.options, parts, train_step, step, lost).answer(x, y)
            loss = float(train_step(x, y, False).loss)
            if lost is None and not math.isfinite(loss):
                lost = Lost(number, "the loss was")
            elif lost is None and not _are_finite(parts.model.variables):
                lost = Lost(number, "the weights were")
    raise AssertionError("the batches are endless")


def _are_finite(variables: Sequence[Any]) -> bool:
    """Return whether variables have no NaN or Inf."""
    import tensorflow as tf

    tensors = [tf.convert_to_tensor(v) for v in variables]
    return all(bool(tf.reduce_all(tf.math.is_finite(t))) for t in tensors if t.dtype.is_floating)


def _check_step(run: Run, step: int) -> None:
    """Raise ValueError if the run has not come to a step."""
    checkpoints = [n for folder in resume.state_directories(run.logdir) for n in resume.list_checkpoints(folder)]
    done = max([0, *checkpoints, *(run.steps[-1:] + 1).tolist()])
    if not 0 <= step < done:
        raise ValueError(f"STEP must be a step of the run in {run.logdir}, from 0 to {done - 1}; got {step}")


def _check_same(run: Run, origin: Origin, parts: build.Parts) -> None:
    """Raise ValueError if data or model have changed since the run."""
    options = origin.options
    if origin.data_checksum not in (None, resume.checksum(parts.data)):
        raise ValueError(
            f"--data={options.data} has changed since the run in {run.logdir}: its training examples have another "
            "checksum, so the step would get others. Put the data back"
        )
    if origin.weight_shapes not in (None, resume.weight_shapes(parts.model)):
        raise ValueError(
            f"the model {options.model or options.preset} has changed since the run in {run.logdir}: its weights have "
            "other shapes. Put its code back"
        )


class _Replayer:
    """The state of one replay: model and optimizer before the step, and the step's batch."""

    def __init__(
        self,
        run: Run,
        options: Options,
        parts: build.Parts,
        train_step: Callable[..., Any],
        step: int,
        lost: Lost | None,
    ):
        self._run = run
        self._options = options
        self._parts = parts
        self._train_step = train_step
        self._step = step
        self._lost = lost
        """Since the checkpoint and before this step; None if all was finite."""
        variables = {id(v): v for v in (*parts.model.variables, *parts.optimizer.variables)}
        self._variables = list(variables.values())
        self._before = [np.array(v.numpy()) for v in self._variables]

    def answer(self, x: Any, y: Any) -> Replay:
        """Run the step, which must be the next one, and the questions about it."""
        outcome = self._train_step(x, y, True)
        columns = self._read(outcome.reading)
        recorded = self._recorded()
        indices = self._indices()
        examples = answer.order_examples(self._examples(indices, finite=not columns.nonfinite))
        notes = []
        if recorded is None:
            notes.append(f"step {self._step} was not measured in the run, so there is nothing to compare it with")
        if self._lost is not None:
            step, subject = self._lost
            notes.append(f"{subject} not finite first at step {step}: replay that one to see the cause")
        found = answer.make_answer(
            self._run,
            self._step,
            float(outcome.loss),
            columns,
            recorded,
            examples=self._named(examples),
            variants=tuple(self._variants(indices, examples, columns)) if self._lost is None else (),
            notes=notes,
        )
        answer.write_answer(self._run.logdir, found, [self._inputs(e.index) for e in examples[: answer.SHOWN_EXAMPLES]])
        return found

    def _inputs(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of one example by name, by its index in the trainer's own arrays."""
        x, y = self._parts.data.x_train, self._parts.data.y_train
        named = {**(x if isinstance(x, dict) else {"input": x}), **(y if isinstance(y, dict) else {"target": y})}
        return {name: array[index] for name, array in named.items()}

    def _read(self, reading: Any) -> MeasuredStep:
        from tapescope.replays.measured_step import read_step

        return read_step(reading, self._parts.probe.names)

    def _recorded(self) -> Recorded | None:
        """Return the run's record of the step, or that of the captured step where the run's was removed."""
        recorded = answer.read_recorded(self._run, self._step)
        if recorded is None and self._step in captured_step.list_captured(self._run.logdir):
            captured = captured_step.read(self._run.logdir, self._step)
            recorded = Recorded(captured.loss, captured.gradient_norm)
        return recorded

    def _restore(self) -> None:
        """Put model and optimizer back to their state before the step."""
        with self._parts.strategy.scope():
            for variable, value in zip(self._variables, self._before, strict=True):
                variable.assign(value)

    def _indices(self) -> np.ndarray:
        """Return the step's examples as indices of the trainer's own arrays, int64 [B]."""
        from tapescope_trainers.training import data

        options = self._options
        order = data.order(self._parts.data.count, options.batch_size, options.seed, skip=self._step)
        return next(iter(order)).numpy()

    def _named(self, examples: tuple[Example, ...]) -> tuple[Example, ...]:
        """Return examples with their indices in the arrays that were loaded."""
        rows = self._parts.data.rows
        return examples if rows is None else tuple(e._replace(index=int(rows[e.index])) for e in examples)

    def _distribute(self, indices: np.ndarray) -> Any:
        """Return `(x, y), index` of chosen examples as one batch, as the step takes it."""
        from tapescope_trainers.training import data, user_data

        pipelines: Any = user_data if self._parts.objective else data
        dataset = pipelines.chosen_batches(self._parts.data, indices, len(indices))
        return next(iter(self._parts.strategy.experimental_distribute_dataset(dataset)))

    def _examples(self, indices: np.ndarray, finite: bool) -> list[Example]:
        """Return each example with its own loss and gradient, as they were in the step."""
        from tapescope_trainers.training import examples

        self._restore()
        parts = self._parts
        trained = {id(v) for v in (*parts.model.trainable_variables, *parts.optimizer.variables)}
        drawn = [v for v in self._variables if id(v) not in trained]
        return examples.measure(parts, self._options, self._distribute(indices), drawn, finite)

    def _variants(self, indices: np.ndarray, examples: tuple[Example, ...], columns: MeasuredStep) -> Iterator[Variant]:
        """Yield the step as it was, and with one thing changed."""
        heaviest = examples[0]
        usual = examples[len(examples) // 2]
        others = np.where(indices == heaviest.index, usual.index, indices)
        if len(indices) < 2 or not math.isfinite(usual.loss):
            return
        as_it_was, _ = self._distribute(indices)
        without, _ = self._distribute(others)
        options = self._options
        norm = columns.applied_norm
        yield Variant("as it was", norm, self._loss_after(self._train_step, as_it_was, without))
        # Its place is taken by the example in the middle, so that replicas and compiled shapes stay as they are.
        name = self._named((heaviest,))[0].index
        self._restore()
        reading = self._train_step(*without, True).reading
        without_norm = self._read(reading).applied_norm
        yield Variant(f"without example {name}", without_norm, float(self._train_step(*without, False).loss))
        yield Variant(
            f"learning rate {options.learning_rate / 10:g}",
            norm,
            self._loss_after(self._train_step, as_it_was, without, learning_rate=options.learning_rate / 10),
        )
        limit = answer.usual_norm(self._run, self._step)
        if norm > limit > 0 and not columns.nonfinite and options.clip_norm is None:
            clipped = build.make_step(options._replace(clip_norm=limit), self._parts)
            yield Variant(f"clipped to norm {limit:.4g}", limit, self._loss_after(clipped, as_it_was, without))

    def _loss_after(
        self, train_step: Callable[..., Any], batch: Any, others: Any, learning_rate: float | None = None
    ) -> float:
        """Return the loss on other examples after a step on a batch."""
        self._restore()
        optimizer = self._parts.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if learning_rate is not None:
            optimizer.learning_rate = learning_rate
        train_step(*batch, False)
        return float(self._train_step(*others, False).loss)
