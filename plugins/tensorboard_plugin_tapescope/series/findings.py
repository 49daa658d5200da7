"""Findings as the wire has them: their severities, their order, and how many there are of each."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

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
    readable, unreadable = read_findings(texts)
    readable.sort(key=lambda finding: (severity_rank(finding["severity"]), finding["step"]))
    return readable, unreadable


def read_findings(texts: Iterable[str]) -> tuple[list[dict[str, Any]], int]:
    """Return the findings in JSON texts, in their order, and how many are unreadable."""
    readable: list[dict[str, Any]] = []
    unreadable = 0
    for text in texts:
        try:
            readable.append(_parse_finding(json.loads(text)))
        except Exception:  # the boundary of a finding: it is counted, whatever is wrong with it
            unreadable += 1
    return readable, unreadable


def _parse_finding(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a finding must be a JSON object; got {type(value).__name__}")
    fields = cast("Mapping[str, Any]", value)
    evidence = fields.get("evidence")
    pairs = cast("Mapping[str, Any]", evidence if isinstance(evidence, Mapping) else {})
    step = int(fields["step"])
    if abs(step) >= 2**63:
        raise ValueError("a step must be an int64")
    numbers = {name: float(number) for name, number in pairs.items() if isinstance(number, int | float)}
    return {
        "rule": str(fields["rule"]),
        "version": int(fields.get("version", 1)),
        "severity": SEVERITIES[severity_rank(str(fields["severity"]))],
        "layer": None if fields.get("layer") is None else str(fields["layer"]),
        "step": step,
        "message": str(fields["message"]),
        "evidence": {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
        "advice": str(fields.get("advice") or ""),
    }
