"""The layers that are measured, and their names, in every kind of model that Keras and TensorFlow have."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain

import tapescope

Dense = keras.layers.Dense


def read(model, x, loss=None, compiled=True, **options):
    """Take one measured step; return the probe and the reading."""
    probe = tapescope.Probe(model, **options)
    call = model if callable(model) else model[0]

    def step(x):
        with probe.tape(True) as tape:
            out = call(x)
            value = loss(out) if loss else sum(tf.reduce_sum(t**2) for t in tf.nest.flatten(out))
        tape.gradient(value, probe._state.variables())
        return tape.reading()

    return probe, (tf.function(step) if compiled else step)(x)


def x(*shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)


@pytest.mark.parametrize("compiled", [True, False])
def test_functional_model_in_forward_order(compiled):
    given = keras.Input((4,))
    left, right = Dense(3, "relu", name="left")(given), Dense(3, "sigmoid", name="right")(given)
    out = Dense(2, "softmax", name="out")(keras.layers.concatenate([left, right]))
    probe, reading = read(keras.Model(given, out), x(8, 4), compiled=compiled)
    assert probe.layers == ("left", "right", "out")
    assert probe.names.activations == ("relu", "sigmoid", "softmax")
    assert probe.names.layer_variables == ((0, 1), (2, 3), (4, 5))
    assert np.isnan(reading.column("saturated")[2])  # softmax is not a function of one element
    assert np.all(np.isfinite(reading.column("delta_norm")))


def test_each_call_of_a_shared_layer_is_a_row():
    shared, given = Dense(4, "tanh", name="shared"), keras.Input((4,))
    model = keras.Model(given, shared(shared(given)))
    probe, reading = read(model, x(8, 4))
    assert probe.layers == ("shared", "shared#2")
    with tf.GradientTape() as tape:
        once = shared(x(8, 4))
        tape.watch(once)
        twice = shared(once)
        loss = tf.reduce_sum(twice**2)
    np.testing.assert_allclose(reading.column("activation_mean"), [tf.reduce_mean(once), tf.reduce_mean(twice)], 1e-5)
    np.testing.assert_allclose(reading.column("delta_norm")[0], tf.norm(tape.gradient(loss, once)), 1e-5)


def test_nested_models_are_named_by_path():
    inner = keras.Sequential([keras.Input((4,)), Dense(3, "relu", name="a"), Dense(3, "relu", name="b")], name="inner")
    given = keras.Input((4,))
    probe, _ = read(keras.Model(given, Dense(1, name="head")(inner(given))), x(8, 4))
    assert probe.layers == ("inner/a", "inner/b", "head")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = Dense(3, "relu", name="first")
        self.block = [Dense(3, "elu", name="inside"), keras.layers.LeakyReLU(name="leaky")]

    def call(self, x):
        x = self.first(x)
        for layer in self.block:
            x = layer(x)
        return x


def test_subclassed_model_that_builds_lazily():
    model = Subclassed()
    probe = tapescope.Probe(model)
    assert probe.layers == ()
    model(x(8, 4))
    probe, reading = read(model, x(8, 4))
    assert probe.layers == ("first", "inside", "leaky")
    np.testing.assert_allclose(reading.column("flow_weight")[2], 0, atol=1e-6)  # an activation layer has no weights


def test_pattern_chooses_among_all_layers():
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((4,)), Dense(3, "relu", name="a"), norm, Dense(2, name="b")])
    assert read(model, x(8, 4), layers="norm|b")[0].layers == ("norm", "b")
    assert read(model, x(8, 4))[0].layers == ("a", "b")


def test_a_layer_that_is_another_layers_activation_has_no_row():
    model = keras.Sequential([keras.Input((4,)), Dense(3, activation=keras.layers.ReLU(), name="a")])
    probe, _ = read(model, x(8, 4))
    assert probe.layers == ("a",)
    assert probe.names.activations == ("relu",)


class Module(tf.Module):
    def __init__(self):
        super().__init__("module")
        self.w = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]), name="w")
        self.frozen = tf.Variable(tf.ones([3]), trainable=False)

    def __call__(self, x):
        return tapescope.tap("hidden", tf.nn.relu(x @ self.w), activation="relu")


def test_module_with_a_tap():
    probe, reading = read(Module(), x(8, 4))
    assert (probe.layers, probe.variables) == (("hidden",), ("w",))
    assert 0 < reading.column("saturated")[0] < 1
    assert reading.column("saturated")[0] == reading.column("activation_zero")[0]
    assert reading.column("delta_norm")[0] > 0


def test_plain_function_and_a_list_of_variables():
    w = tf.Variable(tf.ones([4, 2]), name="w")
    probe = tapescope.Probe([w])
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(tapescope.tap("product", x(8, 4) @ w) ** 2)
    tape.gradient(loss, [w])
    assert tape.reading().column("gradient_norm")[0] > 0
    assert probe.layers == ("product",)


def test_a_model_without_any_layer_to_measure():
    w = tf.Variable([1.0, 2.0])
    probe = tapescope.Probe(w)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(w**2)
    tape.gradient(loss, [w])
    reading = tape.reading()
    assert reading.layers.shape[1] == 0
    np.testing.assert_allclose(reading.column("gradient_norm"), [2 * np.sqrt(5)], 1e-6)


@pytest.mark.parametrize("compiled", [None, False, True])
@pytest.mark.parametrize("scalars", [1, 2])
def test_scalar_variables_are_measured(scalars, compiled):
    w, *temperatures = tf.Variable([1.0, -2.0]), *(tf.Variable(3.0) for _ in range(scalars))
    probe = tapescope.Probe([w, *temperatures], strict=True)

    def step():
        with probe.tape(True) as tape:
            loss = tf.add_n(temperatures) * tf.reduce_sum(tapescope.tap("square", w[tf.newaxis] ** 2))
        gradients = tape.gradient(loss, [w, *temperatures])
        return tape.reading(aggregated=gradients)

    reading = step() if compiled is None else tf.function(step, jit_compile=compiled)()
    np.testing.assert_allclose(reading.column("gradient_norm"), [6 * scalars * np.sqrt(5), *[5] * scalars], 1e-6)
    np.testing.assert_allclose(reading.column("gradient_max"), [12 * scalars, *[5] * scalars], 1e-6)
    np.testing.assert_allclose(reading.column("weight_norm"), [np.sqrt(5), *[3] * scalars], 1e-6)


def test_a_recurrent_layer_is_one_row():
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.LSTM(4, name="lstm"), Dense(1, name="out")])
    probe, reading = read(model, x(8, 5, 3))
    assert probe.layers == ("lstm", "out")
    assert np.all(np.isfinite(reading.column("delta_norm")))


class _Cell(keras.layers.Layer):
    """A recurrent cell of two linear layers."""

    state_size = 4

    def __init__(self, **options):
        super().__init__(**options)
        self.of_input, self.of_state = Dense(4, "tanh", name="of_input"), Dense(4, name="of_state")

    def build(self, shape):
        self.of_input.build(shape)
        self.of_state.build((None, 4))

    def call(self, x, states):
        output = self.of_input(x) + self.of_state(states[0])
        return output, [output]


@pytest.mark.parametrize("unroll", [True, False])
def test_layers_in_a_recurrent_cell_are_skipped(unroll):
    cells = [_Cell(name="mine"), keras.layers.LSTMCell(4)]
    layers = [keras.layers.RNN(cell, return_sequences=True, unroll=unroll) for cell in cells]
    layers.append(keras.layers.RNN([_Cell(name="stacked"), keras.layers.GRUCell(4)], name="stack", unroll=unroll))
    probe, _ = read(keras.Sequential([keras.Input((5, 3)), *layers]), x(8, 5, 3))
    assert probe.layers == tuple(layer.name for layer in layers)
    inner = {f"{layers[0].name}/mine/of_input", f"{layers[0].name}/mine/of_state"}
    inner |= {f"stack/{layers[2].cell.name}/stacked/{name}" for name in ("of_input", "of_state")}
    assert set(probe.skipped) == inner
    assert {reason.split(":")[0] for reason in probe.skipped.values()} == {
        "it is inside of a recurrent cell, which runs once a time step"
    }


@pytest.mark.parametrize("compiled", [True, False])
def test_what_a_vectorized_map_runs_is_skipped(compiled):
    """Its body is traced into the step's own graph, for one example."""

    class Mapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = Dense(4, "tanh", name="inner"), Dense(2, name="outer")
            self.inner.build((None, 3))
            self.outer.build((None, 4))
            self.built = True

        def call(self, x):
            return self.outer(tf.vectorized_map(lambda row: tapescope.tap("tapped", self.inner(row[None])[0]), x))

    probe, _ = read(Mapped(), x(8, 3), compiled=compiled)
    assert probe.layers == ("outer",)
    assert set(probe.skipped) == {"inner", "tapped"}


def test_absent_gradient_is_nan_not_zero():
    model = Subclassed()
    model(x(2, 4))
    _, reading = read(model, x(8, 4), loss=lambda out: tf.reduce_sum(model.first.kernel**2))
    norms = reading.column("gradient_norm").numpy()
    assert norms[0] > 0
    assert np.all(np.isnan(norms[1:]))


def test_duplicate_rows_of_indexed_slices_are_summed():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2), keras.layers.Flatten()])
    tokens = tf.constant([[1, 1, 2], [1, 0, 0]])
    _, reading = read(model, tokens)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tokens) ** 2)
    dense = tf.convert_to_tensor(tape.gradient(loss, model.trainable_variables)[0])
    np.testing.assert_allclose(reading.column("gradient_norm")[0], tf.norm(dense), rtol=1e-6)
    np.testing.assert_allclose(reading.column("gradient_zero")[0], np.mean(dense == 0))


@pytest.mark.filterwarnings(r"ignore:[\s\S]*passed an input with a mask")  # Keras' nightly build, of an LSTM
def test_the_hook_keeps_masks():
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(6, 3, mask_zero=True), keras.layers.LSTM(2, name="l")]
    )
    tokens = tf.constant([[1, 2, 0, 0]])
    plain = model(tokens)
    probe = tapescope.Probe(model, layers="l$")
    with probe.tape(True):
        np.testing.assert_array_equal(model(tokens), plain)


def test_layers_of_a_function_traced_before_are_skipped():
    model = dense_chain([3, 2], ["relu", "linear"], 4)
    inner = tf.function(lambda x: model(x))
    inner(x(8, 4))
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(inner(x(8, 4)) ** 2)
    tape.gradient(loss, model.trainable_variables)
    assert tape.reading() is not None
    assert probe.layers == ()
    assert set(probe.skipped) == {"layer0", "layer1"}


def test_a_measured_layer_is_not_said_to_be_skipped_for_another_call(caplog):
    model = dense_chain([3, 2], ["relu", "linear"], 4)
    probe = tapescope.Probe(model, layers="layer0")

    @tf.function
    def step(data):
        with probe.tape(True) as tape:
            outputs = model(data)
            loss = tf.cond(tf.reduce_sum(data) > 0, lambda: tf.reduce_sum(model(-data)), lambda: tf.reduce_sum(outputs))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    step(tf.constant(x(8, 4)))
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == ["tapescope does not measure one call of layer layer0"]


def test_the_model_is_left_as_it_was():
    model = dense_chain([3, 2], ["relu", "tanh"], 4)
    before = [layer.activation for layer in model.layers]
    config = model.get_config()
    read(model, x(8, 4))
    assert [layer.activation for layer in model.layers] == before
    assert model.get_config() == config


def test_a_leaky_relu_of_a_small_slope_is_saturated_below_0():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.LeakyReLU(0.005)])
    probe = tapescope.Probe(model)
    x = tf.random.stateless_normal([32, 6], [1, 2])
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(x))
    tape.gradient(loss, model.trainable_variables)
    reading = tape.reading()
    outputs = model(x).numpy()
    assert float(reading.column("saturated")[-1]) == pytest.approx(np.mean(outputs < 0))
    assert 0.2 < np.mean(outputs < 0) < 0.8
    assert probe._state.names is not None
    assert probe._state.names.activations[-1] == "leaky_relu"
