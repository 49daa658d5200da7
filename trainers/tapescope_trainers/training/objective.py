"""Losses and metrics: those of the presets are in `step`, those of a model of the user here."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tapescope.capture import keras_kinds
from tapescope.capture.objective import suggest
from tapescope_trainers import user_code
from tapescope_trainers.training.user_data import UserData

_TRIED = 2
"""Examples on which model and loss are tried before the training."""


class UserObjective(NamedTuple):
    """Loss and metrics of a model of the user."""

    loss: Any
    """A Keras loss, or a function of targets and outputs."""
    metrics: Sequence[keras.metrics.Metric]

    def mean(self, y: Any, outputs: Any) -> tf.Tensor:
        """Return the mean loss of some examples, float32 []."""
        if not _is_of_keras(self.loss):
            return tf.reduce_mean(tf.cast(self.loss(y, outputs), tf.float32))
        pairs = zip(tf.nest.flatten(y), tf.nest.flatten(outputs), strict=True)
        losses = [self.loss(_with_rank_of(output, target), output) for target, output in pairs]
        return tf.add_n([tf.reduce_mean(tf.cast(loss, tf.float32)) for loss in losses])


def _with_rank_of(output: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Return targets [N] as [N, 1] where the output is, as `fit` does; a loss could broadcast them to [N, N]."""
    return (
        tf.expand_dims(target, -1)
        if output.shape[-1:] == [1] and target.shape.rank == output.shape.rank - 1
        else target
    )


def _is_of_keras(loss: Any) -> bool:
    return isinstance(loss, keras.losses.Loss) or str(getattr(loss, "__module__", "")).startswith("keras.")


def build_model(reference: str, arguments: dict[str, Any], mixed_precision: str) -> keras.Model:
    """Return the model that a function of the user builds.

    Raises:
        ValueError: It fails, or returns something else.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if mixed_precision == "none" else f"mixed_{mixed_precision}")
    try:
        model = user_code.call("model", reference, **arguments)
    finally:
        keras.config.set_dtype_policy(policy)
    if not isinstance(model, keras.Model):
        got = type(model).__name__ + (" of tf_keras" if keras_kinds.is_legacy(model) else "")
        raise ValueError(f"--model={reference} must return a keras.Model of Keras 3; got {got}")
    return model


def make(model: keras.Model, loss: str | None, metrics: str | None, data: UserData) -> UserObjective:
    """Return the objective of a model, tried on two examples, which also builds a model that is not built yet.

    Args:
        model: Of the user.
        loss: Name of a Keras loss, or a reference to a loss; None for that with which the model was compiled.
        metrics: Names of Keras metrics or references, separated by commas.
        data: What it is trained on.

    Raises:
        ValueError: Model, loss and data do not fit each other, or there is no such loss or metric.
    """
    outputs = _try_model(model, data.x_train, "training")
    if not model.trainable_variables:
        raise ValueError("--model must return a model with trainable variables; it has none")
    found = _find_loss(model, loss)
    _try_loss(found, data.y_train, outputs)
    # Validation examples may have other shapes, such as longer sequences.
    outputs = _try_model(model, data.x_valid, "validation")
    _try_loss(found, data.y_valid, outputs)
    y = _first(data.y_valid)
    names = [name.strip() for name in (metrics or "").split(",") if name.strip()]
    made = [_find_metric(name, y, outputs) for name in names]
    for metric in made:
        try:
            metric.update_state(y, outputs)
        except Exception as error:
            raise ValueError(
                f"--metrics={metric.name} does not fit: the targets are {_describe(data.y_valid, outputs)}: "
                f"{user_code.describe(error)}"
            ) from error
        metric.reset_state()
    return UserObjective(found, made)


def _first(arrays: Any) -> Any:
    """Return the first examples of arrays as tensors."""
    return tf.nest.map_structure(lambda array: tf.constant(array[:_TRIED]), arrays)


def _try_model(model: keras.Model, x: Any, use: str) -> Any:
    """Return the outputs of the first examples."""
    try:
        return model(_first(x), training=False)
    except Exception as error:
        raise ValueError(
            f"--model does not fit --data, whose {use} examples are {_shapes(x)}: {user_code.describe(error)}"
        ) from error


def _try_loss(loss: Any, y: Any, outputs: Any) -> None:
    """Raise ValueError if a loss cannot be computed of the first examples."""
    if _is_of_keras(loss):
        if len(tf.nest.flatten(outputs)) != len(tf.nest.flatten(y)):
            raise ValueError(
                f"--loss must have a target for each output; the targets are {_describe(y, outputs)}: pass a function"
            )
        if any(output.shape.rank == 0 for output in tf.nest.flatten(outputs)):
            raise ValueError(
                f"--model must return an output for each example; the targets are {_describe(y, outputs)}: keep the "
                "first axis"
            )
        texts = [array for array in tf.nest.flatten(y) if array.dtype.kind in "US"]
        if texts:
            raise ValueError(
                f"--data has targets of text, such as {str(texts[0].flat[0])!r}, but a loss of Keras takes numbers: "
                "number the classes from 0, such as with numpy.unique(y, return_inverse=True)"
            )
        _check_labels(loss, y, outputs)
    try:
        UserObjective(loss, ()).mean(_first(y), outputs)
    except Exception as error:
        raise ValueError(
            f"--loss does not fit: the targets are {_describe(y, outputs)}: {user_code.describe(error)}"
        ) from error


def _describe(y: Any, outputs: Any) -> str:
    return f"{_shapes(y)}, and the model's outputs {_shapes(outputs)}"


def _shapes(structure: Any) -> str:
    leaves = tf.nest.flatten(structure)
    axes = [", ".join(["N", *map(str, leaf.shape[1:])]) if len(leaf.shape) else "" for leaf in leaves]
    return ", ".join(f"{tf.as_dtype(leaf.dtype).name} [{text}]" for leaf, text in zip(leaves, axes, strict=True))


def _find_loss(model: keras.Model, name: str | None) -> Any:
    if name is None:
        found = getattr(model, "loss", None)
        if found is None:
            raise ValueError("--loss is needed: name a Keras loss, such as --loss=mse, or return a compiled model")
        return _get_loss("compile", found) if isinstance(found, str) else found
    if user_code.is_reference(name):
        found = user_code.load("loss", name)
        found = found() if isinstance(found, type) else found
        if not callable(found):
            raise ValueError(f"--loss={name} must be a Keras loss or a function; got {type(found).__name__}")
        return found
    return _get_loss("--loss", name)


def _get_loss(where: str, name: str) -> Any:
    try:
        return keras.losses.get(name)
    except (ValueError, TypeError):
        raise ValueError(
            f"{where}={name} is not a loss of Keras: write its name, or {user_code.FORM}{suggest(name)}"
        ) from None


def _find_metric(name: str, y: Any, outputs: Any) -> keras.metrics.Metric:
    if user_code.is_reference(name):
        found = user_code.load("metrics", name)
    elif name in ("accuracy", "acc"):
        found = _accuracy(y, outputs)
    else:
        try:
            found = keras.metrics.get(name)
        except (ValueError, TypeError):
            raise ValueError(
                f"--metrics={name} is not a metric of Keras: write its name, or {user_code.FORM}"
            ) from None
    found = found() if isinstance(found, type) else found
    if isinstance(found, keras.metrics.Metric):
        return found
    if not callable(found):
        raise ValueError(f"--metrics={name} must be a Keras metric or a function; got {type(found).__name__}")
    return keras.metrics.MeanMetricWrapper(found, name=name.rpartition(":")[2])


def _accuracy(y: Any, outputs: Any) -> keras.metrics.Metric:
    """Return the accuracy that `compile` would choose."""
    if tf.nest.is_nested(outputs) or tf.nest.is_nested(y):
        raise ValueError("--metrics=accuracy needs a model with one output: use a metric of yours")
    if outputs.shape[-1] == 1:
        return keras.metrics.BinaryAccuracy("accuracy")
    if y.shape.rank == outputs.shape.rank and y.shape[-1] == outputs.shape[-1]:
        return keras.metrics.CategoricalAccuracy("accuracy")
    return keras.metrics.SparseCategoricalAccuracy("accuracy")


def _check_labels(loss: Any, y: Any, outputs: Any) -> None:
    """Raise ValueError if a class is not among the outputs: a GPU would compute NaN, and a CPU fail at some step."""
    name = str(getattr(loss, "name", None) or getattr(loss, "__name__", ""))
    if name != "sparse_categorical_crossentropy" or getattr(loss, "ignore_class", None) is not None:
        return
    for labels, output in zip(tf.nest.flatten(y), tf.nest.flatten(outputs), strict=True):
        if np.min(labels) < 0 or np.max(labels) >= output.shape[-1]:
            raise ValueError(
                f"--data has labels from {np.min(labels)} to {np.max(labels)}, but --model has {output.shape[-1]} "
                "outputs: a label must be from 0 to one less than their number"
            )


def make_evaluation(
    model: keras.Model, strategy: tf.distribute.Strategy, objective: UserObjective
) -> Callable[..., tuple[tf.Tensor, Any, Any]]:
    """Return a compiled `evaluate(x, y)` of a global batch.

    It returns the sum of the losses and the number of examples, float32 [2], and the targets and outputs of all
    replicas, for metrics that need all of them.
    """

    def in_replica(x, y):
        outputs = model(x, training=False)
        examples = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        total = tf.math.multiply_no_nan(objective.mean(y, outputs), examples)  # a replica may get no example
        return tf.stack([total, examples]), y, outputs

    @tf.function(reduce_retracing=True)
    def evaluate(x, y):
        sums, targets, outputs = strategy.run(in_replica, args=(x, y))
        total = strategy.reduce("SUM", sums, axis=None)
        if not objective.metrics:
            return total, (), ()
        gather = lambda value: strategy.gather(value, axis=0)  # noqa: E731
        return total, tf.nest.map_structure(gather, targets), tf.nest.map_structure(gather, outputs)

    return evaluate


def validation_metrics(evaluate: Callable[..., Any], batches: Iterable, objective: UserObjective) -> dict[str, float]:
    """Return the mean loss and the metrics over all of `batches`."""
    sums = np.zeros(2)
    for metric in objective.metrics:
        metric.reset_state()
    for x, y in batches:
        total, targets, outputs = evaluate(x, y)
        sums += total.numpy()
        for metric in objective.metrics:
            metric.update_state(targets, outputs)
    results = {f"validation/{metric.name}": float(metric.result()) for metric in objective.metrics}
    return {"validation/loss": float(sums[0] / sums[1]), **results}
