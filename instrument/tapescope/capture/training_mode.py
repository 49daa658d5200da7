"""The argument `training` of the layers that act otherwise in training.

Keras tells a layer by the argument `training` of its call, or of a call around it. `fit` passes it to the model. In a
loop of one's own it is easily left out: then dropout drops nothing, batch normalization goes on with its first
statistics, and no error is raised.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tapescope.capture import keras_kinds


class InferenceLayer(NamedTuple):
    """A layer that ran as in inference without anyone having asked for that."""

    name: str
    kind: str
    """Name of its class."""


class Dropout(NamedTuple):
    """A layer that drops a share of its input in training, in the first measured step."""

    name: str
    rate: float
    """Share that is dropped."""
    units: int
    """Size of the last axis of its input."""


class LayerModes(NamedTuple):
    """The layers of a step that act otherwise in training."""

    inference_layers: tuple[InferenceLayer, ...] = ()
    """Those that ran as in inference unasked; none if another one ran as in training."""
    dropouts: tuple[Dropout, ...] = ()
    """Those that drop units."""


class _Call(NamedTuple):
    training: Any
    """The value that Keras takes for `training`: that of the call, else of the one around it, else the default."""
    is_meant: bool
    """Whether the program itself says it, in this call or one around it."""


class TrainingMode:
    """The values of `training` in the calls of layers that one tape has seen."""

    def __init__(self) -> None:
        self.trained = False
        """Whether any layer that acts otherwise in training ran so."""
        self.untold: dict[int, InferenceLayer] = {}
        """Those that did not, by the ids of the layers."""
        self.dropouts: dict[int, Dropout] = {}
        """The layers that drop units, by their ids."""
        self._running: list[_Call] = []
        """The calls that have begun, the innermost last."""

    def begin_call(self, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note what a layer is told."""
        given, default = _training_argument(layer, args, kwargs)
        training, is_meant = given, given is not None
        if self._running:
            outer = self._running[-1]
            training = outer.training if given is None else given
            # A functional model passes the defaults of its layers, and a call what it was given itself.
            is_meant = outer.is_meant or (is_meant and given is not outer.training and given is not default)
        training = default if training is None else training
        self._running.append(_Call(training, is_meant))
        if _differs_in_training(layer):
            if training is not None and training is not False:  # a tensor may be either
                self.trained = True
                self._note_dropout(layer, args)
            elif not is_meant:
                self.untold[id(layer)] = InferenceLayer(layer.name, type(layer).__name__)

    def _note_dropout(self, layer: Any, args: Sequence[Any]) -> None:
        units = args[0].shape[-1] if args and getattr(args[0], "shape", ()) else None
        if units is not None and isinstance(layer, keras_kinds.layers(*keras_kinds.DROPOUTS)):
            self.dropouts[id(layer)] = Dropout(layer.name, float(layer.rate), int(units))

    def end_call(self) -> None:
        """Note the end of the innermost call, also of one that raises."""
        if self._running:  # it is not, where measuring failed before the call began
            self._running.pop()


def layer_modes(seen: Sequence[TrainingMode]) -> LayerModes:
    """Return what the tapes of one step have seen."""
    untold = {key: layer for mode in seen for key, layer in mode.untold.items()}
    dropping = {key: layer for mode in seen for key, layer in mode.dropouts.items()}
    is_told = any(mode.trained for mode in seen)
    return LayerModes(() if is_told else tuple(untold.values()), tuple(dropping.values()))


def _differs_in_training(layer: Any) -> bool:
    if isinstance(layer, keras_kinds.layers("BatchNormalization")):
        return bool(layer.trainable)  # a frozen one runs as in inference always
    if isinstance(layer, keras_kinds.layers(*keras_kinds.DROPOUTS)):
        return bool(layer.rate)
    return isinstance(layer, keras_kinds.layers("GaussianNoise")) and bool(layer.stddev)


def _training_argument(layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return `training` as a call passes it, and its default."""
    given = kwargs.get("training")
    try:
        signature = inspect.signature(layer.call)
        parameter = signature.parameters.get("training")
        if parameter is None:
            return given, None
        if len(args) > 1 and given is None:
            given = signature.bind_partial(*args).arguments.get("training")
    except (AttributeError, TypeError, ValueError):  # Keras says what is wrong with the call
        return given, None
    return given, None if parameter.default is parameter.empty else parameter.default
