"""The set-ups: what is trained, and which fault was put where. No threshold is here, and none is for one set-up.

Those that are `held_out` have networks, data and seeds of their own; thresholds were chosen on the others alone.
"""

from collections.abc import Iterator
from functools import partial

import keras
import numpy as np
from bench.rules import parts
from bench.rules.parts import branches, cnn, mlp, recurrent, residual, transformer
from bench.rules.training import Setup
from keras import layers

Adam, SGD, AdamW, RMSprop = (getattr(keras.optimizers, name) for name in ("Adam", "SGD", "AdamW", "RMSprop"))
momentum = partial(SGD, momentum=0.9)


def with_rate(kind, rate: float):
    return partial(kind, rate)


def hidden(first: int, last: int) -> tuple[str, ...]:
    """`hidden_<first>` to `hidden_<last>`."""
    return tuple(f"hidden_{n}" for n in range(first, last + 1))


def healthy() -> Iterator[Setup]:
    """Good practice: what a person would call sound before it was trained, and what learns when it is."""
    adam, sgd = with_rate(Adam, 1e-3), with_rate(SGD, 0.1)
    chosen = [
        ("relu, Adam", "mlp", mlp(), parts.digits, adam),
        ("relu, SGD", "mlp", mlp(), parts.digits, sgd),
        ("relu deep, Adam", "mlp", mlp(8), parts.digits, adam),
        ("tanh, SGD", "mlp", mlp(4, activation="tanh"), parts.digits, sgd),
        ("tanh, Adam 1e-2", "mlp", mlp(2, activation="tanh"), parts.digits, with_rate(Adam, 1e-2)),
        ("one sigmoid layer, Adam", "mlp", mlp(1, activation="sigmoid"), parts.digits, with_rate(Adam, 1e-2)),
        ("relu then sigmoid, Adam", "mlp", mlp(2, activation=["relu", "sigmoid"]), parts.digits, adam),
        ("elu, momentum", "mlp", mlp(4, activation="elu"), parts.digits, with_rate(momentum, 0.01)),
        ("relu narrow, Adam 1e-2", "mlp", mlp(2, 16), parts.digits, with_rate(Adam, 1e-2)),
        ("relu wide, Adam", "mlp", mlp(2, 256), parts.digits, adam),
        ("batch norm, SGD", "mlp", mlp(4, norm=layers.BatchNormalization), parts.digits, sgd),
        ("clusters, relu", "mlp", mlp(3), parts.clusters, adam),
        ("clusters, tanh", "mlp", mlp(3, activation="tanh"), parts.clusters, adam),
        ("cnn, Adam", "cnn", cnn(), parts.images, with_rate(Adam, 3e-3)),
        ("cnn, momentum", "cnn", cnn(2), parts.images, with_rate(momentum, 0.05)),
        ("cnn with batch norm", "cnn", cnn(4, norm=layers.BatchNormalization), parts.images, with_rate(Adam, 3e-3)),
        ("two replicas, relu", "replicas", mlp(2), parts.digits, adam),
        ("linear model", "mlp", mlp(0), parts.digits, with_rate(Adam, 1e-2)),
    ]
    held = [
        ("selu, LeCun", "mlp2", mlp(6, 48, "selu", "lecun_normal"), parts.digits, adam),
        ("gelu, AdamW", "mlp2", mlp(4, 96, "gelu"), parts.digits, with_rate(AdamW, 2e-3)),
        ("silu, clusters", "mlp2", mlp(3, 40, "silu"), parts.clusters, with_rate(Adam, 3e-3)),
        ("leaky relu, momentum", "mlp2", mlp(5, 32, "leaky_relu"), parts.clusters, with_rate(momentum, 0.02)),
        ("softplus", "mlp2", mlp(2, 64, "softplus"), parts.digits, adam),
        ("two sigmoid layers", "mlp2", mlp(2, 80, "sigmoid"), parts.digits, with_rate(RMSprop, 3e-3)),
        ("orthogonal tanh", "mlp2", mlp(6, 50, "tanh", "orthogonal"), parts.digits, with_rate(SGD, 0.2)),
        ("layer norm, relu", "mlp2", mlp(5, 48, norm=layers.LayerNormalization), parts.digits, adam),
        ("layer norm, data times 0.01", "mlp2", mlp(4, norm=layers.LayerNormalization), parts.digits, adam),
        ("batch norm, data times 100", "mlp2", mlp(3, norm=layers.BatchNormalization), parts.digits, adam),
        ("rings, relu", "binary", mlp(3, 32), parts.rings, with_rate(Adam, 5e-3)),
        ("rings, tanh", "binary", mlp(2, 32, "tanh"), parts.rings, with_rate(Adam, 1e-2)),
        ("rings, sigmoid", "binary", mlp(1, 48, "sigmoid"), parts.rings, with_rate(Adam, 2e-2)),
        ("friedman, relu", "regression", mlp(3, 64), parts.friedman, adam),
        ("friedman, tanh", "regression", mlp(2, 64, "tanh"), parts.friedman, with_rate(Adam, 3e-3)),
        ("friedman, elu, SGD", "regression", mlp(3, 48, "elu"), parts.friedman, with_rate(SGD, 0.02)),
        ("residual, Adam", "residual", residual(), parts.digits, adam),
        ("residual deep, SGD", "residual", residual(6), parts.digits, with_rate(SGD, 0.05)),
        ("residual, regression", "residual", residual(3, 32, "gelu"), parts.friedman, adam),
        ("residual without norm", "residual", residual(2, norm=False), parts.clusters, adam),
        ("branches", "branches", branches(), parts.digits, adam),
        ("branches tanh and elu", "branches", branches("tanh", "elu"), parts.clusters, with_rate(SGD, 0.1)),
        ("transformer", "transformer", transformer(), parts.rows, with_rate(Adam, 2e-3)),
        ("transformer relu", "transformer", transformer(48, 1, "relu"), parts.rows, adam),
        ("LSTM", "recurrent", recurrent(), parts.rows, with_rate(Adam, 5e-3)),
        ("GRU", "recurrent", recurrent(48, layers.GRU), parts.rows, with_rate(Adam, 5e-3)),
        ("cnn deep, elu", "cnn2", cnn(6, 12, "elu"), parts.images, with_rate(Adam, 3e-3)),
        ("cnn with layer norm", "cnn2", cnn(3, 24, "gelu", norm=layers.LayerNormalization), parts.images, adam),
        ("four replicas, tanh", "replicas2", mlp(2, 48, "tanh"), parts.clusters, adam),
        ("outputs start at 0", "mlp2", mlp(3), parts.digits, adam),
    ]
    special = {
        "two replicas, relu": {"replicas": 2},
        "four replicas, tanh": {"replicas": 4},
        "layer norm, data times 0.01": {"hook": parts.inputs_times(0.01)},
        "batch norm, data times 100": {"hook": parts.inputs_times(100)},
        "outputs start at 0": {"fault": parts.scaled("output", 0.0)},
        "gelu, AdamW": {"clip": 5.0},
        "cnn, momentum": {"every": 8},
        "rings, relu": {"every": 3},
    }
    for split, seeds in ((chosen, (0,)), (held, (11, 12))):
        for name, family, network, data, optimizer in split:
            base = Setup(name, family, network, data, optimizer, **special.get(name, {}), held_out=split is held)
            for seed in seeds:
                yield base._replace(seed=seed)
    # Families that thresholds were chosen on, with other seeds.
    for name, family, network, data, optimizer in chosen[:12:2]:
        yield Setup(name, family, network, data, optimizer, **special.get(name, {}), seed=21, held_out=True)


INIT = ("poor_initialization", "vanishing", "exploding", "update_too_large", "update_too_small", "no_gradient")
LARGE = ("exploding", "dead_units", "dying_units", "saturation", "non_finite", "gradient_spike", "loss_not_falling")


AFTER_SIGMOID = ("dead_units", "dying_units", "loss_not_falling")
"""ReLU fed by outputs that are all above 0 and hardly differ: many of its units are dead, truly."""


def faulty() -> Iterator[Setup]:
    """Each with one fault; `layers` is where it was put."""
    yield from _chosen()
    yield from _held_out()


def _chosen() -> Iterator[Setup]:
    adam, sgd = with_rate(Adam, 1e-3), with_rate(SGD, 0.1)
    digits = parts.digits

    def on(name, network, optimizer, rule, layers=(), data=digits, seed=0, family="mlp", **rest):
        return Setup(name, family, network, data, optimizer, rule, tuple(layers), seed=seed, **rest)

    # Vanishing: many sigmoids, one layer of small weights, depth with weights a little too small.
    yield on("6 sigmoid layers, SGD", mlp(6, activation="sigmoid"), sgd, "vanishing", hidden(1, 6))
    yield on("5 sigmoid layers, Adam", mlp(5, activation="sigmoid"), adam, "vanishing", hidden(1, 5))
    mixed = ["relu", "relu", "sigmoid", "sigmoid", "sigmoid", "sigmoid", "relu", "relu"]
    yield on("4 sigmoids amid relu", mlp(8, activation=mixed), sgd, "vanishing", hidden(3, 6), also=AFTER_SIGMOID)
    small = keras.initializers.VarianceScaling(0.4)
    yield on("12 relu layers, small weights", mlp(12, init=small), adam, "vanishing", hidden(1, 12))
    for layer in ("hidden_3", "hidden_5"):
        yield on(
            f"weights of {layer} times 0.003",
            mlp(6, activation="tanh"),
            sgd,
            "poor_initialization",
            [layer],
            fault=parts.scaled(layer, 0.003),
            also=(*INIT, "dead_units"),
        )
    yield on(
        "weights of hidden_2 times 30",
        mlp(4),
        adam,
        "poor_initialization",
        ["hidden_2"],
        fault=parts.scaled("hidden_2", 30),
        also=(*INIT, *LARGE),
    )
    yield on(
        "data times 1000",
        mlp(3),
        adam,
        "poor_initialization",
        ["hidden_1"],
        hook=parts.inputs_times(1000),
        also=(*INIT, *LARGE),
    )
    yield on(
        "hidden_2 starts at 0",
        mlp(3, activation="tanh"),
        sgd,
        "poor_initialization",
        ["hidden_2"],
        fault=parts.scaled("hidden_2", 0.0),
        also=(*INIT, "loss_not_falling"),
    )
    yield on(
        "8 relu layers, weights times 2",
        mlp(8),
        adam,
        "exploding",
        hidden(1, 8),
        fault=parts.all_scaled(2),
        also=(*INIT, *LARGE),
    )
    # Units.
    yield on(
        "biases of hidden_2 at -20",
        mlp(3),
        adam,
        "dead_units",
        ["hidden_2"],
        fault=parts.biased("hidden_2", -20.0),
        also=("vanishing", "no_gradient", "loss_not_falling"),
    )
    yield on(
        "negative weights in hidden_3",
        mlp(4),
        sgd,
        "dead_units",
        ["hidden_3"],
        fault=parts.negative("hidden_3"),
        also=("vanishing", "no_gradient", "loss_not_falling"),
    )
    yield on(
        "biases of hidden_1 drop at step 60",
        mlp(3),
        adam,
        "dead_units",
        ["hidden_1"],
        hook=parts.bias_drops("hidden_1", 60, 10.0),
        begins=60,
        also=("vanishing", "no_gradient", "dying_units"),
    )
    yield on(
        "biases of a convolution at -20",
        cnn(3),
        adam,
        "dead_units",
        ["hidden_2"],
        parts.images,
        family="cnn",
        fault=parts.biased("hidden_2", -20.0),
        also=("vanishing", "no_gradient", "loss_not_falling"),
    )
    yield on(
        "weights of tanh hidden_2 times 40",
        mlp(3, activation="tanh"),
        sgd,
        "saturation",
        ["hidden_2"],
        fault=parts.scaled("hidden_2", 40.0),
        also=(*INIT, "loss_not_falling"),
    )
    yield on(
        "biases of sigmoid hidden_2 at 12",
        mlp(3, activation=["relu", "sigmoid", "relu"]),
        adam,
        "saturation",
        ["hidden_2"],
        fault=parts.biased("hidden_2", 12.0),
        also=("vanishing", *AFTER_SIGMOID),
    )
    yield on(
        "tanh on data times 100",
        mlp(2, activation="tanh"),
        adam,
        "saturation",
        ["hidden_1"],
        hook=parts.inputs_times(100),
        also=(*INIT, "loss_not_falling"),
    )
    # Steps.
    yield on("SGD 20", mlp(3), with_rate(SGD, 20.0), "update_too_large", also=LARGE)
    yield on("Adam 1", mlp(3), with_rate(Adam, 1.0), "update_too_large", also=(*LARGE, "vanishing"))
    yield on(
        "hidden_2 at 300 times the rate",
        mlp(3),
        with_rate(SGD, 0.05),
        "update_too_large",
        ["hidden_2"],
        rates={"hidden_2": 300.0},
        also=(*LARGE, "vanishing", "no_gradient"),
    )
    yield on("SGD 1e-5", mlp(3), with_rate(SGD, 1e-5), "update_too_small")
    yield on("Adam 1e-7", mlp(3, activation="tanh"), with_rate(Adam, 1e-7), "update_too_small")
    yield on(
        "hidden_1 forgotten by the optimizer", mlp(3), adam, "update_too_small", ["hidden_1"], rates={"hidden_1": 0.0}
    )
    yield on(
        "clipped at 0.001", mlp(3), sgd, "always_clipped", clip=1e-3, also=("update_too_small", "loss_not_falling")
    )
    # Numbers.
    poison = parts.Poison(60)
    yield on(
        "hidden_2 divides by 0 at step 60",
        mlp(3, activation=["relu", poison, "relu"]),
        adam,
        "non_finite",
        ["hidden_2"],
        hook=poison.hook,
        begins=60,
        every=1,
    )
    yield on(
        "NaN in the data at step 100",
        mlp(3),
        adam,
        "non_finite",
        ["hidden_1"],
        hook=parts.nan_input(100),
        begins=100,
        every=1,
    )
    root = parts.Poison(40, backward=True)
    yield on(
        "root of 0 in hidden_2 from step 40",
        mlp(3, activation=["relu", root, "relu"]),
        sgd,
        "non_finite",
        ["hidden_2"],
        hook=root.hook,
        begins=40,
        every=1,
    )
    # The rest.
    yield on("stopped gradient after hidden_2", mlp(4, shut=2), adam, "no_gradient", hidden(1, 2), also=("vanishing",))
    yield on("labels at random", mlp(3), adam, "loss_not_falling", hook=parts.random_labels)
    yield on(
        "labels at random, SGD", mlp(2, activation="tanh"), sgd, "loss_not_falling", hook=parts.random_labels, seed=1
    )
    yield on(
        "bad batches",
        mlp(3),
        with_rate(SGD, 0.001),
        "gradient_spike",
        hook=parts.bad_batches(48, 300.0),
        begins=48,
        every=3,
        also=LARGE,
    )
    yield on(
        "one replica's labels at random",
        mlp(2),
        adam,
        "replica_outlier",
        replicas=4,
        family="replicas",
        odd_replica=lambda x, y: (x, np.random.permutation(y)),
    )
    yield on(
        "one replica's data not scaled",
        mlp(2),
        with_rate(SGD, 0.01),
        "replica_outlier",
        replicas=4,
        odd_replica=lambda x, y: (x * np.float32(16), y),
        family="replicas",
    )


def _held_out() -> Iterator[Setup]:
    digits, clusters, images = parts.digits, parts.clusters, parts.images
    adam, sgd = with_rate(Adam, 1e-3), with_rate(SGD, 0.1)
    seeds = iter(range(100, 200))

    def on(name, family, network, data, optimizer, rule, layers=(), **rest):
        fields = {"seed": next(seeds), **rest}
        return Setup(name, family, network, data, optimizer, rule, tuple(layers), held_out=True, **fields)

    yield on(
        "7 sigmoid layers, clusters",
        "mlp2",
        mlp(7, 40, "sigmoid"),
        clusters,
        with_rate(momentum, 0.05),
        "vanishing",
        hidden(1, 7),
    )
    yield on(
        "6 sigmoid convolutions",
        "cnn2",
        cnn(6, 12, "sigmoid", "glorot_uniform"),
        images,
        adam,
        "vanishing",
        hidden(1, 6),
    )
    mixed = ["elu"] * 3 + ["sigmoid"] * 4 + ["elu"] * 2
    yield on("4 sigmoids amid elu", "mlp2", mlp(9, 48, mixed), clusters, adam, "vanishing", hidden(4, 7))
    yield on(
        "20 relu layers, Glorot",
        "mlp2",
        mlp(20, 32, "relu", "glorot_uniform"),
        clusters,
        adam,
        "vanishing",
        hidden(1, 20),
    )
    yield on(
        "10 tanh layers, small weights, regression",
        "regression",
        mlp(10, 40, "tanh", keras.initializers.VarianceScaling(0.3)),
        parts.friedman,
        sgd,
        "vanishing",
        hidden(1, 10),
    )
    for n, (network, data, layer, factor) in enumerate(
        (
            (mlp(5, 48, "selu", "lecun_normal"), clusters, "hidden_4", 0.01),
            (mlp(4, 32, "elu"), parts.friedman, "hidden_2", 0.005),
            (cnn(4, 16), images, "hidden_3", 0.01),
            (mlp(4, 32, "tanh"), parts.rings, "hidden_3", 0.002),
        )
    ):
        yield on(
            f"weights of {layer} times {factor} ({n + 1})",
            "mlp2",
            network,
            data,
            sgd,
            "poor_initialization",
            [layer],
            fault=parts.scaled(layer, factor),
            also=(*INIT, "dead_units", "loss_not_falling"),
        )
    for n, (network, data, layer, factor) in enumerate(
        (
            (mlp(4, 48, "elu"), clusters, "hidden_3", 40.0),
            (cnn(3, 24), images, "hidden_2", 30.0),
            (mlp(3, 64, "gelu"), parts.friedman, "hidden_2", 50.0),
        )
    ):
        yield on(
            f"weights of {layer} times {factor:.0f} ({n + 1})",
            "mlp2",
            network,
            data,
            with_rate(Adam, 3e-4),
            "poor_initialization",
            [layer],
            fault=parts.scaled(layer, factor),
            also=(*INIT, *LARGE),
        )
    yield on(
        "data times 255",
        "mlp2",
        mlp(3, 48, "gelu"),
        clusters,
        adam,
        "poor_initialization",
        ["hidden_1"],
        hook=parts.inputs_times(255),
        also=(*INIT, *LARGE),
    )
    yield on(
        "data times 0.001",
        "mlp2",
        mlp(3, 48, "tanh"),
        digits,
        sgd,
        "poor_initialization",
        ["hidden_1"],
        hook=parts.inputs_times(0.001),
        also=(*INIT, "loss_not_falling"),
    )
    yield on(
        "hidden_3 starts at 0",
        "mlp2",
        mlp(4, 40, "elu"),
        clusters,
        sgd,
        "poor_initialization",
        ["hidden_3"],
        fault=parts.scaled("hidden_3", 0.0),
        also=(*INIT, "loss_not_falling"),
    )
    yield on(
        "10 leaky relu layers, weights times 2",
        "mlp2",
        mlp(10, 40, "leaky_relu"),
        clusters,
        with_rate(Adam, 1e-4),
        "exploding",
        hidden(1, 10),
        fault=parts.all_scaled(2),
        also=(*INIT, *LARGE),
    )
    yield on(
        "8 elu layers, weights times 2.2, regression",
        "regression",
        mlp(8, 48, "elu"),
        parts.friedman,
        with_rate(Adam, 1e-4),
        "exploding",
        hidden(1, 8),
        fault=parts.all_scaled(2.2),
        also=(*INIT, *LARGE),
    )
    dead = ("vanishing", "no_gradient", "loss_not_falling", "dying_units")
    yield on(
        "biases of hidden_4 at -30",
        "mlp2",
        mlp(5, 40),
        clusters,
        with_rate(RMSprop, 1e-3),
        "dead_units",
        ["hidden_4"],
        fault=parts.biased("hidden_4", -30.0),
        also=dead,
    )
    yield on(
        "negative weights in hidden_2",
        "regression",
        mlp(3, 48),
        parts.friedman,
        sgd,
        "dead_units",
        ["hidden_2"],
        fault=parts.negative("hidden_2"),
        also=dead,
    )
    yield on(
        "biases of hidden_3 drop at step 80",
        "mlp2",
        mlp(4, 56),
        clusters,
        with_rate(AdamW, 1e-3),
        "dead_units",
        ["hidden_3"],
        hook=parts.bias_drops("hidden_3", 80, 20.0),
        begins=80,
        also=dead,
    )
    yield on(
        "biases of the relu branch at -20",
        "branches",
        branches(),
        digits,
        adam,
        "dead_units",
        ["hidden_1"],
        fault=parts.biased("hidden_1", -20.0),
        also=dead,
    )
    yield on(
        "biases of a convolution drop",
        "cnn2",
        cnn(4, 16),
        images,
        with_rate(Adam, 3e-3),
        "dead_units",
        ["hidden_3"],
        hook=parts.bias_drops("hidden_3", 50, 30.0),
        begins=50,
        also=dead,
    )
    yield on(
        "biases in a residual block at -30",
        "residual",
        residual(3),
        digits,
        adam,
        "dead_units",
        ["hidden_4"],
        fault=parts.biased("hidden_4", -30.0),
        also=dead,
    )
    full = (*INIT, "loss_not_falling")
    yield on(
        "weights of tanh hidden_3 times 50",
        "mlp2",
        mlp(4, 40, "tanh"),
        clusters,
        with_rate(momentum, 0.01),
        "saturation",
        ["hidden_3"],
        fault=parts.scaled("hidden_3", 50.0),
        also=full,
    )
    yield on(
        "biases of the sigmoid branch at 15",
        "branches",
        branches(),
        digits,
        adam,
        "saturation",
        ["hidden_2"],
        fault=parts.biased("hidden_2", 15.0),
        also=full,
    )
    yield on(
        "sigmoid on data times 300",
        "mlp2",
        mlp(2, 64, "sigmoid"),
        clusters,
        adam,
        "saturation",
        ["hidden_1"],
        hook=parts.inputs_times(300),
        also=full,
    )
    yield on(
        "biases of softsign hidden_2 at 40",
        "regression",
        mlp(3, 48, ["relu", "softsign", "relu"]),
        parts.friedman,
        adam,
        "saturation",
        ["hidden_2"],
        fault=parts.biased("hidden_2", 40.0),
        also=full,
    )
    yield on(
        "biases of elu hidden_2 at -12",
        "mlp2",
        mlp(3, 48, "elu"),
        clusters,
        adam,
        "saturation",
        ["hidden_2"],
        fault=parts.biased("hidden_2", -12.0),
        also=full,
    )
    yield on(
        "momentum 5",
        "mlp2",
        mlp(3, 48, "elu"),
        clusters,
        with_rate(momentum, 5.0),
        "update_too_large",
        also=(*LARGE, "vanishing", "no_gradient"),
    )
    yield on(
        "Adam 0.5, cnn",
        "cnn2",
        cnn(3),
        images,
        with_rate(Adam, 0.5),
        "update_too_large",
        also=(*LARGE, "vanishing", "no_gradient"),
    )
    yield on(
        "SGD 3, regression",
        "regression",
        mlp(3, 64),
        parts.friedman,
        with_rate(SGD, 3.0),
        "update_too_large",
        also=(*LARGE, "vanishing", "no_gradient"),
    )
    yield on(
        "hidden_3 at 1000 times the rate",
        "mlp2",
        mlp(4, 48, "tanh"),
        clusters,
        with_rate(SGD, 0.05),
        "update_too_large",
        ["hidden_3"],
        rates={"hidden_3": 1000.0},
        also=(*LARGE, "vanishing", "no_gradient"),
    )
    yield on("momentum 1e-6", "cnn2", cnn(3), images, with_rate(momentum, 1e-6), "update_too_small")
    yield on("RMSprop 1e-7", "residual", residual(), digits, with_rate(RMSprop, 1e-7), "update_too_small")
    yield on("Adam 1e-7, regression", "regression", mlp(3), parts.friedman, with_rate(Adam, 1e-7), "update_too_small")
    yield on(
        "hidden_2 forgotten",
        "mlp2",
        mlp(4, 48, "elu"),
        clusters,
        adam,
        "update_too_small",
        ["hidden_2"],
        rates={"hidden_2": 0.0},
    )
    yield on(
        "a convolution at 1e-6 of the rate",
        "cnn2",
        cnn(3),
        images,
        with_rate(Adam, 3e-3),
        "update_too_small",
        ["hidden_2"],
        rates={"hidden_2": 1e-6},
    )
    yield on(
        "clipped at 0.002, clusters",
        "mlp2",
        mlp(3, 48, "gelu"),
        clusters,
        sgd,
        "always_clipped",
        clip=2e-3,
        also=("update_too_small", "loss_not_falling"),
    )
    yield on("clipped at 0.01, Adam", "residual", residual(), digits, adam, "always_clipped", clip=1e-2)
    poison = parts.Poison(33)
    yield on(
        "hidden_4 divides by 0 at step 33",
        "mlp2",
        mlp(5, 32, ["elu"] * 3 + [poison, "elu"]),
        clusters,
        adam,
        "non_finite",
        ["hidden_4"],
        hook=poison.hook,
        begins=33,
        every=1,
    )
    yield on(
        "NaN in an image at step 70",
        "cnn2",
        cnn(3),
        images,
        adam,
        "non_finite",
        ["hidden_1"],
        hook=parts.nan_input(70),
        begins=70,
        every=1,
    )
    root = parts.Poison(25, backward=True)
    yield on(
        "root of 0 in hidden_3 from step 25",
        "regression",
        mlp(4, 32, ["relu", "relu", root, "relu"]),
        parts.friedman,
        with_rate(SGD, 0.01),
        "non_finite",
        ["hidden_3"],
        hook=root.hook,
        begins=25,
        every=1,
    )
    yield on(
        "stopped gradient after hidden_3",
        "mlp2",
        mlp(5, 40, "tanh", shut=3),
        clusters,
        sgd,
        "no_gradient",
        hidden(1, 3),
        also=("vanishing",),
    )
    yield on("all inputs alike", "mlp2", mlp(2, 48), clusters, adam, "loss_not_falling", hook=parts.constant_inputs)
    yield on(
        "labels at random, rings", "binary", mlp(3, 32), parts.rings, adam, "loss_not_falling", hook=parts.random_labels
    )
    yield on(
        "labels at random, cnn",
        "cnn2",
        cnn(3),
        images,
        with_rate(momentum, 0.02),
        "loss_not_falling",
        hook=parts.random_labels,
    )
    yield on(
        "bad batches, regression",
        "regression",
        mlp(2, 32, "tanh"),
        parts.friedman,
        with_rate(SGD, 0.002),
        "gradient_spike",
        hook=lambda n, m, b, r: (b[0], b[1] * 200) if n and n % 60 == 0 else b,
        begins=60,
        every=4,
        also=LARGE,
    )
    yield on(
        "one replica's data zero",
        "replicas2",
        mlp(2, 48, "tanh"),
        clusters,
        adam,
        "replica_outlier",
        replicas=4,
        odd_replica=lambda x, y: (x * 0, y),
    )
    yield on(
        "one replica's data not standardized",
        "replicas2",
        mlp(2, 32),
        clusters,
        with_rate(SGD, 0.01),
        "replica_outlier",
        replicas=4,
        odd_replica=lambda x, y: (x * np.float32(10) + 5, y),
    )


def all_setups() -> list[Setup]:
    return [*healthy(), *faulty()]
