"""Puts the claims of the document to the test: trains all that they need, and writes a table of verdicts.

tapescope-study --logdir=runs/study --table=docs/study.md

The runs are for the Gradients tab to compare: tensorboard --logdir runs/study. To stop and go on is fine: what is
complete is not trained again.
"""

import concurrent.futures
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from absl import flags, logging

from tapescope_trainers.study import claims, shortcut, table, trial
from tapescope_trainers.study.grid import Setup
from tapescope_trainers.training import signals
from tapescope_trainers.training.progress import BAR

STEPS, QUICK_STEPS, QUICK_SEEDS = 600, 64, 2

_FLAGS = flags.FlagValues()
flags.DEFINE_string("logdir", "runs/study", "where the runs go, one directory a set-up and seed", _FLAGS)
flags.DEFINE_string("table", None, "where the table goes; default: study.md in --logdir", _FLAGS)
flags.DEFINE_integer("seeds", None, "runs of each set-up; default 5, with --quick 2", 2, 1000, _FLAGS)
flags.DEFINE_integer("workers", min(8, os.cpu_count() or 1), "processes that train side by side", 1, 256, _FLAGS)
flags.DEFINE_bool("quick", False, "few set-ups, seeds and steps: shows that all works, decides nothing", _FLAGS)


class Options(NamedTuple):
    """What the command line asks for; every field is the flag of the same name."""

    logdir: str
    table: str | None
    seeds: int | None
    workers: int
    quick: bool


def main(argv: Sequence[str] | None = None) -> None:
    """The console script. Exits: 0 with a table, 1 where it was stopped before, 2 with one line for bad input."""
    sys.exit(run(_parse(list(argv or sys.argv))))


def _parse(argv: list[str]) -> Options:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(f"{__doc__}\n{_FLAGS.main_module_help() or _FLAGS.get_help()}")
        sys.exit(0)
    try:
        rest = _FLAGS(argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}: everything is given as --flag=value")
        values: dict[str, Any] = {name: _FLAGS[name].value for name in Options._fields}
        options = Options(**values)
        os.makedirs(options.logdir, exist_ok=True)
        return options
    except (flags.Error, ValueError, OSError) as error:
        _refuse(error)


def run(options: Options) -> int:
    """Trains what is missing, then writes the table; the exit code."""
    asked = claims.QUICK if options.quick else claims.CLAIMS
    steps = QUICK_STEPS if options.quick else STEPS
    seeds = range(options.seeds or (QUICK_SEEDS if options.quick else 5))
    setups = claims.setups(asked)
    with signals.caught() as names:
        if not train(setups, seeds, steps, options.logdir, options.workers, names):
            print(f"ended by {names[0]}; the same command goes on from here", file=sys.stderr, flush=True)
            return 1
    _quiet()
    trials = {s: [trial.load(s, seed, steps, options.logdir) for seed in seeds] for s in setups}
    path = options.table or os.path.join(options.logdir, "study.md")
    text = table.markdown(asked, trials, shortcut.measure(), steps, quick=options.quick)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"the table is in {path}; the runs: tensorboard --logdir {options.logdir}", file=sys.stderr, flush=True)
    return 0


def train(
    setups: Sequence[Setup], seeds: Sequence[int], steps: int, logdir: str, workers: int, names: list[str]
) -> bool:
    """Trains every set-up with every seed in `workers` processes; False where `names` got a signal before the end.

    A set-up is one task, for its seeds share a program. A signal lets the runs under way end.
    """
    context = multiprocessing.get_context("spawn")  # a forked TensorFlow hangs
    left = {s: [n for n in seeds if trial.completed(s, n, steps, logdir) is None] for s in setups}
    total = sum(map(len, left.values()))
    if not total:
        return True
    shared = _Shared(context.Value("i", 0), context.Event())
    devices = context.Queue()
    for device in _devices(workers):
        devices.put(device)
    bar = _Bar(total)
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (shared, devices, workers)) as pool:
        waiting = {pool.submit(_task, s, missing, steps, logdir) for s, missing in left.items() if missing}
        while waiting:
            ended, waiting = concurrent.futures.wait(waiting, timeout=0.5)
            bar.show(shared.done.value)
            if names:
                shared.stop.set()
            try:
                for future in ended:
                    future.result()
            except BaseException:  # one set-up fails: do not train all others before saying so
                shared.stop.set()
                raise
        bar.show(shared.done.value, last=True)
    return shared.done.value == total


def _devices(workers: int) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each worker: the devices that are visible here, dealt out; None leaves it as it is."""
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    return [visible[n % len(visible)] if len(visible) > 1 else None for n in range(workers)]


class _Shared(NamedTuple):
    """What the workers and their parent tell each other."""

    done: Any
    """The number of finished runs."""
    stop: Any
    """Set: begin no other run."""


_shared: Any = None
"""In a worker."""


def _start_worker(shared: _Shared, devices: Any, workers: int) -> None:
    """Before TensorFlow wakes up: which device, how many threads, how much of the GPU's memory."""
    import signal

    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and lets this one end its task
    device = devices.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    _quiet()
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def _quiet() -> None:
    """Before TensorFlow wakes up; what fails still raises."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _task(setup: Setup, seeds: Sequence[int], steps: int, logdir: str) -> None:
    if _shared.stop.is_set():
        return
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # it warns of many traces: here each is another network
    logging.set_verbosity(logging.ERROR)  # findings are expected here; they are in the records
    trial.train(setup, seeds, steps, logdir, _tick, _shared.stop.is_set)


def _tick() -> None:
    with _shared.done.get_lock():
        _shared.done.value += 1


class _Bar:
    """How many runs are done and how long the rest takes: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, total: int):
        self._total, self._start = total, time.monotonic()
        self._live = sys.stderr.isatty()
        self._shown = 0.0

    def show(self, done: int, last: bool = False) -> None:
        now = time.monotonic()
        if not (self._live or last or now - self._shown >= 10):
            return
        self._shown = now
        left = round((now - self._start) / done * (self._total - done)) if done else 0
        text = f"{done}/{self._total} runs" + (f"  {left // 60}:{left % 60:02} left" if done else "")
        if self._live:
            filled = BAR * done // self._total
            text = f"\r{'#' * filled}{'.' * (BAR - filled)} {text}\x1b[K"
        print(text, end="" if self._live and not last else "\n", file=sys.stderr, flush=True)


def _refuse(error: BaseException) -> NoReturn:
    print(f"tapescope-study: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
