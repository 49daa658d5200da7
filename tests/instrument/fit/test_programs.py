"""`model.fit` in ways that are less common: each goes on as without a Monitor, and is measured where it can be."""

import copy
import gc
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import GradientTape

import tapescope

X = np.random.default_rng(0).normal(size=(48, 3)).astype("float32")
Y = X[:, :2]


class Plain(keras.Model):
    """A model whose `train_step` subclasses write."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(4, "relu", name="hidden"), keras.layers.Dense(2, name="out")

    def call(self, x):
        return self.out(self.hidden(x))

    def update(self, data, tape_class=tf.GradientTape):
        x, y = data
        with tape_class() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


class Decorated(Plain):
    @tf.function
    def train_step(self, data):
        x, y = data
        if tf.shape(x)[0] > 100:  # needs AutoGraph
            x = 2 * x
        return self.update((x, y))


class ImportedTape(Plain):
    def train_step(self, data):
        return self.update(data, GradientTape)


class InnerFunction(Plain):
    """A model that takes its gradient in a `tf.function` of its own."""

    def __init__(self):
        super().__init__()
        self.inner = tf.function(self.update)

    def train_step(self, data):
        return self.inner(data)


class WithoutTape(Plain):
    def train_step(self, data):
        return {"loss": tf.reduce_sum(self(data[0]))}


class OwnTrainFunction(Plain):
    """A model that makes its train function itself, without `train_step`."""

    def make_train_function(self, force=False):
        def train_function(iterator):
            return self.update(next(iterator))

        self.train_function = train_function
        return train_function


class SeveralBatches(Plain):
    """A model whose train function trains two batches in a call."""

    def train_step(self, data):
        return self.update(data)

    def make_train_function(self, force=False):
        if self.train_function is None or force:

            @tf.function
            def train_function(iterator):
                self.train_step(next(iterator))
                return self.train_step(next(iterator))

            self.train_function = train_function
        return self.train_function


def fit(make=Plain, callbacks=(), model=None, **options):
    """Fit two epochs of six batches, and return the model."""
    keras.utils.set_random_seed(0)
    if model is None:
        model = make()
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=list(callbacks), **{"epochs": 2, **options})
    return model


def assert_same_weights(first, second):
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("make", [Decorated, ImportedTape], ids=lambda make: make.__name__)
@pytest.mark.parametrize("fitted_before", [False, True])
def test_a_fit_that_can_be_measured_is(make, fitted_before, tmp_path):
    before = [fit(make) if fitted_before else None for _ in range(2)]
    plain = fit(make, model=before[0])
    measured = fit(make, [tapescope.Monitor(tmp_path, tapescope.every(3), strict=True)], model=before[1])
    assert_same_weights(plain, measured)
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [0, 3, 6, 9]
    assert np.all(run["gradient_norm"] > 0)


@pytest.mark.parametrize("make", [InnerFunction, WithoutTape, OwnTrainFunction], ids=lambda make: make.__name__)
def test_a_fit_that_cannot_be_measured_goes_on(make, tmp_path, caplog):
    measured = fit(make, [tapescope.Monitor(tmp_path)])
    assert_same_weights(measured, fit(make))
    assert len([r for r in caplog.records if "tapescope" in r.getMessage()]) == 1
    assert "write the loop with tapescope.Probe" in caplog.text


@pytest.mark.parametrize("capture", ["never", "on_finding"])
def test_a_train_function_that_takes_several_batches_is_measured(capture, tmp_path):
    monitor = tapescope.Monitor(tmp_path, tapescope.every(2), capture=capture)
    with pytest.warns(UserWarning, match="ran out of data"):  # three calls use up the six batches
        plain = fit(SeveralBatches)
    with pytest.warns(UserWarning, match="ran out of data"):
        measured = fit(SeveralBatches, [monitor])
    assert_same_weights(plain, measured)
    assert tapescope.Run(tmp_path).steps.size > 0


def test_a_graph_of_the_users_has_no_measuring_tape(tmp_path):
    model = fit(InnerFunction, [tapescope.Monitor(tmp_path)])
    plain = fit(InnerFunction)
    graphs = [m.inner.get_concrete_function((tf.constant(X[:8]), tf.constant(Y[:8]))).graph for m in (model, plain)]
    types = [sorted(op.type for op in graph.get_operations()) for graph in graphs]
    assert types[0] == types[1]


def test_a_model_without_trainable_variables_is_fitted(tmp_path, caplog):
    class Empty(keras.Sequential):
        def train_step(self, data):
            return {"loss": tf.reduce_sum(self(data[0]))}

    model = Empty([keras.Input((3,)), keras.layers.Flatten()])
    model.compile("sgd", "mse", jit_compile=False)
    fit(model=model, callbacks=[tapescope.Monitor(tmp_path / "run")])
    assert "this fit is not measured: `model` must have a trainable variable" in caplog.text


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            raise KeyboardInterrupt


def test_a_cell_is_run_again_after_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(callbacks=[tapescope.Monitor(tmp_path, tapescope.every(2)), Interrupt()])
    fit(callbacks=[tapescope.Monitor(tmp_path, tapescope.every(4))])
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 4, 8]


def test_the_next_fit_ends_the_run_of_an_interrupted_one_that_nobody_holds(tmp_path):
    for name in "ab":
        with pytest.raises(KeyboardInterrupt):
            fit(callbacks=[tapescope.Monitor(tmp_path / name, tapescope.every(2)), Interrupt()])
        gc.collect()
    status = tapescope.Run(tmp_path / "a").status
    assert (status["state"], status["reason"]) == ("ended", "interrupted")


def test_a_fit_within_a_fit_leaves_the_outer_one_its_recorder(tmp_path):
    inner = tapescope.Monitor(tmp_path / "inner", tapescope.every(4))
    once = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: fit(callbacks=[inner]))
    fit(callbacks=[tapescope.Monitor(tmp_path / "outer", tapescope.every(4)), once])
    assert tapescope.Run(tmp_path / "outer").steps.tolist() == [0, 4, 8]


def test_a_fit_that_raises_in_its_first_batch_says_no_more_than_keras(tmp_path, caplog):
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1))
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, "relu")])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="incompatible"):
        model.fit(X[:, :1], Y, callbacks=[monitor], verbose=0)
    model.fit(X, Y, batch_size=len(X), callbacks=[monitor], verbose=0)
    assert tapescope.Run(tmp_path).steps.tolist() == [0]
    assert "no reading of them was written" not in caplog.text


def test_a_later_epoch_continues_the_run(tmp_path):
    for first, last in ((0, 2), (2, 4)):
        fit(callbacks=[tapescope.Monitor(tmp_path, tapescope.every(3))], initial_epoch=first, epochs=last)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


@keras.saving.register_keras_serializable("tapescope_tests")
class Saved(keras.Model):
    """A subclassed model that can be saved."""

    def __init__(self, **options):
        super().__init__(**options)
        self.out = keras.layers.Dense(2, name="out")

    def call(self, x):
        return self.out(x)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras saves its variables so
def test_a_loaded_model_continues_the_run(tmp_path):
    fit(Saved, [tapescope.Monitor(tmp_path / "run", tapescope.every(3))]).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    monitor = tapescope.Monitor(tmp_path / "run", tapescope.every(3))
    fit(model=loaded, callbacks=[monitor], initial_epoch=2, epochs=4)
    assert tapescope.Run(tmp_path / "run").steps.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


def test_two_monitors_of_one_fit_both_record(tmp_path):
    fit(callbacks=[tapescope.Monitor(tmp_path / name, tapescope.every(4)) for name in "ab"])
    assert tapescope.Run(tmp_path / "a").steps.tolist() == [0, 4, 8]
    assert tapescope.Run(tmp_path / "b").steps.tolist() == [1, 5, 9]


def test_a_monitor_whose_batches_another_one_measures_says_so(tmp_path, caplog):
    fit(callbacks=[tapescope.Monitor(tmp_path / name, tapescope.every(1)) for name in "ab"])
    assert len(tapescope.Run(tmp_path / "a").steps) == 12
    assert f"nothing is recorded in {tmp_path / 'b'}" in caplog.text


def test_two_monitors_of_one_fit_do_not_share_a_directory(tmp_path, caplog):
    fit(callbacks=[tapescope.Monitor(tmp_path, tapescope.every(n)) for n in (4, 3)])
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 4, 8]
    assert "two Monitors of one fit write to" in caplog.text


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_monitor_records_another_model(duplicate, tmp_path):
    monitor = tapescope.Monitor(tmp_path, tapescope.every(4), layers="hidden")
    fit(callbacks=[monitor])
    fit(callbacks=[duplicate(monitor)])
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [0, 4, 8]
    assert run.layers == ("hidden",)


def test_a_bucket_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"`logdir` must be a directory of this machine.* got 'gs://bucket/run'"):
        fit(callbacks=[tapescope.Monitor("gs://bucket/run")])
    assert os.listdir(tmp_path) == []


def test_the_home_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fit(callbacks=[tapescope.Monitor("~/run", tapescope.every(4))])
    assert tapescope.Run(tmp_path / "run").steps.tolist() == [0, 4, 8]


_RESET = """
import sys, keras, numpy as np, tapescope
from tensorflow.python.eager import context
for name in "ab":
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)])
    model.compile("sgd", "mse", jit_compile=False)
    monitor = tapescope.Monitor(f"{sys.argv[1]}/{name}", tapescope.every(2), strict=True)
    model.fit(np.ones([16, 3]), np.ones([16, 2]), batch_size=4, verbose=0, callbacks=[monitor])
    context._reset_context()
    keras.backend.clear_session()
"""


@pytest.mark.slow
def test_a_fit_after_a_reset_of_tensorflows_context_is_measured(tmp_path):
    subprocess.run([sys.executable, "-c", _RESET, tmp_path], check=True, capture_output=True, timeout=300)
    assert tapescope.Run(tmp_path / "b").steps.tolist() == [0, 2]
