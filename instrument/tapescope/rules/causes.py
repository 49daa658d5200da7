"""Which finding explains which: a cause first, and then what follows from it.

The table says what a rule can explain. A finding is explained by another one that is a warning or an error, and that
applied no later.
"""

from collections.abc import Mapping, Sequence

from tapescope.rules.finding import SEVERITIES, Finding

_NUMBERS = frozenset(
    {
        "always_clipped",
        "constant_output",
        "dead_units",
        "dying_units",
        "exploding",
        "falls_regardless",
        "gradient_spike",
        "loss_not_falling",
        "no_gradient",
        "non_finite",
        "poor_initialization",
        "saturation",
        "update_too_large",
        "update_too_small",
        "vanishing",
        "slow_learning",
        "impossible_loss",
    }
)
"""Rules about numbers of the training, which all follow from what it was given."""

EXPLAINS: Mapping[str, frozenset[str]] = {
    "output_activation": _NUMBERS | {"loss_mismatch", "targets_out_of_range"},
    "labels_degenerate": _NUMBERS | {"targets_out_of_range"},
    "targets_out_of_range": _NUMBERS,
    "loss_mismatch": _NUMBERS,
    "unscaled_data": _NUMBERS | {"targets_out_of_range"},
    "poor_initialization": _NUMBERS - {"poor_initialization"},
    "update_too_large": _NUMBERS - {"update_too_large", "poor_initialization", "update_too_small", "slow_learning"},
    "exploding": frozenset({"non_finite", "always_clipped", "gradient_spike", "loss_not_falling", "falls_regardless"}),
    "saturation": frozenset({"vanishing", "no_gradient", "update_too_small", "loss_not_falling", "falls_regardless"}),
    "dead_units": frozenset({"vanishing", "no_gradient", "update_too_small", "loss_not_falling", "falls_regardless"}),
    "vanishing": frozenset({"update_too_small", "loss_not_falling", "falls_regardless"}),
    "no_gradient": frozenset({"update_too_small", "loss_not_falling", "falls_regardless"}),
    "update_too_small": frozenset({"loss_not_falling"}),
}
"""Rules that a rule can explain. No rule explains, also through others, itself."""
RANK = {rule: rank for rank, rule in enumerate(EXPLAINS)}
"""Order of the causes: what was given to the training comes before what came of it."""


def cause_of(finding: Finding, findings: Sequence[Finding]) -> Finding | None:
    """Return the finding that explains one, the first in the order of causes; None where none does."""
    causes = [
        other
        for other in findings
        if other.severity != "info"
        and finding.rule in EXPLAINS.get(other.rule, ())
        and other.step <= finding.step
        and RANK[other.rule] < RANK.get(finding.rule, len(RANK))
    ]
    return min(causes, key=lambda other: (RANK[other.rule], SEVERITIES.index(other.severity)), default=None)


def by_cause(findings: Sequence[Finding]) -> list[tuple[Finding, Finding | None]]:
    """Return all findings with the one that explains each, a cause before what follows from it.

    Causes are in the order of their severity and step, and so are the findings that follow from one.
    """
    explained = {id(f): cause_of(f, findings) for f in findings}
    ordered = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.step))
    result: list[tuple[Finding, Finding | None]] = []
    roots = [f for f in ordered if explained[id(f)] is None]
    worst = {
        id(root): min(SEVERITIES.index(f.severity) for f in findings if f is root or explained[id(f)] is root)
        for root in roots
    }
    for root in sorted(roots, key=lambda f: (worst[id(f)], RANK.get(f.rule, len(RANK)))):
        result.append((root, None))
        result.extend(_following(root, ordered, explained))
    return result


def _following(
    cause: Finding, ordered: Sequence[Finding], explained: Mapping[int, Finding | None]
) -> list[tuple[Finding, Finding | None]]:
    found: list[tuple[Finding, Finding | None]] = []
    for finding in ordered:
        if explained[id(finding)] is cause:
            found.append((finding, cause))
            found.extend(_following(finding, ordered, explained))
    return found
