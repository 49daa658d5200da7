"""Small faulty programs of the kinds that people publish, and their fixed versions: named by cause, and silent.

Each is trained by `fit` with a Monitor for a few batches, in the form in which such programs are written. The data are
made here. `python -m bench.programs` has many more of each kind.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope
from tapescope.rules import causes

RNG = np.random.default_rng(0)
CENTRES = 3 * RNG.normal(size=[4, 8])
CLASSES = RNG.integers(4, size=512)
POINTS = (CENTRES[CLASSES] + RNG.normal(size=[512, 8])).astype("float32") / 3
BINARY = (CLASSES > 1).astype("float32")
SEVERAL = (POINTS[:, :4] > 0).astype("float32")
VALUES = (POINTS @ RNG.normal(size=8) + 0.1 * RNG.normal(size=512)).astype("float32")
PIXELS = np.clip(128 + 60 * POINTS, 0, 255).astype("float32")
SORTED = np.argsort(CLASSES, kind="stable").reshape(4, -1)[:, :96].reshape(4, 6, 16).swapaxes(0, 1).reshape(-1)

pytestmark = pytest.mark.filterwarnings("ignore:.*softmax over axis -1:UserWarning")


class Version(NamedTuple):
    """One version of a program: what is given to a network of one hidden layer."""

    x: np.ndarray
    y: np.ndarray
    units: int
    activation: str | None
    loss: Any
    learning_rate: float = 0.01
    batch: int = 16


SPARSE = "sparse_categorical_crossentropy"
SOUND_CLASSES = Version(POINTS, CLASSES, 4, "softmax", SPARSE)
SOUND_BINARY = Version(POINTS, BINARY, 1, "sigmoid", "binary_crossentropy")
SOUND_VALUES = Version(POINTS, VALUES, 1, None, "mse")


def absolute_error(y, out):
    return tf.reduce_mean(tf.abs(y - out))


def softmax_loss(y, out):
    return tf.nn.softmax_cross_entropy_with_logits(y, out)


PAIRS = {
    "softmax of one unit": ("output_activation", SOUND_BINARY._replace(activation="softmax"), SOUND_BINARY),
    "ReLU before a cross-entropy": (
        "output_activation",
        Version(POINTS, np.eye(4)[CLASSES], 4, "relu", "categorical_crossentropy"),
        Version(POINTS, np.eye(4)[CLASSES], 4, "softmax", "categorical_crossentropy"),
    ),
    "ReLU before a loss of logits of one's own": (
        "loss_mismatch",
        Version(POINTS, np.eye(4)[CLASSES], 4, "relu", softmax_loss),
        Version(POINTS, np.eye(4)[CLASSES], 4, None, softmax_loss),
    ),
    "logits into probabilities": (
        "loss_mismatch",
        SOUND_CLASSES._replace(activation=None),
        SOUND_CLASSES._replace(activation=None, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    ),
    "softmax for several labels": (
        "loss_mismatch",
        Version(POINTS, SEVERAL, 4, "softmax", "categorical_crossentropy"),
        Version(POINTS, SEVERAL, 4, "sigmoid", "binary_crossentropy"),
    ),
    "classes for one sigmoid": (
        "targets_out_of_range",
        SOUND_BINARY._replace(y=CLASSES.astype("float32")),
        SOUND_CLASSES,
    ),
    "values below a ReLU": ("targets_out_of_range", SOUND_VALUES._replace(activation="relu"), SOUND_VALUES),
    "labels scaled with the pixels": (
        "labels_degenerate",
        SOUND_CLASSES._replace(y=CLASSES.astype("float32") / 255),
        SOUND_CLASSES,
    ),
    "sorted by class": (
        "labels_degenerate",
        SOUND_CLASSES._replace(x=POINTS[SORTED], y=CLASSES[SORTED]),
        SOUND_CLASSES,
    ),
    "raw pixels": ("unscaled_data", SOUND_CLASSES._replace(x=PIXELS), SOUND_CLASSES._replace(x=PIXELS / 255)),
    "prices": ("unscaled_data", SOUND_VALUES._replace(y=1e5 * (3 + VALUES)), SOUND_VALUES),
    "targets without the axis of the outputs": (
        "loss_mismatch",
        SOUND_VALUES._replace(loss=lambda y, out: tf.reduce_mean(tf.abs(y[:, 0] - out))),
        SOUND_VALUES._replace(loss=absolute_error),
    ),
    "a learning rate of 10": ("update_too_large", SOUND_VALUES._replace(learning_rate=10.0), SOUND_VALUES),
    "a negative learning rate": ("update_too_large", SOUND_CLASSES._replace(learning_rate=-10.0), SOUND_CLASSES),
}


def check(version, logdir):
    """Train a version, and return its warnings and errors, the likeliest cause first."""
    keras.utils.set_random_seed(0)
    x = keras.Input(version.x.shape[1:])
    hidden = keras.layers.Dense(16, "relu", kernel_initializer="he_normal")(x)
    model = keras.Model(x, keras.layers.Dense(version.units, version.activation, name="out")(hidden))
    model.compile(keras.optimizers.Adam(version.learning_rate), version.loss)
    monitor = tapescope.Monitor(logdir, tapescope.every(2), histograms=False)
    model.fit(version.x, version.y, batch_size=version.batch, shuffle=False, verbose=0, callbacks=[monitor])
    found = tapescope.check(tapescope.Run(logdir))
    return [finding for finding, _ in causes.by_cause(found) if finding.severity != "info"]


@pytest.mark.parametrize("kind", PAIRS)
def test_the_cause_of_a_faulty_program_is_named_first(kind, tmp_path):
    rule, faulty, _ = PAIRS[kind]
    assert [finding.rule for finding in check(faulty, tmp_path)][:1] == [rule]


FIXED = list({repr(fixed): fixed for _, _, fixed in PAIRS.values()}.values())


@pytest.mark.parametrize("number", range(len(FIXED)))
def test_a_fixed_program_is_not_warned_about(number, tmp_path):
    assert check(FIXED[number], tmp_path) == []


@pytest.mark.parametrize(("targets", "named"), [(VALUES, ["loss_mismatch"]), (VALUES[:, None], [])])
def test_targets_without_an_axis_of_the_outputs_are_named_in_a_loop(targets, named, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(0.01)
    probe = tapescope.Probe(model, histograms=False)

    @tf.function
    def step(x, y):
        with probe.tape(True) as tape:
            loss = tf.reduce_mean(tf.square(y - model(x)))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss, tape.reading(targets=y)

    with tapescope.Recorder(tmp_path, probe, tapescope.every(1)) as recorder:
        for n in range(20):
            batch = slice(16 * n, 16 * n + 16)
            loss, reading = step(POINTS[batch], targets[batch])
            recorder.write(n, reading, scalars={"loss": loss})
    found = tapescope.check(tapescope.Run(tmp_path))
    assert [finding.rule for finding in found if finding.severity != "info"] == named


def test_one_batch_that_is_repeated_is_no_warning(tmp_path):
    """It may be all the data, repeated so that an epoch takes several steps."""
    repeated = SOUND_CLASSES._replace(x=np.tile(POINTS[:16], (32, 1)), y=np.tile(CLASSES[:16], 32))
    assert check(repeated, tmp_path) == []
    noted = tapescope.check(tapescope.Run(tmp_path))
    assert any("records have the same batch, though an epoch has 32" in finding.message for finding in noted)


def test_labels_of_which_one_class_has_the_weight_0_are_not_called_the_same(tmp_path):
    model = keras.Sequential([keras.Input([8]), keras.layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    weights = {0: 1.0, 1: 0.0}
    monitor = tapescope.Monitor(tmp_path, when=tapescope.every(1))
    model.fit(np.tile(POINTS, (4, 1)), np.tile(BINARY, 4), 32, 2, 0, [monitor], class_weight=weights)
    (finding,) = (f for f in tapescope.check(tapescope.Run(tmp_path)) if f.rule == "labels_degenerate")
    assert "all labels so far whose weight is not 0 are the same (0)" in finding.message
