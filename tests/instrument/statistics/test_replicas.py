"""Statistics of several replicas, against float64 NumPy on the batches that they had and against a closed form."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured, mirrored

import tapescope
from tapescope.statistics import data, replicas
from tapescope.statistics import layers as layer_statistics
from tapescope.storage import summaries
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.series import noise_scale

RNG = np.random.default_rng(3)
X = RNG.normal(size=[32, 6]).astype(np.float32)
Y = RNG.normal(size=[32, 2]).astype(np.float32)


def make_model(strategy):
    with strategy.scope():
        model = dense_chain([5, 2], ["tanh", "sigmoid"], 6)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
    return model, optimizer


def split(strategy, *arrays):
    """Return each array as a distributed value: every replica has its part, in order."""
    count = strategy.num_replicas_in_sync

    def distribute(array):
        parts = np.split(array, count)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    return [distribute(array) for array in arrays]


def numpy_gradients(model, x, y):
    """Return the gradients of a part of the batch in float64: tanh, then sigmoid, mean squared error of 32 examples."""
    w1, b1, w2, b2 = (v.numpy().astype(np.float64) for v in model.trainable_variables)
    a = np.tanh(x @ w1 + b1)
    p = 1 / (1 + np.exp(-(a @ w2 + b2)))
    d2 = 2 * (p - y) / len(X) * p * (1 - p)
    d1 = d2 @ w2.T * (1 - a**2)
    return [x.T @ d1, d1.sum(0), a.T @ d2, d2.sum(0)]


class Replicas(NamedTuple):
    """The readings of one step of R replicas, and the gradients that NumPy computes for each."""

    reading: Any
    all_readings: list[Any]
    gradients: list[list[np.ndarray]]
    summed: list[np.ndarray]


@pytest.fixture(scope="module", params=[(2, 32), pytest.param((4, 32), marks=pytest.mark.slow), (4, 3)], ids=str)
def step(request):
    """Measure one step of 2 and of 4 replicas, and of 4 where that is too many to compare them by variable."""
    count, most = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "FEW", most)
        return measure_replicas(count)


def measure_replicas(count):
    strategy = mirrored(count)
    model, optimizer = make_model(strategy)
    gradients = [numpy_gradients(model, x, y) for x, y in zip(np.split(X, count), np.split(Y, count), strict=True)]
    probe = tapescope.Probe(model)

    def replica_step(x, y):
        def loss():
            return tf.reduce_sum(tf.square(model(x, training=True) - y)) / len(X)

        return measured(probe, loss, model.trainable_variables, optimizer).reading

    reading = tf.function(lambda x, y: strategy.run(replica_step, (x, y)))(*split(strategy, X, Y))
    return Replicas(
        reading=summaries.to_host(reading),
        all_readings=list(strategy.experimental_local_results(reading.replicas)),
        gradients=gradients,
        summed=[sum(parts) for parts in zip(*gradients, strict=True)],
    )


def expected_rows(step, statistic):
    """Return a statistic of each replica's gradient and the sum, [R, V], or [R, 1] of all variables together."""
    if step.reading.replicas.shape[-1] == 1:
        whole = np.concatenate([part.ravel() for part in step.summed])
        return [[statistic(np.concatenate([g.ravel() for g in own]), whole)] for own in step.gradients]
    return [[statistic(g, s) for g, s in zip(own, step.summed, strict=True)] for own in step.gradients]


@pytest.mark.parametrize(
    ("row", "statistic"),
    [
        ("replica_norm", lambda own, total: np.linalg.norm(own)),
        ("replica_cosine", lambda own, total: (own * total).sum() / np.linalg.norm(own) / np.linalg.norm(total)),
        ("replica_sign", lambda own, total: (np.sign(own) == np.sign(total)).mean()),
    ],
)
def test_replica_columns_compare_each_replicas_gradient_with_the_sum(step, row, statistic):
    names = [column.name for column in metadata.REPLICA_COLUMNS]
    actual = step.reading.replicas[names.index(row)]
    np.testing.assert_allclose(actual, expected_rows(step, statistic), rtol=1e-5, atol=1e-5)


def expected_noise_scale(step, variables):
    """Return the noise scale over some variables, from gradients of 32 examples and of each replica's share."""
    count = len(step.gradients)
    small_square = np.mean([sum(np.square(count * own[v]).sum() for v in variables) for own in step.gradients])
    big_square = sum(np.square(step.summed[v]).sum() for v in variables)
    big = len(X)
    small = big / count
    trace = (small_square - big_square) / (1 / small - 1 / big)
    return trace / ((big * big_square - small * small_square) / (big - small))


def test_noise_scale_of_each_variable(step):
    expected = [expected_noise_scale(step, [v]) for v in range(4)]
    np.testing.assert_allclose(step.reading.column("noise_scale"), expected, rtol=1e-3)


def test_noise_scale_of_all_variables(step):
    expected = expected_noise_scale(step, range(4))
    assert step.reading.column("noise_scale_total") == pytest.approx(expected, rel=1e-3)


def test_all_replicas_have_the_same_reading(step):
    for replica in step.all_readings:
        np.testing.assert_array_equal(replica, step.all_readings[0])


def gradient_rows(gradients, summed):
    return replicas.gradient_columns(replicas.gradient_sums(gradients, summed))


def test_replica_rows_are_nan_for_absent_gradients():
    gradients = [None, tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])]
    rows = gradient_rows(gradients, [tf.zeros([2]), None, tf.constant([6.0, 8.0])])
    nan = np.nan
    np.testing.assert_allclose(rows, [[nan, nan, 5], [nan, nan, 1], [nan, nan, 1], [nan, nan, 0]], rtol=1e-6)


def test_elements_that_are_not_finite_are_counted_and_left_out():
    rows = gradient_rows([tf.constant([np.nan, 3.0, np.inf, 4.0])], [tf.constant([np.nan, 3.0, np.inf, 4.0])])
    np.testing.assert_allclose(rows[:, 0], [5, 1, 1, 2], rtol=1e-6)


def test_the_cosine_of_tiny_gradients_does_not_underflow():
    rows = gradient_rows([tf.constant([1e-25, 0.0])], [tf.constant([1e-25, 1e-25])])
    np.testing.assert_allclose(rows[:2, 0], [1e-25, np.sqrt(0.5)], rtol=1e-6)


def expected_checksum(weights):
    """Return the checksum in Python's own integers."""
    words = weights.astype("<f4").view("<u4").reshape(-1).tolist()
    words += [0] * (len(words) % 2)
    total = sum(low + (high << 32) for low, high in zip(words[::2], words[1::2], strict=True))
    return total * 0x9E3779B97F4A7C15 % 2**64 >> 40


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (40_001,), (200, 300), (0, 3)], ids=str)
def test_a_checksum_is_of_all_bits(shape):
    weights = [RNG.normal(size=shape).astype(np.float32) for _ in range(2)]
    rows = replicas.checksum_rows([tf.constant(w) for w in weights]).numpy()
    assert rows[0].tolist() == [expected_checksum(w) for w in weights]


@pytest.mark.parametrize("at", [0, 1, 40_000])
@pytest.mark.parametrize("change", [lambda w: np.nextafter(w, np.float32(9)), np.negative, lambda w: w * 4])
def test_any_bit_changes_the_checksum(at, change):
    weights = RNG.normal(size=40_001).astype(np.float32)
    other = weights.copy()
    other[at] = change(other[at])
    rows = replicas.checksum_rows([tf.constant(weights), tf.constant(other)]).numpy()
    assert rows[0, 0] != rows[0, 1]


@pytest.mark.parametrize(
    "change", [lambda a, b, c: (a, b, c * 2), lambda a, b, c: (b, a, c), lambda a, b, c: (a, b + 1, c)]
)
def test_a_checksum_of_all_weights_is_of_each_bit_and_of_their_order(change):
    weights = [RNG.normal(size=shape).astype(np.float32) for shape in ((3, 4), (3, 4), (5,))]
    rows = replicas.checksum_row_of_all([tf.constant(w) for w in weights]).numpy()
    same = replicas.checksum_row_of_all([tf.constant(w) for w in weights]).numpy()
    other = replicas.checksum_row_of_all([tf.constant(w) for w in change(*weights)]).numpy()
    assert rows.shape == (1 + replicas.SAMPLED_WEIGHTS, 1)
    np.testing.assert_array_equal(rows, same)
    assert rows[0] != other[0]


def test_the_sample_of_all_weights_has_an_element_of_each_of_evenly_spaced_variables():
    rows = replicas.checksum_row_of_all([100 * v + tf.range(16.0) for v in range(31)]).numpy()
    assert rows[1:, 0].tolist() == [200 * i + i for i in range(16)]


def test_sampled_weights_are_evenly_spaced():
    rows = replicas.checksum_rows([tf.range(151.0), tf.constant([5.0, 7.0])]).numpy()
    assert rows[1:, 0].tolist() == list(range(0, 151, 10))
    assert rows[1:, 1].tolist() == [5.0] * 15 + [7.0]


def test_replicas_with_equal_weights_have_equal_checksums(step):
    checksum, difference = step.reading.replicas[3:5]
    assert (checksum == checksum[0]).all()
    assert (checksum > 0).any()
    assert not difference.any()


def test_counts_beyond_float32_are_summed_exactly():
    strategy = mirrored(2)
    counts = np.int32([2**24 + 1, 2**29 + 3, 4095, 0])

    @tf.function
    def gather():
        def in_replica():
            context, _ = replicas.context()
            return replicas.gather(context, tf.zeros([1]), tf.zeros([0]), tf.constant(counts))[2]

        return strategy.run(in_replica)

    summed = strategy.experimental_local_results(gather())[0]
    np.testing.assert_array_equal(summed, 2 * counts)


@pytest.fixture
def collective_sizes(monkeypatch):
    """Record the number of elements of each batched collective that is traced, once a replica."""
    sizes: list[int] = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def recorded(self, op, value, options=None):
        sizes.append(sum(int(np.prod(t.shape)) for t in tf.nest.flatten(value)))
        return all_reduce(self, op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", recorded)
    return sizes


def trace_collectives(sizes, aggregated=False, measure=True):
    """Trace a step of four replicas, and return the sizes of its collectives and the number of gradient elements."""
    strategy = mirrored(4)
    model, optimizer = make_model(strategy)
    probe = tapescope.Probe(model, histograms=False)

    def replica_step(x, y):
        with probe.tape(measure) as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - y)) / len(X)
        gradients = tape.gradient(loss, model.trainable_variables)
        total = tf.distribute.get_replica_context().all_reduce("SUM", gradients) if aggregated else None
        optimizer.apply(gradients, model.trainable_variables)
        return tape.reading(aggregated=total)

    sizes.clear()
    tf.function(lambda x, y: strategy.run(replica_step, (x, y))).get_concrete_function(*split(strategy, X, Y))
    return sorted(sizes), sum(int(np.prod(v.shape)) for v in model.trainable_variables)


GATHERED = len(layer_statistics.LAYER_ROWS) * 2 + (4 + 1 + replicas.SAMPLED_WEIGHTS) * 4 + len(data.DATA_ROWS) * 2 + 1
"""Numbers of each of four replicas that all get: of 2 layers, 4 variables, an input, an output, and the loss."""
STATISTICS = 4 * GATHERED + len(layer_statistics.UNIT_ROWS) * 7 + 4
"""Numbers in the collective. Those of 7 units, and the squares of 4 gradients, are summed."""


def test_a_plain_step_has_the_optimizers_collective_only(collective_sizes):
    sizes, gradients = trace_collectives(collective_sizes, measure=False)
    assert sizes == [gradients] * 4


def test_measuring_adds_the_gradients_collective_and_a_small_one(collective_sizes):
    sizes, gradients = trace_collectives(collective_sizes)
    assert sizes == sorted([gradients] * 4 * 2 + [STATISTICS] * 4)


def test_aggregated_gradients_save_a_collective(collective_sizes):
    sizes, gradients = trace_collectives(collective_sizes, aggregated=True)
    assert sizes == sorted([gradients] * 4 * 2 + [STATISTICS] * 4)  # one of the two is the step's own


def test_many_replicas_send_what_does_not_depend_on_the_number_of_variables(collective_sizes, monkeypatch):
    """Each sends extremes of 2 layers, 21 numbers of all variables, the rows of input and output, and the loss."""
    monkeypatch.setattr(replicas, "FEW", 3)
    sizes, gradients = trace_collectives(collective_sizes)
    by_replica = 2 * 2 + (4 + 1 + replicas.SAMPLED_WEIGHTS) + len(data.DATA_ROWS) * 2 + 1
    sums = len(layer_statistics.UNIT_ROWS) * 7 + 4
    of_layers = (len(layer_statistics.LAYER_ROWS) - 2) * 2
    assert sizes == sorted([gradients] * 4 * 2 + [4 * by_replica + sums] * 4 + [of_layers] * 4)


@pytest.fixture(scope="module")
def known_noise():
    """Measure 400 steps of the loss w.x, whose gradient is x: the noise scale of x is tr(C) / |mu|^2.

    Returns:
      The noise scale, and the readings.
    """
    rng = np.random.default_rng(0)
    mean = np.array([0.3, -0.1, 0.2, 0.0])
    deviation = np.array([0.5, 1.0, 2.0, 0.1])
    strategy = mirrored(2)
    with strategy.scope():
        weights = tf.Variable(np.zeros(4, np.float32), synchronization=tf.VariableSynchronization.ON_WRITE)
    probe = tapescope.Probe(weights)

    def replica_step(x):
        return measured(probe, lambda: tf.reduce_sum(tapescope.tap("product", x * weights)) / 64, [weights]).reading

    step = tf.function(lambda x: strategy.run(replica_step, args=(x,)))
    readings = []
    for _ in range(400):
        x = (mean + deviation * rng.normal(size=[64, 4])).astype(np.float32)
        readings.append(summaries.to_host(step(*split(strategy, x))))
    return np.square(deviation).sum() / np.square(mean).sum(), readings


def test_each_step_has_a_finite_noise_scale(known_noise):
    _, readings = known_noise
    assert np.isfinite([reading.column("noise_scale_total") for reading in readings]).all()


def test_the_noise_scale_of_a_run_is_near_the_known_one(known_noise):
    known, readings = known_noise
    replica_norms = np.stack([reading.replicas[0] for reading in readings])
    gradient_norms = np.stack([reading.column("gradient_norm") for reading in readings])
    found = noise_scale.estimate_noise_scale(replica_norms, gradient_norms, np.full(400, 64.0))
    assert found.scale == pytest.approx(known, rel=0.25)
    assert found.low < known < found.high < found.low + known
