"""Text from elsewhere, made safe to show: names in files, messages of exceptions, numbers in JSON."""

import json
import math
import unicodedata
from typing import Any

_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a terminal may act on: control and format characters (escape sequences, right-to-left marks),
surrogates, line and paragraph separators."""
_MAX_CHARACTERS = 1000


def printable(text: str, keep: str = "") -> str:
    """Return text with each character that a terminal may act on written as its escape sequence of Python.

    Args:
      text: any text.
      keep: characters that are kept although a terminal acts on them.
    """
    if text.isprintable():
        return text
    return "".join(_escape(c) if c not in keep and unicodedata.category(c) in _UNSAFE else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """Return text as one printable line of limited length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _MAX_CHARACTERS else line[:_MAX_CHARACTERS] + "…"


def describe(value: object) -> str:
    """Return `str(value)`, or the name of its type where that raises."""
    try:
        return str(value)
    except Exception:  # a class of the user
        return f"<{type(value).__name__}, whose str() fails>"


def describe_error(error: BaseException) -> str:
    """Return an exception as one line: its type and message."""
    return one_line(f"{type(error).__name__}: {describe(error)}".rstrip(": "))


def to_json(value: Any) -> str:
    """Return the JSON of a value on one line, with null for the numbers that JSON cannot hold, such as NaN."""
    return json.dumps(_without_nonfinite(value), allow_nan=False)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
