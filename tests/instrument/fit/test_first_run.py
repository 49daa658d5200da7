"""A measured train step that was traced and then fails when it runs: the fit goes on as if it had not been measured."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope.fit import first_run
from tapescope.tape import MeasuringTape

RNG = np.random.default_rng(4)
X = RNG.normal(size=[24, 6]).astype(np.float32)
Y = RNG.normal(size=[24, 2]).astype(np.float32)


class Counting(keras.Model):
    """A model that is built by its first batch, and counts its steps in a variable of TensorFlow."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(5, "relu")
        self.normalization = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(2)
        self.steps: Any = tf.Variable(tf.zeros([], tf.int32))

    def call(self, x, training=False):
        return self.out(self.dropout(self.normalization(self.hidden(x)), training=training))

    def train_step(self, data):
        self.steps.assign_add(1)
        return super().train_step(data)


def fit(callbacks=(), **options: Any):
    keras.utils.set_random_seed(1)
    model: Any = Counting()
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], **options)
    history = model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=list(callbacks))
    return model, history.history


def all_values(model):
    variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    return [np.array(v.numpy()) for v in variables] + [model.steps.numpy()]


@pytest.fixture
def fail_when_run(monkeypatch):
    """Let each reading fail when its graph runs, after the optimizer has changed the weights."""
    original: Any = MeasuringTape.reading

    def reading(tape, *args, **options):
        result = original(tape, *args, **options)
        variables = tape._state.variables()
        changed = [tf.reduce_sum(tf.cast(v.value.read_value(), tf.float32)) for v in variables]
        with tf.control_dependencies(changed):
            # XLA cannot compile text, and a plain graph fails because "?" is not part of a number.
            number = tf.strings.to_number(tf.strings.as_string(changed[0]) + "?")
        return result._replace(variables=result.variables + number)

    monkeypatch.setattr(MeasuringTape, "reading", reading)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_failed_run_is_undone_and_its_batch_trained_plainly(fail_when_run, tmp_path, caplog, jit_compile):
    plain, plain_history = fit(jit_compile=jit_compile)
    monitor = tapescope.Monitor(tmp_path)
    model, history = fit([monitor], jit_compile=jit_compile)
    assert monitor._probe is not None
    assert monitor._probe.failure is not None
    assert caplog.text.count("measuring failed") == 1
    assert history == plain_history
    for value, expected in zip(all_values(model), all_values(plain), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_strict_raises_the_failure(fail_when_run, tmp_path):
    with pytest.raises(tf.errors.InvalidArgumentError, match="StringToNumber"):
        fit([tapescope.Monitor(tmp_path, strict=True)], jit_compile=False)


def test_a_model_too_large_to_copy_raises_the_failure(fail_when_run, tmp_path, monkeypatch):
    monkeypatch.setattr(first_run, "MAX_STATE_BYTES", 10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="StringToNumber"):
        fit([tapescope.Monitor(tmp_path)], jit_compile=False)


def test_an_error_of_the_step_itself_is_raised_and_not_called_one_of_measuring(tmp_path, caplog):
    keras.utils.set_random_seed(1)
    model: Any = keras.Sequential([keras.Input([6]), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="valid range"):
        model.fit(X, np.full([24], 7), verbose=0, callbacks=[tapescope.Monitor(tmp_path)])
    assert "measuring failed" not in caplog.text


def test_a_measured_step_that_cannot_be_traced_leaves_the_plain_one(monkeypatch, tmp_path, caplog):
    def fail(*args):
        raise TypeError("no such trace")

    plain, history = fit()
    monkeypatch.setattr(MeasuringTape, "__enter__", fail)
    measured, measured_history = fit([tapescope.Monitor(tmp_path)])
    assert measured_history == history
    for left, right in zip(all_values(plain), all_values(measured), strict=True):
        np.testing.assert_array_equal(left, right)
    assert "no such trace" in caplog.text


class FailsOnce(keras.optimizers.SGD):
    """An optimizer with an error of its own, which its second call does not have."""

    is_failing = True

    def build(self, variables):
        if self.is_failing:
            self.is_failing = False
            raise RuntimeError("the optimizer's own error")
        super().build(variables)


def test_an_optimizers_own_error_is_raised_also_if_it_would_not_come_again(tmp_path, caplog):
    model: Any = keras.Sequential([keras.Input([6]), keras.layers.Dense(2)])
    model.compile(FailsOnce(0.1), "mse", jit_compile=False)
    with pytest.raises(RuntimeError, match="the optimizer's own error"):
        model.fit(X, Y, verbose=0, callbacks=[tapescope.Monitor(tmp_path)])
    assert "measuring failed" not in caplog.text
