"""What the disk, the system and other processes do to a run's files: nothing is mixed, torn, or lost without a word."""

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
from scripts.testbed.records import eager_steps, loaded

import tapescope
from tapescope.storage import event_file
from tapescope.storage.backlog import Backlog
from tapescope.storage.run import event_files


@pytest.fixture
def prompt(monkeypatch):
    """A new file is tried for every record."""
    monkeypatch.setattr(event_file, "RETRY_SECONDS", 0.0)


@pytest.fixture
def disk(monkeypatch, prompt):
    """A disk: `full` takes half of a record and then says so; `slow` is an Event that every record waits for."""

    class Disk:
        full, slow, real = False, threading.Event(), tf.io.TFRecordWriter

    Disk.slow.set()

    class Writer:
        def __init__(self, path):
            self.path, self.writer = path, Disk.real(path)

        def write(self, record):
            Disk.slow.wait()
            if Disk.full:
                with open(self.path, "ab") as file:
                    file.write(record[: len(record) // 2])
                raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
            self.writer.write(record)

        def flush(self):
            self.writer.flush()

        def close(self):
            self.writer.close()

    monkeypatch.setattr(tf.io, "TFRecordWriter", Writer)
    return Disk


def errors(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname in ("ERROR", "WARNING")]


def test_a_full_disk_costs_what_did_not_fit_and_no_more(tmp_path, disk, caplog):
    probe, step = eager_steps()
    recorder = tapescope.Recorder(tmp_path, probe)
    for n in range(9):
        disk.full = 3 <= n < 6
        recorder.write(n, step(n), {"loss": 1.0})
        recorder._wait()
    assert recorder.lost == 3
    (said,) = errors(caplog)
    assert "cannot write" in said
    assert "No space left on device; training goes on" in said
    recorder.close()
    run = tapescope.Run(tmp_path)
    assert run.steps.tolist() == loaded(tmp_path) == [0, 1, 2, 6, 7, 8]
    assert (run.status["state"], run.status["lost"]) == ("ended", 3)
    assert len(event_files(tmp_path)) == 2  # what could not take a record leaves nothing behind
    for path in event_files(tmp_path):
        records = list(tf.data.TFRecordDataset(path))  # raises DataLossError on a torn one
        assert len(records) > 1


def test_a_directory_that_is_removed_is_made_again(tmp_path, prompt, caplog):
    probe, step = eager_steps()
    logdir = tmp_path / "run"
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(6):
            if n == 3:
                shutil.rmtree(logdir)
            recorder.write(n, step(n), {"loss": 1.0})
            recorder._wait()
    assert (recorder.lost, errors(caplog)) == (0, [])
    assert tapescope.Run(logdir).steps.tolist() == loaded(logdir) == [3, 4, 5]
    assert tapescope.Run(logdir).layers == ("layer0", "layer1")  # described anew


def test_where_nothing_can_be_made_records_are_counted_until_something_can(tmp_path, prompt, caplog):
    """As when the permission is taken away, which root does not notice: a file stands where the directory was."""
    probe, step = eager_steps()
    logdir = tmp_path / "run"
    with tapescope.Recorder(logdir, probe) as recorder:
        for n in range(6):
            if n == 2:
                shutil.rmtree(logdir)
                logdir.write_text("in the way")
            if n == 4:
                logdir.unlink()
            recorder.write(n, step(n), {"loss": 1.0})
            recorder._wait()
    assert recorder.lost == 2
    assert tapescope.Run(logdir).steps.tolist() == [4, 5]
    assert tapescope.Run(logdir).status["lost"] == 2


def test_a_failing_disk_is_not_tried_for_every_record(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(event_file, "RETRY_SECONDS", 1e9)
    file = event_file.EventFile(tmp_path)
    disk.full = True
    for n in range(3):
        with pytest.raises(OSError, match="No space left"):
            file.add(n, [event_file.scalar("loss", 1.0)])
        disk.full = False


def test_strict_io_stops_the_training(tmp_path, disk):
    recorder = tapescope.Recorder(tmp_path / "a", tapescope.Probe(tf.Variable([1.0])), strict_io=True)
    disk.full = True
    recorder.scalars(0, {"loss": 1.0})
    recorder._wait()
    with pytest.raises(OSError, match="No space left on device"):
        recorder.scalars(1, {"loss": 1.0})
    with pytest.raises(OSError, match="No space left on device"):
        recorder.close()
    assert recorder.lost == 2  # that it ended could not be written either
    disk.full = False

    def ends_by_itself():
        with tapescope.Recorder(tmp_path / "b", tapescope.Probe(tf.Variable([1.0])), strict_io=True) as other:
            disk.full = True
            other.scalars(0, {"loss": 1.0})
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):  # and not that of the disk
        ends_by_itself()


def test_a_slow_disk_thins_the_records_and_the_training_goes_on(tmp_path, disk, caplog):
    probe, step = eager_steps()
    reading = step(0)
    with tapescope.Recorder(tmp_path, probe) as recorder:
        recorder._writer.backlog._most_bytes = 16 * (sum(p.numpy().nbytes for p in reading if p is not None) + 1000)
        disk.slow.clear()
        for n in range(200):
            recorder.write(n, reading, {"loss": 1.0})
        assert recorder.left_out >= 180
        (said,) = errors(caplog)
        assert "every second that waits is left out" in said
        disk.slow.set()
    run = tapescope.Run(tmp_path)
    assert run.steps[0] == 0
    assert len(run.steps) == 200 - recorder.left_out
    assert (run.status["lost"], run.status["left_out"]) == (0, recorder.left_out)
    assert np.diff([*run.steps, 199]).max() <= 32, run.steps  # 8 to 16 of 200: no long stretch without any


def test_the_backlog_keeps_order_and_what_is_no_record():
    backlog = Backlog(100)
    for n in range(1000):
        backlog.put(n, 10)
        if n % 100 == 50:
            backlog.put(f"status {n}")
    kept = [backlog.get() for _ in range(len(backlog._jobs))]
    numbers = [n for n in kept if isinstance(n, int)]
    assert [k for k in kept if isinstance(k, str)] == [f"status {n}" for n in range(50, 1000, 100)]
    assert numbers == sorted(numbers)
    assert 5 <= len(numbers) <= 10
    assert np.diff([0, *numbers, 999]).max() <= 256, numbers
    assert backlog.left_out == 1000 - len(numbers)
    backlog.put("larger than the bound", 1000)
    backlog.put("and another", 1000)
    assert (backlog.get(), backlog.left_out) == ("and another", 1001 - len(numbers))
    backlog.put("as before", 1)
    assert backlog.get() == "as before"


def test_the_first_bad_record_is_on_disk_when_write_returns(tmp_path):
    """What a kill -9 right then would leave."""
    probe, step = eager_steps(poisoned_at=4)
    recorder = tapescope.Recorder(tmp_path / "run", probe)
    for n in range(5):
        recorder.write(n, step(n), {"loss": 1.0})
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    recorder.close()
    run = tapescope.Run(tmp_path / "killed")
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run["first_nonfinite_backward"].tolist() == [-1, -1, -1, -1, 1]


def test_a_run_cut_at_any_byte_is_read_to_its_last_whole_record(tmp_path):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path / "whole", probe) as recorder:
        for n in range(8):
            recorder.write(n, step(n), {"loss": 1.0})
    (path,) = event_files(tmp_path / "whole")
    with open(path, "rb") as file:
        content = file.read()
    ends = np.cumsum([len(record.numpy()) + event_file.FRAMING_BYTES for record in tf.data.TFRecordDataset(path)])
    first = len(ends) - 9  # the last is the status; of the records before, `first` are no steps
    cut = tmp_path / "cut"
    for length in np.random.default_rng(0).integers(ends[first], len(content), 25):
        shutil.rmtree(cut, ignore_errors=True)
        cut.mkdir()
        (cut / os.path.basename(path)).write_bytes(content[:length])
        whole = min(int(np.sum(ends <= length)) - first, 8)
        assert tapescope.Run(cut).steps.tolist() == list(range(whole)), length
        assert loaded(cut) == list(range(whole)), length


def test_two_recorders_do_not_share_a_directory(tmp_path):
    probe = tapescope.Probe(tf.Variable([1.0]))
    with tapescope.Recorder(tmp_path, probe):
        with pytest.raises(OSError, match=r"another Recorder writes to .*: close\(\) it first"):
            tapescope.Recorder(tmp_path, probe)
        assert len(event_files(tmp_path)) == 1
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        other = tapescope.Recorder(tmp_path, probe)  # of a directory that has nothing to do with the first one's
    other.close()
    tapescope.Recorder(tmp_path, probe).close()


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
        assert loaded(tmp_path, f"thread/{t}") == list(range(50))


def test_a_step_that_does_not_rise_is_refused_and_evicts_nothing(tmp_path, caplog):
    probe, step = eager_steps()
    with tapescope.Recorder(tmp_path, probe) as recorder:
        for n in (0, 1, 2, 0, 1, 3):
            recorder.write(n, step(n), {"loss": 1.0})
    assert recorder.lost == 2
    assert "step 0 comes after step 2" in errors(caplog)[0]
    assert "count the steps over the whole training" in errors(caplog)[0]
    assert tapescope.Run(tmp_path).steps.tolist() == [0, 1, 2, 3]


_PROGRAM = """
import os, sys, signal
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
    recorder.close()  # harmless: it is the parent's
    os._exit(0)
os.waitpid(child, 0)
for n in range(int(sys.argv[2])):
    recorder.write(n, step(n), {"loss": 1.0})
    print("step", n, flush=True)
"""


@pytest.mark.slow
def test_processes_that_fork_end_without_close_or_are_killed(tmp_path):
    """The program does all three: see above. The second is killed while it writes."""

    def start(name, steps):
        command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(tmp_path / name), str(steps)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    ended, killed = start("ended", 5), start("killed", 10**6)
    said = [killed.stdout.readline()]
    while len(said) < 40:
        said.append(killed.stdout.readline())
    killed.send_signal(signal.SIGKILL)
    output, _ = ended.communicate(timeout=120)
    assert "belongs to the process that this one was forked from" in output
    run = tapescope.Run(tmp_path / "ended")
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run.status["reason"] == "the program ended without closing its recorder"
    killed.wait()
    said += killed.stdout.read().splitlines()
    killed.stdout.close()
    steps = tapescope.Run(tmp_path / "killed").steps.tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(said) - 20  # what the thread had not yet written
    assert tapescope.Run(tmp_path / "killed").status["state"] == "training"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # the system lets go of the directory as the process goes
        try:
            tapescope.Recorder(tmp_path / "killed", tapescope.Probe(tf.Variable([1.0]))).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        pytest.fail("the directory of a killed process is still claimed")
