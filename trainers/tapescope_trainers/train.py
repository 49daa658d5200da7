"""Train a network in a measured GradientTape loop and record its gradients and activations for TensorBoard.

tapescope-train --preset=sigmoid_relu --logdir=runs/sigmoid_relu --serve
"""

import contextlib
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import absl.flags
from absl import app

import tapescope
from tapescope.storage.text_file import write_whole
from tapescope_trainers import flags, logs, serve, user_code
from tapescope_trainers.distributed import cluster
from tapescope_trainers.distributed.link import Link, join
from tapescope_trainers.flags import Options
from tapescope_trainers.training import resume, signals
from tapescope_trainers.training.build import Training, make_step, make_validation, prepare

EXIT_BAD_INPUT = 2
EXIT_WORKER_LOST = 3
EXIT_NOT_WRITTEN = 4
EXIT_INTERRUPTED = 130
TRACEBACK = "traceback.txt"
"""File in LOGDIR with the traceback of the last failure in the user's code."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the console script `tapescope-train`.

    Exit codes: 0 at the end, also after one Ctrl-C; 130 after a second; 2 for bad input; 3 if another worker is lost;
    4 if a record cannot be written under --strict_io. All but 0 come with one line on stderr.
    """
    start(run, parse_flags, argv)


def start(program: Callable[[Any], None], parse: Callable[..., Any], argv: Sequence[str] | None = None) -> None:
    """Run a program that trains, and end the process when it is stopped at once.

    Args:
        program: gets what `parse` returns.
        parse: from arguments to what the program gets.
        argv: of the process by default.
    """
    logs.protect_streams()
    try:
        app.run(program, argv=list(argv) if argv is not None else None, flags_parser=parse)
    except KeyboardInterrupt:
        print("tapescope-train: stopped at once", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def parse_flags(argv: list[str]) -> Options:
    """Return the parsed command line; print the help text or one line for a bad flag, and exit."""
    if flags.HELP & set(argv[1:]):
        print(f"{__doc__}\n{flags.help_text()}")
        sys.exit(0)
    if flags.VERSION in argv[1:]:
        print(f"tapescope-train {tapescope.__version__}")
        sys.exit(0)
    absl.flags.FLAGS.mark_as_parsed()  # `app.run` expects it; our flags are in `flags.FLAGS`
    try:
        return flags.parse(argv)
    except ValueError as error:
        _exit(error)


def run(options: Options, received: list[str] | None = None) -> None:
    """Build everything, which finds bad input, and train.

    Args:
        options: the parsed command line.
        received: gets the name of a signal that stops the training, for a program that trains several and serves them.
    """
    alone = received is None
    with contextlib.ExitStack() as stack:
        stack.enter_context(logs.plain_lines())
        received = stack.enter_context(signals.catch(received))
        address = None
        link = None
        waiting = contextlib.ExitStack()
        try:
            if options.strategy == "multi_worker":
                waiting.enter_context(signals.stoppable(received))
                link = join(cluster.find(options.cluster, options.workers), flags.hparams(options))
            chief = link is None or link.cluster.chief
            if options.serve and chief:
                address = stack.enter_context(serve.tensorboard(options.logdir, options.port))
                print(f"TensorBoard: {address}", file=sys.stderr, flush=True)
            training = prepare(options, chief and resume.check(options), link)
        except signals.Stopped as stop:
            if link:
                link.end(f"{link.cluster.name(link.cluster.index)} was stopped by {stop} before the first step")
            print(f"Stopped by {stop} before the first step", file=sys.stderr)
            return
        except (ValueError, OSError) as error:
            if link:
                link.end(str(error))
            _exit(_with_traceback(error, options.logdir))
        except ModuleNotFoundError as error:
            _exit(ValueError(f"the package {error.name} is missing: pip install 'tapescope[trainers]'"))
        except Exception as error:
            if link and link.loss():  # another worker has ended while they build the model together
                _exit(RuntimeError(link.loss()), EXIT_WORKER_LOST)
            _exit_if_explained(error, options.logdir)
            raise
        finally:
            waiting.close()
        try:
            result = train(options, training, received)
        except Exception as error:
            if link:
                _exit_after_failure(link, training, error)
            if options.strict_io and isinstance(error, OSError):
                _exit(error, EXIT_NOT_WRITTEN)
            _exit_if_explained(error, options.logdir)
            raise
        if link:
            link.end()
        if not chief:
            return
        outcome = f"Stopped by {result.interrupted} after {result.steps} steps" if result.interrupted else "Done"
        advice = ""
        if not result.interrupted and training.start >= training.steps:
            outcome = f"Nothing to do: {training.start} steps of {training.steps} were done before"
            advice = ". To go on, use a larger --steps or --epochs; to start over, --resume=never"
        metrics = "".join(f", {name} {value:.4g}" for name, value in result.metrics.items())
        if alone and not advice:
            directory = shlex.quote(options.logdir)
            look = "" if address else f"tensorboard --logdir {directory}  or  "
            print(f"tapescope: look at the run with  {look}tapescope check {directory}", file=sys.stderr)
        print(f"{outcome}{metrics}. Records: {options.logdir}{advice}", file=sys.stderr, flush=True)
        if address:
            serve.wait_for_signal(address, received)


def train(options: Options, training: Training, received: list[str]):
    """Train to the end, or to the next step after `received` gets a signal's name.

    The run that this one replaces is removed after the first step. Where that fails, it is put back.

    Returns:
        The `loop.Result`.
    """
    with training.earlier:
        return _train(options, training, received)


def _train(options: Options, training: Training, received: list[str]):
    from tapescope_trainers.distributed import strategy
    from tapescope_trainers.training import loop
    from tapescope_trainers.training.progress import Progress

    train_step = make_step(options, training.parts)
    validate = make_validation(options, training.parts)
    # This name keeps the iterator alive: TensorFlow may take a minute to end its background threads, and that must not
    # come before the last records are written.
    with strategy.device_datasets_without_autotune():
        batches = iter(training.parts.strategy.experimental_distribute_dataset(training.batches))
    link = training.link
    if link:
        link.on_loss(lambda line: _exit_without_worker(line, training))
    with strategy.device_datasets_without_autotune(), training.recorder as recorder:
        if not training.start:
            recorder.hparams(flags.hparams(options))
            # By the batch's type: taking a batch would change the order of the others.
            recorder.graph(train_step.get_concrete_function(*batches.element_spec, False).graph)
        result = loop.train(
            train_step,
            batches,
            validate,
            recorder,
            steps=training.steps,
            batch_size=options.batch_size,
            when=training.when,
            validate_every=options.validate_every or training.parts.data.count // options.batch_size,
            progress=Progress(
                training.steps,
                "steps",
                batch_size=options.batch_size,
                enabled=options.progress and (link is None or link.cluster.chief),
            ),
            received=received,
            stop_on_error=options.on_finding == "stop",
            should_stop=strategy.stop_agreement(training.parts.strategy) if link else None,
            start=training.start,
            metrics=training.metrics,
            save=training.save,
            save_every=training.save_every,
            begun=training.earlier.close,
        )
        recorder.close(reason=f"ended by {result.interrupted}" if result.interrupted else "all steps done")
    with contextlib.suppress(OSError):  # there is none, or it cannot be removed
        os.remove(os.path.join(options.logdir, TRACEBACK))  # of a failure that this run does not have any more
    return result


def _exit_after_failure(link: Link, training: Training, error: Exception) -> NoReturn:
    """End this worker after TensorFlow failed. Usually another worker is gone, which the link reports first."""
    time.sleep(2)
    line = " ".join(str(error).split())
    silent = re.search(r"heartbeat.*?/job:worker/replica:0/task:(\d+)", line)
    if silent:  # its kernel still answers, so the link does not notice
        line = f"{link.cluster.name(int(silent[1]))} is lost: it has stopped answering"
        link.end(line)
    else:
        link.end(f"{link.cluster.name(link.cluster.index)} failed: {line[:300]}")
        line = f"{type(error).__name__}: {line[:600]}"
    _exit_without_worker(line, training)


def _exit_without_worker(line: str, training: Training) -> NoReturn:
    """End the process from any thread; the main thread may wait forever in a collective."""
    try:
        training.recorder.close(line)
        print(f"tapescope-train: {line}; start all workers again to continue", file=sys.stderr, flush=True)
    finally:
        os._exit(EXIT_WORKER_LOST)


def _exit_if_explained(error: Exception, logdir: str) -> None:
    """Exit with one line if there is not enough memory, or a function of the user has failed."""
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # of TensorFlow
        line = (
            f"there is not enough memory: lower --batch_size, add --accumulate_steps, or make the model smaller "
            f"({user_code.describe(error)})"
        )
    else:
        line = user_code.find_failure(error)
    if line is not None:
        _exit(_with_traceback(ValueError(line), logdir, error))


def _with_traceback(error: Exception, logdir: str, cause: BaseException | None = None) -> Exception:
    """Return an error that also says where the traceback of its cause, a failure in the user's code, was written."""
    cause = cause or error.__cause__
    if cause is None:
        return error
    path = os.path.join(logdir, TRACEBACK)
    try:
        write_whole(path, "".join(traceback.format_exception(cause)))
    except OSError:  # the line says the most
        return error
    return ValueError(f"{str(error).rstrip('.')}. Its traceback is in {path}")


def _exit(error: Exception, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print the error in one line and exit."""
    print(f"tapescope-train: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
