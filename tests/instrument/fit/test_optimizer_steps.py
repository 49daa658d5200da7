"""When an optimizer changes weights, and what it makes of gradients, against what Keras' optimizers do."""

import types

import keras
import pytest
import tensorflow as tf

from tapescope.fit import optimizer_steps


def apply(optimizer, variable, gradients):
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer], ids=["plain", "loss_scale"])
def test_every_third_batch_updates_with_three_accumulation_steps(wrap):
    optimizer = wrap(keras.optimizers.SGD(gradient_accumulation_steps=3))
    variable = keras.Variable(1.0)
    optimizer.build([variable])
    updates = []
    for _ in range(6):
        updates.append(optimizer_steps.next_batch_updates(optimizer))
        apply(optimizer, variable, [1.0])
    assert updates == [False, False, True, False, False, True]


def test_every_batch_updates_without_accumulation():
    assert optimizer_steps.next_batch_updates(keras.optimizers.SGD())


def test_every_batch_updates_without_an_optimizer():
    assert optimizer_steps.next_batch_updates(None)


def test_an_execution_of_several_batches_updates():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    assert optimizer_steps.next_batch_updates(optimizer, steps_per_execution=4)


def test_accumulated_sums_are_those_since_the_last_update():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=3)
    variable = keras.Variable(1.0)
    optimizer.build([variable])
    apply(optimizer, variable, [1.0, 2.0, 3.0, 4.0])
    assert [float(total) for total in optimizer_steps.accumulated_sums(optimizer).values()] == [4]


def test_without_accumulation_there_are_no_sums():
    optimizer = keras.optimizers.SGD()
    optimizer.build([keras.Variable(1.0)])
    assert optimizer_steps.accumulated_sums(optimizer) == {}


def aggregated_and_applied(optimizer, sums=(), loss_scale=None):
    model = types.SimpleNamespace(optimizer=optimizer)
    variables = [keras.Variable([0.0, 0.0]), keras.Variable(0.0)]
    before = {id(variables[0]): tf.constant(total) for total in sums}
    gradients = [tf.constant([3.0, 4.0]), None]
    return optimizer_steps.aggregated_and_applied(model, before, variables, gradients, loss_scale)


def test_the_aggregated_gradient_is_the_mean_of_the_accumulated_batches():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    aggregated, _ = aggregated_and_applied(optimizer, [[1.0, 2.0]])
    assert aggregated[0].numpy().tolist() == [2, 3]


def test_the_aggregated_gradient_is_scaled_as_the_loss():
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=2)
    aggregated, _ = aggregated_and_applied(optimizer, [[1.0, 2.0]], loss_scale=10.0)
    assert aggregated[0].numpy().tolist() == [6.5, 12]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"clipnorm": 1.0}, [0.6, 0.8]), ({"global_clipnorm": 1.0}, [0.6, 0.8]), ({"clipvalue": 3.5}, [3, 3.5])],
    ids=str,
)
def test_the_applied_gradient_is_the_clipped_one(options, expected):
    _, applied = aggregated_and_applied(keras.optimizers.SGD(**options))
    assert applied[0].numpy() == pytest.approx(expected)
    assert applied[1] is None


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD(), None], ids=["SGD", "None"])
def test_without_accumulation_or_clipping_there_is_neither(optimizer):
    assert aggregated_and_applied(optimizer) == (None, None)


def test_each_optimizer_clips_the_variables_that_it_trains():
    first, second = keras.Variable([0.0, 0.0]), keras.Variable([0.0, 0.0])
    clipping, other = keras.optimizers.SGD(global_clipnorm=1.0), keras.optimizers.SGD()
    clipping.build([second])
    other.build([first])
    model = types.SimpleNamespace(optimizer=clipping, others={"first": other})
    gradients = [tf.constant([3.0, 4.0]), tf.constant([6.0, 8.0])]
    _, applied = optimizer_steps.aggregated_and_applied(model, {}, [first, second], gradients, None)
    assert applied[0].numpy() == pytest.approx([3, 4])
    assert applied[1].numpy() == pytest.approx([0.6, 0.8])


def test_optimizers_are_found_beside_a_tuple_of_layers():
    clipping = keras.optimizers.SGD(clipvalue=1.0)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile()
    model.branches = (keras.layers.Dense(1), keras.layers.Dense(1))
    model.optimizers = (clipping, keras.optimizers.SGD())
    variable = keras.Variable(0.0)
    clipping.build([variable])
    _, applied = optimizer_steps.aggregated_and_applied(model, {}, [variable], [tf.constant(5.0)], None)
    assert [float(g) for g in applied] == [1.0]


def test_an_optimizer_that_trains_nothing_clips_nothing():
    variable = keras.Variable([0.0, 0.0])
    used, unused = keras.optimizers.SGD(), keras.optimizers.SGD(global_clipnorm=1.0)
    used.build([variable])
    model = types.SimpleNamespace(optimizer=used, kept_for_later=unused)
    assert optimizer_steps.aggregated_and_applied(model, {}, [variable], [tf.constant([3.0, 4.0])], None) == (
        None,
        None,
    )


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="this Keras has no MultiOptimizer")
def test_each_optimizer_inside_of_a_multi_optimizer_clips_its_variables():
    first, second = keras.Variable(0.0, name="first"), keras.Variable(0.0, name="second")
    clipping, other = keras.optimizers.SGD(clipvalue=1.0), keras.optimizers.SGD()
    optimizer = keras.optimizers.MultiOptimizer(lambda v: clipping if v.name == "second" else other)
    optimizer.build([first, second])
    model = types.SimpleNamespace(optimizer=optimizer)
    _, applied = optimizer_steps.aggregated_and_applied(
        model, {}, variables=[first, second], gradients=[tf.constant(5.0), tf.constant(5.0)], loss_scale=None
    )
    assert [float(g) for g in applied] == [5.0, 1.0]
