"""A training that stops at any moment continues as if it had not: same weights, same records, each once."""

import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import processes
from scripts.testbed.processes import Trainer, newest, until, variables
from scripts.testbed.records import loaded_steps
from tensorboard import context

import tapescope
from tapescope.storage.directory import DirectoryLock
from tapescope_trainers import train
from tapescope_trainers.training import build, checkpoints, data, resume
from tests.plugin.conftest import application
from tests.trainers import trainings

STEPS = 550
ARGUMENTS = (
    "--preset=cnn",
    "--depth=2",
    "--width=8",
    f"--steps={STEPS}",
    "--measure_every=3",
    "--validate_every=70",
    "--checkpoint_every=20",
    "--window_examples=512",
    "--seed=4",
    "--noprogress",
)
TIMES = {"step_ms", "measure_ms"}
"""Columns that differ between two equal runs."""
LONG = pytest.mark.timeout(3 * processes.PATIENCE_S)


def assert_same_run(logdir: Path, expected: Path) -> None:
    """Compare two runs bit by bit, except times."""
    actual_variables = variables(logdir)
    expected_variables = variables(expected)
    assert actual_variables.keys() == expected_variables.keys()
    different = [name for name, v in actual_variables.items() if not np.array_equal(v, expected_variables[name])]
    assert different == []
    run = tapescope.Run(logdir)
    expected_run = tapescope.Run(expected)
    assert run.steps.tolist() == expected_run.steps.tolist() == list(range(0, STEPS, 3))
    assert run.columns == expected_run.columns
    columns = [column for column in run.columns if column not in TIMES]
    assert [c for c in columns if not np.array_equal(run[c], expected_run[c], equal_nan=True)] == []
    assert run.findings == expected_run.findings
    assert (run.status["state"], run.status["reason"]) == ("ended", "all steps done")


def points(logdir: Path, run: str, fast: bool) -> dict[str, list]:
    """Return by tag (step, value) of all scalars, and the steps of all other data, from TensorBoard's loader."""
    provider = application(logdir, fast, runs=2).ingester.data_provider
    everything = {"ctx": context.RequestContext(), "experiment_id": "", "downsample": 100_000}
    scalars = provider.read_scalars(**everything, plugin_name="scalars")[run]
    by_tag: dict[str, list] = {
        tag: [(point.step, point.value) for point in series]
        for tag, series in scalars.items()
        if not tag.startswith("measure_overhead")
    }
    for plugin in ("histograms", "tapescope"):
        tensors = provider.read_tensors(**everything, plugin_name=plugin)[run]
        by_tag |= {tag: [p.step for p in series] for tag, series in tensors.items() if tag != "tapescope/status"}
    return by_tag


def run_to_the_end(logdir: Path) -> None:
    """Run the same command until all steps are done."""
    with Trainer(logdir, *ARGUMENTS) as trainer:
        trainer.finish()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Train without a stop."""
    logdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    run_to_the_end(logdir)
    return logdir


@pytest.fixture(scope="module")
def killed(undisturbed):
    """Train with three kills at random moments, each followed by the same command."""
    logdir = undisturbed.parent / "killed"
    seed = random.SystemRandom().randrange(10**6)
    choice = random.Random(seed)
    for least in (0, 100, 200):
        with Trainer(logdir, *ARGUMENTS) as trainer:
            aim = least + choice.randrange(0, 60)
            until(trainer, lambda aim=aim: newest(logdir) >= aim)
            time.sleep(choice.uniform(0, 0.1))
            trainer.send(signal.SIGKILL)
            trainer.wait()
            assert trainer.code == -signal.SIGKILL, f"seed {seed}: it ended before it was killed"
    run_to_the_end(logdir)
    return logdir


@LONG
@pytest.mark.process
def test_a_run_killed_three_times_equals_an_undisturbed_one(killed, undisturbed):
    assert_same_run(killed, undisturbed)


@LONG
@pytest.mark.process
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "python"])
def test_tensorboard_reads_each_step_of_a_killed_run_once(killed, undisturbed, fast):
    actual = points(killed.parent, "killed", fast)
    assert actual == points(undisturbed.parent, "undisturbed", fast)
    assert [step for step, _ in actual["validation/loss"]] == [*range(69, STEPS, 70), STEPS - 1]


@LONG
@pytest.mark.process
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGTERM], ids=["SIGINT", "SIGTERM"]
)
def test_a_run_stopped_by_a_signal_saves_and_continues(undisturbed, tmp_path, number):
    with Trainer(tmp_path, *ARGUMENTS) as trainer:
        until(trainer, lambda: newest(tmp_path) >= 100)
        trainer.send(number)
        last = trainer.finish()[-1]
    line = re.fullmatch(rf"Stopped by {number.name} after (\d+) steps.*\. Records: {tmp_path}", last)
    assert line, last
    steps = int(line[1])
    assert newest(tmp_path) == steps
    run = tapescope.Run(tmp_path)
    assert (run.status["state"], run.status["reason"]) == ("ended", f"ended by {number.name}")
    assert run.steps.tolist() == list(range(0, steps, 3))
    run_to_the_end(tmp_path)
    assert_same_run(tmp_path, undisturbed)


MLP = ("--preset=mlp", "--width=8", "--measure_every=3")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--strategy=mirrored", "--devices=cpu:2", "--optimizer=adamw", "--depth=1", "--accumulate_steps=2"),
        pytest.param(("--mixed_precision=float16", "--optimizer=momentum"), marks=pytest.mark.nightly),
        pytest.param(
            ("--jit_compile", "--optimizer=rmsprop", "--measure_every=never", "--depth=2"), marks=pytest.mark.nightly
        ),
    ],
    ids=["replicas", "float16", "jit"],
)
def test_resumed_weights_are_bit_identical(tmp_path, more):
    expected = trainings.run(tmp_path / "a", *MLP, "--steps=20", *more).parts.model.get_weights()
    trainings.run(tmp_path / "b", *MLP, "--steps=7", "--checkpoint_every=5", *more)
    resumed = trainings.run(tmp_path / "b", *MLP, "--steps=20", "--checkpoint_every=5", *more)
    assert resumed.start == 7
    for a, b in zip(resumed.parts.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_that_is_done_says_how_to_go_on(tmp_path, capsys):
    command = (*MLP, "--steps=2", "--checkpoint_every=2")
    trainings.run(tmp_path, *command)
    train.run(trainings.parse(tmp_path, *command))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Nothing to do: 2 steps of 2 were done before, validation/loss ")
    assert line.endswith(
        f". Records: {tmp_path}. To go on, use a larger --steps or --epochs; to start over, --resume=never"
    )


@pytest.fixture
def damaged(tmp_path):
    """Train 30 steps with three checkpoints, and damage the last two."""
    trainings.run(tmp_path, *MLP, "--steps=30", "--checkpoint_every=10")
    directory = tmp_path / "checkpoints"
    data_file = directory / "ckpt-30.data-00000-of-00001"
    data_file.write_bytes(data_file.read_bytes()[:-100])
    (directory / "ckpt-20.index").write_bytes(b"no index")
    return tmp_path


@pytest.mark.slow
def test_damaged_checkpoints_are_named_and_the_one_before_is_used(damaged, tmp_path_factory, caplog):
    expected = trainings.run(tmp_path_factory.mktemp("whole"), *MLP, "--steps=40").parts.model.get_weights()
    resumed = trainings.run(damaged, *MLP, "--steps=40", "--checkpoint_every=10")
    assert resumed.start == 10
    assert re.search("ckpt-30 is damaged and skipped", caplog.text)
    assert re.search("ckpt-20 is damaged and skipped", caplog.text)
    for a, b in zip(resumed.parts.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert tapescope.Run(damaged).steps.tolist() == list(range(0, 40, 3))


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_is_refused(damaged):
    for path in (damaged / "checkpoints").glob("*.index"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: put a copy of one back, or use another"):
        trainings.run(damaged, *MLP, "--steps=50")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Train two steps with checkpoints."""
    logdir = tmp_path_factory.mktemp("two_steps")
    trainings.run(logdir, *MLP, "--steps=2", "--checkpoint_every=1")
    return logdir


@pytest.mark.parametrize(
    "flag", ["--batch_size=32", "--seed=1", "--optimizer=sgd", "--learning_rate=0.1", "--depth=2", "--width=16"]
)
def test_a_flag_that_may_not_change_is_named(two_steps, flag, capsys):
    with pytest.raises(SystemExit) as exit_info:
        train.main(["tapescope-train", f"--logdir={two_steps}", *MLP, flag])
    error = capsys.readouterr().err
    assert exit_info.value.code == train.EXIT_BAD_INPUT
    assert error.startswith(f"tapescope-train: {flag}: the run in {two_steps} was begun with "), error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_another_number_of_replicas_is_refused(two_steps):
    with pytest.raises(ValueError, match=r"makes 2 replicas, but the run in .* has 1: use as many"):
        trainings.run(two_steps, *MLP, "--strategy=mirrored", "--devices=cpu:2")


@pytest.mark.slow
def test_a_longer_training_continues(two_steps):
    assert trainings.run(two_steps, *MLP, "--steps=4").start == 2


def test_resume_must_refuses_a_directory_without_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"--resume=must: .* has no checkpoint: to start a run, leave the flag out"):
        trainings.run(tmp_path, *MLP, "--steps=2", "--resume=must")


@pytest.fixture(scope="module")
def without_checkpoints(tmp_path_factory):
    """Train four steps without checkpoints."""
    logdir = tmp_path_factory.mktemp("without_checkpoints")
    trainings.run(logdir, *MLP, "--steps=4")
    return logdir


@pytest.mark.slow
def test_a_run_without_checkpoints_is_not_overwritten(without_checkpoints):
    with pytest.raises(ValueError, match=r"holds a run without checkpoints, .* another directory, or --resume=never"):
        trainings.run(without_checkpoints, *MLP, "--steps=2")
    assert tapescope.Run(without_checkpoints).steps.tolist() == [0, 3]


@pytest.mark.slow
def test_resume_never_replaces_records_and_checkpoints(without_checkpoints):
    trainings.run(without_checkpoints, *MLP, "--steps=2", "--resume=never", "--checkpoint_every=1")
    assert tapescope.Run(without_checkpoints).steps.tolist() == [0]
    assert trainings.run(without_checkpoints, *MLP, "--steps=3", "--resume=never").start == 0
    assert newest(without_checkpoints) == -1


# What an earlier run has is checked, locked and moved aside before it is replaced.


@pytest.fixture
def earlier(two_steps, tmp_path):
    """Copy a run of two steps."""
    return Path(shutil.copytree(two_steps, tmp_path / "earlier"))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


NEVER = (*MLP, "--steps=3", "--checkpoint_every=1", "--resume=never")


@pytest.mark.parametrize("flag", ["--batch_size=100000", "--layers=nothing", "--data=npz:nowhere", "--devices=gpu:9"])
def test_bad_input_leaves_the_run_that_it_would_replace(earlier, flag):
    before = contents(earlier)
    with pytest.raises(ValueError, match=re.escape(flag.partition("=")[2])):
        trainings.run(earlier, *NEVER, flag)
    assert contents(earlier) == before


@pytest.mark.parametrize("flags", [NEVER, (*MLP, "--steps=3", "--checkpoint_every=1")], ids=["never", "auto"])
def test_a_run_that_another_process_writes_is_left_alone(earlier, flags):
    lock = DirectoryLock(earlier)
    before = contents(earlier)
    with pytest.raises(OSError, match="another Recorder writes to"):
        trainings.run(earlier, *flags)
    assert contents(earlier) == before
    lock.release()


def test_a_new_run_that_is_locked_gets_no_files(tmp_path):
    lock = DirectoryLock(tmp_path)
    with pytest.raises(OSError, match="another Recorder writes to"):
        trainings.run(tmp_path, *MLP, "--steps=3", "--checkpoint_every=1")
    assert contents(tmp_path) == {}
    lock.release()


@pytest.mark.parametrize("place", ["checkpoints.Checkpoints.save", "recorder.RunWriter"])
def test_a_run_is_put_back_if_its_successor_cannot_begin(earlier, monkeypatch, place):
    def fail(*_, **__):
        raise OSError("no space left on device")

    package = "tapescope" if place.startswith("recorder") else "tapescope_trainers.training"
    monkeypatch.setattr(f"{package}.{place}", fail)
    before = contents(earlier)
    with pytest.raises(OSError, match="no space left"):
        trainings.run(earlier, *NEVER)
    assert contents(earlier) == before
    assert list(earlier.rglob(".replaced*")) == []
    DirectoryLock(earlier).release()


def test_only_our_files_are_replaced_and_no_copy_stays(earlier):
    (earlier / "notes.txt").write_text("mine")
    (earlier / "checkpoints" / "best.keras").write_text("mine")
    with tf.summary.create_file_writer(str(earlier)).as_default():
        tf.summary.scalar("mine", 1.0, 7)
    foreign = {path for path in contents(earlier) if path.endswith(".v2") and "tapescope" not in path}
    trainings.run(earlier, *NEVER)
    assert (earlier / "notes.txt").read_text() == (earlier / "checkpoints" / "best.keras").read_text() == "mine"
    assert any((earlier / path).exists() for path in foreign)
    assert loaded_steps(earlier, "mine") == [7]
    assert list(earlier.rglob(".replaced*")) == []
    assert tapescope.Run(earlier).steps.tolist() == [0]


def test_a_linked_folder_of_checkpoints_is_followed(earlier, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (earlier / "checkpoints").rename(elsewhere)
    (earlier / "checkpoints").symlink_to(elsewhere)
    assert trainings.run(earlier, *MLP, "--steps=3", "--checkpoint_every=1").start == 2
    assert trainings.run(earlier, *NEVER, "--seed=1").start == 0
    assert (earlier / "checkpoints").is_symlink()
    assert resume.list_checkpoints(str(elsewhere)) == [1, 2, 3]


def test_a_program_that_was_quicker_is_noticed(earlier):
    options = trainings.parse(earlier, *MLP, "--steps=3", "--checkpoint_every=1")
    with pytest.raises(ValueError, match="was changed by another program meanwhile: start again"):
        build.prepare(options, continues=False)
    DirectoryLock(earlier).release()


# Damage, full disks and odd names.


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b'model_checkpoint_path: "ck', b"[" * 100_000, None])
def test_a_damaged_list_of_checkpoints_is_read_around(earlier, content):
    path = earlier / "checkpoints" / "checkpoint"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert trainings.run(earlier, *MLP, "--steps=3", "--checkpoint_every=1").start == 2
    assert newest(earlier) == 3
    assert resume.list_checkpoints(str(earlier / "checkpoints")) == [1, 2, 3]


@pytest.mark.parametrize("content", [b"null", b"[]", b"", b"\xff", b"[" * 100_000, None])
def test_damaged_flags_are_refused_without_advice_that_deletes(earlier, content):
    path = earlier / "checkpoints" / "flags.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = contents(earlier)
    with pytest.raises(ValueError, match="put a copy of the file back, or use another --logdir") as info:
        trainings.run(earlier, *MLP, "--steps=3")
    assert "never" not in str(info.value)
    assert contents(earlier) == before


@pytest.mark.parametrize(
    "name", ["lr=[0.1]", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("a*b?", "back\\slash", "%s {x} ü"))]
)
def test_any_directory_name_trains_and_continues(tmp_path, name):
    logdir = tmp_path / name / "run"
    neighbour = tmp_path / "aXbY" / "run" / "checkpoints"  # what `a*b?` matches
    neighbour.mkdir(parents=True)
    (neighbour / "ckpt-1.index").write_text("mine")
    trainings.run(logdir, *MLP, "--steps=5", "--checkpoint_every=1")
    assert resume.list_checkpoints(str(logdir / "checkpoints")) == [3, 4, 5]
    assert trainings.run(logdir, *MLP, "--steps=7", "--checkpoint_every=1").start == 5
    assert tapescope.Run(logdir).steps.tolist() == [0, 3, 6]
    assert [path.name for path in neighbour.iterdir()] == ["ckpt-1.index"]


def test_a_full_disk_skips_checkpoints_and_the_training_goes_on(tmp_path, caplog, monkeypatch):
    write = tf.train.Checkpoint.write
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_little(checkpoint, path, *more):
        full = int(path.rpartition("-")[2]) in (4, 6)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if full else limits[0], limits[1]))
        try:
            return write(checkpoint, path, *more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(tf.train.Checkpoint, "write", write_little)
    expected = trainings.run(tmp_path / "whole", *MLP, "--steps=8").parts.model.get_weights()
    actual = trainings.run(tmp_path / "full", *MLP, "--steps=8", "--checkpoint_every=2").parts.model.get_weights()
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(re.findall("checkpoint of step [46] cannot be written: .*training goes on", caplog.text)) == 2
    assert resume.list_checkpoints(str(tmp_path / "full" / "checkpoints")) == [0, 2, 8]
    assert newest(tmp_path / "full") == 8
    assert not list((tmp_path / "full").rglob("*_temp"))


def test_a_full_disk_ends_the_training_if_that_is_asked_for(tmp_path, monkeypatch):
    save = checkpoints.Checkpoints.save

    def fail(self, steps, arrays):
        if steps:
            raise OSError("no space left on device")
        save(self, steps, arrays)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        trainings.run(tmp_path, *MLP, "--steps=4", "--checkpoint_every=2", "--strict_io")


@pytest.mark.parametrize("skip", [0, 21, 22, 23, 45])
def test_batches_begin_at_any_position(skip):
    digits = data.load("digits")
    expected = [x.numpy() for x, _ in data.batches(digits, 64, 3).take(50)][skip:]
    actual = [x.numpy() for x, _ in data.batches(digits, 64, 3, skip=skip).take(50 - skip)]
    np.testing.assert_array_equal(actual, expected)


def test_every_variable_is_in_a_checkpoint_with_dropout_seeds(tmp_path):
    def make():
        dropout = keras.layers.Dropout(0.5)
        inner = keras.Sequential([keras.layers.Dense(8), keras.layers.BatchNormalization(), dropout])
        model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2)])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
        optimizer.build(model.trainable_variables)
        return model, optimizer, checkpoints.Checkpoints(str(tmp_path), model, optimizer)

    model, optimizer, saved = make()
    model(tf.ones([3, 4]), training=True)
    for variable in (*model.variables, *optimizer.variables):
        variable.assign(variable + keras.ops.cast(7, variable.dtype))
    saved.save(3, {"a": np.arange(2)})
    restored_model, restored_optimizer, restored = make()
    steps, arrays = restored.restore()
    assert steps == 3
    assert arrays["a"].tolist() == [0, 1]
    expected = (*model.variables, *optimizer.variables)
    for a, b in zip((*restored_model.variables, *restored_optimizer.variables), expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    x = tf.ones([5, 4])
    np.testing.assert_array_equal(restored_model(x, training=True), model(x, training=True))


@pytest.mark.parametrize("when", ["it is traced", "it runs"])
def test_a_run_whose_first_step_fails_puts_the_earlier_one_back(earlier, monkeypatch, when):
    @tf.function
    def failing(x, y, measure):
        if when == "it is traced":
            raise RuntimeError("no such operation")
        tf.debugging.assert_equal(tf.size(x), -1, "no such operation")

    before = contents(earlier)
    monkeypatch.setattr("tapescope_trainers.train.make_step", lambda *args: failing)
    with pytest.raises((RuntimeError, tf.errors.InvalidArgumentError), match="no such operation"):
        trainings.run(earlier, *NEVER)
    assert contents(earlier) == before
