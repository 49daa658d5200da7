"""All set-ups in order: what is trained, and which fault is injected where.

They come in parts. Each part was written, or drawn at random, before the rules were seen on any of its set-ups. The
last parts are held out. Once a part has led to a change of the rules, it counts as one that thresholds were chosen on,
and a new part is made.
"""

from bench.calibration import first_part, random_parts, second_part
from bench.calibration.setup import Row, Setup

DRAWN = (1, 2, 3, 4, 5)
"""Seeds of the parts drawn at random."""
HELD_OUT = ("second", *(f"drawn {seed}" for seed in DRAWN[1:]))
"""Parts that no rule or threshold was chosen on."""


def all_setups() -> list[Setup]:
    """Return the set-ups of all parts."""
    parts = {
        "first": _part(first_part.healthy(), first_part.faulty(), 0, 0),
        "second": _part(second_part.healthy(), second_part.faulty(), 11, 300),
    }
    for seed in DRAWN:
        parts[f"drawn {seed}"] = [*random_parts.healthy(seed), *random_parts.faulty(seed)]
    return [s._replace(part=part) for part, setups in parts.items() for s in setups]


def _part(healthy: list[Row], faulty: list[Row], seed: int, first: int) -> list[Setup]:
    return [_setup(row, seed) for row in healthy] + [_setup(row, first + n) for n, row in enumerate(faulty)]


def _setup(row: Row, seed: int) -> Setup:
    label, network, data, optimizer, fault = row
    family, _, name = label.partition(": ")
    replicas = {"two replicas": 2, "four replicas": 4, "replicas": 4}.get(family, 1)
    return Setup(
        name=name or fault.name,
        family=family,
        network=network,
        data=data,
        optimizer=optimizer,
        fault=fault,
        replicas=replicas,
        seed=seed,
    )
