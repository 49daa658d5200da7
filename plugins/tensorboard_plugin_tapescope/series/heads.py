"""Attention heads by layers: what the names of their rows say."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_HEADS = 512
"""A row with a larger number is not taken for a head of a layer: a file can hold anything."""


class HeadGrid(NamedTuple):
    """The heads of a run as a table of layers by heads."""

    layers: tuple[str, ...]
    """The L attention layers, in forward order."""
    positions: np.ndarray
    """int64 [L, N]: position of each head among the rows of the run; -1 where a layer has fewer heads."""


def by_layer(names: Sequence[str]) -> HeadGrid:
    """Return the heads by layers.

    Args:
      names: of the rows, `LAYER/head_0` and so on. A name of another form is a layer of one head.
    """
    places: dict[str, dict[int, int]] = {}
    for position, name in enumerate(names):
        found = re.fullmatch(r"(.*)/head_([0-9]{1,3})", name, re.DOTALL | re.ASCII)
        layer, number = (found[1], int(found[2])) if found and int(found[2]) < MAX_HEADS else (name, 0)
        places.setdefault(layer, {})[number] = position
    width = max((max(heads) + 1 for heads in places.values()), default=0)
    positions = np.full((len(places), width), -1, np.int64)
    for row, heads in enumerate(places.values()):
        positions[row, list(heads)] = list(heads.values())
    return HeadGrid(tuple(places), positions)
