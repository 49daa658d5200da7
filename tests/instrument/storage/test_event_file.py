"""A run's files under a full or slow disk, removed directories, kills, forks and several writers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from scripts.testbed.records import eager_steps, loaded_steps

import tapescope
from tapescope.storage import event_file, event_values, tfrecord
from tapescope.storage.event_reader import find_event_files


@pytest.fixture
def no_retry_delay(monkeypatch):
    """Attempt a new file for every record."""
    monkeypatch.setattr(event_file, "RETRY_SECONDS", 0.0)


class FakeDisk:
    """A disk for `tf.io.TFRecordWriter`."""

    def __init__(self):
        self.full = False
        """Whether it takes half of a record and then fails."""
        self.ready = threading.Event()
        """Every record waits for it."""
        self.ready.set()

    def make_writer(self, real_writer):
        disk = self

        class Writer:
            def __init__(self, path):
                self.path = path
                self.writer = real_writer(path)

            def write(self, record):
                disk.ready.wait()
                if disk.full:
                    with open(self.path, "ab") as file:
                        file.write(record[: len(record) // 2])
                    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
                self.writer.write(record)

            def flush(self):
                self.writer.flush()

            def close(self):
                self.writer.close()

        return Writer


@pytest.fixture
def disk(monkeypatch, no_retry_delay):
    fake = FakeDisk()
    monkeypatch.setattr(tf.io, "TFRecordWriter", fake.make_writer(tf.io.TFRecordWriter))
    return fake


def logged(caplog, when="call"):
    """Return the warnings and errors of the test, or of its fixtures ("setup")."""
    return [r.getMessage() for r in caplog.get_records(when) if r.levelname in ("ERROR", "WARNING")]


def write_steps(logdir, steps, before=lambda n: None):
    """Record steps one after another, each on disk before the next, and return the closed Recorder."""
    probe, step = eager_steps()
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in steps:
            before(n)
            recorder.write(n, step(n), {"loss": 1.0})
            recorder._wait()
    return recorder


def fill(disk):
    """Return a function that makes the disk full for steps 3 to 5."""

    def before(n):
        disk.full = 3 <= n < 6

    return before


def test_a_full_disk_loses_only_the_records_that_did_not_fit(tmp_path, disk):
    recorder = write_steps(tmp_path, range(9), fill(disk))
    assert recorder.lost == 3
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 6, 7, 8]
    assert loaded_steps(tmp_path) == [0, 1, 2, 6, 7, 8]


def test_a_full_disk_is_logged_once_while_training(tmp_path, disk, caplog):
    write_steps(tmp_path, range(9), fill(disk))
    first, last = logged(caplog)
    assert first.startswith("tapescope: cannot write ")
    assert first.count(str(tmp_path)) == 1
    assert first.endswith("No space left on device; training goes on, unwritten records are counted")
    assert last == f"tapescope: 3 of the records of {tmp_path} could not be written"


def test_the_status_has_the_number_of_lost_records(tmp_path, disk):
    write_steps(tmp_path, range(9), fill(disk))
    status = tapescope.Run(tmp_path).status
    assert status["state"] == "ended"
    assert status["lost"] == 3


def test_a_full_disk_leaves_only_whole_records(tmp_path, disk):
    write_steps(tmp_path, range(9), fill(disk))
    files = find_event_files(tmp_path).own
    assert len(files) == 2
    for path in files:
        assert len(list(tf.data.TFRecordDataset(path))) > 1  # raises DataLossError on a torn record


def test_a_removed_directory_is_made_again(tmp_path, no_retry_delay, caplog):
    logdir = tmp_path / "run"

    def before(n):
        if n == 3:
            shutil.rmtree(logdir)

    recorder = write_steps(logdir, range(6), before)
    assert recorder.lost == 0
    assert logged(caplog) == []
    assert tapescope.Run(logdir).steps.tolist() == [3, 4, 5]
    assert loaded_steps(logdir) == [3, 4, 5]


def test_a_new_file_describes_every_tag_anew(tmp_path, no_retry_delay):
    logdir = tmp_path / "run"

    def before(n):
        if n == 1:
            shutil.rmtree(logdir)

    write_steps(logdir, range(2), before)
    assert tapescope.Run(logdir).layers == ("layer0", "layer1")


def test_records_are_lost_only_until_a_directory_can_be_made(tmp_path, no_retry_delay):
    """A file stands where the directory was, because permissions do not stop root."""
    logdir = tmp_path / "run"

    def before(n):
        if n == 2:
            shutil.rmtree(logdir)
            logdir.write_text("in the way")
        if n == 4:
            logdir.unlink()

    recorder = write_steps(logdir, range(6), before)
    assert recorder.lost == 2
    assert tapescope.Run(logdir).steps.tolist() == [4, 5]
    assert tapescope.Run(logdir).status["lost"] == 2


def test_a_new_file_is_not_attempted_for_every_record(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(event_file, "RETRY_SECONDS", 1e9)
    file = event_file.EventFile(tmp_path)
    disk.full = True
    with pytest.raises(OSError, match="No space left"):
        file.add(0, [event_values.scalar("loss", 1.0)])
    disk.full = False
    with pytest.raises(OSError, match="No space left"):
        file.add(1, [event_values.scalar("loss", 1.0)])


@pytest.fixture
def failed_strict_recorder(tmp_path, disk):
    recorder = tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0])), strict_io=True)
    disk.full = True
    recorder.scalars(0, {"loss": 1.0})
    recorder._wait()
    yield recorder
    disk.full = False
    recorder._strict = False
    recorder.close()


def test_strict_io_raises_at_the_next_record(failed_strict_recorder):
    with pytest.raises(OSError, match="No space left on device"):
        failed_strict_recorder.scalars(1, {"loss": 1.0})


def test_strict_io_raises_at_close(failed_strict_recorder):
    with pytest.raises(OSError, match="No space left on device"):
        failed_strict_recorder.close()
    assert failed_strict_recorder.lost == 2  # the last status was not written either


def test_strict_io_does_not_hide_the_users_own_error(tmp_path, disk):
    def train():
        with tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0])), strict_io=True) as recorder:
            disk.full = True
            recorder.scalars(0, {"loss": 1.0})
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train()


@pytest.fixture
def thinned(tmp_path, disk):
    """Return a closed Recorder whose disk did not take any of 200 records until all had come; the queue holds 16."""
    probe, step = eager_steps()
    reading = step(0)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder._writer.queue.max_bytes = 16 * (sum(part.numpy().nbytes for part in reading) + 1000)
        disk.ready.clear()
        for n in range(200):
            recorder.write(n, reading, {"loss": 1.0})
        disk.ready.set()
    return recorder


def test_a_slow_disk_leaves_records_out(thinned):
    assert thinned.left_out >= 180
    assert thinned.lost == 0


def test_records_left_out_are_logged_once(caplog, thinned):
    (warning,) = logged(caplog, "setup")
    assert "come faster than they can be written; every second one that waits is left out" in warning


def test_a_slow_disk_leaves_records_of_the_whole_time(thinned, tmp_path):
    steps = tapescope.Run(tmp_path).steps
    assert len(steps) == 200 - thinned.left_out
    assert steps[0] == 0
    assert np.diff([*steps, 199]).max() <= 32, steps


def test_the_status_has_the_number_of_records_left_out(thinned, tmp_path):
    assert tapescope.Run(tmp_path).status["left_out"] == thinned.left_out


def test_the_first_nonfinite_record_is_on_disk_when_write_returns(tmp_path):
    probe, step = eager_steps(poisoned_at=4)
    recorder = tapescope.Recorder(tmp_path / "run", probe)
    for n in range(5):
        recorder.write(n, step(n), {"loss": 1.0})
    shutil.copytree(tmp_path / "run", tmp_path / "killed")  # what a kill -9 would leave
    recorder.close()
    run = tapescope.Run(tmp_path / "killed")
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run["first_nonfinite_backward"].tolist() == [-1, -1, -1, -1, 1]


def test_a_run_truncated_anywhere_is_read_to_its_last_whole_record(tmp_path):
    write_steps(tmp_path / "whole", range(8))
    (path,) = find_event_files(tmp_path / "whole").own
    with open(path, "rb") as file:
        content = file.read()
    ends = np.cumsum([len(record.numpy()) + tfrecord.FRAMING_BYTES for record in tf.data.TFRecordDataset(path)])
    first = len(ends) - 9  # events before the first step; the last event is the status
    cut = tmp_path / "cut"
    for length in np.random.default_rng(0).integers(ends[first], len(content), 25):
        shutil.rmtree(cut, ignore_errors=True)
        cut.mkdir()
        (cut / os.path.basename(path)).write_bytes(content[:length])
        whole = min(int(np.sum(ends <= length)) - first, 8)
        assert tapescope.Run(cut).steps.tolist() == list(range(whole)), length
        assert loaded_steps(cut) == list(range(whole)), length


def test_a_second_recorder_of_a_directory_is_refused(tmp_path):
    probe = tapescope.Probe(tf.Variable([1.0]))
    with tapescope.Recorder(tmp_path, probe):
        with pytest.raises(OSError, match=r"another Recorder writes to .*: close\(\) it first"):
            tapescope.Recorder(tmp_path, probe)
        assert len(find_event_files(tmp_path).own) == 1


def test_a_directory_is_free_after_close(tmp_path):
    probe = tapescope.Probe(tf.Variable([1.0]))
    tapescope.Recorder(tmp_path, probe).close()
    tapescope.Recorder(tmp_path, probe).close()


def test_a_directory_that_was_made_again_is_free(tmp_path):
    logdir = tmp_path / "run"
    probe = tapescope.Probe(tf.Variable([1.0]))
    with tapescope.Recorder(logdir, probe):
        shutil.rmtree(logdir)
        logdir.mkdir()
        other = tapescope.Recorder(logdir, probe)
    other.close()


def test_many_threads_write_each_record_once(tmp_path):
    with tapescope.Recorder(tmp_path, tapescope.Probe(tf.Variable([1.0]))) as recorder:

        def write(thread):
            for n in range(50):
                recorder.scalars(n, {f"thread/{thread}": n})

        threads = [threading.Thread(target=write, args=[t]) for t in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for t in range(4):
        assert loaded_steps(tmp_path, f"thread/{t}") == list(range(50))


def test_a_step_that_does_not_rise_is_refused(tmp_path, caplog):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in (0, 1, 2, 0, 1, 3):
            recorder.write(n, step(n), {"loss": 1.0})
    assert recorder.lost == 2
    assert "`step` must rise over the whole training; got 0 after 2" in logged(caplog)[0]
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 3]


_PROGRAM = """
import os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import tapescope
from scripts.testbed.records import eager_steps
probe, step = eager_steps()
recorder = tapescope.Recorder(sys.argv[1], probe)
child = os.fork()
if not child:
    try:
        recorder.scalars(0, {"loss": 1.0})
    except ValueError as error:
        print(error, flush=True)
    recorder.close()
    os._exit(0)
os.waitpid(child, 0)
for n in range(int(sys.argv[2])):
    recorder.write(n, step(n), {"loss": 1.0})
    print("step", n, flush=True)
"""


def start_program(logdir, steps):
    """Start a program that forks a child which tries to write, then records steps, and ends without close."""
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(logdir), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.process
def test_a_forked_child_may_not_write_and_an_end_without_close_is_recorded(tmp_path):
    output, _ = start_program(tmp_path, 5).communicate(timeout=120)
    assert "belongs to the process that this one was forked from" in output
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run.status["reason"] == "the program ended without closing its recorder"


def wait_until_free(logdir):
    """Wait until a directory can be locked: the system releases the lock when the process is gone."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return tapescope.Recorder(logdir, tapescope.Probe(tf.Variable([1.0]))).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.mark.process
def test_a_killed_program_leaves_whole_records_and_no_lock(tmp_path):
    program = start_program(tmp_path, 10**6)
    printed = [program.stdout.readline() for _ in range(40)]
    program.send_signal(signal.SIGKILL)
    program.wait()
    printed += program.stdout.read().splitlines()
    program.stdout.close()
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == list(range(len(run.steps)))
    assert len(run.steps) >= len(printed) - 20  # some were queued and not yet written
    assert run.status["state"] == "training"
    wait_until_free(tmp_path)


def test_the_end_of_a_run_is_recorded_as_soon_as_the_disk_has_room(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(event_file, "RETRY_SECONDS", 3600.0)
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder.write(0, step(0))
        recorder._wait()
        disk.full = True
        recorder.write(1, step(1))
        recorder._wait()
        disk.full = False
    assert recorder.lost == 1
    assert tapescope.Run(tmp_path).status["state"] == "ended"
