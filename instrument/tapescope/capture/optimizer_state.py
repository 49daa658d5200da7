"""The moments that Keras' optimizers keep of each variable.

They are found by the names that Keras gives to an optimizer's public `variables`: the path of the variable that is
trained, and what is kept of it, such as `dense_kernel_momentum`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tapescope.capture import keras_kinds, private_api
from tapescope.capture.selection import variable_path

FIRST_MOMENT = ("average_gradient", "momentum")
"""Names that optimizers give it; of RMSprop(centered=True), which has both, it is the former."""
SECOND_MOMENT = ("velocity", "accumulated_grad", "accumulator")
"""Names of the mean of squares of Adam and RMSprop, and of Adadelta; and of Adagrad's and Ftrl's sum of squares."""


class Moments(NamedTuple):
    """The variables in which an optimizer keeps the moments of V variables; None where it keeps none."""

    first: list[Any]
    second: list[Any]


def find_moments(optimizers: Sequence[Any], variables: Sequence[Any]) -> Moments:
    """Return the moments of each variable; of several optimizers that train it, those of the last.

    Args:
      optimizers: of Keras; a LossScaleOptimizer and a MultiOptimizer stand for those inside of them.
      variables: V of them.
    """
    inner = [keras_kinds.inner_optimizer(optimizer) for optimizer in optimizers]
    inner = [each for optimizer in inner for each in getattr(optimizer, "optimizers", None) or [optimizer]]
    found: list[dict[int, Any]] = [{}, {}]
    for optimizer in inner:
        trained = private_api.trained_variables(optimizer) or variables
        kept: dict[str, list[Any]] = {}
        for variable in optimizer.variables:
            kept.setdefault(variable.name, []).append(variable)
        for moments, names in zip(found, (FIRST_MOMENT, SECOND_MOMENT), strict=True):
            for name in reversed(names):
                moments |= _of_variables(trained, kept, name)
    first, second = ([moments.get(id(variable)) for variable in variables] for moments in found)
    return Moments(first, second)


def _of_variables(trained: Sequence[Any], kept: dict[str, list[Any]], name: str) -> dict[int, Any]:
    """Return the optimizer's variable of this name by the id of the variable that it belongs to.

    Those of variables with equal paths have equal names, and are in the same order. Older versions of Keras leave the
    path out of some names.
    """
    if len(kept.get(name, ())) == len(trained):
        return {id(v): own for v, own in zip(trained, kept[name], strict=True) if own.shape == v.shape}
    found = {}
    seen: dict[str, int] = {}
    for variable in trained:
        path = variable_path(variable)
        full_name = f"{path.replace('/', '_').replace(':', '_')}_{name}"
        number = seen.get(full_name, 0)
        seen[full_name] = number + 1
        candidates = kept.get(full_name, ())
        if number < len(candidates) and candidates[number].shape == variable.shape:
            found[id(variable)] = candidates[number]
    return found
