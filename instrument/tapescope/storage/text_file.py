"""Text files that are replaced as a whole, and files that can be read to their end."""

import contextlib
import errno
import os


def write_whole(path: str, text: str) -> None:
    """Replace a file by one with this text, in UTF-8; a reader sees the old file or the new one.

    A device or a pipe, such as /dev/stdout, is written to.

    Args:
      path: of the file. A link to it is replaced as well.
      text: its content. A lone surrogate, as a name may hold, is replaced.

    Raises:
      OSError: the file cannot be written. The old one stays.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        return
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def check_regular(path: str) -> str:
    """Return a path if it is not a FIFO, which would wait for its writer, nor a device, which may have no end.

    Raises:
      OSError: it is one of these, or a directory.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return path
