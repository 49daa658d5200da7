"""Every kind of loop: accumulation, clipping, loss scales, several losses, nested tapes, recomputing, graph loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain

import tapescope

RNG = np.random.default_rng(3)
X, Y = (tf.constant(RNG.normal(size=[16, n]), tf.float32) for n in (6, 2))


def chain(**kwargs):
    return dense_chain([5, 4, 2], ["relu", "sigmoid", "linear"], 6, **kwargs)


def error(model, x=X, y=Y):
    return tf.reduce_mean(tf.square(tf.cast(model(x, training=True), tf.float32) - y))


def norms(gradients):
    return [float(np.linalg.norm(np.asarray(tf.convert_to_tensor(g), np.float64))) for g in gradients]


def exact(model, loss):
    with tf.GradientTape() as tape:
        value = loss()
    return tape.gradient(value, model.trainable_variables)


def test_an_accumulated_gradient_is_that_of_the_whole_batch():
    model = chain()
    probe, total = tapescope.Probe(model), [tf.zeros_like(v) for v in model.trainable_variables]
    for part in range(4):
        rows = slice(4 * part, 4 * part + 4)
        with probe.tape(part == 3) as tape:
            loss = error(model, X[rows], Y[rows]) / 4
        total = [t + g for t, g in zip(total, tape.gradient(loss, model.trainable_variables), strict=True)]
    reading = tape.reading(aggregated=total)
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(exact(model, lambda: error(model))), rtol=1e-5)
    assert reading.column("examples") == 4  # the activations are those of the part that was measured


@pytest.mark.parametrize(
    "clip",
    [
        lambda gs: [tf.clip_by_value(g, -1e-3, 1e-3) for g in gs],
        lambda gs: [tf.clip_by_norm(g, 1e-2) for g in gs],
        lambda gs: tf.clip_by_global_norm(gs, 1e-2)[0],
    ],
    ids=["value", "norm", "global_norm"],
)
def test_clipped_gradients_before_and_after(clip):
    model = chain()
    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        loss = error(model)
    gradients = tape.gradient(loss, model.trainable_variables)
    clipped = clip(gradients)
    reading = tape.reading(applied=clipped)
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(gradients), rtol=1e-5)
    np.testing.assert_allclose(reading.column("applied_norm"), norms(clipped), rtol=1e-5)
    assert np.any(reading.column("applied_norm") < reading.column("gradient_norm"))


def test_a_loss_scale_that_overflows_skips_the_step_and_the_record_says_so(tmp_path):
    model = chain(dtype="mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**30)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for step, scale in enumerate((2.0**30, 16.0)):
            optimizer.dynamic_scale.assign(scale)
            with probe.tape(True) as tape:
                loss = error(model)
                scaled = optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            recorder.write(step, tape.reading(loss_scale=scale), scalars={"loss": loss})
    run = tapescope.Run(tmp_path)
    assert run["skipped"].tolist() == [1, 0]
    assert np.all(run["update_ratio"][0] == 0)
    assert run["gradient_norm"][1].max() < 10
    assert [f["severity"] for f in run.findings if f["rule"] == "non_finite"] == ["info"]


def test_several_losses_on_one_tape():
    """The sum is what the optimizer gets; `aggregated` says so."""
    model = chain()
    probe = tapescope.Probe(model)
    with probe.tape(True, persistent=True) as tape:
        first, second = error(model), 0.1 * tf.add_n([tf.nn.l2_loss(v) for v in model.trainable_variables])
    parts = [tape.gradient(loss, model.trainable_variables) for loss in (second, first)]
    total = [a + b for a, b in zip(*parts, strict=True)]
    reading = tape.reading(aggregated=total)
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(total), rtol=1e-5)
    assert len(probe.layers) == 3
    assert np.all(np.isfinite(reading.column("delta_norm")))  # of the last of them


@pytest.mark.parametrize("inside", [False, True])
def test_a_gradient_penalty_on_an_inner_tape(inside):
    """`inside`: the reading is taken while the tape is still open."""
    model = dense_chain([5, 1], ["tanh", "linear"], 6)

    def loss():
        with tf.GradientTape() as inner:
            inner.watch(X)
            out = tf.reduce_sum(model(X))
        slope = tf.norm(inner.gradient(out, X), axis=1)
        return tf.reduce_mean(tf.square(slope - 1)) + error(model, X, Y[:, :1])

    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        value = loss()
        if inside:
            gradients = tape.gradient(value, model.trainable_variables)
            reading = tape.reading()
    if not inside:
        gradients = tape.gradient(value, model.trainable_variables)
        reading = tape.reading()
    expected = exact(model, loss)
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(expected), rtol=1e-5)
    assert probe.layers == ("layer0", "layer1", "layer0#2", "layer1#2")


def test_recomputed_layers_have_a_forward_and_no_delta():
    """`tf.recompute_grad` runs its layers again on the way back; they are the same rows still."""
    model = chain()
    again = tf.recompute_grad(lambda x: model.layers[1](model.layers[0](x)))

    def loss():
        return tf.reduce_mean(tf.square(model.layers[2](again(X)) - Y))

    probe = tapescope.Probe(model)
    with probe.tape(True) as tape:
        value = loss()
    gradients = tape.gradient(value, model.trainable_variables)
    reading = tape.reading()
    for mine, theirs in zip(gradients, exact(model, loss), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert probe.layers == ("layer0", "layer1", "layer2")
    np.testing.assert_array_equal(np.isnan(reading.column("delta_norm")), [True, True, False])
    assert np.all(np.isfinite(reading.column("activation_std")))


@pytest.mark.parametrize("inside", [True, False])
def test_the_reading_of_the_last_step_comes_out_of_a_loop_in_a_graph(inside):
    """All steps measured inside the loop, or plain ones there and a measured one after it."""
    model, optimizer = dense_chain([2], ["tanh"], 6), keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(model)

    def step(measure):
        with probe.tape(measure) as tape:
            loss = error(model)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return tape.reading()

    @tf.function
    def measured_steps(count):
        for _ in tf.range(count):
            reading = step(True)
        return reading

    @tf.function
    def steps(count, measure):
        for _ in tf.range(count - 1):
            step(False)
        return step(measure)

    twin = dense_chain([2], ["tanh"], 6)
    for _ in range(3):
        gradients = exact(twin, lambda: error(twin))
        for variable, gradient in zip(twin.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    reading = measured_steps(tf.constant(3)) if inside else steps(tf.constant(3), True)
    np.testing.assert_allclose(model.layers[0].kernel, twin.layers[0].kernel, rtol=1e-5)
    np.testing.assert_allclose(reading.column("gradient_norm"), norms(gradients), rtol=1e-4)
    assert inside or steps(tf.constant(3), False) is None


def test_what_is_no_reading_of_this_probe_is_refused_with_the_cure(tmp_path, caplog):
    model, other = chain(), dense_chain([2], ["relu"], 6)
    mine, theirs = tapescope.Probe(model), tapescope.Probe(other)

    def read(probe, model):
        with probe.tape(True) as tape:
            loss = error(model)
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    with tapescope.Recorder(tmp_path, mine) as recorder:
        with pytest.raises(ValueError, match=r"`reading` \(float\) must be what `tape.reading\(\)` returned"):
            recorder.write(0, 1.0)
        with pytest.raises(ValueError, match="give each Probe a Recorder of its own"):
            recorder.write(0, read(theirs, other))
        read(mine, model)
        with pytest.raises(ValueError, match=r"\(2 variables, 1 layers\) is not of the Probe"):
            recorder.write(0, read(theirs, other))
    assert tapescope.Run(tmp_path).status["state"] == "ended"


def test_a_smaller_last_batch_is_the_same_rows_and_other_units_are_not():
    convolution = keras.layers.Conv1D(3, 2, activation="relu", name="conv")
    model = keras.Sequential([keras.Input((None, 1)), convolution, keras.layers.GlobalMaxPooling1D(name="pool")])
    probe = tapescope.Probe(model)

    @tf.function
    def step(x, transposed):
        with probe.tape(True) as tape:
            out = model(x)
            out = tapescope.tap("out", tf.transpose(out) if transposed else out)
            loss = tf.reduce_mean(out)
        tape.gradient(loss, model.trainable_variables)
        return tape.reading()

    assert step(tf.ones([8, 6, 1]), False).column("examples") == 8
    assert step(tf.ones([5, 4, 1]), False).column("examples") == 5
    with pytest.raises(ValueError, match=r"`out` has 5 units and had 3"):
        step(tf.ones([5, 4, 1]), True)
