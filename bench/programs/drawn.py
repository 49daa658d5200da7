"""Programs drawn at random: a task, a network, and one fault in data, output, loss, labels or learning rate, or none.

A faulty program and a healthy one are drawn in the same way and differ in the fault only, so healthy programs have what
is unusual and right too: outputs by an activation layer, soft labels, losses of logits, inputs that a layer scales.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from bench.calibration import data as datasets

losses = keras.losses
layers = keras.layers


class Program(NamedTuple):
    """A compiled model, its data, and the fault."""

    name: str
    fault: str
    """Empty for a healthy program."""
    rules: tuple[str, ...]
    """Rules of which one names the fault."""
    model: Any
    x: np.ndarray
    y: np.ndarray
    steps: int = 120
    batch: int = 32


class _Task(NamedTuple):
    """Task of a program, and how a sound one says it."""

    kind: str
    """"classes", "binary", "labels" or "values"."""
    x: np.ndarray
    y: np.ndarray
    units: int
    activation: str | None
    loss: Any
    metrics: tuple[str, ...]


class _Plan(NamedTuple):
    """A task with everything else that a program needs; faults change it."""

    task: _Task
    scale: Callable[[np.ndarray], np.ndarray] = lambda x: x
    first: tuple[Callable[[], Any], ...] = ()
    """Layers before all others."""
    learning_rate: float = 1e-3
    hidden: str = "relu"
    shuffle: bool = True


def _classes(rng: np.random.Generator, seed: int) -> _Task:
    chosen = rng.choice(["digits", "clusters", "spirals", "waves"])
    data = getattr(datasets, chosen)(seed)
    x = data.x.reshape(len(data.x), -1)
    one_hot = np.eye(data.classes, dtype="float32")[data.y]
    options = [
        (data.y, "softmax", "sparse_categorical_crossentropy"),
        (data.y, None, losses.SparseCategoricalCrossentropy(from_logits=True)),
        (one_hot, "softmax", "categorical_crossentropy"),
        (one_hot, "softmax", losses.CategoricalCrossentropy(label_smoothing=0.1)),
        (0.9 * one_hot + 0.1 / data.classes, "softmax", "kl_divergence"),
    ]
    y, activation, loss = options[rng.integers(len(options))]
    return _Task("classes", x, y, data.classes, activation, loss, ("accuracy",))


def _binary(rng: np.random.Generator, seed: int) -> _Task:
    data = datasets.rings(seed)
    options = [
        (data.y, "sigmoid", "binary_crossentropy"),
        (data.y[:, 0], "sigmoid", "binary_crossentropy"),
        (data.y, None, losses.BinaryCrossentropy(from_logits=True)),
        (data.y, "sigmoid", "mse"),
        (2 * data.y - 1, "tanh", "hinge"),
    ]
    y, activation, loss = options[rng.integers(len(options))]
    return _Task("binary", data.x, y, 1, activation, loss, ("accuracy",) if loss != "hinge" else ())


def _labels(rng: np.random.Generator, seed: int) -> _Task:
    data = datasets.clusters(seed)
    y = (data.x[:, :4] + 0.3 * rng.normal(size=[len(data.x), 4]) > 0).astype("float32")
    return _Task("labels", data.x, y, 4, "sigmoid", "binary_crossentropy", ())


def _values(rng: np.random.Generator, seed: int) -> _Task:
    data = getattr(datasets, rng.choice(["friedman", "skewed", "linear"]))(seed)
    share = (data.y - data.y.min()) / np.ptp(data.y)
    options = [
        (data.y, None, "mse"),
        (data.y, None, "mae"),
        (data.y, None, losses.Huber()),
        (data.y - data.y.min(), "relu", "mse"),
        (data.y - data.y.min(), "softplus", "mse"),
        (share, "sigmoid", "mse"),
        (2 * share - 1, "tanh", "mae"),
    ]
    y, activation, loss = options[rng.integers(len(options))]
    return _Task("values", data.x, y.astype("float32"), 1, activation, loss, ("mae",))


TASKS = {"classes": _classes, "binary": _binary, "labels": _labels, "values": _values}


def _with(plan: _Plan, **changes: Any) -> _Plan:
    return plan._replace(task=plan.task._replace(**changes))


def _indices(task: _Task) -> np.ndarray:
    return task.y if task.y.ndim == 1 else task.y.argmax(1)


def _zero_one(task: _Task) -> np.ndarray:
    return (task.y > 0).astype("float32").reshape(-1, 1)


def _one_hot(task: _Task) -> np.ndarray:
    return np.eye(task.units, dtype="float32")[_indices(task)]


_OUTPUT = ("output_activation",)
_LOSS = ("loss_mismatch",)
_RANGE = ("targets_out_of_range",)
_LABELS = ("labels_degenerate",)
_SCALE = ("unscaled_data",)
_RATE = ("update_too_large",)

FAULTS: dict[str, dict[str, tuple[tuple[str, ...], Callable[[_Plan, np.random.Generator], _Plan]]]] = {
    "classes": {
        "logits into probabilities": (
            _LOSS,
            lambda p, r: _with(p, y=_indices(p.task), activation=None, loss="sparse_categorical_crossentropy"),
        ),
        "ReLU before a cross-entropy": (
            _OUTPUT,
            lambda p, r: _with(p, y=_one_hot(p.task), activation="relu", loss="categorical_crossentropy"),
        ),
        "sigmoid with categorical cross-entropy": (
            _LOSS,
            lambda p, r: _with(p, y=_one_hot(p.task), activation="sigmoid", loss="categorical_crossentropy"),
        ),
        "softmax with a squared error": (
            _LOSS,
            lambda p, r: _with(p, y=_one_hot(p.task), activation="softmax", loss="mse"),
        ),
        "softmax with binary cross-entropy": (
            _LOSS,
            lambda p, r: _with(p, y=_one_hot(p.task), activation="softmax", loss="binary_crossentropy"),
        ),
        "labels divided by 255": (
            _LABELS,
            lambda p, r: _with(
                p, y=_indices(p.task) / np.float32(255), activation="softmax", loss="sparse_categorical_crossentropy"
            ),
        ),
        "classes for one sigmoid": (
            _RANGE,
            lambda p, r: _with(
                p, y=_indices(p.task).astype("float32"), units=1, activation="sigmoid", loss="binary_crossentropy"
            ),
        ),
        "class numbers as values": (
            _LOSS,
            lambda p, r: _with(p, y=_indices(p.task).astype("float32"), units=1, activation=None, loss="mse"),
        ),
        "sorted by class": (
            _LABELS,
            lambda p, r: _sorted(p._replace(shuffle=False)),
        ),
    },
    "binary": {
        "softmax of one unit": (
            _OUTPUT,
            lambda p, r: _with(p, y=_zero_one(p.task), activation="softmax", loss="binary_crossentropy"),
        ),
        "tanh before a cross-entropy": (
            _OUTPUT,
            lambda p, r: _with(p, y=_zero_one(p.task), activation="tanh", loss="binary_crossentropy"),
        ),
        "labels of -1 and 1": (
            _RANGE,
            lambda p, r: _with(p, y=2 * _zero_one(p.task) - 1, activation="sigmoid", loss="binary_crossentropy"),
        ),
        "one unit and categorical cross-entropy": (
            _LOSS,
            lambda p, r: _with(
                p,
                y=_zero_one(p.task),
                activation="sigmoid",
                loss="categorical_crossentropy",
            ),
        ),
        "probabilities into logits": (
            _LOSS,
            lambda p, r: _with(
                p,
                y=_zero_one(p.task),
                activation=lambda x: 1 / (1 + keras.ops.exp(-x)),  # Keras does not find the logits behind it
                loss=losses.BinaryCrossentropy(from_logits=True),
            ),
        ),
        "one label": (
            _LABELS,
            lambda p, r: _with(p, y=0 * _zero_one(p.task) + 1, activation="sigmoid", loss="binary_crossentropy"),
        ),
    },
    "labels": {
        "softmax for several labels": (
            _LOSS,
            lambda p, r: _with(p, activation="softmax", loss="categorical_crossentropy"),
        ),
        "logits into binary cross-entropy": (_LOSS, lambda p, r: _with(p, activation=None)),
    },
    "values": {
        "values below a ReLU": (
            _RANGE,
            lambda p, r: _with(p, y=p.task.y - p.task.y.mean(), activation="relu", loss="mse"),
        ),
        "values beyond a sigmoid": (
            _RANGE,
            lambda p, r: _with(p, y=20 * (p.task.y - p.task.y.min()), activation="sigmoid", loss="mse"),
        ),
        "softmax of one unit for values": (_OUTPUT, lambda p, r: _with(p, activation="softmax", loss="mse")),
        "targets of 1e5": (
            _SCALE,
            lambda p, r: _with(p, y=1e5 * (1 + p.task.y), activation=None, loss="mse"),
        ),
        "the same target": (_LABELS, lambda p, r: _with(p, y=0 * p.task.y, activation=None, loss="mse")),
    },
}
"""Rules of which one names the fault, and the change that makes it, by kind of task and name."""

_ANY: dict[str, tuple[tuple[str, ...], Callable[[_Plan, np.random.Generator], _Plan]]] = {
    "pixels of 0 to 255": (_SCALE, lambda p, r: p._replace(scale=lambda x: 255 * (x - x.min()) / np.ptp(x))),
    "an offset": (_SCALE, lambda p, r: p._replace(scale=lambda x: x / x.std() + float(r.uniform(15, 90)))),
    "inputs of 1e4": (_SCALE, lambda p, r: p._replace(scale=lambda x: 10 ** float(r.uniform(3, 7)) * x)),
    "divided twice": (_SCALE, lambda p, r: p._replace(scale=lambda x: x / np.abs(x).max() / 255)),
    "missing values": (("non_finite",), lambda p, r: p._replace(scale=lambda x: _with_missing(x, r))),
    "a learning rate of 10": (_RATE, lambda p, r: p._replace(learning_rate=10.0)),
    "a negative learning rate": (_RATE, lambda p, r: p._replace(learning_rate=-1.0)),
}
"""Faults of every task."""


def _sorted(plan: _Plan) -> _Plan:
    task = plan.task
    order = np.argsort(_indices(task), kind="stable")
    each = len(order) // task.units // 32 * 32
    # Batches of all classes in turn, so that a short training sees several.
    parts = np.array_split(order, task.units)
    blocks = [part[32 * i : 32 * i + 32] for i in range(each // 32) for part in parts if len(part) >= 32 * i + 32]
    blocks = [block for block in blocks if len(set(_indices(task)[block].tolist())) == 1]
    chosen = np.concatenate(blocks)
    return _with(plan, x=task.x[chosen], y=task.y[chosen])


def _with_missing(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(x.shape) < 0.002, np.nan, x)


def _sound_variant(plan: _Plan, rng: np.random.Generator) -> _Plan:
    """Return the plan with one of the things that look odd and are right, or with none."""
    adapted = layers.Normalization()
    adapted.adapt(1000 * plan.task.x)
    variants = [
        plan,
        plan,
        plan._replace(scale=lambda x: 255 * (x - x.min()) / np.ptp(x), first=(lambda: layers.Rescaling(1 / 255),)),
        plan._replace(scale=lambda x: 1000 * x, first=(lambda: adapted,)),
        plan._replace(scale=lambda x: 200 * x, first=(layers.BatchNormalization,)),
        plan._replace(hidden="tanh"),
        plan._replace(first=(lambda: layers.Dropout(0.1),)),
    ]
    return variants[rng.integers(len(variants))]


def draw(seed: int, index: int) -> Program:
    """Return program `index` of a seed: the even ones are faulty, the odd ones healthy."""
    rng = np.random.default_rng([seed, index])
    kind = str(rng.choice(list(TASKS), p=[0.4, 0.25, 0.1, 0.25]))
    plan = _sound_variant(_Plan(TASKS[kind](rng, int(rng.integers(1 << 30)))), rng)
    fault = ""
    rules: tuple[str, ...] = ()
    if index % 2 == 0:
        faults = FAULTS[kind] if rng.random() < 0.65 else _ANY
        fault = str(rng.choice(list(faults)))
        rules, change = faults[fault]
        if faults is _ANY:
            plan = _Plan(plan.task)
        plan = change(plan, rng)
    return _build(f"{seed}/{index} {kind}{': ' if fault else ''}{fault}", fault, rules, plan, rng)


def _build(name: str, fault: str, rules: tuple[str, ...], plan: _Plan, rng: np.random.Generator) -> Program:
    task = plan.task
    widths = [int(rng.choice([16, 32, 64]))] * int(rng.integers(1, 4))
    inputs = keras.Input(task.x.shape[1:])
    x = inputs
    for make in plan.first:
        x = make()(x)
    for width in widths:
        x = layers.Dense(width, plan.hidden, kernel_initializer="he_normal" if plan.hidden == "relu" else None)(x)
    if task.activation is not None and rng.random() < 0.4:
        x = layers.Activation(task.activation)(layers.Dense(task.units)(x))
    else:
        x = layers.Dense(task.units, task.activation)(x)
    model = keras.Model(inputs, x)
    optimizer = keras.optimizers.Adam if rng.random() < 0.7 else keras.optimizers.RMSprop
    model.compile(optimizer(plan.learning_rate), task.loss, metrics=list(task.metrics))
    scaled = np.asarray(plan.scale(task.x), np.float32)
    if plan.shuffle:
        order = rng.permutation(len(scaled))
        scaled, targets = scaled[order], task.y[order]
    else:
        targets = task.y
    return Program(name, fault, rules, model, scaled, targets)
