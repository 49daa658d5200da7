"""The command line: what it refuses, in one line, and how fast."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tapescope_trainers import flags, train


def parse(*arguments: str) -> flags.Options:
    return flags.parse(["tapescope-train", *arguments])


def test_defaults(tmp_path):
    options = parse(f"--logdir={tmp_path}")
    assert (options.preset, options.data, options.optimizer, options.strategy) == (
        *("relu_sigmoid", "digits", "adam", "default"),
    )
    assert options.measure_every == 10
    assert not options.serve


def test_a_second_command_line_starts_from_the_defaults(tmp_path):
    parse(f"--logdir={tmp_path}", "--seed=5", "--preset=mlp")
    assert parse(f"--logdir={tmp_path}").seed == 0


def test_without_logdir_the_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logdir = parse("--preset=mlp").logdir
    assert logdir.startswith("runs/mlp-")
    assert (tmp_path / logdir).is_dir()


def test_aliases_and_special_values(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=np.zeros([2, 2]), y_train=np.zeros([2], int))
    path = f"npz:{tmp_path}/own.npz"
    options = parse(f"--logdir={tmp_path}", f"--dataset={path}", "--measure_every=never", "--nohistograms")
    assert options.data == path
    assert options.measure_every is None
    assert not options.histograms
    assert flags.hparams(options)["measure_every"] == "never"


def test_hparams_are_what_can_change_a_result(tmp_path):
    hparams = flags.hparams(parse(f"--logdir={tmp_path}", "--preset=mlp", "--activation=elu", "--clip_norm=2"))
    assert hparams["activation"] == "elu"
    assert hparams["clip_norm"] == 2.0
    assert not {"logdir", "serve", "port", "width"} & hparams.keys()


REFUSED = {
    "--preset=sigmod_relu": "--preset=sigmod_relu: must be one of ... ; did you mean sigmoid_relu?",
    "--activation=rellu": "--activation=rellu: must be ... ; did you mean relu?",
    "--data=minst": "--data=minst: must be one of digits, ... ; did you mean mnist?",
    "--data=npz:no/where.npz": "--data=npz:no/where.npz: there is no such file; write one with numpy.savez",
    "--optimizer=Adam": "did you mean adam?",
    "--initializer=he": "--initializer=he: must be one of ... he_normal",
    "--strategy=mirror": "did you mean mirrored?",
    "--mixed_precision=half": "must be one of none, float16, bfloat16",
    "--devices=cpu4": "--devices=cpu4: must be all, cpu, gpu, cpu:N or gpu:N",
    "--devices=cpu:0": "--devices=cpu:0: must be",
    "--batch_size=0": "--batch_size=0: must be an integer from 1 to",
    "--batch_size=many": "--batch_size=many: must be an integer from 1 to",
    "--steps=1.5": "--steps=1.5: must be an integer",
    "--depth=0": "--depth=0: must be an integer from 1 to 1000",
    "--seed=-1": "--seed=-1: must be an integer from 0",
    "--port=70000": "--port=70000: must be an integer from 0 to 65535",
    "--learning_rate=0": "--learning_rate=0: must be a number from 1e-12",
    "--learning_rate=nan": "--learning_rate=nan: must be a number",
    "--clip_norm=-1": "--clip_norm=-1: must be a number",
    "--measure_every=0": "--measure_every=0: must be an integer from 1 to ... , or never",
    "--layers=*conv": "--layers=*conv: is no regular expression ... write .* and not *",
    "--nosuchflag=1": "'nosuchflag'",
    "--presett=mlp": "Did you mean: preset",
    "mlp": "unexpected argument 'mlp': everything is given as --flag=value",
    "--width=8": "--width=8 does not apply to --preset=relu_sigmoid, ... take --preset=mlp",
    "--logdir=/proc/none": "--logdir=/proc/none cannot be made ... give a folder of your own",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_bad_input_is_one_line_with_value_and_cure(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["tapescope-train", f"--logdir={tmp_path}", argument])
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == ""
    assert err.startswith("tapescope-train: ")
    assert err.count("\n") == 1
    assert [piece for piece in REFUSED[argument].split(" ... ") if piece not in err] == [], err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written: give a folder"):
        parse(f"--logdir={tmp_path}")


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be made \(File exists\)"):
        parse(f"--logdir={tmp_path}/file")


def test_a_second_interruption_ends_at_once_and_in_one_line(tmp_path, monkeypatch, capsys):
    def prepare(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "prepare", prepare)
    with pytest.raises(SystemExit) as exit:
        train.main(["tapescope-train", f"--logdir={tmp_path}"])
    assert exit.value.code == 130
    assert capsys.readouterr().err == "tapescope-train: ended at once\n"


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(["tapescope-train", "--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert not [name for name in flags.Options._fields if name not in out]


def test_nothing_waits_for_tensorflow_to_be_told_of_a_misspelt_flag():
    code = (
        "import sys; from tapescope_trainers import train\n"
        "try: train.main(['tapescope-train', '--preset=x'])\n"
        "except SystemExit as exit: print(exit.code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False False\n"
