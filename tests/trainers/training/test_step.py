"""One step is the same step on one device and on several, compiled by XLA or not, measured or not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import reading
from tapescope.storage import summaries
from tapescope_trainers import flags
from tapescope_trainers.training import build, data, step
from tests.trainers.steps import after

STEPS = 10


def weights(tmp_path, *arguments: str, measure: bool = False) -> list[np.ndarray]:
    """Of a network after ten steps on real digits."""
    options = flags.parse(["x", f"--logdir={tmp_path}", "--batch_size=64", "--seed=1", "--width=16", *arguments])
    return after(STEPS, options, lambda n: measure and n % 3 == 0)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-4) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


NETWORK = ("--preset=mlp", "--depth=1", "--activation=elu", "--nohistograms")
PLAIN, CLIPPED = ("--optimizer=adam",), ("--optimizer=momentum", "--clip_norm=0.1")


@pytest.mark.parametrize(
    ("devices", "jit", "more"),
    [
        ("cpu:2", "--nojit_compile", PLAIN),
        ("cpu:4", "--nojit_compile", CLIPPED),
        ("cpu:2", "--jit_compile", CLIPPED),
        ("cpu:4", "--jit_compile", PLAIN),
    ],
)
def test_weights_after_ten_steps_do_not_depend_on_the_number_of_replicas(tmp_path, devices, jit, more):
    alone = weights(tmp_path, *NETWORK, *more)
    shared = weights(tmp_path, *NETWORK, *more, jit, "--strategy=mirrored", f"--devices={devices}", measure=True)
    assert_same(shared, alone)


@pytest.mark.parametrize("strategy", ["default", "one_device", "mirrored"])
def test_measuring_changes_nothing(tmp_path, strategy):
    arguments = (*NETWORK, f"--strategy={strategy}", "--devices=cpu")
    assert_same(weights(tmp_path, *arguments, measure=True), weights(tmp_path, *arguments), 1e-6)


@pytest.mark.parametrize("preset", ["relu_sigmoid", "parallel_branches"])
def test_the_given_networks_on_two_replicas(tmp_path, preset):
    def given(*arguments: str) -> list[np.ndarray]:
        return after(STEPS, flags.parse(["x", f"--logdir={tmp_path}", f"--preset={preset}", *arguments]))

    assert_same(given("--strategy=mirrored", "--devices=cpu:2"), given())


def test_a_step_is_what_a_plain_loop_does(tmp_path):
    """Against a loop without tapescope, in which Keras clips: on one device it clips rightly."""
    options = flags.parse(["x", f"--logdir={tmp_path}", "--optimizer=sgd", "--learning_rate=0.5", "--clip_norm=0.05"])
    parts = build.prepare(options)
    parts.recorder.close()
    model, optimizer = parts.model, keras.optimizers.SGD(0.5, global_clipnorm=0.05)
    for x, y in parts.batches.take(STEPS):
        with tf.GradientTape() as tape:
            p = model(x, training=True)
            p = tf.clip_by_value(p / tf.reduce_sum(p, -1, keepdims=True), 1e-7, 1 - 1e-7)
            loss = -tf.reduce_mean(tf.reduce_sum(y * tf.math.log(p), -1))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    assert_same(after(STEPS, options), [v.numpy() for v in model.trainable_variables], 1e-5)


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ((), CLIPPED),
        (("--strategy=mirrored", "--devices=cpu:4"), PLAIN),
        (("--strategy=mirrored", "--devices=cpu:2", "--jit_compile"), CLIPPED),
    ],
)
def test_a_batch_in_parts_makes_the_same_step_and_the_same_reading(tmp_path, how, more):
    """Weights after ten steps and all readings against the whole batch at once, on one device."""

    def run(*arguments: str) -> tuple[list[np.ndarray], list]:
        options = flags.parse(["x", f"--logdir={tmp_path}", "--batch_size=64", "--seed=1", *NETWORK[:3], *arguments])
        readings: list = []
        return after(STEPS, options, lambda n: n in (0, STEPS - 1), readings), readings

    (weights, found), (expected_weights, expected) = run("--accumulate_steps=4", *how, *more), run(*more)
    assert_same(weights, expected_weights)
    for a, b in zip(map(summaries.to_host, found), map(summaries.to_host, expected), strict=True):
        for name in reading.VARIABLE_COLUMNS + reading.LAYER_COLUMNS + reading.STEP_COLUMNS:
            if "noise" not in name:
                np.testing.assert_allclose(a.column(name), b.column(name), rtol=1e-3, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(a.elements, b.elements)
        np.testing.assert_allclose(a.units, b.units, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(a.activation_histogram.sum(1), b.activation_histogram.sum(1))
        np.testing.assert_array_equal(a.gradient_histogram.sum(1), b.gradient_histogram.sum(1))
        assert (a.replicas is None) == (how == ())


def test_a_replica_that_overflows_makes_all_skip_the_step(tmp_path):
    arguments = ("--preset=mlp", "--width=16", "--mixed_precision=float16", "--strategy=mirrored", "--devices=cpu:2")
    options = flags.parse(["x", f"--logdir={tmp_path}", *arguments])
    parts = build.prepare(options)
    parts.recorder.close()
    one_step = step.make(parts.model, parts.optimizer, parts.probe, parts.strategy, batch_size=64)
    x, y = next(iter(parts.batches))
    bad = tf.concat([x[:32], x[32:] * 1e30], 0)  # infinite in float16: only the second replica sees it

    def run(x: tf.Tensor) -> None:
        batches = tf.data.Dataset.from_tensors((x, y)).unbatch().batch(64, drop_remainder=True)
        one_step(*next(iter(parts.strategy.experimental_distribute_dataset(batches))), False)

    before = [v.numpy() for v in parts.model.trainable_variables]
    scale = float(parts.optimizer.dynamic_scale.numpy())
    run(bad)
    assert_same([v.numpy() for v in parts.model.trainable_variables], before, 0)
    assert float(parts.optimizer.dynamic_scale.numpy()) == scale / 2
    run(x)
    assert all(np.isfinite(v.numpy()).all() for v in parts.model.trainable_variables)
    assert not np.array_equal(parts.model.trainable_variables[0].numpy(), before[0])


@pytest.mark.parametrize("how", [("--jit_compile",), ("--strategy=mirrored", "--devices=cpu:2")])
def test_float16_readings_are_unscaled(tmp_path, how):
    """The gradient norm that a float16 step reports is that of the float32 network, not 2^15 times it."""

    def norms(*more: str) -> np.ndarray:
        options = flags.parse(["x", f"--logdir={tmp_path}", *NETWORK, *how, *more])
        parts = build.prepare(options)
        parts.recorder.close()
        one_step = step.make(
            parts.model, parts.optimizer, parts.probe, parts.strategy, batch_size=64, jit_compile=options.jit_compile
        )
        batch = next(iter(parts.strategy.experimental_distribute_dataset(parts.batches)))
        reading = one_step(*batch, True).reading
        local = parts.strategy.experimental_local_results
        return np.asarray(local(reading.variables)[0])[0]

    np.testing.assert_allclose(norms("--mixed_precision=float16"), norms(), rtol=0.02)


def test_the_loss_goes_through_the_output_activation():
    """With Keras' shortcut to the logits the sigmoid would not be in the gradient, and its value would be another."""
    z = tf.constant([[3.0, -2.0, 0.5]])
    y = tf.constant([[0.0, 1.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(z)
        a = keras.activations.sigmoid(z)
        loss = step.cross_entropy(y, a)
    s = 1 / (1 + np.exp(-z.numpy()))
    np.testing.assert_allclose(loss, -np.log(s[:, 1] / s.sum()), rtol=1e-5)
    expected = (1 / s.sum() - y.numpy() / s) * s * (1 - s)
    np.testing.assert_allclose(tape.gradient(loss, z), expected, rtol=1e-5)


def test_evaluation_counts_every_example_once_on_every_number_of_replicas(tmp_path):
    found = []
    for more in ((), ("--strategy=mirrored", "--devices=cpu:4")):
        parts = build.prepare(flags.parse(["x", f"--logdir={tmp_path}", "--seed=2", *more]))
        parts.recorder.close()
        evaluate = step.make_evaluation(parts.model, parts.strategy)
        held = parts.strategy.experimental_distribute_dataset(data.validation_batches(parts.data, 100))
        found.append(sum(evaluate(x, y).numpy() for x, y in held))
    p = parts.model.predict(parts.data.x_valid.reshape(-1, 64) / 16, verbose=0)
    p /= p.sum(1, keepdims=True)
    y = parts.data.y_valid
    expected = [-np.log(p[np.arange(len(y)), y]).sum(), (p.argmax(1) == y).sum(), len(y)]
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-5)
