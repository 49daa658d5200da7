"""Findings as the wire has them: their severities, their order, and how many there are of each."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

SEVERITIES = ("error", "warning", "info")
"""The most severe first."""


def severity_rank(severity: str) -> int:
    """Return 0 for the most severe; a severity that is not known counts as info."""
    return SEVERITIES.index(severity if severity in SEVERITIES else "info")


def at_least(severity: str) -> tuple[str, ...]:
    """Return the severities that are as severe or more."""
    return SEVERITIES[: severity_rank(severity) + 1]


def count_severities(severities: Iterable[str]) -> dict[str, int]:
    """Return the number of findings of each severity, the most severe first."""
    ranks = [severity_rank(severity) for severity in severities]
    return {severity: ranks.count(rank) for rank, severity in enumerate(SEVERITIES)}


def parse_findings(texts: Iterable[str]) -> tuple[list[dict[str, Any]], int]:
    """Return the findings in JSON texts, the most severe first and then by step, and how many are unreadable."""
    readable = []
    unreadable = 0
    for text in texts:
        try:
            readable.append(_parse_finding(json.loads(text)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unreadable += 1
    readable.sort(key=lambda finding: (severity_rank(finding["severity"]), finding["step"]))
    return readable, unreadable


def _parse_finding(fields: Any) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise TypeError(f"a finding must be a JSON object; got {type(fields).__name__}")
    evidence = fields.get("evidence")
    pairs = evidence.items() if isinstance(evidence, Mapping) else ()
    numbers = {str(name): float(value) for name, value in pairs if isinstance(value, int | float)}
    return {
        "rule": str(fields["rule"]),
        "severity": SEVERITIES[severity_rank(str(fields["severity"]))],
        "layer": None if fields.get("layer") is None else str(fields["layer"]),
        "step": int(fields["step"]),
        "message": str(fields["message"]),
        "evidence": {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
        "advice": str(fields.get("advice") or ""),
    }
