"""The measured flow budget against closed forms; its parts add up on every shape of network."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tensorboard_plugin_tapescope.series import flow_path

RNG = np.random.default_rng(11)
layers = keras.layers


@pytest.fixture(autouse=True)
def seed():
    """Seed the weights of each test."""
    keras.utils.set_random_seed(11)


def measure(model, x, loss=None):
    """Measure one step; return the probe, the parts of the budget and the delta norms.

    Args:
        model: Any Keras model.
        x: Input.
        loss: Loss of the outputs; a random projection by default.
    """
    probe = tapescope.Probe(model)

    @tf.function
    def step(x):
        with probe.tape(True) as tape:
            out = model(x, training=True)
            value = loss(out) if loss else tf.reduce_sum(out * tf.constant(RNG.normal(size=out.shape), tf.float32))
        tape.gradient(value, model.trainable_variables)
        return tape.reading()

    reading = step(tf.constant(x, tf.float32))
    columns = {name: reading.column(name).numpy() for name in ("flow_gate", "flow_weight", "flow_between")}
    return probe, columns, reading.column("delta_norm").numpy()


def check_sum(probe, columns, delta, first=0):
    """Check that the budget adds up to the ratio of the delta norms; return the layers on its path."""
    rows = {part: values[None] for part, values in columns.items()}
    budget = flow_path.flow_budget(rows, probe.names.sources, first)
    np.testing.assert_allclose(budget.total, np.log10(delta[first] / delta[-1]), atol=1e-4)
    return [probe.layers[layer] for layer in budget.path]


def orthogonal(n, scale=1.0):
    """Return an initializer of scaled rotations."""
    return lambda shape, dtype: tf.constant(scale * np.linalg.qr(RNG.normal(size=[n, n]))[0], dtype)


def test_scaled_rotations_cost_their_scale():
    """dL/dinput = W^T dL/dz with W a rotation times 0.1: exactly one decade a layer, nothing at the gates."""
    dense = [layers.Dense(8, kernel_initializer=orthogonal(8, 0.1), name=f"d{i}") for i in range(5)]
    probe, columns, delta = measure(keras.Sequential([keras.Input((8,)), *dense]), RNG.normal(size=[16, 8]))
    np.testing.assert_allclose(columns["flow_weight"][1:], -1, atol=1e-5)
    np.testing.assert_allclose(columns["flow_gate"], 0, atol=1e-6)
    np.testing.assert_allclose(columns["flow_between"][1:], 0, atol=1e-6)
    assert check_sum(probe, columns, delta) == ["d4", "d3", "d2", "d1"]


def test_sigmoid_chain_at_zero_costs_a_factor_of_four_a_gate():
    """sigmoid'(0) = 1/4. Rotations keep the norm, and biases bring every z back to 0."""
    dense = [layers.Dense(6, "sigmoid", kernel_initializer=orthogonal(6), name=f"s{i}") for i in range(4)]
    model = keras.Sequential([keras.Input((6,)), *dense])
    for i, layer in enumerate(dense):
        layer_input = np.full(6, 0.5) if i else np.zeros(6)
        layer.bias.assign(-layer_input @ layer.kernel.numpy())
    probe, columns, delta = measure(model, np.zeros([10, 6]))
    np.testing.assert_allclose(columns["flow_gate"], np.log10(0.25), atol=1e-5)
    np.testing.assert_allclose(columns["flow_weight"][1:], 0, atol=1e-5)
    assert check_sum(probe, columns, delta) == ["s3", "s2", "s1"]


def test_normalization_and_pooling_are_in_between():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, activation="relu", name="conv1"),
            layers.BatchNormalization(),
            layers.AveragePooling2D(2),
            layers.Conv2D(5, 2, activation="tanh", name="conv2"),
            layers.Flatten(),
            layers.Dense(3, name="out"),
        ]
    )
    probe, columns, delta = measure(model, RNG.normal(size=[6, 8, 8, 2]))
    assert probe.names.sources == ((), (0,), (1,))
    assert abs(columns["flow_between"][1]) > 1e-4  # normalisation and pooling
    np.testing.assert_allclose(columns["flow_between"][2], 0, atol=1e-6)  # flattening moves nothing
    assert check_sum(probe, columns, delta) == ["out", "conv2"]


def test_average_pooling_costs_half():
    """A 2 x 2 average gives each of four positions a quarter: |dL/dinput| = |dL/dout| / 2."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Dense(3, name="a"),
            layers.AveragePooling2D(2),
            layers.Dense(2, name="b"),
        ]
    )
    _, columns, _ = measure(model, RNG.normal(size=[5, 4, 4, 3]))
    np.testing.assert_allclose(columns["flow_between"][1], np.log10(0.5), atol=1e-5)


def test_a_skip_connection_brings_gradient_around_a_layer():
    given = keras.Input((6,))
    stem = layers.Dense(6, "relu", name="stem")(given)
    inside = layers.Dense(6, "sigmoid", kernel_initializer=orthogonal(6, 1e-3), name="inside")(stem)
    out = layers.Dense(2, name="out")(layers.add([stem, inside]))
    probe, columns, delta = measure(keras.Model(given, out), RNG.normal(size=[9, 6]))
    assert probe.names.sources == ((), (0,), (0, 1))
    assert columns["flow_gate"][1] + columns["flow_weight"][1] < -3
    assert columns["flow_between"][1] > 3  # nearly all of it comes around
    assert check_sum(probe, columns, delta) == ["out", "inside"]


def test_branches_each_have_their_own_path():
    given = keras.Input((6,))
    branches = [layers.Dense(5, kind, name=kind)(given) for kind in ("relu", "sigmoid")]
    probe, columns, delta = measure(
        keras.Model(given, layers.Dense(3, name="out")(layers.concatenate(branches))), RNG.normal(size=[9, 6])
    )
    assert probe.names.sources == ((), (), (0, 1))
    assert check_sum(probe, columns, delta, first=1) == ["out"]


def test_each_call_of_a_shared_layer_has_its_part():
    shared, given = layers.Dense(6, "tanh", name="shared"), keras.Input((6,))
    probe, columns, delta = measure(keras.Model(given, shared(shared(shared(given)))), RNG.normal(size=[9, 6]))
    assert check_sum(probe, columns, delta) == ["shared#3", "shared#2"]


def test_the_gate_of_a_softmax_is_undefined_if_the_loss_uses_its_logits():
    """Keras computes cross-entropy from the logits, so there is no gradient with respect to the softmax's output."""
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(5, "relu", name="h"), layers.Dense(3, "softmax", name="o")]
    )
    targets = np.eye(3)[RNG.integers(0, 3, 9)]
    _, columns, delta = measure(
        model, RNG.normal(size=[9, 6]), lambda out: tf.reduce_mean(keras.losses.categorical_crossentropy(targets, out))
    )
    assert np.isnan(delta[1])
    assert np.isnan(columns["flow_gate"][1])
    assert np.all(np.isfinite([columns["flow_weight"][1], columns["flow_between"][1], delta[0]]))


def test_the_cost_of_a_tap_is_in_between():
    w = [tf.Variable(tf.constant(np.linalg.qr(RNG.normal(size=[4, 4]))[0] * 0.1, tf.float32)) for _ in range(2)]
    probe = tapescope.Probe(w)

    @tf.function
    def step(x):
        with probe.tape(True) as tape:
            h = tapescope.tap("first", x @ w[0])
            loss = tf.reduce_sum(tapescope.tap("second", h @ w[1]) ** 2)
        tape.gradient(loss, w)
        return tape.reading()

    between = step(tf.random.stateless_normal([7, 4], [1, 2])).column("flow_between").numpy()
    np.testing.assert_allclose(between, [np.nan, -1], atol=1e-5)
