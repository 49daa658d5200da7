"""The Probe: the plain program is untouched, the user's gradients are unchanged, and every misuse has a clear error."""

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured_step, mirrored, squared_error

import tapescope
from tapescope.capture import graph_isolation
from tapescope.statistics import partial as partials
from tapescope.storage import summaries
from tensorboard_plugin_tapescope import metadata

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=[16, 6]).astype(np.float32), RNG.normal(size=[16, 2]).astype(np.float32)


def chain(**kwargs):
    return dense_chain([5, 4, 2], ["relu", "sigmoid", "linear"], 6, **kwargs)


def program(model, make_tape, optimizer):
    @tf.function
    def step(x, y, measure):
        with make_tape(measure) as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss, gradients, tape.reading() if hasattr(tape, "reading") else None

    return step


def node_counts(step, measure):
    graph = step.get_concrete_function(X, Y, measure).graph
    return Counter(node.op for node in graph.as_graph_def().node)


@pytest.mark.parametrize("measure", [True, False])
def test_only_a_measured_step_has_another_graph_than_the_users_own(measure):
    model, optimizer = chain(), keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)
    mine = node_counts(program(model, probe.tape, optimizer), measure)
    theirs = node_counts(program(model, lambda measure: tf.GradientTape(), optimizer), measure)
    assert (mine == theirs) == (not measure)


def test_weights_have_the_same_bits_with_measuring_on_and_off():
    def weights(measure):
        model, optimizer = chain(), keras.optimizers.Adam(0.01)
        step = program(model, tapescope.Probe(model).tape, optimizer)
        for _ in range(20):
            step(X, Y, measure)
        return [v.numpy() for v in model.trainable_variables]

    for on, off in zip(weights(True), weights(False), strict=True):
        np.testing.assert_array_equal(on, off)


def test_clipped_gradients_are_recorded_before_and_after():
    model = chain()
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = 100 * tf.reduce_mean(tf.square(model(X) - Y))
    gradients = tape.gradient(loss, model.trainable_variables)
    clipped, norm = tf.clip_by_global_norm(gradients, 1.0)
    reading = tape.reading(applied=clipped)
    before, after = reading.column("gradient_norm"), reading.column("applied_norm")
    np.testing.assert_allclose(tf.norm(before), norm, rtol=1e-5)
    np.testing.assert_allclose(tf.norm(after), 1.0, rtol=1e-5)
    assert norm > 1


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_a_scaled_loss_is_recorded_unscaled(dtype):
    scale = 1024.0

    def read(dtype, scale):
        model = chain(dtype=dtype)
        probe = tapescope.Probe(model)
        with probe.tape(True) as tape:
            loss = scale * tf.reduce_mean(tf.square(tf.cast(model(X), tf.float32) - Y))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading(loss_scale=scale)

    scaled, plain = read(dtype, scale), read("float32", 1.0)
    for column in ("gradient_norm", "gradient_max", "delta_norm"):
        np.testing.assert_allclose(scaled.column(column), plain.column(column), rtol=0.05)
    largest = [np.nanmax(np.abs(reading.gradient_sample), 0) for reading in (scaled, plain)]
    np.testing.assert_allclose(*largest, rtol=0.05)


def test_a_float16_norm_does_not_overflow():
    """The L2 norm of 120,000 elements of 1.4 is 485: in float16 its square is Inf."""
    w = tf.Variable(tf.ones([300, 400], tf.float16))
    probe = tapescope.Probe(w)
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(w * tf.constant(1.4, tf.float16))
    tape.gradient(loss, [w])
    np.testing.assert_allclose(tape.reading().column("gradient_norm"), [np.float16(1.4) * np.sqrt(120_000)], rtol=1e-5)


@pytest.mark.parametrize("measure", [True, False])
def test_unconnected_gradients_are_zero_on_request(measure):
    used, unused = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    probe = tapescope.Probe([used, unused])
    with probe.tape(measure) as tape:
        loss = tf.reduce_sum(used)
    found = tape.gradient(loss, {"u": used, "n": unused}, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    np.testing.assert_array_equal(found["n"], [0, 0])


def test_an_unconnected_gradient_is_recorded_as_nan():
    used, unused = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    probe = tapescope.Probe([used, unused])
    with probe.tape(True) as tape:
        loss = tf.reduce_sum(used)
    tape.gradient(loss, [used, unused], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    np.testing.assert_array_equal(np.isnan(tape.reading().column("gradient_norm")), [False, True])


def reading_with_nan_in_bias(layer):
    model = chain()
    model.layers[layer].bias.assign([np.nan] + [0.0] * (model.layers[layer].bias.shape[0] - 1))
    return measured_step("function", lambda: model, X, Y)[0]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_first_nonfinite_layer_forward_is_recorded(layer):
    assert reading_with_nan_in_bias(layer).column("first_nonfinite_forward") == layer


@pytest.mark.parametrize("layer", [1, 2])  # layer 0 has a ReLU, which on some processors turns NaN into 0
def test_nonfinite_outputs_are_counted(layer):
    assert reading_with_nan_in_bias(layer).column("activation_nonfinite")[layer] == len(X)


@pytest.mark.parametrize("layer", [1, 2])
def test_a_nan_in_the_loss_reaches_the_last_layer_first(layer):
    assert reading_with_nan_in_bias(layer).column("first_nonfinite_backward") == 2


def test_a_nonfinite_input_names_the_first_layer():
    data = X.copy()
    data[3, 2] = np.inf
    read, *_ = measured_step("function", chain, data, Y)
    assert read.column("first_nonfinite_forward") == 0


@pytest.mark.parametrize("mode", ["function", pytest.param("jit", marks=pytest.mark.nightly), "replicas"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_first_nonfinite_layer_backward_is_recorded(layer, mode):
    @tf.custom_gradient
    def breaks(z):
        return tf.identity(z), lambda upstream: upstream * np.float32(np.nan)

    def make():
        model = chain()
        model.layers[layer].activation = lambda z: breaks(z)
        return model

    read, *_ = measured_step(mode, make, X, Y)
    assert read.column("first_nonfinite_forward") == -1
    assert read.column("first_nonfinite_backward") == layer


def test_a_variable_without_a_gradient_does_not_hide_its_layer():
    @tf.custom_gradient
    def breaks(kernel):
        return tf.identity(kernel), lambda upstream: upstream * np.float32(np.nan)

    class WithUnused(keras.layers.Dense):
        def build(self, shape):
            super().build(shape)
            self.unused = self.add_weight(shape=(3,))

        def call(self, x):
            return x @ breaks(tf.convert_to_tensor(self.kernel))

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), WithUnused(2), keras.layers.Dense(1)])
    with tapescope.Probe(model).tape(True) as tape:
        loss = tf.reduce_mean(model(tf.ones([5, 4]), training=True))
    tape.gradient(loss, model.trainable_variables)
    assert tape.reading().column("first_nonfinite_backward") == 1


@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_replicas_have_the_reading_and_the_weights_of_one_device(replicas):
    """Ten steps of SGD with momentum on the same global batches."""

    def run(strategy):
        with strategy.scope():
            model, optimizer = chain(), keras.optimizers.SGD(0.1, 0.9)
            optimizer.build(model.trainable_variables)
        probe = tapescope.Probe(model)

        def step(x, y):
            with probe.tape(True) as tape:
                loss = squared_error(x, y, model, Y.size)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return tape.reading()

        count = strategy.num_replicas_in_sync
        whole = tf.function(lambda x, y: strategy.run(step, (x, y)))
        for n in range(10):
            parts = [np.split(np.roll(t, n, 1), count) for t in (X, Y)]
            x, y = (
                strategy.experimental_distribute_values_from_function(
                    lambda c, p=p: tf.constant(p[c.replica_id_in_sync_group])
                )
                for p in parts
            )
            reading = whole(x, y)
        return summaries.to_host(reading), [v.numpy() for v in model.trainable_variables]

    one, weights_of_one = run(tf.distribute.OneDeviceStrategy("CPU:0"))
    many, weights_of_many = run(mirrored(replicas))
    for a, b in zip(weights_of_one, weights_of_many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(many.variables[:-1], one.variables[:-1], rtol=1e-4)  # one device has no noise scale
    np.testing.assert_allclose(many.layers, one.layers, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(many.units, one.units, rtol=1e-4)
    for counts, expected in zip(many[5:7], one[5:7], strict=True):
        np.testing.assert_array_equal(counts.sum(1), expected.sum(1))
        assert np.abs(counts - expected).sum() <= 4  # rounding moves an element over a bin's edge
    assert one.replicas is None
    assert many.replicas.shape == (len(metadata.REPLICA_COLUMNS), replicas, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": "conv"}, "`layers` must match a layer's path; got 'conv', the layers are: layer0, layer1, layer2"),
        ({"layers": "("}, r"`layers` must be a valid regular expression; got '\(' \(missing \)"),
        ({"window_examples": 0}, "`window_examples` must be a positive number of examples; got 0"),
        ({"loss": "mze"}, "`loss` must be the name of a loss of Keras, .*; got 'mze': did you mean mse?"),
        ({"loss": ["mse", "crosentropy"]}, "`loss` must be the name of a loss of Keras, .*; got 'crosentropy'"),
        ({"model": "model"}, "`model` must be a Keras model, .*; got str"),
        (
            {"model": keras.Sequential([keras.Input((3,)), keras.layers.ReLU()])},
            "`model` must have a trainable variable; got none",
        ),
        ({"model": tf.Module()}, "got none: call a tf.Module that makes its variables at the first call once before"),
        (
            {"model": keras.Sequential},
            r"`model` must be a model; got the class Sequential: pass what Sequential\(...\) returns",
        ),
    ],
)
def test_probe_rejects_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tapescope.Probe(**({"model": chain()} | arguments))


def test_tape_rejects_a_tensor_as_measure():
    with pytest.raises(ValueError, match=r"`measure` must be a Python bool.*; got <tf\.Tensor"):
        tapescope.Probe(chain()).tape(tf.constant(True))


def test_gradient_must_follow_a_step():
    model = chain()
    with pytest.raises(ValueError, match=r"`tape\.gradient` must be called after a step"):
        tapescope.Probe(model).tape(True).gradient(tf.constant(1.0), model.trainable_variables)


def test_reading_must_follow_gradient():
    tape = tapescope.Probe(chain()).tape(True)
    with tape:
        pass
    with pytest.raises(ValueError, match=r"`tape.reading\(\)` must be called after `tape.gradient\(\)`"):
        tape.reading()


@pytest.mark.parametrize("as_list", [False, True])
def test_a_partial_of_all_replicas_is_refused(as_list):
    strategy = mirrored(2)
    with strategy.scope():
        model = chain()
        probe = tapescope.Probe(model)

    def step():
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(model(X))
        tape.gradient(loss, model.trainable_variables)
        return tape.partial()

    partial = tf.function(lambda: strategy.run(step))()
    with pytest.raises(ValueError, match="must be of one replica"):
        probe.reading([partial] if as_list else partial, model.trainable_variables)


def test_a_tape_cannot_be_used_for_two_steps():
    tape = measured_tape(chain())
    tape.reading()
    with pytest.raises(ValueError, match="a tape must be used for one step"), tape:
        pass


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("between", [False, True])
def test_a_tape_may_be_entered_again(in_graph, between):
    """`between`: a gradient is taken before the tape is entered again."""
    model = chain()
    probe = tapescope.Probe(model)

    def step():
        tape = probe.tape(True)
        with tape:
            outputs = model(X)
            loss = tf.reduce_sum(outputs)
        if between:
            tape.gradient(loss, model.trainable_variables)
            outputs = X
        with tape:
            loss = tf.reduce_sum(model(outputs) if between else tf.square(outputs))
        gradients = tape.gradient(loss, model.trainable_variables)
        return gradients, tape.reading()

    gradients, reading = (tf.function(step) if in_graph else step)()
    np.testing.assert_allclose(reading.column("gradient_norm"), [tf.norm(g) for g in gradients], rtol=1e-5)


def measured_tape(model):
    with tapescope.Probe(model).tape(True) as tape:
        loss = tf.reduce_sum(model(X))
    tape.gradient(loss, model.trainable_variables)
    return tape


@pytest.mark.parametrize("name", ["applied", "aggregated"])
def test_gradient_lists_must_be_whole(name):
    tape = measured_tape(chain())
    message = f"`{name}` must have an element for each of the 6 trainable variables; got 2"
    with pytest.raises(ValueError, match=message):
        tape.reading(**{name: [None, None]})


def test_column_rejects_an_unknown_name():
    reading = measured_tape(chain()).reading()
    with pytest.raises(ValueError, match="`name` must be a column of a reading; got 'norm', the columns are: gradient"):
        reading.column("norm")


def test_gradients_of_variables_of_other_models_are_passed_through():
    model = chain()
    stranger = keras.Variable([1.0], name="stranger")
    with tapescope.Probe(model).tape(True) as tape:
        loss = tf.reduce_sum(model(X)) * stranger
    gradients = tape.gradient(loss, [*model.trainable_variables, stranger])
    np.testing.assert_allclose(gradients[-1], [np.sum(model(X))], rtol=1e-5)
    assert tape.reading().column("gradient_norm").shape == [len(model.trainable_variables)]


def test_a_step_that_calls_fewer_layers_has_fewer_rows():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(2, name="b")])
    probe = tapescope.Probe(model)

    def measure(call):
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(call(X))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    assert measure(model).column("delta_norm").shape == [2]
    assert measure(model.layers[0]).column("delta_norm").shape == [1]


def count_calls(monkeypatch, module, name):
    """Replace a function by one that also notes its first argument; return the list of them."""
    arguments = []
    function = getattr(module, name)

    def counted(first, *args, **kwargs):
        arguments.append(first)
        return function(first, *args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return arguments


@pytest.mark.parametrize("replicas", [1, 2])
def test_each_gradient_is_made_ready_once(replicas, monkeypatch):
    """Also where it is passed again as `aggregated` and `applied`."""
    strategy = mirrored(2) if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        model = chain()
    probe = tapescope.Probe(model)
    dense = count_calls(monkeypatch, partials, "dense")
    isolated = count_calls(monkeypatch, graph_isolation, "gradient_to_measure")

    def in_replica():
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(tf.square(model(X)))
        gradients = tape.gradient(loss, model.trainable_variables)
        return tape.reading(applied=gradients)

    tf.function(lambda: strategy.run(in_replica)).get_concrete_function()
    deltas = 3 * 3 - 1  # the first layer's input has no gradient
    assert len(isolated) == 6 * replicas
    assert len([d for d in dense if d is not None]) == (6 + deltas) * replicas


def test_an_aggregated_gradient_spares_the_statistics_of_the_tapes_own(monkeypatch):
    model = chain()
    gradient_rows = count_calls(monkeypatch, partials.tensor_statistics, "gradient_rows")
    with tapescope.Probe(model).tape(True) as tape:
        loss = tf.reduce_sum(model(X))
    gradients = tape.gradient(loss, model.trainable_variables)
    tape.reading(aggregated=[2 * g for g in gradients])
    assert len(gradient_rows) == 1
    np.testing.assert_allclose(gradient_rows[0][0], 2 * gradients[0], rtol=1e-6)


def test_options_are_attributes():
    probe = tapescope.Probe(chain(), window_examples=8, histograms=False, exact=False)
    assert (probe.window_examples, probe.histograms, probe.exact) == (8, False, False)


def test_measuring_is_exact_by_default():
    assert tapescope.Probe(chain()).exact


@pytest.mark.parametrize("examples", [3, lambda shape: shape[1], lambda shape: tf.cast(shape[2] // 2, tf.int64)])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_number_of_examples_is_what_the_program_says(compiled, examples):
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(6, "relu"), keras.layers.Dense(1)])
    probe = tapescope.Probe(model, examples=examples)

    def step(x):
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    signature = [tf.TensorSpec([None, 3, 4])]
    reading = (tf.function(step, input_signature=signature) if compiled else step)(tf.ones([7, 3, 4]))
    assert float(reading.column("examples")) == 3


@pytest.mark.parametrize("examples", [0, -1, True, 2.0, "batch"])
def test_a_number_of_examples_that_cannot_be_is_refused(examples):
    with pytest.raises(
        ValueError, match=r"^`examples` must be a positive number, a function of a shape, or None; got "
    ):
        tapescope.Probe(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]), examples=examples)
