"""What replicas disagree on, against float64 NumPy on the very batches that they had, and a closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, mirrored

import tapescope
from tapescope.analysis import noise
from tapescope.statistics import layers as layer_statistics
from tapescope.storage import summaries

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=[32, 6]).astype(np.float32), RNG.normal(size=[32, 2]).astype(np.float32)


def step_of(model, optimizer, strategy, **options):
    """`step(x, y, measure)`, for one replica's share of the batch or for the whole."""
    probe = tapescope.Probe(model, **options)

    def in_replica(x, y, measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - y)) / len(X)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return tape.reading()

    return tf.function(lambda x, y, measure: strategy.run(in_replica, args=(x, y, measure)))


def made(strategy):
    with strategy.scope():
        model, optimizer = dense_chain([5, 2], ["tanh", "sigmoid"], 6), keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def shared(strategy, *arrays):
    """Each replica gets its part, in order."""
    count = strategy.num_replicas_in_sync

    def part(array):
        parts = np.split(array, count)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    return [part(array) for array in arrays]


def gradients_by_hand(model, x, y):
    """Of this part of the batch, in float64: tanh, then sigmoid, squared error over the whole batch's 32 examples."""
    w1, b1, w2, b2 = (v.numpy().astype(np.float64) for v in model.trainable_variables)
    a = np.tanh(x @ w1 + b1)
    p = 1 / (1 + np.exp(-(a @ w2 + b2)))
    d2 = 2 * (p - y) / len(X) * p * (1 - p)
    d1 = d2 @ w2.T * (1 - a**2)
    return [x.T @ d1, d1.sum(0), a.T @ d2, d2.sum(0)]


@pytest.mark.parametrize("count", [2, 4])
def test_the_lens_shows_each_replicas_own_gradient(count):
    strategy = mirrored(count)
    model, optimizer = made(strategy)
    own = [gradients_by_hand(model, x, y) for x, y in zip(np.split(X, count), np.split(Y, count), strict=True)]
    read = step_of(model, optimizer, strategy)(*shared(strategy, X, Y), True)
    found = summaries.on_host(read)
    norms, cosines, signs = found.replicas
    assert norms.shape == (count, 4)
    total = [sum(parts) for parts in zip(*own, strict=True)]
    for r, gradients in enumerate(own):
        for v, (mine, all_) in enumerate(zip(gradients, total, strict=True)):
            assert norms[r, v] == pytest.approx(np.linalg.norm(mine), rel=1e-5)
            cosine = (mine * all_).sum() / np.linalg.norm(mine) / np.linalg.norm(all_)
            assert cosines[r, v] == pytest.approx(cosine, abs=1e-5)
            assert signs[r, v] == pytest.approx((np.sign(mine) == np.sign(all_)).mean(), abs=1e-6)
    big, small = 32, 32 / count
    small2 = np.array([np.mean([np.square(count * g[v]).sum() for g in own]) for v in range(4)])
    big2 = np.array([np.square(g).sum() for g in total])

    def scale(small2, big2):
        return (small2 - big2) / (1 / small - 1 / big) / ((big * big2 - small * small2) / (big - small))

    np.testing.assert_allclose(found.column("noise_scale"), scale(small2, big2), rtol=1e-3)
    assert found.column("noise_scale_total") == pytest.approx(scale(small2.sum(), big2.sum()), rel=1e-3)
    everywhere = strategy.experimental_local_results(read.replicas)
    assert all(np.array_equal(one, everywhere[0], equal_nan=True) for one in everywhere)


@pytest.mark.parametrize("aggregated", [False, True])
def test_measuring_costs_one_small_collective_besides_the_gradients(aggregated, monkeypatch):
    """Each call to TensorFlow's all_reduce is one batched collective, traced once a replica."""
    strategy = mirrored(4)
    model, optimizer = made(strategy)
    sizes: list[int] = []
    true = tf.distribute.ReplicaContext.all_reduce

    def all_reduce(self, op, value, options=None):
        sizes.append(sum(int(np.prod(t.shape)) for t in tf.nest.flatten(value)))
        return true(self, op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", all_reduce)
    probe = tapescope.Probe(model, histograms=False)

    def in_replica(x, y, measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - y)) / len(X)
        gradients = tape.gradient(loss, model.trainable_variables)
        total = tf.distribute.get_replica_context().all_reduce("SUM", gradients) if aggregated else None
        optimizer.apply(gradients, model.trainable_variables)
        return tape.reading(aggregated=total)

    step = tf.function(lambda x, y, measure: strategy.run(in_replica, args=(x, y, measure)))
    batch = shared(strategy, X, Y)
    counts = {}
    for measure in (False, True):
        sizes.clear()
        step.get_concrete_function(*batch, measure)
        counts[measure] = sorted(sizes)
    gradients = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    rows = (
        len(layer_statistics.LAYER_ROWS) * 2 + len(layer_statistics.UNIT_ROWS) * 7 + 3 * 4
    )  # of 2 layers, 7 units, 4 variables
    assert counts[False] == [gradients] * 4 * (2 if aggregated else 1)
    assert counts[True] == sorted([gradients] * 4 * 2 + [4 * rows] * 4)


def test_the_noise_scale_of_a_problem_whose_noise_is_known():
    """The loss w.x has the gradient x: with x of mean mu and covariance C the noise scale is tr C / |mu|^2."""
    rng = np.random.default_rng(0)
    mean, deviation = np.array([0.3, -0.1, 0.2, 0.0]), np.array([0.5, 1.0, 2.0, 0.1])
    known = np.square(deviation).sum() / np.square(mean).sum()
    strategy = mirrored(2)
    with strategy.scope():
        weights = tf.Variable(np.zeros(4, np.float32), synchronization=tf.VariableSynchronization.ON_WRITE)
    probe = tapescope.Probe(weights)

    def in_replica(x):
        with probe.tape(True) as tape:
            loss = tf.reduce_sum(tapescope.tap("product", x * weights)) / 64
        tape.gradient(loss, [weights])
        return tape.reading()

    step = tf.function(lambda x: strategy.run(in_replica, args=(x,)))
    rows = []
    for _ in range(400):
        x = (mean + deviation * rng.normal(size=[64, 4])).astype(np.float32)
        rows.append(summaries.on_host(step(*shared(strategy, x))))
    norms, total = np.stack([r.replicas[0] for r in rows]), np.stack([r.column("gradient_norm") for r in rows])
    found = noise.estimate(norms, total, np.full(400, 64.0))
    assert found.low < known < found.high
    assert found.scale == pytest.approx(known, rel=0.25)
    assert found.high - found.low < known
    steps = np.array([r.column("noise_scale_total") for r in rows])
    assert np.isfinite(steps).all()


@pytest.mark.parametrize("count", [2, 8])
def test_the_interval_holds_the_truth_as_often_as_it_says(count):
    """The same problem in NumPy, 300 times: 95 % intervals, allowed to miss a little more often."""
    rng = np.random.default_rng(1)
    mean, deviation, batch, steps = np.full(10, 0.2), np.linspace(0.5, 1.5, 10), 64, 200
    known = np.square(deviation).sum() / np.square(mean).sum()
    inside = 0
    for _ in range(300):
        own = mean + deviation / np.sqrt(batch / count) * rng.normal(size=[steps, count, 10])
        found = noise.estimate(
            *(np.linalg.norm(own / count, axis=2)[:, :, None], np.linalg.norm(own.mean(1), axis=1)[:, None]),
            np.full(steps, float(batch)),
        )
        inside += found.low <= known <= found.high
    assert 0.91 <= inside / 300 <= 0.99


def test_where_nothing_is_known_nothing_is_said():
    assert np.isnan(noise.estimate(np.full([5, 2, 1], np.nan), np.full([5, 1], np.nan), np.full(5, 8.0))).all()
    few = noise.estimate(np.full([5, 2, 1], 0.6), np.ones([5, 1]), np.full(5, 8.0))
    assert np.isfinite(few.scale)
    assert np.isnan(few.low)
