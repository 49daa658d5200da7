"""Several tapes and several gradients in one step: each layer is measured in the pass that trains it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tapescope

RNG = np.random.default_rng(5)
REAL, NOISE = (tf.constant(RNG.normal(size=[8, n]), tf.float32) for n in (2, 3))
ROWS = {"gen/g1", "gen/leaky", "gen/g2", "dis/d1", "dis/d2", "dis/d1#2", "dis/d2#2"}


def networks():
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    hidden = [dense(4, name="g1"), keras.layers.LeakyReLU(name="leaky"), dense(2, name="g2")]
    judge = [dense(4, "tanh", name="d1"), dense(1, name="d2")]
    return (
        keras.Sequential([keras.Input((3,)), *hidden], name="gen"),
        keras.Sequential([keras.Input((2,)), *judge], name="dis"),
    )


def losses(real, faked):
    return tf.reduce_mean((faked - 1) ** 2), tf.reduce_mean((real - 1) ** 2) + tf.reduce_mean(faked**2)


def side_by_side(probe, gen, dis):
    """Take the step of the DCGAN tutorial: both tapes see everything."""
    with probe.tape(True) as gen_tape, probe.tape(True) as dis_tape:
        gen_loss, dis_loss = losses(dis(REAL), dis(gen(NOISE)))
    gen_tape.gradient(gen_loss, gen.trainable_variables)
    dis_tape.gradient(dis_loss, dis.trainable_variables)
    return gen_tape.reading(dis_tape)


def one_after_the_other(probe, gen, dis):
    with probe.tape(True) as dis_tape:
        _, dis_loss = losses(dis(REAL), dis(gen(NOISE)))
    dis_tape.gradient(dis_loss, dis.trainable_variables)
    with probe.tape(True) as gen_tape:
        gen_loss = tf.reduce_mean((dis(gen(NOISE)) - 1) ** 2)
    gen_tape.gradient(gen_loss, gen.trainable_variables)
    return gen_tape.reading(dis_tape)


def one_persistent_tape(probe, gen, dis):
    with probe.tape(True, persistent=True) as tape:
        gen_loss, dis_loss = losses(dis(REAL), dis(gen(NOISE)))
    tape.gradient(gen_loss, gen.trainable_variables)
    tape.gradient(dis_loss, dis.trainable_variables)
    return tape.reading()


STEPS = [side_by_side, one_after_the_other, one_persistent_tape]


def plain_gan():
    """Return the norms of the gradients that the layers and variables of a GAN should have."""
    gen, dis = networks()
    with tf.GradientTape(persistent=True) as tape:
        leaky = gen.layers[1](gen.layers[0](NOISE))
        tape.watch(leaky)
        hidden = dis.layers[0](REAL)
        tape.watch(hidden)
        gen_loss, dis_loss = losses(dis.layers[1](hidden), dis(gen.layers[2](leaky)))
    deltas = {"gen/leaky": tape.gradient(gen_loss, leaky), "dis/d1": tape.gradient(dis_loss, hidden)}
    gradients = tape.gradient(gen_loss, gen.trainable_variables) + tape.gradient(dis_loss, dis.trainable_variables)
    return {name: tf.norm(delta) for name, delta in deltas.items()}, [tf.norm(g) for g in gradients]


@pytest.mark.parametrize("step", STEPS)
def test_a_gan_has_one_row_for_each_call(step):
    gen, dis = networks()
    probe = tapescope.Probe([gen, dis])
    step(probe, gen, dis)
    assert set(probe.layers) == ROWS
    assert probe.skipped == {}


@pytest.mark.parametrize("step", STEPS)
def test_layers_are_measured_in_the_pass_that_trains_them(step):
    gen, dis = networks()
    probe = tapescope.Probe([gen, dis])
    reading = step(probe, gen, dis)
    norms = dict(zip(probe.layers, reading.column("delta_norm").numpy(), strict=True))
    for name, norm in plain_gan()[0].items():
        np.testing.assert_allclose(norms[name], norm, rtol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_gradients_are_those_of_the_pass_that_asked_for_them(step):
    gen, dis = networks()
    reading = step(tapescope.Probe([gen, dis]), gen, dis)
    np.testing.assert_allclose(reading.column("gradient_norm"), plain_gan()[1], rtol=1e-5)


def measure_with_two_probes():
    gen, dis = networks()
    gen_probe, dis_probe = tapescope.Probe(gen), tapescope.Probe(dis)
    with gen_probe.tape(True) as gen_tape, dis_probe.tape(True) as dis_tape:
        gen_loss, dis_loss = losses(dis(REAL), dis(gen(NOISE)))
    gen_tape.gradient(gen_loss, gen.trainable_variables)
    dis_tape.gradient(dis_loss, dis.trainable_variables)
    return (gen_probe, gen_tape), (dis_probe, dis_tape)


def test_two_probes_record_the_gradients_of_one_each():
    norms = np.concatenate([tape.reading().column("gradient_norm") for _, tape in measure_with_two_probes()])
    np.testing.assert_allclose(norms, plain_gan()[1], rtol=1e-5)


def test_each_of_two_probes_measures_its_own_layers():
    layers = []
    for probe, tape in measure_with_two_probes():
        tape.reading()
        layers.append(probe.layers)
    assert layers == [("g1", "leaky", "g2"), ("d1", "d2", "d1#2", "d2#2")]


def test_reading_rejects_tapes_of_another_probe():
    (_, gen_tape), (_, dis_tape) = measure_with_two_probes()
    with pytest.raises(ValueError, match="`others` must be measuring tapes of the same Probe"):
        gen_tape.reading(dis_tape)


def test_unconnected_gradients_may_be_asked_for_by_their_value():
    used, unused = tf.Variable(tf.ones([2])), tf.Variable(tf.ones([3]))
    with tapescope.Probe([used, unused]).tape(True) as tape:
        loss = tf.reduce_sum(used)
    gradients = tape.gradient(loss, [used, unused], unconnected_gradients="zero")
    assert [g.numpy().tolist() for g in gradients] == [[1, 1], [0, 0, 0]]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_jacobian_is_not_taken_for_the_gradient(compiled):
    def step(measure):
        with probe.tape(measure, persistent=True) as tape:
            inputs = tf.identity(REAL)
            tape.watch(inputs)
            hidden = tf.tanh(inputs @ weights)
            loss = tf.reduce_sum(hidden**2)
        jacobian = tape.jacobian(tf.reduce_sum(hidden, 0), weights)
        gradient = tape.gradient(loss, weights)
        rows = tape.batch_jacobian(hidden, inputs)
        return jacobian, gradient, rows, tape.reading()

    weights = tf.Variable(tf.ones([2, 3]))
    probe = tapescope.Probe(weights, strict=True)
    run = tf.function(step) if compiled else step
    plain, measured = run(False), run(True)
    for left, right in zip(plain[:3], measured[:3], strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_allclose(measured[3].column("gradient_norm"), [np.linalg.norm(plain[1])], rtol=1e-6)
