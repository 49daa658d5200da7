"""Measuring has no effect on a program's own functions: none is called once more, each sees what it would see."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope

Dense = keras.layers.Dense
X = tf.constant(np.random.default_rng(0).normal(size=(64, 6)), tf.float32)


class Hidden(keras.layers.Layer):
    """A layer whose `call` is given by the test."""

    def __init__(self, call, activation="relu"):
        super().__init__(name="hidden")
        self.activation = keras.activations.get(activation)
        self._function = call

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5), name="w")

    def call(self, x):
        return self._function(self, x @ self.w)


def read(model, x=X, measure=True, **options):
    """Take one eager step; return the probe, the gradients and the reading."""
    probe = tapescope.Probe(model, **options)
    with probe.tape(measure) as tape:
        loss = tf.reduce_mean(model(x) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    return probe, gradients, tape.reading()


def trace(model, call=None, measure=True):
    """Take one step in a `tf.function`, which calls the model, or `call` in its place; return the probe."""
    probe = tapescope.Probe(model)

    @tf.function
    def step(x):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean((call or model)(x) ** 2)
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    step(X)
    return probe


def column(reading, name):
    return np.asarray(reading.column(name))


def with_hidden(hidden):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), hidden, Dense(2, name="out")])


class Lazy(keras.Model):
    """A model that builds its layers when it is first called."""

    def __init__(self, activation):
        super().__init__()
        self.hidden, self.out = Dense(6, activation, name="hidden"), Dense(2, name="out")

    def call(self, x):
        return self.out(self.hidden(x))


class LazyPReLU(Lazy):
    """One whose activation is a method that calls a layer."""

    def __init__(self):
        super().__init__(self.apply_prelu)
        self.prelu = keras.layers.PReLU(name="prelu")

    def apply_prelu(self, x):
        return self.prelu(x)


def test_an_activation_of_the_users_is_called_once_a_step():
    calls = []

    def counted(z):
        calls.append(z.shape)
        return tf.nn.silu(z)

    model = with_hidden(Dense(5, counted))
    calls.clear()
    read(model)
    assert calls == [(64, 5)]


@pytest.mark.parametrize("function", [tf.nn.silu, tf.nn.sigmoid, tf.nn.tanh])
def test_saturation_of_a_users_function_is_seen_in_the_gradients(function):
    model = with_hidden(Dense(5, lambda z: function(4 * z), name="hidden"))
    probe, _, reading = read(model)
    z = 4 * (X @ model.layers[0].kernel)
    with tf.GradientTape() as tape:
        tape.watch(z)
        a = function(z)
    slope = np.abs(tape.gradient(a, z))
    assert 0 < np.mean(slope < 0.01 * slope.max()) < 1
    assert column(reading, "saturated")[0] == pytest.approx(np.mean(slope < 0.01 * slope.max()), abs=2 / slope.size)
    assert probe.names.activations[0] == "<lambda>"


def test_saturation_of_a_custom_layer_that_is_an_activation():
    class Clip(keras.layers.Layer):
        def call(self, z):
            return tf.clip_by_value(z, -0.5, 0.5)

    model = with_hidden(Dense(5, Clip(), name="hidden"))
    probe, _, reading = read(model)
    z = (X @ model.layers[0].kernel).numpy()
    assert probe.names.activations[0] == "Clip"
    assert column(reading, "saturated")[0] == pytest.approx(np.mean(np.abs(z) > 0.5))


def test_saturation_of_a_function_that_changes_the_shape_is_not_known():
    _, _, reading = read(Lazy(lambda z: z[:, :3] * tf.sigmoid(z[:, 3:])))
    assert np.isnan(column(reading, "saturated")[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, z: layer.activation(z, negative_slope=0.2 if layer.activation == keras.activations.relu else 0.0),
        lambda layer, z: layer.activation(z, negative_slope=0.2 if layer.activation.__name__ == "relu" else 0.0),
        lambda layer, z: z * len({layer.activation, keras.activations.relu}),
        lambda layer, z: z if isinstance(layer.activation, type(keras.activations.relu)) else 0 * z,
        lambda layer, z: layer.activation(x=z),
    ],
    ids=["equal", "name", "hash", "type", "keyword"],
)
def test_a_layer_that_looks_at_its_activation_computes_the_same(call):
    results = [read(with_hidden(Hidden(call)), measure=measure)[1] for measure in (False, True)]
    for plain, measured in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, measured)


def test_the_pre_activation_is_seen_where_it_is_a_keyword():
    _, _, reading = read(with_hidden(Hidden(lambda layer, z: layer.activation(x=z))))
    assert np.isfinite(column(reading, "flow_gate")[0])


def test_a_model_that_is_built_in_the_measured_step_skips_no_layer():
    probe = trace(Lazy("relu"))
    assert probe.layers == ("hidden", "out")
    assert probe.skipped == {}


def test_a_layer_that_is_built_by_an_activation_has_its_own_shape():
    model = LazyPReLU()
    read(model)
    assert model.prelu.alpha.shape == (6,)


def test_a_measured_model_is_freed():
    def measure():
        model = LazyPReLU()
        read(model)
        return weakref.ref(model)

    found = [measure() for _ in range(3)]
    gc.collect()
    assert [ref() for ref in found] == [None, None, None]


def test_a_graph_that_is_traced_while_measuring_is_the_plain_one():
    def operations(measure):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), Dense(5, "silu"), Dense(2)])
        inner = tf.function(model.call)
        trace(model, inner, measure)
        graph = inner.get_concrete_function(tf.TensorSpec(X.shape)).graph
        return sorted(op.type for op in graph.get_operations())

    assert operations(True) == operations(False)


def test_norms_of_complex_variables_are_those_of_the_magnitudes():
    rng = np.random.default_rng(0)
    w = tf.Variable((rng.normal(size=(6, 2)) + 1j * rng.normal(size=(6, 2))).astype("complex64"), name="w")
    probe = tapescope.Probe(w)
    with probe.tape(True) as tape:
        loss = tf.reduce_mean((tf.abs(tf.cast(X, tf.complex64) @ w) - 1) ** 2)
    gradient, before = tape.gradient(loss, w), w.numpy()
    w.assign_sub(0.1 * gradient)
    reading = tape.reading()
    norm = np.linalg.norm(before)
    assert column(reading, "gradient_norm")[0] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert column(reading, "weight_norm")[0] == pytest.approx(norm, rel=1e-5)
    assert column(reading, "update_ratio")[0] == pytest.approx(0.1 * np.linalg.norm(gradient) / norm, rel=1e-4)


def test_updates_of_float64_weights_are_taken_in_float64():
    w = tf.Variable(np.ones(4), name="w")
    probe = tapescope.Probe(w)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(w)
    tape.gradient(loss, w)
    w.assign_add(np.full(4, 1e-10))
    assert column(tape.reading(), "update_ratio")[0] == pytest.approx(1e-10, rel=1e-4)


def test_a_sequential_that_is_built_in_the_measured_step_skips_no_layer():
    model = keras.Sequential([Dense(5, "relu", name="hidden"), Dense(2, name="out")])
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = tf.reduce_mean(model(X) ** 2)
    tape.gradient(loss, model.trainable_variables)
    tape.reading()
    assert (probe.layers, probe.skipped) == (("hidden", "out"), {})


@pytest.fixture
def check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_check_of_all_numbers_does_not_see_the_measuring(check_numerics, compiled, tmp_path):
    model = with_hidden(Dense(5, "relu"))
    probe = tapescope.Probe(model)

    def step(x):
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        return gradients, tape.reading()

    gradients, reading = (tf.function(step) if compiled else step)(X)
    norms = [np.linalg.norm(g) for g in gradients]
    np.testing.assert_allclose(column(reading, "gradient_norm"), norms, rtol=1e-6)
    assert np.isnan(column(reading, "noise_scale_total"))
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, reading)
    np.testing.assert_allclose(tapescope.Run(tmp_path)["gradient_norm"], [norms], rtol=1e-6)


def test_a_check_of_all_numbers_still_sees_the_steps_own(check_numerics):
    model = with_hidden(Dense(5, "relu"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
        read(model, X * np.nan)


def test_monitor_measures_under_a_check_of_all_numbers(check_numerics, tmp_path):
    model = with_hidden(Dense(5, "relu"))
    model.compile("sgd", "mse")
    model.fit(X, X[:, :2], verbose=0, callbacks=[tapescope.Monitor(tmp_path, tapescope.every(1))])
    assert np.isfinite(tapescope.Run(tmp_path)["gradient_norm"]).all()


class Annealed(keras.layers.Layer):
    """A layer that changes its activation in its third call."""

    def __init__(self):
        super().__init__(name="annealed")
        self.activation, self.calls = keras.activations.relu, 0
        self.w = self.add_weight(shape=(6, 4), name="w")

    def call(self, x):
        self.calls += 1
        if self.calls == 3:
            self.activation = keras.activations.tanh
        return self.activation(x @ self.w)


def test_an_activation_that_is_set_in_the_call_stays():
    layer = Annealed()
    probe = tapescope.Probe(keras.Sequential([layer]), strict=True)
    for _ in range(4):
        with probe.tape(True):
            layer(X)
    assert layer.activation is keras.activations.tanh


@pytest.mark.parametrize("compiled", [False, True])
def test_variables_of_text_are_left_out(compiled):
    net = tf.Module()
    net.w, net.label = tf.Variable(tf.ones([6, 2])), tf.Variable("v1")
    probe = tapescope.Probe(net, strict=True)

    def step():
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(X @ net.w)
        tape.gradient(loss, net.trainable_variables)
        return tape.reading()

    assert len(column((tf.function(step) if compiled else step)(), "gradient_norm")) == 1


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_variable_may_grow_in_a_step(platform, monkeypatch):
    monkeypatch.setenv("TAPESCOPE_PLATFORM", platform)
    grown = tf.Variable(tf.ones([2, 6]), shape=(None, 6))
    probe = tapescope.Probe(grown, strict=True)

    @tf.function
    def step():
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(grown**2)
        gradient = tape.gradient(loss, grown)
        grown.assign(tf.concat([grown - 0.1 * gradient, tf.zeros([1, 6])], 0))
        return tape.reading()

    np.testing.assert_allclose(column(step(), "update_norm"), [0.2 * np.sqrt(12)], rtol=1e-5)
    assert grown.shape[0] is None


def test_gradients_may_be_taken_of_the_variables_behind_those_of_keras():
    model = with_hidden(Dense(5, "relu", name="hidden"))
    probe = tapescope.Probe(model, strict=True)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(X) ** 2)
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    norms = [np.linalg.norm(g) for g in gradients]
    np.testing.assert_allclose(column(tape.reading(), "gradient_norm"), norms, rtol=1e-5)


def test_layers_without_a_model_are_measured():
    keras.utils.set_random_seed(0)
    hidden, recurrent = Dense(6, "relu", name="a"), keras.layers.LSTM(3, name="r")
    model = keras.Sequential([keras.Input((3,)), Dense(2, name="out")])
    hidden.build((None, 6))
    recurrent.build((None, 1, 6))
    probe = tapescope.Probe([hidden, recurrent, model], strict=True)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(recurrent(hidden(X)[:, None])) ** 2)
    tape.gradient(loss, [v for m in (hidden, recurrent, model) for v in m.trainable_variables])
    tape.reading()
    assert (probe.layers, probe.skipped) == (("a", "r", f"{model.name}/out"), {})


class SaysBuilt(Lazy):
    def __init__(self):
        super().__init__("relu")
        self.built = True


def test_a_model_that_says_it_is_built_before_its_layers_are_is_measured():
    model = SaysBuilt()
    probe = tapescope.Probe(model, strict=True)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(model(X))
    tape.gradient(loss, model.trainable_variables)
    assert np.all(column(tape.reading(), "gradient_norm") > 0)


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_gradient_of_a_forward_derivative_is_that_of_a_plain_step(in_graph):
    model = keras.Sequential([keras.Input((3,)), Dense(4, "tanh"), Dense(1)])
    probe = tapescope.Probe(model, strict=True)
    x = tf.ones([5, 3])

    def step(measure):
        with probe.tape(measure) as tape:
            with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
                outputs = model(x)
            loss = tf.reduce_sum(tf.square(accumulator.jvp(outputs)))
        return tape.gradient(loss, model.trainable_variables[:3])

    run = tf.function(step) if in_graph else step
    for measured, plain in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(measured, plain)
