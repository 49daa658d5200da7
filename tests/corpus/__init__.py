"""The corpus: small programs as people write them, each trained plainly and measured."""

import importlib
import pathlib
from typing import Any


def programs() -> list[Any]:
    """Return all programs: those of every module of this folder, in the order of their names."""
    for path in sorted(pathlib.Path(__file__).parent.glob("[a-z]*.py")):
        if not path.stem.startswith("test_"):
            importlib.import_module(f"{__name__}.{path.stem}")
    return importlib.import_module(f"{__name__}.program").PROGRAMS
