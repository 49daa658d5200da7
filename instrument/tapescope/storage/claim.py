"""One writer a directory: the records of two would be mixed, and each reader would sort them in its own way."""

import os

try:
    import fcntl
except ImportError:  # Windows has another kind of lock; there the user must see to it
    fcntl = None


class Claim:
    """Keeps other Recorders, of this process and of others, out of a directory.

    The system lets go when the process dies. Where the file system has no locks nothing is kept out.

    Raises OSError where another one writes.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = os.fspath(directory)
        self._held: int | None = None
        self.renew()

    def renew(self) -> None:
        """Makes the directory, and claims it if it is not the one that is claimed already: it was removed since."""
        os.makedirs(self._directory, exist_ok=True)
        if fcntl is None:
            return
        found = os.open(self._directory, os.O_RDONLY)
        if self._held is not None and os.path.sameopenfile(found, self._held):
            os.close(found)
            return
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(found)
            raise OSError(
                f"another Recorder writes to {self._directory}: close() it first, or give each run a directory"
            ) from None
        except OSError:  # NFS, for one, locks only what is open for writing
            os.close(found)
            return
        self.release()
        self._held = found

    def release(self) -> None:
        """Lets the next one in. Idempotent."""
        if self._held is not None and fcntl is not None:
            # Unlocked and not only closed: a child that was forked meanwhile has it open as well.
            fcntl.flock(self._held, fcntl.LOCK_UN)
            os.close(self._held)
            self._held = None
