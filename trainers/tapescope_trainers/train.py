"""Trains a network with a measured GradientTape loop and records what the tape saw, for TensorBoard.

tapescope-train --preset=sigmoid_relu --logdir=runs/sigmoid_relu --serve
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import absl.flags
from absl import app

from tapescope_trainers import flags, serve
from tapescope_trainers.distributed import cluster
from tapescope_trainers.distributed.link import Link, join
from tapescope_trainers.flags import Options
from tapescope_trainers.training import resume, signals
from tapescope_trainers.training.build import Parts, make_step, prepare

CODE_BAD_INPUT = 2
CODE_LOST = 3
CODE_NOT_WRITTEN = 4
CODE_INTERRUPTED = 130
HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}


def main(argv: Sequence[str] | None = None) -> None:
    """The console script. Exits: 0 also after Ctrl-C, 130 after a second, 2 and one line on stderr for bad input.

    3 where another worker is lost: all end with one line that says which, within seconds. 4, with one line, where
    --strict_io is given and a record cannot be written.
    """
    logging.getLogger("tensorflow").setLevel(logging.WARNING)  # it tells of every collective that it makes
    logging.getLogger("absl").addFilter(lambda record: record.filename != "functional_saver.py")  # of every save
    try:
        app.run(run, argv=list(argv) if argv is not None else None, flags_parser=_parse)
    except KeyboardInterrupt:
        print("tapescope-train: ended at once", file=sys.stderr)
        sys.exit(CODE_INTERRUPTED)


def _parse(argv: list[str]) -> Options:
    if HELP & set(argv[1:]):
        print(f"{__doc__}\n{flags.help_text()}")
        sys.exit(0)
    absl.flags.FLAGS.mark_as_parsed()  # as `app.run` wants it; ours are in `flags`
    try:
        return flags.parse(argv)
    except ValueError as error:
        _refuse(error)


def run(options: Options) -> None:
    """Sets everything up, where bad input shows, and trains."""
    with contextlib.ExitStack() as stack:
        names = stack.enter_context(signals.caught())
        address = link = None
        try:
            if options.strategy == "multi_worker":
                link = join(cluster.find(options.cluster, options.workers), flags.hparams(options))
            chief = link is None or link.cluster.chief
            if options.serve and chief:
                address = stack.enter_context(serve.tensorboard(options.logdir, options.port))
                print(f"TensorBoard: {address}", file=sys.stderr, flush=True)
            parts = prepare(options, chief and resume.check(options), link)
        except (ValueError, OSError) as error:
            if link:
                link.end(str(error))
            _refuse(error)
        stack.enter_context(signals.caught(names))  # again: TensorFlow's servers take SIGTERM for themselves
        try:
            result = train(options, parts, names)
        except Exception as error:
            if link:
                _lost(link, parts, error)
            if options.strict_io and isinstance(error, OSError):
                _refuse(error, CODE_NOT_WRITTEN)
            raise
        if link:
            link.end()
        if not chief:
            return
        ending = f"ended by {result.interrupted} after {result.steps} steps" if result.interrupted else "done"
        numbers = "".join(f", {name} {value:.4g}" for name, value in result.metrics.items())
        print(f"{ending}{numbers}; the records are in {options.logdir}", file=sys.stderr, flush=True)
        if address:
            serve.stay(address, names)


def train(options: Options, parts: Parts, names: list[str]):
    """Trains to the end, or to the next step once `names` has a signal; the loop's Result."""
    from tapescope_trainers.distributed import strategy
    from tapescope_trainers.training import data, loop, step
    from tapescope_trainers.training.progress import Progress

    one_step = make_step(options, parts)
    evaluate = step.make_evaluation(parts.model, parts.strategy)
    held = parts.strategy.experimental_distribute_dataset(data.validation(parts.data, options.batch_size))
    # Held here: what TensorFlow has in the background for each replica may take a minute to end, after the records.
    batches = iter(parts.strategy.experimental_distribute_dataset(parts.batches))
    if parts.link:
        parts.link.on_loss(lambda line: _end(line, parts))
    with parts.recorder as recorder:
        if not parts.start:
            recorder.hparams(flags.hparams(options))
            # By its type: to take a batch would shuffle the others anew.
            recorder.graph(one_step.get_concrete_function(*batches.element_spec, False).graph)
        result = loop.train(
            one_step,
            batches,
            lambda: loop.validation(evaluate, held),
            recorder,
            steps=parts.steps,
            batch_size=options.batch_size,
            when=parts.when,
            validate_every=options.validate_every or len(parts.data.x_train) // options.batch_size,
            progress=Progress(
                parts.steps,
                options.batch_size,
                enabled=options.progress and (parts.link is None or parts.link.cluster.chief),
            ),
            signals=names,
            stop_on_error=options.on_finding == "stop",
            ends=strategy.agreement(parts.strategy) if parts.link else None,
            start=parts.start,
            metrics=parts.metrics,
            save=parts.save,
            save_every=options.checkpoint_every,
        )
        recorder.close(reason=f"ended by {result.interrupted}" if result.interrupted else "all steps done")
    return result


def _lost(link: Link, parts: Parts, error: Exception) -> NoReturn:
    """Ends this worker where TensorFlow failed: most often because another is gone, which the link says at once."""
    time.sleep(2)
    line = " ".join(str(error).split())
    link.end(f"{link.cluster.name(link.cluster.index)} failed: {line[:300]}")
    _end(f"{type(error).__name__}: {line[:600]}", parts)


def _end(line: str, parts: Parts) -> NoReturn:
    """Ends the process from any thread; the main one may wait for ever inside a collective."""
    parts.recorder.close(line)
    print(f"tapescope-train: {line}; start all workers again to go on", file=sys.stderr, flush=True)
    os._exit(CODE_LOST)


def _refuse(error: Exception, code: int = CODE_BAD_INPUT) -> NoReturn:
    """One line that names value and cure, and the exit code."""
    print(f"tapescope-train: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if __name__ == "__main__":
    main()
