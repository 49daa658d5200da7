"""The directory of a run: its path, and the lock that keeps other Recorders out."""

import os
import weakref

try:
    import fcntl
except ImportError:  # Windows has another kind of lock; there nothing is locked
    fcntl = None


def absolute(logdir: str | os.PathLike[str]) -> str:
    """Return a path that stays the same when the program changes its directory, with the home directory for `~`.

    Raises:
      ValueError: it is not a path, it is a URL, such as of a bucket, or its name is not UTF-8.
    """
    path = os.fspath(logdir) if isinstance(logdir, (str, os.PathLike)) else None
    if not isinstance(path, str) or not path:
        raise ValueError(
            f"`logdir` must be the path of a directory, a str or an os.PathLike; got {logdir!r}: pass one such as "
            '"runs/1"'
        )
    if "://" in path:
        raise ValueError(
            f"`logdir` must be a directory of this machine, where a file can be locked and appended to; got {path!r}: "
            "record to a local or a mounted directory, and copy it"
        )
    full = os.path.abspath(os.path.expanduser(path))
    try:
        full.encode()
    except UnicodeEncodeError:  # a byte that is not UTF-8
        raise ValueError(
            f"`logdir` must have a name in UTF-8, as TensorFlow needs it; got {full!r}: rename it"
        ) from None
    return full


class DirectoryLock:
    """An advisory lock: only one Recorder may write to a run directory, in this process and in others.

    The records of two would be mixed, and each reader would sort them in its own way. The operating system releases the
    lock when the process ends, also if a process that it forked goes on. A file system without locks, and Windows, keep
    nobody out: docs/decisions/0006.

    Raises:
      OSError: another Recorder holds the lock, or the directory cannot be made.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = os.fspath(directory)
        self._descriptor: int | None = None
        _locks.add(self)
        self.renew()

    def __fspath__(self) -> str:
        """Return the directory, so that a Recorder can be given the lock that the program holds already."""
        return self._directory

    def renew(self) -> None:
        """Make the directory, and lock it unless it is the one that is locked already.

        A directory that was removed and made again is another one.
        """
        try:
            os.makedirs(self._directory, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(
                f"`logdir` must be a directory; {self._directory} is a file or a link that leads nowhere: remove it, "
                "or pass another directory"
            ) from None
        if fcntl is None:
            return
        descriptor = os.open(self._directory, os.O_RDONLY)
        if self._descriptor is not None and os.path.sameopenfile(descriptor, self._descriptor):
            os.close(descriptor)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OSError(
                f"another Recorder writes to {self._directory}: close() it first, or give each run a directory"
            ) from None
        except OSError:  # NFS, for one, locks only what is open for writing
            os.close(descriptor)
            return
        self.release()
        self._descriptor = descriptor

    def release(self) -> None:
        """Unlock the directory. Idempotent."""
        if self._descriptor is not None and fcntl is not None:
            # Unlocked and not only closed: a child that was forked meanwhile has it open as well.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close the descriptor. The directory stays locked while another process has it open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_locks: "weakref.WeakSet[DirectoryLock]" = weakref.WeakSet()


def _forget_locks() -> None:
    """Close what a forked process got from its parent: a helper that outlives its parent must not hold its locks."""
    for lock in list(_locks):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
