"""Statistics of attention heads and of the residual stream against a float64 oracle."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import attention
from tapescope.statistics.reductions import run
from tests.instrument import oracle

COLUMNS = {name: column for column, name in enumerate(attention.HEAD_COLUMNS)}


def call_of(query, key=None, **fields):
    known = {
        "mask": None,
        "is_causal": False,
        "keys_in_use": (),
        "is_self": key is None,
        "scale": query.shape[3] ** -0.5,
    }
    key = query if key is None else key
    tensors = {"query": tf.convert_to_tensor(query), "key": tf.convert_to_tensor(key)}
    return attention.AttentionCall(name="a", layer=None, number=0, **{**tensors, **known, **fields})


def columns_of(*calls):
    return attention.head_columns(attention.head_rows(calls).numpy()[None])


def assert_columns(actual, expected, rtol=1e-5):
    for name, column in COLUMNS.items():
        np.testing.assert_allclose(actual[column], expected[name], rtol=rtol, atol=1e-6, err_msg=name)


def random(*shape, scale=1.0):
    return np.random.default_rng(sum(shape)).normal(0, scale, shape).astype(np.float32)


def causal(tokens):
    return np.tril(np.ones([tokens, tokens], bool))[None, None]


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_masks_of_any_rank_and_type(rank):
    query = random(3, 5, 2, 4)
    band = (np.abs(np.subtract.outer(np.arange(5), np.arange(5))) < 2).astype(np.float32)
    mask = {2: band, 3: np.stack([band] * 3), 4: np.stack([band, 1 - band, band * 0 + 1])[:, None]}[rank]
    allowed = mask.reshape([-1, 1, 5, 5]).astype(bool)
    assert_columns(columns_of(call_of(query, mask=tf.constant(mask))), oracle.attention_columns(query, query, allowed))


def test_a_mask_of_heads_and_a_causal_one():
    query = random(2, 6, 2, 4)
    mask = np.random.default_rng(0).random([2, 2, 6, 6]) < 0.8
    actual = columns_of(call_of(query, mask=tf.constant(mask), is_causal=True))
    assert_columns(actual, oracle.attention_columns(query, query, mask & causal(6)))


def test_heads_that_share_a_key():
    query = random(2, 5, 6, 4)
    key = random(2, 5, 2, 4)
    actual = columns_of(call_of(query, key))
    repeated = np.repeat(key, 3, axis=2)
    assert_columns(actual, oracle.attention_columns(query, repeated, np.ones([1, 1, 5, 5], bool)))


@pytest.mark.parametrize("tokens", [attention.QUERIES + 1, 3 * attention.QUERIES - 5])
def test_long_sequences_are_sampled_evenly(tokens):
    query = random(attention.EXAMPLES + 3, tokens, 2, 4)
    in_use = np.arange(tokens) < np.array([[tokens], [tokens - 3], [9], [2]])
    masks = (tf.constant(np.concatenate([in_use, in_use])[: len(query)]),)
    actual = columns_of(call_of(query, is_causal=True, keys_in_use=masks))
    stride = -(-tokens // attention.QUERIES)
    first = query[: attention.EXAMPLES]
    expected = oracle.attention_columns(first[:, ::stride], first, causal(tokens)[:, :, ::stride], in_use)
    assert_columns(actual, expected)


def test_sizes_that_are_not_known_before_the_step_runs():
    @tf.function(
        input_signature=[tf.TensorSpec([None, None, 2, 4]), tf.TensorSpec(None, tf.bool), tf.TensorSpec([None, None])]
    )
    def rows(query, mask, in_use):
        mask = tf.ensure_shape(mask, [None, None, None])
        call = call_of(np.zeros([1, 1, 1, 4], np.float32), mask=mask, is_causal=True)
        call = call._replace(query=query, key=query, keys_in_use=(in_use,))
        return attention.head_rows([call])

    for examples, tokens in ((2, 5), (attention.EXAMPLES + 1, attention.QUERIES + 6)):
        query = random(examples, tokens, 2, 4)
        in_use = np.arange(tokens) < np.arange(tokens, tokens - examples, -1)[:, None]
        actual = attention.head_columns(rows(query, in_use[:, None, :], in_use.astype(np.float32)).numpy())
        stride = -(-tokens // attention.QUERIES)
        used = slice(None, attention.EXAMPLES)
        allowed = in_use[used, None, None, :] & causal(tokens)[:, :, ::stride]
        assert_columns(actual, oracle.attention_columns(query[used, ::stride], query[used], allowed, in_use[used]))


def test_heads_under_xla():
    query = random(2, 6, 2, 4)
    in_use = np.arange(6) < np.array([[6], [4]])
    rows = tf.function(
        lambda q: attention.head_rows([call_of(q, is_causal=True, keys_in_use=(in_use,))]), jit_compile=True
    )
    actual = attention.head_columns(rows(query).numpy())
    assert_columns(actual, oracle.attention_columns(query, query, causal(6), in_use))


def test_the_first_token_behind_padding_at_the_left():
    query = random(2, 6, 2, 4)
    in_use = np.arange(6) >= np.array([[0], [3]])
    allowed = causal(6) & in_use[:, None, None, :]
    actual = columns_of(call_of(query, mask=tf.constant(in_use[:, None, :]), is_causal=True, keys_in_use=(in_use,)))
    assert_columns(actual, oracle.attention_columns(query, query, allowed, in_use))


def test_masks_of_value_and_of_key_say_together_what_is_padding():
    query = random(1, 4, 1, 2)
    masks = np.array([[[True, True, False, True]], [[True, True, True, False]]])
    actual = columns_of(call_of(query, keys_in_use=tuple(map(tf.constant, masks))))
    expected = oracle.attention_columns(query, query, np.ones([1, 1, 4, 4], bool), masks.all(0))
    assert_columns(actual, expected)


def test_a_mask_of_another_number_of_examples_says_nothing_of_padding():
    mask = tf.constant([[True, False, True]])
    columns = columns_of(call_of(np.ones([2, 3, 2, 4], np.float32), keys_in_use=(mask,)))
    assert np.isnan(columns[COLUMNS["attention_padding"]]).all()
    np.testing.assert_allclose(columns[COLUMNS["attention_first"]], 1 / 3, rtol=1e-6)


def test_logits_that_are_not_finite_are_counted_and_their_queries_left_out():
    query, key = random(2, 2, 5, 2, 4)
    query[0, 1, 0] = np.nan
    key[1, 3, 1] = np.inf
    actual = columns_of(call_of(query, key, is_causal=True))
    assert_columns(actual, oracle.attention_columns(query, key, causal(5)))
    assert actual[COLUMNS["attention_nonfinite"]].tolist() == [2, 2]


def test_huge_and_tiny_logits_have_an_entropy():
    query = np.zeros([1, 3, 2, 1], np.float32)
    query[0, :, 0, 0] = [1e18, 2e18, -1e18]
    query[0, :, 1, 0] = [1e-25, 2e-25, 0]
    actual = columns_of(call_of(query))
    np.testing.assert_allclose(actual[COLUMNS["attention_entropy"]], [0, 1], atol=1e-6)
    np.testing.assert_allclose(actual[COLUMNS["attention_logit_max"]], [4e36, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_logits_beyond_float16_are_computed_in_float32(dtype):
    query = tf.cast(tf.fill([1, 2, 1, 4], 256.0), dtype)
    columns = columns_of(call_of(query))
    np.testing.assert_allclose(columns[COLUMNS["attention_logit_max"]], 131072.0)
    np.testing.assert_allclose(columns[COLUMNS["attention_entropy"]], 1.0)


def test_a_head_of_one_token_has_a_logit_and_nothing_else():
    columns = columns_of(call_of(np.ones([3, 1, 2, 4], np.float32)))
    assert columns[COLUMNS["attention_logit_max"]].tolist() == [2, 2]
    assert np.isnan(columns[COLUMNS["attention_entropy"]]).all()


def test_an_empty_batch_has_no_numbers():
    columns = columns_of(call_of(np.ones([0, 3, 2, 4], np.float32)))
    assert np.isnan(columns[: len(COLUMNS) - 1]).all()


def test_heads_stay_in_the_order_of_calls_where_layers_of_equal_shape_are_reduced_together():
    calls = [call_of(random(2, tokens, 2, 4, scale=n + 1)) for n, tokens in enumerate((3, 5, 3, 5))]
    together = attention.head_rows(calls).numpy()
    alone = [attention.head_rows([call]).numpy() for call in calls]
    np.testing.assert_allclose(together, np.concatenate(alone, 1), rtol=1e-6)


def test_layers_of_many_logits_are_reduced_alone(monkeypatch):
    calls = [call_of(random(2, 5, 2, 4, scale=n + 1)) for n in range(5)]
    together = attention.head_rows(calls).numpy()
    monkeypatch.setattr(attention, "MAX_GROUP_SIZE", 2 * 2 * 5 * 5 * 2)
    sizes = []
    reduce = attention._group_rows
    monkeypatch.setattr(attention, "_group_rows", lambda group: sizes.append(len(group)) or reduce(group))
    np.testing.assert_allclose(attention.head_rows(calls).numpy(), together, rtol=1e-6)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("known", [True, False])
def test_many_keys_leave_fewer_queries(monkeypatch, known):
    monkeypatch.setattr(attention, "MAX_LOGITS", attention.EXAMPLES * 2 * 30 * 10)
    query = random(2, 30, 2, 4)
    signature = [tf.TensorSpec([2, 30, 2, 4] if known else [None, None, 2, 4])]
    rows = tf.function(lambda q: attention.head_rows([call_of(q, is_causal=True)]), input_signature=signature)(query)
    expected = oracle.attention_columns(query[:, ::3], query, causal(30)[:, :, ::3])
    assert_columns(attention.head_columns(rows.numpy()), expected)


def test_parts_of_the_batch_are_weighted_by_their_queries():
    query = random(4, 5, 2, 3)
    masks = tf.constant(np.arange(5)[None, :] < np.array([5, 2, 3, 4])[:, None])
    whole = columns_of(call_of(query, mask=masks[:, None]))
    parts = [attention.head_rows([call_of(query[i : i + 1], mask=masks[i : i + 1, None])]).numpy() for i in range(4)]
    of_replicas_and_small_batches = np.stack([np.stack(parts[:2]), np.stack(parts[2:])])
    np.testing.assert_allclose(attention.head_columns(of_replicas_and_small_batches), whole, rtol=1e-5)


def test_the_residual_stream_of_extreme_numbers():
    shapes = ([2, 5, 8], [9, 2], [2, 5, 8])
    tensors = [random(*shape, scale=scale) for scale, shape in zip((1e30, 1e-30, 1), shapes, strict=True)]
    tensors[2][0, 1, 2] = np.nan
    used = [t[: attention.EXAMPLES].astype(np.float64) for t in tensors]
    rows = run(attention.residual_rows([tf.constant(t) for t in tensors])).numpy()
    actual = attention.residual_columns(np.stack([rows, rows]))
    np.testing.assert_allclose(actual[0], [np.sqrt(np.nanmean(t**2)) for t in used], rtol=1e-5)
    assert actual[1].tolist() == [0, 0, 2]
