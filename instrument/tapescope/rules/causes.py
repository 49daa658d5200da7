"""Which finding explains which: a cause first, and then what follows from it.

A table says what each rule's finding may follow from. It follows from another finding that is a warning or an error,
and that applied no later.
"""

from collections.abc import Mapping, Sequence

from tapescope.rules.finding import SEVERITIES, Finding

_UNSCALED_TARGET = "unscaled_data of a target"
_OBJECTIVE = ("output_activation", "labels_degenerate", "targets_out_of_range", "loss_mismatch")
_DATA = ("unscaled_data", _UNSCALED_TARGET)

CAUSES: Mapping[str, tuple[str, ...]] = {
    "targets_out_of_range": ("output_activation", "labels_degenerate"),
    "loss_mismatch": ("output_activation", "labels_degenerate", "targets_out_of_range"),
    "impossible_loss": ("labels_degenerate", "targets_out_of_range", "loss_mismatch", "output_activation"),
    "poor_initialization": ("unscaled_data",),
    "decayed_weights": (*_DATA, *_OBJECTIVE),
    "update_too_large": (*_DATA, "poor_initialization", *_OBJECTIVE),
    "saturation": (*_DATA, "poor_initialization", "update_too_large", *_OBJECTIVE),
    "exploding": (*_DATA, "poor_initialization", "update_too_large", *_OBJECTIVE),
    "dead_units": (*_DATA, "poor_initialization", "update_too_large", *_OBJECTIVE, "exploding", "decayed_weights"),
    "dying_units": (*_DATA, "poor_initialization", "update_too_large", *_OBJECTIVE, "exploding", "decayed_weights"),
    "vanishing": (
        *("unscaled_data", "poor_initialization", "saturation", "dead_units", "update_too_large"),
        "decayed_weights",
    ),
    "constant_output": (*_OBJECTIVE, *_DATA, "poor_initialization", "update_too_large", "dead_units", "vanishing"),
    "no_gradient": (
        *(*_OBJECTIVE, *_DATA, "poor_initialization", "update_too_large"),
        *("saturation", "dead_units", "vanishing"),
    ),
    "gradient_spike": (*_DATA, "update_too_large", "exploding", *_OBJECTIVE),
    "always_clipped": (*_DATA, "poor_initialization", "exploding", *_OBJECTIVE),
    "non_finite": (*_OBJECTIVE, *_DATA, "poor_initialization", "update_too_large", "exploding"),
    "replica_outlier": ("replicas_diverged",),
    "update_too_small": (*_OBJECTIVE, *_DATA, "no_gradient", "vanishing", "saturation", "dead_units"),
    "loss_not_falling": (
        *(*_OBJECTIVE, *_DATA, "update_not_applied", "frozen_layers"),
        *("update_too_large", "update_too_small", "always_clipped", "replicas_diverged"),
    ),
    "slow_learning": (*_OBJECTIVE, *_DATA, "always_clipped", "frozen_layers"),
}
"""What a rule's finding may follow from, the likeliest first. No rule follows, also through others, from itself."""
RANK = {rule: rank for rank, rule in enumerate(("unscaled_data", "output_activation", "labels_degenerate", *CAUSES))}
"""Order of causes of the same severity: what was given to the training comes before what came of it."""


def cause_of(finding: Finding, findings: Sequence[Finding]) -> Finding | None:
    """Return the finding that one follows from, the likeliest; None where there is none."""
    causes = CAUSES.get(finding.rule, ())
    explaining = [f for f in findings if f.severity != "info" and f.step <= finding.step and _name(f) in causes]
    return min(explaining, key=lambda f: (causes.index(_name(f)), SEVERITIES.index(f.severity)), default=None)


def _name(finding: Finding) -> str:
    """Return the name of a finding in the table: the scale of a target explains less than that of an input."""
    of_target = finding.rule == "unscaled_data" and (finding.layer or "").startswith("target")
    return _UNSCALED_TARGET if of_target else finding.rule


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
