"""The thread that writes during training, and the bounded queue that leads to it."""

import threading
from collections import deque
from collections.abc import Callable

from absl import logging

from tapescope.storage.run_writer import RunWriter

MAX_QUEUE_BYTES = 64 << 20
"""Bound of the queue. Readings wait where they were made: with a GPU, in its memory. See docs/decisions/0006."""

Job = Callable[[RunWriter], object]


class RecordQueue:
    """A bounded queue from the training thread to the writer thread.

    When it is full, every second record that waits is left out, and every second one that comes from then on. When that
    is not enough, every fourth record is kept, and so on, until the queue is empty. So the written records cover the
    time evenly, and training neither waits nor runs out of memory. Any thread may put; one thread gets.
    """

    def __init__(self, max_bytes: int = MAX_QUEUE_BYTES):
        self.left_out = 0
        """Number of records that were left out."""
        self.max_bytes = max_bytes
        self.waiting_bytes = 0
        """Bytes of the records that wait."""
        self._jobs: deque[tuple[Job, int]] = deque()
        self._stride = 1
        """One of so many records is taken."""
        self._skip = 0
        """Number of records to leave out before the next one is taken."""
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, size: int = 0) -> None:
        """Append a job that holds `size` bytes, without waiting. A job of 0 bytes is never left out."""
        with self._changed:
            if size and self._skip:
                self._skip -= 1
                self.left_out += 1
                return
            while self.waiting_bytes and self.waiting_bytes + size > self.max_bytes:
                self._thin_out()
            self._jobs.append((job, size))
            self.waiting_bytes += size
            if size:
                self._skip = self._stride - 1
            self._changed.notify()

    def get(self) -> Job:
        """Wait for the next job and return it."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs)
            job, size = self._jobs.popleft()
            self.waiting_bytes -= size
            if not self.waiting_bytes:
                self._stride = 1
                self._skip = 0
            return job

    def _thin_out(self) -> None:
        """Leave out every second record that waits; a single record is left out itself."""
        sizes = [size for _, size in self._jobs]
        records = [index for index, size in enumerate(sizes) if size]
        dropped = set(records[1::2] or records)
        self._jobs = deque(job for index, job in enumerate(self._jobs) if index not in dropped)
        self.waiting_bytes -= sum(sizes[index] for index in dropped)
        self.left_out += len(dropped)
        self._stride *= 2


class BackgroundWriter:
    """A thread that runs the jobs of a Recorder in order, and outlives those that fail.

    It counts the records that could not be written, and logs an error the first time. Any thread may call it.

    Args:
      run_writer: called by this thread alone from now on.
    """

    def __init__(self, run_writer: RunWriter):
        self.lost: int = 0
        """Number of records that could not be written."""
        self.error: OSError | None = None
        """The first error of the disk."""
        self.queue = RecordQueue()
        self.run_writer = run_writer
        self._thread = threading.Thread(target=self._run, name="tapescope-recorder", daemon=True)
        self._thread.start()

    def put(self, job: Job, size: int = 0) -> None:
        """Queue a job that holds `size` bytes, without waiting for it; see `RecordQueue.put`."""
        left_out_before = self.queue.left_out
        self.queue.put(job, size)
        if self.queue.left_out and not left_out_before:
            logging.warning(
                "tapescope: records of %s come faster than they can be written; every second one that waits is left "
                "out. Measure less often",
                self.run_writer.logdir,
            )

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all queued jobs are done, at most for `seconds`."""
        done = threading.Event()
        self.queue.put(lambda _: done.set())
        done.wait(seconds)

    def end(self, reason: str) -> None:
        """Queue the last job, which writes that the run has ended, and why. `join` waits for it."""
        self.queue.put(lambda _: self._write_status("ended", reason))
        self.queue.put(_stop)

    def join(self) -> None:
        """Wait until the last job is done."""
        self._thread.join()

    def _run(self) -> None:
        failing = False
        while (job := self.queue.get()) is not _stop:
            try:
                job(self.run_writer)
                if failing and not self.run_writer.failing:
                    failing = False
                    if not self.run_writer.has_ended:
                        self._write_status("training", "")
                    logging.info("tapescope writes to %s again; %d records are lost", self.run_writer.logdir, self.lost)
            except Exception as error:  # any failure of a job: the thread must go on as long as training does
                failing = failing or self.run_writer.failing
                self._note_loss(error)
        try:
            self.run_writer.close()
        except OSError as error:
            self._note_loss(error)

    def _write_status(self, state: str, reason: str) -> None:
        self.run_writer.write_status(state, reason, self.lost, self.queue.left_out)

    def _note_loss(self, error: Exception) -> None:
        self.lost += 1
        if self.lost == 1:
            reason = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
            logging.error("tapescope: %s; training goes on, unwritten records are counted", reason)
        if isinstance(error, OSError):
            self.error = self.error or error


def _stop(_: RunWriter) -> None:
    """Stand for the last job."""
