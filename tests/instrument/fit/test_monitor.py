"""`model.fit` with a Monitor: every way that fit compiles, the same weights, and the model as it was found."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, mirrored

import tapescope

RNG = np.random.default_rng(2)
X, Y = RNG.normal(size=[96, 6]).astype(np.float32), RNG.normal(size=[96, 2]).astype(np.float32)


class Custom(keras.Model):
    """A `train_step` of its own, with an inner tape for a gradient penalty."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(5, "tanh", name="hidden"), keras.layers.Dense(2, name="out")

    def call(self, x):
        return self.out(self.hidden(x))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(self(x, training=True))
            penalty = tf.reduce_mean(tf.square(inner.gradient(total, x)))
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y)) + 0.1 * penalty
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


def fit(monitors, make=lambda: dense_chain([5, 2], ["relu", "sigmoid"], 6), fit_options=None, **options):
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(keras.optimizers.Adam(0.01), "mse", **options)
    history = model.fit(
        X, Y, batch_size=8, epochs=2, shuffle=True, verbose=0, callbacks=monitors, **(fit_options or {})
    )
    return model, history


@pytest.mark.parametrize(
    "options",
    [
        {"jit_compile": True},
        {"jit_compile": False},
        {"run_eagerly": True},
        {"jit_compile": False, "steps_per_execution": 3},
        {"jit_compile": False, "make": Custom},
        {"jit_compile": False, "fit_options": {"sample_weight": np.linspace(0, 1, 96), "validation_data": (X, Y)}},
        {"run_eagerly": True, "fit_options": {"class_weight": {0: 1.0, 1: 3.0}}},
    ],
    ids=["jit", "graph", "eager", "steps_per_execution", "custom", "weights", "class_weights"],
)
def test_fit_records_and_trains_to_the_same_bits(options, tmp_path):
    plain, history = fit([], **options)
    watched, same_history = fit([tapescope.Monitor(tmp_path, tapescope.every(3))], **options)
    for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert same_history.history == history.history
    run = tapescope.Run(tmp_path)
    per_call = options.get("steps_per_execution", 1)  # the record is of the last batch of an execution
    assert run.steps.tolist() == list(range(per_call - 1, 24, 3 * per_call))
    np.testing.assert_array_equal(run["examples_seen"], 8 * (run.steps + 1))
    assert len(run.layers) >= 2
    assert np.all(run["gradient_norm"] > 0)
    assert np.all(run["update_ratio"] > 0)
    assert np.all(np.isfinite(run["loss"]))
    assert run.status["state"] == "ended"
    assert tf.GradientTape.__name__ == "GradientTape"
    assert "train_step" not in vars(watched)


def test_readings_are_those_of_the_probe(tmp_path):
    keras.utils.set_random_seed(1)
    model = dense_chain([5, 2], ["relu", "sigmoid"], 6)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0, callbacks=[tapescope.Monitor(tmp_path)])
    probe = tapescope.Probe(twin)
    with probe.tape(True) as tape:
        loss = tf.reduce_mean(keras.losses.mean_squared_error(Y[:8], twin(X[:8], training=True)))
    tape.gradient(loss, twin.trainable_variables)
    run, reading = tapescope.Run(tmp_path), tape.reading()
    for column in ("gradient_norm", "delta_norm", "saturated", "activation_std", "flow_gate"):
        np.testing.assert_allclose(run[column][0], reading.column(column), rtol=1e-5, err_msg=column)


def test_under_a_strategy(tmp_path):
    def make():
        with mirrored(2).scope():
            return dense_chain([5, 2], ["relu", "sigmoid"], 6)

    with mirrored(2).scope():
        fit([tapescope.Monitor(tmp_path, tapescope.every(4))], make, jit_compile=False)
    run = tapescope.Run(tmp_path)
    assert run.status["replicas"] == 2
    assert run["replica_norm"].shape == (6, 2, 4)
    assert run["examples_seen"][0] == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras' own callback and NumPy 2
def test_beside_kerass_own_tensorboard_callback(tmp_path):
    fit([keras.callbacks.TensorBoard(tmp_path), tapescope.Monitor(tmp_path / "gradients")], jit_compile=False)
    assert tapescope.Run(tmp_path / "gradients").steps.tolist() == [0, 10, 20]


def test_an_error_found_stops_the_training(tmp_path):
    def make():
        model = dense_chain([5, 2], ["relu", "sigmoid"], 6)
        model.layers[1].kernel.assign(np.full([5, 2], np.nan))
        return model

    monitor = tapescope.Monitor(tmp_path, tapescope.every(1), on_finding="stop")
    keras.utils.set_random_seed(1)
    model = make()
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, batch_size=1, epochs=200, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    assert run.steps[-1] < 200 * 96 - 1
    assert run.findings[0]["rule"] == "non_finite"
    assert run.findings[0]["layer"] == "layer1"
    with pytest.raises(ValueError, match='must be "continue" or "stop"'):
        tapescope.Monitor(tmp_path, on_finding="halt")


def test_a_train_step_without_a_tape_is_refused_in_words(tmp_path):
    class NoTape(Custom):
        def train_step(self, data):
            return {"loss": tf.reduce_sum(self(data[0]))}

    with pytest.raises(ValueError, match="took no gradient"):
        fit([tapescope.Monitor(tmp_path)], NoTape, run_eagerly=True)


def test_a_second_fit_goes_on_and_another_model_is_refused(tmp_path):
    monitor = tapescope.Monitor(tmp_path, tapescope.every(3), window_examples=16)
    model = dense_chain([5, 2], ["relu", "sigmoid"], 6)
    model.compile("sgd", "mse", run_eagerly=True)
    for _ in range(2):
        model.fit(X[:32], Y[:32], batch_size=8, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [0, 3, 6]
    assert run["window_examples"].tolist()[1:] == [16, 16]  # the second window began in the first fit
    other = keras.models.clone_model(model)
    other.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(ValueError, match=r"recorded another model.*make a new one, with a `logdir` of its own"):
        other.fit(X, Y, verbose=0, callbacks=[monitor])


def test_what_raises_or_stops_in_between_leaves_the_model_as_it_was(tmp_path):
    class Raises(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    model = dense_chain([5, 2], ["relu", "sigmoid"], 6)
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X[:8], Y[:8], verbose=0)
    own, fields = model.train_function, set(vars(model)) | set(vars(model.optimizer))
    monitor = tapescope.Monitor(tmp_path, tapescope.every(3))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=[monitor, Raises()])
    model.fit(X[:16], Y[:16], batch_size=8, verbose=0, callbacks=[monitor])
    assert model.train_function is own
    assert set(vars(model)) | set(vars(model.optimizer)) == fields
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 3]  # batch 3 was due and never ran: the next is it
    assert tapescope.Run(tmp_path).status["state"] == "ended"


@pytest.mark.parametrize(("name", "value"), [("clipnorm", 0.01), ("global_clipnorm", 0.01), ("clipvalue", 0.001)])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_the_optimizer_clips_is_recorded_before_and_after(name, value, scaled, tmp_path):
    model = dense_chain([5, 2], ["tanh", "linear"], 6)
    optimizer = keras.optimizers.SGD(1.0, **{name: value})
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer, 8.0) if scaled else optimizer, "mse", run_eagerly=True)
    before = model.get_weights()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.mean_squared_error(Y[:8], model(X[:8])))
    exact = tape.gradient(loss, model.trainable_variables)
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0, callbacks=[tapescope.Monitor(tmp_path)])
    change = [np.linalg.norm(a - b) for a, b in zip(before, model.get_weights(), strict=True)]  # what SGD applied
    run = tapescope.Run(tmp_path)
    np.testing.assert_allclose(run["gradient_norm"][0], [tf.norm(g) for g in exact], rtol=1e-4)
    np.testing.assert_allclose(run["applied_norm"][0], change, rtol=1e-3)


def test_accumulated_gradients_are_read_where_they_are_applied(tmp_path):
    model = dense_chain([5, 2], ["tanh", "linear"], 6)
    model.compile(keras.optimizers.SGD(1e-3, gradient_accumulation_steps=3), "mse", run_eagerly=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.mean_squared_error(Y[:24], model(X[:24])))
    exact = tape.gradient(loss, model.trainable_variables)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(5))
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [2, 5, 11]
    np.testing.assert_allclose(run["gradient_norm"][0], [tf.norm(g) for g in exact], rtol=1e-4)
    assert np.all(run["update_ratio"] > 0)


def test_a_step_that_a_loss_scale_skips_is_marked_and_no_explosion(tmp_path):
    """In float16 the scaled gradient overflows at first; the scale is halved until it does not."""
    keras.utils.set_random_seed(1)
    model = dense_chain([5, 2], ["relu", "linear"], 6, dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**20)
    model.compile(optimizer, "mse", run_eagerly=True)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[tapescope.Monitor(tmp_path, tapescope.every(1))])
    run = tapescope.Run(tmp_path)
    skipped = run["skipped"] == 1
    assert skipped[0]
    assert not skipped[-12:].any()
    np.testing.assert_array_equal(skipped, np.all(run["update_ratio"] == 0, axis=1))
    assert [f["severity"] for f in run.findings if f["rule"] == "non_finite"] == ["info"]
    assert not [f for f in run.findings if f["rule"] in ("exploding", "gradient_spike")]
    assert np.nanmax(run["gradient_norm"][~skipped]) < 100  # unscaled
