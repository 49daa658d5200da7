"""Rows of the table in docs/faults.md, and how a part hands them to `bench.faults`."""

import json
from typing import NamedTuple


class Row(NamedTuple):
    """A line of the table."""

    promise: str
    seen: str
    kept: bool


def told(rows: list[Row]) -> None:
    """Prints the rows of a part for `run` to read."""
    for row in rows:
        print(json.dumps(row._replace(kept=bool(row.kept))), flush=True)  # NumPy has truths of its own
