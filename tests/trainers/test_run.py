"""`tapescope-train` and the demo as a person runs them, and their records in TensorBoard's own reader."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from scripts.testbed.processes import Trainer, newest
from tensorboard import context
from tensorboard.plugins.hparams import metadata as hparams_metadata

import tapescope
from tapescope_trainers import demo, train
from tapescope_trainers.flags import EXAMPLE_PRESETS
from tests.plugin.conftest import application

pytestmark = pytest.mark.process

SHORT = (
    "--preset=sigmoid_relu",
    "--steps=40",
    "--measure_every=4",
    "--validate_every=20",
    "--seed=3",
    "--window_examples=512",
    "--optimizer=sgd",
)


def run_program(*arguments: str) -> subprocess.CompletedProcess:
    """Run a program of the trainers to its end, without a terminal and without any wish about TensorFlow's log."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def wait_for(condition, seconds: float = 60):
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.1)
    return value


def fetch(address: str) -> bytes | None:
    """Return the answer of a server, or None if there is none."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.read()
    except (urllib.error.URLError, OSError):
        return None


class Short:
    """A run of 40 steps, 10 of them measured."""

    def __init__(self, parent: Path):
        self.parent = parent
        self.logdir = parent / "short"
        self.done = run_program("tapescope_trainers.train", f"--logdir={self.logdir}", *SHORT)
        assert self.done.returncode == 0, self.done.stderr
        self.run = tapescope.Run(self.logdir)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return Short(tmp_path_factory.mktemp("runs"))


def test_the_terminal_shows_findings_progress_and_the_result_only(short):
    """None of the lines is TensorFlow's."""
    *lines, last = short.done.stderr.splitlines()
    assert re.fullmatch(rf"Done, validation/loss .*, validation/accuracy .*\. Records: {short.logdir}", last)
    assert [line for line in lines if not re.match(r"\d+/40 steps  loss |tapescope: ", line)] == []
    assert [line for line in lines if line.startswith("40/40 steps  loss ")]
    assert short.done.stdout == ""


def test_the_terminal_says_how_to_look_at_the_run(short):
    *_, look, _ = short.done.stderr.splitlines()
    assert (
        look
        == f"tapescope: look at the run with  tensorboard --logdir {short.logdir}  or  tapescope check {short.logdir}"
    )


def test_the_status_describes_the_run(short):
    expected = {"state": "ended", "steps": 40, "replicas": 1, "preset": "sigmoid_relu"}
    assert short.run.status.items() >= expected.items()


@pytest.fixture(scope="module", params=[True, False], ids=["fast", "python"])
def provider(short, request):
    """Load the run with one of TensorBoard's two readers."""
    return application(short.parent, request.param, runs=1).ingester.data_provider


ALL = {"ctx": context.RequestContext(), "experiment_id": ""}


@pytest.fixture
def scalars(provider):
    return provider.read_scalars(**ALL, plugin_name="scalars", downsample=1000)["short"]


def steps_of(points) -> list[int]:
    return [point.step for point in points]


def values_of(points) -> list[float]:
    return [point.value for point in points]


def test_scalars_have_their_tags(scalars):
    expected = {"loss", "accuracy", "validation/loss", "validation/accuracy", "gradient_norm_global"}
    assert expected | {"units_dead/hidden", "units_dead/output"} <= scalars.keys()


def test_scalars_have_their_steps(scalars, short):
    assert steps_of(scalars["loss"]) == short.run.steps.tolist() == list(range(0, 40, 4))
    assert steps_of(scalars["validation/accuracy"]) == [19, 39]


def test_scalars_have_the_values_of_the_run(scalars, short):
    np.testing.assert_array_equal(values_of(scalars["loss"]), short.run["loss"].astype(np.float32))
    norms = np.stack([values_of(scalars[f"gradient_norm/{name}"]) for name in short.run.variables], 1)
    np.testing.assert_array_equal(norms, short.run["gradient_norm"])
    dead = short.run["units_dead"][:, 1]
    assert values_of(scalars["units_dead/output"]) == dead[np.isfinite(dead)].tolist()


def test_output_units_die_in_this_run(short):
    assert 1 <= np.nanmax(short.run["units_dead"][:, 1]) <= 10


def test_histograms_count_every_element(provider, short):
    histograms = provider.read_tensors(**ALL, plugin_name="histograms", downsample=1000)["short"]
    for tag, elements in (("activation/hidden", 64 * 64), ("activation/output", 64 * 10)):
        assert [point.numpy[:, 2].sum() for point in histograms[tag]] == [elements] * 10
    assert f"gradient/{short.run.variables[0]}" in histograms


def test_the_tab_gets_its_tables_and_the_status(provider, short):
    tables = provider.read_tensors(**ALL, plugin_name="tapescope", downsample=1000)["short"]
    row = list(short.run._series["layers"].family.columns).index("saturated")
    np.testing.assert_array_equal([p.numpy[row] for p in tables["tapescope/layers"]], short.run["saturated"])
    assert json.loads(tables["tapescope/status"][-1].numpy.item())["reason"] == "all steps done"


def test_the_graph_is_there(provider):
    assert provider.list_blob_sequences(**ALL, plugin_name="graphs")["short"]


def test_the_hparams_are_there(provider):
    content = provider.list_tensors(**ALL, plugin_name=hparams_metadata.PLUGIN_NAME)["short"]
    info = hparams_metadata.parse_session_start_info_plugin_data(
        content[hparams_metadata.SESSION_START_INFO_TAG].plugin_content
    )
    assert info.hparams["preset"].string_value == "sigmoid_relu"
    assert info.hparams["learning_rate"].number_value == pytest.approx(1e-3)
    assert not info.hparams["jit_compile"].bool_value


def run_both(one: tuple[Path, ...], other: tuple[Path, ...]) -> tuple[tapescope.Run, tapescope.Run]:
    """Run two trainings at the same time; each is a directory and its flags."""
    with Trainer(*one) as first, Trainer(*other) as second:
        first.finish()
        second.finish()
    return tapescope.Run(one[0]), tapescope.Run(other[0])


def test_four_replicas_record_what_one_device_records(tmp_path):
    """With TensorFlow's own collectives, which tests in one process cannot mix (see `mirrored`)."""
    flags = ("--steps=10", "--measure_every=1", "--preset=parallel_branches", "--clip_norm=0.2", "--noprogress")
    one, four = run_both(
        (tmp_path / "one", *flags), (tmp_path / "four", *flags, "--strategy=mirrored", "--devices=cpu:4")
    )
    assert four.status["replicas"] == 4
    for column in ("gradient_norm", "applied_norm", "weight_norm", "activation_std", "delta_norm", "loss"):
        np.testing.assert_allclose(four[column], one[column], rtol=1e-4, err_msg=column)
    assert np.linalg.norm(one["applied_norm"], axis=1) == pytest.approx(0.2, rel=1e-5)
    np.testing.assert_array_equal(four["activation_histogram"].sum(2), one["activation_histogram"].sum(2))


def test_the_same_seed_gives_the_same_run(tmp_path):
    flags = ("--steps=30", "--measure_every=10", "--preset=parallel_branches", "--seed=5", "--noprogress")
    one, other = run_both((tmp_path / "one", *flags), (tmp_path / "other", *flags))
    np.testing.assert_array_equal(one["gradient_norm"], other["gradient_norm"])
    np.testing.assert_array_equal(one["loss"], other["loss"])


def test_serve_shows_the_run_while_it_trains_and_ends_with_it(tmp_path):
    with Trainer(tmp_path / "live", "--steps=1000000000", "--serve", "--noprogress", real=True) as trainer:
        address = wait_for(lambda: re.search(r"^TensorBoard: (http://127\.0\.0\.1:\d+/)\n", trainer.output))[1]
        assert wait_for(lambda: json.loads(fetch(f"{address}data/runs") or b"[]")) == ["."]
        trainer.send(15)
        trainer.finish()
    assert fetch(address) is None


def test_a_killed_training_leaves_no_tensorboard(tmp_path):
    with Trainer(tmp_path / "live", "--steps=1000000000", "--serve", "--noprogress", real=True) as trainer:
        address = wait_for(lambda: re.search(r"^TensorBoard: (http://127\.0\.0\.1:\d+/)\n", trainer.output))[1]
        assert wait_for(lambda: fetch(f"{address}data/runs"))
        trainer.send(signal.SIGKILL)
        trainer.wait()
    assert wait_for(lambda: fetch(address) is None)


@pytest.mark.parametrize(
    "streams",
    [
        ">/dev/full 2>&1",
        pytest.param(">&- 2>&-", marks=pytest.mark.nightly),
        pytest.param("2>&1 | head -0", marks=pytest.mark.nightly),
    ],
    ids=["full", "closed", "pipe"],
)
def test_output_that_cannot_be_written_ends_no_training(tmp_path, streams):
    flags = f"--preset=mlp --width=8 --steps=200 --measure_every=10 --checkpoint_every=100 --logdir={tmp_path}"
    subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tapescope_trainers.train {flags} {streams}; true"], timeout=300, check=True
    )
    run = tapescope.Run(tmp_path)
    assert run.problems == ()
    assert (run.status["reason"], run.steps[-1]) == ("all steps done", 190)
    assert newest(tmp_path) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers=nothing",), "`layers` "),
        (("--batch_size=5000",), "--batch_size=5000 is more than the 1438 training examples"),
        (("--devices=gpu:64",), "--devices=gpu:64: TensorFlow sees "),
        (("--strategy=mirrored", "--devices=cpu:3", "--batch_size=64"), "cannot be divided among 3 replicas: use 63"),
        (("--preset=transformer", "--data_dir=/nowhere", "--data=mnist"), "--data_dir=/nowhere has no mnist.npz"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_input_that_needs_tensorflow_is_one_line(tmp_path, arguments, message):
    with Trainer(tmp_path, *arguments) as trainer:
        lines = trainer.wait()
        assert trainer.code == train.EXIT_BAD_INPUT
    assert len(lines) == 1
    assert lines[0].startswith("tapescope-train: ")
    assert message in lines[0]


def test_the_demo_says_in_one_line_that_it_trains_on_one_device(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        demo.parse(["demo", str(tmp_path), "--strategy=mirrored"])
    assert end.value.code == train.EXIT_BAD_INPUT
    assert capsys.readouterr().err == (
        "--strategy=mirrored is not for the demo: use tapescope-train --strategy=mirrored\n"
    )


def test_the_demo_trains_the_examples_and_ends_without_a_terminal(tmp_path):
    done = run_program("tapescope_trainers.demo", str(tmp_path), "--steps=30")
    assert done.returncode == 0, done.stderr
    assert re.match(r"TensorBoard: http://127\.0\.0\.1:\d+/ ", done.stdout)
    assert [run.name for run in sorted(tmp_path.iterdir())] == sorted(EXAMPLE_PRESETS)
    for preset in EXAMPLE_PRESETS:
        run = tapescope.Run(tmp_path / preset)
        assert run.status["state"] == "ended"
        assert run.steps.tolist() == list(range(30))
        assert np.isfinite(run["gradient_norm"]).all()
