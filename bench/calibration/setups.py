"""All set-ups in their order: what is trained, and which fault was put where.

They come in parts, each written or drawn before the rules were seen on one of its set-ups. The last parts are held out;
once rules were changed by what a part taught, it is one of those chosen on, and a new one is made.
"""

from bench.calibration import chosen, drawn, second
from bench.calibration.rows import Row, Setup

DRAWN = (1, 2, 3, 4, 5)
"""Seeds of the drawn parts."""
HELD_OUT = ("second", *(f"drawn {seed}" for seed in DRAWN[1:]))
"""Parts that no rule or threshold was chosen on."""


def all_setups() -> list[Setup]:
    parts = {
        "first": _part(chosen.healthy(), chosen.faulty(), 0, 0),
        "second": _part(second.healthy(), second.faulty(), 11, 300),
    }
    for seed in DRAWN:
        parts[f"drawn {seed}"] = [*drawn.healthy(seed), *drawn.faulty(seed)]
    return [s._replace(part=part) for part, setups in parts.items() for s in setups]


def _part(healthy: list[Row], faulty: list[Row], seed: int, first: int) -> list[Setup]:
    return [_setup(row, seed) for row in healthy] + [_setup(row, first + n) for n, row in enumerate(faulty)]


def _setup(row: Row, seed: int) -> Setup:
    label, network, of, optimizer, fault = row
    family, _, name = label.partition(": ")
    replicas = {"two replicas": 2, "four replicas": 4, "replicas": 4}.get(family, 1)
    return Setup(name or fault.name, family, network, of, optimizer, fault, replicas, seed)
