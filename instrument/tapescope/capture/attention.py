"""Attention heads and the residual stream of a transformer, as one tape sees them.

Keras' attention layers hand query, key and mask to a method of their own, and may leave the logits to a fused kernel.
So that method is observed while the layer runs: it is called as often as before, with the same arguments. The logits
are computed from them later, beside the step, by `tapescope.statistics.attention`.

The residual stream is read where a transformer itself reads it: at the output of its embeddings and at the input of its
layer normalizations. With normalization before each block that is the stream; with normalization behind, the sum.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from absl import logging

from tapescope.capture import private_api
from tapescope.capture.shared_patch import shared_patch

ATTENTION_LAYERS = private_api.attention_classes()
"""Keras' attention layers with several heads."""
_MASKING_LAYERS = (keras.layers.Embedding, keras.layers.Masking)
_NORMALIZATIONS = tuple(
    getattr(keras.layers, name) for name in ("LayerNormalization", "RMSNormalization") if hasattr(keras.layers, name)
)
STREAM_LAYERS = (keras.layers.Embedding, *_NORMALIZATIONS)
"""Layers that the residual stream begins at, or that read it."""


class AttentionCall(NamedTuple):
    """One call of an attention layer with N heads, T queries of S keys, D features of a head."""

    name: str
    """Path of the layer, the same for all of its calls."""
    layer: Any
    number: int
    """Position in the order of calls."""
    query: Any
    """[B, T, N, D]"""
    key: Any
    """[B, S, N, D], or of fewer heads that divide N."""
    mask: Any
    """Nonzero where a query may look at a key, broadcastable to [B, N, T, S]; None where all may look everywhere."""
    is_causal: bool
    """Whether a query may not look at later keys, besides what `mask` says."""
    keys_in_use: tuple[Any, ...]
    """Masks [B, S] that are false where a key is padding; empty where none says it."""
    is_self: bool
    """Whether the queries are of the same tokens as the keys, T = S."""
    scale: float
    """Factor of the logits."""

    def tensors(self) -> list[Any]:
        """Return the tensors of the step in this call."""
        return [self.query, self.key, self.mask, *self.keys_in_use]

    def replace_tensors(self, query: Any, key: Any, mask: Any, *keys_in_use: Any) -> "AttentionCall":
        """Return the call with other tensors, in the order of `tensors`."""
        return self._replace(query=query, key=key, mask=mask, keys_in_use=keys_in_use)


class StreamPoint(NamedTuple):
    """The residual stream at one call of a layer."""

    name: str
    layer: Any
    number: int
    tensor: Any


class TransformerLayers(NamedTuple):
    """The layers to look at in a step, by id with their paths; both are empty without attention layers."""

    attention: Mapping[int, str]
    stream: Mapping[int, str]


NO_TRANSFORMER = TransformerLayers({}, {})

_numbers = itertools.count()


class AttentionCapture:
    """The attention heads and the residual stream that one tape has seen.

    Args:
      layers: to look at.
      graph: of the step; None in eager mode.
    """

    def __init__(self, layers: TransformerLayers, graph: Any):
        self._layers = layers
        self._graph = graph
        self.calls: list[AttentionCall] = []
        self.stream: list[StreamPoint] = []
        self._masks: list[Any] = []
        """Masks that embeddings and masking layers have made in this step, each once."""

    def observes(self, layer: Any) -> bool:
        """Return whether the layer's attention is looked at."""
        return id(layer) in self._layers.attention

    def end_call(
        self,
        layer: Any,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        output: Any,
        observed: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep what is to be measured of one call of a layer.

        Args:
          layer: any layer of the step.
          arguments: of its call, by position.
          options: of its call, by name.
          output: of its call.
          observed: the arguments of its attention, see `observe`.
        """
        if not self._layers.attention:
            return
        path = self._layers.stream.get(id(layer))
        if path is not None:
            embeds = isinstance(layer, keras.layers.Embedding)
            tensor: Any = output if embeds else next(iter(arguments), None)
            if self._is_measurable(tensor) and tensor.dtype.is_floating:
                self.stream.append(StreamPoint(path, layer, next(_numbers), tensor))
        if isinstance(layer, _MASKING_LAYERS):
            mask = private_api.keras_mask(output)
            if self._is_measurable(mask) and all(mask is not m for m in self._masks):
                self._masks.append(mask)
        if self.observes(layer):
            given = {**dict(zip(("query", "value", "key"), arguments, strict=False)), **options}
            tokens = [given[name] for name in ("query", "value", "key") if given.get(name) is not None]
            self._add(layer, observed, is_self=all(each is tokens[0] for each in tokens))

    def _add(self, layer: Any, observed: Sequence[Mapping[str, Any]], is_self: bool) -> None:
        path = self._layers.attention[id(layer)]
        reason = private_api.why_not_observed(layer)
        if reason is None and not any("query" in arguments for arguments in observed):
            reason = "its `call` does not come to the attention of Keras' layer"
        masks: Sequence[Any] = ()
        for arguments in observed:
            if "query" not in arguments:
                masks = [mask for mask in arguments["masks_of_keys"] if mask is not None]
            elif (reason := self._why_not_measurable(layer, arguments)) is None:
                query, key = arguments["query"], arguments["key"]
                self.calls.append(
                    AttentionCall(
                        name=path,
                        layer=layer,
                        number=next(_numbers),
                        query=query,
                        key=key,
                        mask=arguments["mask"],
                        is_causal=arguments["is_causal"],
                        keys_in_use=self._keys_in_use(key, masks),
                        is_self=is_self and query.shape[1] == key.shape[1],
                        scale=private_api.attention_scale(layer, query.shape[-1]),
                    )
                )
        if reason is not None:
            _warn(path, reason)

    def _why_not_measurable(self, layer: Any, arguments: Mapping[str, Any]) -> str | None:
        query, key, mask = (arguments[name] for name in ("query", "key", "mask"))
        if not (self._is_measurable(query) and self._is_measurable(key)):
            return "it runs inside a graph of its own, or its query and key are not tensors"
        if (
            query.shape.rank != 4
            or key.shape.rank != 4
            or tuple(getattr(layer, "attention_axes", None) or (1,)) != (1,)
        ):
            return f"its queries have more than one axis besides batch, heads and features: shape {query.shape}"
        heads, key_heads = query.shape[2], key.shape[2]
        if None in (heads, key_heads, query.shape[3]) or heads % key_heads:
            return f"the number of its heads is not known: query of shape {query.shape}, key of shape {key.shape}"
        if mask is not None and not (self._is_readable(mask) and 2 <= (mask.shape.rank or 0) <= 4):
            return "its attention mask has no known rank"
        return None

    def _is_measurable(self, tensor: Any) -> bool:
        if not isinstance(tensor, tf.Tensor):
            return False
        return (None if hasattr(tensor, "numpy") else tensor.graph) is self._graph

    def _is_readable(self, mask: Any) -> bool:
        """Return whether a mask is the step's own, or a constant from outside of its graph."""
        return self._is_measurable(mask) or (isinstance(mask, tf.Tensor) and hasattr(mask, "numpy"))

    def _keys_in_use(self, key: tf.Tensor, masks: Sequence[Any]) -> tuple[Any, ...]:
        """Return the masks that say which keys are padding: the layer's, or else the only one of the step that fits.

        A mask is often lost on the way: an operation that is not a layer, such as `x + positions`, does not pass it on.
        """
        keys = key.shape[1]
        if not masks and keys is not None:
            made = [mask for mask in self._masks if mask.shape.rank == 2 and mask.shape[1] == keys]
            masks = made if len(made) == 1 else ()
        return tuple(masks) if all(self._is_readable(mask) and mask.shape.rank == 2 for mask in masks) else ()


@functools.cache
def _warn(path: str, reason: str) -> None:
    logging.warning("tapescope: the heads of %s are not measured: %s", path, reason)


class _Thread(threading.local):
    def __init__(self) -> None:
        self.observed: list[list[Mapping[str, Any]]] = []
        """Arguments of the attention of each observed layer that is running now, the innermost last."""


_thread = _Thread()


class _ObservedMethod:
    """A method of one layer that notes the arguments of its calls in this thread."""

    def __init__(self, name: str, method: Any):
        self._name = name
        self._method = method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _thread.observed:
            arguments = private_api.attention_arguments(self._name, self._method, args, kwargs)
            if arguments is not None:
                _thread.observed[-1].append(arguments)
        return self._method(*args, **kwargs)


@contextlib.contextmanager
def observe(layer: keras.layers.Layer) -> Iterator[list[Mapping[str, Any]]]:
    """Observe the attention of a layer for the time of one call; yields a list that its arguments are added to."""
    observed: list[Mapping[str, Any]] = []
    with contextlib.ExitStack() as patches:
        for name in () if private_api.why_not_observed(layer) else private_api.ATTENTION_METHODS:
            # A function that the user has put there stays.
            if hasattr(layer, name) and type(vars(layer).get(name)) in (type(None), _ObservedMethod):
                patches.enter_context(shared_patch(layer, name, functools.partial(_ObservedMethod, name)))
        _thread.observed.append(observed)
        try:
            yield observed
        finally:
            _thread.observed.pop()
