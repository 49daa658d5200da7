"""The faults: each says which rule ought to find it, in which layers, and what follows from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

Batch = tuple[np.ndarray, np.ndarray]
Hook = Callable[[int, keras.Model, Batch, np.random.Generator], Batch]
"""(step, model, batch, random numbers) -> batch: what happens before a step."""


class Fault(NamedTuple):
    """One thing that is wrong, put there on purpose."""

    name: str
    rule: str | None = None
    """What is to be found; None: nothing."""
    layers: tuple[str, ...] = ()
    """Where: any of these is right. Empty where the fault is in no layer."""
    also: tuple[str, ...] = ()
    """What follows from it, and may be found as well."""
    begins: int = 0
    """The step at which it is put there."""
    every: int = 4
    """Every how many steps is measured: each one, where the very step matters."""
    start: Callable[[keras.Model], None] | None = None
    """Done to the model before the first step."""
    hook: Hook | None = None
    clip: float | None = None
    """Global norm that gradients are clipped to."""
    rates: dict[str, float] = {}
    """Factors of single layers' learning rates."""
    odd_replica: Callable[[Any, Any], tuple[Any, Any]] | None = None
    """What the last of four replicas does to its share of the batch."""


NONE = Fault("")

# What follows from what.
FLAT = ("loss_not_falling", "update_too_small")
NO_WAY_BACK = ("vanishing", "no_gradient", "dying_units", *FLAT)
WILD = ("exploding", "dead_units", "dying_units", "saturation", "non_finite", "gradient_spike", "loss_not_falling")
SCALE = ("poor_initialization", "vanishing", "exploding", "update_too_large", "update_too_small", "no_gradient")
AFTER_SIGMOID = ("dead_units", "dying_units", *FLAT)
"""ReLU fed by outputs that are all above 0 and hardly differ: many of its units are dead, truly."""


def hidden(first: int, last: int) -> tuple[str, ...]:
    """`hidden_<first>` to `hidden_<last>`."""
    return tuple(f"hidden_{n}" for n in range(first, last + 1))


def built_in(name: str, first: int, last: int, rule: str = "vanishing", also: tuple[str, ...] = AFTER_SIGMOID) -> Fault:
    """The network as it was built is the fault."""
    return Fault(name, rule, hidden(first, last), also)


def _of(layer: str, attribute: str, change: Callable[[Any], Any]) -> Callable[[keras.Model], None]:
    def start(model: keras.Model) -> None:
        variable = getattr(model.get_layer(layer), attribute)
        variable.assign(change(tf.convert_to_tensor(variable)))

    return start


def weights_times(factor: float, layer: str, rule: str = "poor_initialization") -> Fault:
    """The first weights of a layer out of scale."""
    also = (*SCALE, "dead_units", *FLAT) if factor < 1 else (*SCALE, *WILD)
    return Fault(
        f"weights of {layer} times {factor:g}", rule, (layer,), also, start=_of(layer, "kernel", lambda w: w * factor)
    )


def all_weights_times(factor: float, depth: int) -> Fault:
    """Those of all hidden layers, none of them by much."""

    def start(model: keras.Model) -> None:
        for name in hidden(1, depth):
            _of(name, "kernel", lambda w: w * factor)(model)

    return Fault(
        f"{depth} layers, weights times {factor:g}", "exploding", hidden(1, depth), (*SCALE, *WILD), start=start
    )


def data_times(factor: float, rule: str | None = "poor_initialization", layer: str = "hidden_1") -> Fault:
    """Data that nobody scaled; no fault where they are normalised after the first layer."""
    also = () if rule is None else (*SCALE, *WILD, *FLAT)
    layers = () if rule is None else (layer,)

    def hook(n, model, batch, rng):
        return batch[0] * np.float32(factor), batch[1]

    return Fault(f"data times {factor:g}", rule, layers, also, hook=hook)


def dead_biases(layer: str, value: float = -20.0) -> Fault:
    """The biases of a ReLU layer start far below 0."""
    start = _of(layer, "bias", lambda b: tf.fill(b.shape, value))
    return Fault(f"biases of {layer} at {value:g}", "dead_units", (layer,), NO_WAY_BACK, start=start)


def negative_weights(layer: str) -> Fault:
    """All weights of a ReLU layer below 0, where its inputs are above."""
    start = _of(layer, "kernel", lambda w: -tf.abs(w))
    return Fault(f"negative weights in {layer}", "dead_units", (layer,), NO_WAY_BACK, start=start)


def biases_drop(layer: str, at: int, by: float = 20.0) -> Fault:
    """At a step the biases of a ReLU layer fall, as after one wild update."""

    def hook(n, model, batch, rng):
        if n == at:
            _of(layer, "bias", lambda b: b - by)(model)
        return batch

    return Fault(f"biases of {layer} drop", "dead_units", (layer,), NO_WAY_BACK, begins=at, hook=hook)


def shut_biases(layer: str, value: float) -> Fault:
    """The biases of a bounded layer start where it is flat."""
    start = _of(layer, "bias", lambda b: tf.fill(b.shape, value))
    return Fault(f"biases of {layer} at {value:g}", "saturation", (layer,), (*SCALE, *AFTER_SIGMOID), start=start)


def too_fast(name: str) -> Fault:
    """The learning rate of all layers."""
    return Fault(name, "update_too_large", (), (*WILD, "vanishing", "no_gradient"))


def too_slow(name: str) -> Fault:
    """The learning rate of all layers."""
    return Fault(name, "update_too_small", (), FLAT)


def rate_times(factor: float, layer: str) -> Fault:
    """The learning rate of one layer; at 0 the optimizer forgot it."""
    if factor < 1:
        return Fault(f"{layer} at {factor:g} times the rate", "update_too_small", (layer,), rates={layer: factor})
    also = (*WILD, "vanishing", "no_gradient")
    return Fault(f"{layer} at {factor:g} times the rate", "update_too_large", (layer,), also, rates={layer: factor})


def clipped(norm: float) -> Fault:
    """A threshold far below what the gradient's norm ever is."""
    return Fault(f"clipped at {norm:g}", "always_clipped", (), FLAT, clip=norm)


def stopped(layer: int) -> Fault:
    """Goes with a network that stops the gradient after that layer."""
    return Fault(f"stopped gradient after hidden_{layer}", "no_gradient", hidden(1, layer), ("vanishing",))


def random_labels() -> Fault:
    """Labels drawn anew for every batch."""

    def hook(n, model, batch, rng):
        return batch[0], rng.permutation(batch[1])

    return Fault("labels at random", "loss_not_falling", hook=hook)


def inputs_alike() -> Fault:
    """All examples of a batch are the same: the labels cannot be told from them."""

    def hook(n, model, batch, rng):
        x, y = batch
        return np.broadcast_to(x.mean(0, keepdims=True), x.shape).copy(), y

    return Fault("all inputs alike", "loss_not_falling", also=AFTER_SIGMOID, hook=hook)


def bad_batches(every: int, factor: float, targets: bool = False) -> Fault:
    """Now and then a batch whose inputs, or targets, are out of scale."""

    def hook(n, model, batch, rng):
        if n == 0 or n % every:
            return batch
        x, y = batch
        return (x, y * np.float32(factor)) if targets else (x * np.float32(factor), y)

    return Fault(f"bad batches, times {factor:g}", "gradient_spike", (), WILD, begins=every, every=3, hook=hook)


def nan_input(at: int) -> Fault:
    """One NaN in one example."""

    def hook(n, model, batch, rng):
        if n == at:
            batch[0].flat[7] = np.nan
        return batch

    return Fault("a NaN in the data", "non_finite", ("hidden_1",), begins=at, every=1, hook=hook)


class Poison:
    """A ReLU that works until a step from which on it divides by 0 or, on the way back only, is the root of 0."""

    def __init__(self, at: int, layer: str, backward: bool = False):
        self._backward = backward
        self._on = tf.Variable(0.0, trainable=False)
        self.__name__ = "poisoned"
        name = "root of 0 behind" if backward else "division by 0 in"
        self.fault = Fault(f"{name} {layer}", "non_finite", (layer,), begins=at, every=1, hook=self._hook)

    def __call__(self, z):
        if self._backward:  # 0 * inf
            return tf.nn.relu(z) + self._on * tf.sqrt(tf.square(z * (1 - self._on)))
        return tf.nn.relu(z) / (1 - self._on)

    def _hook(self, n, model, batch, rng):
        if n == self.fault.begins:
            self._on.assign(1.0)
        return batch


def zero_outputs() -> Fault:
    """No fault: outputs that start at 0 are good practice."""
    return Fault("outputs start at 0", start=_of("output", "kernel", tf.zeros_like))


def shuffled(x: np.ndarray, y: np.ndarray) -> Batch:
    """Labels of other examples."""
    return x, np.random.permutation(y)


def odd_replica(name: str, change: Callable[[Any, Any], tuple[Any, Any]]) -> Fault:
    """One replica is fed something else."""
    return Fault(f"one replica's {name}", "replica_outlier", odd_replica=change)
