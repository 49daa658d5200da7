"""`tapescope check RUN`: replays the rules over a run and prints what they find; the exit code says it too, for CI."""

import argparse
import os
import sys
from collections.abc import Sequence

NONE, FOUND, BAD_INPUT = 0, 1, 2
"""Exit codes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    parser = argparse.ArgumentParser("tapescope", description="Reads back what a run recorded.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    checking = commands.add_parser(
        "check",
        help="say what is wrong with a run, and where, and since when",
        description="Replays the rules over a run. Exit code 0: nothing found; 1: findings; 2: RUN cannot be read.",
    )
    checking.add_argument("run", metavar="RUN", help="directory of the run's event files")
    checking.add_argument(
        "--severity",
        choices=("error", "warning", "info"),
        default="warning",
        help="the mildest that counts (default: %(default)s)",
    )
    checking.add_argument("--json", action="store_true", help="print one JSON object a finding and line")
    checking.set_defaults(command=_check)
    given = parser.parse_args(arguments)
    try:
        return given.command(given)
    except (OSError, ValueError, KeyError) as error:
        words = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"tapescope: {' '.join(str(words).split())}", file=sys.stderr)
        return BAD_INPUT


def _check(given: argparse.Namespace) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tapescope import rules
    from tapescope.runs import Run, runs

    below = runs(given.run)
    if below and given.run not in below:
        shown = ", ".join(below[:3]) + (", ..." if len(below) > 3 else "")
        raise ValueError(f"RUN ({given.run}) is no run but holds {len(below)}; name one of them: {shown}")
    run = Run(given.run)
    worst_first = sorted(rules.check(run), key=lambda f: (rules.SEVERITIES.index(f.severity), f.step))
    counted = rules.SEVERITIES[: rules.SEVERITIES.index(given.severity) + 1]
    findings = [f for f in worst_first if f.severity in counted]
    for finding in findings:
        print(rules.to_json(finding) if given.json else _words(finding))
    if not findings and not given.json:
        print(f"nothing found in {len(run.steps)} records of {given.run}")
    return FOUND if findings else NONE


def _words(finding) -> str:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding.evidence.items())
    title = f"{finding.severity}: {finding.rule}{f' in {finding.layer}' if finding.layer else ''}, step {finding.step}"
    return f"{title}\n  {finding.message[0].upper()}{finding.message[1:]}.\n  {numbers}\n  {finding.advice}"


if __name__ == "__main__":
    sys.exit(main())
