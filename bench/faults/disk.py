"""A slow disk, a removed directory, withdrawn permission, strict_io and two recorders: which records are lost."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import tensorflow as tf
from bench.faults.row import Row, print_rows
from scripts.testbed.records import compiled_readings, loaded_steps

import tapescope
from tapescope.storage import event_file

NOBODY = 65534
BYTES_A_SECOND = 1_000_000


class SlowWriter:
    """A TFRecordWriter on a disk of 1 MB/s."""

    def __init__(self, path: str, real: type = tf.io.TFRecordWriter):
        self.writer = real(path)
        self.flush = self.writer.flush
        self.close = self.writer.close

    def write(self, record: bytes) -> None:
        """Write as slowly as the disk."""
        time.sleep(len(record) / BYTES_A_SECOND)
        self.writer.write(record)


def slow(directory: pathlib.Path, steps: int) -> Row:
    """Record 200 steps a second on a disk that needs 40 ms a record."""
    probe, readings = compiled_readings(50)
    real_writer = tf.io.TFRecordWriter
    tf.io.TFRecordWriter = SlowWriter
    try:
        with tapescope.Recorder(directory, probe) as recorder:
            recorder._writer.queue.max_bytes = 1 << 20
            longest_seconds = 0.0
            waiting_bytes = 0
            began = time.monotonic()
            for n in range(steps):
                time.sleep(max(0, began + n / 200 - time.monotonic()))
                since = time.monotonic()
                recorder.write(n, readings[n % len(readings)][1], {"loss": 1.0})
                longest_seconds = max(longest_seconds, time.monotonic() - since)
                waiting_bytes = max(waiting_bytes, recorder._writer.queue.waiting_bytes)
            seconds = time.monotonic() - began
    finally:
        tf.io.TFRecordWriter = real_writer
    written = tapescope.Run(directory).steps
    gap = max(written[1:] - written[:-1])
    size = sum(path.stat().st_size for path in directory.glob("*.tfevents.*")) / len(written)
    result = (
        f"{steps} steps at 200 a second took {seconds:.1f} s; {len(written)} records of {size / 1000:.0f} kB written, "
        f"{recorder.left_out} left out, {recorder.lost} lost, at most {gap} steps from one record to the next; the "
        f"longest `write` {1000 * longest_seconds:.0f} ms; {waiting_bytes / 2**20:.1f} MiB in the queue"
    )
    passed = len(written) + recorder.left_out == steps and not recorder.lost and waiting_bytes <= 1 << 20
    return Row("a simulated disk of 1 MB/s, queue of 1 MiB", result, passed and seconds < steps / 200 + 2)


def removed(directory: pathlib.Path) -> Row:
    """Remove the directory four times during a run."""
    probe, readings = compiled_readings(10, histograms=False)
    with tapescope.Recorder(directory, probe) as recorder:
        for n in range(400):
            if n % 100 == 50:
                recorder._wait()
                shutil.rmtree(directory)
            recorder.write(n, readings[0][1], {"loss": 1.0})
    steps = tapescope.Run(directory).steps.tolist()
    result = f"{recorder.lost} records lost; after the last time {len(steps)} of 50 records in the new directory"
    return Row("the directory removed four times", result, steps == list(range(350, 400)) == loaded_steps(directory))


@contextlib.contextmanager
def unprivileged_user(directory: pathlib.Path) -> Iterator[None]:
    """Run as the owner of the directory, to whom permissions apply, if this process is root."""
    if os.geteuid():
        yield
        return
    for path in (directory.parent, directory):
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def forbidden(directory: pathlib.Path) -> Row:
    """Withdraw permission for 100 records while the file stays open, and for 100 records without the file."""
    retry_seconds = event_file.RETRY_SECONDS
    event_file.RETRY_SECONDS = 0.0
    directory.mkdir()
    probe, readings = compiled_readings(10, histograms=False)
    try:
        with unprivileged_user(directory), tapescope.Recorder(directory, probe) as recorder:
            lost = []
            for n in range(400):
                recorder.write(n, readings[0][1], {"loss": 1.0})
                recorder._wait()
                if n == 199:
                    directory.chmod(0o700)
                    for path in directory.iterdir():
                        path.unlink()
                if n in (99, 199):
                    directory.chmod(0o000 if n == 99 else 0o500)
                if n == 299:
                    directory.chmod(0o700)
                if n % 100 == 99:
                    lost.append(recorder.lost)
    finally:
        event_file.RETRY_SECONDS = retry_seconds
    steps = tapescope.Run(directory).steps.tolist()
    result = (
        f"{lost[1] - lost[0]} of 100 lost while the file stays open, {lost[2] - lost[1]} of 100 without a file, "
        f"counted; {lost[3] - lost[2]} of 100 once permission is restored"
    )
    return Row("permission withdrawn", result, lost == [0, 0, 100, 100] and steps == list(range(300, 400)))


def strict(directory: pathlib.Path) -> Row:
    """Stop the training when a record cannot be written."""
    probe, readings = compiled_readings(10, histograms=False)
    recorder = tapescope.Recorder(directory, probe, strict_io=True)
    shutil.rmtree(directory)
    directory.write_text("in the way")
    steps = 0
    raised = "no error"
    try:
        for n in range(100):
            recorder.write(n, readings[0][1], {"loss": 1.0})
            recorder._wait()
            steps = n + 1
    except OSError as error:
        raised = type(error).__name__
    with contextlib.suppress(OSError):
        recorder.close()
    return Row("strict_io without a writable directory", f"{raised} at step {steps}", (raised, steps) == ("OSError", 1))


def two(directory: pathlib.Path) -> Row:
    """Open a second recorder for the same directory."""
    probe, readings = compiled_readings(10, histograms=False)
    with tapescope.Recorder(directory, probe) as recorder:
        refused = 0
        for n in range(20):
            recorder.write(n, readings[0][1], {"loss": 1.0})
            try:
                tapescope.Recorder(directory, probe)
            except OSError:
                refused += 1
    complete = tapescope.Run(directory).steps.tolist() == list(range(20)) == loaded_steps(directory)
    result = f"the second was refused {refused} times of 20"
    return Row("two recorders on one directory", result, refused == 20 and complete)


def main() -> None:
    """Print the rows of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        rows = [slow(root / "slow", 200 if "--quick" in sys.argv else 4000)]
        print_rows([*rows, *(part(root / part.__name__) for part in (removed, forbidden, strict, two))])


if __name__ == "__main__":
    main()
