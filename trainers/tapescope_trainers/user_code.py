"""Functions of the user, named on the command line as `package.module:function` or `path/to/file.py:function`.

What goes wrong in them is one line, with the place in the user's own file.
"""

import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Callable
from typing import Any

FORM = "package.module:function or path/to/file.py:function"


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
        raise ValueError(f"--{flag}={reference} cannot be imported: {describe(error, source)}") from None
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
        raise ValueError(f"--{flag}={reference} failed: {describe(error, '')}") from None


def describe(error: BaseException, source: str) -> str:
    """Return an exception as text, with the last place that is neither ours nor of Python's import system."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename and "site-packages" not in frame.filename
    ]
    place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    hint = ""
    missing = isinstance(error, ModuleNotFoundError) and error.name is not None
    if missing and source and source.split(".")[0] == str(error.name).split(".")[0]:
        hint = f": write {FORM}, and run it where the package can be imported"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'without a message'}{place}{hint}"
