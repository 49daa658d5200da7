"""The faults: each says which rule should find it, in which layers, and what follows from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

Batch = tuple[np.ndarray, np.ndarray]
Hook = Callable[[int, keras.Model, Batch, np.random.Generator], Batch]
"""Called before a step: (step, model, batch, random numbers) -> batch."""


class Fault(NamedTuple):
    """One injected fault."""

    name: str
    rule: str | None = None
    """The rule to be found; None in a healthy set-up."""
    layers: tuple[str, ...] = ()
    """The layers to be found: any of these is right. Empty if the fault is not in a layer."""
    also: tuple[str, ...] = ()
    """Rules that follow from the fault and may be found as well."""
    begins: int = 0
    """The step at which the fault begins."""
    every: int = 4
    """A step is measured every so many steps; 1 where the exact step matters."""
    start: Callable[[keras.Model], None] | None = None
    """Changes the model before the first step."""
    hook: Hook | None = None
    clip: float | None = None
    """Global norm that gradients are clipped to."""
    rates: dict[str, float] = {}
    """Factors of single layers' learning rates."""
    odd_replica: Callable[[Any, Any], tuple[Any, Any]] | None = None
    """Changes the last replica's share of the batch."""


NONE = Fault("")
INPUT = "input"
"""Name of the model's input among the findings: a fault in the data is there, and shows in the first layer."""

# Rules that follow from a fault.
FLAT = ("loss_not_falling", "update_too_small")
NO_WAY_BACK = ("vanishing", "no_gradient", "dying_units", *FLAT)
WILD = ("exploding", "dead_units", "dying_units", "saturation", "non_finite", "gradient_spike", "loss_not_falling")
SCALE = ("poor_initialization", "vanishing", "exploding", "update_too_large", "update_too_small", "no_gradient")
AFTER_SIGMOID = ("dead_units", "dying_units", *FLAT)
"""A ReLU whose inputs are all above 0 and hardly differ has many units that are in fact dead."""


def hidden(first: int, last: int) -> tuple[str, ...]:
    """Return the names `hidden_<first>` to `hidden_<last>`."""
    return tuple(f"hidden_{n}" for n in range(first, last + 1))


def built_in(name: str, first: int, last: int, rule: str = "vanishing", also: tuple[str, ...] = AFTER_SIGMOID) -> Fault:
    """Describe a network whose architecture is the fault."""
    return Fault(name, rule, hidden(first, last), also)


def _assign(layer: str, attribute: str, change: Callable[[Any], Any]) -> Callable[[keras.Model], None]:
    def start(model: keras.Model) -> None:
        variable = getattr(model.get_layer(layer), attribute)
        variable.assign(change(tf.convert_to_tensor(variable)))

    return start


def weights_times(factor: float, layer: str, rule: str = "poor_initialization") -> Fault:
    """Scale the initial weights of a layer."""
    also = (*SCALE, "dead_units", *FLAT) if factor < 1 else (*SCALE, *WILD)
    start = _assign(layer, "kernel", lambda w: w * factor)
    return Fault(f"weights of {layer} times {factor:g}", rule, (layer,), also, start=start)


def all_weights_times(factor: float, depth: int) -> Fault:
    """Scale the initial weights of all hidden layers, each by a little."""

    def start(model: keras.Model) -> None:
        for name in hidden(1, depth):
            _assign(name, "kernel", lambda w: w * factor)(model)

    return Fault(
        f"{depth} layers, weights times {factor:g}", "exploding", hidden(1, depth), (*SCALE, *WILD), start=start
    )


def data_times(factor: float, rule: str | None = "poor_initialization", layer: str = "hidden_1") -> Fault:
    """Leave the data unscaled; with `rule` None, the network normalizes them and there is no fault."""
    also = () if rule is None else (*SCALE, *WILD, *FLAT, "unscaled_data")
    layers = () if rule is None else (INPUT, layer)

    def hook(n, model, batch, rng):
        return batch[0] * np.float32(factor), batch[1]

    return Fault(f"data times {factor:g}", rule, layers, also, hook=hook)


def dead_biases(layer: str, value: float = -20.0) -> Fault:
    """Start the biases of a ReLU layer far below 0."""
    start = _assign(layer, "bias", lambda b: tf.fill(b.shape, value))
    return Fault(f"biases of {layer} at {value:g}", "dead_units", (layer,), NO_WAY_BACK, start=start)


def negative_weights(layer: str) -> Fault:
    """Make all weights of a ReLU layer negative; its inputs are positive."""
    start = _assign(layer, "kernel", lambda w: -tf.abs(w))
    return Fault(f"negative weights in {layer}", "dead_units", (layer,), NO_WAY_BACK, start=start)


def biases_drop(layer: str, at: int, by: float = 20.0) -> Fault:
    """Lower the biases of a ReLU layer at one step, as one far too large update would."""

    def hook(n, model, batch, rng):
        if n == at:
            _assign(layer, "bias", lambda b: b - by)(model)
        return batch

    return Fault(f"biases of {layer} drop", "dead_units", (layer,), NO_WAY_BACK, begins=at, hook=hook)


def shut_biases(layer: str, value: float) -> Fault:
    """Start the biases of a layer with a bounded activation where the activation is flat."""
    start = _assign(layer, "bias", lambda b: tf.fill(b.shape, value))
    return Fault(f"biases of {layer} at {value:g}", "saturation", (layer,), (*SCALE, *AFTER_SIGMOID), start=start)


def too_fast(name: str) -> Fault:
    """Describe a learning rate that is too high; the optimizer of the set-up has it."""
    return Fault(name, "update_too_large", (), (*WILD, "vanishing", "no_gradient"))


def too_slow(name: str) -> Fault:
    """Describe a learning rate that is too low; the optimizer of the set-up has it."""
    return Fault(name, "update_too_small", (), FLAT)


def rate_times(factor: float, layer: str) -> Fault:
    """Scale the learning rate of one layer; 0 is a layer that the optimizer does not know."""
    if factor < 1:
        return Fault(f"{layer} at {factor:g} times the rate", "update_too_small", (layer,), rates={layer: factor})
    also = (*WILD, "vanishing", "no_gradient")
    return Fault(f"{layer} at {factor:g} times the rate", "update_too_large", (layer,), also, rates={layer: factor})


def not_applied(name: str, *layers: str) -> Fault:
    """Undo the optimizer's update of all layers; without layers, the optimizer of the set-up has a rate of 0."""
    return Fault(name, "update_not_applied", (), FLAT, rates=dict.fromkeys(layers, 0.0))


def replica_assigned(layer: str, at: int, change: Callable[[Any], Any]) -> Fault:
    """Change the kernel of a layer on the last replica alone, at one step."""

    def hook(n, model, batch, rng):
        if n == at:
            copy = model.get_layer(layer).kernel.value.values[-1]
            copy.assign(change(copy))
        return batch

    return Fault(f"{layer} changed on one replica", "replicas_diverged", (layer,), WILD, begins=at, hook=hook)


def clipped(norm: float) -> Fault:
    """Clip at a norm far below any that the gradient has."""
    return Fault(f"clipped at {norm:g}", "always_clipped", (), FLAT, clip=norm)


def stopped(layer: int) -> Fault:
    """Describe a network that stops the gradient after that layer."""
    return Fault(f"stopped gradient after hidden_{layer}", "no_gradient", hidden(1, layer), ("vanishing",))


def random_labels() -> Fault:
    """Shuffle the labels of every batch."""

    def hook(n, model, batch, rng):
        return batch[0], rng.permutation(batch[1])

    return Fault("labels at random", "loss_not_falling", hook=hook)


def inputs_alike() -> Fault:
    """Make all examples of a batch equal, so that they do not determine the labels."""

    def hook(n, model, batch, rng):
        x, y = batch
        return np.broadcast_to(x.mean(0, keepdims=True), x.shape).copy(), y

    return Fault("all inputs alike", "loss_not_falling", also=AFTER_SIGMOID, hook=hook)


def bad_batches(every: int, factor: float, targets: bool = False) -> Fault:
    """Scale the inputs, or the targets, of every so many batches."""

    def hook(n, model, batch, rng):
        if n == 0 or n % every:
            return batch
        x, y = batch
        return (x, y * np.float32(factor)) if targets else (x * np.float32(factor), y)

    return Fault(f"bad batches, times {factor:g}", "gradient_spike", (), WILD, begins=every, every=3, hook=hook)


def nan_input(at: int) -> Fault:
    """Put one NaN into one example."""

    def hook(n, model, batch, rng):
        if n == at:
            batch[0].flat[7] = np.nan
        return batch

    return Fault("a NaN in the data", "non_finite", (INPUT, "hidden_1"), begins=at, every=1, hook=hook)


class Poison:
    """A ReLU that divides by 0 from a step on, or whose gradient alone has the infinite slope of a root at 0."""

    def __init__(self, at: int, layer: str, backward: bool = False):
        self._backward = backward
        self._on = tf.Variable(0.0, trainable=False)
        self.__name__ = "poisoned"
        operation = "root of 0 behind" if backward else "division by 0 in"
        self.fault = Fault(f"{operation} {layer}", "non_finite", (layer,), begins=at, every=1, hook=self._hook)

    def __call__(self, z):
        if self._backward:  # 0 * inf
            return tf.nn.relu(z) + self._on * tf.sqrt(tf.square(z * (1 - self._on)))
        return tf.nn.relu(z) / (1 - self._on)

    def _hook(self, n, model, batch, rng):
        if n == self.fault.begins:
            self._on.assign(1.0)
        return batch


def zero_outputs() -> Fault:
    """Start the outputs at 0, which is good practice and not a fault."""
    return Fault("outputs start at 0", start=_assign("output", "kernel", tf.zeros_like))


def shuffled(x: np.ndarray, y: np.ndarray) -> Batch:
    """Give each example the label of another."""
    return x, np.random.permutation(y)


def odd_replica(name: str, change: Callable[[Any, Any], tuple[Any, Any]]) -> Fault:
    """Give one replica other data."""
    return Fault(f"one replica's {name}", "replica_outlier", odd_replica=change)
