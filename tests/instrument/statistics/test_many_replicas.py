"""36 replicas in a process of their own, compared with one device and with float64 NumPy.

`test_replicas.py` has the same with fewer, in the tests' own process.
"""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured

import tapescope

# To trace the step of 36 replicas takes minutes.
pytestmark = [pytest.mark.nightly, pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(1800)]

REPLICAS = 36
PROGRAM = f"""
import sys

import keras
import numpy as np
import tensorflow as tf
from scripts.testbed.steps import dense_chain, measured, mirrored

import tapescope

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * {REPLICAS})
tf.config.optimizer.set_experimental_options({{"disable_meta_optimizer": True}})  # it would take minutes
x = np.load(sys.argv[2])
strategy = mirrored({REPLICAS})
with strategy.scope():
    model = dense_chain([3, 1], ["tanh", "linear"], 4)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
probe = tapescope.Probe(model, histograms=False)
parts = strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(np.split(x, {REPLICAS})[context.replica_id_in_sync_group])
)

def replica_step(x):
    def loss():
        return tf.reduce_sum(model(x, training=True) ** 2) / {REPLICAS * 2}

    return measured(probe, loss, model.trainable_variables, optimizer).reading

step = tf.function(lambda: strategy.run(replica_step, (parts,)))
with tapescope.Recorder(sys.argv[1], probe) as recorder:
    for n in range(3):
        if n == 2:
            model.trainable_variables[1].value.values[29].assign_add([1e-3] * 3)
        recorder.write(n, step(), {{"loss": 1.0}})
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the run of 36 replicas, that of one device, the batch, and the weights before the first step."""
    directory = tmp_path_factory.mktemp("many")
    x = np.random.default_rng(0).normal(size=[2 * REPLICAS, 4]).astype(np.float32)
    x[2 * 17 : 2 * 18] *= 30
    np.save(directory / "x.npy", x)
    (directory / "program.py").write_text(PROGRAM)
    command = [sys.executable, directory / "program.py", directory / "many", directory / "x.npy"]
    subprocess.run(command, check=True, timeout=1700)
    model = dense_chain([3, 1], ["tanh", "linear"], 4)
    weights = [v.numpy() for v in model.trainable_variables]
    optimizer = keras.optimizers.SGD(0.1)
    probe = tapescope.Probe(model, histograms=False)
    with tapescope.Recorder(directory / "one", probe) as recorder:
        for n in range(2):
            step = measured(probe, lambda: tf.reduce_mean(model(x) ** 2), model.trainable_variables, optimizer)
            recorder.write(n, step.reading, {"loss": 1.0})
    return tapescope.Run(directory / "many"), tapescope.Run(directory / "one"), x, weights


@pytest.mark.parametrize(
    "column", ["gradient_norm", "update_ratio", "activation_mean", "activation_std", "activation_max", "delta_norm"]
)
def test_many_replicas_have_the_columns_of_one_device(runs, column):
    many, one, _, _ = runs
    np.testing.assert_allclose(many[column][:2], one[column], rtol=1e-4, atol=1e-6)


def test_each_of_many_replicas_has_its_norm_and_its_cosine(runs):
    many, _, x, (w1, b1, w2, b2) = runs
    gradients = []
    for part in np.split(x.astype(float), REPLICAS):
        a = np.tanh(part @ w1 + b1)
        d2 = 2 * (a @ w2 + b2) / len(x)
        d1 = d2 @ w2.T * (1 - a**2)
        gradients.append(np.concatenate([g.ravel() for g in (part.T @ d1, d1.sum(0), a.T @ d2, d2.sum(0))]))
    total = np.sum(gradients, 0)
    norms = np.linalg.norm(gradients, axis=1)
    assert many.rows("replica_norm") == ("all variables",)
    np.testing.assert_allclose(many["replica_norm"][0, :, 0], norms, rtol=1e-4)
    cosines = gradients @ total / norms / np.linalg.norm(total)
    np.testing.assert_allclose(many["replica_cosine"][0, :, 0], cosines, rtol=1e-3, atol=1e-5)


def test_the_one_of_many_replicas_with_other_weights_is_named(runs):
    many = runs[0]
    differs = many["replica_checksum"][:, :, 0] != many["replica_checksum"][:, :1, 0]
    assert [list(np.flatnonzero(row)) for row in differs] == [[], [], [29]]
    (finding,) = (f for f in tapescope.check(many) if f.rule == "replicas_diverged")
    assert (finding.step, finding.evidence["replica"]) == (2, 29)
