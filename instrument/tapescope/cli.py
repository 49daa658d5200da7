"""`tapescope check|compare|scaling|report|status|replay|columns|coordinates`: the command line for recorded runs.

Exit codes: 0 without findings or differences, 1 with some, 2 for bad input, which is reported in one line, 130 where it
was interrupted. They hold whatever the terminal can show, and also if nobody reads the output. No
command but `replay` and `coordinates` needs TensorFlow. What a command needs is imported when it runs, so that
`--help` is quick.
"""

import argparse
import contextlib
import difflib
import importlib
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from tapescope import __version__
from tapescope.storage.printable import describe_error, one_line, printable, to_json

if TYPE_CHECKING:
    from tapescope.rules.finding import Finding
    from tapescope.storage.run import Run

SUCCESS = 0
FOUND = 1
BAD_INPUT = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest value where one of several is required."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown arguments where a command meets them, which knows its options."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        invalid = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        wrong, known = (invalid[1], invalid[2]) if invalid else (unknown[1] if unknown else "", self.format_usage())
        nearest = difflib.get_close_matches(wrong, re.findall(r"[\w-]+", known), 1)
        suggestion = f" (did you mean {nearest[0]}?)" if nearest else ""
        _print_error(f"{message}{suggestion}: see {self.prog} --help")
        sys.exit(BAD_INPUT)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser("tapescope", description="Read recorded runs.")
    parser.add_argument("--version", action="version", version=f"tapescope {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    check = commands.add_parser(
        "check",
        help="report what is wrong with a run, in which layer and since which step",
        description="Apply the rules to a run. Exit code 0: no findings; 1: findings; 2: RUN cannot be read.",
    )
    check.add_argument("run", metavar="RUN", help="directory of the run's event files")
    _add_severity(check, "lowest severity to report")
    check.add_argument("--json", action="store_true", help="print a line of JSON for each finding")
    check.set_defaults(command=_check)

    compare = commands.add_parser(
        "compare",
        help="report the first layer and step at which two runs differ",
        description="Compare every column of two runs. Exit code 0: equal within the tolerance; 1: different; "
        "2: the runs cannot be compared.",
    )
    compare.add_argument("first", metavar="RUN", help="directory of a run")
    compare.add_argument("second", metavar="RUN", help="directory of the run to compare with it")
    compare.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest relative difference of equal numbers (default: 1e-3)"
    )
    compare.add_argument(
        "--by",
        choices=("step", "examples"),
        default="step",
        help="compare records of the same step, or after as many examples (default: %(default)s)",
    )
    compare.add_argument("--json", action="store_true", help="print one JSON object")
    compare.set_defaults(command=_compare)

    scaling = commands.add_parser(
        "scaling",
        help="report how fast runs with different numbers of replicas were",
        description="Report speed, efficiency and noise scale of runs with different numbers of replicas.",
    )
    scaling.add_argument("runs", metavar="RUN", nargs="+", help="directories of runs")
    scaling.add_argument("--json", action="store_true", help="print a line of JSON for each run")
    scaling.set_defaults(command=_scaling)

    report = commands.add_parser(
        "report",
        help="write one HTML page about runs, which needs no server and no network",
        description="Write one HTML page about runs, which needs no server and no network.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="directories of runs")
    report.add_argument(
        "--output", metavar="FILE", default="report.html", help="the page to write (default: %(default)s)"
    )
    report.add_argument("--json", action="store_true", help="print a line of JSON with the page and its runs")
    report.set_defaults(command=_report)

    status = commands.add_parser(
        "status",
        help="print a table of all runs: state, step, loss, spikes, findings, worst layer",
        description="Print a table of all runs at and below LOGDIR. Exit code 0: no run needs attention; 1: one has "
        "findings, has stalled, or cannot be read; 2: LOGDIR holds no run; 130: --watch was interrupted.",
    )
    status.add_argument("logdir", metavar="LOGDIR", help="directory with runs")
    _add_severity(status, "lowest severity of findings that need attention")
    status.add_argument("--json", action="store_true", help="print a line of JSON for each run: its index")
    status.add_argument("--watch", action="store_true", help="print it again until no run trains any more")
    status.add_argument(
        "--every", metavar="SECONDS", type=_seconds, default=5.0, help="time between two of --watch (default: 5)"
    )
    status.set_defaults(command=_status)

    replay = commands.add_parser(
        "replay",
        help="run one step of a run of tapescope-train again, and name the examples that explain it",
        description="Run one step again. Exit code 0: reproduced to the bit; 1: not; 2: it cannot be run again.",
    )
    replay.add_argument("run", metavar="RUN", help="directory of a run of tapescope-train")
    replay.add_argument("step", metavar="STEP", type=_step, help="number of the step")
    replay.add_argument("--json", action="store_true", help="print one JSON object")
    replay.set_defaults(command=_replay)

    coordinates = commands.add_parser(
        "coordinates",
        help="report which layers of a model depend on its width, after a few steps at several widths",
        description="Check the coordinates of a parametrization: train a model for a few steps at several widths, and "
        "report how each layer's output and its change grow with the width. Exit code 0: no layer depends on the "
        "width; 1: one does; 2: the model cannot be trained.",
    )
    coordinates.add_argument(
        "--model",
        "--preset",
        default="mlp",
        help="a preset of tapescope-train with a width, or package.module:build, a function with an argument for it "
        "(default: %(default)s)",
    )
    coordinates.add_argument("--width_argument", default="width", help="name of it (default: %(default)s)")
    coordinates.add_argument("--data", default="digits", help="as for tapescope-train (default: %(default)s)")
    coordinates.add_argument(
        "--widths", type=_whole_numbers, default=[64, 128, 256, 512], help="rising (default: 64,128,256,512)"
    )
    coordinates.add_argument("--steps", type=_count, default=4, help="on one batch (default: %(default)s)")
    coordinates.add_argument("--seeds", type=_count, default=3, help="weights to take the median of (default: 3)")
    coordinates.add_argument("--batch_size", type=_count, default=64, help="examples (default: %(default)s)")
    coordinates.add_argument("--optimizer", help="name in Keras; default: that of the compiled model, else Adam")
    coordinates.add_argument("--learning_rate", type=float, default=1e-3, help="of that (default: %(default)s)")
    coordinates.add_argument("--loss", help="as for tapescope-train; default: that of the compiled model")
    coordinates.add_argument("--output", metavar="FILE", default="coordinates.html", help="the figure to write")
    coordinates.add_argument("--json", action="store_true", help="print one JSON object")
    coordinates.set_defaults(command=_coordinates)

    columns = commands.add_parser(
        "columns",
        help="explain the columns of a run",
        description="Explain columns. Exit code 0; 2: there is no column of that name.",
    )
    columns.add_argument("names", metavar="NAME", nargs="*", help="a column; all if none is given")
    columns.add_argument("--json", action="store_true", help="print a line of JSON for each column")
    columns.set_defaults(command=_columns)
    return parser


def _add_severity(command: argparse.ArgumentParser, meaning: str) -> None:
    command.add_argument(
        "--severity",
        choices=("error", "warning", "info"),
        default="warning",
        help=f"{meaning} (default: %(default)s)",
    )


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of steps from 0; got {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1; got {text}")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be a number of seconds from 0.1 to 86400; got {text}")


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers separated by commas; got {text}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
      arguments: of the command line; those of this process if None.

    Returns:
      The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal may have fewer characters than names do
            stream.reconfigure(errors="backslashreplace")
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit:
        _flush()
        raise
    try:
        code = options.command(options)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # the boundary of a command: whatever is wrong with a run is one line
        _print_error(_describe(error))
        code = BAD_INPUT
    return code if _flush() else BAD_INPUT


def _describe(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])  # str() of a KeyError is the repr of its message
    if isinstance(error, (OSError, ValueError)):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"this cannot be done: {describe_error(error)}, at {place.filename}:{place.lineno}"


def _print(text: str, clear: str = "") -> None:
    """Print text in which names from a run cannot act on the terminal, after our own sequence that clears it."""
    try:
        print(clear + printable(text, keep="\n"))
    except BrokenPipeError:
        _drop_output()


def _print_error(message: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"tapescope: {one_line(message)}", file=sys.stderr, flush=True)


def _flush() -> bool:
    """Write what was printed; return whether the reader has what it wanted, which is so if it closed the pipe."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if not isinstance(error, BrokenPipeError):
            _print_error(f"the output cannot be written: {error}")
            return False
    return True


def _drop_output() -> None:
    """Discard what was printed and will be, or the interpreter would fail once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _check(options: argparse.Namespace) -> int:
    from tapescope.analysis import check
    from tapescope.rules import causes
    from tensorboard_plugin_tapescope.series import tables
    from tensorboard_plugin_tapescope.series.findings import at_least

    run = _read_run(options.run)
    ordered = causes.by_cause(check.check(run))
    findings = [(found, cause) for found, cause in ordered if found.severity in at_least(options.severity)]
    for found, cause in findings:
        if options.json:
            fields = {"follows_from": cause and cause.rule, "link": f"docs/rules.md#{found.rule}"}
            _print(to_json(found._asdict() | fields))
        else:
            _print(_format_finding(found, cause))
    if not findings and not options.json:
        records = "1 record" if len(run.steps) == 1 else f"{len(run.steps)} records"
        lost = tables.count(run.status.get("lost"))
        missing = f"; {lost} more could not be written" if lost else ""
        _print(f"no findings in {records} of {options.run}{missing}")
    return FOUND if findings else SUCCESS


def _format_finding(finding: "Finding", cause: "Finding | None") -> str:
    evidence = ", ".join(f"{name} {value:.4g}" for name, value in finding.evidence.items())
    lines = [
        f"{finding.severity}: {finding.rule}{_place(finding)}, step {finding.step}",
        f"  {finding.message[0].upper()}{finding.message[1:]}.",
        f"  {evidence}",
        f"  {finding.advice}",
    ]
    if cause is not None:
        lines.insert(1, f"  Probably follows from {cause.rule}{_place(cause)}: see there first.")
    return "\n".join(lines)


def _place(finding: "Finding") -> str:
    return f" in {finding.layer}" if finding.layer else ""


def _compare(options: argparse.Namespace) -> int:
    from tapescope.analysis import compare

    runs = _read_run(options.first), _read_run(options.second)
    result = compare.compare(*runs, tolerance=options.tolerance, by=options.by)
    if options.json:
        _print(compare.comparison_json(result))
    else:
        left_out = compare.columns_left_out(*runs, by=options.by)
        _print(compare.comparison_text(result, options.tolerance, left_out))
    return SUCCESS if result.equal else FOUND


def _scaling(options: argparse.Namespace) -> int:
    from tapescope.analysis import scaling

    runs = [_read_run(run) for run in options.runs]
    speeds = scaling.scaling(runs)
    if options.json:
        for speed in speeds:
            _print(to_json(speed._asdict() | {"worth": speed.worth}))
        return SUCCESS
    _print("replicas  batch  examples/s  efficiency  step ms (5, 50, 95 %)    noise scale  run")
    for speed in speeds:
        low, median, high = speed.step_ms
        noise_scale = "?" if math.isnan(speed.noise_scale) else f"{speed.noise_scale:.4g}"
        _print(
            f"{speed.replicas:8d} {speed.batch:6.0f} {speed.examples_per_second:11.1f} {speed.efficiency:11.0%}  "
            f"{low:7.2f} {median:7.2f} {high:7.2f}  {noise_scale:>11}  {speed.run}"
        )
    if others := scaling.describe_other_networks(runs):
        _print(others)
    _print(f"Does a larger batch pay? For the last run, {speeds[-1].worth}.")
    return SUCCESS


def _report(options: argparse.Namespace) -> int:
    from tapescope.analysis import report

    _check_output(options.output)
    report.write_report([_read_run(run) for run in options.runs], options.output)
    if options.json:
        _print(to_json({"output": options.output, "runs": options.runs}))
    else:
        _print(f"wrote {options.output}")
    return SUCCESS


def _check_output(path: str) -> None:
    """Raise ValueError if a page cannot be written to a path, before what takes long."""
    if not os.path.isdir(os.path.dirname(path) or ".") or os.path.isdir(path) or not path:
        raise ValueError(f"--output must be a file in a directory that exists; got {path!r}")


def _status(options: argparse.Namespace) -> int:
    from tapescope.analysis import status

    while True:
        indexes = status.read_status(options.logdir)
        if options.json:
            for index in indexes:
                _print(to_json(index))
        else:
            clear = "\x1b[H\x1b[2J" if options.watch and sys.stdout is not None and sys.stdout.isatty() else ""
            _print(status.table(indexes), clear)
        if not (options.watch and any(map(status.is_live, indexes)) and _flush()):
            return FOUND if any(status.needs_attention(index, options.severity) for index in indexes) else SUCCESS
        time.sleep(options.every)


def _replay(options: argparse.Namespace) -> int:
    from tapescope.replays import trainers

    found = trainers.replay(_read_run(options.run), options.step)
    _print(found.to_json() if options.json else str(found))
    return SUCCESS if found.reproduced else FOUND


def _coordinates(options: argparse.Namespace) -> int:
    _check_output(options.output)
    try:  # the library is below the trainers and does not import them
        module = importlib.import_module("tapescope_trainers.coordinates")
        fields = ("width_argument", "steps", "seeds", "batch_size", "optimizer", "learning_rate", "loss")
        arguments = {name: getattr(options, name) for name in fields}
        found = module.check(options.model, options.data, options.widths, **arguments)
        module.write_figure(found, options.output)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the package {error.name} is missing, which this command needs: pip install 'tapescope[trainers]'"
        ) from None
    _print(to_json(found.as_dict()) if options.json else f"{found}\nwrote {options.output}")
    return SUCCESS if found.independent else FOUND


def _columns(options: argparse.Namespace) -> int:
    from tapescope.analysis import columns

    explained = columns.explain(options.names)
    if options.json:
        for column in explained:
            _print(to_json(column._asdict()))
    else:
        _print(columns.to_text(explained))
    return SUCCESS


def _read_run(directory: str) -> "Run":
    """Return the run in a directory.

    Raises:
      OSError: the directory cannot be read.
      ValueError: the directory is not a run with records. Runs below it are listed.
    """
    from tapescope.storage.run import Run, runs

    directory = os.path.expanduser(directory)
    below = runs(directory)
    if below and directory not in below:
        listed = ", ".join(below[:3]) + (", ..." if len(below) > 3 else "")
        raise ValueError(
            f"RUN must be the directory of one run; {directory} holds {len(below)}: choose one of them: {listed}"
        )
    run = Run(directory)
    if not len(run.steps):
        failure = run.status.get("failure")
        reason = "it stopped before the first, has only begun, or its schedule chose no step"
        if failure:
            reason = f"measuring failed ({failure})"
        raise ValueError(f"RUN must have a record of a step; {directory} has none: {reason}")
    return run


if __name__ == "__main__":
    sys.exit(main())
