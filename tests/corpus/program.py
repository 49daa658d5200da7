"""One program of the corpus, trained plainly and measured, and what differs."""

import contextlib
import itertools
import logging
import pathlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tapescope

STEPS = 4
EVERY = 2
"""Steps 0 and 2 are measured: the measured program runs first, and the plain one after it."""


class Fit(NamedTuple):
    """A program that trains with `fit`."""

    model: Any
    """Compiled."""
    batches: Any
    """A `tf.data.Dataset`, or a list of the arguments x and y; at least STEPS batches."""
    options: Mapping[str, Any] = {}
    """Further arguments of `fit`."""
    then: Callable[[], Any] | None = None
    """What the program does after it; may return a further Fit."""


class Loop(NamedTuple):
    """A program with a loop of its own."""

    models: Any
    """The argument of Probe."""
    step: Callable[..., Any]
    """Gets a function that makes tapes, which takes `persistent`, and the elements of a batch."""
    batches: Sequence[Sequence[Any]]
    eager: bool = False


class Program(NamedTuple):
    """A program and what is expected of it."""

    name: str
    theme: str
    source: str
    """The page that it was written after."""
    build: Callable[[], Fit | Loop]
    quick: bool
    """Whether it is in the test suite; `make corpus` has all."""
    differs: str | None
    """The known reason why a measured step rounds otherwise; None where the weights must have the same bits."""
    says: str | None
    """A pattern of the warnings that are expected; None for none."""
    unmeasured: str | None
    """A pattern of the reason of the layers that cannot be measured; None where all are."""
    steps: tuple[int, ...]
    """Steps that are recorded."""


class Result(NamedTuple):
    """Differences between the plain and the measured training of one program."""

    how: str
    """`fit` or `loop`."""
    steps: list[int]
    """Steps that were recorded."""
    same_bits: bool
    largest_difference: float
    """Of a weight, relative to the norm of its variable."""
    same_graph: bool | None
    """None for an eager program."""
    layers: int
    """Layers that were measured."""
    unmeasured: Mapping[str, str]
    """Reason by the name of each layer that was not."""
    unseen: list[str]
    """Layers with an activation that the plain program called, and that were neither measured nor listed."""
    wrong: list[str]
    """Variables whose recorded weight or update is not that of the plain training."""
    variables: int
    warnings: list[str]
    """Those of the measured training only."""
    seconds: float


CHAOTIC = "two plain trainings differ"
"""Beginning of the reason of a program whose plain training is not repeated either: nothing bounds its difference."""
ATTEMPTS = 3
"""Trainings of a program until its bits are the same."""

PROGRAMS: list[Program] = []
FUSED = r"softmax(_\d+)?: it was not called"
"""Keras computes attention without its layer `softmax` where the backend has one operation for all of it."""


def program(
    source: str,
    *,
    quick: bool = True,
    differs: str | None = None,
    says: str | None = None,
    unmeasured: str | None = None,
    steps: tuple[int, ...] = tuple(range(0, STEPS, EVERY)),
) -> Callable[[Callable[[], Fit | Loop]], Callable[[], Fit | Loop]]:
    """Add a function that builds a program to the corpus; the arguments are fields of Program."""

    def add(build: Callable[[], Fit | Loop]) -> Callable[[], Fit | Loop]:
        theme = build.__module__.rpartition(".")[2]
        name = build.__name__
        PROGRAMS.append(Program(name, theme, source, build, quick, differs, says, unmeasured, steps))
        return build

    return add


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def labels(classes: int, *shape: int, seed: int = 1) -> np.ndarray:
    """Return random classes."""
    return np.random.default_rng(seed).integers(classes, size=shape).astype("int32")


class _Training(NamedTuple):
    """State of a program after one training."""

    how: str
    weights: list[np.ndarray]
    """All of them, at the end."""
    trained: list[dict[str, np.ndarray]]
    """Value of each trainable variable by its name, before each step and after the last."""
    graph: str | None
    called: list[str]
    """Names of the layers with an activation that the program called."""
    said: list[str]
    run: tapescope.Run | None
    skipped: Mapping[str, str]


def compare(program: Program) -> Result:
    """Train a program plainly and measured, and return what differs.

    If bits do, both are trained again: on a busy machine TensorFlow does not always repeat a plain training either.
    """
    start = time.process_time()
    for _ in range(1 if program.differs else ATTEMPTS):
        plain, measured = (_train(program, measure) for measure in (False, True))
        pairs = list(zip(plain.weights, measured.weights, strict=True))
        same_bits = all(a.tobytes() == b.tobytes() for a, b in pairs)
        if same_bits:
            break
    if measured.run is None:
        raise RuntimeError(f"{program.name} was not recorded")
    run = measured.run
    return Result(
        how=measured.how,
        steps=run.steps.tolist(),
        same_bits=same_bits,
        largest_difference=max(_relative_difference(a, b) for a, b in pairs),
        same_graph=None if plain.graph is None else plain.graph == measured.graph,
        layers=len(run.layers),
        unmeasured=measured.skipped,
        unseen=_unseen(plain.called, [*run.layers, *measured.skipped]),
        wrong=[] if program.differs else _wrong_variables(run, plain.trained),
        variables=len(run.variables),
        warnings=[text for text in measured.said if text not in plain.said],
        seconds=time.process_time() - start,
    )


def unexpected(program: Program, result: Result) -> list[str]:
    """Return what of a result is not as it must be, or as the program expects it."""
    problems = []
    if result.steps != list(program.steps):
        problems.append(f"the steps that were recorded are {result.steps}")
    if not result.same_bits and program.differs is None:
        problems.append(f"a weight differs by {result.largest_difference:.1e} of its norm")
    if result.largest_difference > 0.1 and not (program.differs or "").startswith(CHAOTIC):
        problems.append(f"a weight differs by {result.largest_difference:.1e} of its norm, which is not rounding")
    if result.same_graph is False:
        problems.append("the plain graph is another one")
    for text in result.warnings:
        if program.says is None or not re.search(program.says, text):
            problems.append(f"a warning: {text}")
    for layer, reason in result.unmeasured.items():
        if program.unmeasured is None or not re.search(program.unmeasured, f"{layer}: {reason}"):
            problems.append(f"not measured: {layer}: {reason}")
    problems += [f"unseen: {layer}" for layer in result.unseen]
    return problems + [f"wrong: {variable}" for variable in result.wrong]


def _relative_difference(first: np.ndarray, second: np.ndarray) -> float:
    if first.dtype.kind not in "fV" and first.dtype.name != "bfloat16":
        return 0.0
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return float(np.max(np.abs(a - b), initial=0) / (np.linalg.norm(a) or 1.0))


def _unseen(called: Sequence[str], rows: Sequence[str]) -> list[str]:
    """Return the called layers that no row is named after; a row is `path/layer` or `path/layer#2`."""
    last_parts = {re.sub(r"#\d+$", "", row).rpartition("/")[2] for row in rows}
    return sorted({name for name in called if name not in last_parts})


def _wrong_variables(run: tapescope.Run, trained: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """Return the variables whose recorded norms are not those of the plain training's weights."""
    wrong = []
    columns = {name: run[name] for name in ("weight_norm", "update_ratio")}
    for t, step in enumerate(run.steps.tolist()):
        before, after = trained[step], trained[step + 1]
        for v, name in enumerate(run.variables):
            if name not in before:
                continue
            old, new = np.asarray(before[name], np.float64), np.asarray(after[name], np.float64)
            norm = np.linalg.norm(old)
            recorded = [float(column[t, v]) for column in columns.values()]
            expected = [norm, np.linalg.norm(new - old) / norm if norm else np.nan]
            # An update is a difference of float32 numbers.
            tolerances = [1e-3 * norm + 1e-30, 1e-2 * expected[1] + 1e-6]
            for value, right, tolerance in zip(recorded, expected, tolerances, strict=True):
                if np.isfinite(right) and np.isfinite(value) and abs(value - right) > tolerance:
                    wrong.append(f"{name} at step {step}: {value:.6g} instead of {right:.6g}")
    return wrong


@contextlib.contextmanager
def _kept_messages() -> Iterator[list[str]]:
    """Keep what is logged as a warning, or warned of."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said.extend(str(w.message) for w in caught if not issubclass(w.category, ResourceWarning))
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _called_layers() -> Iterator[list[Any]]:
    """Keep the layers with an activation that are called with a tensor."""
    called: list[Any] = []
    original = keras.layers.Layer.__call__

    def spy(layer: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(layer, *args, **kwargs)
        is_cell = type(layer).__name__.endswith("Cell")
        if not is_cell and callable(getattr(layer, "activation", None)) and any(isinstance(t, tf.Tensor) for t in args):
            called.append(layer)
        return output

    keras.layers.Layer.__call__ = spy
    try:
        yield called
    finally:
        keras.layers.Layer.__call__ = original


def _train(program: Program, measure: bool) -> _Training:
    keras.backend.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    spy = contextlib.nullcontext([]) if measure else _called_layers()
    with tempfile.TemporaryDirectory() as directory, _kept_messages() as said:
        try:
            built = program.build()
            train = _fit if isinstance(built, Fit) else _loop
            with spy as called:
                weights, trained, graph, probe = train(built, pathlib.Path(directory) if measure else None)
        finally:
            keras.config.set_dtype_policy("float32")
        run = tapescope.Run(directory) if measure else None
        if run is not None:
            _ = run["weight_norm"], run["update_ratio"]  # while the files are there
        skipped = dict(probe.skipped) if probe is not None else {}
        if probe is not None and probe.failure:
            said.append(probe.failure)
        findings = [] if run is None else [finding["message"] for finding in run.findings]
        said = [text for text in said if not any(message in text for message in findings)]
        how = type(built).__name__.lower()
        names = sorted({layer.name for layer in called if id(layer) in _layers_of(built)})
        return _Training(how, weights, trained, graph, names, said, run, skipped)


def _layers_of(built: Fit | Loop) -> set[int]:
    """Return the ids of all layers of the models that are measured."""
    models = tf.nest.flatten(built.model if isinstance(built, Fit) else built.models)
    found = [m._flatten_layers() for m in models if isinstance(m, keras.layers.Layer)]
    return {id(layer) for layers in found for layer in layers}


def _values(models: Any) -> dict[str, np.ndarray]:
    """Return the value of each trainable variable by its name."""
    try:
        probe = tapescope.Probe(models)
    except ValueError:  # no trainable variable
        return {}
    state = probe._state
    return {name: np.array(v) for name, v in zip(probe.variables, state.variables(), strict=True)}


class _Trajectory(keras.callbacks.Callback):
    """Keeps the weights before each step and after the last."""

    def __init__(self, trained: list[dict[str, np.ndarray]]):
        super().__init__()
        self.trained = trained

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.trained.append(_values(self.model))

    def on_train_end(self, logs: Any = None) -> None:
        self.trained.append(_values(self.model))


def _fit(built: Fit, directory: pathlib.Path | None) -> Any:
    trained: list[dict[str, np.ndarray]] = []
    graphs: list[Any] = []
    probe = None
    models = []
    number = itertools.count()
    while isinstance(built, Fit):
        model = built.model
        first = model not in models
        models.append(model)
        if first:
            _keep_graphs(model, graphs)
        options = dict(built.options)
        callbacks = list(options.pop("callbacks", []))
        monitor = None
        fit = next(number)
        if directory is None and not fit:
            callbacks.append(_Trajectory(trained))
        elif directory is not None and not fit:
            monitor = tapescope.Monitor(directory, tapescope.every(EVERY))
        elif directory is not None:
            with tempfile.TemporaryDirectory() as further:
                monitor = tapescope.Monitor(further, tapescope.every(EVERY))
                _call_fit(model, built.batches, [*callbacks, monitor], options)
        if fit == 0 or directory is None:
            _call_fit(model, built.batches, callbacks + ([monitor] if monitor else []), options)
        probe = probe or (monitor and monitor._probe)
        following = built.then() if built.then else None
        built = following  # type: ignore[assignment]
    weights = [np.array(w) for m in {id(m): m for m in models}.values() for w in m.variables]
    return weights, trained, _plain_graph(graphs), probe


def _call_fit(model: Any, batches: Any, callbacks: list[Any], options: dict[str, Any]) -> None:
    if isinstance(batches, tf.data.Dataset):
        options = {"steps_per_epoch": None, **options}
        model.fit(batches, verbose=0, callbacks=callbacks, **options)
    else:
        x, y = batches
        model.fit(x, y, verbose=0, callbacks=callbacks, **{"batch_size": 8, "shuffle": False, **options})


def _keep_graphs(model: Any, graphs: list[Any]) -> None:
    """Keep the graphs that the model's `train_step` is traced into."""
    train_step = model.train_step

    def kept(data: Any) -> Any:
        if not tf.executing_eagerly():
            graphs.append(tf.compat.v1.get_default_graph())
        return train_step(data)

    vars(model)["train_step"] = tf.autograph.experimental.do_not_convert(kept)


def _loop(built: Loop, directory: pathlib.Path | None) -> Any:
    probe = tapescope.Probe(built.models) if directory is not None else None
    graphs: list[Any] = []
    models = list(built.models) if isinstance(built.models, (list, tuple)) else [built.models]

    def step(measure: bool, *batch: Any) -> Any:
        if not tf.executing_eagerly():
            graphs.append(tf.compat.v1.get_default_graph())
        tapes: list[Any] = []

        def tape(persistent: bool = False) -> Any:
            if probe is None:
                return tf.GradientTape(persistent)
            tapes.append(probe.tape(measure, persistent))
            return tapes[-1]

        outputs = built.step(tape, *batch)
        return outputs if probe is None else (outputs, tapes[-1].reading(*tapes[:-1]))

    run_step = step if built.eager else tf.function(step)
    trained = []
    recorder = None if probe is None else tapescope.Recorder(directory, probe)  # type: ignore[arg-type]
    with contextlib.nullcontext() if recorder is None else recorder:
        for n, batch in enumerate(built.batches):
            trained.append(_values(built.models))
            outputs = run_step(recorder is not None and n % EVERY == 0, *batch)
            if recorder is not None and outputs[1] is not None:
                recorder.write(n, outputs[1])
    trained.append(_values(built.models))
    weights = [np.array(v) for m in models for v in (m.variables if hasattr(m, "variables") else [m])]
    return weights, trained, _plain_graph(graphs), probe


def _plain_graph(graphs: Sequence[Any]) -> str | None:
    """Return the last graph that has no operation of Tapescope, node for node.

    The numbers in the names of functions and of captured tensors are left out: they count those of the whole process.
    So is that of an outermost scope. Keras opens the optimizer's once more to build it, in the first trace of all.
    """
    for graph in reversed(graphs):
        definition = graph.as_graph_def()
        texts = [_normalized(definition.node)]
        library = {f.signature.name: f for f in definition.library.function}
        if any("tapescope" in name for name in [*(n.name for n in definition.node), *library]):
            continue
        texts += sorted(_normalized(f.node_def) for f in library.values())
        return "\n\n".join(texts)
    return None


def _normalized(nodes: Any) -> str:
    numbered = [n.name for n in nodes if n.op == "Placeholder" and re.search(r"/\d+$", n.name)]
    captured = {name: f"{name.rpartition('/')[0]}/captured {i}" for i, name in enumerate(numbered)}
    ignored = ("_output_shapes", "_user_specified_name")

    def normalized(name: str) -> str:
        return re.sub(r"^(\^?\w+?)_\d+/", r"\1/", captured.get(name, name))

    return "\n".join(
        f"{normalized(n.name)} {n.op} {[normalized(name) for name in n.input]} "
        + str(sorted((k, _normalized_attribute(v)) for k, v in n.attr.items() if k not in ignored))
        for n in nodes
    )


def _normalized_attribute(value: Any) -> str:
    """Return an attribute without the numbers of functions and of custom gradients."""
    if value.HasField("func"):
        return re.sub(r"_\d+", "_N", value.func.name)
    return re.sub(r"CustomGradient-\d+", "CustomGradient", str(value))
