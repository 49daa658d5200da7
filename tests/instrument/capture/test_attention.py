"""The attention heads and the residual stream of whole models, against a float64 oracle from the layers' weights."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import steps

import tapescope
from tapescope.capture import attention as capture
from tapescope.capture import private_api
from tapescope.statistics import attention
from tests.instrument import oracle

layers = keras.layers
TOKENS = 6
MULTI = functools.partial(layers.MultiHeadAttention, 3, 4, bias_initializer="normal")
GROUPED = functools.partial(layers.GroupQueryAttention, 4, 4, 2, bias_initializer="normal")
BAND = np.abs(np.subtract.outer(np.arange(TOKENS), np.arange(TOKENS))) < 3


def branches(dtype="float32") -> keras.Model:
    """Build attention of every kind, side by side on one embedding of ids, of which 0 is padding."""
    keras.utils.set_random_seed(3)
    ids = keras.Input((TOKENS,), dtype="int32")
    embedded = layers.Embedding(11, 12, mask_zero=True, embeddings_initializer="normal", name="embed", dtype=dtype)(ids)
    # One for each, because an attention layer of Keras 3.15 takes the mask off the tensor that it attends to.
    x, y, z = (layers.LayerNormalization(name=f"norm_{n}", dtype=dtype)(embedded) for n in range(3))
    bare = z * 1.0  # no layer: the mask is lost
    band = keras.ops.cast(ids[:, None, :] >= 0, "int32") * BAND.astype(np.int32)
    found = [
        MULTI(name="padded", dtype=dtype)(x, x),
        MULTI(name="padded_causal", dtype=dtype)(y, y, use_causal_mask=True),
        MULTI(name="lost", dtype=dtype)(bare, bare),
        MULTI(name="lost_causal", dtype=dtype)(bare, bare, use_causal_mask=True),
        MULTI(name="dropout_causal", dropout=0.2, dtype=dtype)(bare, bare, use_causal_mask=True),
        GROUPED(name="grouped", dtype=dtype)(bare, bare, use_causal_mask=True),
        MULTI(name="banded", dropout=0.1, dtype=dtype)(bare, bare, attention_mask=band),
        MULTI(name="cross", dtype=dtype)(bare[:, :4], z),
    ]
    pooled = [layers.GlobalAveragePooling1D()(y * 1.0) for y in found]
    return keras.Model(ids, layers.Dense(3, name="out", dtype="float32")(layers.Concatenate()(pooled)))


def ids_of(examples=6):
    ids = np.random.default_rng(5).integers(1, 11, [examples, TOKENS])
    ids[1::2, 4:] = 0
    return ids.astype(np.int32)


def loss(x, y, model, elements):
    return tf.reduce_sum(tf.square(model(x, training=True))) / elements


def expected_columns(weights, ids) -> dict[str, Any]:
    """Return the columns of every layer of `branches` for the examples that are looked at."""

    def weight(*parts):
        return next(w for path, w in weights.items() if all(part in path.split("/") for part in parts))

    x = oracle.layer_norm(weight("embed", "embeddings")[ids])
    causal = np.tril(np.ones([TOKENS, TOKENS], bool))[None, None]
    full = np.ones([1, 1, TOKENS, TOKENS], bool)
    in_use = ids != 0
    padded = in_use[:, None, None, :] & in_use[:, None, :, None]
    found = {}
    for layer, allowed in (
        *(("padded", padded), ("padded_causal", padded & causal), ("lost", full), ("lost_causal", causal)),
        *(("dropout_causal", causal), ("grouped", causal), ("banded", BAND[None, None])),
        ("cross", in_use[:, None, None, :] & full[:, :, :4]),
    ):
        query, key = (
            np.einsum("btc,cnd->btnd", x, weight(layer, part, "kernel")) + weight(layer, part, "bias")
            for part in ("query", "key")
        )
        if layer == "cross":
            query = query[:, :4]
        key = np.repeat(key, query.shape[2] // key.shape[2], axis=2)
        found[layer] = oracle.attention_columns(query, key, allowed, in_use, is_self=layer != "cross")
    return found


def assert_heads(reading, names, expected, rtol, atol):
    rows = [name.split("/head_") for name in names.heads]
    assert sorted(rows) == sorted([p, str(n)] for p, c in expected.items() for n in range(len(c["attention_entropy"])))
    for column, values in zip(attention.HEAD_COLUMNS, reading.heads, strict=True):
        wanted = [expected[path][column][int(n)] for path, n in rows]
        np.testing.assert_allclose(values, wanted, rtol=rtol, atol=atol, err_msg=column)


NIGHTLY = [pytest.mark.slow, pytest.mark.nightly]


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("eager", marks=pytest.mark.slow),
        pytest.param("function", marks=NIGHTLY),
        pytest.param("jit", marks=NIGHTLY),
        pytest.param("replicas", marks=pytest.mark.slow),
        pytest.param("jit_replicas", marks=NIGHTLY),
    ],
)
def test_columns_of_every_kind_of_attention_in_every_mode(mode):
    ids = ids_of(2 * attention.EXAMPLES + 2)
    reading, model, before, probe = steps.measured_step(mode, branches, ids, ids, loss=loss, strict=True)
    names = probe._state.names
    shares = np.split(ids, 2) if "replicas" in mode else [ids]
    used = np.concatenate([share[: attention.EXAMPLES] for share in shares])
    weights = {v.path: b.astype(np.float64) for v, b in zip(model.trainable_variables, before, strict=True)}
    expected = expected_columns(weights, used)
    assert_heads(reading, names, expected, rtol=2e-5, atol=2e-6)
    rms = np.sqrt(np.mean(weights["embed/embeddings"][used] ** 2))
    assert sorted(names.residual) == ["embed", "norm_0", "norm_1", "norm_2"]
    np.testing.assert_allclose(reading.residual, [[rms] * 4, [0] * 4], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_columns_of_half_precision(dtype):
    ids = ids_of()
    make = functools.partial(branches, dtype)
    reading, model, before, probe = steps.measured_step("function", make, ids, ids, loss=loss, strict=True)
    weights = {v.path: b.astype(np.float64) for v, b in zip(model.trainable_variables, before, strict=True)}
    expected = expected_columns(weights, ids[: attention.EXAMPLES])
    assert_heads(reading, probe._state.names, expected, rtol=0.05, atol=0.05)


def eager_step(model, x, **options):
    probe = tapescope.Probe(model, strict=True, **options)
    with probe.tape(True) as tape:
        value = tf.reduce_sum(tf.square(model(x, training=True)))
    tape.gradient(value, model.trainable_variables)
    return tape.reading(), probe._state.names


def attending(layer, **options):
    inputs = keras.Input((4, 8))
    return keras.Model(inputs, layers.Dense(2)(layer(inputs, inputs, **options)))


class Own(layers.MultiHeadAttention):
    """Attention that computes its logits in a way of its own."""

    def _compute_attention(self, query, key, value, *args, **kwargs):
        return value, None


class Bypassed(layers.MultiHeadAttention):
    """Attention that does without Keras'."""

    def call(self, query, value, key=None):
        return self._output_dense(self._query_dense(query))


class Twice(layers.MultiHeadAttention):
    """Attention that attends twice in one call."""

    def call(self, query, value, key=None):
        return super().call(super().call(query, value), value)


@pytest.mark.parametrize("kind", [Own, Bypassed])
def test_attention_of_the_users_own_is_not_measured_and_said_once(kind, caplog):
    capture._warn.cache_clear()
    model = attending(kind(2, 3, name=f"own_{kind.__name__}"))
    for _ in range(2):
        reading, names = eager_step(model, tf.ones([3, 4, 8]))
    assert names.heads == ()
    assert reading.heads.shape[-1] == 0
    assert caplog.text.count(f"the heads of own_{kind.__name__} are not measured") == 1


def test_a_layer_that_attends_twice_has_the_heads_of_both():
    _, names = eager_step(attending(Twice(2, 3, name="twice")), tf.random.normal([3, 4, 8]))
    assert names.heads == ("twice/head_0", "twice/head_1", "twice#2/head_0", "twice#2/head_1")


def test_queries_of_several_axes_are_not_measured_and_said(caplog):
    capture._warn.cache_clear()
    inputs = keras.Input((3, 4, 8))
    outputs = layers.MultiHeadAttention(2, 3, attention_axes=2, name="axial")(inputs, inputs)
    _, names = eager_step(keras.Model(inputs, outputs), tf.ones([2, 3, 4, 8]))
    assert names.heads == ()
    assert "the heads of axial are not measured: its queries have more than one axis" in caplog.text


def test_without_kerass_method_no_head_is_measured_and_that_is_said_once(caplog, monkeypatch):
    capture._warn.cache_clear()
    private_api._warn.cache_clear()
    monkeypatch.setattr(private_api, "ATTENTION_METHODS", ("_renamed", "_also_renamed"))
    for _ in range(2):
        _, names = eager_step(attending(layers.MultiHeadAttention(2, 3)), tf.ones([3, 4, 8]))
    assert names.heads == ()
    assert caplog.text.count("this version of TensorFlow or Keras has no `MultiHeadAttention._renamed`") == 1


def test_a_layer_is_as_it_was_after_its_call():
    layer = layers.MultiHeadAttention(2, 3)
    model = attending(layer)
    before = dict(layer.__dict__)
    eager_step(model, tf.ones([3, 4, 8]))
    assert layer.__dict__ == before


def test_a_function_that_the_user_has_put_into_a_layer_stays():
    layer = layers.MultiHeadAttention(2, 3, name="patched")
    model = attending(layer)
    calls = []

    def own(query, key, value, *args, **kwargs):
        calls.append(query)
        return value, None

    layer.__dict__["_compute_attention"] = own
    _, names = eager_step(model, tf.ones([3, 4, 8]))
    assert len(calls) == 1
    assert layer.__dict__["_compute_attention"] is own
    assert names.heads == ()


def test_attention_is_computed_as_often_as_the_step_does(monkeypatch):
    model = attending(layers.MultiHeadAttention(2, 3))
    calls = []
    original = layers.MultiHeadAttention._compute_attention

    @functools.wraps(original)
    def counted(self, *args, **kwargs):
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(layers.MultiHeadAttention, "_compute_attention", counted)
    _, names = eager_step(model, tf.ones([3, 4, 8]))
    assert len(calls) == 1
    assert len(names.heads) == 2


def test_a_mask_that_is_a_constant_from_outside_of_the_graph():
    class Masked(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention = layers.MultiHeadAttention(2, 3, dropout=0.1)
            self.allowed = tf.constant([[[True, False, False, False]] * 4])

        def call(self, x):
            return self.attention(x, x, attention_mask=self.allowed)

    model = Masked()
    model(tf.ones([3, 4, 8]))
    reading = tf.function(lambda x: eager_step(model, x)[0])(tf.ones([3, 4, 8]))
    columns = steps.summaries.to_host(reading).heads
    assert columns.shape == (len(attention.HEAD_COLUMNS), 2)
    assert np.isfinite(columns[0]).all()
    assert np.isnan(columns[1]).all()  # one key each


def test_a_pattern_chooses_heads_as_it_chooses_layers():
    inputs = keras.Input((4, 8))
    x = layers.MultiHeadAttention(2, 3, name="one")(inputs, inputs)
    x = layers.MultiHeadAttention(2, 3, name="two")(x, x)
    _, names = eager_step(keras.Model(inputs, x), tf.ones([3, 4, 8]), layers="two")
    assert names.heads == ("two/head_0", "two/head_1")


def test_a_model_without_attention_has_no_residual_stream():
    model = keras.Sequential([keras.Input((4,)), layers.LayerNormalization(), layers.Dense(2)])
    _, names = eager_step(model, tf.ones([3, 4]))
    assert (names.heads, names.residual) == ((), ())


def test_the_heads_of_a_gan_are_of_the_pass_that_trains_them():
    """The generator's loss goes through the discriminator's attention, which it does not train."""
    models = [attending(layers.MultiHeadAttention(2, 3, name=name)) for name in ("generate", "judge")]
    probe = tapescope.Probe(models, strict=True)
    generator, judge = models
    tapes = []
    for trained in models:
        with probe.tape(True) as tape:
            made = tf.pad(generator(tf.ones([3, 4, 8])), [[0, 0], [0, 0], [0, 6]])
            value = tf.reduce_sum(judge(made if trained is generator else 2 * made))
        tape.gradient(value, trained.trainable_variables)
        tapes.append(tape)
    tapes[0].reading(tapes[1])
    assert [name.partition("/")[2] for name in probe._state.names.heads] == [
        *("generate/head_0", "generate/head_1", "judge/head_0", "judge/head_1")
    ]
    merged = tapes[0]._merged_pass(tapes[1:])
    assert [
        c.query is tapes[1]._passes[0].attention[-1].query for c in merged.attention if c.name.endswith("judge")
    ] == [True]


def test_the_heads_of_a_persistent_tape_are_measured_once():
    model = attending(layers.MultiHeadAttention(2, 3, name="mha"))
    probe = tapescope.Probe(model, strict=True)
    with probe.tape(True, persistent=True) as tape:
        value = tf.reduce_sum(model(tf.ones([3, 4, 8])))
    for _ in range(2):
        tape.gradient(value, model.trainable_variables)
    tape.reading()
    assert probe._state.names.heads == ("mha/head_0", "mha/head_1")
