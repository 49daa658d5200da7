"""The classes of Keras 3 and, where the program has loaded it, of tf_keras, which is Keras 2.

TensorFlow Probability, TF-Agents and other libraries build on tf_keras. Its layers have the names of those of Keras 3
and compute the same. It is not imported here: where it is not loaded, there is no layer of it.
"""

import functools
import sys
from typing import Any

import keras


@functools.cache
def _classes(module: str, names: tuple[str, ...], has_legacy: bool) -> tuple[type, ...]:
    libraries = (keras, sys.modules["tf_keras"]) if has_legacy else (keras,)
    parts = [getattr(library, module) if module else library for library in libraries]
    return tuple(dict.fromkeys(getattr(part, name) for part in parts for name in names if hasattr(part, name)))


def layers(*names: str) -> tuple[type, ...]:
    """Return the layer classes of these names, those that the loaded versions of Keras have."""
    return _classes("layers", names, "tf_keras" in sys.modules)


def losses() -> tuple[type, ...]:
    """Return the base classes of losses."""
    return _classes("losses", ("Loss",), "tf_keras" in sys.modules)


def models() -> tuple[type, ...]:
    """Return the base classes of models."""
    return _classes("", ("Model",), "tf_keras" in sys.modules)


def optimizers() -> tuple[type, ...]:
    """Return the base classes of optimizers, without those that are legacy in tf_keras itself."""
    return _classes("optimizers", ("Optimizer",), "tf_keras" in sys.modules)


def legacy_optimizers() -> tuple[type, ...]:
    """Return the base classes of all optimizers of tf_keras."""
    legacy: Any = sys.modules.get("tf_keras")
    return () if legacy is None else (legacy.optimizers.Optimizer, legacy.optimizers.legacy.Optimizer)


def is_layer(value: Any) -> bool:
    """Return whether it is a layer or a model."""
    return isinstance(value, layers("Layer"))


def is_legacy(value: Any) -> bool:
    """Return whether it is an object of tf_keras, or of a class that is derived from one of its own."""
    return any(base.__module__.partition(".")[0] == "tf_keras" for base in type(value).__mro__)


def legacy_name(function: Any) -> str:
    """Return the name of a function of tf_keras; an empty string for any other."""
    is_of_legacy = (getattr(function, "__module__", None) or "").partition(".")[0] == "tf_keras"
    return getattr(function, "__name__", "") if is_of_legacy else ""
