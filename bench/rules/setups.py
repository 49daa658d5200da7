"""All set-ups in their order: what is trained, and which fault was put where."""

from collections.abc import Callable
from typing import NamedTuple

import keras
from bench.rules import chosen, held_out
from bench.rules.data import Data
from bench.rules.faults import NONE, Fault
from bench.rules.rows import Optimizer, Row


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
    held_out: bool = False


def all_setups() -> list[Setup]:
    """The healthy ones that are held out are trained with two seeds, and some of the others with one of their own."""
    made = []
    for of, seeds in ((chosen, (0,)), (held_out, (11, 12))):
        later = of is held_out
        made += [_setup(row, seed, later) for row in of.healthy() for seed in seeds]
        made += [_setup(row, 300 * later + n, later) for n, row in enumerate(of.faulty())]
    return made + [_setup(row, 21, True) for row in chosen.healthy()[::4]]


def _setup(row: Row, seed: int, held_out: bool) -> Setup:
    label, network, of, optimizer, fault = row
    family, _, name = label.partition(": ")
    replicas = {"two replicas": 2, "four replicas": 4, "replicas": 4}.get(family, 1)
    return Setup(name or fault.name, family, network, of, optimizer, fault, replicas, seed, held_out)
