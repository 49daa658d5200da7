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


def to_json(finding: Finding) -> str:
    """As it is on the wire."""
    return json.dumps(finding._asdict(), allow_nan=False)


def from_json(fields: dict[str, Any]) -> Finding:
    """One of `Run.findings`."""
    return Finding(**{name: fields[name] for name in Finding._fields})
