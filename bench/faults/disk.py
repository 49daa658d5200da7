"""A slow disk, a directory removed, a permission taken away, strict_io, two recorders: what is lost, and who waits."""

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
from bench.faults.rows import Row, told
from scripts.testbed.records import compiled_readings, loaded_steps

import tapescope
from tapescope.storage import event_file

NOBODY = 65534
BYTES_A_SECOND = 1_000_000


class SlowWriter:
    """A TFRecordWriter on a disk of 1 MB/s."""

    def __init__(self, path: str, real: type = tf.io.TFRecordWriter):
        self.writer = real(path)
        self.flush, self.close = self.writer.flush, self.writer.close

    def write(self, record: bytes) -> None:
        """Takes its time."""
        time.sleep(len(record) / BYTES_A_SECOND)
        self.writer.write(record)


def slow(directory: pathlib.Path, steps: int) -> Row:
    """A training of 200 steps a second, of which each record is 40 ms of disk."""
    probe, read = compiled_readings(50)
    real, tf.io.TFRecordWriter = tf.io.TFRecordWriter, SlowWriter
    try:
        with tapescope.Recorder(directory, probe) as recorder:
            recorder._writer.queue.max_bytes = 1 << 20
            longest = waiting = 0.0
            began = time.monotonic()
            for n in range(steps):
                time.sleep(max(0, began + n / 200 - time.monotonic()))
                since = time.monotonic()
                recorder.write(n, read[n % len(read)][1], {"loss": 1.0})
                longest = max(longest, time.monotonic() - since)
                waiting = max(waiting, recorder._writer.queue.waiting_bytes)
            trained = time.monotonic() - began
    finally:
        tf.io.TFRecordWriter = real
    written = tapescope.Run(directory).steps
    gap = max(written[1:] - written[:-1])
    size = sum(path.stat().st_size for path in directory.iterdir()) / len(written)
    seen = (
        f"{steps} steps at 200 a second took {trained:.1f} s; {len(written)} records of {size / 1000:.0f} kB written, "
        f"{recorder.left_out} left out, {recorder.lost} lost, never more than {gap} in a row; the longest `write` "
        f"{1000 * longest:.0f} ms; {waiting / 2**20:.1f} MiB waiting"
    )
    kept = len(written) + recorder.left_out == steps and not recorder.lost and waiting <= 1 << 20
    return Row("a disk of 1 MB/s, simulated; backlog of 1 MiB", seen, kept and trained < steps / 200 + 2)


def removed(directory: pathlib.Path) -> Row:
    """The directory goes away under it, three times."""
    probe, read = compiled_readings(10, histograms=False)
    with tapescope.Recorder(directory, probe) as recorder:
        for n in range(400):
            if n % 100 == 50:
                recorder._wait()
                shutil.rmtree(directory)
            recorder.write(n, read[0][1], {"loss": 1.0})
    steps = tapescope.Run(directory).steps.tolist()
    seen = f"{recorder.lost} records lost; after the last time {len(steps)} of 50 records in the directory made anew"
    return Row("the directory removed, four times", seen, steps == list(range(350, 400)) == loaded_steps(directory))


@contextlib.contextmanager
def somebody(directory: pathlib.Path) -> Iterator[None]:
    """As a user to whom permissions apply, and who owns the directory."""
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
    """No permission in the directory for 100 records, then the file goes as well for 100."""
    event_file.RETRY_SECONDS, retry = 0.0, event_file.RETRY_SECONDS
    directory.mkdir()
    probe, read = compiled_readings(10, histograms=False)
    try:
        with somebody(directory), tapescope.Recorder(directory, probe) as recorder:
            lost = []
            for n in range(400):
                recorder.write(n, read[0][1], {"loss": 1.0})
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
        event_file.RETRY_SECONDS = retry
    steps = tapescope.Run(directory).steps.tolist()
    seen = (
        f"{lost[1] - lost[0]} of 100 lost where the file stays open, {lost[2] - lost[1]} of 100 where there is none, "
        f"counted; {lost[3] - lost[2]} of 100 once it is given back"
    )
    return Row("the permission taken away", seen, lost == [0, 0, 100, 100] and steps == list(range(300, 400)))


def strict(directory: pathlib.Path) -> Row:
    """strict_io: the training stops."""
    probe, read = compiled_readings(10, histograms=False)
    recorder = tapescope.Recorder(directory, probe, strict_io=True)
    shutil.rmtree(directory)
    directory.write_text("in the way")
    taken = 0
    try:
        for n in range(100):
            recorder.write(n, read[0][1], {"loss": 1.0})
            recorder._wait()
            taken = n + 1
        said = "nothing"
    except OSError as error:
        said = type(error).__name__
    with contextlib.suppress(OSError):
        recorder.close()
    return Row("strict_io, and nowhere to write", f"{said} at step {taken}", (said, taken) == ("OSError", 1))


def two(directory: pathlib.Path) -> Row:
    """A second recorder of the same directory."""
    probe, read = compiled_readings(10, histograms=False)
    with tapescope.Recorder(directory, probe) as recorder:
        refused = 0
        for n in range(20):
            recorder.write(n, read[0][1], {"loss": 1.0})
            try:
                tapescope.Recorder(directory, probe)
            except OSError:
                refused += 1
    whole = tapescope.Run(directory).steps.tolist() == list(range(20)) == loaded_steps(directory)
    return Row("two recorders on one directory", f"the second refused {refused} times of 20", refused == 20 and whole)


def main() -> None:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        rows = [slow(root / "slow", 200 if "--quick" in sys.argv else 4000)]
        told([*rows, *(part(root / part.__name__) for part in (removed, forbidden, strict, two))])


if __name__ == "__main__":
    main()
