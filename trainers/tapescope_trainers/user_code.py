"""Functions of the user, named on the command line as `package.module:function` or `path/to/file.py:function`.

What goes wrong in them is one line, with the place in the user's own file. The exception itself is the cause of the
ValueError, so that a program can show its traceback, unless the module or file is missing.
"""

import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tapescope
from tapescope.storage import printable

FORM = "package.module:function or path/to/file.py:function"

_OURS = tuple(os.path.join(os.path.dirname(os.path.abspath(path)), "") for path in (__file__, str(tapescope.__file__)))
_PYTHONS = os.path.join(sysconfig.get_path("stdlib"), "")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
"""A frame in the message of an error of TensorFlow, which may come from another thread or from a traced function."""
_NOISE = re.compile(
    r"in user code:|Graph execution error:|Detected at node|File \"|Exception encountered when calling"
    r"|\w+: Exception encountered when calling"
)
"""Beginnings of lines that TensorFlow and Keras put before what is wrong."""
_MARKUP = re.compile(r"\x1b\[\d*m|\{\{function_node [^}]*\}\} ?|\[Op:\w+\]( name:)?")

_loaded: set[str] = set()
"""Beginnings of the paths of what was loaded: a directory, or a file that lies among installed packages."""


class Place(NamedTuple):
    """A line of the user's code."""

    path: str
    line: int
    function: str


def is_reference(text: str) -> bool:
    """Return whether a flag's value has the form of a reference to a function."""
    source, colon, name = text.rpartition(":")
    return bool(colon and source) and all(part.isidentifier() for part in name.split("."))


def short_name(reference: str) -> str:
    """Return the name of a reference's module, for a directory: `net` of `lab/net.py:build`."""
    source = reference.rpartition(":")[0]
    return os.path.basename(source).removesuffix(".py").rpartition(".")[2]


def load(flag: str, reference: str) -> Any:
    """Return what a reference names.

    Modules are also looked for in the working directory, and in that of the file.

    Args:
        flag: Name of the flag, for errors.
        reference: Its value.

    Raises:
        ValueError: It cannot be imported, or has no such name.
    """
    source, _, name = reference.rpartition(":")
    try:
        value = _import_file(source) if source.endswith(".py") else _import_module(source)
    except (Exception, SystemExit) as error:
        cause = None if _is_missing(error, source) else error
        raise ValueError(f"--{flag}={reference} cannot be imported: {describe(error, source)}") from cause
    path = os.path.abspath(str(getattr(value, "__file__", None) or source))
    folder = os.path.dirname(path)
    _loaded.add(path if folder.endswith("-packages") else os.path.join(folder, ""))
    for part in name.split("."):
        if not hasattr(value, part):
            raise ValueError(f"--{flag}={reference}: {source} has no {name}: write {FORM}")
        value = getattr(value, part)
    return value


def _import_module(name: str) -> Any:
    _add_path(os.getcwd())
    return importlib.import_module(name)


def _import_file(path: str) -> Any:
    full = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(full):
        raise FileNotFoundError(f"there is no file {path}")
    name = os.path.basename(full).removesuffix(".py")
    loaded = sys.modules.get(name)
    if loaded is not None and os.path.abspath(str(getattr(loaded, "__file__", ""))) == full:
        return loaded
    _add_path(os.path.dirname(full))
    name = name if loaded is None else f"{name}_{zlib.crc32(full.encode())}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Keras finds a class by the name of its module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_path(directory: str) -> None:
    """Look for modules in a directory as well: last, so that none of its files hides a package."""
    if directory not in sys.path:
        sys.path.append(directory)


def call(flag: str, reference: str, **arguments: Any) -> Any:
    """Return what a function of the user returns.

    Raises:
        ValueError: It cannot be imported, is not a function, does not take the arguments, or raises.
    """
    function: Callable[..., Any] = load(flag, reference)
    if not callable(function):
        raise ValueError(f"--{flag}={reference} must be a function; got {type(function).__name__}")
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--{flag}={reference} failed: {describe(error)}") from error


def find_failure(error: BaseException) -> str | None:
    """Return a line about an error from a function of the user; None if it is not from a module that was loaded."""
    places = [place for place in _places(error) if _is_loaded(place.path)]
    return f"your function {places[-1].function} failed: {describe(error)}" if places else None


def describe(error: BaseException, source: str = "") -> str:
    """Return an exception as one line, with the last place in the user's code.

    Args:
        error: The exception.
        source: The module that was imported, where the error may be that it is missing.
    """
    places = _places(error)
    place = f", at {places[-1].path}:{places[-1].line}" if places else ""
    hint = ""
    if isinstance(error, ModuleNotFoundError) and _is_missing(error, source):
        hint = f": write {FORM}, and run it where the package can be imported"
    return printable.one_line(f"{type(error).__name__}: {_reason(error) or 'without a message'}{place}{hint}")


def _is_missing(error: BaseException, source: str) -> bool:
    """Return whether the module or the file `source` itself is missing, so that no line of the user has run."""
    if isinstance(error, ModuleNotFoundError):
        missing = source.split(".")[0] == str(error.name).split(".")[0]
    else:
        missing = isinstance(error, FileNotFoundError) and not os.path.exists(os.path.expanduser(source))
    return missing and not _places(error)


def _reason(error: BaseException) -> str:
    """Return the first line of a message that says what is wrong: TensorFlow and Keras may put others before it."""
    lines = [line.strip() for line in _MARKUP.sub("", printable.describe(error)).splitlines()]
    # The line after a frame is its source.
    told = [line for before, line in zip(["", *lines], lines, strict=False) if line and not before.startswith('File "')]
    return next((line for line in told if not _NOISE.match(line)), "".join(told[:1]))


def _places(error: BaseException) -> list[Place]:
    """Return the places of an error, the last call last, without ours, Python's, and those in packages of others."""
    frames = [Place(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
    frames += [Place(path, int(line), name) for path, line, name in _FRAME.findall(printable.describe(error))]
    return [frame for frame in frames if _is_of_user(frame.path)]


def _is_of_user(path: str) -> bool:
    if path.startswith((*_OURS, "<")):
        return False
    return _is_loaded(path) or ("-packages" not in path and not path.startswith(_PYTHONS))


def _is_loaded(path: str) -> bool:
    """Return whether a file was loaded or lies beside one that was: not in an environment in the same directory."""
    return any(path.startswith(start) and "-packages" not in path[len(start) :] for start in _loaded)
