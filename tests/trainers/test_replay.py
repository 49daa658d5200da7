"""Replay of steps of trainings: to the bit, with the planted example first, and refused in one line."""

import json
import pathlib
import re
import shutil

import pytest

import tapescope
from tapescope import cli
from tapescope.storage import captured_step
from tapescope_trainers import replay
from tapescope_trainers.training import resume
from tests.trainers import trainings

SOURCE = """
import keras
import numpy as np

def build(width=8):
    return keras.Sequential([
        keras.Input((6,)),
        keras.layers.Dense(width, "relu", name="first"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, name="out"),
    ])

def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[120, 6]).astype("float32")
    return x, np.argmax(x[:, :3], 1).astype("int32")

def plain(): return _data()

def spike():
    x, y = _data()
    x[77] *= 1e4
    return x, y

def missing():
    x, y = _data()
    x[77, 2] = np.nan
    return x, y

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
"""
PLANTED = 77


@pytest.fixture(scope="module")
def user_code(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "replayed_model.py"
    path.write_text(SOURCE)
    return path


def train(logdir, path, data, *arguments):
    return trainings.run(
        logdir,
        f"--model={path}:build",
        f"--data={path}:{data}",
        f"--loss={path}:loss",
        "--batch_size=8",
        "--measure_every=1",
        "--nohistograms",
        "--capture=on_finding",
        *arguments,
    )


@pytest.fixture(scope="module")
def spiked(tmp_path_factory, user_code):
    """Return a run whose epochs of 12 steps each have one spike. Its batches go through dropout in two parts."""
    logdir = tmp_path_factory.mktemp("spiked")
    train(logdir, user_code, "spike", "--steps=36", "--accumulate_steps=2")
    return logdir


@pytest.fixture
def copy(spiked, tmp_path):
    return pathlib.Path(shutil.copytree(spiked, tmp_path / "copy"))


def captured_spike(logdir):
    """Return the first captured step."""
    found = captured_step.list_captured(logdir)
    assert found, "no step was captured"
    return found[0]


def run_cli(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_a_captured_spike_is_replayed_to_the_bit_and_its_example_named_first(spiked, capsys):
    step = captured_spike(spiked)
    code, out, _ = run_cli(capsys, "replay", spiked, step, "--json")
    found = json.loads(out)
    assert code == cli.SUCCESS
    assert (found["step"], found["reproduced"], found["difference"]) == (step, True, 0)
    assert len(found["examples"]) == 8
    first, second = found["examples"][:2]
    assert first["index"] == PLANTED
    assert first["gradient_norm"] > 100 * second["gradient_norm"]
    assert found["first_layer"]["layer"] == "first"
    changes = {variant["change"]: variant["gradient_norm"] for variant in found["variants"]}
    assert changes[f"without example {PLANTED}"] < 0.01 * changes["as it was"]


@pytest.mark.slow
def test_any_step_after_a_checkpoint_is_replayed(spiked):
    found = tapescope.replay(spiked, 3)
    assert found.reproduced
    # The examples' own losses are those that they had in the step.
    assert sum(example.loss for example in found.examples) / 8 == pytest.approx(found.loss, rel=1e-5)


@pytest.mark.slow
def test_a_nan_under_two_replicas_is_replayed_and_its_example_named_first(tmp_path, user_code):
    arguments = ("--steps=20", "--strategy=mirrored", "--devices=cpu:2", "--checkpoint_every=5")
    train(tmp_path, user_code, "missing", *arguments)
    found = tapescope.replay(tmp_path, captured_spike(tmp_path))
    assert found.reproduced
    assert found.examples[0].index == PLANTED
    assert len(found.examples) == 8
    assert found.first_layer is not None
    assert (found.first_layer.layer, found.first_layer.reason) == ("first", "not finite")


@pytest.mark.slow
def test_the_step_is_named_that_lost_the_weights_behind_a_relu(tmp_path, user_code):
    train(tmp_path, user_code, "missing", "--steps=20", "--measure_every=7")
    found = tapescope.replay(tmp_path, captured_spike(tmp_path))
    assert found.variants == ()
    (note,) = found.notes
    match = re.match(r"the weights were not finite first at step (\d+): replay that one", note)
    assert match, note
    assert tapescope.replay(tmp_path, int(match[1])).examples[0].index == PLANTED


@pytest.mark.slow
def test_the_checkpoint_of_a_captured_step_is_kept(tmp_path, user_code):
    train(tmp_path, user_code, "missing", "--steps=40", "--checkpoint_every=4")
    step = captured_spike(tmp_path)
    kept = resume.list_checkpoints(resume.checkpoint_directory(str(tmp_path)))
    assert kept == [step - step % 4, 32, 36, 40]


@pytest.mark.slow
def test_without_an_alarm_nothing_is_captured(tmp_path, user_code):
    train(tmp_path, user_code, "plain", "--steps=24")
    assert captured_step.list_captured(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_starts_over_drops_captured_steps(copy, user_code):
    train(copy, user_code, "plain", "--steps=3", "--resume=never")
    assert captured_step.list_captured(copy) == []


@pytest.mark.slow
def test_other_data_or_another_model_is_refused_in_one_line(copy, capsys, user_code):
    path = copy / "captures" / "flags.json"
    flags = json.loads(path.read_text())
    path.write_text(json.dumps(flags | {"data": f"{user_code}:plain"}))
    code, _, err = run_cli(capsys, "replay", copy, 3)
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1)
    assert "its training examples have another checksum" in err
    path.write_text(json.dumps(flags | {"model_args": '{"width": 9}'}))
    code, _, err = run_cli(capsys, "replay", copy, 3)
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1)
    assert "its weights have other shapes" in err
    path.write_text(json.dumps(flags | {"data": "npz:/nowhere/data.npz", "model": f"{user_code}:build"}))
    code, _, err = run_cli(capsys, "replay", copy, 3)
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1)
    assert "/nowhere/data.npz" in err


def test_a_step_that_the_run_has_not_come_to_is_refused(copy, capsys):
    code, _, err = run_cli(capsys, "replay", copy, 36)
    assert code == cli.BAD_INPUT
    assert "from 0 to 35; got 36" in err


def test_a_step_without_a_checkpoint_before_it_is_refused(copy, capsys):
    for path in (copy / "captures").glob("ckpt-0.*"):
        path.unlink()
    code, _, err = run_cli(capsys, "replay", copy, 3)
    assert code == cli.BAD_INPUT
    assert "there is no checkpoint at or before it" in err


def test_what_is_not_a_run_is_refused(tmp_path, capsys):
    code, _, err = run_cli(capsys, "replay", tmp_path, 3)
    assert (code, err.count("\n")) == (cli.BAD_INPUT, 1)


def test_a_run_of_another_program_needs_its_step(copy, capsys, monkeypatch):
    monkeypatch.setattr(tapescope.Run, "status", {"program": "model.fit"})
    code, _, err = run_cli(capsys, "replay", copy, 3)
    assert code == cli.BAD_INPUT
    assert "tapescope.replay(run, step, step_fn)" in err


def test_paths_are_those_of_the_directory_where_the_run_was_started(copy):
    path = copy / "captures" / "flags.json"
    flags = json.loads(path.read_text())
    path.write_text(json.dumps(flags | {"directory": "/lab", "model": "net.py:build", "data_dir": "data"}))
    options = replay.find_origin(str(copy), 3).options
    assert (options.model, options.data_dir) == ("/lab/net.py:build", "/lab/data")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"preset": "nope"}, "have --preset=nope, which must be one of relu_sigmoid, "),
        ({"preset": 3}, "have --preset=3, which must be one of relu_sigmoid, "),
        ({"batch_size": "x"}, "have --batch_size=x, which must be an integer in the range"),
        ({"data": "nope"}, "have --data=nope, which must be one of digits, "),
        ({"jit_compile": {}}, "have --jit_compile={}, which must be true or false"),
    ],
)
def test_a_flag_that_cannot_be_is_named(tmp_path, flag, message):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-0.index").touch()
    (tmp_path / "checkpoints" / "flags.json").write_text(json.dumps(flag))
    with pytest.raises(ValueError, match=message):
        replay.find_origin(str(tmp_path), 1)
