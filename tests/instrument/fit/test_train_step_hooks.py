"""The patches that a measured `train_step` runs under: what they see, and that they are put back."""

import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain

import tapescope
from tapescope.fit import train_step_hooks

GRADIENT_TAPE = tf.GradientTape


class Owner:
    """An object with an attribute of its class."""

    name = "of the class"


@pytest.fixture
def probe():
    return tapescope.Probe(dense_chain([2], ["relu"], 3), strict=True)


def test_a_patched_attribute_is_removed_again():
    owner = Owner()
    with train_step_hooks.patch_attribute(owner, "name", "patched"):
        assert owner.name == "patched"
    assert vars(owner) == {}


def test_an_attribute_of_the_object_is_put_back():
    owner = Owner()
    owner.name = "of the object"
    with train_step_hooks.patch_attribute(owner, "name", "patched"):
        pass
    assert vars(owner) == {"name": "of the object"}


def test_the_gradients_of_two_tapes_in_one_statement_are_measured(probe):
    weight = probe._state.variables()[0]
    with train_step_hooks.measure_tapes(probe) as tapes:
        with tf.GradientTape() as first, tf.GradientTape() as second:
            loss = tf.reduce_sum(tf.square(weight))
        first.gradient(loss, weight)
        second.gradient(loss, weight)
    assert [tape.has_gradient for tape in tapes] == [True, True]


def test_a_gradient_inside_of_another_tape_is_not_measured(probe):
    weight = probe._state.variables()[0]
    with train_step_hooks.measure_tapes(probe) as tapes:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(tf.square(weight))
            penalty = tf.reduce_sum(inner.gradient(loss, weight))
        outer.gradient(penalty, weight)
    assert [tape.has_gradient for tape in tapes] == [True, False]


def test_a_gradient_in_the_backward_pass_of_another_tape_is_not_measured(probe):
    weight = probe._state.variables()[0]
    square = tf.recompute_grad(lambda: tf.reduce_sum(tf.square(weight)))
    with train_step_hooks.measure_tapes(probe) as tapes:
        with tf.GradientTape() as tape:
            loss = square()
        tape.gradient(loss, weight)
    assert [tape for tape in tapes if tape.has_gradient] == [tape]


def test_a_tape_after_another_one_measures(probe):
    with train_step_hooks.measure_tapes(probe) as tapes:
        for _ in range(2):
            with tf.GradientTape():
                pass
    assert len(tapes) == 2


def test_another_thread_gets_plain_tapes(probe):
    made = []
    with train_step_hooks.measure_tapes(probe) as tapes:
        thread = threading.Thread(target=lambda: made.append(tf.GradientTape()))
        thread.start()
        thread.join()
    assert type(made[0]) is GRADIENT_TAPE
    assert tapes == []


def test_a_tape_that_was_imported_by_its_name_measures(probe):
    with train_step_hooks.measure_tapes(probe) as tapes, GRADIENT_TAPE(persistent=True) as tape:
        pass
    assert tapes == [tape]
    assert isinstance(tape, tf.GradientTape)


def test_a_tape_of_a_subclass_is_the_users_own(probe):
    class OwnTape(tf.GradientTape):
        pass

    with train_step_hooks.measure_tapes(probe) as tapes:
        assert type(OwnTape()) is OwnTape
    assert tapes == []


def test_a_tape_in_a_graph_of_its_own_is_plain(probe):
    made = []

    @tf.function
    def inner():
        made.append(tf.GradientTape())

    with train_step_hooks.measure_tapes(probe):
        inner()
    assert type(made[0]) is GRADIENT_TAPE


def test_tapes_are_plain_after_an_error(probe):
    with pytest.raises(KeyError), train_step_hooks.measure_tapes(probe):
        raise KeyError
    assert type(tf.GradientTape(watch_accessed_variables=False)) is GRADIENT_TAPE


def test_a_loss_scale_is_recorded():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), 8.0)
    optimizer.build([keras.Variable(1.0)])
    with train_step_hooks.record_loss_scales(optimizer) as scales:
        assert float(optimizer.scale_loss(tf.constant(2.0))) == 16
    assert [float(scale) for scale in scales] == [8]


def test_an_optimizer_without_a_loss_scale_records_none():
    optimizer = keras.optimizers.SGD()
    with train_step_hooks.record_loss_scales(optimizer) as scales:
        assert float(optimizer.scale_loss(tf.constant(2.0))) == 2
    assert scales == []


def test_no_optimizer_records_no_loss_scale():
    with train_step_hooks.record_loss_scales(None) as scales:
        pass
    assert scales == []


def test_the_last_user_puts_scale_loss_back():
    optimizer = keras.optimizers.SGD()
    with train_step_hooks.record_loss_scales(optimizer):
        with train_step_hooks.record_loss_scales(optimizer):
            pass
        assert "scale_loss" in vars(optimizer)
    assert "scale_loss" not in vars(optimizer)


class Pairs(keras.Model):
    """A model whose loss is of its two outputs, as that of a dual encoder; it has parameters of its own."""

    def __init__(self):
        super().__init__()
        self.left = keras.layers.Dense(3, "relu")
        self.right = keras.layers.Dense(3)

    def compute_loss(self, left, right):
        return tf.reduce_mean((left - right) ** 2)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(self.left(data), self.right(data))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        return {"loss": loss}


def test_a_loss_with_other_parameters_is_measured(tmp_path):
    model: Any = Pairs()
    model.compile("adam")
    model.fit(np.ones([8, 2], "f"), batch_size=4, verbose=0, callbacks=[tapescope.Monitor(tmp_path, strict=True)])
    assert np.isfinite(tapescope.Run(tmp_path)["gradient_norm"]).all()


class Wrapping:
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 1.0


class Passing(Wrapping):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


class Renaming:
    def compute_loss(self, inputs, y, *, y_pred):
        return 1.0


@pytest.mark.parametrize(
    ("model", "args", "options", "expected"),
    [
        (Wrapping(), ("x", "y", "p", None, False), {}, ("y", "p", None)),
        (Wrapping(), (), {"y": "y", "y_pred": "p", "sample_weight": "w"}, ("y", "p", "w")),
        (Passing(), ("x", "y", "p", "w"), {}, ("y", "p", "w")),
        (Renaming(), ("x", "y"), {"y_pred": "p"}, ("y", "p", None)),
    ],
)
def test_what_a_loss_is_given_is_known_by_its_parameters(model, args, options, expected):
    with train_step_hooks.record_losses(model) as calls:
        assert model.compute_loss(*args, **options) == 1.0
    (call,) = calls
    assert (call.targets, call.outputs, call.sample_weights, call.value) == (*expected, 1.0)


@pytest.mark.parametrize("name", ["compute_loss", "scale_loss"])
def test_a_method_that_is_set_on_the_object_is_put_back(tmp_path, name):
    def train(callbacks):
        keras.utils.set_random_seed(0)
        model: Any = dense_chain([5, 2], ["relu", "linear"], 6)
        model.compile("sgd", "mse")
        if name == "compute_loss":
            model.compute_loss = lambda x=None, y=None, y_pred=None, *more, **options: 3 * tf.reduce_mean(
                tf.abs(y - y_pred)
            )
        else:
            model.optimizer.scale_loss = lambda loss: 2.0 * loss
        model.fit(x, x[:, :2], batch_size=8, shuffle=False, verbose=0, callbacks=callbacks)
        return model

    x = np.random.default_rng(0).normal(size=(48, 6)).astype("f")
    plain, measured = train([]), train([tapescope.Monitor(tmp_path, tapescope.every(2), strict=True)])
    assert name in vars(measured if name == "compute_loss" else measured.optimizer)
    for left, right in zip(plain.get_weights(), measured.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


class Parts(keras.Model):
    """A model whose `compute_loss` returns several numbers."""

    def __init__(self):
        super().__init__()
        self.out = keras.layers.Dense(2, "relu")

    def call(self, x):
        return self.out(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        mse = tf.reduce_mean((y - y_pred) ** 2)
        return {"total": mse + 0.1 * tf.reduce_mean(y_pred**2), "mse": mse}

    def train_step(self, data):
        with tf.GradientTape() as tape:
            losses = self.compute_loss(*data, self(data[0]))
        self.optimizer.apply(tape.gradient(losses["total"], self.trainable_variables), self.trainable_variables)
        return losses


class Unhashable:
    """A loss function that cannot be a key."""

    __hash__: Any = None

    def __call__(self, y, p):
        return keras.ops.mean((y - p) ** 2, -1)


@pytest.mark.parametrize("loss", ["mse", Unhashable()])
def test_a_loss_of_any_kind_is_measured(tmp_path, loss):
    model: Any = Parts() if isinstance(loss, str) else dense_chain([2], ["linear"], 6)
    model.compile("sgd", loss)
    monitor = tapescope.Monitor(tmp_path, tapescope.every(1), strict=True)
    model.fit(np.ones([16, 6], "f"), np.ones([16, 2], "f"), batch_size=8, verbose=0, callbacks=[monitor])
    assert len(tapescope.Run(tmp_path).steps) == 2
