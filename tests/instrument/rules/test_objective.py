"""Rules about the objective, on small models that are measured for a few steps: faulty ones by kind, and sound ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope.rules import engine
from tensorboard_plugin_tapescope.series.findings import at_least

pytestmark = pytest.mark.filterwarnings("ignore:.*softmax over axis -1:UserWarning")

EXAMPLES = 32
RNG = np.random.default_rng(0)
X = RNG.normal(size=[EXAMPLES, 4]).astype("float32")
CLASSES = RNG.integers(3, size=[EXAMPLES])
ONE_HOT = np.eye(3, dtype="float32")[CLASSES]
BINARY = RNG.integers(2, size=[EXAMPLES, 1]).astype("float32")
SEVERAL = RNG.integers(2, size=[EXAMPLES, 3]).astype("float32")
NORMAL = RNG.normal(size=[EXAMPLES, 1]).astype("float32")
SHARES = RNG.random(size=[EXAMPLES, 1]).astype("float32")
COUNTS = RNG.poisson(4.0, size=[EXAMPLES, 1]).astype("float32")
DISTRIBUTIONS = (ONE_HOT + 0.1) / 1.3

losses = keras.losses


def dense(units, *activations, before="relu"):
    """Return a model whose output has the activations, the last ones as layers of their own."""
    first, *others = activations or (None,)
    start = keras.initializers.GlorotUniform(seed=0)
    layers = [keras.layers.Dense(8, before, kernel_initializer=start)]
    layers += [keras.layers.Dense(units, first, kernel_initializer=start, name="out")]
    layers += [keras.layers.Activation(each, name=f"out_{i}") for i, each in enumerate(others)]
    return keras.Sequential([keras.Input((4,)), *layers])


def own_sigmoid():
    """Return a model whose output is a probability in a way that Keras does not know."""
    return dense(1, lambda x: 1 / (1 + keras.ops.exp(-x)))


def dropped():
    """Return a model with a Dropout behind its output."""
    model = dense(3, "softmax")
    model.add(keras.layers.Dropout(0.5, seed=0))
    return model


def over_the_batch():
    """Return a model whose softmax is over the examples."""
    return keras.Sequential([keras.Input((4,)), *dense(3).layers, keras.layers.Softmax(axis=0)])


def sequence():
    """Return a model with an output for each of three steps."""
    layers = [keras.layers.RepeatVector(3), keras.layers.Dense(1, name="out")]
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), *layers])


def own_logits():
    return dense(1, lambda x: 3 * x)


def find(model, loss, targets, tmp_path, severity="warning", outputs=None, x=X):
    """Return the findings about data and objective after forty records of one step."""
    probe = tapescope.Probe(model, loss=loss, histograms=False)
    with probe.tape(True) as tape:
        result = model(x, training=True)
        value = sum(keras.ops.mean(r) for r in keras.tree.flatten(result))
    tape.gradient(value, model.trainable_variables)
    reading = tape.reading(targets=targets, outputs=outputs and outputs(result))
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in range(40):
            recorder.write(n, reading)
    about = {rule.__name__ for rule in engine.OBJECTIVE_RULES}
    return [f for f in recorder.findings if f.rule in about and f.severity in at_least(severity)]


def from_logits(name):
    return getattr(losses, name)(from_logits=True)


SOUND = {
    "sigmoid": (dense(1, "sigmoid"), "binary_crossentropy", BINARY),
    "sigmoid by a layer": (dense(1, None, "sigmoid"), "binary_crossentropy", BINARY),
    "flat labels": (dense(1, "sigmoid"), "binary_crossentropy", BINARY[:, 0]),
    "soft labels": (dense(1, "sigmoid"), "binary_crossentropy", SHARES),
    "several labels": (dense(3, "sigmoid"), "binary_crossentropy", SEVERAL),
    "focal": (dense(3, "sigmoid"), "binary_focal_crossentropy", SEVERAL),
    "softmax": (dense(3, "softmax"), "categorical_crossentropy", ONE_HOT),
    "softmax of distributions": (dense(3, "softmax"), "categorical_crossentropy", DISTRIBUTIONS),
    "softmax by a layer": (dense(3, None, "softmax"), losses.CategoricalCrossentropy(label_smoothing=0.1), ONE_HOT),
    "sparse": (dense(3, "softmax"), "sparse_categorical_crossentropy", CLASSES),
    "sparse of a column": (dense(3, "softmax"), "sparse_categorical_crossentropy", CLASSES[:, None].astype("float32")),
    "sparse with more units": (dense(5, "softmax"), "sparse_categorical_crossentropy", CLASSES),
    "ignored class": (dense(3, "softmax"), losses.SparseCategoricalCrossentropy(ignore_class=-1), CLASSES - 1),
    "sparse logits": (dense(3), from_logits("SparseCategoricalCrossentropy"), CLASSES),
    "categorical logits": (dense(3), from_logits("CategoricalCrossentropy"), ONE_HOT),
    "binary logits": (dense(1), from_logits("BinaryCrossentropy"), BINARY),
    "divergence": (dense(3, "softmax"), "kl_divergence", DISTRIBUTIONS),
    "values": (dense(1), "mean_squared_error", NORMAL),
    "flat values": (dense(1), "mse", NORMAL[:, 0]),
    "several values": (dense(3), "huber", RNG.normal(size=[EXAMPLES, 3])),
    "log cosh": (dense(1), "log_cosh", NORMAL),
    "shares": (dense(1, "sigmoid"), "mse", SHARES),
    "amounts": (dense(1, "relu"), "mean_absolute_error", COUNTS),
    "amounts by softplus": (dense(1, "softplus"), "mse", COUNTS),
    "few outliers": (dense(1, "relu"), "mse", np.where(np.arange(EXAMPLES) == 0, -0.05, COUNTS[:, 0])[:, None]),
    "counts": (dense(1, "exponential"), "poisson", COUNTS),
    "tanh": (dense(1, "tanh"), "mse", np.tanh(NORMAL)),
    "hinge": (dense(1, "tanh"), "hinge", 2 * BINARY - 1),
    "hinge of values": (dense(1), "squared_hinge", 2 * BINARY - 1),
    "Brier score": (dense(1, "sigmoid"), "mse", BINARY),
    "loss of one's own": (dense(1, "relu"), lambda y, p: keras.ops.mean((y - p) ** 4), NORMAL),
    "no loss": (dense(1, "softmax"), None, NORMAL),
    "no targets": (dense(3, "relu"), "mse", None),
    "logits of one's own": (own_logits(), from_logits("BinaryCrossentropy"), BINARY),
    "a sigmoid of one's own": (own_sigmoid(), "binary_crossentropy", BINARY),
    "before a bounded layer": (dense(1, "sigmoid", before="tanh"), "binary_crossentropy", BINARY),
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_objectives_are_not_warned_about(kind, tmp_path):
    assert find(*SOUND[kind], tmp_path) == []


LABELS_ERROR = ("labels_degenerate", "error")
LABELS_WARNING = ("labels_degenerate", "warning")
LOSS_ERROR = ("loss_mismatch", "error")
LOSS_WARNING = ("loss_mismatch", "warning")
OUTPUT_ERROR = ("output_activation", "error")
OUTPUT_WARNING = ("output_activation", "warning")
RANGE_ERROR = ("targets_out_of_range", "error")
RANGE_WARNING = ("targets_out_of_range", "warning")
SCALE_WARNING = ("unscaled_data", "warning")

FAULTY = {
    # The output's activation.
    "softmax of one unit": (dense(1, "softmax"), "binary_crossentropy", BINARY, OUTPUT_ERROR),
    "softmax of one, by a layer": (dense(1, None, "softmax"), "mse", NORMAL, OUTPUT_ERROR),
    "softmax of one, squared error": (dense(1, "softmax"), "mse", BINARY, OUTPUT_ERROR),
    "ReLU into binary": (dense(1, "relu"), "binary_crossentropy", BINARY, OUTPUT_WARNING),
    "ReLU into categorical": (dense(3, "relu"), "categorical_crossentropy", ONE_HOT, OUTPUT_WARNING),
    "tanh into binary": (dense(1, "tanh"), "binary_crossentropy", BINARY, OUTPUT_WARNING),
    "tanh into sparse": (dense(3, "tanh"), "sparse_categorical_crossentropy", CLASSES, OUTPUT_WARNING),
    "ELU into categorical": (dense(3, "elu"), "categorical_crossentropy", ONE_HOT, OUTPUT_WARNING),
    "ReLU into logits": (dense(3, "relu"), from_logits("SparseCategoricalCrossentropy"), CLASSES, OUTPUT_WARNING),
    "tanh into logits": (dense(1, "tanh"), from_logits("BinaryCrossentropy"), BINARY, OUTPUT_WARNING),
    "softmax twice": (dense(3, "softmax", "softmax"), "categorical_crossentropy", ONE_HOT, OUTPUT_WARNING),
    "sigmoid of ReLU": (dense(1, "relu", "sigmoid"), "binary_crossentropy", BINARY, OUTPUT_WARNING),
    "softmax of sigmoid": (dense(3, "sigmoid", "softmax"), "sparse_categorical_crossentropy", CLASSES, OUTPUT_WARNING),
    "softmax of ReLU": (dense(3, "relu", "softmax"), "sparse_categorical_crossentropy", CLASSES, OUTPUT_WARNING),
    "dropout of a softmax": (dropped(), "sparse_categorical_crossentropy", CLASSES, OUTPUT_WARNING),
    "softmax over the batch": (over_the_batch(), "sparse_categorical_crossentropy", CLASSES, OUTPUT_WARNING),
    # The loss.
    "logits into binary": (dense(1), "binary_crossentropy", BINARY, LOSS_WARNING),
    "logits into categorical": (dense(3), "categorical_crossentropy", ONE_HOT, LOSS_WARNING),
    "logits into sparse": (dense(3), "sparse_categorical_crossentropy", CLASSES, LOSS_WARNING),
    "logits into divergence": (dense(3), "kl_divergence", DISTRIBUTIONS, LOSS_WARNING),
    "classes of one unit": (dense(1, "sigmoid"), "categorical_crossentropy", BINARY, LOSS_ERROR),
    "indices of one unit": (dense(1, "sigmoid"), "sparse_categorical_crossentropy", 0 * CLASSES, LOSS_ERROR),
    "sigmoid into categorical": (dense(3, "sigmoid"), "categorical_crossentropy", ONE_HOT, LOSS_WARNING),
    "sigmoid into sparse": (dense(3, "sigmoid"), "sparse_categorical_crossentropy", CLASSES, LOSS_WARNING),
    "softmax into binary": (dense(3, "softmax"), "binary_crossentropy", ONE_HOT, LOSS_WARNING),
    "several labels into softmax": (dense(3, "softmax"), "categorical_crossentropy", SEVERAL, LOSS_WARNING),
    "several labels into binary softmax": (dense(3, "softmax"), "binary_crossentropy", SEVERAL, LOSS_WARNING),
    "softmax into squared error": (dense(3, "softmax"), "mse", ONE_HOT, LOSS_WARNING),
    "softmax into absolute error": (dense(3, "softmax"), "mae", ONE_HOT, LOSS_WARNING),
    "one number for several units": (dense(3), "mse", NORMAL, LOSS_WARNING),
    "class numbers for several units": (dense(3, "softmax"), "mse", CLASSES[:, None], LOSS_WARNING),
    "sigmoid into hinge": (dense(1, "sigmoid"), "hinge", 2 * BINARY - 1, LOSS_WARNING),
    "values below 0 into Poisson": (dense(1), "poisson", COUNTS, LOSS_WARNING),
    "a sigmoid of one's own into logits": (own_sigmoid(), from_logits("BinaryCrossentropy"), BINARY, LOSS_WARNING),
    "logits of one's own into binary": (own_logits(), "binary_crossentropy", BINARY, LOSS_WARNING),
    "a sequence for one value": (sequence(), "mse", NORMAL, LOSS_WARNING),
    "percentages of 0": (dense(1), "mean_absolute_percentage_error", BINARY, LOSS_WARNING),
    "logarithms of values below 0": (dense(1), "mean_squared_logarithmic_error", NORMAL, LOSS_WARNING),
    # The range of the targets.
    "classes for a sigmoid": (dense(1, "sigmoid"), "binary_crossentropy", CLASSES.astype("float32"), RANGE_ERROR),
    "signs for a sigmoid": (dense(1, "sigmoid"), "binary_crossentropy", 2 * BINARY - 1, RANGE_ERROR),
    "pixels for a sigmoid": (dense(1, "sigmoid"), "binary_crossentropy", 255 * SHARES, RANGE_ERROR),
    "labels from 1": (dense(3, "softmax"), "sparse_categorical_crossentropy", CLASSES + 1, RANGE_ERROR),
    "too few units": (dense(2, "softmax"), "sparse_categorical_crossentropy", CLASSES, RANGE_ERROR),
    "labels below 0": (dense(3, "softmax"), "sparse_categorical_crossentropy", CLASSES - 1, RANGE_ERROR),
    "values for ReLU": (dense(1, "relu"), "mse", 1 + NORMAL, RANGE_WARNING),
    "values for a sigmoid": (dense(1, "sigmoid"), "mse", NORMAL, RANGE_ERROR),
    "values for tanh": (dense(1, "tanh"), "mae", 5 * NORMAL, RANGE_ERROR),
    "prices for a sigmoid": (dense(1, "sigmoid"), "mae", 100 + 9 * NORMAL, RANGE_ERROR),
    # Labels that are none.
    "scaled labels": (dense(3, "softmax"), "sparse_categorical_crossentropy", CLASSES / np.float32(255), LABELS_ERROR),
    "half labels": (dense(3, "softmax"), "sparse_categorical_crossentropy", CLASSES + np.float32(0.5), LABELS_ERROR),
    "one label": (dense(1, "sigmoid"), "binary_crossentropy", 0 * BINARY + 1, LABELS_WARNING),
    "one class": (dense(3, "softmax"), "categorical_crossentropy", ONE_HOT[[0] * EXAMPLES], LABELS_WARNING),
    "one index": (dense(3, "softmax"), "sparse_categorical_crossentropy", 0 * CLASSES + 2, LABELS_WARNING),
    "one value": (dense(1), "mse", 0 * NORMAL, LABELS_WARNING),
    # Their scale.
    "values of 1e5": (dense(1), "mse", 1e5 * (2 + NORMAL), SCALE_WARNING),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_faulty_objectives_are_named(kind, tmp_path):
    *setup, expected = FAULTY[kind]
    found = find(*setup, tmp_path)
    assert expected in [(f.rule, f.severity) for f in found], found


def softmax_loss(output):
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(ONE_HOT, output))


def absolute_error(output):
    return tf.reduce_mean(tf.abs(NORMAL[:, 0] - output))


def own_cross_entropy(output):
    return -tf.reduce_mean(ONE_HOT * tf.math.log(tf.clip_by_value(output, 1e-10, 1.0)))


def own_binary_cross_entropy(output):
    return -tf.reduce_mean(ONE_HOT * tf.math.log(output + 1e-7) + (1 - ONE_HOT) * tf.math.log(1 - output + 1e-7))


def entropy_of_tanh(output):
    return tf.reduce_mean(tf.square(output) - tf.math.log(1 - tf.square(output) + 1e-6))


def poisson_loss(output):
    return tf.reduce_mean(output - 2.0 * tf.math.log(tf.maximum(output, 1e-7)))


def loss_of_keras(loss, targets):
    return lambda output: tf.reduce_mean(keras.losses.get(loss)(targets, output))


LOOPS = {
    "logits as probabilities": (
        dense(1),
        loss_of_keras("binary_crossentropy", ONE_HOT[:, :1]),
        [("loss_mismatch", "warning")],
    ),
    "logits as probabilities of classes": (
        dense(3),
        loss_of_keras("categorical_crossentropy", ONE_HOT),
        [("loss_mismatch", "warning")],
    ),
    "logits as probabilities of indices": (
        dense(3),
        loss_of_keras("sparse_categorical_crossentropy", CLASSES),
        [("loss_mismatch", "warning")],
    ),
    "logits in a cross-entropy of one's own": (dense(3), own_cross_entropy, [("loss_mismatch", "warning")]),
    "sigmoids in a binary one": (dense(3, "sigmoid"), own_binary_cross_entropy, []),
    "tanh in a binary one": (
        dense(3, "tanh"),
        own_binary_cross_entropy,
        [("loss_mismatch", "warning")],
    ),
    "squashed actions": (dense(3, "tanh"), entropy_of_tanh, []),
    "probabilities in one of one's own": (dense(3, "softmax"), own_cross_entropy, []),
    "rates": (dense(1), poisson_loss, []),
    "large values": (dense(1), loss_of_keras("mean_squared_logarithmic_error", NORMAL), []),
    "a softmax twice": (dense(3, "softmax"), softmax_loss, [("loss_mismatch", "warning")]),
    "a softmax": (dense(3), softmax_loss, []),
    "all pairs": (dense(1), absolute_error, [("loss_mismatch", "error")]),
    "their own targets": (dense(1), lambda output: absolute_error(output[:, 0]), []),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_says_nothing_is_judged_by_the_graph_of_its_loss(kind, tmp_path):
    model, loss_of, expected = LOOPS[kind]
    probe = tapescope.Probe(model)

    @tf.function
    def step():
        with probe.tape(True) as tape:
            loss = loss_of(model(X, training=True))
        tape.gradient(loss, model.trainable_variables)
        return loss, tape.reading()

    with tapescope.Recorder(tmp_path, probe) as recorder:
        loss, reading = step()
        recorder.write(0, reading, {"loss": loss})
        recorder.state()
        assert [(f.rule, f.severity) for f in recorder.findings] == expected
    assert [(f.rule, f.severity) for f in tapescope.check(tapescope.Run(tmp_path))] == expected


@pytest.mark.parametrize(("targets", "expected"), [(NORMAL[:, 0], [("loss_mismatch", "error")]), (NORMAL, [])])
def test_a_model_without_layers_is_judged_by_its_targets(targets, expected, tmp_path):
    module = tf.Module()
    module.weight = tf.Variable(tf.ones([X.shape[1], 1]))
    probe = tapescope.Probe(module)

    @tf.function
    def step(y):
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(tf.square(y - X @ module.weight))
        tape.gradient(loss, module.trainable_variables)
        return loss, tape.reading(targets=y)

    with tapescope.Recorder(tmp_path, probe) as recorder:
        loss, reading = step(tf.constant(targets))
        recorder.write(0, reading, {"loss": loss})
    assert [(f.rule, f.severity) for f in tapescope.check(tapescope.Run(tmp_path))] == expected
