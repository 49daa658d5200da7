"""Statistics of layers' outputs against float64 NumPy, where the fast path serves and where it does not."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.capture import activations
from tapescope.capture.layer_hooks import LayerCall
from tapescope.statistics import layer_columns, layers
from tapescope.statistics.reductions import run

KINDS = ["linear", "linear", "linear", "linear", "tanh", "relu"]
FAR, CONSTANT, NONFINITE, RELU = 1, 2, 3, 5


def make_call(a, kind="linear", deltas=(None, None, None)):
    a = tf.constant(a)
    return LayerCall(
        name="layer",
        activation=activations.describe(kind),
        input=None,
        z=None,
        a=a,
        layer=None,
        number=0,
        measured=a,
        deltas=deltas,
    )


def unit_rows(calls):
    _, units, _ = run(layers.layer_rows(calls))
    return dict(zip(layers.UNIT_ROWS, units.numpy(), strict=True))


@pytest.fixture(scope="module", params=[None, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "xla"])
def stacked(request):
    """Measure outputs of equal and other shapes. Each output serves as its own gradient with respect to z, too."""
    rng = np.random.default_rng(6)
    arrays = [rng.normal(size=[20, 3]).astype(np.float32) for _ in range(5)]
    arrays[FAR] = (arrays[FAR] * 1e-3 + 50).astype(np.float32)
    arrays[CONSTANT][:] = 0.7
    arrays[NONFINITE][4, 1] = np.nan
    arrays.append(np.maximum(rng.normal(size=[20, 4]), 0).astype(np.float32))

    @tf.function(jit_compile=request.param)
    def measure():
        calls = [make_call(a, kind, (None, tf.constant(a), None)) for a, kind in zip(arrays, KINDS, strict=True)]
        return run(layers.layer_rows(calls, histogram=True))

    rows, units, bins = (t.numpy() for t in measure())
    return arrays, dict(zip(layers.LAYER_ROWS, rows, strict=True)), units, bins


def finite(array):
    return array[np.isfinite(array)].astype(np.float64)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("elements", np.size),
        ("nonfinite", lambda a: np.sum(~np.isfinite(a))),
        ("mean", lambda a: finite(a).mean()),
        ("min", lambda a: finite(a).min()),
        ("max", lambda a: finite(a).max()),
        ("zero", lambda a: np.sum(a == 0)),
        ("z_norm", lambda a: np.linalg.norm(finite(a))),
        ("delta_nonfinite", lambda a: np.sum(~np.isfinite(a))),
    ],
)
def test_rows_of_stacked_layers(stacked, row, expected):
    arrays, rows, _, _ = stacked
    np.testing.assert_allclose(rows[row], [expected(a) for a in arrays], rtol=1e-5, atol=1e-6)


def test_variances_of_stacked_layers(stacked):
    arrays, rows, _, _ = stacked
    std = np.sqrt(rows["m2"] / (rows["elements"] - rows["nonfinite"]))
    np.testing.assert_allclose(std, [finite(a).std() for a in arrays], rtol=1e-4, atol=1e-7)


def test_absolute_sums_of_stacked_units(stacked):
    arrays, _, units, _ = stacked
    expected = np.concatenate([np.nansum(np.abs(a.astype(np.float64)), 0) for a in arrays])
    np.testing.assert_allclose(units[0], expected, rtol=1e-5)


def test_histograms_of_stacked_layers_count_finite_elements(stacked):
    arrays, _, _, bins = stacked
    np.testing.assert_array_equal(bins.sum(1), [finite(a).size for a in arrays])


def test_saturated_elements_of_relu_are_its_zeros(stacked):
    arrays, rows, _, _ = stacked
    assert rows["saturated"][RELU] == np.sum(arrays[RELU] == 0) > 0


def test_merged_standard_deviation_far_from_zero():
    """Four replicas. The difference of a sum of squares and a squared sum would have no correct digit."""
    x = (1000 + 1e-2 * np.random.default_rng(0).normal(size=[64, 32])).astype(np.float32)
    rows, *_ = run(layers.layer_rows([make_call(part) for part in np.split(x, 4)]))
    merged = layer_columns.layer_columns(tf.transpose(rows)[:, :, None], [-1])
    np.testing.assert_allclose(merged["activation_std"][0], x.astype(np.float64).std(), rtol=1e-3)


def summed(rows):
    """Return the rows of R replicas [R, K, L] as many send them: sums, and extremes by replica."""
    parts = tf.unstack(tf.convert_to_tensor(rows, tf.float32))
    sums = tf.add_n([layer_columns.layer_sums(part) for part in parts])
    return layer_columns.rows_of_sums(sums, tf.stack([layer_columns.extremes(part) for part in parts]))


@pytest.mark.parametrize("mean", [0, 1e4])
def test_the_sums_of_many_replicas_give_the_standard_deviation(mean):
    x = (mean + np.random.default_rng(0).normal(size=[40 * 16, 32])).astype(np.float32)
    rows, *_ = run(layers.layer_rows([make_call(part) for part in np.split(x, 40)]))
    columns = layer_columns.layer_columns(summed(tf.transpose(rows)[:, :, None])[None], [-1])
    of_columns = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    for name, expected in of_columns.items():
        np.testing.assert_allclose(columns[f"activation_{name}"], [expected(x.astype(float))], rtol=1e-5, atol=1e-6)


def test_the_sums_of_many_replicas_hold_tiny_huge_absent_and_empty_numbers():
    """Layers: gradients of 1e-30, of 1e30, none, and a replica without a finite element."""
    rows = np.zeros([40, len(layers.LAYER_ROWS), 4], np.float32)
    row = dict(zip(layers.LAYER_ROWS, rows.swapaxes(0, 1), strict=True))
    row["elements"][:] = 8
    row["mean"][:] = np.linspace(-1, 1, 40)[:, None]
    row["m2"][:] = 3
    row["delta_norm"][:] = [1e-30, 1e30, np.nan, 1]
    row["nonfinite"][7, 3] = 8
    row["mean"][7, 3] = row["m2"][7, 3] = np.nan
    expected = layer_columns._merge_rows({name: tf.constant(x) for name, x in row.items()})
    found = dict(zip(layers.LAYER_ROWS, summed(rows).numpy(), strict=True))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def nonfinite_output():
    a = np.random.default_rng(0).normal(size=[20, 3]).astype(np.float32)
    a[4, 1] = np.nan
    a[5, 2] = np.inf
    return a


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("activation_mean", np.mean),
        ("activation_std", np.std),
        ("activation_min", np.min),
        ("activation_max", np.max),
    ],
)
def test_nonfinite_elements_are_left_out(nonfinite_output, column, expected):
    rows, _, _ = run(layers.layer_rows([make_call(nonfinite_output)]))
    columns = layer_columns.layer_columns(rows[None], [-1])
    np.testing.assert_allclose(columns[column], [expected(finite(nonfinite_output))], rtol=1e-4)


def test_nonfinite_elements_are_counted(nonfinite_output):
    rows, _, _ = run(layers.layer_rows([make_call(nonfinite_output)]))
    assert dict(zip(layers.LAYER_ROWS, rows, strict=True))["nonfinite"] == 2


def test_nonfinite_elements_add_nothing_to_absolute_sums(nonfinite_output):
    expected = np.where(np.isfinite(nonfinite_output), np.abs(nonfinite_output), 0).sum(0)
    np.testing.assert_allclose(unit_rows([make_call(nonfinite_output)])["absolute_sum"], expected, rtol=1e-5)


def test_flat_elements_are_those_at_the_bounds():
    a = np.float32([[0, 1, 0.5], [0, 0.001, 0.5], [1, 0.999, 0.5]])
    np.testing.assert_array_equal(unit_rows([make_call(a, "sigmoid")])["flat"], [3, 1, 0])


def test_saturation_has_a_low_and_a_high_side():
    a = np.float32([[0.001, 0.999], [0.001, 0.5], [0.5, 0.5]])
    rows = unit_rows([make_call(a, "sigmoid")])
    np.testing.assert_array_equal([rows["low"], rows["high"]], [[2, 0], [0, 1]])


def test_an_unbounded_function_has_no_flat_elements():
    assert not unit_rows([make_call(np.zeros([4, 2], np.float32), "relu")])["flat"].any()


def test_without_layers_the_statistics_are_empty():
    rows, units, _ = run(layers.layer_rows([]))
    assert (rows.shape, units.shape) == ([len(layers.LAYER_ROWS), 0], [len(layers.UNIT_ROWS), 0])
