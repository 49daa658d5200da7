"""A run's directory beside other programs' files, odd names, wrong clocks, forks and changes of directory."""

import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed import synthetic
from scripts.testbed.records import eager_steps, loaded_steps
from scripts.testbed.synthetic import Spec
from tensorboard.compat.proto import event_pb2

import tapescope
from tapescope.storage import captured_step, event_file, event_reader, event_values, tfrecord
from tapescope.storage.captured_step import CapturedStep
from tapescope.storage.directory import DirectoryLock, absolute
from tapescope.storage.event_reader import find_event_files, is_own_file
from tapescope.storage.resume import cut_records
from tensorboard_plugin_tapescope.metadata import Family

SPEC = Spec(depth=2, units=2, histograms=False)


def train(logdir, first, last, resume=None, each=lambda n: None):
    """Record some steps and return the state with which to go on."""
    probe, step = eager_steps()
    with tapescope.Recorder(logdir, probe, resume=resume) as recorder:
        for n in range(first, last):
            recorder.write(n, step(n), {"loss": 1.0})
            each(n)
        return recorder.state()


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_damaged_file_of_a_run_that_goes_on_is_kept(tmp_path, share, caplog):
    state = train(tmp_path, 0, 6)
    (path,) = tmp_path.glob("*.tfevents.*")
    damaged = bytearray(path.read_bytes())
    damaged[int(share * len(damaged))] ^= 1
    path.write_bytes(damaged)
    if share == 0.5:
        assert "is damaged at byte" in str(tapescope.Run(tmp_path).problems)
    train(tmp_path, 6, 8, tapescope.Resume(6, state))
    (copy,) = (tmp_path / "replaced").iterdir()
    assert copy.read_bytes() == damaged
    assert f"A copy is {copy}" in caplog.text
    assert tapescope.Run(tmp_path).steps.tolist()[-2:] == [6, 7]


def test_captured_steps_of_an_earlier_run_are_set_aside(tmp_path):
    step = CapturedStep(9, "a spike", 1.0, {}, (np.zeros(2),), None, None, None, ())
    for _ in range(2):
        train(tmp_path, 0, 2)
        captured_step.write(str(tmp_path), step)
    train(tmp_path, 0, 2)
    assert captured_step.list_captured(tmp_path) == []
    folders = [tmp_path / "replaced" / name / "step-9.npz" for name in ("captures", "captures_1")]
    assert all(path.is_file() for path in folders)


def test_an_open_writer_of_the_program_goes_on_when_a_run_is_continued(tmp_path):
    state = None
    for first, last in ((0, 4), (4, 8)):
        writer = tf.summary.create_file_writer(str(tmp_path))
        writer.flush()

        def scalar(n, writer=writer):
            with writer.as_default():
                tf.summary.scalar("lr", 0.1, n)
            writer.flush()

        train(tmp_path, first, last, None if state is None else tapescope.Resume(first, state), scalar)
        state = {}
    files = find_event_files(tmp_path)
    own = {event.step for path in files.others for event in event_reader.read_events(path) if event.summary.value}
    assert own == set(range(8))
    assert tapescope.Run(tmp_path).steps.tolist() == list(range(8))


def other_program(path):
    """Write an event file as another program does, with later steps than the run has."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(event_pb2.Event(file_version="brain.Event:2").SerializeToString())
        for step in (3, 300):
            event = event_pb2.Event(step=step)
            event.summary.value.add(tag="mine", simple_value=1.0)
            writer.write(event.SerializeToString())


def empty(path):
    path.touch()


def garbage(path):
    path.write_bytes(os.urandom(3000))


def not_events(path):
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff" * 20)


@pytest.mark.parametrize("make", [other_program, empty, garbage, not_events])
def test_files_of_others_stay_as_they_are(tmp_path, make):
    synthetic.write(tmp_path, SPEC, range(10))
    path = tmp_path / "events.out.tfevents.1.host"
    make(path)
    before = path.read_bytes(), path.stat().st_ino
    cut_records(tmp_path, 0)
    assert (path.read_bytes(), path.stat().st_ino) == before
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("make", [other_program, empty, garbage, not_events])
def test_a_run_is_read_beside_files_of_others(tmp_path, make):
    synthetic.write(tmp_path, SPEC, range(10))
    make(tmp_path / "events.out.tfevents.1.host")
    assert tapescope.Run(tmp_path).steps.tolist() == list(range(10))
    assert tapescope.runs(tmp_path) == [str(tmp_path)]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_what_is_not_a_file_is_skipped_and_named(tmp_path, make):
    synthetic.write(tmp_path, SPEC, range(10))
    make(tmp_path / "events.out.tfevents.9.odd")
    cut_records(tmp_path, 5)
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    (problem,) = run.problems
    assert "events.out.tfevents.9.odd" in problem


def test_a_file_that_holds_no_events_is_named(tmp_path, caplog):
    synthetic.write(tmp_path, SPEC, range(3))
    not_events(tmp_path / "events.out.tfevents.1.host")
    (problem,) = tapescope.Run(tmp_path).problems
    assert "has a record that is not a TensorBoard event" in problem
    assert problem in caplog.text


def test_tags_like_ours_in_a_file_of_another_program_are_not_read(tmp_path):
    synthetic.write(tmp_path, SPEC, range(3))
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.scalar("tapescope/variables", 1.0, 7)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]


def test_a_file_of_an_earlier_version_is_ours(tmp_path):
    synthetic.write(tmp_path, SPEC, range(3))
    (path,) = find_event_files(tmp_path).own
    events = list(event_reader.read_events(path))
    events[0].ClearField("source_metadata")
    with tf.io.TFRecordWriter(path) as writer:
        for event in events:
            writer.write(event.SerializeToString())
    assert is_own_file(path)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]


class WrongClock:
    """The module `time`, with a clock that is wrong by some seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __getattr__(self, name):
        return getattr(time, name)

    def time(self):
        return max(0.0, time.time() + self.seconds)


@pytest.mark.parametrize("seconds", [-3600, -1e10, -1e-3])
def test_a_clock_that_goes_back_between_two_programs_loses_no_record(tmp_path, monkeypatch, seconds):
    state = train(tmp_path, 0, 5)
    monkeypatch.setattr(event_file, "time", WrongClock(seconds))
    state = train(tmp_path, 5, 10, tapescope.Resume(5, state))
    train(tmp_path, 10, 12, tapescope.Resume(10, state))
    assert tapescope.Run(tmp_path).steps.tolist() == list(range(12))
    assert loaded_steps(tmp_path, "tapescope/variables") == list(range(12))
    assert tapescope.Run(tmp_path).status["state"] == "ended"


@pytest.mark.parametrize("name", ["9999999999.999999", "99999999999999999", "x", "-1.000000", ""])
def test_a_name_of_an_impossible_time_does_no_harm(tmp_path, name):
    (tmp_path / f"events.out.tfevents.{name}.host").touch()
    train(tmp_path, 0, 3)
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2]


def test_a_relative_directory_stays_the_same_when_the_program_changes_its_own(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train("run", 0, 6, each=lambda n: os.chdir(tmp_path / "elsewhere") if n == 2 else None)
    assert tapescope.Run(tmp_path / "run").steps.tolist() == list(range(6))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_histograms_are_read_after_a_change_of_directory(tmp_path, monkeypatch):
    synthetic.write(tmp_path / "run", SPEC._replace(histograms=True), range(3))
    monkeypatch.chdir(tmp_path)
    run = tapescope.Run("run")
    monkeypatch.chdir("/")
    assert run["gradient_histogram"].shape[0] == 3


def test_histograms_and_units_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    synthetic.write(tmp_path, SPEC._replace(histograms=True), range(8))
    read = []
    real = event_reader.to_array
    monkeypatch.setattr(event_reader, "to_array", lambda tag, *rest: read.append(tag) or real(tag, *rest))
    run = tapescope.Run(tmp_path)
    tapescope.check(run)
    assert not {tag for tag in read if "histogram" in tag or "units" in tag}
    assert run["gradient_histogram"].sum() == 8 * 4 * 512
    assert len(run.units("output")[0]) == 2


def test_histograms_that_are_no_longer_there_are_an_error_with_the_reason(tmp_path):
    synthetic.write(tmp_path, SPEC._replace(histograms=True), range(8))
    run = tapescope.Run(tmp_path)
    cut_records(tmp_path, 4)
    with pytest.raises(ValueError, match=r"gradient_histogram at step 4 cannot be read: the run was continued"):
        run["gradient_histogram"]


def test_cutting_holds_a_few_records_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecord, "LARGEST_BATCH_BYTES", 1 << 17)
    file = event_file.EventFile(tmp_path)
    for step in range(100):
        file.add(step, [event_values.tensor(Family("layers"), np.zeros(20_000, np.float32))])
    file.close()
    tracemalloc.start()
    cut_records(tmp_path, 90)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert os.path.getsize(file.path) > 90 * 80_000
    assert peak < 2 << 20


def test_a_resume_of_another_model_is_refused_before_anything_is_removed(tmp_path):
    synthetic.write(tmp_path, SPEC, range(10))
    probe, _ = eager_steps()
    with pytest.raises(ValueError, match=r"`resume` must continue a run of the Probe's model; .* has a run of another"):
        tapescope.Recorder(tmp_path, probe, resume=tapescope.Resume(3, {}))
    assert tapescope.Run(tmp_path).steps.tolist() == list(range(10))
    train(tmp_path / "other", 0, 1)


@pytest.mark.parametrize("state", [{"rows": np.zeros([5, 2])}, {"x": 1}])
def test_a_resume_without_a_recorders_state_is_refused(tmp_path, state):
    train(tmp_path, 0, 5)
    with pytest.raises(ValueError, match=r"`resume` must be a Resume of a step from 0 and of what `Recorder.state"):
        train(tmp_path, 3, 5, tapescope.Resume(3, state))
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 3, 4]


def test_the_state_of_other_units_loses_no_record(tmp_path, caplog):
    state = train(tmp_path, 0, 5)
    other = {**state, "rows": state["rows"][:, :1]}
    train(tmp_path, 5, 8, tapescope.Resume(5, other))
    assert tapescope.Run(tmp_path).steps.tolist() == list(range(8))
    assert "begins anew" in caplog.text


_PARENT = """
import os, sys, time
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
from tapescope.storage.directory import DirectoryLock
lock = DirectoryLock(sys.argv[1])
os.fork()
print(os.getpid(), flush=True)  # both processes have begun
time.sleep(60)
"""


@pytest.mark.process
def test_a_forked_helper_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _PARENT, str(tmp_path)]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        for _ in ("parent", "helper"):
            parent.stdout.readline()
        with pytest.raises(OSError, match="another Recorder writes"):
            DirectoryLock(tmp_path)
        parent.kill()
        parent.wait()
        DirectoryLock(tmp_path).release()
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()


def test_a_directory_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`logdir` must have a name in UTF-8"):
        absolute(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))


@pytest.mark.parametrize("wrong", [None, b"runs/1", 3, ""])
def test_what_is_not_a_path_is_refused(wrong):
    with pytest.raises(
        ValueError, match=r"`logdir` must be the path of a directory, .*; got " + re.escape(repr(wrong))
    ):
        absolute(wrong)


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_run_directory_that_is_not_a_directory_is_refused(tmp_path, kind):
    path = tmp_path / "run"
    if kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"`logdir` must be a directory; .*/run is a file or a link that leads nowhere"):
        DirectoryLock(path)
