"""`model.fit` with a Monitor: its records, the same weights as without it, and the model as it was found."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, mirrored
from scripts.testbed.webhooks import webhook

import tapescope
from tapescope.storage.run_index import read_index

RNG = np.random.default_rng(2)
X = RNG.normal(size=[96, 6]).astype(np.float32)
Y = RNG.normal(size=[96, 2]).astype(np.float32)
BATCH = 8


class Custom(keras.Model):
    """A model with a `train_step` of its own, whose inner tape takes a gradient penalty."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(5, "tanh", name="hidden")
        self.out = keras.layers.Dense(2, name="out")

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


def make_chain():
    return dense_chain([5, 2], ["relu", "sigmoid"], 6)


def make_compiled(optimizer: Any = "sgd", make=make_chain, **options):
    keras.utils.set_random_seed(1)
    model = make()
    model.compile(optimizer, "mse", **options)
    return model


def fit(callbacks, make=make_chain, fit_options=None, **options):
    """Train two epochs of twelve batches; `options` are those of `compile`."""
    model = make_compiled(keras.optimizers.Adam(0.01), make, **options)
    history = model.fit(
        X, Y, batch_size=BATCH, epochs=2, shuffle=True, verbose=0, callbacks=callbacks, **(fit_options or {})
    )
    return model, history.history


def exact_norms(model, examples):
    """Return the gradient norms of the mean squared error over the first examples."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(keras.losses.mean_squared_error(Y[:examples], model(X[:examples])))
    return [tf.norm(g) for g in tape.gradient(loss, model.trainable_variables)]


class Fits(NamedTuple):
    """The same training without and with a Monitor that measures every third execution."""

    plain: Any
    monitored: Any
    plain_history: Any
    monitored_history: Any
    run: tapescope.Run
    steps_per_execution: int


VARIANTS = {
    "jit": {"jit_compile": True},
    "graph": {"jit_compile": False},
    "eager": {"run_eagerly": True},
    "steps_per_execution": {"jit_compile": False, "steps_per_execution": 3},
    "custom": {"jit_compile": False, "make": Custom},
    "weights": {
        "jit_compile": False,
        "fit_options": {"sample_weight": np.linspace(0, 1, 96), "validation_data": (X, Y)},
    },
    "class_weights": {"run_eagerly": True, "fit_options": {"class_weight": {0: 1.0, 1: 3.0}}},
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "jit" else ()) for name in VARIANTS],
)
def fits(request, tmp_path_factory):
    """Train each variant twice."""
    logdir = tmp_path_factory.mktemp("run")
    options = VARIANTS[request.param]
    plain, plain_history = fit([], **options)
    monitored, monitored_history = fit([tapescope.Monitor(logdir, tapescope.every(3))], **options)
    return Fits(
        plain=plain,
        monitored=monitored,
        plain_history=plain_history,
        monitored_history=monitored_history,
        run=tapescope.Run(logdir),
        steps_per_execution=options.get("steps_per_execution", 1),
    )


def test_a_monitored_fit_trains_to_the_same_bits(fits):
    for plain, monitored in zip(fits.plain.get_weights(), fits.monitored.get_weights(), strict=True):
        np.testing.assert_array_equal(plain, monitored)


def test_a_monitored_fit_has_the_same_history(fits):
    assert fits.monitored_history == fits.plain_history


def test_the_last_batch_of_every_third_execution_is_recorded(fits):
    count = fits.steps_per_execution
    assert fits.run.steps.tolist() == list(range(count - 1, 24, 3 * count))


def test_examples_are_counted_over_all_batches(fits):
    np.testing.assert_array_equal(fits.run["examples_seen"], BATCH * (fits.run.steps + 1))


@pytest.mark.parametrize("column", ["gradient_norm", "update_ratio"])
def test_every_record_has_gradients_and_updates(fits, column):
    assert np.all(fits.run[column] > 0)


def test_every_record_has_a_loss(fits):
    assert np.isfinite(fits.run["loss"]).all()


def test_both_layers_are_recorded(fits):
    recorded = {name.split("#")[0] for name in fits.run.layers}  # the custom step calls each layer twice
    assert recorded == {layer.name for layer in fits.monitored.layers}


def test_the_run_has_ended(fits):
    assert fits.run.status["state"] == "ended"


def test_the_models_train_step_is_not_replaced_after_fit(fits):
    assert "train_step" not in vars(fits.monitored)


def test_the_gradient_tape_is_not_replaced_after_fit(fits):
    assert isinstance(tf.GradientTape, type)


def test_readings_are_those_of_a_probe(tmp_path):
    model = make_compiled(keras.optimizers.SGD(0.1), jit_compile=False)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0, callbacks=[tapescope.Monitor(tmp_path)])
    probe = tapescope.Probe(twin)
    with probe.tape(True) as tape:
        loss = tf.reduce_mean(keras.losses.mean_squared_error(Y[:8], twin(X[:8], training=True)))
    tape.gradient(loss, twin.trainable_variables)
    run = tapescope.Run(tmp_path)
    reading = tape.reading()
    for column in ("gradient_norm", "delta_norm", "saturated", "activation_std", "flow_gate"):
        np.testing.assert_allclose(run[column][0], reading.column(column), rtol=1e-5, err_msg=column)


@pytest.mark.slow
def test_records_under_a_strategy_are_of_all_replicas(tmp_path):
    def make():
        with mirrored(2).scope():
            return make_chain()

    with mirrored(2).scope():
        fit([tapescope.Monitor(tmp_path, tapescope.every(4))], make, jit_compile=False)
    run = tapescope.Run(tmp_path)
    assert run.status["replicas"] == 2
    assert run["replica_norm"].shape == (6, 2, 4)
    assert run["examples_seen"][0] == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras' own callback and NumPy 2
def test_a_monitor_works_with_kerass_tensorboard_callback(tmp_path):
    monitor = tapescope.Monitor(tmp_path / "gradients", tapescope.every(10))
    fit([keras.callbacks.TensorBoard(tmp_path), monitor], jit_compile=False)
    assert tapescope.Run(tmp_path / "gradients").steps.tolist() == [0, 10, 20]


class TracedLate(keras.Sequential):
    """A model whose train function looks `train_step` up when it is traced, as in Keras before 3.7."""

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            self.train_function = tf.function(lambda iterator: self.train_step(next(iterator)))
        return self.train_function


def make_traced_late():
    return TracedLate(make_chain().layers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_train_step_that_is_looked_up_when_it_is_traced_is_measured(tmp_path):
    model = make_compiled(make=make_traced_late, jit_compile=False)
    callbacks = [keras.callbacks.TensorBoard(tmp_path), tapescope.Monitor(tmp_path / "run", tapescope.every(3))]
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)
    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    assert tapescope.Run(tmp_path / "run").steps.tolist() == list(range(0, 24, 3))
    assert "train_step" not in vars(model)


class FirstBatchOfExecution(tapescope.Monitor):
    """A Monitor that gets the number of an execution's first batch at its end, as in Keras before 3.11."""

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch // 3 * 3, logs)


def test_an_execution_is_recorded_at_its_last_batch_also_if_keras_gives_the_first(tmp_path):
    fit([FirstBatchOfExecution(tmp_path, tapescope.every(3))], jit_compile=False, steps_per_execution=3)
    assert tapescope.Run(tmp_path).steps.tolist() == [2, 11, 20]


@pytest.mark.slow
def test_a_sink_gets_the_records_of_a_fit(tmp_path):
    with webhook() as (url, bodies):
        fit([tapescope.Monitor(tmp_path, tapescope.every(5), sinks=[f"webhook:{url}"])], jit_compile=False)
    run = tapescope.Run(tmp_path)
    sent = [body for body in bodies if body["event"] == "scalars"]
    assert [body["step"] for body in sent] == run.steps.tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_allclose([body["scalars"]["loss"] for body in sent], run["loss"], rtol=0.5)
    assert all(len(body["scalars"]) <= 20 for body in sent)
    assert [body["event"] for body in (bodies[0], bodies[-1])] == ["start", "end"]
    assert bodies[0]["about"]["program"] == "model.fit"
    assert bodies[-1]["reason"] == "completed"


def test_an_error_that_the_rules_find_stops_the_training(tmp_path):
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1), on_finding="stop")
    model = make_compiled(jit_compile=False)
    model.layers[1].kernel.assign(np.full([5, 2], np.nan))
    model.fit(X, Y, batch_size=1, epochs=200, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    assert run.steps[-1] < 200 * 96 - 1
    assert ("non_finite", "layer1") in [(finding["rule"], finding["layer"]) for finding in run.findings]


def test_on_finding_has_two_values(tmp_path):
    with pytest.raises(ValueError, match='`on_finding` must be "continue" or "stop"; got \'halt\''):
        tapescope.Monitor(tmp_path, on_finding="halt")


@pytest.fixture
def twice(tmp_path):
    """Fit one model twice with one Monitor."""
    monitor = tapescope.Monitor(tmp_path, tapescope.every(3), window_examples=16)
    model = make_compiled(run_eagerly=True)
    for _ in range(2):
        model.fit(X[:32], Y[:32], batch_size=BATCH, verbose=0, callbacks=[monitor])
    return monitor, model, tapescope.Run(tmp_path)


def test_a_second_fit_continues_the_step_numbers(twice):
    _, _, run = twice
    assert run.steps.tolist() == [0, 3, 6]


def test_a_second_fit_continues_the_window_of_units(twice):
    _, _, run = twice
    assert run["window_examples"].tolist()[1:] == [16, 16]


def test_a_loop_of_train_on_batch_that_calls_its_callbacks_is_measured(tmp_path):
    model = make_compiled(jit_compile=False)
    callbacks = keras.callbacks.CallbackList([tapescope.Monitor(tmp_path, tapescope.every(2))], model=model)
    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(3):
            callbacks.on_train_batch_begin(batch)
            logs = model.train_on_batch(X[:BATCH], Y[:BATCH], return_dict=True)
            callbacks.on_train_batch_end(batch, logs)
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [0, 2, 4]
    assert np.isfinite(run["gradient_norm"]).all()


def test_each_further_model_is_a_run_of_its_own(tmp_path, caplog):
    monitor = tapescope.Monitor(tmp_path / "fold", tapescope.every(3))
    for _ in range(3):
        model = make_compiled(run_eagerly=True)
        model.fit(X[:32], Y[:32], batch_size=BATCH, verbose=0, callbacks=[monitor])
    runs = [tapescope.Run(tmp_path / name) for name in ("fold", "fold_2", "fold_3")]
    assert [run.steps.tolist() for run in runs] == [[0, 3]] * 3
    assert [run.status["state"] for run in runs] == ["ended"] * 3
    said = [record.getMessage() for record in caplog.records if "has recorded another model" in record.getMessage()]
    assert len(said) == 2
    assert said[1].endswith(f"fold_2; it records this one in {tmp_path / 'fold_3'}")


class RaiseInBatch(keras.callbacks.Callback):
    """A callback that interrupts the training at the start of a batch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(tmp_path):
    """Interrupt a fit at batch 3, which is due to be measured, and fit two batches more."""
    model = make_compiled(run_eagerly=True)
    model.fit(X[:8], Y[:8], verbose=0)
    before = model.train_function, set(vars(model)) | set(vars(model.optimizer))
    monitor = tapescope.Monitor(tmp_path, tapescope.every(3))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[monitor, RaiseInBatch(3)])
    model.fit(X[:16], Y[:16], batch_size=BATCH, verbose=0, callbacks=[monitor])
    return model, before, tapescope.Run(tmp_path)


def test_an_interrupted_fit_leaves_the_train_function(interrupted):
    model, (train_function, _), _ = interrupted
    assert model.train_function is train_function


def test_an_interrupted_fit_leaves_no_attributes(interrupted):
    model, (_, attributes), _ = interrupted
    assert set(vars(model)) | set(vars(model.optimizer)) == attributes


def test_the_batch_after_an_interrupted_one_is_measured(interrupted):
    _, _, run = interrupted
    assert run.steps.tolist() == [0, 3]


def test_a_continued_run_ends(interrupted):
    _, _, run = interrupted
    assert run.status["state"] == "ended"


@pytest.mark.parametrize("loss_scale", [None, 8.0])
@pytest.mark.parametrize("clipping", [{"clipnorm": 0.01}, {"global_clipnorm": 0.01}, {"clipvalue": 0.001}], ids=str)
def test_clipped_gradients_are_recorded_before_and_after(clipping, loss_scale, tmp_path):
    optimizer: Any = keras.optimizers.SGD(1.0, **clipping)
    if loss_scale is not None:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, loss_scale)
    model = make_compiled(optimizer, lambda: dense_chain([5, 2], ["tanh", "linear"], 6), run_eagerly=True)
    before = model.get_weights()
    expected = exact_norms(model, 8)
    model.fit(X[:8], Y[:8], batch_size=8, verbose=0, callbacks=[tapescope.Monitor(tmp_path)])
    applied = [np.linalg.norm(a - b) for a, b in zip(before, model.get_weights(), strict=True)]  # by SGD of rate 1
    run = tapescope.Run(tmp_path)
    np.testing.assert_allclose(run["gradient_norm"][0], expected, rtol=1e-4)
    np.testing.assert_allclose(run["applied_norm"][0], applied, rtol=1e-3)


def test_accumulated_gradients_are_recorded_in_the_batch_that_applies_them(tmp_path):
    optimizer = keras.optimizers.SGD(1e-3, gradient_accumulation_steps=3)
    model = make_compiled(optimizer, lambda: dense_chain([5, 2], ["tanh", "linear"], 6), run_eagerly=True)
    expected = exact_norms(model, 3 * BATCH)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(5))
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [2, 5, 11]
    np.testing.assert_allclose(run["gradient_norm"][0], expected, rtol=1e-4)
    assert np.all(run["update_ratio"] > 0)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """Train in float16, where the scaled gradient overflows until the loss scale has been halved often enough."""
    logdir = tmp_path_factory.mktemp("float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**20)
    model = make_compiled(
        optimizer, lambda: dense_chain([5, 2], ["relu", "linear"], 6, dtype="mixed_float16"), run_eagerly=True
    )
    monitor = tapescope.Monitor(logdir, tapescope.every(1))
    model.fit(X, Y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[monitor])
    return tapescope.Run(logdir)


def test_steps_that_the_loss_scale_skips_are_marked(overflowing):
    skipped = overflowing["skipped"] == 1
    assert skipped[0]
    assert not skipped[-12:].any()


def test_skipped_steps_are_those_without_an_update(overflowing):
    unchanged = np.all(overflowing["update_ratio"] == 0, axis=1)
    np.testing.assert_array_equal(overflowing["skipped"] == 1, unchanged)


def test_skipped_steps_are_an_info_and_not_an_explosion(overflowing):
    gradient_rules = ("non_finite", "exploding", "gradient_spike")
    found = [(f["rule"], f["severity"]) for f in overflowing.findings if f["rule"] in gradient_rules]
    assert found == [("non_finite", "info")]


def test_gradients_are_recorded_without_the_loss_scale(overflowing):
    assert np.nanmax(overflowing["gradient_norm"][overflowing["skipped"] != 1]) < 100


class Unfreezing(keras.callbacks.Callback):
    """Training of a layer from now on, as Keras asks for it: the model is compiled, and its train function made."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            model: Any = self.model
            model.layers[0].trainable = True
            model.compile(keras.optimizers.SGD(0.01), "mse")
            model.make_train_function(force=True)


def test_a_train_function_that_a_callback_makes_anew_is_measured(tmp_path):
    def train(callbacks):
        keras.utils.set_random_seed(0)
        model: Any = dense_chain([5, 2], ["relu", "linear"], 6)
        model.layers[0].trainable = False
        model.compile("adam", "mse")
        model.fit(x, x[:, :2], batch_size=8, epochs=3, verbose=0, callbacks=[Unfreezing(), *callbacks])
        return model.get_weights()

    x = np.random.default_rng(0).normal(size=(48, 6)).astype("f")
    plain, measured = train([]), train([tapescope.Monitor(tmp_path, tapescope.every(2), strict=True)])
    for left, right in zip(plain, measured, strict=True):
        np.testing.assert_array_equal(left, right)
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == list(range(0, 18, 2))
    assert np.isfinite(run["gradient_norm"][-1]).all()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras says so of every such data set
@pytest.mark.parametrize("make", [lambda: tapescope.every(2), lambda: tapescope.every(5)])
def test_a_data_set_of_unknown_size_is_measured_as_one_of_known_size(tmp_path, make):
    """Keras begins a batch more than there are, in the first epoch."""
    x = np.ones((40, 6), "f")
    signature = (tf.TensorSpec((None, 6)), tf.TensorSpec((None, 2)))
    data: Any = tf.data.Dataset.from_generator(
        lambda: ((x[:8], x[:8, :2]) for _ in range(5)), output_signature=signature
    )
    model: Any = dense_chain([2], ["linear"], 6)
    model.compile("sgd", "mse")
    when = make()
    model.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=[tapescope.Monitor(tmp_path, when)])
    assert tapescope.Run(tmp_path).steps.tolist() == [n for n in range(15) if make()(n)]


@pytest.mark.parametrize("name", ["val", "test"])
def test_the_loss_of_an_output_is_not_a_validations(tmp_path, name):
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=name)(inputs), keras.layers.Dense(1, name="other")(inputs)]
    model: Any = keras.Model(inputs, outputs)
    model.compile("sgd", ["mse", "mse"])
    x, y = np.ones([16, 4], "f"), np.ones([16, 1], "f")
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1))
    model.fit(x, [y, y], batch_size=8, epochs=2, verbose=0, callbacks=[monitor])
    assert np.isnan(tapescope.Run(tmp_path)["validation_loss"]).all()
    index = read_index(tmp_path)
    assert index is not None
    assert f"training/{name}_loss" in index["scalars"]


def test_the_loss_of_a_validation_is_recorded(tmp_path):
    model: Any = dense_chain([2], ["linear"], 4)
    model.compile("sgd", "mse")
    x, y = np.ones([16, 4], "f"), np.ones([16, 2], "f")
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1))
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0, validation_data=(x, y), callbacks=[monitor])
    known = history.history["val_loss"]
    expected = [np.nan, np.nan, known[0], known[0], known[1], known[1]]
    np.testing.assert_allclose(tapescope.Run(tmp_path)["validation_loss"], expected)


def test_the_examples_of_uneven_batches_are_counted(tmp_path):
    model: Any = dense_chain([2], ["linear"], 4)
    model.compile("sgd", "mse")
    x, y = np.ones([10, 4], "f"), np.ones([10, 2], "f")
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[tapescope.Monitor(tmp_path, tapescope.every(1))])
    assert tapescope.Run(tmp_path)["examples_seen"].tolist() == [4, 8, 10, 14, 18, 20]


def test_a_monitor_that_is_twice_among_the_callbacks_counts_each_batch_once(tmp_path):
    once, twice = (tapescope.Monitor(tmp_path / name, tapescope.every(5)) for name in ("once", "twice"))
    fit([once])
    fit([twice, twice])
    assert tapescope.Run(tmp_path / "twice").steps.tolist() == tapescope.Run(tmp_path / "once").steps.tolist()


def test_a_relative_directory_stays_the_same_between_two_fits(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monitor = tapescope.Monitor("run", tapescope.every(8))
    model, _ = fit([monitor])
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[monitor])
    assert tapescope.Run(tmp_path / "run").steps.tolist() == [0, 8, 16, 24, 32]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"layers": "("}, r"`layers` must be a valid regular expression; got '\('"),
        ({"layers": ["dense"]}, r"`layers` must be a regular expression.*; got \['dense'\]"),
        ({"window_examples": 0}, "`window_examples` must be a positive number of examples; got 0"),
        ({"examples": "many"}, "`examples` must be a positive number.*; got 'many'"),
    ],
)
def test_an_argument_that_no_model_makes_right_is_refused_before_fit(wrong, line):
    with pytest.raises(ValueError, match=line):
        tapescope.Monitor(**wrong)


@pytest.mark.parametrize("wrong", [b"run", 3])
def test_a_directory_that_is_not_a_path_is_refused(wrong):
    with pytest.raises(ValueError, match="`logdir` must be the path of a directory"):
        tapescope.Monitor(wrong)
