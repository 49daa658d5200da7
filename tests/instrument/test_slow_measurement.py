"""When the slow columns are measured, and that consecutive gradients and they are in the records of a run."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured

import tapescope
from tapescope.slow_measurement import SlowMeasurement
from tapescope.storage.resume import Resume
from tests.instrument import oracle


def make_measurement(every, resume=None):
    """Return a measurement that measures nothing."""
    measurement: Any = SlowMeasurement(tapescope.Probe(tf.Variable([1.0]))._state, every, resume)
    measurement._measure_rows = object
    return measurement


def due(every, steps, resume=None):
    measurement = make_measurement(every, resume)
    return [step for step in steps if measurement.measure(step) is not None]


class Model:
    """A small model, its optimizer, and a compiled step."""

    def __init__(self):
        self.model = dense_chain([4], ["tanh"], 5)
        self.optimizer = keras.optimizers.Adam(0.01)
        self.optimizer.build(self.model.trainable_variables)
        self.probe = tapescope.Probe(self.model, strict=True, histograms=False)
        self.gradients: list[np.ndarray] = []

        @tf.function
        def step(x, measure):
            def loss():
                return tf.reduce_mean(tf.square(self.model(x, training=True) - 1))

            return measured(self.probe, loss, self.model.trainable_variables, self.optimizer, measure)

        self.step = step

    def train(self, recorder, steps, measured_steps=None):
        for n in steps:
            x = tf.random.stateless_normal([8, 5], [n, 1])
            result = self.step(x, measured_steps is None or n in measured_steps)
            self.gradients.append(np.concatenate([np.ravel(g) for g in result.gradients]))
            recorder.write(n, result.reading, {"loss": result.loss})

    def state(self):
        return [v.numpy() for v in (*self.model.variables, *self.optimizer.variables)]


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        (5, range(16), [4, 9, 14]),
        (1, range(4), [0, 1, 2, 3]),
        (5, range(0, 20, 3), [6, 9, 15]),
        (10, [0, 50, 51, 70], [50, 70]),
        (0, range(5), []),
    ],
)
def test_steps_of_slow_measurements(every, steps, expected):
    assert due(every, steps) == expected


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 7, 11])
def test_a_run_that_goes_on_measures_at_the_same_steps(cut):
    steps = list(range(0, 20, 3))
    first = make_measurement(5)
    before = [step for step in steps if step < cut and first.measure(step) is not None]
    after = due(5, [step for step in steps if step >= cut], Resume(cut, first.state()))
    assert before + after == [6, 9, 15]


def test_a_run_that_goes_on_without_a_state_measures_at_the_next_period():
    assert due(5, range(7, 16), Resume(7, {})) == [9, 14]


@pytest.mark.parametrize("value", [-1, 2.5, True, None, "500"])
def test_slow_every_must_be_a_number_of_steps(tmp_path, value):
    with pytest.raises(ValueError, match="`slow_every` must be a number of steps, or 0 for never; got"):
        tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0])), slow_every=value)


def test_a_failure_ends_the_slow_columns_and_not_the_training(monkeypatch, caplog):
    state = tapescope.Probe(tf.Variable([1.0]))._state
    measurement = SlowMeasurement(state, 1, None)
    monkeypatch.setattr(state, "optimizers", lambda: 1 / 0)
    assert [measurement.measure(step) for step in range(2)] == [None, None]
    messages = [record.getMessage() for record in caplog.records if "slow columns" in record.getMessage()]
    assert messages == [
        "tapescope: measuring failed (ZeroDivisionError: division by zero); the slow columns are not measured any "
        "more. tapescope.Probe(..., strict=True) raises instead"
    ]


@pytest.mark.slow
def test_records_have_cosines_of_steps_in_a_row_and_slow_columns(tmp_path):
    trained = Model()
    with tapescope.Recorder(tmp_path, trained.probe, slow_every=4) as recorder:
        trained.train(recorder, range(6), measured_steps={0, 1, 2, 4, 5})
    run = tapescope.Run(tmp_path)
    expected = [oracle.cosine(*trained.gradients[n - 1 : n + 1]) if n in (1, 2, 5) else np.nan for n in run.steps]
    np.testing.assert_allclose(run["gradient_cosine_total"], expected, rtol=1e-4)
    assert np.isnan(run["gradient_cosine"]).all(1).tolist() == [True, False, False, True, False]
    assert np.isnan(run["stable_rank"]).all(1).tolist() == [True, True, True, False, True]
    np.testing.assert_allclose(run["update_norm"], run["update_ratio"] * run["weight_norm"], rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_same_records(tmp_path):
    undisturbed = Model()
    with tapescope.Recorder(tmp_path / "undisturbed", undisturbed.probe, slow_every=3) as recorder:
        undisturbed.train(recorder, range(7))
    stopped = Model()
    with tapescope.Recorder(tmp_path / "stopped", stopped.probe, slow_every=3) as recorder:
        stopped.train(recorder, range(4))
        state = recorder.state()
    with tapescope.Recorder(tmp_path / "stopped", stopped.probe, resume=tapescope.Resume(4, state), slow_every=3) as r:
        stopped.train(r, range(4, 7))
    runs = [tapescope.Run(tmp_path / name) for name in ("undisturbed", "stopped")]
    for column in ("gradient_cosine", "gradient_cosine_total", "first_moment_norm", "stable_rank"):
        np.testing.assert_array_equal(*[run[column] for run in runs], err_msg=column)


def test_kernels_of_attention_are_matrices_by_their_equation():
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(2, 3, name="attention")(inputs, inputs))
    measurement = SlowMeasurement(tapescope.Probe(model)._state, 1, None)
    slow: Any = measurement.measure(0)
    paths = [v.path for v in model.trainable_variables]
    ranks = dict(zip(paths, slow.columns(tapescope.Probe(model).variables)["stable_rank"], strict=True))
    kernels = [v for v in model.trainable_variables if v.path.endswith("kernel")]
    assert [v.shape for v in kernels] == [(6, 2, 3)] * 3 + [(2, 3, 6)]
    expected = [oracle.stable_rank(kernel.numpy().reshape(6, 6)) for kernel in kernels]
    np.testing.assert_allclose([ranks[kernel.path] for kernel in kernels], expected, rtol=1e-4)


@pytest.mark.nightly
def test_slow_columns_change_no_bit_of_the_training(tmp_path):
    states = []
    for every in (0, 1):
        trained = Model()
        with tapescope.Recorder(tmp_path / str(every), trained.probe, slow_every=every) as recorder:
            trained.train(recorder, range(4))
        states.append(trained.state())
    for without, with_slow in zip(*states, strict=True):
        np.testing.assert_array_equal(without, with_slow)


@pytest.mark.slow
def test_monitor_has_both(tmp_path):
    model = dense_chain([4], ["tanh"], 5)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = np.random.default_rng(0).normal(size=[64, 5]).astype(np.float32)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1), slow_every=4, strict=True, histograms=False)
    model.fit(x, np.ones([64, 4]), batch_size=8, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    assert np.isfinite(run["gradient_cosine_total"]).tolist() == [False] + 7 * [True]
    assert np.isfinite(run["first_moment_norm"]).all(1).tolist() == [False, False, False, True] * 2
