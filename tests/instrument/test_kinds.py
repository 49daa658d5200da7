"""Every kind of model: its rows, the gradients that a plain tape gives, and their norms in float64."""

import inspect
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scripts.testbed.steps import measured

import tapescope

RNG = np.random.default_rng(4)
VECTORS = tf.constant(RNG.normal(size=[8, 4]), tf.float32)
SEQUENCES = tf.constant(RNG.normal(size=[4, 5, 4]), tf.float32)
TOKENS = tf.constant(RNG.integers(0, 6, [4, 5]), tf.int32)


def dense(units, name, activation=None):
    return layers.Dense(units, activation, name=name)


def sequential(shape, *stack, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *stack])


def many_inputs_and_outputs():
    left = keras.Input((4,), name="left")
    right = keras.Input((4,), name="right")
    joined = layers.concatenate([dense(3, "l", "relu")(left), dense(3, "r", "tanh")(right)])
    outputs = {"class": dense(2, "class", "softmax")(joined), "value": dense(1, "value")(joined)}
    return keras.Model([left, right], outputs)


def attention():
    inputs = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 3, name="mha")(inputs, inputs)
    return keras.Model(inputs, dense(2, "out")(layers.LayerNormalization()(layers.add([x, inputs]))))


def partly_frozen():
    model = sequential((4,), dense(3, "a", "relu"), dense(3, "b", "relu"), dense(2, "c"))
    model.layers[1].trainable = False
    return model


class Tied(keras.Model):
    """A model whose embedding is also the matrix of the output, as in language models."""

    def __init__(self):
        super().__init__()
        self.tokens = layers.Embedding(6, 4, name="tokens")
        self.hidden = dense(4, "hidden", "gelu")

    def call(self, x):
        return tf.matmul(self.hidden(self.tokens(x)), self.tokens.embeddings, transpose_b=True)


class Inner(layers.Layer):
    """A layer of layers, built at its first call, with an argument that is not a tensor and several outputs."""

    def build(self, shape):
        self.blocks = [dense(shape[-1], f"block_{i}", "elu") for i in range(2)]

    def call(self, x, scale, training=False):
        for block in self.blocks:
            x = block(x) * scale
        return x, {"last": x}


class Lazy(keras.Model):
    """A model whose layers are built at their first call."""

    def __init__(self):
        super().__init__()
        self.inner = Inner(name="inner")
        self.out = dense(1, "out")

    def call(self, x):
        return self.out(self.inner(x, scale=0.5)[0])


class Looped(keras.Model):
    """A model with a layer inside `tf.map_fn`, whose body is a graph of its own."""

    def __init__(self):
        super().__init__()
        self.inside = dense(3, "inside", "relu")
        self.out = dense(1, "out")

    def call(self, x):
        self.inside(x[:1])  # builds the layer
        mapped = tf.map_fn(lambda row: self.inside(row[None])[0], x, fn_output_signature=tf.float32)
        return self.out(mapped)


class Cell(layers.Layer):
    """A custom recurrent cell."""

    state_size = output_size = 3

    def build(self, shape):
        self.dense = dense(3, "both", "tanh")

    def call(self, x, states):
        new = self.dense(tf.concat([x, states[0]], axis=1))
        return new, [new]


class Gated(layers.Layer):
    """A residual branch that a scalar scales, as in ReZero."""

    def build(self, shape):
        self.gate = self.add_weight(shape=(), initializer="ones", name="gate")
        self.inside = dense(shape[-1], "inside", "relu")

    def call(self, x):
        return x + self.gate * self.inside(x)


class Mixture(keras.Model):
    """A mixture of experts; each gets a share of every example."""

    def __init__(self):
        super().__init__()
        self.experts = [dense(3, f"expert_{i}", "gelu") for i in range(2)]
        self.router = dense(2, "router", "softmax")
        self.out = dense(1, "out")

    def call(self, x):
        share = self.router(x)
        return self.out(tf.add_n([expert(x) * share[:, i, None] for i, expert in enumerate(self.experts)]))


class Rounded(keras.Model):
    """A model with a rounded code and a straight-through gradient."""

    def __init__(self):
        super().__init__()
        self.code = dense(3, "code", "tanh")
        self.out = dense(1, "out")

    def call(self, x):
        code = self.code(x)
        return self.out(code + tf.stop_gradient(tf.round(code) - code))


def adapted():
    """Return a model adapted by LoRA: the kernel is frozen and two thin matrices next to it are trained."""
    model = sequential((4,), dense(3, "a", "relu"), dense(2, "b"))
    model.layers[0].enable_lora(2)
    return model


# Keras before 3.7 calls a Softmax layer, newer versions one function for all of the attention.
SOFTMAX = () if "flash_attention" in inspect.signature(layers.MultiHeadAttention).parameters else ("mha/softmax",)
MHA = ("mha/query", "mha/key", "mha/value", *SOFTMAX, "mha/attention_output", "out")
KINDS = {
    "many": (many_inputs_and_outputs, [VECTORS, 2 * VECTORS], ("l", "r", "value", "class")),
    "attention": (attention, SEQUENCES, MHA),
    "lstm": (lambda: sequential((5, 4), layers.LSTM(3, name="lstm"), dense(1, "out")), SEQUENCES, ("lstm", "out")),
    "gru": (
        lambda: sequential((5, 4), layers.GRU(3, return_sequences=True, name="gru"), dense(1, "out")),
        SEQUENCES,
        ("gru", "out"),
    ),
    "bidirectional": (
        lambda: sequential((5, 4), layers.Bidirectional(layers.LSTM(3, name="rnn"), name="both"), dense(1, "out")),
        SEQUENCES,
        ("both/forward_rnn", "both/backward_rnn", "out"),
    ),
    "own_cell": (
        lambda: sequential((5, 4), layers.RNN(Cell(), name="rnn"), dense(1, "out")),
        SEQUENCES,
        ("rnn", "out"),
    ),
    "time_distributed": (
        lambda: sequential((5, 4), layers.TimeDistributed(dense(3, "d", "relu"), name="td"), dense(1, "out")),
        SEQUENCES,
        ("out",),
    ),
    "norm_and_dropout": (
        lambda: sequential(
            (4,), dense(6, "a", "relu"), layers.BatchNormalization(), layers.Dropout(0.5, seed=3), dense(1, "out")
        ),
        VECTORS,
        ("a", "out"),
    ),
    "embedding": (
        lambda: sequential((5,), layers.Embedding(6, 3), layers.Flatten(), dense(1, "out"), dtype="int32"),
        TOKENS,
        ("out",),
    ),
    "partly_frozen": (partly_frozen, VECTORS, ("a", "b", "c")),
    "tied": (Tied, TOKENS, ("hidden",)),
    "gated": (lambda: sequential((4,), Gated(name="gated"), dense(1, "out")), VECTORS, ("gated/inside", "out")),
    "mixture": (Mixture, VECTORS, ("router", "expert_0", "expert_1", "out")),
    "rounded": (Rounded, VECTORS, ("code", "out")),
    "adapted": (adapted, VECTORS, ("a", "b")),
    "lazy": (Lazy, VECTORS, ("inner/block_0", "inner/block_1", "out")),
}


def squares(outputs):
    return tf.add_n([tf.reduce_sum(tf.cast(out, tf.float32) ** 2) for out in tf.nest.flatten(outputs)])


def twins(make):
    """Yield two models with the same weights and the same state of the random generators."""
    for _ in range(2):
        keras.utils.set_random_seed(0)
        keras.backend.clear_session(free_memory=False)
        yield make()


class Comparison(NamedTuple):
    """A measured step of a model, and what a plain tape gives."""

    probe: tapescope.Probe
    model: keras.Model
    gradients: list
    reading: Any
    expected: list


def compare(make, x, compiled=True, **options):
    """Take a measured and a plain step of twins; `options` are those of `tf.function`."""
    model, twin = twins(make)
    for each in (model, twin):
        keras.utils.set_random_seed(1)
        each(x)
    probe = tapescope.Probe(model)

    def step():
        taken = measured(probe, lambda: squares(model(x, training=True)), model.trainable_variables)
        return taken.gradients, taken.reading

    def plain_step():
        with tf.GradientTape() as tape:
            loss = squares(twin(x, training=True))
        return tape.gradient(loss, twin.trainable_variables)

    if compiled:
        step = tf.function(step, **options)
        plain_step = tf.function(plain_step, **options)
    gradients, reading = step()
    return Comparison(probe=probe, model=model, gradients=gradients, reading=reading, expected=plain_step())


def assert_gradients_of_a_plain_tape(comparison):
    for gradient, other in zip(comparison.gradients, comparison.expected, strict=True):
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient), tf.convert_to_tensor(other))


def assert_gradient_norms(comparison):
    norms = [np.linalg.norm(np.asarray(tf.convert_to_tensor(g), np.float64)) for g in comparison.expected]
    np.testing.assert_allclose(comparison.reading.column("gradient_norm"), norms, rtol=1e-5)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """Return a comparison of eager steps, and the rows that the model should have."""
    make, x, rows = KINDS[request.param]
    return compare(make, x, compiled=False), rows


def test_each_kind_of_model_has_its_rows(kind):
    comparison, rows = kind
    assert comparison.probe.layers == rows


def test_each_kind_of_model_has_the_gradients_of_a_plain_tape(kind):
    comparison, _ = kind
    assert_gradients_of_a_plain_tape(comparison)


def test_gradient_norms_of_each_kind_of_model(kind):
    comparison, _ = kind
    assert_gradient_norms(comparison)


def test_every_row_of_each_kind_of_model_has_activations(kind):
    comparison, _ = kind
    assert np.all(np.isfinite(comparison.reading.column("activation_std")))


def test_a_variable_belongs_to_one_layer(kind):
    comparison, _ = kind
    variables = [v for layer in comparison.probe.names.layer_variables for v in layer]
    assert len(variables) == len(set(variables))


def test_every_trained_variable_has_a_column(kind):
    comparison, _ = kind
    assert len(comparison.probe.variables) == len(comparison.model.trainable_variables)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_readings_of_every_precision(dtype):
    def make():
        keras.utils.set_random_seed(0)
        return sequential((4,), dense(3, "a", "relu"), dense(2, "b"), dtype=None)

    keras.config.set_dtype_policy(dtype)
    try:
        model = make()
    finally:
        keras.config.set_dtype_policy("float32")
    reference = make()
    reference.set_weights([w.astype("float32") for w in model.get_weights()])
    reading, expected = (
        measured(tapescope.Probe(each), lambda each=each: squares(each(VECTORS)), each.trainable_variables).reading
        for each in (model, reference)
    )
    for column in ("gradient_norm", "gradient_max", "activation_mean", "activation_std", "delta_norm", "weight_norm"):
        np.testing.assert_allclose(
            reading.column(column), expected.column(column), rtol=0.05, atol=0.02, err_msg=column
        )


@pytest.fixture(scope="module")
def looped():
    return compare(Looped, VECTORS)


def test_a_layer_inside_a_loop_is_listed_with_the_reason(looped):
    assert "it runs inside a graph of its own (a loop's body" in looped.probe.skipped["inside"]


def test_a_layer_that_is_called_in_and_outside_a_loop_has_a_row(looped):
    assert looped.probe.layers == ("inside", "out")


def test_a_layer_inside_a_loop_has_the_gradients_of_a_plain_tape(looped):
    assert_gradients_of_a_plain_tape(looped)


@pytest.fixture(scope="module")
def xla():
    """Return a comparison of steps that XLA compiled, for a model of many kinds of layers."""

    def make():
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Embedding(6, 4)(inputs)
        x = layers.MultiHeadAttention(1, 2, name="mha")(x, x)
        x = layers.BatchNormalization()(layers.LSTM(3, name="lstm")(x))
        return keras.Model(inputs, dense(2, "out", "softmax")(layers.Dropout(0.2, seed=1)(x)))

    return compare(make, TOKENS, jit_compile=True)


@pytest.mark.slow
def test_under_xla_layers_have_their_rows(xla):
    assert xla.probe.layers == (*MHA[:-1], "lstm", "out")


@pytest.mark.slow
def test_under_xla_gradients_are_those_of_a_plain_tape(xla):
    assert_gradients_of_a_plain_tape(xla)


@pytest.mark.slow
def test_under_xla_gradient_norms_are_right(xla):
    assert_gradient_norms(xla)


def test_a_layer_frozen_between_steps_leaves_the_rows_of_its_variables():
    model = sequential((4,), dense(3, "a", "relu"), dense(2, "b"))
    probe = tapescope.Probe(model)
    measured(probe, lambda: squares(model(VECTORS)), model.trainable_variables)
    model.layers[0].trainable = False
    reading = measured(probe, lambda: squares(model(VECTORS)), model.trainable_variables).reading
    assert reading.column("gradient_norm").shape == [2]
    assert reading.column("delta_norm").shape == [2]
    assert [len(layout.names.variables) for layout in probe._state.layouts] == [4, 2]
