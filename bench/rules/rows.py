"""What one line of the lists of set-ups holds, and the optimizers in it."""

from collections.abc import Callable
from functools import partial

import keras
from bench.rules.data import Data
from bench.rules.faults import Fault

Optimizer = Callable[[], keras.optimizers.Optimizer]


Row = tuple[str, Callable[[Data], keras.Model], Callable[[int], Data], Optimizer, Fault]
"""Family and name, network, data, optimizer, fault; without a name it has that of its fault."""


def optimizer(kind: str, **fixed) -> Callable[..., Optimizer]:
    """One of Keras', to be given its learning rate: a number or a schedule."""

    def at(rate) -> Optimizer:
        rate = float(rate) if isinstance(rate, int) else rate
        return partial(getattr(keras.optimizers, kind), rate, **fixed)

    return at


adam, sgd, adamw, rmsprop = map(optimizer, ("Adam", "SGD", "AdamW", "RMSprop"))
momentum = optimizer("SGD", momentum=0.9)
