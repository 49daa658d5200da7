"""Replay of a captured step of any program: the weights before it, its batch, and the program's own step."""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tapescope.capture import private_api
from tapescope.capture.selection import Selection, variable_path
from tapescope.fit.train_functions import measured_step
from tapescope.probe import Probe
from tapescope.replays import answer, step_function, trainers
from tapescope.replays.answer import Example, MeasuredStep, Recorded, Replay, Variant
from tapescope.replays.measured_step import read_step
from tapescope.statistics.reading import Reading
from tapescope.statistics.replicas import find_strategy
from tapescope.storage import captured_step, summaries
from tapescope.storage.captured_step import CapturedStep, SavedVariable
from tapescope.storage.resume import differ_by_scope_at_most
from tapescope.storage.run import Run

_NUMBER = re.compile(r"_\d+(?=/|_|$)")
"""What Keras adds to the names of a model that is built again in one process."""


def replay(
    run: str | os.PathLike[str] | Run,
    step: int,
    step_fn: Any = None,
    *,
    model: Any = None,
    optimizer: Any = None,
) -> Replay:
    """Run a captured step again, and return whether it is the same to the bit, and which examples explain it.

    Model and optimizer are set to what was captured before the step, and are left so. Each example is then measured in
    a batch that repeats it, so that shapes and normalizations of the step hold; this takes as many steps as the batch
    has examples. What a step draws from random state that is not the model's is not captured.

    Args:
      run: a run, or its directory.
      step: number of a captured step; of a run of `tapescope-train`, of any step with a checkpoint at or before it.
      step_fn: the program's training step, measured: `step_fn(batch)` or `step_fn(x, y)`, with `measure=True` where it
        has that parameter. It returns loss and reading. After `model.fit`, the compiled model. Not needed for
        `tapescope-train`.
      model: what the Probe measures; by default found among the variables that `step_fn` uses.
      optimizer: of the step; found in the same way.

    Raises:
      FileNotFoundError: `run` is not a directory of a run.
      ValueError: the step was not captured, or the model is not that of the run.
    """
    found = run if isinstance(run, Run) else Run(run)
    if step_fn is None:
        if trainers.is_of_trainers(found):
            return trainers.replay(found, step)
        raise ValueError(
            f"`step_fn` must be the training step of the program that wrote {found.logdir}; got None: pass it, or the "
            "compiled model after model.fit"
        )
    captured = captured_step.read(found.logdir, step)
    if captured.batch is None or captured.batch == {}:
        raise ValueError(
            f"step {step} of {found.logdir} was captured without its batch: pass it when it is recorded, as in "
            "`recorder.write(step, reading, batch=(x, y))`"
        )
    return _Replayer(found, captured, _make_program(step_fn, captured, model, optimizer)).answer()


class _Program(NamedTuple):
    """The user's step and what it trains."""

    call: Callable[[Any], tuple[float | None, Any]]
    """From a batch to loss and reading."""
    models: Selection | None
    """None where the models are not known."""
    optimizers: Sequence[Any]
    probe: Probe | None

    @property
    def variables(self) -> list[Any]:
        """All variables of the models; none before they are built."""
        return [] if self.models is None else self.models.all_variables()


def _make_program(step_fn: Any, captured: CapturedStep, model: Any, optimizer: Any) -> _Program:
    if hasattr(step_fn, "train_step"):  # a compiled model
        if not step_fn.built:
            step_fn(_to_tensors(captured.batch[0]))
        call, probe = measured_step(step_fn)
        return _Program(lambda batch: (None, call(batch)), Selection(step_fn, None), [step_fn.optimizer], probe)
    if not callable(step_fn):
        raise ValueError(f"`step_fn` must be a function of a batch or a compiled model; got {type(step_fn).__name__}")
    owners = step_function.find_owners(step_fn)
    probe = owners.probes[0] if owners.probes else None
    if model is not None:
        models = Selection(model, None)
    elif probe is not None:
        models = probe._state.selection
    else:
        models = Selection(owners.models, None) if owners.models else None
    optimizers = owners.optimizers if optimizer is None else [optimizer]
    bound = step_function.bind(step_fn, captured.batch)
    return _Program(lambda batch: step_function.split_result(bound(batch)), models, optimizers, probe)


class _Replayer:
    """One replay: the captured step, and the program that runs it."""

    def __init__(self, run: Run, captured: CapturedStep, program: _Program):
        self._run = run
        self._captured = captured
        self._program = program
        self._notes: list[str] = []
        self._saved: list[tuple[Any, np.ndarray]] = []
        """Variables and their values before the step."""
        self._strategy = find_strategy(program.variables)
        self._optimizer: Any = None
        """The one whose learning rate is changed; None without one."""
        self._can_change = True
        """False if a step with one change would not start where this one did; a note says why."""
        self._match_model()
        self._match_optimizers()

    def _match_model(self) -> None:
        saved = self._captured.model
        if saved is None:
            self._notes.append("the weights before the step were not captured: those of the model as it is are used")
            self._saved += _as_they_are(self._program.variables)
            return
        models = self._program.models
        if models is None:
            raise ValueError(
                "the model of the step is not found among the variables that `step_fn` uses: pass it, as in "
                "tapescope.replay(run, step, step_fn, model=model, optimizer=optimizer)"
            )
        if not self._program.variables:
            self._run_on(self._captured.batch)  # the first step builds the model
            self._strategy = find_strategy(self._program.variables)
        variables = self._program.variables
        listed = len(models.listed_variables())
        known = listed if len(saved) == listed else len(variables)  # earlier versions captured no others
        self._saved += _match("model", variables[:known], saved)
        self._saved += _as_they_are(variables[known:])
        if not all(np.isfinite(one.value.astype(float)).all() for one in saved):
            self._can_change = False
            self._notes.append("the weights before the step are not finite already: an earlier step has the cause")

    def _match_optimizers(self) -> None:
        """Set the optimizer whose state was captured to it; others are always put back to what they are now."""
        optimizers = self._program.optimizers
        saved = self._captured.optimizer
        trained = [] if self._program.models is None else self._program.models.variables()
        if trained and len(optimizers) == 1 and not private_api.is_built(optimizers[0]):
            with self._scope():
                optimizers[0].build(trained)
        chosen = None
        if saved is None and optimizers:
            self._notes.append("the state of the optimizer was not captured: that of the optimizer as it is is used")
        elif saved is not None:
            chosen = _find_optimizer(optimizers, saved)
            if chosen is None:
                self._can_change = False
                self._notes.append(
                    "the optimizer whose state was captured is not found, so no change to the step is tried: pass it, "
                    "as in tapescope.replay(run, step, step_fn, model=model, optimizer=optimizer)"
                )
        for optimizer in optimizers:
            if saved is not None and optimizer is chosen:
                self._saved += _match("optimizer", optimizer.variables, saved)
            else:
                self._saved += _as_they_are(optimizer.variables)
        self._optimizer = chosen or next(iter(optimizers), None)

    def _scope(self) -> Any:
        """Return a context in which the variables may be set."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def _restore(self) -> None:
        with self._scope():
            for variable, value in self._saved:
                variable.assign(value)

    def _run_step(self, batch: Any) -> tuple[float, MeasuredStep]:
        """Run the step as it would have run then; return its loss and what was measured."""
        self._restore()
        return self._run_on(batch)

    def _run_on(self, batch: Any) -> tuple[float, MeasuredStep]:
        """Run the step on the model as it is."""
        loss, reading = self._program.call(self._distribute(_to_tensors(batch)))
        if reading is None:
            raise ValueError("`step_fn` must measure: call the step with measure=True")
        reading = Reading(*map(summaries.first_replica, reading))
        measured = self._read(reading)
        known = float(reading.column("loss"))
        return (known if not math.isnan(known) or loss is None else loss), measured

    def _distribute(self, batch: Any) -> Any:
        """Return a batch in the parts that its replicas had, where it was captured so."""
        sizes = self._captured.replicas
        if not sizes:
            return batch
        strategy = self._strategy
        if strategy is None or strategy.num_replicas_in_sync != len(sizes):
            raise ValueError(
                f"step {self._captured.step} was captured on {len(sizes)} replicas: build the model and the step under "
                "a strategy with as many"
            )
        ends = np.cumsum(sizes)

        def distribute(tensor: Any) -> Any:
            def part(context: Any) -> Any:
                at = context.replica_id_in_sync_group
                return tensor[ends[at] - sizes[at] : ends[at]]

            return None if tensor is None else strategy.experimental_distribute_values_from_function(part)

        return tf.nest.map_structure(distribute, batch)

    def _read(self, reading: Any) -> MeasuredStep:
        probe = self._program.probe
        names: Any = None
        if probe is not None:
            names = probe._state.layouts[int(reading.layout)].names
        else:
            names = _Names(tuple(self._captured.gradient_norm), self._run.layers)
        variables, layers = (part.shape[-1] for part in reading[:2])
        expected = len(self._captured.gradient_norm)
        if variables != expected or (variables, layers) != (len(names.variables), len(names.layers)):
            raise ValueError(
                f"the model has changed since the run in {self._run.logdir}: the step measures {variables} variables "
                f"and {layers} layers, and had {expected} and {len(self._run.layers)}: build the model as it was"
            )
        return read_step(reading, names)

    def answer(self) -> Replay:
        """Run the step and the questions about it."""
        captured = self._captured
        loss, measured = self._run_step(captured.batch)
        places = np.arange(_count_examples(captured.batch))
        by_place = list(self._examples(places))
        examples = answer.order_examples(by_place)
        variants = tuple(self._variants(examples, measured)) if len(examples) > 1 and self._can_change else ()
        self._restore()
        found = answer.make_answer(
            self._run,
            captured.step,
            loss,
            measured,
            Recorded(captured.loss, captured.gradient_norm),
            examples=self._named(examples),
            variants=variants,
            notes=self._notes,
        )
        leaves = {f"input {n}": leaf for n, leaf in enumerate(tf.nest.flatten(captured.batch)) if leaf is not None}
        inputs = [{name: leaf[e.index] for name, leaf in leaves.items()} for e in examples[: answer.SHOWN_EXAMPLES]]
        answer.write_answer(self._run.logdir, found, inputs)
        return found

    def _named(self, examples: Sequence[Example]) -> tuple[Example, ...]:
        indices = self._captured.indices
        if indices is None or indices.shape != (len(examples),):
            return tuple(examples)
        return tuple(e._replace(index=int(indices[e.index])) for e in examples)

    def _examples(self, places: np.ndarray) -> Iterator[Example]:
        """Yield each example in a batch that consists of it alone, repeated."""
        if not len(places):
            self._notes.append("the batch has no common first axis, so its examples are not known")
        for place in places.tolist():
            try:
                loss, measured = self._run_step(_take(self._captured.batch, np.full(len(places), place)))
            except Exception as error:  # the user's own step may refuse such a batch
                self._notes.append(
                    f"the step does not run with one example repeated: {' '.join(str(error).split())[:300]}"
                )
                return
            norm = math.nan if measured.nonfinite else answer.total_norm(list(measured.gradient_norm.values()))
            yield Example(place, loss, norm)

    def _variants(self, examples: Sequence[Example], measured: MeasuredStep) -> Iterator[Variant]:
        """Yield the step as it was, and with one thing changed."""
        batch = self._captured.batch
        heaviest, usual = examples[0].index, examples[len(examples) // 2].index
        # Its place is taken by the example in the middle, so that shapes stay as they are.
        places = np.arange(len(examples))
        others = _take(batch, np.where(places == heaviest, usual, places))
        self._run_step(batch)
        yield Variant("as it was", measured.applied_norm, self._run_on(others)[0])
        _, without = self._run_step(others)
        name = self._named(examples)[0].index
        yield Variant(f"without example {name}", without.applied_norm, self._run_on(others)[0])
        rate = _learning_rate(self._optimizer)
        if self._optimizer is not None and rate is not None:
            self._restore()
            with self._scope():
                self._optimizer.learning_rate = rate / 10
            self._run_on(batch)
            yield Variant(f"learning rate {rate / 10:g}", measured.applied_norm, self._run_on(others)[0])


class _Names(NamedTuple):
    """The rows of a reading whose Probe is not known."""

    variables: tuple[str, ...]
    layers: tuple[str, ...]


def _learning_rate(optimizer: Any) -> float | None:
    """Return the learning rate of an optimizer; None where it is a schedule or there is none."""
    rate = getattr(optimizer, "_learning_rate", None)
    return float(rate.numpy()) if hasattr(rate, "assign") else None  # pyright: ignore[reportOptionalMemberAccess]


def _match(what: str, variables: Sequence[Any], saved: Sequence[SavedVariable]) -> list[tuple[Any, np.ndarray]]:
    """Return variables with their captured values.

    Raises:
      ValueError: they have other names or shapes than those that were captured.
    """
    difference = _difference(variables, saved)
    if difference is not None:
        raise ValueError(f"the {what} has changed since the step was captured: {difference}: build it as it was")
    return [(v, one.value) for v, one in zip(variables, saved, strict=True)]


def _find_optimizer(optimizers: Sequence[Any], saved: Sequence[SavedVariable]) -> Any:
    """Return the optimizer whose variables were captured; None where several may be it, or none is."""
    if len(optimizers) == 1:
        return optimizers[0]  # an error says what differs
    found = [o for o in optimizers if _difference(o.variables, saved) is None]
    if len(found) > 1:
        paths = [one.name for one in saved]
        found = [o for o in found if [variable_path(v) for v in o.variables] == paths]
    return found[0] if len(found) == 1 else None


def _difference(variables: Sequence[Any], saved: Sequence[SavedVariable]) -> str | None:
    """Return how variables differ from captured ones in names and shapes; None if they do not."""
    now = [(variable_path(v), tuple(v.shape)) for v in variables]
    then = [(variable.name, variable.value.shape) for variable in saved]
    for (name, shape), (name_then, shape_then) in zip(now, then, strict=False):
        if shape != shape_then or not _is_same(name, name_then):
            return f"{name} {list(shape)} was {name_then} {list(shape_then)}"
    return None if len(now) == len(then) else f"it has {len(now)} variables, and had {len(then)}"


def _is_same(path: str, other: str) -> bool:
    """Return whether two paths are equal, but for Keras' numbers and the scope of a step that builds an optimizer."""
    return differ_by_scope_at_most(_NUMBER.sub("", path), _NUMBER.sub("", other))


def _as_they_are(variables: Sequence[Any]) -> list[tuple[Any, np.ndarray]]:
    """Return variables with their values."""
    return [(v, np.array(v.numpy())) for v in variables]


def _to_tensors(batch: Any) -> Any:
    return tf.nest.map_structure(lambda array: None if array is None else tf.constant(array), batch)


def _count_examples(batch: Any) -> int:
    """Return the size of the first axis that the arrays of a batch share; 0 if they do not."""
    sizes = {array.shape[0] for array in tf.nest.flatten(batch) if array is not None and array.ndim}
    return sizes.pop() if len(sizes) == 1 else 0


def _take(batch: Any, places: np.ndarray) -> Any:
    """Return a batch of the examples at these places."""
    return tf.nest.map_structure(lambda array: array[places] if array is not None and array.ndim else array, batch)
