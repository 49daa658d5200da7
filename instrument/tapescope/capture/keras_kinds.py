"""The classes of Keras 3 and, where the program has loaded it, of tf_keras, which is Keras 2.

TensorFlow Probability, TF-Agents and other libraries build on tf_keras. Its layers have the names of those of Keras 3
and compute the same. It is not imported here: where it is not loaded, there is no layer of it.
"""

import functools
import sys
from typing import Any

import keras

_LEGACY = "tf_keras"

DROPOUTS = ("AlphaDropout", "Dropout", "GaussianDropout", *(f"SpatialDropout{n}D" for n in (1, 2, 3)))
"""Names of the layers that drop a share of their input in training."""


def _find(module: str, *names: str) -> tuple[type, ...]:
    return _classes(module, names, _LEGACY in sys.modules)


@functools.cache
def _classes(module: str, names: tuple[str, ...], has_legacy: bool) -> tuple[type, ...]:
    parts: list[Any] = [keras, sys.modules[_LEGACY]] if has_legacy else [keras]
    for name in filter(None, module.split(".")):
        parts = [getattr(part, name, None) for part in parts]
    return tuple(dict.fromkeys(getattr(part, name) for part in parts for name in names if hasattr(part, name)))


def layers(*names: str) -> tuple[type, ...]:
    """Return the layer classes of these names, those that the loaded versions of Keras have."""
    return _find("layers", *names)


def losses() -> tuple[type, ...]:
    """Return the base classes of losses."""
    return _find("losses", "Loss")


def models() -> tuple[type, ...]:
    """Return the base classes of models."""
    return _find("", "Model")


def optimizers() -> tuple[type, ...]:
    """Return the base classes of optimizers, without those that are legacy in tf_keras itself."""
    return _find("optimizers", "Optimizer")


def legacy_optimizers() -> tuple[type, ...]:
    """Return the base classes of all optimizers of tf_keras."""
    found = (*optimizers(), *_find("optimizers.legacy", "Optimizer"))
    return tuple(each for each in found if each.__module__.startswith(f"{_LEGACY}."))


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer within one that scales the loss; any other as it is."""
    return getattr(optimizer, "inner_optimizer", None) or optimizer


def is_layer(value: Any) -> bool:
    """Return whether it is a layer or a model."""
    return isinstance(value, layers("Layer"))


def is_legacy(value: Any) -> bool:
    """Return whether it is an object of tf_keras, or of a class that is derived from one of its own."""
    return any(base.__module__.partition(".")[0] == _LEGACY for base in type(value).__mro__)


def legacy_name(function: Any) -> str:
    """Return the name of a function or class of tf_keras; an empty string for any other."""
    is_of_legacy = (getattr(function, "__module__", None) or "").partition(".")[0] == _LEGACY
    return getattr(function, "__name__", "") if is_of_legacy else ""
