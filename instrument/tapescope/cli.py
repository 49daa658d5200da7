"""`tapescope check|compare|scaling|report`: what a run's records say, for a person, a script or CI.

Exit codes: 0 where all is well, 1 where something was found or two runs differ, 2 for bad input, in one line.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

NONE, FOUND, BAD_INPUT = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Of the whole command line."""
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
    comparing = commands.add_parser(
        "compare",
        help="say where two runs part",
        description="Compares every column. Exit code 0: equal within the tolerance; 1: not; 2: cannot tell.",
    )
    comparing.add_argument("first", metavar="RUN")
    comparing.add_argument("second", metavar="RUN")
    comparing.add_argument("--tolerance", type=float, default=1e-3, help="relative difference (default: %(default)s)")
    comparing.add_argument("--by", choices=("step", "examples"), default="step", help="what aligns the records")
    comparing.add_argument("--json", action="store_true", help="print one JSON object")
    comparing.set_defaults(command=_compare)
    scaling = commands.add_parser("scaling", help="say how runs with different numbers of replicas scale")
    scaling.add_argument("runs", metavar="RUN", nargs="+")
    scaling.add_argument("--json", action="store_true", help="print one JSON object a run and line")
    scaling.set_defaults(command=_scaling)
    reporting = commands.add_parser("report", help="write one HTML page about runs, readable without a server")
    reporting.add_argument("runs", metavar="RUN", nargs="+")
    reporting.add_argument("--output", metavar="FILE", default="report.html", help="(default: %(default)s)")
    reporting.set_defaults(command=_report)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    given = parser().parse_args(arguments)
    try:
        return given.command(given)
    except (OSError, ValueError, KeyError) as error:
        words = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"tapescope: {' '.join(str(words).split())}", file=sys.stderr)
        return BAD_INPUT


def _check(given: argparse.Namespace) -> int:
    from tapescope.rules import engine, finding

    run = _run(given.run)
    worst_first = sorted(engine.check(run), key=lambda f: (finding.SEVERITIES.index(f.severity), f.step))
    counted = finding.SEVERITIES[: finding.SEVERITIES.index(given.severity) + 1]
    findings = [f for f in worst_first if f.severity in counted]
    for found in findings:
        print(finding.to_json(found) if given.json else _words(found))
    if not findings and not given.json:
        print(f"nothing found in {len(run.steps)} records of {given.run}")
    return FOUND if findings else NONE


def _words(finding: Any) -> str:
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in finding.evidence.items())
    title = f"{finding.severity}: {finding.rule}{f' in {finding.layer}' if finding.layer else ''}, step {finding.step}"
    return f"{title}\n  {finding.message[0].upper()}{finding.message[1:]}.\n  {numbers}\n  {finding.advice}"


def _compare(given: argparse.Namespace) -> int:
    from tapescope.analysis import compare

    result = compare.compare(_run(given.first), _run(given.second), given.tolerance, given.by)
    if given.json:
        print(json.dumps(compare.comparison_json(result), allow_nan=False))
    else:
        print(compare.comparison_text(result, given.tolerance))
    return NONE if result.equal else FOUND


def _scaling(given: argparse.Namespace) -> int:
    from tapescope.analysis import scaling

    speeds = scaling.scaling([_run(run) for run in given.runs])
    if given.json:
        for speed in speeds:
            print(json.dumps(speed._asdict() | {"worth": speed.worth}))
        return NONE
    print("replicas  batch  examples/s  efficiency  step ms (5, 50, 95 %)    noise scale  run")
    for s in speeds:
        low, median, high = s.step_ms
        print(
            f"{s.replicas:8d} {s.batch:6.0f} {s.examples_per_second:11.1f} {s.efficiency:11.0%}  "
            f"{low:7.2f} {median:7.2f} {high:7.2f}  {s.noise_scale:11.4g}  {s.run}"
        )
    print(f"Is a larger batch worth it? For the largest here, {speeds[-1].worth}.")
    return NONE


def _report(given: argparse.Namespace) -> int:
    from tapescope.analysis import report

    report.write([_run(run) for run in given.runs], given.output)
    print(f"wrote {given.output}")
    return NONE


def _run(directory: str) -> Any:
    """The run in a directory; a directory that only holds runs is refused with their names."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tapescope.storage.run import Run, runs

    below = runs(directory)
    if below and directory not in below:
        shown = ", ".join(below[:3]) + (", ..." if len(below) > 3 else "")
        raise ValueError(f"RUN ({directory}) is no run but holds {len(below)}; name one of them: {shown}")
    run = Run(directory)
    if not len(run.steps):
        raise ValueError(f"RUN ({directory}) has no record of a step: it stopped before the first, or has only begun")
    return run


if __name__ == "__main__":
    sys.exit(main())
