"""Set-ups drawn by chance from what is usual, as a stranger would write them. A seed is a part, equal for ever.

Sound is what textbooks and Keras' defaults hold for sound: an activation at a depth that it stands, weights of a usual
initializer, data of about unit scale, an optimizer at a rate that people give it. Nothing is drawn again for how it
trained.
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
from bench.calibration.networks_second import attention, bag_of_words, conv1d, residual_cnn
from bench.calibration.rows import Optimizer, Setup, optimizer
from keras import layers

HEALTHY = 48

STANDS = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "selu", "relu6", "tanh"), 8),
    **dict.fromkeys(("gelu", "silu", "mish"), 4),
    **dict.fromkeys(("softplus", "softsign"), 3),
    **dict.fromkeys(("sigmoid", "hard_sigmoid"), 1),
}
"""By activation the most layers that are stacked with Keras' own initialization and no normalisation."""
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


class _Draw:
    """Random choices."""

    def __init__(self, *seed: int):
        self._rng = np.random.default_rng(seed)

    def of(self, choices: Any) -> Any:
        choices = list(choices)
        return choices[self._rng.integers(len(choices))]

    def chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def number(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def between(self, low: float, high: float) -> float:
        """Evenly over the decades, two digits."""
        return float(f"{np.exp(self._rng.uniform(np.log(low), np.log(high))):.2g}")


def healthy(seed: int) -> list[Setup]:
    """Nothing is wrong with these."""
    kinds = [_mlp] * 5 + [_normalised] * 2 + [_preset] * 3 + [_dropout, _cnn, _recurrent, _signals, _words, _mlp]
    return [kinds[n % len(kinds)](_Draw(seed, n), 1000 * seed + n) for n in range(HEALTHY)]


def _setup(draw: _Draw, seed: int, kind: str, name: str, network, data, fault: Fault = NONE, rate=None) -> Setup:
    name_of_rate, at = rate or _optimizer(draw)
    every = draw.of((1, 5, 5, 10))
    steps = draw.of((200, 300) if every < 10 else (300, 400, 600))
    return Setup(
        name=f"{name}, {data.__name__}, {name_of_rate}",
        family=kind,
        network=network,
        data=data,
        optimizer=at,
        fault=fault,
        seed=seed,
        steps=steps if every > 1 else 200,
        batch=draw.of((16, 32, 64, 64, 128, 256)),
        every=every,
    )


def _optimizer(draw: _Draw, kinds: Any = RATES) -> tuple[str, Optimizer]:
    kind = draw.of(kinds)
    rate = draw.of(RATES[kind])
    keras_name = "SGD" if kind in _OWN else kind
    return f"{kind} {rate:g}", optimizer(keras_name, **_OWN.get(kind, {}))(rate)


def _kernel(draw: _Draw, f: str) -> str:
    return draw.of(("glorot_uniform", "glorot_uniform", PROPER.get(f, draw.of(("he_normal", "he_uniform")))))


def _mlp(draw: _Draw, seed: int) -> Setup:
    f = draw.of(STANDS)
    depth, width, kernel = draw.number(1, STANDS[f]), draw.of((16, 32, 64, 128, 256)), _kernel(draw, f)
    return _setup(draw, seed, "mlp", f"{depth} x {width} {f}, {kernel}", mlp(depth, width, f, kernel), draw.of(FLAT))


def _normalised(draw: _Draw, seed: int) -> Setup:
    f, norm = (
        draw.of(("relu", "elu", "gelu", "tanh", "silu")),
        draw.of((layers.BatchNormalization, layers.LayerNormalization)),
    )
    depth, width = draw.number(1, 8), draw.of((32, 64, 128))
    network = mlp(depth, width, f, "glorot_uniform", norm=norm)
    return _setup(draw, seed, "normalised", f"{depth} x {width} {f}, {norm.__name__}", network, draw.of(FLAT))


def _dropout(draw: _Draw, seed: int) -> Setup:
    f, depth, share = draw.of(("relu", "elu", "tanh", "gelu")), draw.number(1, 3), draw.of((0.1, 0.2, 0.5))
    network = mlp(depth, 128, f, "glorot_uniform", dropout=share)
    return _setup(
        draw, seed, "dropout", f"{depth} x 128 {f}, dropout {share}", network, draw.of((digits, clusters, teacher))
    )


def _preset(draw: _Draw, seed: int) -> Setup:
    kind = draw.of(("mlp", "mlp", "cnn", "resnet", "transformer", "parallel_branches"))
    f = draw.of(("relu", "relu", "elu", "leaky_relu", "selu", "gelu", "silu", "tanh"))
    depth = None if draw.chance(0.5) else draw.number(1, 6 if kind == "mlp" and STANDS[f] > 4 else 3)
    width = None if draw.chance(0.5) else draw.of((16, 32, 128) if kind == "mlp" else (16, 32))
    network = preset(kind, activation=f, depth=depth, width=width)
    return _setup(draw, seed, "preset", f"{kind}, {f}, depth {depth}, width {width}", network, digits)


def _cnn(draw: _Draw, seed: int) -> Setup:
    f, depth = draw.of(("relu", "elu", "tanh", "leaky_relu")), draw.number(1, 4)
    if draw.chance(0.3):
        return _setup(draw, seed, "cnn", f"residual, {f}", residual_cnn(1, 8, f), images)
    network = cnn(depth, draw.of((8, 16)), f, draw.of(("glorot_uniform", "he_normal")))
    return _setup(draw, seed, "cnn", f"{depth} {f}", network, images)


def _recurrent(draw: _Draw, seed: int) -> Setup:
    kind, width = draw.of((layers.LSTM, layers.GRU, layers.SimpleRNN)), draw.of((16, 32, 64))
    return _setup(draw, seed, "recurrent", f"{kind.__name__} {width}", recurrent(width, kind), rows)


def _signals(draw: _Draw, seed: int) -> Setup:
    f, depth = draw.of(("relu", "elu", "tanh", "gelu")), draw.number(1, 4)
    network = conv1d(depth, draw.of((8, 16, 32)), f, "glorot_uniform")
    return _setup(draw, seed, "signals", f"{depth} {f}", network, waves)


def _words(draw: _Draw, seed: int) -> Setup:
    f = draw.of(("relu", "gelu", "tanh"))
    network, name = (attention(32, 4, 1, f), "attention") if draw.chance(0.5) else (bag_of_words(32, f, 1), "mean")
    rate = _optimizer(draw, ("Adam", "AdamW", "RMSprop", "Nadam", "Adamax"))
    return _setup(draw, seed, "words", f"{name}, {f}", network, tokens, rate=rate)


def faulty(seed: int) -> list[Setup]:
    """One fault each, of every kind."""
    made = []
    for n, make in enumerate(FAULTS):
        draw = _Draw(seed, 500 + n)
        setup = make(draw, 1000 * seed + 500 + n)
        fault = setup.fault
        # What must be seen at its very step is measured at every one; what lasts, long enough to be called lasting.
        every = fault.every if fault.every < 4 else draw.of((2, 4, 5))
        longest = 300 if every > 2 else 240
        made.append(
            setup._replace(every=every, steps=longest, name=f"{fault.name}: {setup.name}", batch=draw.of((32, 64, 128)))
        )
    return made


Faulty = Callable[[_Draw, int], Setup]
RECTIFIED, SMOOTH = ("relu", "leaky_relu", "elu", "selu"), ("tanh", "elu", "selu")
GENTLE = ("Adam", "AdamW", "Nadam", "Adamax")


DATA = (digits, clusters, spirals, friedman, teacher)
CLASSES = (digits, clusters, spirals, teacher)
"""Where labels are at random the loss of a regression falls all the same, down to their variance, and no loss says more
of a sound training on noisy targets.
"""


def _faulty(
    of: Any,
    fault: Callable[[_Draw, int, int], Fault],
    rate: Callable[[_Draw], tuple[str, Optimizer]] | None = None,
    kinds: Any = ("Adam", "SGD", "momentum", "RMSprop"),
    least: int = 3,
    most: int = 5,
    data: Any = DATA,
) -> Faulty:
    """A sound network with that fault: `fault(draw, layer, depth)`."""

    def make(draw: _Draw, seed: int) -> Setup:
        f, depth, width = draw.of(of), draw.number(least, most), draw.of((32, 48, 64, 96))
        network = mlp(depth, width, f, PROPER.get(f, "he_normal"))
        layer, examples, usual = draw.number(2, depth - 1), draw.of(data), _optimizer(draw, kinds)
        at = rate(draw) if rate else usual
        return _setup(draw, seed, "mlp", f"{depth} x {width} {f}", network, examples, fault(draw, layer, depth), at)

    return make


def _sigmoids(draw: _Draw, seed: int) -> Setup:
    depth, width = draw.number(5, 8), draw.of((32, 48, 64))
    fault = faults.built_in(f"{depth} sigmoid layers", 1, depth)
    network = mlp(depth, width, "sigmoid", "glorot_uniform")
    return _setup(draw, seed, "mlp", f"width {width}", network, draw.of((digits, clusters, teacher)), fault)


def _some_sigmoids(draw: _Draw, seed: int) -> Setup:
    before, amid, after, f = draw.number(1, 3), draw.number(4, 5), draw.number(1, 2), draw.of(("relu", "elu"))
    fault = faults.built_in(f"{amid} sigmoids amid {f}", before + 1, before + amid)
    network = mlp(before + amid + after, 48, [f] * before + ["sigmoid"] * amid + [f] * after)
    return _setup(draw, seed, "mlp", f"{before} before, {after} after", network, draw.of((digits, clusters)), fault)


def _poison(backward: bool) -> Faulty:
    def make(draw: _Draw, seed: int) -> Setup:
        depth = draw.number(3, 5)
        layer = draw.number(1, depth - 1)
        poison = faults.Poison(draw.number(20, 120), f"hidden_{layer}", backward)
        network = mlp(depth, 48, ["relu"] * (layer - 1) + [poison] + ["relu"] * (depth - layer))
        return _setup(draw, seed, "mlp", f"{depth} x 48", network, draw.of((digits, clusters)), poison.fault)

    return make


def _stopped(draw: _Draw, seed: int) -> Setup:
    depth = draw.number(3, 6)
    layer, f = draw.number(1, depth - 1), draw.of(("relu", "tanh"))
    network = mlp(depth, 48, f, shut=layer)
    return _setup(draw, seed, "mlp", f"{depth} x 48 {f}", network, draw.of((digits, clusters)), faults.stopped(layer))


def _shut(draw: _Draw, seed: int) -> Setup:
    depth, f = draw.number(2, 4), draw.of(("tanh", "sigmoid", "softsign"))
    layer, value = draw.number(1, depth), draw.between(*((40, 80) if f == "softsign" else (9, 20)))
    fault = faults.shut_biases(f"hidden_{layer}", value * draw.of((-1, 1)))
    network = mlp(depth, 48, ["relu"] * (layer - 1) + [f] + ["relu"] * (depth - layer))
    return _setup(draw, seed, "mlp", f"{depth} x 48, {f}", network, digits, fault, _optimizer(draw, GENTLE))


def _at(kind: str, low: float, high: float) -> Callable[[_Draw], tuple[str, Optimizer]]:
    def rate(draw: _Draw):
        value = draw.between(low, high)
        name = "SGD" if kind in _OWN else kind
        return f"{kind} {value:g}", optimizer(name, **_OWN.get(kind, {}))(value)

    return rate


def _hidden(layer: int) -> str:
    return f"hidden_{layer}"


FAULTS: tuple[Faulty, ...] = (
    _sigmoids,
    _some_sigmoids,
    _faulty(SMOOTH, lambda d, n, _: faults.weights_times(d.between(0.001, 0.01), _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.weights_times(d.between(0.001, 0.01), _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.weights_times(0, _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.weights_times(d.between(25, 100), _hidden(n)), kinds=GENTLE),
    _faulty(("relu", "elu"), lambda d, n, _: faults.data_times(d.between(100, 1000)), kinds=GENTLE),
    _faulty(("relu", "tanh"), lambda d, n, _: faults.data_times(d.between(1e-4, 1e-3))),
    _faulty(("relu", "elu"), lambda d, n, k: faults.all_weights_times(2.2, k), kinds=("Adam",), least=8, most=10),
    _faulty(("relu",), lambda d, n, _: faults.dead_biases(_hidden(n), -d.between(15, 40))),
    _faulty(("relu",), lambda d, n, _: faults.negative_weights(_hidden(n))),
    _faulty(("relu",), lambda d, n, _: faults.biases_drop(_hidden(n), d.number(40, 120), d.between(15, 40))),
    _faulty(("tanh",), lambda d, n, _: faults.weights_times(d.between(30, 80), _hidden(n), "saturation"), kinds=GENTLE),
    _faulty(("tanh",), lambda d, n, _: faults.data_times(d.between(100, 400), "saturation"), kinds=GENTLE),
    _shut,
    _faulty(RECTIFIED, lambda d, n, _: faults.too_fast("too fast"), _at("SGD", 10, 50)),
    _faulty(RECTIFIED, lambda d, n, _: faults.too_fast("too fast"), _at("Adam", 0.4, 2)),
    _faulty(
        ("relu", "elu"), lambda d, n, _: faults.rate_times(d.between(300, 2000), _hidden(n)), _at("SGD", 0.03, 0.1)
    ),
    _faulty(RECTIFIED, lambda d, n, _: faults.too_slow("too slow"), _at("Adam", 1e-8, 3e-7)),
    _faulty(RECTIFIED, lambda d, n, _: faults.too_slow("too slow"), _at("SGD", 1e-7, 1e-5)),
    _faulty(("relu", "elu"), lambda d, n, _: faults.rate_times(0, _hidden(n))),
    _faulty(RECTIFIED, lambda d, n, _: faults.clipped(d.between(5e-4, 5e-3)), _at("SGD", 0.03, 0.1)),
    _poison(False),
    _poison(True),
    _faulty(("relu", "tanh"), lambda d, n, _: faults.nan_input(d.number(30, 150))),
    _stopped,
    _faulty(("relu", "tanh"), lambda d, n, _: faults.random_labels(), _at("Adam", 1e-3, 3e-3), data=CLASSES),
    _faulty(("relu", "elu"), lambda d, n, _: faults.random_labels(), _at("SGD", 0.03, 0.1), data=CLASSES),
    _faulty(("relu", "elu"), lambda d, n, _: faults.inputs_alike(), _at("Adam", 1e-3, 3e-3)),
    _faulty(
        ("relu", "elu"),
        lambda d, n, _: faults.bad_batches(3 * d.number(13, 20), d.between(100, 300)),
        _at("SGD", 1e-4, 1e-3),
    ),
)
