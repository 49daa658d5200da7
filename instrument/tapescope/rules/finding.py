"""A finding: what a rule says of a run, in words and numbers, as it is on the wire."""

import json
from typing import Any, NamedTuple

SEVERITIES = ("error", "warning", "info")
"""The gravest first."""


class Finding(NamedTuple):
    """What a rule says. Its fields are those of the wire."""

    rule: str
    version: int
    severity: str
    """"error", "warning" or "info"."""
    layer: str | None
    step: int
    """The first at which it was so."""
    message: str
    evidence: dict[str, float]
    advice: str


def times(factor: float) -> str:
    """A factor in words: `1.3 times`, `2,000 times`."""
    return f"{float(f'{factor:.2g}'):,.0f} times" if 10 <= factor < 1e6 else f"{factor:.2g} times"


def percent(share: float) -> str:
    """A share in words: `0.3 %`, `85 %`."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def to_json(finding: Finding) -> str:
    """As it is on the wire."""
    return json.dumps(finding._asdict(), allow_nan=False)


def from_json(fields: dict[str, Any]) -> Finding:
    """One of `Run.findings`."""
    return Finding(**{name: fields[name] for name in Finding._fields})
