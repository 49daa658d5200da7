"""A training that was ended at any moment goes on as if it had not been: same weights, same records, each once."""

import random
import re
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import processes
from scripts.testbed.processes import Trainer, newest, until, variables
from tensorboard import context

import tapescope
from tapescope.storage.unit_ledger import Ledger
from tapescope_trainers import flags, train
from tapescope_trainers.training import build, checkpoints, data, resume
from tests.plugin.conftest import application

STEPS, EVERY = 550, 20
ARGUMENTS = (
    *("--preset=cnn", "--depth=2", "--width=8", f"--steps={STEPS}", "--measure_every=3", "--validate_every=70"),
    *(f"--checkpoint_every={EVERY}", "--window_examples=512", "--seed=4", "--noprogress"),
)
TIMES = {"step_ms", "measure_ms"}
LONG = pytest.mark.timeout(3 * processes.PATIENCE_S)


def assert_same_run(found: Path, expected: Path) -> None:
    """Bit by bit, but for what is a time."""
    a, b = variables(found), variables(expected)
    assert a.keys() == b.keys()
    assert [name for name in a if not np.array_equal(a[name], b[name])] == []
    one, other = tapescope.Run(found), tapescope.Run(expected)
    assert one.steps.tolist() == other.steps.tolist() == list(range(0, STEPS, 3))
    assert one.columns == other.columns
    differ = [c for c in one.columns if c not in TIMES and not np.array_equal(one[c], other[c], equal_nan=True)]
    assert differ == []
    assert one.findings == other.findings
    assert (one.status["state"], one.status["reason"]) == ("ended", "all steps done")


def points(logdir: Path, run: str, fast: bool) -> dict[str, list]:
    """By tag, (step, value) of all scalars, and the steps of all else, as TensorBoard's loader has them."""
    provider = application(logdir, fast, runs=2).ingester.data_provider
    where = {"ctx": context.RequestContext(), "experiment_id": "", "downsample": 100_000}
    scalars = provider.read_scalars(**where, plugin_name="scalars")[run]
    read: dict[str, list] = {
        tag: [(p.step, p.value) for p in of] for tag, of in scalars.items() if not tag.startswith("measure_overhead")
    }
    for plugin in ("histograms", "tapescope"):
        tensors = provider.read_tensors(**where, plugin_name=plugin)[run]
        read |= {tag: [p.step for p in of] for tag, of in tensors.items() if tag != "tapescope/status"}
    return read


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    logdir = tmp_path_factory.mktemp("runs") / "whole"
    again(logdir)
    return logdir


def again(logdir: Path) -> None:
    """By the same command to the end."""
    with Trainer(logdir, *ARGUMENTS) as trainer:
        trainer.finish()


@LONG
@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_weights_and_records(whole):
    logdir, seed = whole.parent / "killed", random.SystemRandom().randrange(10**6)
    choice = random.Random(seed)
    killed = []
    for least in (0, 100, 200):
        with Trainer(logdir, *ARGUMENTS) as trainer:
            aim = least + choice.randrange(0, 60)
            until(trainer, lambda aim=aim: newest(logdir) >= aim)
            time.sleep(choice.uniform(0, 0.1))
            trainer.send(signal.SIGKILL)
            trainer.wait()
            killed.append((trainer.code, newest(logdir)))
    assert [code for code, _ in killed] == [-signal.SIGKILL] * 3, f"seed {seed}: {killed}"
    again(logdir)
    assert_same_run(logdir, whole)
    for fast in (True, False):
        found, expected = points(whole.parent, "killed", fast), points(whole.parent, "whole", fast)
        assert found == expected
        assert [step for step, _ in found["validation/loss"]] == [*range(69, STEPS, 70), STEPS - 1]


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_asked_to_end_it_saves_and_goes_on_from_there(whole, tmp_path, number):
    with Trainer(tmp_path, *ARGUMENTS) as trainer:
        until(trainer, lambda: newest(tmp_path) >= 100)
        trainer.send(number)
        done = re.search(rf"ended by {number.name} after (\d+) steps", trainer.finish()[-1])
    assert done
    assert newest(tmp_path) == int(done[1])
    assert tapescope.Run(tmp_path).status["reason"] == f"ended by {number.name}"
    again(tmp_path)
    assert_same_run(tmp_path, whole)


def trained(logdir: Path, *more: str) -> build.Training:
    """A run in this process."""
    options = flags.parse(["x", f"--logdir={logdir}", "--preset=mlp", "--width=8", "--measure_every=3", *more])
    parts = build.prepare(options._replace(progress=False), continues=resume.check(options))
    train.train(options._replace(progress=False), parts, [])
    return parts


@pytest.mark.parametrize(
    "more",
    [
        ("--strategy=mirrored", "--devices=cpu:2", "--optimizer=adamw", "--depth=1", "--accumulate_steps=2"),
        ("--mixed_precision=float16", "--optimizer=momentum"),
        ("--jit_compile", "--optimizer=rmsprop", "--measure_every=never"),
    ],
)
def test_resumed_weights_are_bit_identical_on_every_path(tmp_path, more):
    expected = trained(tmp_path / "a", "--steps=40", *more).model.get_weights()
    trained(tmp_path / "b", "--steps=17", "--checkpoint_every=10", *more)
    parts = trained(tmp_path / "b", "--steps=40", "--checkpoint_every=10", *more)
    assert parts.start == 17
    for a, b in zip(parts.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog):
    expected = trained(tmp_path / "a", "--steps=40").model.get_weights()
    trained(tmp_path / "b", "--steps=30", "--checkpoint_every=10")
    folder = tmp_path / "b" / "checkpoints"
    file = folder / "ckpt-30.data-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-100])
    (folder / "ckpt-20.index").write_bytes(b"no index")
    parts = trained(tmp_path / "b", "--steps=40", "--checkpoint_every=10")
    assert parts.start == 10
    assert [n for n in ("ckpt-30", "ckpt-20") if f"{n} is damaged and left out" not in caplog.text] == []
    for a, b in zip(parts.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert tapescope.Run(tmp_path / "b").steps.tolist() == list(range(0, 40, 3))
    for path in folder.glob("*.index"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: .*--resume=never starts the run over"):
        trained(tmp_path / "b", "--steps=50")


def test_a_flag_that_makes_resuming_wrong_is_named(tmp_path, capsys):
    trained(tmp_path, "--steps=2", "--checkpoint_every=1")
    common = ["x", f"--logdir={tmp_path}", "--preset=mlp"]
    for wrong in ("--batch_size=32", "--seed=1", "--optimizer=sgd", "--learning_rate=0.1", "--depth=2", "--width=16"):
        with pytest.raises(SystemExit) as exit:
            train.main([*common, "--width=8", wrong])
        error = capsys.readouterr().err
        assert exit.value.code == 2
        assert error.startswith(f"tapescope-train: {wrong}: the run in {tmp_path} was begun with "), error
        assert error.count("\n") == 1
    with pytest.raises(
        ValueError, match=r"no --depth: .* was begun with --depth=3|makes 2 replicas, .* has 1: take as"
    ):
        trained(tmp_path, "--strategy=mirrored", "--devices=cpu:2")
    assert trained(tmp_path, "--steps=4").start == 2  # a longer training is no other one


def test_what_resume_makes_of_a_directory(tmp_path):
    with pytest.raises(ValueError, match=r"--resume=must: .* has no checkpoint: leave the flag out to start"):
        trained(tmp_path, "--steps=2", "--resume=must")
    trained(tmp_path, "--steps=4")
    with pytest.raises(ValueError, match=r"holds a run without checkpoints, .* another directory, or --resume=never"):
        trained(tmp_path, "--steps=2")
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 3]
    trained(tmp_path, "--steps=2", "--resume=never", "--checkpoint_every=1")
    assert tapescope.Run(tmp_path).steps.tolist() == [0]
    assert trained(tmp_path, "--steps=5", "--resume=must").start == 2
    assert trained(tmp_path, "--steps=5", "--resume=never").start == 0
    assert newest(tmp_path) == -1


def test_batches_from_any_position_on():
    digits = data.load("digits")
    batches = [x.numpy() for x, _ in data.batches(digits, 64, 3).take(50)]
    for skip in (0, 21, 22, 23, 45):
        found = [x.numpy() for x, _ in data.batches(digits, 64, 3, skip=skip).take(50 - skip)]
        np.testing.assert_array_equal(found, batches[skip:])


def test_every_variable_is_in_a_checkpoint_dropouts_seed_too(tmp_path):
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
    again, other, restored = make()
    assert restored.restore()[1]["a"].tolist() == [0, 1]
    for a, b in zip((*again.variables, *other.variables), (*model.variables, *optimizer.variables), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    x = tf.ones([5, 4])
    np.testing.assert_array_equal(again(x, training=True), model(x, training=True))


def test_a_ledger_goes_on_inside_a_window():
    rng = np.random.default_rng(1)
    steps = [(rng.integers(0, 2, [5, 6]) * 8.0, np.array([16.0, 32.0]), 8) for _ in range(7)]

    def verdicts(ledger: Ledger, steps: list) -> list:
        return [ledger.verdict._asdict() for step in steps if ledger.add(*step) and ledger.verdict]

    straight = Ledger([2, 4], 16)
    expected = verdicts(straight, steps)
    first, second = Ledger([2, 4], 16), Ledger([2, 4], 16)
    found = verdicts(first, steps[:3])
    second.restore(first.state())
    np.testing.assert_equal(found + verdicts(second, steps[3:]), expected)
    np.testing.assert_equal(second.state(), straight.state())
