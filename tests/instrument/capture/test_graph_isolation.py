"""A reader of the step must not change what TensorFlow makes of it: the same bits in every network that it rewrites."""

import functools

import keras
import pytest
import tensorflow as tf
from keras import layers
from scripts.testbed import networks

import tapescope

DENSE, IMAGE = (24,), (8, 8, 4)


def _inception(x):
    branches = [layers.Conv2D(8, 1, activation="relu")(x), layers.Conv2D(8, 3, padding="same", activation="relu")(x)]
    return layers.Flatten()(layers.Concatenate()([*branches, layers.MaxPooling2D(3, 1, padding="same")(x)]))


def _pooled(x):
    pooled = layers.MaxPooling2D(3, 1, padding="same", name="pool")(x)
    active = layers.Activation("tanh")(pooled + x)
    return layers.Conv2D(8, 3, padding="same")(active) + pooled + active


def _branches(x):
    return layers.Add(name="sum")([layers.Dense(32, name=f"branch{i}")(x) for i in range(4)])


def _sum_of_sums(x):
    a, b, c, d = (layers.Dense(32, name=f"branch{i}")(x) for i in range(4))
    return layers.Add(name="sum")([layers.Add(name="sum0")([a, b]), layers.Add(name="sum1")([c, d])])


def _normalized(x):
    return (layers.LayerNormalization()(layers.Dense(32, "selu")(x)) + layers.Dense(32, "tanh")(x)) + x


def _attention(x):
    rows = layers.Reshape((4, 8))(x)
    return x + layers.Reshape((32,))(layers.MultiHeadAttention(2, 4)(rows, rows)) + layers.Dense(32, "gelu")(x)


def _post_norm(x):
    """A transformer's block, of which the queries, keys and values and the sum read the same."""
    x = layers.Reshape((4, 8))(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, "gelu")(x)))
    return layers.Flatten()(x)


def _highway(x):
    gate = layers.Dense(32, "sigmoid")(x)
    return gate * layers.Dense(32, "tanh")(x) + (1 - gate) * x


def _densely_connected(x):
    found = [x]
    for _ in range(3):
        found.append(layers.Dense(8, "relu")(layers.Concatenate()(found) if len(found) > 1 else x))
    return layers.Concatenate()(found)


def _norms_and_others(x):
    x = layers.Activation("silu")(x)
    first, second = layers.LayerNormalization(name="norm1")(x), layers.BatchNormalization(name="norm2")(x)
    return layers.Dense(32, "tanh")(x) + first + second * layers.Dense(32)(x) + x


def _silu_in_a_sum(x):
    return layers.Add()([layers.Dense(32, f)(x) for f in ("tanh", "sigmoid", "silu")])


BLOCKS = {
    "bias, then sigmoid": (DENSE, layers.Activation("sigmoid"), None),
    "bias, then tanh": (DENSE, layers.Activation("tanh"), None),
    "bias, then ELU": (DENSE, layers.Activation("elu"), None),
    "convolution, then ELU": (IMAGE, layers.Activation("elu"), None),
    "silu, scaled": (DENSE, lambda x: layers.Dense(32, "silu")(x) * 0.3, None),
    "silu, in a sum": (DENSE, _silu_in_a_sum, None),
    "gelu, scaled": (DENSE, lambda x: layers.Dense(32, "gelu")(x) * 0.3, None),
    "softplus, scaled": (DENSE, lambda x: layers.Dense(32, "softplus")(x / 3) * 0.3, None),
    "hard sigmoid, scaled": (DENSE, lambda x: layers.Dense(32, "hard_sigmoid")(x) * 0.3, None),
    "hard silu": (DENSE, lambda x: layers.Dense(32, "hard_silu")(x), None),
    "residual": (DENSE, lambda x: x + layers.Dense(32)(x), None),
    "residual convolution": (IMAGE, lambda x: x + layers.Conv2D(8, 3, padding="same")(x), None),
    "branches of which some are measured": (IMAGE, _inception, None),
    "pooled, in sums": (IMAGE, _pooled, "pool"),
    "two branches chosen": (DENSE, _branches, "branch[01]"),
    "three branches chosen": (DENSE, _branches, "branch[012]"),
    "sums of sums": (DENSE, _sum_of_sums, "sum"),
    "normalized, in a sum": (DENSE, _normalized, "add|dense"),
    "normalized twice, with others": (DENSE, _norms_and_others, "norm"),
    "attention, in a sum": (DENSE, _attention, None),
    "attention, then a norm": (DENSE, _post_norm, None),
    "highway": (DENSE, _highway, None),
    "densely connected": (DENSE, _densely_connected, None),
    "batch normalization": (DENSE, lambda x: layers.BatchNormalization()(x), None),
}
"""Input, what follows a linear layer, and which layers are measured."""


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_the_same_bits_where_tensorflow_would_merge_what_is_measured(name, known):
    shape, block, selection = BLOCKS[name]

    def network():
        given = keras.Input(shape)
        x = layers.Conv2D(8, 3, padding="same")(given) if shape == IMAGE else layers.Dense(32)(given)
        x = layers.Flatten()(block(x)) if shape == IMAGE else block(x)
        return keras.Model(given, layers.Dense(3)(x))

    plain, measured = (networks.trained(network, m, selection=selection, known=known, steps=10) for m in (False, True))
    assert networks.same_bits(plain, measured)


def test_the_same_bits_where_clipped_gradients_are_multiplied_by_a_learning_rate():
    def network():
        given = keras.Input(DENSE)
        return keras.Model(given, layers.Dense(3)(layers.Dense(32, "tanh")(given)))

    plain, measured, other = (
        networks.trained(network, m, clip=c) for m, c in ((False, 0.5), (True, 0.5), (False, None))
    )
    assert networks.same_bits(plain, measured)
    assert not networks.same_bits(plain, other)


def test_the_gradients_that_go_on_are_the_tapes_own():
    scale, x = tf.Variable(2.0), tf.Variable(3.0)
    probe = tapescope.Probe([scale], strict=True)

    @tf.function
    def step():
        with probe.tape(True) as tape:
            loss = scale * x
        gradients = tape.gradient(loss, [scale])
        assert gradients[0].op.type == "Mul"
        assert tape.own()[0] is gradients[0]
        return tape.reading(aggregated=gradients, applied=gradients)

    step()
    assert not probe.failure


@pytest.mark.parametrize("seed", [s for s in range(13) if s != 3])  # 3, TensorFlow itself trains otherwise each time
def test_the_same_bits_in_any_network(seed):
    network, how = functools.partial(networks.by_chance, seed), networks.how_by_chance(seed)
    plain, measured = (networks.trained(network, measure, **how) for measure in (False, True))
    assert networks.same_bits(plain, measured)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("selection", [None, "[02468]", "[13579]"])
def test_no_sum_takes_what_is_still_being_measured(selection, known):
    for seed in (17, 306):
        network = functools.partial(networks.by_chance, seed)
        assert not networks.contacts(network, seed=seed, selection=selection, known=known), seed
