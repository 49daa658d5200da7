"""Stacking, sorting, and the choice between fast and exact path."""

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import batched_ops
from tapescope.statistics.batched_ops import MAX_GROUP_SIZE, MAX_STACKED_SIZE, SAMPLE_BLOCK


def indices_of(tensors, **options):
    """Return which outputs of layers are stacked."""
    return [group.indices for group in batched_ops.group_by_shape(tensors, keep_units=True, **options)]


def test_small_tensors_of_one_shape_are_stacked():
    assert indices_of([tf.zeros([3, 1]), tf.zeros([4, 1]), tf.zeros([3, 1])]) == [(1,), (0, 2)]


def test_tensors_other_than_outputs_are_not_stacked_on_a_gpu(platform):
    groups = batched_ops.group_by_shape([tf.zeros([3]), tf.zeros([4]), tf.zeros([3])])
    assert [group.indices for group in groups] == {"cpu": [(1,), (0, 2)], "gpu": [(0,), (1,), (2,)]}[platform]


def test_large_tensors_come_first_and_alone():
    large = tf.zeros([4 * MAX_STACKED_SIZE, 1])
    assert indices_of([tf.zeros([3, 1]), large, tf.zeros([3, 1]), large]) == [(1,), (3,), (0, 2)]


def test_tensors_with_different_keys_are_not_stacked():
    assert indices_of([tf.zeros([3, 1]), tf.zeros([3, 1])], keys=["a", "b"]) == [(0,), (1,)]


def test_tensors_of_unknown_size_are_not_stacked():
    found = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2])] * 2)
    def step(x, y):
        found.extend(indices_of([x, y]))
        return x

    step.get_concrete_function()
    assert found == [(0,), (1,)]


def test_a_group_has_a_largest_size():
    count = MAX_GROUP_SIZE // MAX_STACKED_SIZE + 1
    sizes = [len(indices) for indices in indices_of([tf.zeros([MAX_STACKED_SIZE, 1])] * count)]
    assert sorted(sizes) == [1, count - 1]


@pytest.mark.parametrize("size", [401_408, 262_144, 524_288, 98_304, 98_353, 3 * 5 * 7 * 11 * 13 * 100, 10**7])
def test_the_sampling_stride_does_not_divide_the_size(size):
    (group,) = batched_ops.group_by_shape([tf.zeros([size])])
    assert np.gcd(size, group.stride) == 1


def test_large_tensors_are_sampled(platform):
    (group,) = batched_ops.group_by_shape([tf.zeros([10**6])])
    assert group.stride == {"cpu": 13, "gpu": 113}[platform]


def test_tensors_below_the_limit_are_not_sampled():
    (group,) = batched_ops.group_by_shape([tf.zeros([3 * (batched_ops.least_sample() + SAMPLE_BLOCK) - 1])])
    assert group.stride == 1


def test_columns_are_sorted_back_to_the_order_of_the_tensors():
    tensors = [tf.fill([size], float(i)) for i, size in enumerate((3, 4, 3, 4, 2))]
    groups = batched_ops.group_by_shape(tensors)
    means = [tf.reduce_mean(g.tensor, 1 if g.stacked else 0) for g in groups]
    rows = batched_ops.concat_parts(means, groups)[None]
    np.testing.assert_array_equal(batched_ops.restore_order(rows, groups), [[0, 1, 2, 3, 4]])


def test_columns_are_repeated_for_equal_tensors_and_filled_for_absent_ones():
    x = tf.zeros([1])
    y = tf.zeros([1])
    rows = batched_ops.expand_columns(tf.constant([[1.0, 2.0]]), [x, None, y, x], absent=-1.0)
    np.testing.assert_array_equal(rows, [[1, -1, 2, 1]])


def test_equal_constants_are_one_node():
    with tf.Graph().as_default():
        assert batched_ops.constant([1, 2]) is batched_ops.constant((1, 2))


def test_constants_of_another_dtype_are_another_node():
    with tf.Graph().as_default():
        assert batched_ops.constant([1, 2]) is not batched_ops.constant([1, 2], tf.uint32)


def _negative_sum(x):
    """Return what no fast path returns, to see which path was taken: [n, N] to [1, n]."""
    return (-tf.reduce_sum(x, 1)[None],)


@pytest.mark.parametrize("run", [lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)])
@pytest.mark.parametrize(("valid", "expected"), [([True, True], [2, 3]), ([True, False], [-2, -3])])
def test_one_invalid_tensor_makes_its_chunk_take_the_exact_path(run, valid, expected):
    def reduce(valid):
        groups = batched_ops.group_by_shape([tf.ones([2]), tf.ones([3])])
        fast = tf.constant([[2.0, 3.0]])
        (rows,) = batched_ops.with_exact_fallback(valid, [fast], groups, _negative_sum)
        return rows

    np.testing.assert_array_equal(run(reduce)(tf.constant(valid)), [expected])


def test_chunks_hold_all_groups_in_order():
    groups = batched_ops.group_by_shape([tf.zeros([size]) for size in range(1, 40)])
    chunks = list(batched_ops.chunks(groups))
    assert [len(chunk) for chunk in chunks] == [16, 16, 7]
    assert [group for chunk in chunks for group in chunk] == groups


def test_another_platform_is_refused(monkeypatch):
    monkeypatch.setenv(batched_ops.PLATFORM_VARIABLE, "tpu")
    with pytest.raises(ValueError, match="TAPESCOPE_PLATFORM must be `cpu` or `gpu`; got 'tpu'"):
        batched_ops.for_gpu()


def test_a_machine_without_a_gpu_is_not_lowered_for_one(monkeypatch):
    monkeypatch.delenv(batched_ops.PLATFORM_VARIABLE)
    assert not batched_ops.for_gpu()


def test_constants_do_not_keep_their_graph():
    @tf.function
    def double(x):
        first, second = (batched_ops.constant([2.0, 2.0]) for _ in range(2))
        assert first is second
        return x * first

    double(tf.ones([2]))
    graph = weakref.ref(double.get_concrete_function(tf.ones([2])).graph)
    del double
    gc.collect()
    assert graph() is None
