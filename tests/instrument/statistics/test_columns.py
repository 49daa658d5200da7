"""Every column against the float64 oracle, in every way that a step can run."""

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import steps

from tapescope.capture import activations
from tapescope.capture.layer_hooks import Call
from tapescope.statistics import batched_ops, merging
from tapescope.statistics import layers as layer_statistics
from tapescope.statistics import tensors as tensor_statistics
from tapescope.statistics.reading import LAYER_COLUMNS, VARIABLE_COLUMNS
from tensorboard_plugin_tapescope import metadata
from tests.instrument import oracle

ACTIVATIONS = sorted(oracle.FUNCTIONS)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(7)
    return rng.normal(0, 2, [16, 12]).astype(np.float32), rng.normal(0, 1, [16, 5]).astype(np.float32)


def call(a, kind="linear", number=0):
    a = tf.constant(a)
    return Call(str(number), activations.describe(kind), None, None, a, None, number, read=a)


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
    rows = dict(zip(layer_statistics.UNIT_ROWS, read.units, strict=True))
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
    length = tensor_statistics.gradient_rows([tf.constant(x)])[0][0, 0]
    np.testing.assert_allclose(length, np.linalg.norm(x.astype(np.float64)), rtol=1e-5)


def test_standard_deviation_far_from_zero():
    """A sum of squares would lose all digits here."""
    x = (1000 + 1e-2 * np.random.default_rng(0).normal(size=[64, 32])).astype(np.float32)
    calls = [call(part) for part in np.split(x, 4)]
    rows, *_ = layer_statistics.layer_rows([(one, (None,) * 3) for one in calls])
    merged = merging.layers(tf.transpose(rows)[:, :, None], [-1])
    np.testing.assert_allclose(merged["activation_std"][0], x.astype(np.float64).std(), rtol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_nonfinite_elements_are_counted_and_left_out(compiled):
    x = tf.constant([1.0, np.nan, 2.0, np.inf, -np.inf, 3.0, 0.0])
    rows = tf.function(tensor_statistics.gradient_rows, jit_compile=compiled)([x, None, 2 * tf.ones([4])])[0].numpy()
    row = dict(zip(tensor_statistics.GRADIENT_ROWS, rows[:, 0], strict=True))
    assert (row["nonfinite"], row["max"]) == (3, 3)
    np.testing.assert_allclose([row["norm"], row["zero"]], [np.sqrt(14), 1 / 7], rtol=1e-6)
    np.testing.assert_array_equal(rows[:, 1], np.full(4, np.nan))
    np.testing.assert_array_equal(rows[:, 2], [4, 2, 0, 0])


def test_a_nonfinite_output_leaves_the_statistics_of_the_rest():
    a = np.random.default_rng(0).normal(size=[20, 3]).astype(np.float32)
    bad = a.copy()
    bad[4, 1], bad[5, 2] = np.nan, np.inf
    rows, units, _ = layer_statistics.layer_rows([(call(bad), (None,) * 3)])
    merged = merging.layers(rows[None], [-1])
    rest = a[np.isfinite(bad)].astype(np.float64)
    np.testing.assert_allclose(merged["activation_mean"], [rest.mean()], rtol=1e-4)
    np.testing.assert_allclose(merged["activation_std"], [rest.std()], rtol=1e-5)
    np.testing.assert_allclose(merged["activation_max"], [rest.max()])
    assert merged["activation_nonfinite"] == 2
    np.testing.assert_allclose(units[0], np.where(np.isfinite(bad), np.abs(bad), 0).sum(0), rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_tensors_reduced_together_keep_their_order_and_their_numbers(compiled):
    """Shapes that come again and again, one that is too large to be stacked, one that has no gradient; and in between
    elements that the quick way cannot take.
    """
    rng = np.random.default_rng(5)
    shapes = [(6, 5), (7,), (6, 5), (2, 3, 4), (7,), (batched_ops.STACKED + 1,), (6, 5), (7,), (2, 3, 4)]
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[2] *= np.float32(1e-30)
    arrays[4][:] = 0
    arrays[6][1, 1], arrays[6][2, 3] = np.nan, -np.inf
    arrays[7] *= np.float32(1e25)
    given = [tf.constant(a) for a in arrays]
    given.insert(3, None)
    rows, bins = tf.function(lambda: tensor_statistics.gradient_rows(given, True), jit_compile=compiled)()
    assert np.all(np.isnan(rows[:, 3]))
    assert not np.any(bins[3])
    for i, array in zip((0, 1, 2, 4, 5, 6, 7, 8, 9), arrays, strict=True):
        finite = array[np.isfinite(array)].astype(np.float64)
        expected = np.linalg.norm(finite), np.abs(finite).max(), np.mean(array == 0), array.size - finite.size
        np.testing.assert_allclose(rows[:, i], expected, rtol=1e-5, err_msg=str(i))
        np.testing.assert_array_equal(bins[i], oracle.histogram(finite, metadata.bin_edges()))
    moved = [a + rng.normal(size=a.shape).astype(np.float32) for a in arrays]
    found = tensor_statistics.weight_rows(given[:3] + given[4:], [tf.constant(m) for m in moved]).numpy()
    for i, (old, new) in enumerate(zip(arrays, moved, strict=True)):
        change = new[np.isfinite(old)].astype(np.float64) - old[np.isfinite(old)]
        expected = np.linalg.norm(old[np.isfinite(old)].astype(np.float64)), np.linalg.norm(change)
        np.testing.assert_allclose(found[:2, i], expected, rtol=1e-5, atol=1e-15)
        assert found[2, i] == np.sum(~np.isfinite(old))


@pytest.mark.parametrize("compiled", [False, True])
def test_outputs_reduced_together(compiled):
    """Equal layers are stacked; one is far from 0, one constant, one has a NaN, one another activation and width."""
    rng = np.random.default_rng(6)
    arrays = [rng.normal(size=[20, 3]).astype(np.float32) for _ in range(5)]
    arrays[1] = (arrays[1] * 1e-3 + 50).astype(np.float32)
    arrays[2][:] = 0.7
    arrays[3][4, 1] = np.nan
    arrays.append(np.maximum(rng.normal(size=[20, 4]), 0).astype(np.float32))
    kinds = ["linear", "linear", "linear", "linear", "tanh", "relu"]
    calls = [call(a, kind, i) for i, (a, kind) in enumerate(zip(arrays, kinds, strict=True))]
    measure = tf.function(
        lambda: layer_statistics.layer_rows([(c, (None, c.a, None)) for c in calls], True), jit_compile=compiled
    )
    rows, units, bins = (t.numpy() for t in measure())
    of = dict(zip(layer_statistics.LAYER_ROWS, rows, strict=True))
    for i, array in enumerate(arrays):
        sane = array[np.isfinite(array)].astype(np.float64)
        expected = {"elements": array.size, "nonfinite": array.size - sane.size, "mean": sane.mean()}
        expected |= {"min": sane.min(), "max": sane.max(), "zero": np.sum(array == 0), "z_norm": np.linalg.norm(sane)}
        for name, value in expected.items():
            np.testing.assert_allclose(of[name][i], value, rtol=1e-5, atol=1e-6, err_msg=f"{name} {i}")
        np.testing.assert_allclose(np.sqrt(of["m2"][i] / sane.size), sane.std(), rtol=1e-4, atol=1e-7)
        absolute = units[0][3 * i : 3 * i + array.shape[1]]
        np.testing.assert_allclose(absolute, np.nansum(np.abs(array.astype(np.float64)), 0), rtol=1e-5)
        assert bins[i].sum() == sane.size
    assert of["saturated"][5] == np.sum(arrays[5] == 0)
    np.testing.assert_array_equal(of["delta_nonfinite"], [0, 0, 0, 1, 0, 0])
