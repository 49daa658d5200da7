"""A step of the user's own program, called with a captured batch, and the objects that it trains."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tapescope.capture import keras_kinds
from tapescope.probe import Probe
from tapescope.statistics.reading import Reading

_FOREIGN = {"builtins", "tensorflow", "keras", "tf_keras", "numpy", "tapescope", "functools", "types"}
"""Packages whose objects are not looked into."""
_DEPTH = 4
"""Functions within functions that are looked into."""


class Owners(NamedTuple):
    """Objects that a function uses, directly or through the functions that it calls."""

    probes: list[Probe]
    models: list[Any]
    optimizers: list[Any]


def find_owners(function: Any) -> Owners:
    """Return the probes, models and optimizers among the variables that a function closes over, and its globals."""
    found: dict[int, Any] = {}
    _collect(function, found, _DEPTH)
    values = list(found.values())
    return Owners(
        probes=[value for value in values if isinstance(value, Probe)],
        models=[value for value in values if isinstance(value, keras_kinds.models()) or type(value) is tf.Module],
        optimizers=[value for value in values if isinstance(value, keras_kinds.optimizers())],
    )


def _collect(value: Any, found: dict[int, Any], depth: int) -> None:
    if id(value) in found or depth < 0:
        return
    if isinstance(value, (Probe, *keras_kinds.models(), *keras_kinds.optimizers(), tf.Module)):
        found[id(value)] = value
        return
    if isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            _collect(part, found, depth - 1)
        return
    if _is_of_user(value):
        found[id(value)] = None
        for part in vars(value).values():
            _collect(part, found, depth - 1)
    function = inspect.unwrap(getattr(value, "python_function", value))  # of a tf.function
    owner = getattr(function, "__self__", None)
    owner = getattr(owner, "target", owner)  # of a method that is a tf.function
    if owner is not None and not inspect.ismodule(owner) and hasattr(owner, "__dict__"):
        for part in vars(owner).values():
            _collect(part, found, depth - 1)
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(function):
        return
    found[id(value)] = None
    closed = inspect.getclosurevars(function)
    for part in (*closed.nonlocals.values(), *closed.globals.values()):
        _collect(part, found, depth - 1)


def _is_of_user(value: Any) -> bool:
    """Return whether a value is an object of a class of the user's own, such as one that holds the model."""
    package = type(value).__module__.split(".")[0]
    return hasattr(value, "__dict__") and package not in _FOREIGN and not inspect.isroutine(value)


def bind(function: Callable[..., Any], batch: Any) -> Callable[[Any], Any]:
    """Return a function of a batch, which calls a step in the form that it has.

    `step(batch)`, or for a batch of several parts `step(x, y)`; `measure=True` is added where it has such a parameter.

    Raises:
      ValueError: the step takes other arguments than the batch has.
    """
    python_function = getattr(function, "python_function", function)
    try:
        parameters = inspect.signature(python_function).parameters
    except (TypeError, ValueError):
        return function
    extra = {"measure": True} if "measure" in parameters else {}
    positional = [p for name, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in positional if p.default is p.empty and p.name != "measure"]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    if isinstance(batch, (tuple, list)) and (len(needed) == len(batch) > 1 or (takes_any and not needed)):
        return lambda parts: function(*parts, **extra)
    if isinstance(batch, Mapping) and set(needed) == set(batch):
        return lambda parts: function(**parts, **extra)
    if len(needed) == 1 or not needed:
        return lambda parts: function(parts, **extra)
    described = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise ValueError(
        f"`step_fn` must take the captured batch, which is {described}; it takes ({', '.join(needed)}): pass "
        "`lambda batch: step(...)`"
    )


def split_result(result: Any) -> tuple[float | None, Reading]:
    """Return loss and reading from what a step returned: a reading, and the loss before or after it.

    Raises:
      ValueError: there is no reading, or a loss for each replica.
    """
    if isinstance(result, Reading):
        return None, result
    parts = list(result.values()) if isinstance(result, Mapping) else result
    if isinstance(parts, Sequence):
        readings = [part for part in parts if isinstance(part, Reading)]
        others = [part for part in parts if not isinstance(part, Reading)]
        if readings:
            return _to_number(others), readings[0]
    raise ValueError(
        "`step_fn` must return the loss and the reading of a measured step, as in `return loss, tape.reading()`; got "
        f"{type(result).__name__}: call the step with measure=True"
    )


def _to_number(values: Sequence[Any]) -> float | None:
    """Return the first value that is one number; None if there is none."""
    for value in values:
        try:
            return float(value)
        except (TypeError, ValueError):
            continue
    if any(isinstance(value, tf.distribute.DistributedValues) for value in values):
        raise ValueError(
            "`step_fn` must return one loss; got that of each replica: sum or average it there as your loop does, with "
            "`strategy.reduce`"
        )
    return None
