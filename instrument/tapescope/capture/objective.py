"""The objective of a step: its losses, targets and metrics, and the data that they are given.

Only what the program says is kept. Monitor says all of it; in a loop of one's own `Probe(loss=...)` and
`tape.reading(targets=...)` do.
"""

import difflib
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tapescope.capture import keras_kinds, private_api
from tapescope.capture.data_path import DataPath, Output, is_numeric, named_tensors
from tapescope.capture.loss_graph import (
    depends_on,
    is_mean_over_batch,
    is_of_all_pairs,
    is_sum_over_batch,
    repeated_activation,
    takes_for_probabilities,
)
from tapescope.failsafe import misuse_error

_LOSS_NAMES = {
    "BinaryCrossentropy": "binary_crossentropy",
    "BinaryFocalCrossentropy": "binary_focal_crossentropy",
    "CategoricalCrossentropy": "categorical_crossentropy",
    "CategoricalFocalCrossentropy": "categorical_focal_crossentropy",
    "CategoricalHinge": "categorical_hinge",
    "Hinge": "hinge",
    "Huber": "huber",
    "KLDivergence": "kl_divergence",
    "LogCosh": "log_cosh",
    "MeanAbsoluteError": "mean_absolute_error",
    "MeanAbsolutePercentageError": "mean_absolute_percentage_error",
    "MeanSquaredError": "mean_squared_error",
    "MeanSquaredLogarithmicError": "mean_squared_logarithmic_error",
    "Poisson": "poisson",
    "SparseCategoricalCrossentropy": "sparse_categorical_crossentropy",
    "SquaredHinge": "squared_hinge",
}
"""The losses that are known, by the class of Keras; each is a function of the other name as well."""
_SHORT_NAMES = ("mse", "mae", "mape", "msle", "bce", "kld")
_CLASSES = {getattr(keras.losses, cls): name for cls, name in _LOSS_NAMES.items() if hasattr(keras.losses, cls)}
_FUNCTIONS = {getattr(keras.losses, name): name for name in _LOSS_NAMES.values() if hasattr(keras.losses, name)}
_TENSORFLOW = {
    tf.nn.sigmoid_cross_entropy_with_logits: "binary_crossentropy",
    tf.nn.softmax_cross_entropy_with_logits: "categorical_crossentropy",
    tf.nn.sparse_softmax_cross_entropy_with_logits: "sparse_categorical_crossentropy",
}
_TAKES_LOGITS_BEHIND = {
    "binary_crossentropy": "Sigmoid",
    "categorical_crossentropy": "Softmax",
    "sparse_categorical_crossentropy": "Softmax",
}
"""Losses for which Keras replaces an output by the logits of its activation, and the operation that it looks for."""


class Loss(NamedTuple):
    """A loss function. Its name is "custom" where it is not one of Keras'."""

    name: str
    from_logits: bool = False
    ignores_class: bool = False
    """Whether one label means that the example is left out."""
    takes_logits_behind: bool = False
    """Whether Keras replaces an output by the logits behind its activation."""


class Objective(NamedTuple):
    """Statements of the program about one step."""

    loss: Any = None
    """A loss function, or a structure of them, one for each output."""
    targets: Any = None
    outputs: Any = None
    """What the loss was given; None for the outputs of the model."""
    metrics: Sequence[str] = ()
    sample_weights: Any = None
    loss_value: Any = None
    """Of this batch; of one replica its share in the global batch's."""
    differentiated: Any = None
    """Tensor that the step took the gradient of first; None where that is not one tensor."""
    output_names: Sequence[str] = ()
    learning_rate: float | None = None
    """At the begin of the training; None where it is not known."""
    batches_per_epoch: int | None = None
    """None where it is not known."""


class DataRow(NamedTuple):
    """A row of the data family, as it is in its details."""

    name: str
    kind: str
    """"input", "target" or "output"."""
    integer: bool
    followers: Sequence[str] = ()
    normalizers: Sequence[str] = ()
    weighted: bool = False
    """Whether elements may count with weight 0 that are in the statistics nevertheless."""


class DataTensors(NamedTuple):
    """The tensors of one step that are measured as data, and the facts about them."""

    rows: tuple[DataRow, ...]
    objectives: tuple[dict[str, Any], ...]
    """For each output that the loss is given: names of its rows, layer, activation, units, loss and metrics."""
    tensors: tuple[Any, ...]
    weights: tuple[Any, ...]
    """Of the examples of each tensor; None where all count."""
    repeated_activation: tuple[str, str] | None = None
    """Result of `loss_graph.repeated_activation`."""
    compares_all_pairs: bool = False
    """Result of `loss_graph.is_of_all_pairs` for any output."""
    is_mean_of_share: bool = False
    """Whether `loss_graph.is_mean_over_batch` of what the step differentiates."""
    taken_for_probabilities: tuple[str, ...] = ()
    """Names of the outputs for which `loss_graph.takes_for_probabilities`."""


def check_loss(loss: Any) -> None:
    """Raise ValueError unless it can be a loss function, or a structure of them."""
    for each in tf.nest.flatten(loss):
        if isinstance(each, (tf.Tensor, tf.Variable, int, float)) or not (
            each is None or isinstance(each, str) or callable(each)
        ):
            raise misuse_error(
                "`loss` must be the loss function: the name of one of Keras', a keras.losses.Loss, or a function; got "
                f"{type(each).__name__}. Pass the loss's value to `recorder.write(scalars={{'loss': loss}})`"
            )
        if isinstance(each, str):
            try:
                keras.losses.get(each)
            except ValueError:
                raise misuse_error(
                    f"`loss` must be the name of a loss of Keras, or the function itself; got {each!r}{suggest(each)}"
                ) from None


def suggest(name: str) -> str:
    """Return the question whether the nearest name of a loss was meant; nothing if none is near."""
    nearest = difflib.get_close_matches(name.lower(), [*_LOSS_NAMES.values(), *_SHORT_NAMES], 1)
    return f": did you mean {nearest[0]}?" if nearest else ""


def describe_loss(loss: Any) -> Loss:
    """Return what is known of a loss function."""
    options: Mapping[str, Any] = {}
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:  # Monitor's model may not use the loss that it was compiled with
            return Loss("custom")
    if isinstance(loss, functools.partial):
        options = loss.keywords
        loss = loss.func
    if isinstance(loss, keras_kinds.losses()):
        name = _CLASSES.get(type(loss)) or _LOSS_NAMES.get(keras_kinds.legacy_name(type(loss)))
        options = loss.get_config() if name else {}
    elif isinstance(loss, Hashable):
        if loss in _TENSORFLOW:
            return Loss(_TENSORFLOW[loss], from_logits=True)
        name = _FUNCTIONS.get(loss) or _FUNCTIONS.get(getattr(keras.losses, keras_kinds.legacy_name(loss), None))
    else:
        name = None
    if name is None:
        return Loss("custom")
    return Loss(
        name=name,
        from_logits=bool(options.get("from_logits", False)),
        ignores_class=options.get("ignore_class") is not None,
        takes_logits_behind=name in _TAKES_LOGITS_BEHIND,
    )


def collect(paths: Sequence[DataPath], objective: Objective) -> DataTensors:
    """Return what is measured as data in one step.

    Args:
      paths: of all tapes of the step.
      objective: what the program says. Without targets, inputs and outputs are measured alone.
    """
    made = [each for path in paths for each in path.outputs]
    ends = [output.tensor for output in made]
    inputs = [each for path in paths for each in path.inputs if not any(depends_on(each.tensor, e, ends) for e in ends)]
    outputs = made
    if objective.outputs is not None:
        outputs = [_find_output(made, *named) for named in named_tensors("output", objective.outputs)]
    targets = list(named_tensors("target", _in_order_of_outputs(objective.targets, objective.output_names)))
    weights = _weights_of_examples(objective.sample_weights)
    uncertain = objective.sample_weights is not None and weights is None
    loss_tensor = objective.differentiated if objective.loss_value is None else objective.loss_value

    rows = [DataRow(i.name, "input", _is_integer(i.tensor), tuple(i.followers), tuple(i.normalizers)) for i in inputs]
    rows += [DataRow(name, "target", _is_integer(t), weighted=uncertain) for name, t in targets]
    rows += [DataRow(o.name, "output", _is_integer(o.tensor)) for o in outputs]
    is_paired = len(targets) == len(outputs)
    losses = _losses_of_outputs(objective, len(outputs)) if is_paired else []
    compared = [(None, o.tensor) for o in outputs] or [(t, None) for _, t in targets]
    if outputs and is_paired:
        compared = [(t, o.tensor) for (_, t), o in zip(targets, outputs, strict=True)]
    return DataTensors(
        rows=tuple(rows),
        objectives=tuple(
            {
                **_describe_objective(output, target, loss, objective.metrics if len(outputs) == 1 else ()),
                "sums_examples": objective.sample_weights is None  # which may divide by the number of examples
                and (
                    getattr(loss, "reduction", None) == "sum"
                    or (len(outputs) == 1 and is_sum_over_batch(loss_tensor, output.tensor))
                ),
                "learning_rate": objective.learning_rate,
                "batches_per_epoch": objective.batches_per_epoch,
                "loss_measured": objective.loss_value is not None,
                "weighted": objective.sample_weights is not None,
            }
            for output, target, loss in zip(outputs, targets, losses, strict=False)
            if loss is not None
        ),
        tensors=(*(i.tensor for i in inputs), *(t for _, t in targets), *(o.tensor for o in outputs)),
        weights=(*(None for _ in inputs), *(weights for _ in targets), *(None for _ in outputs)),
        repeated_activation=repeated_activation(loss_tensor),
        compares_all_pairs=any(is_of_all_pairs(loss_tensor, target, output) for target, output in compared),
        is_mean_of_share=any(is_mean_over_batch(objective.differentiated, o.tensor) for o in outputs),
        taken_for_probabilities=tuple(o.name for o in outputs if takes_for_probabilities(loss_tensor, o.tensor)),
    )


def _find_output(made: Sequence[Output], name: str, tensor: Any) -> Output:
    """Return the output that a tensor is; what is not a model's own has an unknown activation."""
    return next((o for o in made if o.tensor is tensor), DataPath(()).describe_output(name, tensor))


def _in_order_of_outputs(targets: Any, names: Sequence[str]) -> Any:
    """Return targets that are a dict by output as a list."""
    if isinstance(targets, Mapping) and names and set(targets) == set(names):
        return [targets[name] for name in names]
    return targets


def _losses_of_outputs(objective: Objective, count: int) -> list[Any]:
    """Return the loss of each output, None for an output without one; an empty list where that is not clear."""
    loss = objective.loss
    if isinstance(loss, Mapping):
        names = objective.output_names or sorted(loss)
        loss = [loss.get(name) for name in names] if set(loss) <= set(names) else []
    if isinstance(loss, (list, tuple)):
        return list(loss) if len(loss) == count else []
    return [] if loss is None else [loss] * count


def _describe_objective(output: Output, target: tuple[str, Any], loss: Any, metrics: Sequence[str]) -> dict[str, Any]:
    described = describe_loss(loss)
    units = _last_axis(output.tensor)
    # Values [B] can't be compared with outputs [B, U]: the loss is given a part of these, as of the actions taken.
    is_of_part = described.name != "sparse_categorical_crossentropy" and target[1].shape.rank == 1 and units != 1
    return {
        "output": output.name,
        "target": target[0],
        "layer": output.layer,
        "activation": output.activation,
        "activation_before": output.activation_before,
        "units": units,
        "target_units": None if is_of_part else _last_axis(target[1]),
        "loss": described.name,
        "from_logits": described.from_logits,
        "ignores_class": described.ignores_class,
        "logits_taken": described.takes_logits_behind and _has_logits(output.tensor, described.name),
        "metrics": list(metrics),
    }


def _last_axis(tensor: Any) -> int | None:
    """Return the number of values that a tensor has for each example, along its last axis."""
    return tensor.shape[-1] if (tensor.shape.rank or 0) > 1 else 1


def _has_logits(tensor: Any, loss: str) -> bool:
    """Return whether Keras computes this loss from the logits behind an output, as `_get_logits` of its backend does.

    A cast, as that of a float16 output, hides them.
    """
    if tensor.dtype != tf.as_dtype(keras.config.floatx()):
        return False
    if private_api.has_keras_logits(tensor):
        return True
    return not hasattr(tensor, "numpy") and tensor.op.type == _TAKES_LOGITS_BEHIND[loss]


def _weights_of_examples(weights: Any) -> Any:
    """Return sample weights that are one for each example and the same for all targets; else None."""
    return weights if is_numeric(weights) and len(weights.shape) == 1 else None


def _is_integer(tensor: Any) -> bool:
    return bool(tensor.dtype.is_integer or tensor.dtype.is_bool)
