"""Every kind of model: the rows it has, the gradients that a plain tape would give, and their norms in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

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
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    both = layers.concatenate([dense(3, "l", "relu")(left), dense(3, "r", "tanh")(right)])
    return keras.Model([left, right], {"class": dense(2, "class", "softmax")(both), "value": dense(1, "value")(both)})


def attention():
    given = keras.Input((5, 4))
    x = layers.MultiHeadAttention(2, 3, name="mha")(given, given)
    return keras.Model(given, dense(2, "out")(layers.LayerNormalization()(layers.add([x, given]))))


def partly_frozen():
    model = sequential((4,), dense(3, "a", "relu"), dense(3, "b", "relu"), dense(2, "c"))
    model.layers[1].trainable = False
    return model


class Tied(keras.Model):
    """The embedding is the output's matrix too, as in language models."""

    def __init__(self):
        super().__init__()
        self.tokens, self.hidden = layers.Embedding(6, 4, name="tokens"), dense(4, "hidden", "gelu")

    def call(self, x):
        return tf.matmul(self.hidden(self.tokens(x)), self.tokens.embeddings, transpose_b=True)


class Inner(layers.Layer):
    """A layer of layers, built when it is first called, with an argument that is no tensor and several outputs."""

    def build(self, shape):
        self.blocks = [dense(shape[-1], f"block_{i}", "elu") for i in range(2)]

    def call(self, x, scale, training=False):
        for block in self.blocks:
            x = block(x) * scale
        return x, {"last": x}


class Lazy(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner, self.out = Inner(name="inner"), dense(1, "out")

    def call(self, x):
        return self.out(self.inner(x, scale=0.5)[0])


class Looped(keras.Model):
    """One layer runs inside a `tf.map_fn`, a graph of its own; one returns integers."""

    def __init__(self):
        super().__init__()
        self.inside, self.out = dense(3, "inside", "relu"), dense(1, "out")

    def call(self, x):
        self.inside(x[:1])  # builds it
        mapped = tf.map_fn(lambda row: self.inside(row[None])[0], x, fn_output_signature=tf.float32)
        return self.out(mapped)


class Cell(layers.Layer):
    """A recurrent cell of one's own."""

    state_size = output_size = 3

    def build(self, shape):
        self.both = dense(3, "both", "tanh")

    def call(self, x, states):
        new = self.both(tf.concat([x, states[0]], axis=1))
        return new, [new]


class Gated(layers.Layer):
    """As ReZero: a residual that a scalar opens."""

    def build(self, shape):
        self.gate = self.add_weight(shape=(), initializer="ones", name="gate")
        self.inside = dense(shape[-1], "inside", "relu")

    def call(self, x):
        return x + self.gate * self.inside(x)


class Mixture(keras.Model):
    """Of experts, each with a share of every example."""

    def __init__(self):
        super().__init__()
        self.experts = [dense(3, f"expert_{i}", "gelu") for i in range(2)]
        self.router, self.out = dense(2, "router", "softmax"), dense(1, "out")

    def call(self, x):
        share = self.router(x)
        return self.out(tf.add_n([expert(x) * share[:, i, None] for i, expert in enumerate(self.experts)]))


class Rounded(keras.Model):
    """What is rounded is passed straight through on the way back."""

    def __init__(self):
        super().__init__()
        self.code, self.out = dense(3, "code", "tanh"), dense(1, "out")

    def call(self, x):
        code = self.code(x)
        return self.out(code + tf.stop_gradient(tf.round(code) - code))


def adapted():
    """By LoRA: the kernel is frozen, two thin matrices beside it are trained."""
    model = sequential((4,), dense(3, "a", "relu"), dense(2, "b"))
    model.layers[0].enable_lora(2)
    return model


MHA = ("mha/query", "mha/key", "mha/value", "mha/attention_output", "out")
KINDS = {
    "many": (many_inputs_and_outputs, [VECTORS, 2 * VECTORS], ("l", "r", "value", "class")),
    "attention": (attention, SEQUENCES, MHA),
    "lstm": (lambda: sequential((5, 4), layers.LSTM(3, name="lstm"), dense(1, "out")), SEQUENCES, ("lstm", "out")),
    "gru": (
        lambda: sequential((5, 4), layers.GRU(3, return_sequences=True, name="gru"), dense(1, "out")),
        *(SEQUENCES, ("gru", "out")),
    ),
    "bidirectional": (
        lambda: sequential((5, 4), layers.Bidirectional(layers.LSTM(3, name="rnn"), name="both"), dense(1, "out")),
        *(SEQUENCES, ("both/forward_rnn", "both/backward_rnn", "out")),
    ),
    "own_cell": (lambda: sequential((5, 4), layers.RNN(Cell(), name="rnn"), dense(1, "out")), SEQUENCES, ("out",)),
    "time_distributed": (
        lambda: sequential((5, 4), layers.TimeDistributed(dense(3, "d", "relu"), name="td"), dense(1, "out")),
        *(SEQUENCES, ("out",)),
    ),
    "norm_and_dropout": (
        lambda: sequential(
            (4,), dense(6, "a", "relu"), layers.BatchNormalization(), layers.Dropout(0.5, seed=3), dense(1, "out")
        ),
        *(VECTORS, ("a", "out")),
    ),
    "embedding": (
        lambda: sequential((5,), layers.Embedding(6, 3), layers.Flatten(), dense(1, "out"), dtype="int32"),
        *(TOKENS, ("out",)),
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
    """Two models with the same weights and the same random numbers to come."""
    for _ in range(2):
        keras.utils.set_random_seed(0)
        keras.backend.clear_session()
        yield make()


def check(make, x, rows, compiled=True, **kwargs):
    mine, theirs = twins(make)
    for model in (mine, theirs):
        keras.utils.set_random_seed(1)
        model(x)
    probe = tapescope.Probe(mine)

    def step():
        with probe.tape(True) as tape:
            loss = squares(mine(x, training=True))
        return tape.gradient(loss, mine.trainable_variables), tape.reading()

    def plain_step():
        with tf.GradientTape() as tape:
            loss = squares(theirs(x, training=True))
        return tape.gradient(loss, theirs.trainable_variables)

    wrap = (lambda f: tf.function(f, **kwargs)) if compiled else (lambda f: f)
    (gradients, reading), expected = wrap(step)(), wrap(plain_step)()
    assert probe.layers == rows
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(tf.convert_to_tensor(gradient), tf.convert_to_tensor(other))
    norms = [np.linalg.norm(np.asarray(tf.convert_to_tensor(g), np.float64)) for g in expected]
    np.testing.assert_allclose(reading.column("gradient_norm"), norms, rtol=1e-5)
    return probe, reading, mine


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind):
    make, x, rows = KINDS[kind]
    probe, reading, model = check(make, x, rows, compiled=False)
    assert np.all(np.isfinite(reading.column("activation_std")))
    seen = [v for own in probe.names.layer_variables for v in own]
    assert len(seen) == len(set(seen))  # a variable is one layer's
    assert len(probe.variables) == len(model.trainable_variables)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_numbers_of_every_precision(dtype):
    def make():
        keras.utils.set_random_seed(0)
        return sequential((4,), dense(3, "a", "relu"), dense(2, "b"), dtype=None)

    keras.config.set_dtype_policy(dtype)
    try:
        model = make()
    finally:
        keras.config.set_dtype_policy("float32")
    exact = make()
    exact.set_weights([w.astype("float32") for w in model.get_weights()])
    found = []
    for one in (model, exact):
        probe = tapescope.Probe(one)
        with probe.tape(True) as tape:
            loss = squares(one(VECTORS))
        tape.gradient(loss, one.trainable_variables)
        found.append(tape.reading())
    for column in ("gradient_norm", "gradient_max", "activation_mean", "activation_std", "delta_norm", "weight_norm"):
        np.testing.assert_allclose(*(r.column(column) for r in found), rtol=0.05, atol=0.02, err_msg=column)


def test_what_a_loop_hides_is_listed_with_the_reason():
    probe, _, _ = check(Looped, VECTORS, ("inside", "out"))  # `inside` is also called once outside the loop
    assert "it runs inside a graph of its own (a loop's body" in probe.skipped["inside"]


def test_xla_compiles_a_measured_step_of_many_kinds_of_layers():
    def make():
        given = keras.Input((5,), dtype="int32")
        x = layers.Embedding(6, 4)(given)
        x = layers.MultiHeadAttention(1, 2, name="mha")(x, x)
        x = layers.BatchNormalization()(layers.LSTM(3, name="lstm")(x))
        return keras.Model(given, dense(2, "out", "softmax")(layers.Dropout(0.2, seed=1)(x)))

    check(make, TOKENS, (*MHA[:-1], "lstm", "out"), jit_compile=True)


def test_layers_frozen_between_steps_are_refused_with_the_cure():
    model = sequential((4,), dense(3, "a", "relu"), dense(2, "b"))
    probe = tapescope.Probe(model)

    def step():
        with probe.tape(True) as tape:
            loss = squares(model(VECTORS))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    step()
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match=r"a/bias, \S*a/kernel.*the model was changed.*make a new Probe"):
        step()
