"""Parts of set-ups drawn at random from common practice; each seed makes one reproducible part.

Healthy follows textbooks and Keras' defaults: an activation at a depth that it supports, a usual initializer, data of
about unit scale, an optimizer at a usual learning rate. No set-up was drawn again because of how it trained.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from bench.calibration import faults
from bench.calibration.data import (
    clusters,
    digits,
    friedman,
    images,
    linear,
    rings,
    rows,
    skewed,
    spirals,
    teacher,
    tokens,
    waves,
)
from bench.calibration.faults import NONE, Fault
from bench.calibration.networks import cnn, mlp, preset, recurrent
from bench.calibration.second_networks import attention, bag_of_words, conv1d, residual_cnn
from bench.calibration.setup import Optimizer, Setup, optimizer
from keras import layers

HEALTHY = 48

MOST_LAYERS = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "selu", "relu6", "tanh"), 8),
    **dict.fromkeys(("gelu", "silu", "mish"), 4),
    **dict.fromkeys(("softplus", "softsign"), 3),
    **dict.fromkeys(("sigmoid", "hard_sigmoid"), 1),
}
"""By activation, the most layers that are stacked with Keras' default initialization and no normalization."""
PROPER = {"selu": "lecun_normal", "tanh": "orthogonal", "softsign": "glorot_normal", "sigmoid": "glorot_normal"}
FLAT = (digits, clusters, spirals, friedman, skewed, rings, teacher, linear)
RATES: dict[str, tuple[float, ...]] = {
    "Adam": (1e-3, 1e-3, 3e-4, 3e-3),
    "SGD": (0.01, 0.03, 0.1),
    "momentum": (0.005, 0.01, 0.03),
    "nesterov": (0.01,),
    "RMSprop": (1e-3, 3e-4),
    "AdamW": (1e-3, 3e-3),
    "Nadam": (1e-3,),
    "Adamax": (1e-3, 3e-3),
    "Adagrad": (0.01, 0.05),
    "Adadelta": (1.0,),
    "Lamb": (1e-3,),
    "Lion": (1e-4, 3e-4),
    "Adafactor": (1e-3,),
}
_OWN = {"momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}


class _Random:
    """Random choices."""

    def __init__(self, *seed: int):
        self._rng = np.random.default_rng(seed)

    def choice(self, choices: Any) -> Any:
        choices = list(choices)
        return choices[self._rng.integers(len(choices))]

    def event(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def log_uniform(self, low: float, high: float) -> float:
        """Return a number that is uniform in its logarithm, with two digits."""
        return float(f"{np.exp(self._rng.uniform(np.log(low), np.log(high))):.2g}")


def healthy(seed: int) -> list[Setup]:
    """Return healthy set-ups."""
    kinds = [_mlp] * 5 + [_normalized] * 2 + [_preset] * 3 + [_dropout, _cnn, _recurrent, _signals, _words, _mlp]
    return [kinds[n % len(kinds)](_Random(seed, n), 1000 * seed + n) for n in range(HEALTHY)]


def _setup(draw: _Random, seed: int, kind: str, name: str, network, data, fault: Fault = NONE, rate=None) -> Setup:
    rate_name, make_optimizer = rate or _optimizer(draw)
    every = draw.choice((1, 5, 5, 10))
    steps = draw.choice((200, 300) if every < 10 else (300, 400, 600))
    return Setup(
        name=f"{name}, {data.__name__}, {rate_name}",
        family=kind,
        network=network,
        data=data,
        optimizer=make_optimizer,
        fault=fault,
        seed=seed,
        steps=steps if every > 1 else 200,
        batch=draw.choice((16, 32, 64, 64, 128, 256)),
        every=every,
    )


def _optimizer(draw: _Random, kinds: Any = RATES) -> tuple[str, Optimizer]:
    kind = draw.choice(kinds)
    rate = draw.choice(RATES[kind])
    keras_name = "SGD" if kind in _OWN else kind
    return f"{kind} {rate:g}", optimizer(keras_name, **_OWN.get(kind, {}))(rate)


def _kernel(draw: _Random, f: str) -> str:
    return draw.choice(("glorot_uniform", "glorot_uniform", PROPER.get(f, draw.choice(("he_normal", "he_uniform")))))


def _mlp(draw: _Random, seed: int) -> Setup:
    f = draw.choice(MOST_LAYERS)
    depth = draw.integer(1, MOST_LAYERS[f])
    width = draw.choice((16, 32, 64, 128, 256))
    kernel = _kernel(draw, f)
    return _setup(
        draw, seed, "mlp", f"{depth} x {width} {f}, {kernel}", mlp(depth, width, f, kernel), draw.choice(FLAT)
    )


def _normalized(draw: _Random, seed: int) -> Setup:
    f = draw.choice(("relu", "elu", "gelu", "tanh", "silu"))
    norm = draw.choice((layers.BatchNormalization, layers.LayerNormalization))
    depth = draw.integer(1, 8)
    width = draw.choice((32, 64, 128))
    network = mlp(depth, width, f, "glorot_uniform", norm=norm)
    return _setup(draw, seed, "normalised", f"{depth} x {width} {f}, {norm.__name__}", network, draw.choice(FLAT))


def _dropout(draw: _Random, seed: int) -> Setup:
    f = draw.choice(("relu", "elu", "tanh", "gelu"))
    depth = draw.integer(1, 3)
    share = draw.choice((0.1, 0.2, 0.5))
    network = mlp(depth, 128, f, "glorot_uniform", dropout=share)
    data = draw.choice((digits, clusters, teacher))
    return _setup(draw, seed, "dropout", f"{depth} x 128 {f}, dropout {share}", network, data)


def _preset(draw: _Random, seed: int) -> Setup:
    kind = draw.choice(("mlp", "mlp", "cnn", "resnet", "transformer", "parallel_branches"))
    f = draw.choice(("relu", "relu", "elu", "leaky_relu", "selu", "gelu", "silu", "tanh"))
    depth = None if draw.event(0.5) else draw.integer(1, 6 if kind == "mlp" and MOST_LAYERS[f] > 4 else 3)
    width = None if draw.event(0.5) else draw.choice((16, 32, 128) if kind == "mlp" else (16, 32))
    network = preset(kind, activation=f, depth=depth, width=width)
    return _setup(draw, seed, "preset", f"{kind}, {f}, depth {depth}, width {width}", network, digits)


def _cnn(draw: _Random, seed: int) -> Setup:
    f = draw.choice(("relu", "elu", "tanh", "leaky_relu"))
    depth = draw.integer(1, 4)
    if draw.event(0.3):
        return _setup(draw, seed, "cnn", f"residual, {f}", residual_cnn(1, 8, f), images)
    network = cnn(depth, draw.choice((8, 16)), f, draw.choice(("glorot_uniform", "he_normal")))
    return _setup(draw, seed, "cnn", f"{depth} {f}", network, images)


def _recurrent(draw: _Random, seed: int) -> Setup:
    kind = draw.choice((layers.LSTM, layers.GRU, layers.SimpleRNN))
    width = draw.choice((16, 32, 64))
    return _setup(draw, seed, "recurrent", f"{kind.__name__} {width}", recurrent(width, kind), rows)


def _signals(draw: _Random, seed: int) -> Setup:
    f = draw.choice(("relu", "elu", "tanh", "gelu"))
    depth = draw.integer(1, 4)
    network = conv1d(depth, draw.choice((8, 16, 32)), f, "glorot_uniform")
    return _setup(draw, seed, "signals", f"{depth} {f}", network, waves)


def _words(draw: _Random, seed: int) -> Setup:
    f = draw.choice(("relu", "gelu", "tanh"))
    if draw.event(0.5):
        network = attention(32, 4, 1, f)
        name = "attention"
    else:
        network = bag_of_words(32, f, 1)
        name = "mean"
    rate = _optimizer(draw, ("Adam", "AdamW", "RMSprop", "Nadam", "Adamax"))
    return _setup(draw, seed, "words", f"{name}, {f}", network, tokens, rate=rate)


def faulty(seed: int) -> list[Setup]:
    """Return one set-up for each kind of fault."""
    setups = []
    for n, make in enumerate(FAULTS):
        draw = _Random(seed, 500 + n)
        setup = make(draw, 1000 * seed + 500 + n)
        fault = setup.fault
        # A fault whose exact step matters is measured at every step; a lasting one for long enough to count as lasting.
        every = fault.every if fault.every < 4 else draw.choice((2, 4, 5))
        steps = 300 if every > 2 else 240
        name = f"{fault.name}: {setup.name}"
        setups.append(setup._replace(every=every, steps=steps, name=name, batch=draw.choice((32, 64, 128))))
    return setups


Faulty = Callable[[_Random, int], Setup]
RECTIFIED = ("relu", "leaky_relu", "elu", "selu")
SMOOTH = ("tanh", "elu", "selu")
GENTLE = ("Adam", "AdamW", "Nadam", "Adamax")
"""Optimizers whose step does not grow with the gradient."""
DATA = (digits, clusters, spirals, friedman, teacher)
CLASSES = (digits, clusters, spirals, teacher)
"""Data for random labels. A regression is left out, because its loss falls to the variance of random targets all the
same, as it does in a healthy training on noisy targets.
"""


def _faulty(
    activations: Any,
    fault: Callable[[_Random, int, int], Fault],
    rate: Callable[[_Random], tuple[str, Optimizer]] | None = None,
    kinds: Any = ("Adam", "SGD", "momentum", "RMSprop"),
    least: int = 3,
    most: int = 5,
    data: Any = DATA,
) -> Faulty:
    """Return a maker of healthy networks with that fault, which is `fault(draw, layer, depth)`."""

    def make(draw: _Random, seed: int) -> Setup:
        f = draw.choice(activations)
        depth = draw.integer(least, most)
        width = draw.choice((32, 48, 64, 96))
        network = mlp(depth, width, f, PROPER.get(f, "he_normal"))
        layer = draw.integer(2, depth - 1)
        examples = draw.choice(data)
        optimizer = _optimizer(draw, kinds)
        if rate:
            optimizer = rate(draw)
        name = f"{depth} x {width} {f}"
        return _setup(draw, seed, "mlp", name, network, examples, fault(draw, layer, depth), optimizer)

    return make


def _sigmoids(draw: _Random, seed: int) -> Setup:
    depth = draw.integer(5, 8)
    width = draw.choice((32, 48, 64))
    fault = faults.built_in(f"{depth} sigmoid layers", 1, depth)
    network = mlp(depth, width, "sigmoid", "glorot_uniform")
    return _setup(draw, seed, "mlp", f"width {width}", network, draw.choice((digits, clusters, teacher)), fault)


def _some_sigmoids(draw: _Random, seed: int) -> Setup:
    before = draw.integer(1, 3)
    sigmoids = draw.integer(4, 5)
    after = draw.integer(1, 2)
    f = draw.choice(("relu", "elu"))
    fault = faults.built_in(f"{sigmoids} sigmoids amid {f}", before + 1, before + sigmoids)
    network = mlp(before + sigmoids + after, 48, [f] * before + ["sigmoid"] * sigmoids + [f] * after)
    return _setup(draw, seed, "mlp", f"{before} before, {after} after", network, draw.choice((digits, clusters)), fault)


def _poison(backward: bool) -> Faulty:
    def make(draw: _Random, seed: int) -> Setup:
        depth = draw.integer(3, 5)
        layer = draw.integer(1, depth - 1)
        poison = faults.Poison(draw.integer(20, 120), f"hidden_{layer}", backward)
        network = mlp(depth, 48, ["relu"] * (layer - 1) + [poison] + ["relu"] * (depth - layer))
        return _setup(draw, seed, "mlp", f"{depth} x 48", network, draw.choice((digits, clusters)), poison.fault)

    return make


def _stopped(draw: _Random, seed: int) -> Setup:
    depth = draw.integer(3, 6)
    layer = draw.integer(1, depth - 1)
    f = draw.choice(("relu", "tanh"))
    network = mlp(depth, 48, f, shut=layer)
    return _setup(
        draw, seed, "mlp", f"{depth} x 48 {f}", network, draw.choice((digits, clusters)), faults.stopped(layer)
    )


def _shut(draw: _Random, seed: int) -> Setup:
    depth = draw.integer(2, 4)
    f = draw.choice(("tanh", "sigmoid", "softsign"))
    layer = draw.integer(1, depth)
    value = draw.log_uniform(40, 80) if f == "softsign" else draw.log_uniform(9, 20)
    fault = faults.shut_biases(f"hidden_{layer}", value * draw.choice((-1, 1)))
    network = mlp(depth, 48, ["relu"] * (layer - 1) + [f] + ["relu"] * (depth - layer))
    return _setup(draw, seed, "mlp", f"{depth} x 48, {f}", network, digits, fault, _optimizer(draw, GENTLE))


def _rate_between(kind: str, low: float, high: float) -> Callable[[_Random], tuple[str, Optimizer]]:
    def rate(draw: _Random):
        value = draw.log_uniform(low, high)
        name = "SGD" if kind in _OWN else kind
        return f"{kind} {value:g}", optimizer(name, **_OWN.get(kind, {}))(value)

    return rate


def _hidden(layer: int) -> str:
    return f"hidden_{layer}"


FAULTS: tuple[Faulty, ...] = (
    _sigmoids,
    _some_sigmoids,
    _faulty(SMOOTH, lambda d, n, _: faults.weights_times(d.log_uniform(0.001, 0.01), _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.weights_times(d.log_uniform(0.001, 0.01), _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.weights_times(0, _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.weights_times(d.log_uniform(25, 100), _hidden(n)), kinds=GENTLE),
    _faulty(("relu", "elu"), lambda d, n, _: faults.data_times(d.log_uniform(100, 1000)), kinds=GENTLE),
    _faulty(("relu", "tanh"), lambda d, n, _: faults.data_times(d.log_uniform(1e-4, 1e-3))),
    _faulty(("relu", "elu"), lambda d, n, k: faults.all_weights_times(2.2, k), kinds=("Adam",), least=8, most=10),
    _faulty(("relu",), lambda d, n, _: faults.dead_biases(_hidden(n), -d.log_uniform(15, 40))),
    _faulty(("relu",), lambda d, n, _: faults.negative_weights(_hidden(n))),
    _faulty(("relu",), lambda d, n, _: faults.biases_drop(_hidden(n), d.integer(40, 120), d.log_uniform(15, 40))),
    _faulty(
        ("tanh",), lambda d, n, _: faults.weights_times(d.log_uniform(30, 80), _hidden(n), "saturation"), kinds=GENTLE
    ),
    _faulty(("tanh",), lambda d, n, _: faults.data_times(d.log_uniform(100, 400), "saturation"), kinds=GENTLE),
    _shut,
    _faulty(RECTIFIED, lambda d, n, _: faults.too_fast("too fast"), _rate_between("SGD", 10, 50)),
    _faulty(RECTIFIED, lambda d, n, _: faults.too_fast("too fast"), _rate_between("Adam", 0.4, 2)),
    _faulty(
        ("relu", "elu"),
        lambda d, n, _: faults.rate_times(d.log_uniform(300, 2000), _hidden(n)),
        _rate_between("SGD", 0.03, 0.1),
    ),
    _faulty(RECTIFIED, lambda d, n, _: faults.too_slow("too slow"), _rate_between("Adam", 1e-8, 3e-7)),
    _faulty(RECTIFIED, lambda d, n, _: faults.too_slow("too slow"), _rate_between("SGD", 1e-7, 1e-5)),
    _faulty(("relu", "elu"), lambda d, n, _: faults.rate_times(0, _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.clipped(d.log_uniform(5e-4, 5e-3)), _rate_between("SGD", 0.03, 0.1)),
    _poison(False),
    _poison(True),
    _faulty(("relu", "tanh"), lambda d, n, _: faults.nan_input(d.integer(30, 150))),
    _stopped,
    _faulty(("relu", "tanh"), lambda d, n, _: faults.random_labels(), _rate_between("Adam", 1e-3, 3e-3), data=CLASSES),
    _faulty(("relu", "elu"), lambda d, n, _: faults.random_labels(), _rate_between("SGD", 0.03, 0.1), data=CLASSES),
    _faulty(("relu", "elu"), lambda d, n, _: faults.inputs_alike(), _rate_between("Adam", 1e-3, 3e-3)),
    _faulty(
        ("relu", "elu"),
        lambda d, n, _: faults.bad_batches(3 * d.integer(13, 20), d.log_uniform(100, 300)),
        _rate_between("SGD", 1e-4, 1e-3),
    ),
)
