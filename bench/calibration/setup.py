"""The set-up of one training, a row of the written lists of set-ups, and the optimizers in them."""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import keras
from bench.calibration.data import Data
from bench.calibration.faults import NONE, Fault

Optimizer = Callable[[], keras.optimizers.Optimizer]

Row = tuple[str, Callable[[Data], keras.Model], Callable[[int], Data], Optimizer, Fault]
"""`family: name` or `family` (then the fault has the name), network, data, optimizer, fault."""


def optimizer(kind: str, **options) -> Callable[..., Optimizer]:
    """Return a function of the learning rate, a number or a schedule, that makes one of Keras' optimizers."""

    def with_rate(rate) -> Optimizer:
        rate = float(rate) if isinstance(rate, int) else rate
        return partial(getattr(keras.optimizers, kind), rate, **options)

    return with_rate


adam = optimizer("Adam")
sgd = optimizer("SGD")
adamw = optimizer("AdamW")
rmsprop = optimizer("RMSprop")
momentum = optimizer("SGD", momentum=0.9)


class Setup(NamedTuple):
    """A training, and the fault that is injected into it."""

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
    """A step is measured every so many steps; 0: as the fault says."""
    part: str = ""

    @property
    def key(self) -> str:
        """Return a unique name that fits a directory."""
        return re.sub(r"[^a-z0-9.-]+", "_", f"{self.part} {self.family} {self.name} {self.seed}".lower())
