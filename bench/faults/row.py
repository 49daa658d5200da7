"""A row of the tables in docs/faults.md."""

import json
from typing import NamedTuple


class Row(NamedTuple):
    """One test, its result, and whether the result is as promised."""

    test: str
    result: str
    passed: bool


def print_rows(rows: list[Row]) -> None:
    """Print the rows of a part as JSON, a line each, for `bench.faults` to read."""
    for row in rows:
        print(json.dumps(row._replace(passed=bool(row.passed))), flush=True)  # `json` refuses NumPy's booleans
