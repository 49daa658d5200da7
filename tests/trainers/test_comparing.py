"""`tapescope compare` on trainings: with itself, on four replicas, and with other initial weights in one layer."""

import keras
import pytest

from tapescope import cli
from tests.trainers import trainings

pytestmark = pytest.mark.slow

ARGUMENTS = ("--preset=mlp", "--depth=2", "--width=8", "--steps=8", "--measure_every=4")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Train on one device."""
    logdir = tmp_path_factory.mktemp("one_device")
    trainings.run(logdir, *ARGUMENTS)
    return str(logdir)


def test_a_run_equals_itself(one_device):
    assert cli.main(["compare", one_device, one_device, "--tolerance=1e-9"]) == 0


def test_four_replicas_equal_one_device(one_device, tmp_path, capsys):
    trainings.run(tmp_path, *ARGUMENTS, "--strategy=mirrored", "--devices=cpu:4")
    assert cli.main(["compare", one_device, str(tmp_path)]) == 0, capsys.readouterr().out


def test_other_initial_weights_in_one_layer_are_located(one_device, tmp_path, capsys):
    def initialize(training):
        kernel = training.parts.model.get_layer("hidden_2").kernel
        kernel.assign(keras.initializers.HeNormal(7)(kernel.shape))

    trainings.run(tmp_path, *ARGUMENTS, change=initialize)
    assert cli.main(["compare", one_device, str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("first in forward order: hidden_2 at step 0, ")]
