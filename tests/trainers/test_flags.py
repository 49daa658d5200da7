"""The command line: defaults, special values, and one line for bad input, without TensorFlow."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import tapescope
from tapescope_trainers import demo, flags, train


def parse(*arguments: str) -> flags.Options:
    return flags.parse(["tapescope-train", *arguments])


def test_defaults(tmp_path):
    options = parse(f"--logdir={tmp_path}")
    assert options.preset == "relu_sigmoid"
    assert options.data == "digits"
    assert options.optimizer == "adam"
    assert options.strategy == "default"
    assert options.measure_every == "auto"
    assert not options.serve


def test_a_second_command_line_starts_from_the_defaults(tmp_path):
    parse(f"--logdir={tmp_path}", "--seed=5", "--preset=mlp")
    assert parse(f"--logdir={tmp_path}").seed == 0


def test_default_logdir_has_the_preset_and_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logdir = parse("--preset=mlp").logdir
    assert re.fullmatch(r"runs/mlp-\d{8}-\d{6}", logdir)
    assert (tmp_path / logdir).is_dir()


def test_dataset_is_an_alias_of_data(tmp_path):
    np.savez(tmp_path / "own.npz", x_train=np.zeros([2, 2]), y_train=np.zeros([2], int))
    path = f"npz:{tmp_path}/own.npz"
    assert parse(f"--logdir={tmp_path}", f"--dataset={path}").data == path


@pytest.mark.parametrize("name", ["measure_every", "checkpoint_every"])
def test_never_becomes_none(tmp_path, name):
    assert getattr(parse(f"--logdir={tmp_path}", f"--{name}=never"), name) is None


def test_hparams_have_the_flags_that_change_a_result(tmp_path):
    options = parse(f"--logdir={tmp_path}", "--preset=mlp", "--activation=elu", "--clip_norm=2")
    assert flags.hparams(options).items() >= {"activation": "elu", "clip_norm": 2.0, "measure_every": "auto"}.items()


def test_hparams_say_never(tmp_path):
    assert flags.hparams(parse(f"--logdir={tmp_path}", "--measure_every=never"))["measure_every"] == "never"


def test_hparams_leave_out_unset_flags_and_those_without_effect(tmp_path):
    hparams = flags.hparams(parse(f"--logdir={tmp_path}", "--preset=mlp"))
    assert not {"logdir", "serve", "port", "width"} & hparams.keys()


REFUSED = {
    "--preset=sigmod_relu": "--preset=sigmod_relu: must be one of relu_sigmoid, .*; did you mean sigmoid_relu?",
    "--activation=rellu": "--activation=rellu: must be one of .*; did you mean relu?",
    "--data=minst": "--data=minst: must be one of digits, .*; did you mean mnist?",
    "--data=npz:no/where.npz": "--data=npz:no/where.npz: there is no such file; write one with numpy.savez",
    "--optimizer=Adam": "did you mean adam?",
    "--initializer=he": "--initializer=he: must be one of .*he_normal",
    "--strategy=mirror": "did you mean mirrored?",
    "--mixed_precision=half": "must be one of none, float16, bfloat16",
    "--devices=cpu4": "--devices=cpu4: must be all, cpu, gpu, cpu:N or gpu:N",
    "--devices=cpu:0": "--devices=cpu:0: must be",
    "--batch_size=0": "--batch_size=0: must be an integer in the range [1, 1000000000]",
    "--batch_size=many": "--batch_size=many: must be an integer in the range [1, ",
    "--steps=1.5": "--steps=1.5: must be an integer",
    "--depth=0": "--depth=0: must be an integer in the range [1, 1000]",
    "--seed=-1": "--seed=-1: must be an integer in the range [0, ",
    "--port=70000": "--port=70000: must be an integer in the range [0, 65535]",
    "--learning_rate=0": "--learning_rate=0: must be a number in the range [1e-12, ",
    "--learning_rate=nan": "--learning_rate=nan: must be a number",
    "--clip_norm=-1": "--clip_norm=-1: must be a number",
    "--measure_every=0": "--measure_every=0: must be an integer in the range [1, .*], auto, or never",
    "--layers=*conv": "--layers=*conv: must be a valid regular expression (.*); write .* to match any text",
    "--nosuchflag=1": "'nosuchflag'",
    "--presett=mlp": "Did you mean: preset",
    "mlp": "unexpected argument 'mlp': write every argument as --flag=value",
    "--width=8": "--width=8 does not apply to --preset=relu_sigmoid, .* use --preset=mlp",
    "--serve=maybe": "--serve=maybe: must be true or false",
    "--port=6006": "--port=6006 applies to --serve only; got --noserve: leave one of them out",
    "--workers=4": "--workers=4 applies to --cluster=kubernetes only; got --cluster=tf_config: leave one of them out",
    "--cluster=slurm": "--cluster=slurm applies to --strategy=multi_worker only; got --strategy=default",
    "--logdir=/proc/none": "--logdir=/proc/none cannot be created (.*): use another directory",
}
"""By argument what its message says; `.*` stands for any text."""


@pytest.mark.parametrize("argument", REFUSED)
def test_bad_input_is_one_line_with_value_and_cure(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(["tapescope-train", f"--logdir={tmp_path}", argument])
    out, error = capsys.readouterr()
    assert exit_info.value.code == train.EXIT_BAD_INPUT
    assert out == ""
    message = re.escape(REFUSED[argument]).replace(r"\.\*", ".*")
    assert re.fullmatch(rf"tapescope-train: .*{message}.*\n", error), error


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(["tapescope-train", "--version"])
    assert not exit_info.value.code
    assert capsys.readouterr().out == f"tapescope-train {tapescope.__version__}\n"


def test_the_demo_explains_itself(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo", "--help"])
    demo.main()
    assert "three networks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--measure_every=5", "--max_overhead_pct=3"],
            r"--max_overhead_pct=3 applies to --measure_every=auto only; got ",
        ),
        (
            ["--strategy=multi_worker", "--measure_every=auto"],
            r"--measure_every=auto depends on each worker's own clock",
        ),
        (["--strategy=multi_worker", "--max_overhead_pct=3"], r"--max_overhead_pct=3\S* depends on each worker's own"),
    ],
)
def test_a_limit_of_the_overhead_needs_one_clock_and_no_interval(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse(f"--logdir={tmp_path}", *arguments)


def test_several_workers_measure_every_tenth_step(tmp_path):
    assert parse(f"--logdir={tmp_path}", "--strategy=multi_worker").measure_every == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_logdir_that_is_not_writable_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not writable: use another directory"):
        parse(f"--logdir={tmp_path}")


def test_a_logdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be created \(File exists\)"):
        parse(f"--logdir={tmp_path}/file")


def test_a_second_interruption_stops_at_once_with_one_line(tmp_path, monkeypatch, capsys):
    def prepare(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "prepare", prepare)
    with pytest.raises(SystemExit) as exit_info:
        train.main(["tapescope-train", f"--logdir={tmp_path}"])
    assert exit_info.value.code == train.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "tapescope-train: stopped at once\n"


def test_a_missing_package_of_the_extra_is_one_line(tmp_path, monkeypatch, capsys):
    def prepare(*_):
        raise ModuleNotFoundError("No module named 'tqdm'", name="tqdm")

    monkeypatch.setattr(train, "prepare", prepare)
    with pytest.raises(SystemExit) as exit_info:
        train.main(["tapescope-train", f"--logdir={tmp_path}"])
    assert exit_info.value.code == train.EXIT_BAD_INPUT
    message = "tapescope-train: the package tqdm is missing: pip install 'tapescope[trainers]'\n"
    assert capsys.readouterr().err == message


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(["tapescope-train", "--help"])
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert [name for name in flags.Options._fields if name not in text] == []


@pytest.mark.process
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--preset=x", 2)])
@pytest.mark.parametrize("program", ["train", "study.command"])
def test_help_and_errors_need_no_tensorflow(program, argument, code):
    script = (
        f"import sys; from tapescope_trainers.{program} import main\n"
        f"try: main(['program', {argument!r}])\n"
        "except SystemExit as exit: print(exit.code, {'tensorflow', 'keras', 'scipy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{code} set()"


@pytest.mark.process
@pytest.mark.parametrize("program", ["tapescope_trainers.train", "tapescope_trainers.study", "tapescope.cli"])
def test_help_that_nobody_reads_is_not_an_error(program):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", program, "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
