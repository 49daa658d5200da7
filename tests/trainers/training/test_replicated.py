"""What Keras gets wrong under replicas, and the loop right: four replicas against one device, or a closed form.

Clipping, and overflow on one replica only, are in test_step.py.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import mirrored

import tapescope
from tapescope.capture import keras_replica_issues
from tapescope.rules.replica_issues import issue_text
from tapescope_trainers.training import step

RNG = np.random.default_rng(4)
X = RNG.normal(3, 2, size=[64, 5]).astype(np.float32)
Y = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 64)]


def trained(layer, replicas: int, steps: int = 5, make_optimizer=lambda: keras.optimizers.SGD(0.1), **options):
    """A small network with this layer in it, after some steps of the trainers' own loop."""
    keras.utils.set_random_seed(1)
    strategy = mirrored(replicas) if replicas > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        stack = [keras.layers.Dense(8, "tanh"), layer(), keras.layers.Dense(3, "softmax")]
        model, optimizer = keras.Sequential([keras.Input((5,)), *stack]), make_optimizer()
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, histograms=False)
    one_step = step.make(model, optimizer, probe, strategy, batch_size=64, **options)
    whole = tf.data.Dataset.from_tensor_slices((X, Y)).batch(64, drop_remainder=True).repeat()
    batches = iter(strategy.experimental_distribute_dataset(whole))
    for _ in range(steps):
        one_step(*next(batches), False)
    return model


def assert_same_weights(found, expected):
    for a, b in zip(found.weights, expected.weights, strict=True):
        assert np.linalg.norm(a.numpy() - b.numpy()) <= 1e-4 * np.linalg.norm(b.numpy()) + 1e-7, a.path


def test_synchronized_batch_norm_has_the_statistics_of_the_whole_batch():
    def layer():
        return keras.layers.BatchNormalization(synchronized=True)

    assert_same_weights(trained(layer, 4), trained(layer, 1))


def test_batch_norm_that_is_not_synchronized_is_refused():
    with pytest.raises(ValueError, match=r"with 4 replicas .*batch_normalization.* pass synchronized=True"):
        trained(keras.layers.BatchNormalization, 4)
    trained(keras.layers.BatchNormalization, 1, steps=1)


def test_every_replica_has_a_dropout_mask_of_its_own():
    strategy = mirrored(4)

    def masks(prepare: bool) -> list[np.ndarray]:
        with strategy.scope():
            model = keras.Sequential([keras.Input((50,)), keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(1)])
            optimizer = keras.optimizers.SGD(0.1)
        if prepare:
            step.make(model, optimizer, tapescope.Probe(model), strategy, batch_size=4)
        dropout = model.layers[0]
        drawn = tf.function(lambda: strategy.run(lambda: dropout(tf.ones([2, 50]), training=True)))()
        return [np.asarray(mask) for mask in strategy.experimental_local_results(drawn)]

    theirs, ours = masks(prepare=False), masks(prepare=True)
    assert all(np.array_equal(mask, theirs[0]) for mask in theirs)  # what is wrong with Keras, still
    assert len({mask.tobytes() for mask in ours}) == 4
    np.testing.assert_array_equal(ours[0], theirs[0])  # one device and the first replica draw the same
    assert 0.35 < np.mean(ours) / 2 < 0.65


def test_dropout_over_all_replicas_is_right_on_average():
    """The mean over many draws of a dropped-out sum of ones is the sum; its variance that of independent masks."""
    strategy = mirrored(4)
    with strategy.scope():
        model = keras.Sequential([keras.Input((20,)), keras.layers.Dropout(0.5, seed=5), keras.layers.Dense(1)])
    step.make(model, keras.optimizers.SGD(0.1), tapescope.Probe(model), strategy, batch_size=4)
    dropout = model.layers[0]

    @tf.function
    def total():
        parts = strategy.run(lambda: tf.reduce_sum(dropout(tf.ones([1, 20]), training=True)))
        return strategy.reduce("SUM", parts, axis=None)

    sums = np.array([total().numpy() for _ in range(300)])
    assert sums.mean() == pytest.approx(80, abs=4 * np.sqrt(80 / 300))
    assert sums.var() == pytest.approx(80, rel=0.35)  # identical masks: 4 times as much


@pytest.mark.parametrize("setting", [{"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.01}])
def test_an_optimizer_that_clips_before_the_sum_is_refused_and_ours_clips_after(setting):
    def make():
        return keras.optimizers.SGD(0.1, **setting)

    with pytest.raises(ValueError, match=f"with 2 replicas {next(iter(setting))}=.* clips each replica's"):
        trained(lambda: keras.layers.Activation("relu"), 2, 1, make)
    if "global_clipnorm" in setting:
        alone = trained(lambda: keras.layers.Activation("relu"), 1, 5, make)
        assert_same_weights(trained(lambda: keras.layers.Activation("relu"), 4, clip_norm=0.1), alone)


def test_accumulation_that_fails_inside_of_keras_is_refused_in_one_line():
    def make():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

    with pytest.raises(ValueError, match=r"gradient_accumulation_steps=2 fails under replicas .* of several parts"):
        trained(lambda: keras.layers.Activation("relu"), 4, 1, make)


def test_what_a_model_and_an_optimizer_ask_for():
    with tf.distribute.get_strategy().scope():
        inner = keras.Sequential([keras.layers.Dropout(0.1), keras.layers.BatchNormalization(name="norm")])
        model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])
    told = sorted(issue_text(fault) for fault in keras_replica_issues.model_issues(model))
    assert len(told) == 2
    assert "share masks" in told[0]
    assert told[1].startswith("sequential/norm normalises")
    assert list(keras_replica_issues.model_issues(tf.Module())) == []
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(clipnorm=1.0))
    told = [issue_text(fault).split()[0] for fault in keras_replica_issues.optimizer_issues(optimizer)]
    assert told == ["clipnorm=1", "LossScaleOptimizer"]
    assert list(keras_replica_issues.optimizer_issues(keras.optimizers.Adam())) == []


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_a_step_sums_the_gradients_once_and_a_measured_one_has_one_small_collective_more(clip_norm, monkeypatch):
    """Each call of all_reduce is one batched collective, traced once a replica."""
    sizes: list[int] = []
    true = tf.distribute.ReplicaContext.all_reduce

    def all_reduce(self, op, value, options=None):
        sizes.append(sum(int(np.prod(t.shape)) for t in tf.nest.flatten(value)))
        return true(self, op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", all_reduce)
    strategy = mirrored(2)
    with strategy.scope():
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(400, "tanh"), keras.layers.Dense(3, "softmax")])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model, histograms=False)
    one_step = step.make(model, optimizer, probe, strategy, batch_size=64, clip_norm=clip_norm)
    whole = tf.data.Dataset.from_tensor_slices((X, Y)).batch(64, drop_remainder=True)
    spec = strategy.experimental_distribute_dataset(whole).element_spec
    found = {}
    for measure in (False, True):
        sizes.clear()
        one_step.get_concrete_function(*spec, measure)
        found[measure] = sorted(sizes, reverse=True)
    assert found[False] == [model.count_params()] * 2
    gradients = [size for size in found[True] if size == model.count_params()]
    assert gradients == found[False]
    assert len(found[True]) == 4
