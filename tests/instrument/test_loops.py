"""Every kind of loop: accumulation, clipping, loss scales, several losses, nested tapes, recomputing, graph loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import Step, dense_chain, measured

import tapescope

RNG = np.random.default_rng(3)
X = tf.constant(RNG.normal(size=[16, 6]), tf.float32)
Y = tf.constant(RNG.normal(size=[16, 2]), tf.float32)


def chain(**kwargs):
    return dense_chain([5, 4, 2], ["relu", "sigmoid", "linear"], 6, **kwargs)


def error(model, x=X, y=Y):
    return tf.reduce_mean(tf.square(tf.cast(model(x, training=True), tf.float32) - y))


def norms(gradients):
    return [float(np.linalg.norm(np.asarray(tf.convert_to_tensor(g), np.float64))) for g in gradients]


def plain_gradients(model, loss):
    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, model.trainable_variables)


def assert_same_bits(gradients, expected):
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(gradient, other)


def test_an_accumulated_gradient_is_that_of_the_whole_batch():
    model = chain()
    probe = tapescope.Probe(model)
    total = [tf.zeros_like(v) for v in model.trainable_variables]
    for part in range(4):
        rows = slice(4 * part, 4 * part + 4)
        with probe.tape(part == 3) as tape:
            loss = error(model, X[rows], Y[rows]) / 4
        total = [t + g for t, g in zip(total, tape.gradient(loss, model.trainable_variables), strict=True)]
    reading = tape.reading(aggregated=total)
    expected = norms(plain_gradients(model, lambda: error(model)))
    np.testing.assert_allclose(reading.column("gradient_norm"), expected, rtol=1e-5)


def test_under_accumulation_activations_are_of_the_measured_part():
    model = chain()
    probe = tapescope.Probe(model)
    for part in range(4):
        with probe.tape(part == 3) as tape:
            loss = error(model, X[4 * part : 4 * part + 4], Y[4 * part : 4 * part + 4])
        gradients = tape.gradient(loss, model.trainable_variables)
    assert tape.reading(aggregated=gradients).column("examples") == 4


@pytest.fixture(
    params=[
        lambda gradients: [tf.clip_by_value(g, -1e-3, 1e-3) for g in gradients],
        lambda gradients: [tf.clip_by_norm(g, 1e-2) for g in gradients],
        lambda gradients: tf.clip_by_global_norm(gradients, 1e-2)[0],
    ],
    ids=["value", "norm", "global_norm"],
)
def clipping(request):
    """Gradients before and after clipping, and the reading."""
    model = chain()
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = error(model)
    gradients = tape.gradient(loss, model.trainable_variables)
    clipped = request.param(gradients)
    return gradients, clipped, tape.reading(applied=clipped)


def test_gradient_norms_are_those_before_clipping(clipping):
    gradients, _, reading = clipping
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(gradients), rtol=1e-5)


def test_applied_norms_are_those_after_clipping(clipping):
    _, clipped, reading = clipping
    np.testing.assert_allclose(reading.column("applied_norm"), norms(clipped), rtol=1e-5)


def test_clipping_makes_some_gradient_smaller(clipping):
    _, _, reading = clipping
    assert np.any(reading.column("applied_norm") < reading.column("gradient_norm"))


@pytest.fixture(scope="module")
def overflowing_run(tmp_path_factory):
    """Return a run of two steps in float16, of which the first overflows."""
    logdir = tmp_path_factory.mktemp("overflow")
    model = chain(dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**30)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)
    with tapescope.Recorder(logdir, probe) as recorder:
        for step, scale in enumerate((2.0**30, 16.0)):
            optimizer.dynamic_scale.assign(scale)
            taken = measured(
                probe,
                lambda: optimizer.scale_loss(error(model)),
                model.trainable_variables,
                optimizer,
                loss_scale=scale,
            )
            recorder.write(step, taken.reading)
    return tapescope.Run(logdir)


def test_a_loss_scale_that_overflows_skips_the_step(overflowing_run):
    assert overflowing_run["skipped"].tolist() == [1, 0]


def test_a_skipped_step_changes_no_weight(overflowing_run):
    assert np.all(overflowing_run["update_ratio"][0] == 0)


def test_gradient_norms_are_unscaled(overflowing_run):
    assert overflowing_run["gradient_norm"][1].max() < 10


def test_an_overflow_under_a_loss_scale_is_only_noted(overflowing_run):
    assert [f["severity"] for f in overflowing_run.findings if f["rule"] == "non_finite"] == ["info"]


@pytest.fixture
def two_losses():
    """Return the Probe, the sum of the gradients of two losses on one persistent tape, and the reading of it."""
    model = chain()
    probe = tapescope.Probe(model)
    with probe.tape(True, persistent=True) as tape:
        first = error(model)
        second = 0.1 * tf.add_n([tf.nn.l2_loss(v) for v in model.trainable_variables])
    parts = [tape.gradient(loss, model.trainable_variables) for loss in (second, first)]
    total = [a + b for a, b in zip(*parts, strict=True)]
    return probe, total, tape.reading(aggregated=total)


def test_gradient_norms_of_several_losses_are_those_of_aggregated(two_losses):
    _, total, reading = two_losses
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(total), rtol=1e-5)


def test_several_losses_make_no_further_rows(two_losses):
    probe, _, _ = two_losses
    assert len(probe.layers) == 3


def test_delta_norms_of_several_losses_are_those_of_the_last(two_losses):
    """The first loss does not depend on the layers' outputs, which would give NaN."""
    _, _, reading = two_losses
    assert np.all(np.isfinite(reading.column("delta_norm")))


@pytest.fixture
def penalty():
    """Return a model, and a loss with a penalty on the gradient with respect to the input."""
    model = dense_chain([5, 1], ["tanh", "linear"], 6)

    def loss():
        with tf.GradientTape() as inner:
            inner.watch(X)
            out = tf.reduce_sum(model(X))
        slope = tf.norm(inner.gradient(out, X), axis=1)
        return tf.reduce_mean(tf.square(slope - 1)) + error(model, X, Y[:, :1])

    return model, loss


def read_after_the_block(probe, model, loss):
    return measured(probe, loss, model.trainable_variables)


def read_inside_the_block(probe, model, loss):
    """Take gradient and reading while the tape is still open."""
    with probe.tape(True) as tape:
        value = loss()
        gradients = tape.gradient(value, model.trainable_variables)
        reading = tape.reading()
    return Step(value, gradients, reading)


READ = pytest.mark.parametrize("read", [read_after_the_block, read_inside_the_block])


@READ
def test_a_gradient_penalty_has_the_gradients_of_a_plain_tape(penalty, read):
    model, loss = penalty
    taken = read(tapescope.Probe(model), model, loss)
    assert_same_bits(taken.gradients, plain_gradients(model, loss))


@READ
def test_gradient_norms_of_a_gradient_penalty(penalty, read):
    model, loss = penalty
    taken = read(tapescope.Probe(model), model, loss)
    np.testing.assert_allclose(taken.reading.column("gradient_norm"), norms(taken.gradients), rtol=1e-5)


@READ
def test_each_call_for_a_gradient_penalty_has_rows(penalty, read):
    model, loss = penalty
    probe = tapescope.Probe(model)
    read(probe, model, loss)
    assert probe.layers == ("layer0", "layer1", "layer0#2", "layer1#2")


@pytest.fixture
def recomputed():
    """Return a Probe, a step with two layers under `tf.recompute_grad`, and the gradients that a plain tape gives."""
    model = chain()
    first_two = tf.recompute_grad(lambda x: model.layers[1](model.layers[0](x)))

    def loss():
        return tf.reduce_mean(tf.square(model.layers[2](first_two(X)) - Y))

    probe = tapescope.Probe(model)
    return probe, measured(probe, loss, model.trainable_variables), plain_gradients(model, loss)


def test_recomputing_has_the_gradients_of_a_plain_tape(recomputed):
    _, taken, expected = recomputed
    assert_same_bits(taken.gradients, expected)


def test_recomputed_layers_keep_their_rows(recomputed):
    """`tf.recompute_grad` calls its layers again in the backward pass."""
    probe, _, _ = recomputed
    assert probe.layers == ("layer0", "layer1", "layer2")


def test_recomputed_layers_have_no_delta(recomputed):
    _, taken, _ = recomputed
    np.testing.assert_array_equal(np.isnan(taken.reading.column("delta_norm")), [True, True, False])


def test_recomputed_layers_have_activations(recomputed):
    _, taken, _ = recomputed
    assert np.all(np.isfinite(taken.reading.column("activation_std")))


def measured_steps_in_a_loop(step):
    @tf.function
    def steps(count):
        for _ in tf.range(count):
            reading = step(True)
        return reading

    return steps


def plain_steps_in_a_loop_and_a_measured_one_after_it(step):
    @tf.function
    def steps(count):
        for _ in tf.range(count - 1):
            step(False)
        return step(True)

    return steps


@pytest.mark.parametrize("make_loop", [measured_steps_in_a_loop, plain_steps_in_a_loop_and_a_measured_one_after_it])
def test_the_reading_of_the_last_step_comes_out_of_a_loop_in_a_graph(make_loop):
    model = dense_chain([2], ["tanh"], 6)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)

    def step(measure):
        return measured(probe, lambda: error(model), model.trainable_variables, optimizer, measure).reading

    reading = make_loop(step)(tf.constant(3))
    twin = dense_chain([2], ["tanh"], 6)
    for _ in range(3):
        gradients = plain_gradients(twin, lambda: error(twin))
        for variable, gradient in zip(twin.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    np.testing.assert_allclose(model.layers[0].kernel, twin.layers[0].kernel, rtol=1e-5)
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(gradients), rtol=1e-4)


def test_an_unmeasured_step_has_no_reading():
    model = chain()
    assert (
        measured(tapescope.Probe(model), lambda: error(model), model.trainable_variables, measure=False).reading is None
    )


def test_what_is_not_a_reading_is_refused_with_the_cure(tmp_path):
    with (
        tapescope.Recorder(tmp_path, tapescope.Probe(chain())) as recorder,
        pytest.raises(ValueError, match=r"`reading` must be what `tape.reading\(\)` returned, .*; got float"),
    ):
        recorder.write(0, 1.0)


@pytest.fixture
def foreign_reading():
    """Return a reading of another Probe."""
    model = dense_chain([2], ["relu"], 6)
    return measured(tapescope.Probe(model), lambda: error(model), model.trainable_variables).reading


def test_a_reading_of_another_probe_is_refused_before_the_first_step(tmp_path, foreign_reading):
    with (
        tapescope.Recorder(tmp_path, tapescope.Probe(chain())) as recorder,
        pytest.raises(ValueError, match="make a Recorder for each Probe"),
    ):
        recorder.write(0, foreign_reading)


def test_a_reading_of_another_probe_is_refused_after_a_step(tmp_path, foreign_reading):
    model = chain()
    probe = tapescope.Probe(model)
    measured(probe, lambda: error(model), model.trainable_variables)
    with (
        tapescope.Recorder(tmp_path, probe) as recorder,
        pytest.raises(ValueError, match=r"of the Probe .*; got one of 2 variables and 1 layers"),
    ):
        recorder.write(0, foreign_reading)


def test_a_sum_of_readings_over_replicas_is_refused(tmp_path):
    model = chain()
    probe = tapescope.Probe(model)
    reading = measured(probe, lambda: error(model), model.trainable_variables).reading
    with tapescope.Recorder(tmp_path, probe) as recorder:
        with pytest.raises(ValueError, match=r"`reading` must be what `strategy.run` returned, .*; got a sum"):
            recorder.write(0, tapescope.Reading(*[part + part for part in reading]))
        recorder.write(0, reading)
    assert tapescope.Run(tmp_path).steps.tolist() == [0]


def test_a_refused_reading_does_not_fail_the_run(tmp_path):
    with tapescope.Recorder(tmp_path, tapescope.Probe(chain())) as recorder, pytest.raises(ValueError, match="reading"):
        recorder.write(0, 1.0)
    assert tapescope.Run(tmp_path).status["state"] == "ended"


@pytest.fixture
def convolution_step():
    """Return a compiled step of a convolution; its output can be transposed, so that the last axis is time."""
    convolution = keras.layers.Conv1D(3, 2, activation="relu", name="conv")
    model = keras.Sequential([keras.Input((None, 1)), convolution, keras.layers.GlobalMaxPooling1D(name="pool")])
    probe = tapescope.Probe(model)

    @tf.function
    def step(x, transposed):
        def loss():
            out = model(x)
            return tf.reduce_mean(tapescope.tap("out", tf.transpose(out) if transposed else out))

        return measured(probe, loss, model.trainable_variables).reading

    return step


def test_a_smaller_last_batch_has_the_same_rows(convolution_step):
    assert convolution_step(tf.ones([8, 6, 1]), False).column("examples") == 8
    assert convolution_step(tf.ones([5, 4, 1]), False).column("examples") == 5


def test_a_layer_with_another_number_of_units_keeps_its_columns(convolution_step):
    first = convolution_step(tf.ones([8, 6, 1]), False)
    other = convolution_step(tf.ones([5, 4, 1]), True)
    assert first.column("delta_norm").shape == other.column("delta_norm").shape == [2]
    assert int(other.layout) == 1


def perturbed_and_back(model, variables, tapes):
    """Take the two gradients of sharpness-aware minimization; the weights of the second are perturbed."""
    with tapes() as first:
        loss = error(model)
    gradients = first.gradient(loss, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_add(3 * gradient)
    with tapes() as second:
        loss = error(model)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(3 * gradient)
    for variable, gradient in zip(variables, second.gradient(loss, variables), strict=True):
        variable.assign_sub(0.01 * gradient)
    return second, first


def two_updates(model, variables, tapes):
    """Take two steps of gradient descent, as the critic of a GAN does."""
    made = []
    for _ in range(2):
        with tapes() as tape:
            loss = error(model)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
        made.append(tape)
    return made[::-1]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("update", [perturbed_and_back, two_updates])
def test_weights_that_change_between_passes_are_compared_over_the_step(update, traced):
    model = chain()
    variables = model.trainable_variables
    probe = tapescope.Probe(model, strict=True)
    before = [v.numpy() for v in variables]

    def step():
        last, *others = update(model, variables, lambda: probe.tape(True))
        return last.reading(*others)

    reading = tf.function(step)() if traced else step()
    np.testing.assert_allclose(reading.column("weight_norm"), norms(before), rtol=1e-5)
    changes = norms([v.numpy() - b for v, b in zip(variables, before, strict=True)])
    with np.errstate(divide="ignore"):
        ratios = np.divide(changes, norms(before))
    kernels = [i for i, b in enumerate(before) if b.any()]
    np.testing.assert_allclose(np.asarray(reading.column("update_ratio"))[kernels], ratios[kernels], rtol=1e-3)
