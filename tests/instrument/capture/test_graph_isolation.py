"""A measured step keeps the bits of the plain one, in networks of each kind that Grappler rewrites."""

import functools
from collections import Counter

import keras
import numpy as np
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
    """Return a transformer's block; queries, keys, values and the sum read the same tensor."""
    x = layers.Reshape((4, 8))(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, "gelu")(x)))
    return layers.Flatten()(x)


def _pre_norm(x):
    """Return a decoder's block: a residual stream, causal attention of grouped queries, and a mask of padding."""
    x = layers.Reshape((4, 8))(x)
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.GroupQueryAttention(4, 4, 2)(y, y, use_causal_mask=True)])
    y = layers.LayerNormalization()(layers.Masking()(x))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y, use_causal_mask=True)])
    return layers.Flatten()(layers.LayerNormalization()(x) + 0.1)  # without the mask, which Flatten does not know


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


def _biased(x):
    return layers.Dense(32, bias_initializer=keras.initializers.Constant(0.3))(x)


class _Sum(layers.Layer):
    """A linear layer as many write it: with a plain sum instead of `tf.nn.bias_add`."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 32), initializer="glorot_uniform")
        self.bias = self.add_weight(shape=(1, 32) if self.name == "row" else (32,), initializer="normal")

    def call(self, x):
        return x @ self.kernel + self.bias


def _ones_added(x):
    return x + keras.ops.ones_like(x)


BLOCKS = {
    "bias, then sigmoid": (DENSE, layers.Activation("sigmoid"), None),
    "bias, then tanh": (DENSE, layers.Activation("tanh"), None),
    "bias, then ELU": (DENSE, layers.Activation("elu"), None),
    "convolution, then ELU": (IMAGE, layers.Activation("elu"), None),
    "plain sum with a bias, then tanh": (DENSE, lambda x: layers.Activation("tanh")(_Sum(name="sum")(x)), "sum"),
    "plain sum with a row, then ELU": (DENSE, lambda x: layers.Activation("elu")(_Sum(name="row")(x)), "row"),
    "silu, scaled": (DENSE, lambda x: layers.Dense(32, "silu")(x) * 0.3, None),
    "silu, in a sum": (DENSE, _silu_in_a_sum, None),
    "gelu, scaled": (DENSE, lambda x: layers.Dense(32, "gelu")(x) * 0.3, None),
    "softplus, scaled": (DENSE, lambda x: layers.Dense(32, "softplus")(x / 3) * 0.3, None),
    "hard sigmoid, scaled": (DENSE, lambda x: layers.Dense(32, "hard_sigmoid")(x) * 0.3, None),
    "hard silu": (DENSE, lambda x: layers.Dense(32, "hard_silu")(x), None),
    "bias, minus a constant": (DENSE, lambda x: _biased(x) - 1, None),
    "a constant minus a bias": (DENSE, lambda x: 1 - _biased(x), None),
    "bias, plus ones of its shape": (DENSE, lambda x: _ones_added(_biased(x)), None),
    "sum, plus a constant": (DENSE, lambda x: layers.Add(name="sum")([x, _biased(x)]) + 0.3, "sum"),
    "convolution, minus a constant": (IMAGE, lambda x: layers.Conv2D(8, 3, bias_initializer="normal")(x) - 1, None),
    "residual": (DENSE, lambda x: x + layers.Dense(32)(x), None),
    "depthwise convolution": (IMAGE, lambda x: layers.Activation("elu")(layers.DepthwiseConv2D(3)(x)), None),
    "residual depthwise convolution": (
        IMAGE,
        lambda x: layers.BatchNormalization()(layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])),
        None,
    ),
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
    "attention, causal, grouped and masked": (DENSE, _pre_norm, None),
    "highway": (DENSE, _highway, None),
    "densely connected": (DENSE, _densely_connected, None),
    "batch normalization": (DENSE, lambda x: layers.BatchNormalization()(x), None),
}
"""Shape of the input, the block that follows a linear layer, and the pattern of the measured layers."""


def network_with(name):
    """Return a function that makes a model of a linear layer, one of BLOCKS and a linear layer."""
    shape, block, _ = BLOCKS[name]

    def network():
        inputs = keras.Input(shape)
        x = layers.Conv2D(8, 3, padding="same")(inputs) if shape == IMAGE else layers.Dense(32)(inputs)
        x = layers.Flatten()(block(x)) if shape == IMAGE else block(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    return network


def small_network():
    inputs = keras.Input(DENSE)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(32, "tanh")(inputs)))


@pytest.mark.filterwarnings(r"ignore:[\s\S]*passed an input with a mask")  # Keras 3.6, of its own layers
@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", BLOCKS)
def test_measuring_keeps_the_bits_of_blocks_that_grappler_rewrites(name, known):
    network = network_with(name)
    selection = BLOCKS[name][2]
    plain, measured = (networks.train(network, m, selection=selection, known=known, steps=10) for m in (False, True))
    assert networks.same_bits(plain, measured)


def test_without_isolation_measuring_changes_bits():
    """Positive control of the test above."""
    network = network_with("bias, then sigmoid")
    plain = networks.train(network, False, steps=10)
    measured = networks.train(network, True, steps=10, exact=False)
    assert not networks.same_bits(plain, measured)


def _approximate_gelu(x):
    return keras.activations.gelu(x, approximate=True)


def frozen_network(activation, separate=False):
    """Return a function that makes two frozen layers, which no backward pass goes through, and a trained one."""

    def network():
        x = inputs = keras.Input(DENSE)
        for _ in range(2):
            layer = layers.Dense(32, None if separate else activation, bias_initializer="normal", trainable=False)
            x = layers.Activation(activation)(layer(x)) if separate else layer(x)
        return keras.Model(inputs, layers.Dense(3)(x))

    return network


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("activation", ["gelu", _approximate_gelu, "mish", "hard_silu", "silu"])
def test_measuring_keeps_the_bits_of_frozen_layers(activation, separate, known):
    network = frozen_network(activation, separate)
    plain, measured = (networks.train(network, m, known=known, steps=5) for m in (False, True))
    assert networks.same_bits(plain, measured)


def test_without_isolation_measuring_changes_bits_of_frozen_layers():
    """Positive control of the test above. Which of them changes depends on the version of TensorFlow."""
    kept = []
    for activation in ("gelu", _approximate_gelu, "mish", "hard_silu"):
        plain = networks.train(frozen_network(activation), False, steps=5)
        measured = networks.train(frozen_network(activation), True, steps=5, exact=False)
        kept.append(networks.same_bits(plain, measured))
    assert not all(kept)


@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_frozen_layers_are_rows_and_have_a_delta_unless_their_activation_is_fused(activation):
    _, step, batch = networks.make_step(frozen_network(activation), True)
    reading = step(*batch)[1]
    has_delta = activation != "gelu"
    assert np.all(np.isfinite(reading.column("activation_std")))
    assert np.all(np.isfinite(reading.column("saturated")))
    assert np.isfinite(reading.column("delta_norm")).tolist() == [has_delta, has_delta, True]


@pytest.mark.parametrize("activation", ["gelu", "mish", "tanh"])
def test_measuring_keeps_the_bits_of_layers_that_are_computed_again(activation):
    def train(measure):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input(DENSE), *(layers.Dense(32, f) for f in (activation, "tanh", None))])
        first, second, last = model.layers
        block = tf.recompute_grad(lambda x: second(first(x)))
        probe = tapescope.Probe(model, strict=True)

        @tf.function
        def step(x):
            with probe.tape(measure) as tape:
                loss = tf.reduce_mean(last(block(x)) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
                variable.assign_sub(0.1 * gradient)
            return loss, tape.reading()

        for _ in range(3):
            step(tf.constant(np.random.default_rng(0).normal(size=(16, *DENSE)), tf.float32))
        return model.get_weights()

    assert networks.same_bits(train(False), train(True))


def test_measuring_keeps_the_bits_of_a_layer_in_loops_and_conditions():
    """Its gradient is a sum of three terms, whose order depends on what TensorFlow makes of a loop or condition."""

    def train(measure):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input(DENSE), layers.Dense(3), layers.Dense(3, "tanh")])
        first, again = model.layers
        probe = tapescope.Probe(model, strict=True)

        @tf.function
        def step(x):
            with probe.tape(measure) as tape:
                y = first(x)
                y = tf.cond(tf.reduce_sum(y) < 1e6, lambda: again(y), lambda: y)
                _, y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.9 + again(y)), [0, y])
                y = tf.switch_case(tf.constant(1), [lambda: y, lambda: again(y)])
                loss = tf.reduce_mean(y**2)
            gradients = tape.gradient(loss, model.trainable_variables)
            for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
                variable.assign_sub(0.1 * gradient)
            return loss, tape.reading()

        random = np.random.default_rng(0)
        for _ in range(8):
            step(tf.constant(random.normal(size=(16, *DENSE)), tf.float32))
        return model.get_weights()

    assert networks.same_bits(train(False), train(True))


def test_measuring_keeps_the_bits_of_clipped_gradients():
    plain, measured = (networks.train(small_network, m, clip=0.5) for m in (False, True))
    assert networks.same_bits(plain, measured)


def test_clipping_changes_bits():
    """Positive control of the test above: the gradients are large enough to be clipped."""
    clipped, unclipped = (networks.train(small_network, False, clip=c) for c in (0.5, None))
    assert not networks.same_bits(clipped, unclipped)


def test_the_user_gets_the_tapes_own_gradients():
    scale, x = tf.Variable(2.0), tf.Variable(3.0)
    probe = tapescope.Probe([scale], strict=True)

    @tf.function
    def step():
        with probe.tape(True) as tape:
            loss = scale * x
        gradients = tape.gradient(loss, [scale])
        assert gradients[0].op.type == "Mul"
        assert tape.variable_gradients()[0][1] is gradients[0]
        return tape.reading(aggregated=gradients, applied=gradients)

    step()
    assert not probe.failure


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [
        *(0, 1, 2, 4, 5),  # plain trainings of 3 differ from each other
        *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(6, 13)),
    ],
)
def test_measuring_keeps_the_bits_of_random_networks(seed):
    network = functools.partial(networks.random_network, seed)
    options = networks.random_options(seed)
    plain, measured = (networks.train(network, measure, **options) for measure in (False, True))
    assert networks.same_bits(plain, measured)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("selection", [None, "[02468]", "[13579]"])
@pytest.mark.parametrize("seed", [17, 306])
def test_measuring_holds_no_input_of_a_large_sum(seed, selection, known):
    network = functools.partial(networks.random_network, seed)
    assert networks.held_sum_inputs(network, seed=seed, selection=selection, known=known) == []


@pytest.mark.parametrize("seed", [17, 306])
def test_without_isolation_measuring_holds_inputs_of_large_sums(seed):
    """Positive control of the test above."""
    network = functools.partial(networks.random_network, seed)
    assert networks.held_sum_inputs(network, seed=seed, exact=False)


def graph_of(network, measure, **options):
    _, step, _ = networks.make_step(network, measure, **options)
    return step.get_concrete_function().graph.as_graph_def()


def structures(graph):
    """Return how often each operation occurs, described by its type and those of all that it depends on."""
    nodes = {node.name: node for node in graph.node}

    @functools.cache
    def describe(name):
        node = nodes[name.split(":")[0]]
        inputs = [describe(i) for i in node.input if not i.startswith("^")]
        if node.op == "Identity":  # a measured layer reads its input through one
            return inputs[0]
        return hash((node.op, node.attr["shape"].SerializeToString(), *inputs))

    return Counter(describe(node.name) for node in graph.node)


def test_without_isolation_the_steps_own_operations_are_unchanged():
    plain, measured = (structures(graph_of(small_network, m, exact=False)) for m in (False, True))
    assert sum(plain.values()) > 50
    assert plain - measured == Counter()


def test_isolation_changes_the_steps_own_operations():
    """Positive control of the test above: a copy is read in place of the terms of a sum."""
    network = network_with("three branches chosen")
    plain, measured = (structures(graph_of(network, m, selection="branch[012]")) for m in (False, True))
    assert plain - measured != Counter()


@pytest.mark.parametrize("exact", [True, False])
def test_only_exact_measuring_makes_twins_and_copies(exact):
    network = network_with("three branches chosen")
    graph = graph_of(network, True, selection="branch[012]", exact=exact)
    added = [node.name for node in graph.node if "tapescope_twin" in node.name or node.op == "Snapshot"]
    assert bool(added) == exact


def test_exact_and_inexact_measuring_give_the_same_reading():
    readings = []
    for exact in (True, False):
        _, step, batch = networks.make_step(network_with("residual"), True, exact=exact)
        readings.append(step(*batch)[1])
    for field, first, second in zip(readings[0]._fields, *readings, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6, err_msg=field)
