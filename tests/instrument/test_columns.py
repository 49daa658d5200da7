"""Every column against the float64 oracle, in every way that a step can run."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope import activations, stats
from tapescope.capture import Call
from tapescope.reading import LAYER_COLUMNS, VARIABLE_COLUMNS
from tensorboard_plugin_tapescope import metadata
from tests.instrument import oracle, steps

ACTIVATIONS = sorted(oracle.FUNCTIONS)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(7)
    return rng.normal(0, 2, [16, 12]).astype(np.float32), rng.normal(0, 1, [16, 5]).astype(np.float32)


def check(read, model, before, probe, x, y, activations):
    """Compares a reading with the oracle: relative 1e-4 (shares: two elements at a threshold)."""
    _, layers = oracle.chain(x, y, before, activations)
    assert probe.layers == tuple(f"layer{i}" for i in range(len(layers)))
    for i, (layer, activation) in enumerate(zip(layers, activations, strict=True)):
        expected = oracle.layer_columns(layer, activation)
        for column in LAYER_COLUMNS:
            if column in ("flow_weight", "flow_between") and i == 0:
                assert np.isnan(read.column(column)[i])  # nothing needs the gradient of the data
                continue
            actual = read.column(column)[i]
            atol = 2 / layer.a.size if column == "saturated" and activation == "gelu" else 1e-6
            np.testing.assert_allclose(actual, expected[column], rtol=1e-4, atol=atol, err_msg=f"{column} {activation}")
        counted = read.activation_histogram[i]
        assert counted.sum() == layer.a.size
        assert np.abs(counted - oracle.histogram(layer.a, metadata.bin_edges())).sum() <= 4  # at the bins' edges
    gradients = [g for layer in layers for g in (layer.d_kernel, layer.d_bias)]
    for i, (gradient, old, new) in enumerate(zip(gradients, before, model.trainable_variables, strict=True)):
        expected = oracle.variable_columns(gradient, old, new.numpy())
        for column in VARIABLE_COLUMNS[:-1]:
            rtol = 1e-3 if column == "update_ratio" else 1e-4
            np.testing.assert_allclose(read.column(column)[i], expected[column], rtol=rtol, atol=1e-8, err_msg=column)
        assert read.gradient_histogram[i].sum() == gradient.size
    assert read.column("examples") == len(x)
    assert read.column("first_nonfinite_forward") == read.column("first_nonfinite_backward") == -1


@pytest.mark.parametrize("mode", steps.MODES)
def test_a_chain_of_all_kinds(mode, batch):
    activations = ["relu", "sigmoid", "tanh", "elu"]
    measured = steps.measured_step(mode, lambda: steps.dense_chain([9, 8, 7, 5], activations, 12), *batch)
    check(*measured, *batch, activations)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, batch):
    activations = [activation, "linear"]
    measured = steps.measured_step("function", lambda: steps.dense_chain([20, 5], activations, 12), *batch)
    check(*measured, *batch, activations)


@pytest.mark.parametrize("mode", steps.MODES)
def test_unit_rows(mode, batch):
    activations = ["relu", "sigmoid", "linear"]
    read, _, before, _ = steps.measured_step(mode, lambda: steps.dense_chain([9, 8, 5], activations, 12), *batch)
    _, layers = oracle.chain(*batch, before, activations)
    rows = dict(zip(stats.UNIT_ROWS, read.units, strict=True))
    a = np.concatenate([layer.a for layer in layers], axis=1)
    bounded = np.repeat([False, True, False], [9, 8, 5])
    limits = [oracle.SATURATED * oracle.FUNCTIONS[name][1] for name in activations]
    small = np.concatenate([np.abs(x.derivative) < limit for x, limit in zip(layers, limits, strict=True)], axis=1)
    np.testing.assert_allclose(rows["absolute_sum"], np.abs(a).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(rows["zero"], (a == 0).sum(0))
    np.testing.assert_array_equal(rows["low"] + rows["high"], small.sum(0))
    np.testing.assert_array_equal(rows["flat"], np.where(bounded, np.isclose(a * (1 - a), 0, atol=1e-12).sum(0), 0))


@pytest.mark.parametrize("scale", [0.0, 1e-33, 1e-30, 1e-12, 1.0, 1e12, 1e25])
def test_norms_hold_over_the_range_of_float32(scale):
    x = np.random.default_rng(0).normal(size=[50, 40]).astype(np.float32) * np.float32(scale)
    length = stats.gradient_rows([tf.constant(x)])[0, 0]
    np.testing.assert_allclose(length, np.linalg.norm(x.astype(np.float64)), rtol=1e-5)


def test_standard_deviation_far_from_zero():
    """A sum of squares would lose all digits here."""
    x = (1000 + 1e-2 * np.random.default_rng(0).normal(size=[64, 32])).astype(np.float32)
    calls = [Call("x", activations.LINEAR, None, None, tf.constant(part), None) for part in np.split(x, 4)]
    rows, _ = stats.layer_rows([(call, (None,) * 3, False) for call in calls])
    merged = stats.merge_layers(tf.transpose(rows)[:, :, None], [-1])
    np.testing.assert_allclose(merged["activation_std"][0], x.astype(np.float64).std(), rtol=1e-3)


def test_histogram_bins_hold_what_their_edges_say():
    edges = metadata.bin_edges()
    inside = np.concatenate([edges[1:-1], np.nextafter(edges[1:-1], -np.inf), [0.0, -0.0, 1e-30, 1e30, -1e30]])
    counts = stats.histograms([tf.constant(inside, tf.float32)]).numpy()[0]
    np.testing.assert_array_equal(counts, oracle.histogram(inside.astype(np.float32), edges))
    assert len(edges) == metadata.BINS + 1
    assert np.all(np.diff(edges) > 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_nonfinite_elements_are_counted_and_left_out(compiled):
    x = tf.constant([1.0, np.nan, 2.0, np.inf, -np.inf, 3.0, 0.0])
    rows = tf.function(stats.gradient_rows, jit_compile=compiled)([x, None, 2 * tf.ones([4])]).numpy()
    row = dict(zip(stats.GRADIENT_ROWS, rows[:, 0], strict=True))
    assert (row["nonfinite"], row["max"]) == (3, 3)
    np.testing.assert_allclose([row["norm"], row["zero"]], [np.sqrt(14), 1 / 7], rtol=1e-6)
    np.testing.assert_array_equal(rows[:, 1], np.full(4, np.nan))
    np.testing.assert_array_equal(rows[:, 2], [4, 2, 0, 0])
    assert stats.histograms([x]).numpy().sum() == 4


def test_a_nonfinite_output_leaves_the_statistics_of_the_rest():
    a = np.random.default_rng(0).normal(size=[20, 3]).astype(np.float32)
    bad = a.copy()
    bad[4, 1], bad[5, 2] = np.nan, np.inf
    rows, units = stats.layer_rows(
        [(Call("x", activations.LINEAR, None, None, tf.constant(bad), None), (None,) * 3, False)]
    )
    merged = stats.merge_layers(rows[None], [-1])
    rest = a[np.isfinite(bad)].astype(np.float64)
    np.testing.assert_allclose(merged["activation_mean"], [rest.mean()], rtol=1e-4)
    np.testing.assert_allclose(merged["activation_std"], [rest.std()], rtol=1e-5)
    np.testing.assert_allclose(merged["activation_max"], [rest.max()])
    assert merged["activation_nonfinite"] == 2
    np.testing.assert_allclose(units[0], np.where(np.isfinite(bad), np.abs(bad), 0).sum(0), rtol=1e-5)
