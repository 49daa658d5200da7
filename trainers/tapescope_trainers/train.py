"""Trains a network with a measured GradientTape loop and records what the tape saw, for TensorBoard.

tapescope-train --preset=sigmoid_relu --logdir=runs/sigmoid_relu --serve
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import absl.flags
from absl import app

from tapescope_trainers import cluster, flags, resume, serve, signals
from tapescope_trainers.flags import Options
from tapescope_trainers.link import Link, join

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


class Parts(NamedTuple):
    """All that a training needs, built and checked."""

    strategy: Any
    data: Any
    batches: Any
    model: Any
    optimizer: Any
    probe: Any
    when: Any
    recorder: Any
    steps: int
    start: int
    """Steps that were done before."""
    metrics: dict[str, float]
    """The last validation's, of the run that goes on."""
    save: Any
    """What the loop is given to save with; None without checkpoints."""
    link: Link | None
    """To the other workers."""


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


def prepare(options: Options, go_on: bool = False, link: Link | None = None) -> Parts:
    """Builds everything, in the order in which errors are cheapest. Raises ValueError and OSError on bad input.

    `go_on`: with the run that is in --logdir; with several workers the chief's word holds.
    """
    import keras  # TensorFlow takes seconds to import: not for --help or a misspelt flag

    import tapescope
    from tapescope_trainers import checkpoints, data, models, strategy

    chief = link is None or link.cluster.chief
    distribution = strategy.make(
        *(options.strategy, options.devices, options.collective), link.cluster if link else None
    )
    replicas = distribution.num_replicas_in_sync
    strategy.check_batch(options.batch_size, replicas, options.accumulate_steps)
    if go_on:
        resume.check_replicas(options, replicas)
    keras.utils.set_random_seed(options.seed)
    examples = data.load(options.data, options.data_dir, options.seed)
    with distribution.scope():
        model = models.build(
            options.preset,
            examples.shape,
            examples.classes,
            activation=options.activation,
            depth=options.depth,
            width=options.width,
            initializer=options.initializer,
            mixed_precision=options.mixed_precision,
        )
        optimizer = _optimizer(options)
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(
        model, layers=options.layers, window_examples=options.window_examples, histograms=options.histograms
    )
    if options.max_overhead_pct:
        when = tapescope.budget(options.max_overhead_pct)
    else:
        when = tapescope.every(options.measure_every) if options.measure_every else tapescope.never()
    steps = options.steps or options.epochs * (len(examples.x_train) // options.batch_size)
    saved = checkpoints.Checkpoints(resume.folder(options.logdir), model, optimizer, writes=chief)
    start, metrics, state = 0, {}, {}
    wanted = None if link is None or chief else link.hear("resume")
    if go_on or wanted is not None:
        start, arrays = saved.restore(wanted)
        metrics, state = checkpoints.parts(arrays)
    elif options.checkpoint_every and chief:
        # Before there is any record: where there are records, there is a checkpoint.
        resume.begin(options, replicas)
        saved.save(0, {})
    if link and chief:
        link.tell(resume=start if go_on else None)
    batches = data.batches(examples, options.batch_size, options.seed, skip=start)
    about = {"program": "tapescope-train", "steps": steps, "replicas": replicas} | flags.hparams(options)
    going_on = tapescope.Resume(start, state) if go_on else None
    recorder = tapescope.Recorder(options.logdir, probe, when, about, going_on, strict_io=options.strict_io)

    def save(done: int, metrics: dict[str, float]) -> None:
        saved.save(done, checkpoints.position(metrics, recorder.state()))

    saving = save if options.checkpoint_every else None
    return Parts(
        *(distribution, examples, batches, model, optimizer, probe, when, recorder, steps, start, metrics, saving, link)
    )


def train(options: Options, parts: Parts, names: list[str]):
    """Trains to the end, or to the next step once `names` has a signal; the loop's Result."""
    from tapescope_trainers import data, loop, step, strategy
    from tapescope_trainers.progress import Progress

    one_step = step.make(
        parts.model,
        parts.optimizer,
        parts.probe,
        parts.strategy,
        batch_size=options.batch_size,
        clip_norm=options.clip_norm,
        accumulate_steps=options.accumulate_steps,
        jit_compile=options.jit_compile,
    )
    evaluate = step.make_evaluation(parts.model, parts.strategy)
    held = parts.strategy.experimental_distribute_dataset(data.validation(parts.data, options.batch_size))
    # Held here: what TensorFlow has in the background for each replica may take a minute to end, with the records closed.
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


def _optimizer(options: Options):
    import keras

    make = {
        "sgd": keras.optimizers.SGD,
        "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "rmsprop": keras.optimizers.RMSprop,
    }[options.optimizer]
    optimizer = make(options.learning_rate)
    # Only float16 has so few exponent bits that gradients vanish in it.
    return keras.optimizers.LossScaleOptimizer(optimizer) if options.mixed_precision == "float16" else optimizer


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
