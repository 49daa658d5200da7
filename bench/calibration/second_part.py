"""The second part: networks, data and optimizers of other kinds than those of the first. See setups.py."""

import keras
from bench.calibration import faults
from bench.calibration.data import digits, images, itself, skewed, spirals, tokens, waves
from bench.calibration.faults import NONE, Poison
from bench.calibration.networks import mlp
from bench.calibration.second_networks import (
    attention,
    autoencoder,
    bag_of_words,
    conv1d,
    densenet,
    gated,
    residual_cnn,
    with_dropout,
)
from bench.calibration.setup import Row, adam, momentum, optimizer
from keras import layers
from keras.initializers import VarianceScaling

nadam = optimizer("Nadam")
adagrad = optimizer("Adagrad")
adamax = optimizer("Adamax")
lion = optimizer("Lion")
nesterov = optimizer("SGD", momentum=0.9, nesterov=True)


def group_norm():
    """Return a group normalization of four groups."""
    return layers.GroupNormalization(4)


def decayed(rate: float):
    """Return Adam with a learning rate that falls to 0 along a cosine."""
    return adam(keras.optimizers.schedules.CosineDecay(rate, 240))


def warmed(rate: float):
    """Return momentum SGD with a learning rate that rises from 0 for the first 80 steps."""
    return momentum(keras.optimizers.schedules.CosineDecay(0.0, 400, warmup_target=rate, warmup_steps=80))


def healthy() -> list[Row]:
    """Return set-ups that follow good practice; each was judged to be healthy before it was trained."""
    return [
        ("signals: relu", conv1d(), waves, adam(2e-3), NONE),
        ("signals: elu, group norm", conv1d(4, 16, "elu", norm=group_norm), waves, nadam(2e-3), NONE),
        ("signals: tanh", conv1d(3, 24, "tanh", "glorot_uniform"), waves, adam(3e-3), NONE),
        ("signals: Adamax", conv1d(2, 32, "leaky_relu"), waves, adamax(4e-3), NONE),
        ("autoencoder: relu", autoencoder(), itself, adam(2e-3), NONE),
        ("autoencoder: tanh, code of 2", autoencoder(64, 2, "tanh", "glorot_uniform"), itself, adam(2e-3), NONE),
        ("autoencoder: elu, Nadam", autoencoder(96, 16, "elu"), itself, nadam(1e-3), NONE),
        ("densenet: relu", densenet(), digits, adam(1e-3), NONE),
        ("densenet: selu, spirals", densenet(5, 20, "selu"), spirals, adam(3e-3), NONE),
        ("densenet: skewed targets", densenet(3, 32, "relu"), skewed, nesterov(5e-3), NONE),
        ("gated: relu", gated(), digits, adam(2e-3), NONE),
        ("gated: silu, spirals", gated(2, 40, "silu"), spirals, adam(5e-3), NONE),
        ("dropout: relu", with_dropout(), digits, adam(1e-3), NONE),
        ("dropout: gelu, half", with_dropout(2, 128, "gelu", 0.5), digits, nadam(1e-3), NONE),
        ("dropout: skewed targets", with_dropout(2, 64, "elu", 0.1), skewed, adam(2e-3), NONE),
        ("residual cnn: batch norm", residual_cnn(), images, adam(2e-3), NONE),
        ("residual cnn: group norm, momentum", residual_cnn(3, 12, "elu", group_norm), images, nesterov(0.02), NONE),
        ("words: mean", bag_of_words(), tokens, adam(5e-3), NONE),
        ("words: mean, tanh, Adagrad", bag_of_words(48, "tanh", 1), tokens, adagrad(0.1), NONE),
        ("words: attention", attention(), tokens, adam(2e-3), NONE),
        ("words: attention, two blocks, gelu", attention(24, 2, 2, "gelu"), tokens, nadam(1e-3), NONE),
        ("schedules: cosine to 0", mlp(3, 80), digits, decayed(3e-3), NONE),
        ("schedules: warm-up", mlp(3, 80, "tanh"), digits, warmed(0.1), NONE),
        ("schedules: Lion", mlp(2, 80, "relu"), digits, lion(3e-4), NONE),
        ("mlp, new: spirals", mlp(3, 40), spirals, adam(5e-3), NONE),
        ("mlp, new: spirals, tanh", mlp(3, 40, "tanh"), spirals, nesterov(0.05), NONE),
        ("mlp, new: skewed targets", mlp(2, 100, "softplus"), skewed, adam(2e-3), NONE),
        ("mlp, new: normal weights", mlp(3, 80, "relu", "random_normal"), digits, adam(2e-3), NONE),
    ]


def faulty() -> list[Row]:
    """Return set-ups with one fault each."""
    poison = Poison(47, "hidden_3")
    root = Poison(29, "hidden_2", backward=True)
    late = ["relu"] * 3 + ["sigmoid"] * 4
    narrow = mlp(14, 24, "selu", VarianceScaling(0.35))
    return [
        ("signals", conv1d(6, 16, "sigmoid", "glorot_uniform"), waves, adam(2e-3), faults.built_in("6 sigmoids", 1, 6)),
        ("mlp, new", mlp(7, 50, late), digits, nesterov(0.02), faults.built_in("4 sigmoids after relu", 4, 7)),
        ("mlp, new", mlp(8, 30, "sigmoid"), spirals, nadam(1e-3), faults.built_in("8 sigmoid layers", 1, 8)),
        ("mlp, new", narrow, skewed, adam(3e-4), faults.built_in("14 selu layers, small weights", 1, 14)),
        ("signals", conv1d(4, 20, "elu"), waves, nesterov(0.01), faults.weights_times(0.005, "hidden_3")),
        ("autoencoder", autoencoder(64, 16, "tanh"), itself, adam(1e-3), faults.weights_times(0.01, "hidden_2")),
        ("dropout", with_dropout(4, 64, "gelu"), digits, nadam(1e-3), faults.weights_times(35, "hidden_3")),
        ("mlp, new", mlp(3, 60, "softplus"), skewed, adam(1e-3), faults.weights_times(60, "hidden_2")),
        ("signals", conv1d(3, 24, "leaky_relu"), waves, adam(1e-3), faults.data_times(500)),
        ("autoencoder", autoencoder(), itself, adam(1e-3), faults.data_times(0.0005)),
        ("mlp, new", mlp(4, 50, "silu"), spirals, nesterov(0.02), faults.weights_times(0, "hidden_2")),
        ("dropout", with_dropout(9, 60, "elu", 0.1), digits, adam(1e-4), faults.all_weights_times(2.3, 9)),
        ("signals", conv1d(3), waves, adam(2e-3), faults.dead_biases("hidden_2", -25)),
        ("autoencoder", autoencoder(), itself, adam(1e-3), faults.biases_drop("hidden_3", 100)),
        ("densenet", densenet(), digits, adam(1e-3), faults.dead_biases("hidden_3", -25)),
        ("dropout", with_dropout(), digits, nadam(1e-3), faults.negative_weights("hidden_2")),
        ("words", bag_of_words(), tokens, adam(5e-3), faults.dead_biases("hidden_2", -15)),
        ("residual cnn", residual_cnn(), images, adam(1e-3), faults.dead_biases("hidden_1", -40)),
        ("mlp, new", mlp(3, 60, ["relu", "tanh", "relu"]), spirals, adam(2e-3), faults.shut_biases("hidden_2", 9)),
        ("signals", conv1d(3, 24, ["relu", "sigmoid", "relu"]), waves, adam(2e-3), faults.shut_biases("hidden_2", -14)),
        (
            "autoencoder",
            autoencoder(64, 16, "tanh"),
            itself,
            adam(1e-3),
            faults.weights_times(80, "hidden_2", "saturation"),
        ),
        ("mlp, new", mlp(3, 60, "tanh"), skewed, nadam(1e-3), faults.data_times(150, "saturation")),
        ("signals", conv1d(3), waves, adam(0.7), faults.too_fast("Adam 0.7")),
        ("mlp, new", mlp(3, 60, "silu"), skewed, nesterov(3), faults.too_fast("Nesterov 3")),
        ("words", bag_of_words(), tokens, optimizer("SGD")(500), faults.too_fast("SGD 500")),
        ("densenet", densenet(), digits, optimizer("SGD")(0.02), faults.rate_times(2000, "hidden_2")),
        ("autoencoder", autoencoder(), itself, adam(3e-7), faults.too_slow("Adam 3e-7")),
        ("residual cnn", residual_cnn(), images, nesterov(1e-6), faults.too_slow("Nesterov 1e-6")),
        ("gated", gated(), digits, adam(2e-3), faults.rate_times(0, "hidden_2")),
        ("signals", conv1d(3), waves, nesterov(0.02), faults.rate_times(1e-5, "hidden_3")),
        ("dropout", with_dropout(), digits, nesterov(0.05), faults.clipped(1e-3)),
        ("words", attention(), tokens, adam(2e-3), faults.clipped(5e-3)),
        ("mlp, new", mlp(4, 40, ["relu", "relu", poison, "relu"]), spirals, adam(2e-3), poison.fault),
        ("signals", conv1d(3, 16, ["relu", root, "relu"]), waves, adam(1e-3), root.fault),
        ("residual cnn", residual_cnn(), images, adam(1e-3), faults.nan_input(90)),
        ("mlp, new", mlp(5, 40, "relu", shut=2), spirals, adam(1e-3), faults.stopped(2)),
        ("words", bag_of_words(), tokens, adam(3e-3), faults.random_labels()),
        ("signals", conv1d(3), waves, nesterov(0.01), faults.random_labels()),
        ("densenet", densenet(), digits, adam(1e-3), faults.inputs_alike()),
        ("mlp, new", mlp(3, 60, "elu"), skewed, optimizer("SGD")(1e-3), faults.bad_batches(54, 400, targets=True)),
        ("four replicas", mlp(2, 48), spirals, adam(3e-3), faults.odd_replica("labels at random", faults.shuffled)),
        (
            "four replicas",
            mlp(2, 48, "elu"),
            skewed,
            adam(1e-3),
            faults.odd_replica("targets times 6", lambda x, y: (x, y * 6)),
        ),
        (
            "four replicas",
            mlp(3, 32),
            digits,
            adam(1e-3),
            faults.replica_assigned("hidden_2", 62, lambda w: w * 1.0001),
        ),
        (
            "two replicas",
            mlp(2, 40, "tanh"),
            spirals,
            adam(3e-3),
            faults.replica_assigned("hidden_1", 101, lambda w: -w),
        ),
        ("mlp, new", mlp(3, 40), digits, adam(0.0), faults.not_applied("Adam 0")),
        (
            "mlp, new",
            mlp(2, 40, "tanh"),
            skewed,
            nesterov(0.01),
            faults.not_applied("updates undone", "hidden_1", "hidden_2", "output"),
        ),
    ]
