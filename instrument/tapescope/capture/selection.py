"""The variables and layers of a model that are measured, and the names of their rows."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture import activations, attention, keras_kinds, layer_graph, layer_hooks
from tapescope.capture.activations import Activation
from tapescope.capture.attention import AttentionCall, StreamPoint, TransformerLayers
from tapescope.capture.layer_hooks import LayerCall
from tapescope.failsafe import attribute_errors_to


class Names(NamedTuple):
    """The rows of a reading, known once its step was traced. Another step may have others; see `merge_names`."""

    variables: tuple[str, ...]
    layers: tuple[str, ...]
    """In forward order."""
    activations: tuple[str, ...]
    """Activation of each layer."""
    units: tuple[Any, ...]
    """Number of units U of each layer: the size of its output's last axis."""
    layer_variables: tuple[tuple[int, ...], ...]
    """Indices of each layer's own trainable variables."""
    sources: tuple[tuple[int, ...], ...]
    """Indices of the layers that feed each layer."""
    heads: tuple[str, ...] = ()
    """Attention heads: `LAYER/head_0`, ..."""
    residual: tuple[str, ...] = ()
    """Layers at which the residual stream is measured, by depth."""


def merge_names(known: Names, names: Names) -> Names:
    """Return the rows of a run that had `known` and now has a step with `names`.

    Rows are matched by name and never change their place: new ones come last. A layer keeps the activation, units and
    sources of the step that it was first seen in, so that each source comes before its layer.
    """
    variables = tuple(dict.fromkeys(known.variables + names.variables))
    layers = tuple(dict.fromkeys(known.layers + names.layers))
    variable_index = {name: i for i, name in enumerate(variables)}
    layer_index = {name: i for i, name in enumerate(layers)}
    first = {name: i for i, name in enumerate(names.layers)}
    new = [first[name] for name in layers[len(known.layers) :]]
    owned = [dict.fromkeys(indices) for indices in known.layer_variables] + [{} for _ in new]
    for name, indices in zip(names.layers, names.layer_variables, strict=True):  # a layer may be trained from now on
        owned[layer_index[name]].update(dict.fromkeys(variable_index[names.variables[i]] for i in indices))
    return Names(
        variables=variables,
        layers=layers,
        activations=known.activations + tuple(names.activations[i] for i in new),
        units=known.units + tuple(names.units[i] for i in new),
        layer_variables=tuple(map(tuple, owned)),
        sources=known.sources
        + tuple(tuple(sorted(layer_index[names.layers[j]] for j in names.sources[i])) for i in new),
        heads=tuple(dict.fromkeys(known.heads + names.heads)),
        residual=tuple(dict.fromkeys(known.residual + names.residual)),
    )


def compile_pattern(pattern: Any) -> re.Pattern[str] | None:
    """Return the pattern of the argument `layers`, ready to search; raise ValueError if it is none."""
    if pattern is None:
        return None
    if not isinstance(pattern, str):
        raise ValueError(f'`layers` must be a regular expression, such as "dense|conv"; got {pattern!r}')
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`layers` must be a valid regular expression; got {pattern!r} ({error})") from None


class Selection:
    """The trainable variables of one or several models, and the layers that a pattern chooses.

    Both are looked up whenever a step is traced, because Keras layers may build lazily.
    """

    def __init__(self, model: Any, pattern: str | None):
        self.models: list[Any] = list(model) if isinstance(model, (list, tuple)) else [model]
        for m in self.models:
            if isinstance(m, type):
                raise ValueError(
                    f"`model` must be a model; got the class {m.__name__}: pass what {m.__name__}(...) returns"
                )
            if not (keras_kinds.is_layer(m) or hasattr(m, "trainable_variables") or is_variable(m)):
                raise ValueError(
                    "`model` must be a Keras model, a tf.Module, a variable, or a list of these; "
                    f"got {type(m).__name__}"
                )
        self.pattern = pattern
        self._pattern = compile_pattern(pattern)
        built = all(map(_is_built, self.models))
        if built and not self.variables():
            raise ValueError(
                "`model` must have a trainable variable; got none: call a tf.Module that makes its variables at the "
                "first call once before, or set `trainable = True` on a layer"
            )
        if built and pattern is not None and not self.layers():
            paths = ", ".join(path for path, _ in self._all_layers())
            raise ValueError(f"`layers` must match a layer's path; got {pattern!r}, the layers are: {paths or 'none'}")

    def variables(self) -> list[Any]:
        """Return the V trainable variables, each once, in the models' order; those of text are none."""
        found: dict[int, Any] = {}
        for m in self.models:
            for variable in [m] if is_variable(m) else _trainable_variables(m):
                if variable.dtype != tf.string:
                    found.setdefault(id(variable), variable)
        return list(found.values())

    def all_variables(self) -> list[Any]:
        """Return all variables of the models, each once: also those that are not trained, such as random state.

        Behind those of `listed_variables` are what layers keep out of Keras' lists: the states of a stateful RNN, and
        their own `tf.Variable`s.
        """
        found = {id(v): v for v in self.listed_variables()}
        owners = [*(m for m in self.models if not is_variable(m)), *(layer for _, layer in self._all_layers())]
        for owner in owners if self._are_built() else ():
            for variable in _held_variables(list(vars(owner).values()), _DEPTH):
                found.setdefault(id(variable), variable)
        return list(found.values())

    def listed_variables(self) -> list[Any]:
        """Return the variables that the models themselves list, each once; none before all models are built."""
        found: dict[int, Any] = {}
        for m in self.models if self._are_built() else ():
            for variable in [m] if is_variable(m) else [*m.trainable_variables, *getattr(m, "variables", ())]:
                found.setdefault(id(variable), variable)
        return list(found.values())

    def _are_built(self) -> bool:
        return all(getattr(m, "built", True) for m in self.models)

    def variable_names(self, variables: Iterable[Any] | None = None) -> tuple[str, ...]:
        """Return the paths of the V variables, or of those; equal ones are numbered: `#2`, `#3`, ..."""
        named = self.variables() if variables is None else variables
        return number_equal_names(variable_path(v).removesuffix(":0") for v in named)

    def layers(self) -> dict[int, tuple[str, Activation]]:
        """Return path and activation by layer id. Without a pattern, every layer that has an activation is chosen."""
        all_layers = self._all_layers()
        activation_ids = {id(getattr(layer, "activation", None)) for _, layer in all_layers}
        chosen = {}
        for path, layer in all_layers:
            if self._is_wanted(path, layer) and id(layer) not in activation_ids and id(layer) not in chosen:
                with attribute_errors_to(path):
                    chosen[id(layer)] = path, activations.describe_layer(layer)
        return chosen

    def layers_in_cells(self) -> list[str]:
        """Return the paths of chosen layers that a recurrent cell is made of; cells themselves are not among them."""
        found = []
        for path, rnn in self._all_layers():
            cell = rnn.cell if isinstance(rnn, keras_kinds.layers("RNN")) else None
            for inner, layer in () if cell is None else layer_hooks.named_layers(cell, f"{path}/{cell.name}/"):
                if self._is_wanted(inner, layer) and not hasattr(layer, "state_size"):
                    found.append(inner)
        return found

    def _is_wanted(self, path: str, layer: Any) -> bool:
        if self._pattern is None:
            return layer_hooks.has_activation(layer)
        return self._pattern.search(path) is not None

    def transformer_layers(self) -> TransformerLayers:
        """Return the attention layers, and those at which the residual stream is measured, by id with their paths."""
        found: tuple[dict[int, str], dict[int, str]] = {}, {}
        for path, layer in self._all_layers():
            for layers, kinds in zip(found, (attention.ATTENTION_LAYERS, attention.STREAM_LAYERS), strict=True):
                if isinstance(layer, kinds) and (self._pattern is None or self._pattern.search(path)):
                    layers.setdefault(id(layer), path)
        return TransformerLayers(*found) if found[0] else attention.NO_TRANSFORMER

    def einsum_equations(self) -> dict[int, str]:
        """Return the equation of each EinsumDense layer by the id of its kernel."""
        layers = [layer for _, layer in self._all_layers() if isinstance(layer, keras_kinds.layers("EinsumDense"))]
        return {id(layer.kernel): layer.equation for layer in layers if layer.built}

    def variable_scopes(self) -> dict[int, list[frozenset[int]]]:
        """Return sets of variable ids by layer id: the layer's own, then those of each layer and model around it."""
        models = self._models_by_name()
        by_path = dict(models) if len(models) > 1 else {}
        by_path.update(self._all_layers())
        variables = {path: frozenset(map(id, layer.trainable_variables)) for path, layer in by_path.items()}
        return {
            id(layer): [variables[p] for p in _enclosing_paths(path) if p in variables]
            for path, layer in by_path.items()
        }

    def names(
        self,
        calls: Sequence[LayerCall],
        variables: Sequence[Any],
        attention_calls: Sequence[AttentionCall] = (),
        stream: Sequence[StreamPoint] = (),
    ) -> Names:
        """Return the names of the rows of a step with these calls, which trains these variables."""
        attended = zip(number_equal_names(c.name for c in attention_calls), attention_calls, strict=True)
        index = {id(v): i for i, v in enumerate(variables)}
        own_variables = [getattr(c.layer, "trainable_variables", ()) for c in calls]
        return Names(
            variables=self.variable_names(variables),
            layers=number_equal_names(c.name for c in calls),
            activations=tuple(c.activation.name for c in calls),
            units=tuple(_number_of_units(c.a) for c in calls),
            layer_variables=tuple(tuple(index[id(v)] for v in vs if id(v) in index) for vs in own_variables),
            sources=layer_graph.find_sources(calls),
            heads=tuple(f"{path}/head_{n}" for path, call in attended for n in range(call.query.shape[2])),
            residual=number_equal_names(point.name for point in stream),
        )

    def _all_layers(self) -> list[tuple[str, Any]]:
        models = self._models_by_name()
        found = []
        for name, m in models.items():
            is_bare = not isinstance(m, keras_kinds.models())  # a layer without a model around it
            if is_bare:
                found.append((name, m))
            found.extend(layer_hooks.named_layers(m, f"{name}/" if is_bare or len(models) > 1 else ""))
        return found

    def keras_models(self) -> list[Any]:
        """Return those of the models that are Keras'."""
        return [m for m in self.models if keras_kinds.is_layer(m)]

    def _models_by_name(self) -> dict[str, Any]:
        """Return those models by name; equal ones are numbered."""
        found = self.keras_models()
        return dict(zip(number_equal_names(m.name for m in found), found, strict=True))


def _is_built(model: Any) -> bool:
    """Return whether a model has all of its variables: one may say so before its layers are built."""
    if not keras_kinds.is_layer(model):
        return True
    return model.built and all(layer.built for _, layer in layer_hooks.named_layers(model))


def _trainable_variables(model: Any) -> Sequence[Any]:
    """Return a model's trainable variables; of one of tf_keras that is not built, which raises an error, none."""
    return model.trainable_variables if getattr(model, "built", True) or not keras_kinds.is_legacy(model) else ()


def _number_of_units(output: tf.Tensor) -> int | None:
    """Return the size of the last axis; a scalar or a vector over the batch is one unit."""
    return output.shape[-1] if (output.shape.rank or 0) > 1 else 1


def _enclosing_paths(path: str) -> Iterator[str]:
    """Yield `"a/b/c"`, `"a/b"`, `"a"`."""
    while path:
        yield path
        path = path.rpartition("/")[0]


_DEPTH = 4
"""Lists and dicts within each other in which a layer's own variables are looked for."""


def _held_variables(value: Any, depth: int) -> Iterator[Any]:
    """Yield the variables in lists and dicts, each once or more; those of text are none."""
    if is_variable(value):
        if value.dtype != tf.string:
            yield value
    elif depth and isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _held_variables(part, depth - 1)


def variable_path(variable: Any) -> str:
    """Return the path of a variable of Keras; the name of one of TensorFlow."""
    return getattr(variable, "path", None) or variable.name


def number_equal_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names with `#2`, `#3`, ... added to those that come again, as the calls of a shared layer do."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(found)


_KERAS_VARIABLE = next(base for base in reversed(keras.Variable.__mro__) if hasattr(base, "assign"))
"""Class of all variables of Keras: in older versions `keras.Variable` is only that of a user's own."""


def is_variable(value: Any) -> bool:
    """Return whether it is a variable of TensorFlow or Keras."""
    return isinstance(value, tf.Variable) or is_keras_variable(value)


def is_keras_variable(value: Any) -> bool:
    """Return whether it is a variable of Keras, around one of TensorFlow."""
    return isinstance(value, _KERAS_VARIABLE)
