"""Which variables and layers of a model are measured, and what their rows are called."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture import activations, layer_graph, layer_hooks
from tapescope.capture.activations import Activation
from tapescope.capture.layer_hooks import Call
from tapescope.failsafe import blaming
from tapescope.statistics import layers as layer_statistics


class Names(NamedTuple):
    """What the rows of a reading are: known once a measured step was traced, and the same ever after."""

    variables: tuple[str, ...]
    layers: tuple[str, ...]
    """In forward order."""
    activations: tuple[str, ...]
    """Of each layer."""
    units: tuple[Any, ...]
    """U of each layer: the size of its output's last axis."""
    layer_variables: tuple[tuple[int, ...], ...]
    """Indices of each layer's own trainable variables."""
    sources: tuple[tuple[int, ...], ...]
    """Indices of the layers that feed each one."""


class Selection:
    """The trainable variables, and the layers that a pattern picks, of one or several models.

    Both are looked up when a step is traced, not before: Keras layers may build lazily.
    """

    def __init__(self, model: Any, pattern: str | None):
        self.models: list[Any] = list(model) if isinstance(model, (list, tuple)) else [model]
        for m in self.models:
            if not (hasattr(m, "trainable_variables") or is_variable(m)):
                raise ValueError(
                    f"`model` ({type(m).__name__}) must be a Keras model, a tf.Module, a variable, or a list of these"
                )
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`layers` ({pattern!r}) is no regular expression: {error}") from None
        built = all(getattr(m, "built", True) for m in self.models)
        if built and not self.variables():
            raise ValueError("`model` has no trainable variable; build it first, or set `trainable = True` on a layer")
        if built and pattern is not None and not self.layers():
            paths = [path for path, _ in self._all_layers()]
            raise ValueError(
                f"`layers` ({pattern!r}) matches none of the layers: {', '.join(paths) or 'there are none'}"
            )

    def variables(self) -> list[Any]:
        """The V trainable variables, each once, in the models' order."""
        found: dict[int, Any] = {}
        for m in self.models:
            for variable in [m] if is_variable(m) else m.trainable_variables:
                found.setdefault(id(variable), variable)
        return list(found.values())

    def variable_names(self) -> tuple[str, ...]:
        """Their paths; equal ones are told apart by `#2`, `#3`, ..."""
        return numbered(getattr(v, "path", None) or v.name.removesuffix(":0") for v in self.variables())

    def layers(self) -> dict[int, tuple[str, Activation]]:
        """By the layer's id: its path and activation. Without a pattern, every layer that has an activation."""
        everything = self._all_layers()
        inner = {id(getattr(layer, "activation", None)) for _, layer in everything}
        chosen = {}
        for path, layer in everything:
            wanted = layer_hooks.has_activation(layer) if self._pattern is None else self._pattern.search(path)
            if wanted and id(layer) not in inner and id(layer) not in chosen:
                with blaming(path):
                    chosen[id(layer)] = path, activations.describe_layer(layer)
        return chosen

    def scopes(self) -> dict[int, list[frozenset[int]]]:
        """By the layer's id: the ids of its own trainable variables, then of those of each layer and model around."""
        models = self._keras_models()
        inside = dict(models) if len(models) > 1 else {}
        inside.update(self._all_layers())
        of = {path: frozenset(map(id, layer.trainable_variables)) for path, layer in inside.items()}
        return {id(layer): [of[p] for p in _outwards(path) if p in of] for path, layer in inside.items()}

    def names(self, calls: list[Call]) -> Names:
        """What the rows will be called, after these calls."""
        index = {id(v): i for i, v in enumerate(self.variables())}
        own = [getattr(c.layer, "trainable_variables", ()) for c in calls]
        return Names(
            variables=self.variable_names(),
            layers=numbered(c.name for c in calls),
            activations=tuple(c.activation.name for c in calls),
            units=tuple(layer_statistics.by_unit(c.a).shape[-1] for c in calls),
            layer_variables=tuple(tuple(index[id(v)] for v in vs if id(v) in index) for vs in own),
            sources=layer_graph.sources(calls),
        )

    def _all_layers(self) -> list[tuple[str, keras.layers.Layer]]:
        models = self._keras_models()
        found = []
        for name, m in models.items():
            found.extend(layer_hooks.named_layers(m, f"{name}/" if len(models) > 1 else ""))
        return found

    def _keras_models(self) -> dict[str, keras.layers.Layer]:
        found = [m for m in self.models if isinstance(m, keras.layers.Layer)]
        return dict(zip(numbered(m.name for m in found), found, strict=True))


def _outwards(path: str) -> Iterator[str]:
    """`"a/b/c"`, `"a/b"`, `"a"`."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """Equal names are told apart by `#2`, `#3`, ...: the calls of a shared layer, say."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(found)


def is_variable(model: Any) -> bool:
    """Whether it is a variable, of TensorFlow or Keras."""
    return isinstance(model, (tf.Variable, keras.Variable))
