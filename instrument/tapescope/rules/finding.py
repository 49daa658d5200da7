"""Findings: statements of the rules about a run, with the fields that are on the wire."""

import json
from typing import Any, NamedTuple

from tensorboard_plugin_tapescope.series.findings import SEVERITIES as SEVERITIES


class Finding(NamedTuple):
    """Statement of a rule about a run."""

    rule: str
    version: int
    """Of the rule."""
    severity: str
    """"error", "warning" or "info"."""
    layer: str | None
    step: int
    """The first recorded step at which the rule applied."""
    message: str
    """One sentence without a capital or a full stop."""
    evidence: dict[str, float]
    advice: str


def format_factor(factor: float) -> str:
    """Return a factor as text, such as `1.3 times` or `2,000 times`."""
    return f"{float(f'{factor:.2g}'):,.0f} times" if 10 <= factor < 1e6 else f"{factor:.2g} times"


def format_share(share: float) -> str:
    """Return a share as text, such as `0.3 %` or `85 %`."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def name_layers(layer: str | None, layers: int) -> str:
    """Return the name of the first of several layers, and how many more there are."""
    return f"`{layer}` and {layers - 1} more" if layers > 1 else f"`{layer}`"


def to_json(finding: Finding) -> str:
    """Return the finding as it is on the wire."""
    return json.dumps(finding._asdict(), allow_nan=False)


def from_json(fields: dict[str, Any]) -> Finding:
    """Return the finding of one of `Run.findings`."""
    return Finding(**{name: fields[name] for name in Finding._fields})
