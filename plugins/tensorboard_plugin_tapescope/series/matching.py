"""Matching the rows of two runs whose models have different names.

A variable's name may begin with its model's: `relu_sigmoid/hidden/kernel` in one run is `sigmoid_relu/hidden/kernel` in
the other. The layer that owns it is recorded without the model's name, so rows are matched by layer and last part.
"""

import re
from collections.abc import Sequence

LISTED_NAMES = 8
"""Most names of unmatched rows in a text."""


def list_names(names: Sequence[str]) -> str:
    """Return the first LISTED_NAMES names as text, and how many more there are."""
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return f"{', '.join(names[:LISTED_NAMES])}{more}"


def row_owners(variables: Sequence[str], layers: Sequence[str], owned: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Return the layer that owns each variable; a variable of no recorded layer stands for itself.

    Args:
      variables: names of the variables.
      layers: names of the layers.
      owned: for each layer the indices of its variables, as `tables.owned_variables` returns them.
    """
    owner = {index: layer for layer, indices in zip(layers, owned, strict=False) for index in indices}
    return tuple(owner.get(index, name) for index, name in enumerate(variables))


def matching_keys(names: Sequence[str], owners: Sequence[str]) -> tuple[str, ...]:
    """Return what each row is matched by in another run, such as `hidden/kernel` for `my_model/hidden/kernel`.

    The keys are the names themselves where the keys would not be unique.

    Args:
      names: of the rows: variables or layers.
      owners: of the rows; see `row_owners`. A layer is its own owner.
    """
    prefixes = {_model_prefix(name, owner) for name, owner in zip(names, owners, strict=True) if name != owner}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    keys = tuple(
        name.removeprefix(prefix) if name == owner else f"{owner}/{_last_part(name)}"
        for name, owner in zip(names, owners, strict=True)
    )
    return keys if len(set(keys)) == len(keys) else tuple(names)


def _model_prefix(name: str, owner: str) -> str:
    """Return what stands before the owner in a variable's name, with its slash; empty if nothing does."""
    start = name.find(f"/{owner.split('#')[0]}/")  # "#2" is the second call of a shared layer
    return name[: start + 1]


def _last_part(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def match_rows(
    first_names: Sequence[str], first_owners: Sequence[str], second_names: Sequence[str], second_owners: Sequence[str]
) -> list[tuple[int, int]]:
    """Return pairs of rows of two runs that stand for the same variable or layer, in the order of the first run.

    Rows of equal names match. Of the others those match whose `matching_keys` are equal. If no name with a
    number is in both, and keys that are numbered anew match more rows, they do instead: `dense_2` may be the `dense` of
    a model that was built before.
    """
    first_keys = matching_keys(first_names, first_owners)
    second_keys = matching_keys(second_names, second_owners)
    known = set(first_names)
    rows_by_name = {name: row for row, name in enumerate(second_names)}
    rows_by_key = {key: row for row, key in enumerate(second_keys) if second_names[row] not in known}
    pairs = [
        (row, match)
        for row, (name, key) in enumerate(zip(first_names, first_keys, strict=True))
        if (match := rows_by_name.get(name, rows_by_key.get(key))) is not None
    ]
    if any(first_names[i] == second_names[j] and _has_number(first_names[i]) for i, j in pairs):
        return pairs
    rows = {key: row for row, key in enumerate(renumber(second_keys))}
    renumbered = [(row, rows[key]) for row, key in enumerate(renumber(first_keys)) if key in rows]
    return max(pairs, renumbered, key=len)


_NUMBERED = re.compile(r"(.*?)(?:_([1-9]\d{0,8}))?(#\d+)?", re.DOTALL)
"""A part of a name: with Keras' number, and with that of a call of a shared layer."""


def renumber(keys: Sequence[str]) -> list[str]:
    """Return keys with Keras' numbers counted from 0 among the equal names of one model, as if it was built first."""
    parts = [key.split("/") for key in keys]
    numbers: dict[tuple[str, ...], set[int]] = {}
    for names in parts:
        for depth, name in enumerate(names):
            base, number, _ = _split(name)
            numbers.setdefault((*names[:depth], base), set()).add(number)
    ranks = {name: {number: rank for rank, number in enumerate(sorted(found))} for name, found in numbers.items()}
    renumbered: list[str] = []
    for names in parts:
        plain: list[str] = []
        for depth, name in enumerate(names):
            base, number, call = _split(name)
            plain.append(f"{base}_{ranks[(*names[:depth], base)][number]}{call}")
        renumbered.append("/".join(plain))
    return renumbered


def _has_number(name: str) -> bool:
    return any(_split(part)[1] for part in name.split("/"))


def _split(name: str) -> tuple[str, int, str]:
    """Return a part of a name as base, number and call."""
    match = _NUMBERED.fullmatch(name)
    assert match is not None  # it matches every text
    return match[1], int(match[2] or 0), match[3] or ""
