"""Keras' issues under replicas, and the loop's remedies: four replicas against one device, or a closed form.

Clipping, and overflow on one replica only, are in test_step.py.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored

import tapescope
from tapescope_trainers.training import step

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(4)
X = RNG.normal(3, 2, size=[64, 5]).astype(np.float32)
Y = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 64)]


def trained(layer, replicas: int, steps: int = 5, make_optimizer=lambda: keras.optimizers.SGD(0.1), **options):
    """Train a small network with this layer for some steps of the trainers' loop."""
    keras.utils.set_random_seed(1)
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        layers = [keras.Input((5,)), keras.layers.Dense(8, "tanh"), layer(), keras.layers.Dense(3, "softmax")]
        model = keras.Sequential(layers)
        optimizer = make_optimizer()
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, histograms=False)
    train_step = step.make(model, optimizer, probe, strategy, batch_size=64, **options)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(64, drop_remainder=True).repeat()
    batches = iter(strategy.experimental_distribute_dataset(dataset))
    for _ in range(steps):
        train_step(*next(batches), False)
    return model


def assert_same_weights(actual, expected):
    for a, b in zip(actual.weights, expected.weights, strict=True):
        assert np.linalg.norm(a.numpy() - b.numpy()) <= 1e-4 * np.linalg.norm(b.numpy()) + 1e-7, a.path


def test_synchronized_batch_norm_has_the_statistics_of_the_whole_batch():
    def layer():
        return keras.layers.BatchNormalization(synchronized=True)

    assert_same_weights(trained(layer, 4), trained(layer, 1))


def test_batch_norm_without_synchronization_is_refused():
    with pytest.raises(ValueError, match=r"with 4 replicas .*batch_normalization.* pass synchronized=True"):
        trained(keras.layers.BatchNormalization, 4)
    trained(keras.layers.BatchNormalization, 1, steps=1)


def masks(*, prepare: bool) -> list[np.ndarray]:
    """Return the dropout mask of each of four replicas, with or without the trainers' preparation."""
    strategy = mirrored(4)
    with strategy.scope():
        model = keras.Sequential([keras.Input((50,)), keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.1)
    if prepare:
        step.make(model, optimizer, tapescope.Probe(model), strategy, batch_size=4)
    dropout = model.layers[0]
    drawn = tf.function(lambda: strategy.run(lambda: dropout(tf.ones([2, 50]), training=True)))()
    return [np.asarray(mask) for mask in strategy.experimental_local_results(drawn)]


def test_in_keras_all_replicas_have_the_same_dropout_mask():
    first, *others = masks(prepare=False)
    assert all(np.array_equal(mask, first) for mask in others)


def test_every_replica_has_its_own_dropout_mask():
    ours = masks(prepare=True)
    assert len({mask.tobytes() for mask in ours}) == 4
    assert 0.35 < np.mean(ours) / 2 < 0.65


def test_the_first_replica_has_the_dropout_mask_of_one_device():
    np.testing.assert_array_equal(masks(prepare=True)[0], masks(prepare=False)[0])


def test_dropout_masks_of_replicas_are_independent():
    """The mean over many draws of a dropped-out sum of ones is the sum; its variance is that of independent masks."""
    strategy = mirrored(4)
    with strategy.scope():
        model = keras.Sequential([keras.Input((20,)), keras.layers.Dropout(0.5, seed=5), keras.layers.Dense(1)])
    step.make(model, keras.optimizers.SGD(0.1), tapescope.Probe(model), strategy, batch_size=4)
    dropout = model.layers[0]

    @tf.function
    def total():
        sums = strategy.run(lambda: tf.reduce_sum(dropout(tf.ones([1, 20]), training=True)))
        return strategy.reduce("SUM", sums, axis=None)

    sums = np.array([total().numpy() for _ in range(300)])
    assert sums.mean() == pytest.approx(80, abs=4 * np.sqrt(80 / 300))
    assert sums.var() == pytest.approx(80, rel=0.35)  # identical masks: 4 times as much


def relu():
    return keras.layers.Activation("relu")


@pytest.mark.parametrize("setting", [{"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.01}])
def test_an_optimizer_that_clips_before_the_sum_is_refused(setting):
    with pytest.raises(ValueError, match=f"with 2 replicas {next(iter(setting))}=.* clips each replica's"):
        trained(relu, 2, 1, functools.partial(keras.optimizers.SGD, 0.1, **setting))


def test_the_step_clips_after_the_sum():
    """Keras clips as well on one device, where there is no sum."""
    one_device = trained(relu, 1, 5, functools.partial(keras.optimizers.SGD, 0.1, global_clipnorm=0.1))
    assert_same_weights(trained(relu, 4, clip_norm=0.1), one_device)


def test_accumulation_in_keras_is_refused():
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2 fails under replicas .* of several parts"):
        trained(relu, 4, 1, functools.partial(keras.optimizers.SGD, 0.1, gradient_accumulation_steps=2))


def all_reduced_sizes(monkeypatch, clip_norm: float | None, *, measure: bool) -> tuple[list[int], int]:
    """Trace a step on two replicas.

    Returns:
        The number of elements in each call of `all_reduce`, each of which is one batched collective, and
        the number of the model's parameters.
    """
    sizes: list[int] = []
    original = tf.distribute.ReplicaContext.all_reduce

    def all_reduce(self, op, value, options=None):
        sizes.append(sum(int(np.prod(tensor.shape)) for tensor in tf.nest.flatten(value)))
        return original(self, op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", all_reduce)
    strategy = mirrored(2)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(400, "tanh"), keras.layers.Dense(3, "softmax")])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, histograms=False)
    train_step = step.make(model, optimizer, probe, strategy, batch_size=64, clip_norm=clip_norm)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(64, drop_remainder=True)
    spec = strategy.experimental_distribute_dataset(dataset).element_spec
    sizes.clear()
    train_step.get_concrete_function(*spec, measure)
    return sizes, model.count_params()


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_plain_step_sums_the_gradients_once(clip_norm, monkeypatch):
    """Traced once a replica."""
    sizes, parameters = all_reduced_sizes(monkeypatch, clip_norm, measure=False)
    assert sizes == [parameters] * 2


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_measured_step_sums_the_gradients_once_and_has_one_collective_more(clip_norm, monkeypatch):
    """Traced once a replica. The collective of the statistics has its size from layers and units."""
    sizes, parameters = all_reduced_sizes(monkeypatch, clip_norm, measure=True)
    assert sizes.count(parameters) == 2
    assert len(sizes) == 4
