"""The thread that writes while the training goes on: one job after another, and none may end it."""

import threading
from collections.abc import Callable

from absl import logging

from tapescope.storage.backlog import Backlog
from tapescope.storage.run_writer import Scribe

Job = Callable[[Scribe], object]


class Writer:
    """Does what a Recorder hands over, in order; counts what could not be done and says it once.

    Safe to use from many threads.
    """

    def __init__(self, scribe: Scribe):
        self.lost: int = 0
        """Records that could not be written."""
        self.error: OSError | None = None
        """The first of the disk."""
        self.backlog = Backlog()
        self.scribe = scribe
        self._thread = threading.Thread(target=self._run, name="tapescope-recorder", daemon=True)
        self._thread.start()

    def put(self, job: Job, size: int = 0) -> None:
        """Hands a job over that holds `size` bytes, without waiting for it; see `Backlog.put`."""
        before = self.backlog.left_out
        self.backlog.put(job, size)
        if self.backlog.left_out and not before:
            logging.warning(
                "tapescope: %s is written more slowly than its records come; every second that waits is left out",
                self.scribe.logdir,
            )

    def wait(self, seconds: float | None = None) -> None:
        """Until all that was handed over is written, or for so long."""
        done = threading.Event()
        self.backlog.put(lambda scribe: done.set())
        done.wait(seconds)

    def end(self, reason: str) -> None:
        """Notes that the run has ended, and why, as the last job; `join` waits for it."""
        self.backlog.put(lambda scribe: self._status("ended", reason))
        self.backlog.put(_end)

    def join(self) -> None:
        """Waits until the last job is done."""
        self._thread.join()

    def _run(self) -> None:
        failing = False
        while (job := self.backlog.get()) is not _end:
            try:
                job(self.scribe)
                if failing and not self.scribe.failing:
                    failing = False
                    self._status("training", "")
                    logging.info("tapescope writes to %s again; %d records are lost", self.scribe.logdir, self.lost)
            except Exception as error:  # whatever fails here, it must not end the thread while training goes on
                failing = failing or self.scribe.failing
                self._lose(error)
        self.scribe.close()

    def _status(self, state: str, reason: str) -> None:
        self.scribe.status(state, reason, self.lost, self.backlog.left_out)

    def _lose(self, error: Exception) -> None:
        self.lost += 1
        if self.lost == 1:
            why = str(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
            logging.error("tapescope: %s; training goes on, unwritten records are counted", why)
        if isinstance(error, OSError):
            self.error = self.error or error


def _end(scribe: Scribe) -> None:
    """The last job."""
