"""Models of tf_keras, which is Keras 2, in loops of their own: the same numbers as of the same model of Keras 3."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored

import tapescope
from tapescope.capture import activations, keras_kinds, objective

tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed")

# Of tf_keras 2.16 itself.
pytestmark = pytest.mark.filterwarnings("ignore:non-integer arguments to randrange:DeprecationWarning")

RNG = np.random.default_rng(0)
ROWS = RNG.random((16, 6), np.float32)
SERIES = RNG.random((8, 5, 6), np.float32)
IMAGES = RNG.random((8, 8, 8, 3), np.float32)


def dense(k):
    ks = k.layers
    return k.Sequential([k.Input((6,)), ks.Dense(8, "relu"), ks.Dense(8, "gelu"), ks.Dense(8, "elu"), ks.Dense(1)])


def late(k):
    return k.Sequential([k.layers.Dense(8, "sigmoid"), k.layers.Dense(1, "tanh")])


def convolutional(k):
    x = inputs = k.Input((8, 8, 3))
    x = k.layers.Conv2D(6, 3, use_bias=False)(x)
    x = k.layers.BatchNormalization(epsilon=1e-3)(x)
    x = k.layers.LeakyReLU(0.001)(x)
    x = k.layers.ReLU(max_value=1.0)(x)
    x = k.layers.GlobalAveragePooling2D()(x)
    return k.Model(inputs, k.layers.Dense(1, "softplus")(x))


def nested(k):
    class Block(k.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.parts = [k.layers.Dense(6, "selu", name=f"part_{i}") for i in range(2)]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    inputs = k.Input((6,))
    return k.Model(inputs, k.layers.Dense(1, name="top")(Block()(inputs)))


def recurrent(k):
    ks = k.layers
    return k.Sequential([k.Input((5, 6)), ks.Bidirectional(ks.LSTM(4, return_sequences=True)), ks.GRU(4), ks.Dense(1)])


MODELS = {"dense": (dense, ROWS), "late": (late, ROWS), "convolutional": (convolutional, IMAGES)}
MODELS |= {"nested": (nested, ROWS), "recurrent": (recurrent, SERIES)}


def readings(model, x, optimizer, weights=None, compiled=True):
    """Return a Probe and the readings of two steps."""
    probe = tapescope.Probe(model, strict=True)

    def step(measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - 1.0))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return tape.reading()

    if weights is not None:
        model(x)
        model.set_weights(weights)
    step = tf.function(step) if compiled else step
    return probe, [step(True) for _ in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_numbers_are_those_of_the_same_model_of_keras_3(name):
    build, x = MODELS[name]
    modern = build(keras)
    modern(x)
    weights = modern.get_weights()
    _, expected = readings(modern, x, keras.optimizers.SGD(0.1))
    probe, found = readings(build(tf_keras), x, tf_keras.optimizers.SGD(0.1), weights)
    assert not probe.skipped
    for column in ("gradient_norm", "update_ratio", "weight_norm", "activation_mean", "saturated", "delta_norm"):
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine.column(column), theirs.column(column), rtol=2e-4, atol=1e-6)
    assert probe._state.optimizer_called


def test_rows_have_the_names_of_tf_keras():
    probe, _ = readings(nested(tf_keras), ROWS, tf_keras.optimizers.SGD(0.1))
    assert probe.layers == ("block/part_0", "block/part_1", "top")
    assert probe.variables[:2] == ("block/part_0/kernel", "block/part_0/bias")


def final_weights(measured, optimizer, policy="float32", strategy=None, compiled=True, jit=None):
    """Return all weights after four steps."""
    tf_keras.utils.set_random_seed(1)
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        with strategy.scope() if strategy else contextlib.nullcontext():
            model, optimizer = dense(tf_keras), optimizer()
            if policy == "mixed_float16":
                optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
            probe = tapescope.Probe(model, strict=True)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    scales = policy == "mixed_float16"

    def replica_step(measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(model(ROWS, training=True), tf.float32) - 1.0))
            target = optimizer.get_scaled_loss(loss) if scales else loss
        gradients = tape.gradient(target, model.trainable_variables)
        if scales:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss, tape.reading()  # TensorFlow optimizes a step that returns nothing otherwise

    def step(measure):
        return strategy.run(replica_step, (measure,)) if strategy else replica_step(measure)

    step = tf.function(step, jit_compile=jit) if compiled else step
    for _ in range(4):
        step(measured)
    return [variable.numpy() for variable in model.variables]


OPTIONS = {
    "compiled": {},
    "eager": {"compiled": False},
    "xla": {"jit": True},
    "float16": {"policy": "mixed_float16"},
    "bfloat16": {"policy": "mixed_bfloat16"},
    "legacy": {"optimizer": lambda: tf_keras.optimizers.legacy.RMSprop(0.01)},
    "replicas": {"strategy": True},
    "replicas_legacy": {"strategy": True, "optimizer": lambda: tf_keras.optimizers.legacy.SGD(0.1)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_measured_step_trains_to_the_same_bits(options):
    options = {"optimizer": lambda: tf_keras.optimizers.Adam(0.01), **options}
    if options.get("strategy"):
        options["strategy"] = mirrored(2)
    plain, measured = (final_weights(m, **options) for m in (False, True))
    for a, b in zip(plain, measured, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["relu", "elu", "selu", "sigmoid", "tanh", "softplus", "softsign", "softmax"])
def test_a_function_is_described_as_that_of_keras_3(name):
    expected = activations.describe(getattr(keras.activations, name))
    assert activations.describe(getattr(tf_keras.activations, name)) == expected
    assert activations.describe_layer(tf_keras.layers.Activation(name)) == expected


@pytest.mark.parametrize("loss", ["MeanSquaredError", "BinaryCrossentropy", "SparseCategoricalCrossentropy"])
def test_a_loss_is_described_as_that_of_keras_3(loss):
    options = {} if loss == "MeanSquaredError" else {"from_logits": True}
    described = [objective.describe_loss(getattr(k.losses, loss)(**options)) for k in (keras, tf_keras)]
    assert described[0] == described[1]


def test_a_loss_function_is_described_as_that_of_keras_3():
    described = [objective.describe_loss(k.losses.binary_crossentropy) for k in (keras, tf_keras)]
    assert described[0] == described[1]


def test_a_softmax_of_one_unit_is_named(tmp_path):
    model = tf_keras.Sequential([tf_keras.Input((6,)), tf_keras.layers.Dense(1, "softmax")])
    loss_function = tf_keras.losses.BinaryCrossentropy()
    optimizer = tf_keras.optimizers.Adam(0.01)
    probe = tapescope.Probe(model, loss=loss_function, strict=True)
    y = (ROWS.sum(1, keepdims=True) > 3).astype(np.float32)
    with tapescope.Recorder(tmp_path, probe, tapescope.every(1)) as recorder:
        for n in range(8):
            with probe.tape(True) as tape:
                outputs = model(ROWS, training=True)
                loss = loss_function(y, outputs)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            recorder.write(n, tape.reading(targets=y, outputs=outputs), scalars={"loss": loss})
    assert "output_activation" in [finding["rule"] for finding in tapescope.Run(tmp_path).findings]


@pytest.mark.parametrize(
    "optimizer_class", [tf_keras.optimizers.Adam, tf_keras.optimizers.legacy.Adam], ids=("new", "legacy")
)
def test_a_captured_step_is_replayed(tmp_path, optimizer_class):
    x = RNG.normal(size=(40, 6)).astype(np.float32)
    x[29] *= 1e4
    batches = [np.arange(8) + n for n in range(7)] + [np.arange(24, 32)]

    def make_step():
        tf_keras.utils.set_random_seed(1)
        model, optimizer = dense(tf_keras), optimizer_class(1e-3)
        probe = tapescope.Probe(model, histograms=False)

        @tf.function
        def step(x, measure):
            with probe.tape(measure) as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - 1.0))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss, tape.reading()

        return probe, optimizer, step

    probe, optimizer, step = make_step()
    when = tapescope.every(1)
    with tapescope.Recorder(tmp_path, probe, when, capture="on_finding", optimizer=optimizer) as recorder:
        for n, index in enumerate(batches):
            loss, reading = step(tf.constant(x[index]), when(n))
            recorder.write(n, reading, scalars={"loss": loss}, batch=(x[index],), indices=index)
    _, _, step = make_step()
    found = tapescope.replay(tmp_path, 7, lambda batch: step(tf.constant(batch[0]), measure=True))
    assert found.reproduced
    assert found.examples[0].index == 29
    keeps_state = optimizer_class is tf_keras.optimizers.Adam
    assert (len(found.variants) == 3) == keeps_state, found.notes


def test_fit_of_tf_keras_refuses_a_monitor(tmp_path):
    model = dense(tf_keras)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"Monitor must be a callback of Keras 3's `fit`.*tapescope.Probe"):
        model.fit(ROWS, ROWS[:, :1], verbose=0, callbacks=[tapescope.Monitor(tmp_path)])


def test_classes_are_of_both():
    assert keras_kinds.layers("Dense") == (keras.layers.Dense, tf_keras.layers.Dense)
    assert keras_kinds.is_legacy(dense(tf_keras))
    assert not keras_kinds.is_legacy(dense(keras))
