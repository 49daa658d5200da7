"""A set-up; what one line of the written lists of them holds, and the optimizers in it."""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
from bench.calibration.data import Data
from bench.calibration.faults import NONE, Fault

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


class Setup(NamedTuple):
    """A training, and what is wrong with it."""

    name: str
    family: str
    network: Callable[[Data], keras.Model]
    data: Callable[[int], Data]
    optimizer: Optimizer
    fault: Fault = NONE
    replicas: int = 1
    seed: int = 0
    steps: int = 240
    batch: int = 64
    every: int = 0
    """Every how many steps is measured; 0: as the fault has it."""
    part: str = ""

    @property
    def key(self) -> str:
        """A name of its own, fit for a directory."""
        return re.sub(r"[^a-z0-9.-]+", "_", f"{self.part} {self.family} {self.name} {self.seed}".lower())
