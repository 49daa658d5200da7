"""Several tapes, and several gradients, in one step: each layer is read from the pass that trains it."""

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
    """As in the DCGAN tutorial: both tapes see everything."""
    with probe.tape(True) as of_gen, probe.tape(True) as of_dis:
        for_gen, for_dis = losses(dis(REAL), dis(gen(NOISE)))
    of_gen.gradient(for_gen, gen.trainable_variables)
    of_dis.gradient(for_dis, dis.trainable_variables)
    return of_gen.reading(of_dis)


def one_after_the_other(probe, gen, dis):
    with probe.tape(True) as of_dis:
        _, for_dis = losses(dis(REAL), dis(gen(NOISE)))
    of_dis.gradient(for_dis, dis.trainable_variables)
    with probe.tape(True) as of_gen:
        for_gen = tf.reduce_mean((dis(gen(NOISE)) - 1) ** 2)
    of_gen.gradient(for_gen, gen.trainable_variables)
    return of_gen.reading(of_dis)


def one_persistent_tape(probe, gen, dis):
    with probe.tape(True, persistent=True) as tape:
        for_gen, for_dis = losses(dis(REAL), dis(gen(NOISE)))
    tape.gradient(for_gen, gen.trainable_variables)
    tape.gradient(for_dis, dis.trainable_variables)
    return tape.reading()


@pytest.mark.parametrize("step", [side_by_side, one_after_the_other, one_persistent_tape])
def test_a_gan_is_one_reading(step):
    gen, dis = networks()
    probe = tapescope.Probe([gen, dis])
    reading = step(probe, gen, dis)
    assert set(probe.layers) == ROWS
    assert probe.skipped == {}
    rows = dict(zip(probe.layers, reading.column("delta_norm").numpy(), strict=True))
    with tf.GradientTape(persistent=True) as tape:
        leaky = gen.layers[1](gen.layers[0](NOISE))
        tape.watch(leaky)
        hidden = dis.layers[0](REAL)
        tape.watch(hidden)
        for_gen, for_dis = losses(dis.layers[1](hidden), dis(gen.layers[2](leaky)))
    np.testing.assert_allclose(rows["gen/leaky"], tf.norm(tape.gradient(for_gen, leaky)), rtol=1e-5)
    np.testing.assert_allclose(rows["dis/d1"], tf.norm(tape.gradient(for_dis, hidden)), rtol=1e-5)
    gradients = tape.gradient(for_gen, gen.trainable_variables) + tape.gradient(for_dis, dis.trainable_variables)
    np.testing.assert_allclose(reading.column("gradient_norm"), [tf.norm(g) for g in gradients], rtol=1e-5)


def test_a_probe_for_each_network():
    gen, dis = networks()
    of_gen, of_dis = tapescope.Probe(gen), tapescope.Probe(dis)
    with of_gen.tape(True) as gen_tape, of_dis.tape(True) as dis_tape:
        for_gen, for_dis = losses(dis(REAL), dis(gen(NOISE)))
    gen_tape.gradient(for_gen, gen.trainable_variables)
    dis_tape.gradient(for_dis, dis.trainable_variables)
    one = tapescope.Probe([gen, dis])
    both = dict(zip(one.variables, side_by_side(one, gen, dis).column("gradient_norm").numpy(), strict=True))
    for probe, tape in ((of_gen, gen_tape), (of_dis, dis_tape)):
        np.testing.assert_allclose(
            tape.reading().column("gradient_norm"), [both[name] for name in probe.variables], rtol=1e-5
        )
    assert (of_gen.layers, of_dis.layers) == (("g1", "leaky", "g2"), ("d1", "d2", "d1#2", "d2#2"))
    with pytest.raises(ValueError, match="`others` must be measuring tapes of the same Probe"):
        gen_tape.reading(dis_tape)
