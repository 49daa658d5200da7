"""Test the claims of the document: train every network that they need, and write a table of verdicts.

tapescope-study --logdir=runs/study --table=docs/study.md

The runs can be compared in the Gradients tab: tensorboard --logdir runs/study. After an interruption the same command
trains what is missing.
"""

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, NoReturn

import absl.flags
from absl import logging

import tapescope
from tapescope.storage.text_file import write_whole
from tapescope_trainers import flags
from tapescope_trainers.logs import import_tensorflow, protect_streams
from tapescope_trainers.study import claims, shortcut, table, trial
from tapescope_trainers.study.grid import Setup
from tapescope_trainers.training import signals

STEPS = 600
SEEDS = 5
QUICK_STEPS = 64
QUICK_SEEDS = 2
EXIT_STOPPED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_FLAGS = absl.flags.FlagValues()
flags.text("logdir", "runs/study", "directory of the runs, with one directory a set-up and seed", _FLAGS)
flags.text("table", None, "file for the table; default: study.md in --logdir", _FLAGS)
flags.integer("seeds", None, "runs of each set-up; default 5, with --quick 2", 2, 1000, _FLAGS)
flags.integer("workers", min(8, os.cpu_count() or 1), "processes that train in parallel", 1, 256, _FLAGS)
flags.boolean("quick", False, "few set-ups, seeds and steps: shows that all works, decides nothing", _FLAGS)


class Options(NamedTuple):
    """The parsed command line; every field is the flag of the same name."""

    logdir: str
    table: str | None
    seeds: int | None
    workers: int
    quick: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Run the console script `tapescope-study`.

    Exit codes: 0 with a table, 1 if it was stopped before, 2 with one line for bad input, 130 after a second Ctrl-C.
    """
    protect_streams()
    try:
        sys.exit(run(_parse(list(argv or sys.argv))))
    except KeyboardInterrupt:
        print("tapescope-study: stopped at once", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _parse(argv: list[str]) -> Options:
    if flags.HELP & set(argv[1:]):
        print(f"{__doc__}\n{_FLAGS.main_module_help() or _FLAGS.get_help()}")
        sys.exit(0)
    if flags.VERSION in argv[1:]:
        print(f"tapescope-study {tapescope.__version__}")
        sys.exit(0)
    _FLAGS.unparse_flags()
    try:
        rest = _FLAGS(argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}: write every argument as --flag=value")
        values: dict[str, Any] = {name: _FLAGS[name].value for name in Options._fields}
        options = Options(**values)
        flags.make_directory("logdir", options.logdir, options.logdir)
        _check_table(options.table)
        return options
    except (absl.flags.Error, ValueError) as error:
        _exit(error)


def _check_table(path: str | None) -> None:
    """Raise ValueError if the table could not be written at the end."""
    if path is None:
        return
    flags.make_directory("table", path, os.path.dirname(path) or ".")
    if os.path.isdir(path) or not os.path.basename(path):
        raise ValueError(f"--table={path} must be a file; it is a directory: add a name, such as study.md")


def run(options: Options) -> int:
    """Train what is missing, write the table, and return the exit code."""
    tested = claims.QUICK if options.quick else claims.CLAIMS
    steps = QUICK_STEPS if options.quick else STEPS
    seeds = range(options.seeds or (QUICK_SEEDS if options.quick else SEEDS))
    setups = claims.setups(tested)
    with signals.catch() as received:
        try:
            complete = train(setups, seeds, steps, options.logdir, options.workers, received)
        except BrokenProcessPool:
            print(
                "tapescope-study: a worker was killed, perhaps for want of memory: use fewer --workers; the same "
                "command trains what is missing",
                file=sys.stderr,
            )
            return EXIT_STOPPED
        except OSError as error:
            _exit(error)
        if not complete:
            print(f"Stopped by {received[0]}. The same command trains what is missing.", file=sys.stderr, flush=True)
            return EXIT_STOPPED
    import_tensorflow()
    trials = {setup: [trial.load(setup, seed, steps, options.logdir) for seed in seeds] for setup in setups}
    path = options.table or os.path.join(options.logdir, "study.md")
    text = table.markdown(tested, trials, shortcut.measure(), steps, quick=options.quick)
    write_whole(path, text)
    print(f"Table: {path}. To see the runs: tensorboard --logdir {options.logdir}", file=sys.stderr, flush=True)
    return 0


def train(
    setups: Sequence[Setup], seeds: Sequence[int], steps: int, logdir: str, workers: int, received: list[str]
) -> bool:
    """Train every set-up with every seed, except runs that are complete.

    A set-up is one task, because its seeds share a program.

    Args:
        setups: The set-ups.
        seeds: The seeds of each.
        steps: Training steps of each run.
        logdir: Directory of the study.
        workers: Number of processes.
        received: Names of signals. After the first, the runs in progress end and no others begin.

    Returns:
        Whether all runs are complete.
    """
    missing = {
        setup: [seed for seed in seeds if trial.read_metrics(setup, seed, steps, logdir) is None] for setup in setups
    }
    total = sum(map(len, missing.values()))
    if not total:
        return True
    from tapescope_trainers.training.progress import Progress

    context = multiprocessing.get_context("spawn")  # a forked TensorFlow hangs
    shared = _Shared(context.Value("i", 0), context.Event())
    devices = context.Queue()
    for device in _assign_devices(workers):
        devices.put(device)
    progress = Progress(total, "runs")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (shared, devices, workers)) as pool:
        waiting = {pool.submit(_run_task, s, left, steps, logdir) for s, left in missing.items() if left}
        while waiting:
            ended, waiting = concurrent.futures.wait(waiting, timeout=0.5)
            progress.update(shared.done.value)
            if received:
                shared.stop.set()
            try:
                for future in ended:
                    future.result()
            except BaseException:  # a set-up failed: report it without training all others first
                shared.stop.set()
                raise
    progress.update(shared.done.value)
    progress.close()
    return shared.done.value == total


def _assign_devices(workers: int) -> list[str | None]:
    """Return each worker's CUDA_VISIBLE_DEVICES, in turn from the devices visible here; None leaves it as it is."""
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    return [visible[n % len(visible)] if len(visible) > 1 else None for n in range(workers)]


class _Shared(NamedTuple):
    """State that the workers share with their parent."""

    done: Any
    """Number of finished runs."""
    stop: Any
    """Event: begin no other run."""


_shared: Any = None
"""The _Shared of a worker."""


def _start_worker(shared: _Shared, devices: Any, workers: int) -> None:
    """Set a worker up before it imports TensorFlow: its device, number of threads, and GPU memory."""
    import signal

    global _shared
    _shared = shared
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent gets it too, and lets this worker end its run
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def _run_task(setup: Setup, seeds: Sequence[int], steps: int, logdir: str) -> None:
    """Train one set-up in a worker."""
    if _shared.stop.is_set():
        return
    tf = import_tensorflow()
    tf.get_logger().setLevel("ERROR")  # it warns of many traces, but each is of another network
    logging.set_verbosity(logging.ERROR)  # findings are expected here; they are in the records
    trial.train(setup, seeds, steps, logdir, on_run=_count_run, should_stop=_shared.stop.is_set)


def _count_run() -> None:
    with _shared.done.get_lock():
        _shared.done.value += 1


def _exit(error: BaseException) -> NoReturn:
    """Print the error in one line and exit."""
    print(f"tapescope-study: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)
