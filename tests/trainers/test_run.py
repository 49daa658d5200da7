"""`tapescope-train` as a person runs it: a process of its own, whose records TensorBoard's own reader reads."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from tensorboard import context
from tensorboard.plugins.hparams import metadata as hparams_metadata

import tapescope
from tapescope_trainers.flags import EXAMPLE_PRESETS
from tests.plugin.conftest import application

pytestmark = pytest.mark.slow

TENSORFLOWS_OWN = re.compile(r"WARNING: All log|[IWE]\d{4} ")


def start(logdir, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tapescope_trainers.train", f"--logdir={logdir}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> list[str]:
    """What it said, without TensorFlow's lines; it must have ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return [line for line in (out + err).splitlines() if not TENSORFLOWS_OWN.match(line)]


def wait_for(condition, seconds: float = 60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it never came to be")


def answer(address: str) -> bytes | None:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.read()
    except (urllib.error.URLError, OSError):
        return None


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A short real run of 40 steps, 10 of them measured."""
    logdir = tmp_path_factory.mktemp("runs")
    arguments = ("--preset=sigmoid_relu", "--steps=40", "--measure_every=4", "--validate_every=20", "--seed=3")
    last = finish(start(logdir / "short", *arguments, "--window_examples=512", "--optimizer=sgd"))[-1]
    assert re.fullmatch(rf"done, validation/loss .*, validation/accuracy .*; the records are in {logdir}/short", last)
    return logdir


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "python"])
def test_tensorboards_readers_find_everything(logdir, fast):
    provider = application(logdir, fast, runs=1).ingester.data_provider
    where = {"ctx": context.RequestContext(), "experiment_id": ""}
    back = tapescope.Run(logdir / "short")

    listed = provider.list_scalars(**where, plugin_name="scalars")["short"]
    expected = {"loss", "accuracy", "validation/loss", "validation/accuracy", "gradient_norm_global"}
    assert expected | {"units_dead/hidden", "units_dead/output"} <= listed.keys()
    scalars = provider.read_scalars(**where, plugin_name="scalars", downsample=1000)["short"]
    assert [point.step for point in scalars["loss"]] == list(range(0, 40, 4)) == back.steps.tolist()
    np.testing.assert_array_equal([point.value for point in scalars["loss"]], back["loss"].astype(np.float32))
    assert [point.step for point in scalars["validation/accuracy"]] == [19, 39]
    norms = np.stack([[p.value for p in scalars[f"gradient_norm/{name}"]] for name in back.variables], 1)
    np.testing.assert_array_equal(norms, back["gradient_norm"])
    assert np.isfinite(norms).all()
    dead = [point.value for point in scalars["units_dead/output"]]
    assert 1 <= max(dead) <= 10
    assert dead == back["units_dead"][:, 1][np.isfinite(back["units_dead"][:, 1])].tolist()

    histograms = provider.read_tensors(**where, plugin_name="histograms", downsample=1000)["short"]
    for tag, elements in (("activation/hidden", 64 * 64), ("activation/output", 64 * 10)):
        assert [point.numpy[:, 2].sum() for point in histograms[tag]] == [elements] * 10
    assert f"gradient/{back.variables[0]}" in histograms

    own = provider.read_tensors(**where, plugin_name="tapescope", downsample=1000)["short"]
    row = list(back._series["layers"].family.columns).index("saturated")
    np.testing.assert_array_equal([point.numpy[row] for point in own["tapescope/layers"]], back["saturated"])
    assert json.loads(own["tapescope/status"][-1].numpy.item())["reason"] == "all steps done"

    assert provider.list_blob_sequences(**where, plugin_name="graphs")["short"]
    content = provider.list_tensors(**where, plugin_name=hparams_metadata.PLUGIN_NAME)["short"]
    info = hparams_metadata.parse_session_start_info_plugin_data(
        content[hparams_metadata.SESSION_START_INFO_TAG].plugin_content
    )
    assert info.hparams["preset"].string_value == "sigmoid_relu"
    assert info.hparams["learning_rate"].number_value == pytest.approx(1e-3)
    assert not info.hparams["jit_compile"].bool_value


def test_the_status_says_what_the_run_is(logdir):
    status = tapescope.Run(logdir / "short").status
    assert status.items() >= {"state": "ended", "steps": 40, "replicas": 1, "preset": "sigmoid_relu"}.items()


def test_four_replicas_record_what_one_device_does(tmp_path):
    """With TensorFlow's own collectives, which tests in one process cannot mix (see `mirrored`)."""
    common = ("--steps=10", "--measure_every=1", "--preset=parallel_branches", "--clip_norm=0.2")
    alone = start(tmp_path / "alone", *common)
    shared = start(tmp_path / "shared", *common, "--strategy=mirrored", "--devices=cpu:4")
    assert finish(alone)
    assert finish(shared)
    a, b = tapescope.Run(tmp_path / "alone"), tapescope.Run(tmp_path / "shared")
    assert b.status["replicas"] == 4
    for column in ("gradient_norm", "applied_norm", "weight_norm", "activation_std", "delta_norm", "loss"):
        np.testing.assert_allclose(b[column], a[column], rtol=1e-4, err_msg=column)
    assert np.linalg.norm(a["applied_norm"], axis=1) == pytest.approx(0.2, rel=1e-5)
    np.testing.assert_array_equal(b["activation_histogram"].sum(2), a["activation_histogram"].sum(2))


def test_the_same_seed_is_the_same_run(tmp_path):
    arguments = ("--steps=30", "--measure_every=10", "--preset=parallel_branches", "--seed=5")
    runs = [start(tmp_path / name, *arguments) for name in ("a", "b")]
    assert all(map(finish, runs))
    a, b = (tapescope.Run(tmp_path / name) for name in ("a", "b"))
    np.testing.assert_array_equal(a["gradient_norm"], b["gradient_norm"])
    np.testing.assert_array_equal(a["loss"], b["loss"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_has_everything_flushed(tmp_path, number):
    process = start(tmp_path, "--steps=1000000000", "--measure_every=10")

    def measured() -> bool:
        try:
            return len(tapescope.Run(tmp_path).steps) > 0
        except (OSError, ValueError, KeyError):
            return False

    wait_for(measured)
    process.send_signal(number)
    last = finish(process)[-1]
    done = re.search(rf"ended by {number.name} after (\d+) steps.*; the records are in {tmp_path}", last)
    assert done, last
    run = tapescope.Run(tmp_path)
    assert (run.status["state"], run.status["reason"]) == ("ended", f"ended by {number.name}")
    assert run.steps[-1] == (int(done[1]) - 1) // 10 * 10
    assert run.steps.tolist() == list(range(0, int(done[1]), 10))


def test_serve_shows_the_run_while_it_trains_and_ends_with_it(tmp_path):
    process = start(tmp_path / "live", "--steps=1000000000", "--serve")
    assert process.stderr
    address = re.fullmatch(r"TensorBoard: (http://127\.0\.0\.1:\d+/)\n", process.stderr.readline())
    assert address
    runs = wait_for(lambda: json.loads(answer(f"{address[1]}data/runs") or b"[]"))
    assert runs == ["."]
    assert process.poll() is None
    process.terminate()
    finish(process)
    assert answer(address[1]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers=nothing",), "`layers` ('nothing') matches none of the layers: hidden, output"),
        (("--batch_size=5000",), "--batch_size=5000 is more than the 1438 training examples"),
        (("--devices=gpu:64",), "--devices=gpu:64: TensorFlow sees "),
        (("--strategy=mirrored", "--devices=cpu:3", "--batch_size=64"), "cannot be divided among 3 replicas: take 63"),
        (("--preset=transformer", "--data_dir=/nowhere", "--data=mnist"), "--data_dir=/nowhere has no mnist.npz"),
    ],
)
def test_what_only_tensorflow_can_tell_is_one_line_too(tmp_path, arguments, message):
    process = start(tmp_path, *arguments)
    out, err = process.communicate(timeout=120)
    said = [line for line in (out + err).splitlines() if not TENSORFLOWS_OWN.match(line)]
    assert process.returncode == 2
    assert len(said) == 1, err
    assert said[0].startswith("tapescope-train: ")
    assert message in said[0]


def test_the_demo_trains_the_given_networks_and_ends_without_a_terminal(tmp_path):
    command = [sys.executable, "-m", "tapescope_trainers.demo", str(tmp_path), "--steps=30"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.match(r"TensorBoard: http://127\.0\.0\.1:\d+/ ", done.stdout)
    assert [run.name for run in sorted(tmp_path.iterdir())] == sorted(EXAMPLE_PRESETS)
    for preset in EXAMPLE_PRESETS:
        run = tapescope.Run(tmp_path / preset)
        assert run.status["state"] == "ended"
        assert run.steps.tolist() == list(range(0, 30, 20))
        assert np.isfinite(run["gradient_norm"]).all()
