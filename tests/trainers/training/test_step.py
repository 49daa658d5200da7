"""One training step: the same on one device and on several, compiled by XLA or not, measured or not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import reading
from tapescope.storage import summaries
from tapescope_trainers.training import build, data, step
from tests.trainers import trainings

pytestmark = pytest.mark.slow

STEPS = 10


def weights(tmp_path, *arguments: str, measure: bool = False) -> list[np.ndarray]:
    """Return the weights of a network after ten steps on real digits."""
    steps = trainings.take_steps(
        tmp_path, STEPS, "--seed=1", "--width=16", *arguments, measure=lambda n: measure and n % 3 == 0
    )
    return steps.weights


def prepare(tmp_path, *arguments: str) -> build.Training:
    """Build a training without its records."""
    training = build.prepare(trainings.parse(tmp_path, "--resume=never", *arguments))
    training.recorder.close()
    return training


def assert_same(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 1e-4) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


NETWORK = ("--preset=mlp", "--depth=1", "--activation=elu", "--nohistograms")
PLAIN = ("--optimizer=adam",)
CLIPPED = ("--optimizer=momentum", "--clip_norm=0.1")


@pytest.mark.parametrize(
    ("devices", "more"), [("cpu:2", PLAIN), pytest.param("cpu:4", CLIPPED, marks=pytest.mark.nightly)]
)
def test_weights_after_ten_steps_do_not_depend_on_the_number_of_replicas(tmp_path, devices, more):
    one_device = weights(tmp_path, *NETWORK, *more)
    replicas = weights(tmp_path, *NETWORK, *more, "--strategy=mirrored", f"--devices={devices}", measure=True)
    assert_same(replicas, one_device)


@pytest.mark.parametrize("strategy", ["default", "one_device", "mirrored"])
def test_measuring_does_not_change_the_weights(tmp_path, strategy):
    arguments = (*NETWORK, f"--strategy={strategy}", "--devices=cpu")
    assert_same(weights(tmp_path, *arguments, measure=True), weights(tmp_path, *arguments), 1e-6)


@pytest.mark.parametrize("preset", ["relu_sigmoid", "parallel_branches"])
def test_examples_train_alike_on_two_replicas(tmp_path, preset):
    one_device = trainings.take_steps(tmp_path, STEPS, f"--preset={preset}")
    two = trainings.take_steps(tmp_path, STEPS, f"--preset={preset}", "--strategy=mirrored", "--devices=cpu:2")
    assert_same(two.weights, one_device.weights)


def test_steps_equal_those_of_a_plain_loop(tmp_path):
    """A loop without tapescope, in which Keras clips, which is right on one device."""
    arguments = ("--optimizer=sgd", "--learning_rate=0.5", "--clip_norm=0.05")
    training = prepare(tmp_path, *arguments)
    model = training.parts.model
    optimizer = keras.optimizers.SGD(0.5, global_clipnorm=0.05)
    for x, y in training.batches.take(STEPS):
        with tf.GradientTape() as tape:
            p = model(x, training=True)
            p = tf.clip_by_value(p / tf.reduce_sum(p, -1, keepdims=True), 1e-7, 1 - 1e-7)
            loss = -tf.reduce_mean(tf.reduce_sum(y * tf.math.log(p), -1))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    expected = [variable.numpy() for variable in model.trainable_variables]
    assert_same(trainings.take_steps(tmp_path, STEPS, *arguments).weights, expected, 1e-5)


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ((), CLIPPED),
        (("--strategy=mirrored", "--devices=cpu:2"), PLAIN),
        pytest.param(("--strategy=mirrored", "--devices=cpu:2", "--jit_compile"), CLIPPED, marks=pytest.mark.nightly),
    ],
)
def test_a_batch_in_parts_gives_the_same_step_and_the_same_reading(tmp_path, strategy, more):
    """Weights after ten steps and all readings against the whole batch at once, on one device."""

    def run(*arguments: str) -> trainings.Steps:
        return trainings.take_steps(
            tmp_path, STEPS, "--seed=1", *NETWORK[:3], *arguments, measure=lambda n: n in (0, STEPS - 1)
        )

    in_parts = run("--accumulate_steps=4", *strategy, *more)
    at_once = run(*more)
    assert_same(in_parts.weights, at_once.weights)
    columns = reading.VARIABLE_COLUMNS + reading.LAYER_COLUMNS + reading.STEP_COLUMNS
    with_replicas = bool(strategy)
    for a, b in zip(map(summaries.to_host, in_parts.readings), map(summaries.to_host, at_once.readings), strict=True):
        for name in columns:
            if "noise" not in name:
                np.testing.assert_allclose(a.column(name), b.column(name), rtol=1e-3, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(a.elements, b.elements)
        np.testing.assert_allclose(a.units, b.units, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(a.activation_histogram.sum(1), b.activation_histogram.sum(1))
        np.testing.assert_array_equal(a.gradient_histogram.sum(1), b.gradient_histogram.sum(1))
        assert (a.replicas is not None) == with_replicas


@pytest.fixture(scope="module")
def overflow(tmp_path_factory):
    """Take a float16 step on two replicas, of which only the second overflows, then a good one.

    Returns:
        The weights before, after the overflow and after the good step, and the loss scale at the same times.
    """
    training = prepare(
        tmp_path_factory.mktemp("overflow"),
        "--preset=mlp",
        "--width=16",
        "--mixed_precision=float16",
        "--strategy=mirrored",
        "--devices=cpu:2",
    )
    train_step = step.make(
        training.parts.model, training.parts.optimizer, training.parts.probe, training.parts.strategy, batch_size=64
    )
    x, y = next(iter(training.batches))
    infinite_in_float16 = tf.concat([x[:32], x[32:] * 1e30], 0)

    def state() -> tuple[list[np.ndarray], float]:
        weights = [variable.numpy() for variable in training.parts.model.trainable_variables]
        return weights, float(training.parts.optimizer.dynamic_scale.numpy())

    states = [state()]
    for examples in (infinite_in_float16, x):
        batches = tf.data.Dataset.from_tensors((examples, y)).unbatch().batch(64, drop_remainder=True)
        train_step(*next(iter(training.parts.strategy.experimental_distribute_dataset(batches))), False)
        states.append(state())
    return states


def test_an_overflow_on_one_replica_makes_all_skip_the_step(overflow):
    (before, scale), (after, lowered_scale), _ = overflow
    assert_same(after, before, 0)
    assert lowered_scale == scale / 2


def test_after_an_overflow_training_continues(overflow):
    _, (before, _), (after, _) = overflow
    assert all(np.isfinite(weights).all() for weights in after)
    assert not np.array_equal(after[0], before[0])


@pytest.mark.parametrize(
    "more",
    [pytest.param(("--jit_compile",), marks=pytest.mark.nightly), ("--strategy=mirrored", "--devices=cpu:2")],
)
def test_float16_readings_are_unscaled(tmp_path, more):
    """The gradient norm that a float16 step reports is that of the float32 network, not 2^15 times it."""

    def norms(*arguments: str) -> np.ndarray:
        training = prepare(tmp_path, *NETWORK, *more, *arguments)
        train_step = step.make(
            training.parts.model,
            training.parts.optimizer,
            training.parts.probe,
            training.parts.strategy,
            batch_size=64,
            jit_compile="--jit_compile" in more,
        )
        batch = next(iter(training.parts.strategy.experimental_distribute_dataset(training.batches)))
        variables = train_step(*batch, True).reading.variables
        return np.asarray(training.parts.strategy.experimental_local_results(variables)[0])[0]

    np.testing.assert_allclose(norms("--mixed_precision=float16"), norms(), rtol=0.02)


Z = np.array([[3.0, -2.0, 0.5]], np.float32)
Y = np.array([[0.0, 1.0, 0.0]], np.float32)
SIGMOID = 1 / (1 + np.exp(-Z))


def loss_and_gradient():
    """Return the loss of a sigmoid's outputs and its gradient with respect to the logits `Z`."""
    z = tf.constant(Z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = step.cross_entropy(tf.constant(Y), keras.activations.sigmoid(z))
    return loss, tape.gradient(loss, z)


def test_the_loss_is_that_of_the_outputs():
    """With Keras' shortcut to the logits it would be another."""
    loss, _ = loss_and_gradient()
    np.testing.assert_allclose(loss, -np.log(SIGMOID[:, 1] / SIGMOID.sum()), rtol=1e-5)


def test_the_gradient_goes_through_the_output_activation():
    _, gradient = loss_and_gradient()
    expected = (1 / SIGMOID.sum() - Y / SIGMOID) * SIGMOID * (1 - SIGMOID)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("more", [(), ("--strategy=mirrored", "--devices=cpu:4")], ids=["one device", "four replicas"])
def test_evaluation_counts_every_example_once(tmp_path, more):
    training = prepare(tmp_path, "--seed=2", *more)
    evaluate = step.make_evaluation(training.parts.model, training.parts.strategy)
    batches = training.parts.strategy.experimental_distribute_dataset(data.validation_batches(training.parts.data, 100))
    sums = sum(evaluate(x, y).numpy() for x, y in batches)
    p = training.parts.model.predict(training.parts.data.x_valid.reshape(-1, 64) / 16, verbose=0)
    p /= p.sum(1, keepdims=True)
    y = training.parts.data.y_valid
    expected = [-np.log(p[np.arange(len(y)), y]).sum(), (p.argmax(1) == y).sum(), len(y)]
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
