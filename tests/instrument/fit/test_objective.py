"""The objective of a fit as Monitor knows it: loss, targets, metrics, and what Keras really trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tapescope

RNG = np.random.default_rng(0)
X = RNG.normal(size=[48, 4]).astype("float32")
BINARY = RNG.integers(2, size=[48, 1]).astype("float32")
CLASSES = RNG.integers(3, size=[48])

pytestmark = pytest.mark.filterwarnings("ignore:.*softmax over axis -1:UserWarning")


def fit(logdir, output, loss, y, dtype=None, x=X, fit_options=None, **options):
    """Train six batches, each of them measured, and return the run."""
    last = output if isinstance(output, layers.Layer) else layers.Dense(*output, name="out")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu", dtype=dtype), last])
    model.compile(keras.optimizers.SGD(0.25), loss, **options)
    monitor = tapescope.Monitor(logdir, tapescope.every(1), histograms=False)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0, shuffle=False, callbacks=[monitor], **(fit_options or {}))
    return tapescope.Run(logdir)


def rules(run, severity=("error", "warning")):
    return {f["rule"] for f in run.findings if f["severity"] in severity}


def test_a_fit_says_its_objective(tmp_path):
    run = fit(tmp_path, (3, "softmax"), "sparse_categorical_crossentropy", CLASSES, metrics=["accuracy"])
    (objective,) = run.details["objectives"]
    assert objective == {
        "output": "output",
        "target": "target",
        "layer": "out",
        "activation": "softmax",
        "activation_before": "unknown",
        "units": 3,
        "target_units": 1,
        "loss": "sparse_categorical_crossentropy",
        "from_logits": False,
        "ignores_class": False,
        "logits_taken": True,
        "sums_examples": False,
        "metrics": ["accuracy"],
        "learning_rate": 0.25,
        "batches_per_epoch": 6,
        "loss_measured": True,
        "weighted": False,
    }


@pytest.mark.parametrize("reduce", [tf.reduce_sum, tf.reduce_mean])
def test_a_loss_that_sums_over_the_batch_is_an_info(tmp_path, reduce):
    run = fit(tmp_path, (3, "linear"), lambda y, out: reduce((out - y) ** 2), X[:, :3])
    found = [f["message"] for f in run.findings if f["rule"] == "loss_mismatch" and f["severity"] == "info"]
    assert [m.startswith("the loss is the sum over the batch") for m in found] == [True] * (reduce is tf.reduce_sum)


def test_a_sum_of_weighted_examples_may_be_a_mean(tmp_path):
    weights = {"sample_weight": np.full(len(X), 1 / 8)}
    run = fit(tmp_path, (3, "linear"), keras.losses.MeanSquaredError(reduction="sum"), X[:, :3], fit_options=weights)
    assert [o["sums_examples"] for o in run.details["objectives"]] == [False]


def test_inputs_targets_and_outputs_of_a_fit_are_measured(tmp_path):
    run = fit(tmp_path, (3, "softmax"), "sparse_categorical_crossentropy", CLASSES)
    assert run.rows("data_max") == ("input", "target", "output")
    np.testing.assert_allclose(run["data_mean"][:, 0], X.reshape(6, -1).mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run["data_max"][:, 1], CLASSES.reshape(6, -1).max(1))


def test_the_loss_of_a_record_is_that_of_its_batch(tmp_path):
    run = fit(tmp_path, (1, None), "mse", 10 * np.arange(48, dtype="float32")[:, None] // 80)
    epoch_means = np.cumsum(run["loss"]) / np.arange(1, 7)
    assert not np.allclose(run["loss"], epoch_means, rtol=1e-2)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    monitor = tapescope.Monitor(tmp_path / "one", tapescope.every(1))
    history = model.fit(X, BINARY, batch_size=48, epochs=3, verbose=0, callbacks=[monitor])
    np.testing.assert_allclose(tapescope.Run(tmp_path / "one")["loss"], history.history["loss"], rtol=1e-5)


TAKEN = {
    "softmax and sparse": ((3, "softmax"), "sparse_categorical_crossentropy", CLASSES),
    "sigmoid and binary": ((1, "sigmoid"), "binary_crossentropy", BINARY),
    "softmax of one and binary": ((1, "softmax"), "binary_crossentropy", BINARY),
    "sigmoid and categorical": ((3, "sigmoid"), "categorical_crossentropy", np.eye(3)[CLASSES]),
}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", TAKEN)
def test_logits_are_taken_exactly_where_keras_takes_them(kind, eager, tmp_path):
    """The gradient of the last bias tells: that of a loss of logits is their probability less the target."""
    output, loss, y = TAKEN[kind]
    run = fit(tmp_path, output, loss, y, run_eagerly=eager)
    assert run.details["objectives"][0]["logits_taken"]
    model = keras.Sequential([keras.Input((4,)), layers.Dense(*output)])
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(getattr(keras.losses, loss)(y, model(X)))
    gradient = tape.gradient(value, model.trainable_variables)[1]
    logits = X @ np.asarray(model.weights[0])
    odd = np.exp(logits)
    own = {"binary": odd / (1 + odd)}.get(loss.split("_")[0], odd / odd.sum(-1, keepdims=True))
    wanted = np.eye(3)[CLASSES] if y.ndim == 1 else y
    np.testing.assert_allclose(gradient, (own - wanted).mean(0), rtol=1e-4, atol=1e-6)


def test_logits_are_not_taken_behind_a_cast(tmp_path):
    output = layers.Dense(3, "softmax", dtype="mixed_float16", name="out")
    run = fit(tmp_path, output, "sparse_categorical_crossentropy", CLASSES)
    assert not run.details["objectives"][0]["logits_taken"]


def test_what_is_trained_and_what_is_predicted_are_told_apart(tmp_path):
    run = fit(tmp_path, (1, "softmax"), "binary_crossentropy", BINARY)
    (found,) = [f for f in run.findings if f["rule"] == "output_activation"]
    assert "Keras computes the loss from the logits behind it" in found["message"]
    assert 'activation="sigmoid"' in found["advice"]


def test_a_metric_that_does_not_fit_is_an_info(tmp_path):
    run = fit(tmp_path, (1, None), "mse", X[:, :1], metrics=["accuracy"])
    assert rules(run, ("info",)) >= {"loss_mismatch"}
    assert "loss_mismatch" not in rules(run)


def test_class_numbers_that_are_taken_for_values_are_named(tmp_path):
    run = fit(tmp_path, (1, None), "mse", CLASSES.astype("float32"), metrics=["accuracy"])
    assert "loss_mismatch" in rules(run)


def test_examples_of_weight_0_are_not_judged(tmp_path):
    labels = np.where(np.arange(48) % 2, 7, CLASSES)
    weights = (np.arange(48) % 2 == 0).astype("float32")
    # A label outside of the classes has a loss of NaN or an error, so the loss leaves out the examples itself.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=7)
    run = fit(tmp_path, (3, None), loss, labels, fit_options={"sample_weight": weights})
    assert run["data_max"][:, 1].max() == 2


def test_each_output_of_a_dict_has_its_targets(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(3, "relu", name="b")(x)})
    model.compile("sgd", {"a": "mse", "b": "sparse_categorical_crossentropy"})
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1))
    model.fit(X, {"b": CLASSES, "a": X[:, :1]}, batch_size=8, verbose=0, callbacks=[monitor])
    run = tapescope.Run(tmp_path)
    found = {(o["layer"], o["target"], o["loss"]) for o in run.details["objectives"]}
    assert found == {("a", "target/0", "mean_squared_error"), ("b", "target/1", "sparse_categorical_crossentropy")}
    assert [(f["rule"], f["layer"]) for f in run.findings if f["severity"] == "warning"] == [("output_activation", "b")]


def test_a_list_of_outputs_has_a_loss_each(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, [layers.Dense(1, name="a")(x), layers.Dense(1, "softmax", name="b")(x)])
    model.compile("sgd", ["mse", "binary_crossentropy"])
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1))
    model.fit(X, [X[:, :1], BINARY], batch_size=8, verbose=0, callbacks=[monitor])
    assert [(f["rule"], f["layer"]) for f in tapescope.Run(tmp_path).findings if f["severity"] == "error"] == [
        ("output_activation", "b")
    ]


class Twice(keras.Model):
    """A model whose step computes two losses, as that of a GAN."""

    def __init__(self):
        super().__init__()
        self.out = layers.Dense(1, "relu", name="out")

    def call(self, x):
        return self.out(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x)) + self.compute_loss(x, 1 - y, self(x))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_a_step_with_two_losses_says_no_objective(tmp_path):
    model = Twice()
    model.compile("sgd", "binary_crossentropy")
    model(X)
    model.fit(X, BINARY, batch_size=8, verbose=0, callbacks=[tapescope.Monitor(tmp_path, tapescope.every(1))])
    run = tapescope.Run(tmp_path)
    assert run.details["objectives"] == []
    assert "compute_loss" not in vars(model)


class Encoding(keras.Model):
    """A model whose `compute_loss` encodes the data set's classes, as that of a detector."""

    def __init__(self):
        super().__init__()
        self.out = layers.Dense(3, name="out")

    def call(self, x):
        return self.out(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, keras.ops.one_hot(y, 3), y_pred, sample_weight, training=training)


class Comparing(Encoding):
    """A model whose `compute_loss` compares by another loss than the compiled one."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True))


@pytest.mark.parametrize(
    ("model_class", "expected"),
    [(Encoding, [("binary_crossentropy", 3)]), (Comparing, [])],
)
def test_a_compute_loss_of_ones_own_is_judged_by_what_keras_compares(tmp_path, model_class, expected):
    model = model_class()
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(X, CLASSES, batch_size=8, verbose=0, callbacks=[tapescope.Monitor(tmp_path, tapescope.every(1))])
    run = tapescope.Run(tmp_path)
    assert [(each["loss"], each["target_units"]) for each in run.details["objectives"]] == expected
    assert rules(run) == set()


def test_a_loop_of_ones_own_says_its_objective(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, name="out")])
    probe = tapescope.Probe(model, loss="mse")

    @tf.function
    def step(x, y, measure):
        with probe.tape(measure) as tape:
            probabilities = tf.nn.relu(model(x))
            loss = tf.reduce_mean(keras.losses.binary_crossentropy(y, probabilities))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading(loss=keras.losses.binary_crossentropy, targets=y, outputs=probabilities)

    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(6):
            recorder.write(n, step(X, BINARY, True))
    (objective,) = tapescope.Run(tmp_path).details["objectives"]
    assert (objective["loss"], objective["activation"]) == ("binary_crossentropy", "relu")
    assert [f.rule for f in recorder.findings] == ["output_activation"]


@pytest.mark.parametrize(("keepdims", "expected"), [(False, set()), (True, {"loss_mismatch"})])
def test_a_loss_of_the_values_of_actions_is_no_mismatch(tmp_path, keepdims, expected):
    """Targets [B] are of one output of each example, as in Q-learning; [B, 1] would be compared with all outputs."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="out")])
    probe = tapescope.Probe(model, loss="mse")

    @tf.function
    def step(x, targets, measure):
        with probe.tape(measure) as tape:
            outputs = model(x, training=True)
            values = outputs if keepdims else tf.gather(outputs, tf.argmax(outputs, 1), batch_dims=1)
            loss = tf.reduce_mean(keras.losses.mean_squared_error(targets, values))
        tape.gradient(loss, model.trainable_variables)
        return tape.reading(targets=targets)

    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(6):
            recorder.write(n, step(X, X[:, :1] if keepdims else X[:, 0], True))
    assert rules(tapescope.Run(tmp_path)) == expected


def test_what_one_model_makes_for_another_is_no_data(tmp_path):
    encoder = keras.Sequential([keras.Input((4,)), layers.Dense(2)], name="encoder")
    decoder = keras.Sequential([keras.Input((2,)), layers.Dense(4)], name="decoder")
    probe = tapescope.Probe([encoder, decoder])
    variables = encoder.trainable_variables + decoder.trainable_variables

    @tf.function
    def step(x, measure):
        with probe.tape(measure) as tape:
            loss = tf.reduce_mean((decoder(1000 * tf.nn.softplus(encoder(x))) - x) ** 2)
        tape.gradient(loss, variables)
        return tape.reading()

    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, step(X, True))
    assert tapescope.Run(tmp_path).rows("data_max") == ("encoder/input", "encoder/output", "decoder/output")


def test_what_is_no_loss_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="`loss` must be the loss function"):
        tapescope.Probe(model, loss=tf.constant(1.0))
