"""Every column of a reading against the float64 oracle, in every way that a step can run."""

import functools
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from scripts.testbed import steps

from tapescope.slow_measurement import SlowMeasurement
from tapescope.statistics import layers as layer_statistics
from tapescope.statistics import replicas
from tapescope.statistics.reading import LAYER_COLUMNS, VARIABLE_COLUMNS
from tensorboard_plugin_tapescope import metadata
from tests.instrument import oracle

WIDTHS = {"layer0": 9, "layer1": 8, "layer2": 7, "layer3": 5}
KINDS = ["relu", "sigmoid", "tanh", "elu"]


class Measured(NamedTuple):
    """One measured step of a chain of dense layers, and what the oracle makes of it."""

    reading: Any
    probe: Any
    before: list[np.ndarray]
    after: list[np.ndarray]
    layers: list[oracle.Layer]
    activations: list[str]
    optimizers: list[Any]
    """Kept alive, because the probe does not."""

    @property
    def gradients(self) -> list[np.ndarray]:
        return [g for layer in self.layers for g in (layer.d_kernel, layer.d_bias)]


def measure(mode, widths, activations) -> Measured:
    rng = np.random.default_rng(7)
    x = rng.normal(0, 2, [16, 12]).astype(np.float32)
    y = rng.normal(0, 1, [16, widths[-1]]).astype(np.float32)
    optimizers = []

    def make_optimizer():
        optimizers.append(keras.optimizers.Adam(0.01))
        return optimizers[0]

    make_model = functools.partial(steps.dense_chain, widths, activations, 12)
    reading, model, before, probe = steps.measured_step(mode, make_model, x, y, make_optimizer=make_optimizer)
    _, layers = oracle.chain(x, y, before, activations)
    return Measured(
        reading=reading,
        probe=probe,
        before=before,
        after=[v.numpy() for v in model.trainable_variables],
        layers=layers,
        activations=activations,
        optimizers=optimizers,
    )


MARKS = {"eager": (), "function": (), "jit_replicas": pytest.mark.nightly}


@pytest.fixture(
    scope="module",
    params=[pytest.param(mode, marks=MARKS.get(mode, pytest.mark.slow)) for mode in steps.MODES],
)
def chain(request):
    """Measure a chain of four kinds of layers in each mode."""
    return measure(request.param, list(WIDTHS.values()), KINDS)


@pytest.fixture(scope="module")
def slow(chain):
    """Measure the slow columns after the step."""
    rows: Any = SlowMeasurement(chain.probe._state, 1, None).measure(0)
    return rows.columns(chain.probe.variables)


@pytest.fixture(scope="module", params=sorted(oracle.FUNCTIONS))
def pair(request):
    """Measure a layer of each activation, and a linear one behind it."""
    return measure("function", [20, 5], [request.param, "linear"])


def assert_layer_columns(measured):
    """Compare with the oracle: relative 1e-4. Shares of GELU may have two elements on the wrong side of a threshold."""
    for i, (layer, activation) in enumerate(zip(measured.layers, measured.activations, strict=True)):
        expected = oracle.layer_columns(layer, activation, is_first=i == 0)
        for column in LAYER_COLUMNS:
            atol = 2 / layer.a.size if column == "saturated" and activation == "gelu" else 1e-6
            actual = measured.reading.column(column)[i]
            np.testing.assert_allclose(actual, expected[column], rtol=1e-4, atol=atol, err_msg=f"{column} {activation}")


def assert_activation_histograms(measured):
    for layer, counts in zip(measured.layers, measured.reading.activation_histogram, strict=True):
        assert counts.sum() == layer.a.size
        # Two elements may lie on another side of a bin's edge in float32.
        assert np.abs(counts - oracle.histogram(layer.a, metadata.bin_edges())).sum() <= 4


def assert_variable_columns(measured):
    for i, (gradient, before, after) in enumerate(
        zip(measured.gradients, measured.before, measured.after, strict=True)
    ):
        expected = oracle.variable_columns(gradient, before, after)
        for column, value in expected.items():
            rtol = 1e-3 if column.startswith("update") else 1e-4
            actual = measured.reading.column(column)[i]
            np.testing.assert_allclose(actual, value, rtol=rtol, atol=1e-8, err_msg=f"{column} {i}")


def test_layer_columns_in_every_mode(chain):
    assert_layer_columns(chain)


def test_columns_of_many_replicas(monkeypatch):
    """Two are many here: what they send is summed."""
    monkeypatch.setattr(replicas, "FEW", 1)
    measured = measure("replicas", list(WIDTHS.values()), KINDS)
    assert measured.reading.replicas.shape[-1] == 1
    assert_layer_columns(measured)
    assert_variable_columns(measured)
    assert_activation_histograms(measured)


def test_variable_columns_in_every_mode(chain):
    assert_variable_columns(chain)


def test_the_sample_of_a_small_gradient_is_all_of_it_in_every_mode(chain):
    for sample, gradient in zip(chain.reading.gradient_sample.T, chain.gradients, strict=True):
        np.testing.assert_allclose(sample[: gradient.size], gradient.ravel(), rtol=1e-4, atol=1e-7)
        assert np.isnan(sample[gradient.size :]).all()


def test_norms_of_moments_in_every_mode(chain, slow):
    expected = np.array([oracle.adam_moments(gradient) for gradient in chain.gradients]).T
    for column, values in zip(("first_moment_norm", "second_moment_norm"), expected, strict=True):
        np.testing.assert_allclose(slow[column], values, rtol=1e-4, err_msg=column)


def test_stable_ranks_in_every_mode(chain, slow):
    expected = [oracle.stable_rank(weight) if weight.ndim > 1 else np.nan for weight in chain.after]
    np.testing.assert_allclose(slow["stable_rank"], expected, rtol=1e-4)


def test_oracle_has_all_variable_columns_of_one_replica():
    gradient = np.ones([2, 2])
    assert set(oracle.variable_columns(gradient, gradient, gradient)) == set(VARIABLE_COLUMNS) - {"noise_scale"}


def test_activation_histograms_in_every_mode(chain):
    assert_activation_histograms(chain)


def test_gradient_histograms_count_every_element(chain):
    sizes = [before.size for before in chain.before]
    np.testing.assert_array_equal(chain.reading.gradient_histogram.sum(1), sizes)


def test_layers_are_named_in_forward_order(chain):
    assert chain.probe.layers == tuple(WIDTHS)


def test_step_columns_in_every_mode(chain):
    columns = ("examples", "first_nonfinite_forward", "first_nonfinite_backward")
    assert [chain.reading.column(column) for column in columns] == [16, -1, -1]


def test_unit_rows_in_every_mode(chain):
    rows = dict(zip(layer_statistics.UNIT_ROWS, chain.reading.units, strict=True))
    a = np.concatenate([layer.a for layer in chain.layers], axis=1)
    saturated = np.concatenate(
        [oracle.is_saturated(layer, kind) for layer, kind in zip(chain.layers, chain.activations, strict=True)], axis=1
    )
    np.testing.assert_allclose(rows["absolute_sum"], np.abs(a).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(rows["zero"], (a == 0).sum(0))
    np.testing.assert_array_equal(rows["low"] + rows["high"], saturated.sum(0))


def test_layer_columns_of_every_activation(pair):
    assert_layer_columns(pair)


def test_variable_columns_of_every_activation(pair):
    assert_variable_columns(pair)


def test_activation_histograms_of_every_activation(pair):
    assert_activation_histograms(pair)
