"""The first part: set-ups that thresholds were chosen on. All set-ups share the same thresholds."""

import numpy as np
from bench.calibration import faults
from bench.calibration.data import clusters, digits, friedman, images, rings, rows
from bench.calibration.faults import NONE, Poison
from bench.calibration.networks import branches, cnn, mlp, recurrent, residual, transformer
from bench.calibration.setup import Row, adam, adamw, momentum, rmsprop, sgd
from keras import layers
from keras.initializers import VarianceScaling

BN = layers.BatchNormalization
LN = layers.LayerNormalization


def healthy() -> list[Row]:
    """Return set-ups that follow good practice; each was judged to be healthy before it was trained."""
    return [
        ("mlp: relu, Adam", mlp(), digits, adam(1e-3), NONE),
        ("mlp: relu, SGD", mlp(), digits, sgd(0.1), NONE),
        ("mlp: relu, 8 layers", mlp(8), digits, adam(1e-3), NONE),
        ("mlp: tanh, SGD", mlp(4, activation="tanh"), digits, sgd(0.1), NONE),
        ("mlp: tanh, Adam 1e-2", mlp(2, activation="tanh"), digits, adam(1e-2), NONE),
        ("mlp: one sigmoid layer", mlp(1, activation="sigmoid"), digits, adam(1e-2), NONE),
        ("mlp: relu then sigmoid", mlp(2, activation=["relu", "sigmoid"]), digits, adam(1e-3), NONE),
        ("mlp: elu, momentum", mlp(4, activation="elu"), digits, momentum(0.01), NONE),
        ("mlp: relu, narrow, Adam 1e-2", mlp(2, 16), digits, adam(1e-2), NONE),
        ("mlp: relu, wide", mlp(2, 256), digits, adam(1e-3), NONE),
        ("mlp: batch norm, SGD", mlp(4, norm=BN), digits, sgd(0.1), NONE),
        ("mlp: linear", mlp(0), digits, adam(1e-2), NONE),
        ("mlp: relu on clusters", mlp(3), clusters, adam(1e-3), NONE),
        ("mlp: tanh on clusters", mlp(3, activation="tanh"), clusters, adam(1e-3), NONE),
        ("cnn: relu, Adam", cnn(), images, adam(3e-3), NONE),
        ("cnn: relu, momentum", cnn(2), images, momentum(0.05), NONE),
        ("cnn: batch norm", cnn(4, norm=BN), images, adam(3e-3), NONE),
        ("two replicas: relu", mlp(2), digits, adam(1e-3), NONE),
        ("mlp, other: selu, LeCun", mlp(6, 48, "selu", "lecun_normal"), digits, adam(1e-3), NONE),
        ("mlp, other: gelu, AdamW, clipped at 5", mlp(4, 96, "gelu"), digits, adamw(2e-3), NONE._replace(clip=5.0)),
        ("mlp, other: silu", mlp(3, 40, "silu"), clusters, adam(3e-3), NONE),
        ("mlp, other: leaky relu, momentum", mlp(5, 32, "leaky_relu"), clusters, momentum(0.02), NONE),
        ("mlp, other: softplus", mlp(2, 64, "softplus"), digits, adam(1e-3), NONE),
        ("mlp, other: two sigmoid layers", mlp(2, 80, "sigmoid"), digits, rmsprop(3e-3), NONE),
        ("mlp, other: orthogonal tanh", mlp(6, 50, "tanh", "orthogonal"), digits, sgd(0.2), NONE),
        ("mlp, other: layer norm", mlp(5, 48, norm=LN), digits, adam(1e-3), NONE),
        ("mlp, other: layer norm, small data", mlp(4, norm=LN), digits, adam(1e-3), faults.data_times(0.01, None)),
        ("mlp, other: batch norm, large data", mlp(3, norm=BN), digits, adam(1e-3), faults.data_times(100, None)),
        ("mlp, other: outputs start at 0", mlp(3), digits, adam(1e-3), faults.zero_outputs()),
        ("binary: relu", mlp(3, 32), rings, adam(5e-3), NONE),
        ("binary: tanh", mlp(2, 32, "tanh"), rings, adam(1e-2), NONE),
        ("binary: sigmoid", mlp(1, 48, "sigmoid"), rings, adam(2e-2), NONE),
        ("regression: relu", mlp(3, 64), friedman, adam(1e-3), NONE),
        ("regression: tanh", mlp(2, 64, "tanh"), friedman, adam(3e-3), NONE),
        ("regression: elu, SGD", mlp(3, 48, "elu"), friedman, sgd(0.02), NONE),
        ("residual: relu, Adam", residual(), digits, adam(1e-3), NONE),
        ("residual: 6 blocks, SGD", residual(6), digits, sgd(0.05), NONE),
        ("residual: gelu, regression", residual(3, 32, "gelu"), friedman, adam(1e-3), NONE),
        ("residual: without norm", residual(2, norm=False), clusters, adam(1e-3), NONE),
        ("branches: relu and sigmoid", branches(), digits, adam(1e-3), NONE),
        ("branches: tanh and elu", branches("tanh", "elu"), clusters, sgd(0.1), NONE),
        ("transformer: gelu", transformer(), rows, adam(2e-3), NONE),
        ("transformer: relu, one block", transformer(48, 1, "relu"), rows, adam(1e-3), NONE),
        ("recurrent: LSTM", recurrent(), rows, adam(5e-3), NONE),
        ("recurrent: GRU", recurrent(48, layers.GRU), rows, adam(5e-3), NONE),
        ("cnn, other: elu, 6 layers", cnn(6, 12, "elu"), images, adam(3e-3), NONE),
        ("cnn, other: gelu, layer norm", cnn(3, 24, "gelu", norm=LN), images, adam(1e-3), NONE),
        ("four replicas: tanh", mlp(2, 48, "tanh"), clusters, adam(1e-3), NONE),
    ]


def faulty() -> list[Row]:
    """Return set-ups with one fault each."""
    return [*_first(), *_second()]


def _first() -> list[Row]:
    small = VarianceScaling(0.4)
    poison = Poison(60, "hidden_2")
    root = Poison(40, "hidden_2", backward=True)
    amid = ["relu", "relu", *["sigmoid"] * 4, "relu", "relu"]
    return [
        ("mlp", mlp(6, activation="sigmoid"), digits, sgd(0.1), faults.built_in("6 sigmoid layers", 1, 6)),
        ("mlp", mlp(5, activation="sigmoid"), digits, adam(1e-3), faults.built_in("5 sigmoid layers", 1, 5)),
        ("mlp", mlp(8, activation=amid), digits, sgd(0.1), faults.built_in("4 sigmoids amid relu", 3, 6)),
        ("mlp", mlp(12, init=small), digits, adam(1e-3), faults.built_in("12 layers, small weights", 1, 12)),
        ("mlp", mlp(6, activation="tanh"), digits, sgd(0.1), faults.weights_times(0.003, "hidden_3")),
        ("mlp", mlp(6, activation="tanh"), digits, sgd(0.1), faults.weights_times(0.003, "hidden_5")),
        ("mlp", mlp(3, activation="tanh"), digits, sgd(0.1), faults.weights_times(0, "hidden_2")),
        ("mlp", mlp(4), digits, adam(1e-3), faults.weights_times(30, "hidden_2")),
        ("mlp", mlp(3), digits, adam(1e-3), faults.data_times(1000)),
        ("mlp", mlp(8), digits, adam(1e-3), faults.all_weights_times(2, 8)),
        ("mlp", mlp(3), digits, adam(1e-3), faults.dead_biases("hidden_2")),
        ("mlp", mlp(4), digits, sgd(0.1), faults.negative_weights("hidden_3")),
        ("mlp", mlp(3), digits, adam(1e-3), faults.biases_drop("hidden_1", 60, 10)),
        ("cnn", cnn(3), images, adam(1e-3), faults.dead_biases("hidden_2")),
        ("mlp", mlp(3, activation="tanh"), digits, sgd(0.1), faults.weights_times(40, "hidden_2", "saturation")),
        ("mlp", mlp(3, activation=["relu", "sigmoid", "relu"]), digits, adam(1e-3), faults.shut_biases("hidden_2", 12)),
        ("mlp", mlp(2, activation="tanh"), digits, adam(1e-3), faults.data_times(100, "saturation")),
        ("mlp", mlp(3), digits, sgd(20), faults.too_fast("SGD 20")),
        ("mlp", mlp(3), digits, adam(1), faults.too_fast("Adam 1")),
        ("mlp", mlp(3), digits, sgd(0.05), faults.rate_times(300, "hidden_2")),
        ("mlp", mlp(3), digits, sgd(1e-5), faults.too_slow("SGD 1e-5")),
        ("mlp", mlp(3, activation="tanh"), digits, adam(1e-7), faults.too_slow("Adam 1e-7")),
        ("mlp", mlp(3), digits, adam(1e-3), faults.rate_times(0, "hidden_1")),
        ("mlp", mlp(3), digits, sgd(0.1), faults.clipped(1e-3)),
        ("mlp", mlp(3, activation=["relu", poison, "relu"]), digits, adam(1e-3), poison.fault),
        ("mlp", mlp(3, activation=["relu", root, "relu"]), digits, sgd(0.1), root.fault),
        ("mlp", mlp(3), digits, adam(1e-3), faults.nan_input(100)),
        ("mlp", mlp(4, shut=2), digits, adam(1e-3), faults.stopped(2)),
        ("mlp", mlp(3), digits, adam(1e-3), faults.random_labels()),
        ("mlp", mlp(2, activation="tanh"), digits, sgd(0.1), faults.random_labels()),
        ("mlp", mlp(3), digits, sgd(1e-3), faults.bad_batches(48, 300)),
        ("replicas", mlp(2), digits, adam(1e-3), faults.odd_replica("labels at random", faults.shuffled)),
        (
            "replicas",
            mlp(2),
            digits,
            sgd(0.01),
            faults.odd_replica("data times 16", lambda x, y: (x * np.float32(16), y)),
        ),
    ]


def _second() -> list[Row]:
    small = VarianceScaling(0.3)
    poison = Poison(33, "hidden_4")
    root = Poison(25, "hidden_3", backward=True)
    some_sigmoids = ["elu"] * 3 + ["sigmoid"] * 4 + ["elu"] * 2
    one_softsign = ["relu", "softsign", "relu"]
    deep_glorot = mlp(20, 32, "relu", "glorot_uniform")
    poisoned = ["elu"] * 3 + [poison, "elu"]
    rooted = ["relu", "relu", root, "relu"]

    def shift(x, y):
        return x * np.float32(10) + 5, y

    return [
        ("mlp, other", mlp(7, 40, "sigmoid"), clusters, momentum(0.05), faults.built_in("7 sigmoid layers", 1, 7)),
        (
            "cnn, other",
            cnn(6, 12, "sigmoid", "glorot_uniform"),
            images,
            adam(1e-3),
            faults.built_in("6 sigmoids", 1, 6),
        ),
        ("mlp, other", mlp(9, 48, some_sigmoids), clusters, adam(1e-3), faults.built_in("4 sigmoids amid elu", 4, 7)),
        ("mlp, other", deep_glorot, clusters, adam(1e-3), faults.built_in("20 relu layers, Glorot", 1, 20)),
        ("regression", mlp(10, 40, "tanh", small), friedman, sgd(0.1), faults.built_in("10 tanh layers, small", 1, 10)),
        ("mlp, other", mlp(5, 48, "selu", "lecun_normal"), clusters, sgd(0.1), faults.weights_times(0.01, "hidden_4")),
        ("regression", mlp(4, 32, "elu"), friedman, sgd(0.1), faults.weights_times(0.005, "hidden_2")),
        ("cnn, other", cnn(4, 16), images, sgd(0.1), faults.weights_times(0.01, "hidden_3")),
        ("binary", mlp(4, 32, "tanh"), rings, sgd(0.1), faults.weights_times(0.002, "hidden_3")),
        ("mlp, other", mlp(4, 40, "elu"), clusters, sgd(0.1), faults.weights_times(0, "hidden_3")),
        ("mlp, other", mlp(4, 48, "elu"), clusters, adam(3e-4), faults.weights_times(40, "hidden_3")),
        ("cnn, other", cnn(3, 24), images, adam(3e-4), faults.weights_times(30, "hidden_2")),
        ("regression", mlp(3, 64, "gelu"), friedman, adam(3e-4), faults.weights_times(50, "hidden_2")),
        ("mlp, other", mlp(3, 48, "gelu"), clusters, adam(1e-3), faults.data_times(255)),
        ("mlp, other", mlp(3, 48, "tanh"), digits, sgd(0.1), faults.data_times(0.001)),
        ("mlp, other", mlp(10, 40, "leaky_relu"), clusters, adam(1e-4), faults.all_weights_times(2, 10)),
        ("regression", mlp(8, 48, "elu"), friedman, adam(1e-4), faults.all_weights_times(2.2, 8)),
        ("mlp, other", mlp(5, 40), clusters, rmsprop(1e-3), faults.dead_biases("hidden_4", -30)),
        ("regression", mlp(3, 48), friedman, sgd(0.1), faults.negative_weights("hidden_2")),
        ("mlp, other", mlp(4, 56), clusters, adamw(1e-3), faults.biases_drop("hidden_3", 80)),
        ("branches", branches(), digits, adam(1e-3), faults.dead_biases("hidden_1")),
        ("cnn, other", cnn(4, 16), images, adam(3e-3), faults.biases_drop("hidden_3", 50, 30)),
        ("residual", residual(3), digits, adam(1e-3), faults.dead_biases("hidden_4", -30)),
        (
            "mlp, other",
            mlp(4, 40, "tanh"),
            clusters,
            momentum(0.01),
            faults.weights_times(50, "hidden_3", "saturation"),
        ),
        ("branches", branches(), digits, adam(1e-3), faults.shut_biases("hidden_2", 15)),
        ("mlp, other", mlp(2, 64, "sigmoid"), clusters, adam(1e-3), faults.data_times(300, "saturation")),
        ("regression", mlp(3, 48, one_softsign), friedman, adam(1e-3), faults.shut_biases("hidden_2", 40)),
        ("mlp, other", mlp(3, 48, "elu"), clusters, adam(1e-3), faults.shut_biases("hidden_2", -12)),
        ("mlp, other", mlp(3, 48, "elu"), clusters, momentum(5), faults.too_fast("momentum 5")),
        ("cnn, other", cnn(3), images, adam(0.5), faults.too_fast("Adam 0.5")),
        ("regression", mlp(3, 64), friedman, sgd(3), faults.too_fast("SGD 3")),
        ("mlp, other", mlp(4, 48, "tanh"), clusters, sgd(0.05), faults.rate_times(1000, "hidden_3")),
        ("cnn, other", cnn(3), images, momentum(1e-6), faults.too_slow("momentum 1e-6")),
        ("residual", residual(), digits, rmsprop(1e-7), faults.too_slow("RMSprop 1e-7")),
        ("regression", mlp(3), friedman, adam(1e-7), faults.too_slow("Adam 1e-7")),
        ("mlp, other", mlp(4, 48, "elu"), clusters, adam(1e-3), faults.rate_times(0, "hidden_2")),
        ("cnn, other", cnn(3), images, adam(3e-3), faults.rate_times(1e-6, "hidden_2")),
        ("mlp, other", mlp(3, 48, "gelu"), clusters, sgd(0.1), faults.clipped(2e-3)),
        ("residual", residual(), digits, adam(1e-3), faults.clipped(1e-2)),
        ("mlp, other", mlp(5, 32, poisoned), clusters, adam(1e-3), poison.fault),
        ("regression", mlp(4, 32, rooted), friedman, sgd(0.01), root.fault),
        ("cnn, other", cnn(3), images, adam(1e-3), faults.nan_input(70)),
        ("mlp, other", mlp(5, 40, "tanh", shut=3), clusters, sgd(0.1), faults.stopped(3)),
        ("mlp, other", mlp(2, 48), clusters, adam(1e-3), faults.inputs_alike()),
        ("binary", mlp(3, 32), rings, adam(1e-3), faults.random_labels()),
        ("cnn, other", cnn(3), images, momentum(0.02), faults.random_labels()),
        ("regression", mlp(2, 32, "tanh"), friedman, sgd(2e-3), faults.bad_batches(60, 200, targets=True)),
        (
            "four replicas",
            mlp(2, 48, "tanh"),
            clusters,
            adam(1e-3),
            faults.odd_replica("data zero", lambda x, y: (x * 0, y)),
        ),
        ("four replicas", mlp(2, 32), clusters, sgd(0.01), faults.odd_replica("data not standardized", shift)),
    ]
