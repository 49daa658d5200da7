"""`tapescope compare` on trainings: itself, on four replicas, and with other first weights in one layer."""

import keras

from tapescope import cli
from tapescope_trainers import flags, train
from tapescope_trainers.training import build

ARGUMENTS = ("--preset=mlp", "--depth=2", "--width=8", "--steps=8", "--measure_every=4", "--noprogress")


def trained(logdir, *more: str, change: str | None = None) -> str:
    options = flags.parse(["x", f"--logdir={logdir}", *ARGUMENTS, *more])
    parts = build.prepare(options)
    if change:
        kernel = parts.model.get_layer(change).kernel
        kernel.assign(keras.initializers.HeNormal(7)(kernel.shape))
    train.train(options, parts, [])
    return str(logdir)


def test_the_same_training_is_told_from_one_with_another_initializer_in_one_layer(tmp_path, capsys):
    one = trained(tmp_path / "one")
    four = trained(tmp_path / "four", "--strategy=mirrored", "--devices=cpu:4")
    other = trained(tmp_path / "other", change="hidden_2")
    capsys.readouterr()
    assert cli.main(["compare", one, one, "--tolerance=1e-9"]) == 0
    assert cli.main(["compare", one, four]) == 0, capsys.readouterr().out
    assert cli.main(["compare", one, other]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("first in forward order: hidden_2 at step 0, ") for line in lines), lines
