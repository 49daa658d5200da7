"""Hyperparameters of several runs: which differ, and which all have in common."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Settings = Mapping[str, bool | float | str]
"""Hyperparameters of a run by name."""

ABSENT = "\N{EN DASH}"
"""Text of a hyperparameter that a run does not have."""


class Comparison(NamedTuple):
    """The hyperparameters of several runs as text, by name."""

    differing: dict[str, list[str]]
    """The value in each run, of those that are not the same in all runs with hyperparameters."""
    equal: dict[str, str]


def compare_settings(settings: Mapping[str, Settings]) -> Comparison:
    """Return the hyperparameters of runs, in alphabetical order. A run without any does not make all others differ.

    Args:
      settings: hyperparameters by run.
    """
    names = sorted({name for values in settings.values() for name in values})
    differing: dict[str, list[str]] = {}
    equal: dict[str, str] = {}
    for name in names:
        texts = [format_value(values.get(name)) for values in settings.values()]
        known = {text for text, values in zip(texts, settings.values(), strict=True) if values}
        if len(known) > 1:
            differing[name] = texts
        else:
            equal[name] = known.pop()
    return Comparison(differing, equal)


def format_value(value: Any) -> str:
    """Return a value as text: a number in at most six digits, a whole one without a point."""
    if value is None:
        return ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"
