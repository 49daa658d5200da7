"""The way of the data through a model: what its inputs meet first, and which layer makes each output.

Both are seen from the calls of the layers in a measured step, so models of every kind are covered. A tensor is followed
through layers that keep its values (`Flatten`, `Dropout`, pooling) up to the first layer that is trained. Any other
operation on it, such as a division, ends the way: then nothing is known of the input's scale at that layer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tapescope.capture import activations, keras_kinds, private_api

_NORMALIZING = (
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "Normalization",
    "RMSNormalization",
    "Rescaling",
    "UnitNormalization",
)
_KEEPING = (
    *("ActivityRegularization", "Flatten", "Identity", "InputLayer", "Masking", "Permute", "RepeatVector", "Reshape"),
    *(*keras_kinds.DROPOUTS, "GaussianNoise", "CenterCrop", "Resizing", "Concatenate"),
    *(f"{kind}{n}D" for kind in ("Cropping", "ZeroPadding", "UpSampling") for n in (1, 2, 3)),
    *(f"{kind}Pooling{n}D" for kind in ("Average", "Max", "GlobalAverage", "GlobalMax") for n in (1, 2, 3)),
    *(f"Random{kind}" for kind in ("Crop", "Flip", "Rotation", "Translation", "Zoom")),
)
_VIEWS = {"Cast", "ExpandDims", "Identity", "Reshape", "Snapshot", "Squeeze"}
_ACTIVATION_OPS = {"Elu": "elu", "Relu": "relu", "Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh"}

RAW = 0
"""Stage of a tensor that is still the data."""
WEIGHTED = 1
"""Stage of a tensor that is the data behind the first trained layer, before anything else than an activation."""


class Input(NamedTuple):
    """One input of a model."""

    name: str
    tensor: Any
    followers: list[str]
    """What the input meets first: "trained", "embedding", or "other" for what is not known to keep its scale."""
    normalizers: list[str]
    """Classes of the normalizations before the first trained layer, or behind it."""


class Output(NamedTuple):
    """One output of a model."""

    name: str
    tensor: Any
    layer: str
    """Name of the layer that makes it; empty where none was seen."""
    activation: str
    """"unknown" where none was seen."""
    activation_before: str
    """Activation of the layer before, where an activation layer makes the output."""


class DataPath:
    """The inputs and outputs of the models that one tape has seen, each model at its first call."""

    def __init__(self, models: Sequence[Any]):
        self.inputs: list[Input] = []
        self.outputs: list[Output] = []
        self._names = {id(m): f"{m.name}/" if len(models) > 1 else "" for m in models}
        self._running: list[tuple[int, str]] = []
        """Ids and names of the models whose first call has begun, the innermost last."""
        self._stages: dict[int, dict[int, int]] = {}
        """Stage by the index of the input, by the id of each tensor that holds its data."""
        self._makers: dict[int, tuple[Any, Any]] = {}
        """Layer and its input by the id of the layer's output."""
        self._kept: list[Any] = []
        """Tensors whose ids are keys above."""

    def begin_call(self, layer: Any, arguments: Sequence[Any]) -> None:
        """Take the inputs of one of the models at its first call."""
        name = self._names.pop(id(layer), None)
        if name is None:
            return
        self._running.append((id(layer), name))
        for path, tensor in named_tensors(f"{name}input", arguments[0] if arguments else None):
            self._put(tensor, {len(self.inputs): RAW})
            self.inputs.append(Input(path, tensor, [], []))

    def end_call(self, layer: Any, arguments: Sequence[Any], output: Any) -> None:
        """Follow the inputs through a layer, and take the outputs of a model."""
        if not self._running:
            return
        if id(layer) == self._running[-1][0]:
            _, name = self._running.pop()
            self.outputs.extend(self.describe_output(*named) for named in named_tensors(f"{name}output", output))
            if not self._running:
                self._stages.clear()
                self._makers.clear()
                self._kept.clear()
            return
        if private_api.sublayers(layer) and not isinstance(layer, keras_kinds.layers("RNN")):
            return
        results = _tensors(output)
        for tensor in _tensors(arguments):
            for index, stage in self._stages_of(tensor).items():
                self._pass_layer(layer, index, stage, results)
        first = next(iter(_tensors(arguments)), None)
        for result in results:
            if result is not first:
                self._kept.append(result)
                self._makers[id(result)] = layer, first

    def _pass_layer(self, layer: Any, index: int, stage: int, results: Sequence[Any]) -> None:
        """Note what an input meets in one layer, and let its outputs hold the data where they do."""
        found = self.inputs[index]
        if isinstance(layer, keras_kinds.layers(*_NORMALIZING)):
            found.normalizers.append(type(layer).__name__)
        elif _keeps_values(layer) or (stage == WEIGHTED and activations.is_activation(layer)):
            for result in results:
                self._put(result, {**self._stages.get(id(result), {}), index: stage})
        elif stage == RAW:
            embeds = isinstance(layer, keras_kinds.layers("Embedding"))
            trained = bool(layer.trainable_variables)
            found.followers.append("embedding" if embeds else "trained" if trained else "other")
            for result in results if trained else ():
                self._put(result, {**self._stages.get(id(result), {}), index: WEIGHTED})

    def _put(self, tensor: Any, stages: dict[int, int]) -> None:
        self._kept.append(tensor)
        self._stages[id(tensor)] = stages

    def _stages_of(self, tensor: Any) -> dict[int, int]:
        for view in _views(tensor):
            if id(view) in self._stages:
                return self._stages[id(view)]
        return {}

    def describe_output(self, name: str, tensor: Any) -> Output:
        """Return an output with the layer that made it, as far as that was seen."""
        layer, source = self._maker(tensor)
        operation = next((_ACTIVATION_OPS[v.op.type] for v in _views(tensor) if _op(v) in _ACTIVATION_OPS), "unknown")
        if layer is None:
            return Output(name, tensor, "", operation, "unknown")
        kind = activations.describe_layer(layer).name
        has_one = activations.is_activation(layer) or hasattr(layer, "activation")
        before = self._maker(source)[0] if activations.is_activation(layer) and source is not None else None
        return Output(
            name=name,
            tensor=tensor,
            layer=layer.name,
            activation=kind if has_one and kind != "recurrent" else operation,
            activation_before="unknown" if before is None else activations.describe_layer(before).name,
        )

    def _maker(self, tensor: Any) -> tuple[Any, Any]:
        """Return the layer that computes a tensor's values, and its input; Nones where none was seen."""
        layer = None
        source = None
        while tensor is not None:
            layer, source = next((self._makers[id(v)] for v in _views(tensor) if id(v) in self._makers), (None, None))
            if not _keeps_values(layer):
                break
            tensor = source
        return layer, source


def _keeps_values(layer: Any) -> bool:
    return isinstance(layer, keras_kinds.layers(*_KEEPING))


def named_tensors(name: str, structure: Any) -> Iterator[tuple[str, tf.Tensor]]:
    """Yield the numeric tensors of a structure with their names: `name`, or `name/0`, `name/key` in a list or dict."""
    if isinstance(structure, Mapping):
        for key in sorted(structure, key=str):
            yield from named_tensors(f"{name}/{key}", structure[key])
    elif isinstance(structure, (list, tuple)):
        for i, part in enumerate(structure):
            yield from named_tensors(f"{name}/{i}" if len(structure) > 1 else name, part)
    elif is_numeric(structure):
        yield name, tf.convert_to_tensor(structure)


def is_numeric(value: Any) -> bool:
    """Return whether it is a dense tensor, or an array, of real numbers with an axis for the batch."""
    if not isinstance(value, tf.Tensor) and not hasattr(value, "__array__"):
        return False
    try:
        kind = tf.as_dtype(value.dtype)
    except TypeError:
        return False
    rank = getattr(value.shape, "rank", len(value.shape) if isinstance(value.shape, tuple) else None)
    return bool(rank) and (kind.is_floating or kind.is_integer or kind.is_bool)


def _tensors(structure: Any) -> list[tf.Tensor]:
    return [t for t in tf.nest.flatten(structure) if isinstance(t, tf.Tensor)]


def _op(tensor: Any) -> str:
    return "" if hasattr(tensor, "numpy") or not isinstance(tensor, tf.Tensor) else tensor.op.type


def _views(tensor: Any) -> Iterator[Any]:
    """Yield a tensor, and the tensors of which it is a cast, a copy or another shape."""
    while tensor is not None:
        yield tensor
        tensor = tensor.op.inputs[0] if _op(tensor) in _VIEWS else None
