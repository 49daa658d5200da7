"""Everything that a training needs, built from its flags. Bad input is found here, before the first record."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from tapescope_trainers import flags
from tapescope_trainers.distributed.link import Link
from tapescope_trainers.flags import Options
from tapescope_trainers.logs import import_tensorflow
from tapescope_trainers.training import resume, signals

CAPTURE_EVERY = 1000
"""Steps between the checkpoints from which captured steps are replayed, in a run without --checkpoint_every."""


class Parts(NamedTuple):
    """Model, optimizer, data and strategy: the same whenever they are built from the same flags."""

    strategy: Any
    data: Any
    model: Any
    optimizer: Any
    probe: Any
    objective: Any
    """Loss and metrics of a model of the user; None for a preset."""

    def batches(self, options: Options, skip: int) -> Any:
        """Return the endless pipeline of training batches after `skip` of them."""
        from tapescope_trainers.training import data, user_data

        pipelines: Any = user_data if self.objective else data
        return pipelines.batches(self.data, options.batch_size, options.seed, skip=skip)


class Training(NamedTuple):
    """Everything that a training needs, built and checked."""

    parts: Parts
    batches: Any
    when: Any
    recorder: Any
    steps: int
    start: int
    """Steps done before, in a run that continues."""
    metrics: dict[str, float]
    """Of the last validation, in a run that continues."""
    save: Any
    """The loop's `save`; None without checkpoints."""
    save_every: int | None
    """Steps between checkpoints."""
    link: Link | None
    """Connection to the other workers."""
    earlier: contextlib.ExitStack
    """Closed, it removes the run that this one replaces; left by an exception before, it puts that run back."""


def assemble(options: Options, continues: bool = False, link: Link | None = None) -> Parts:
    """Build what is trained; see `prepare` for the arguments.

    Raises:
        ValueError: Bad input.
    """
    import_tensorflow()  # here, because it takes seconds: not for --help or a misspelt flag
    import keras

    import tapescope
    from tapescope_trainers.distributed import strategy
    from tapescope_trainers.training import data, models, objective, user_data

    if link:
        link.wait_for_all()  # because TensorFlow waits for one that has ended meanwhile, and no Python runs then
    distribution = strategy.make(options.strategy, options.devices, options.collective, link.cluster if link else None)
    signals.take_back()
    replicas = distribution.num_replicas_in_sync
    strategy.check_batch(options.batch_size, replicas, options.accumulate_steps)
    if continues:
        resume.check_replicas(options, replicas)
    keras.utils.set_random_seed(options.seed)
    examples = _load_data(options)
    data.check_batch_size(examples.count, options.batch_size)
    if link:
        link.wait_for_all()  # from here on they compute together, and an earlier run is replaced
    goal = None
    with distribution.scope():
        if options.model is not None:
            assert isinstance(examples, user_data.UserData)
            model = objective.build_model(options.model, flags.model_arguments(options), options.mixed_precision)
            goal = objective.make(model, options.loss, options.metrics, examples)
        else:
            assert isinstance(examples, data.Data)
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
        optimizer = _make_optimizer(options)
        optimizer.build(model.trainable_variables)
    probe = tapescope.Probe(
        model,
        layers=options.layers,
        window_examples=options.window_examples,
        histograms=options.histograms,
        loss=goal and goal.loss,
    )
    return Parts(strategy=distribution, data=examples, model=model, optimizer=optimizer, probe=probe, objective=goal)


def prepare(options: Options, continues: bool = False, link: Link | None = None) -> Training:
    """Build everything, in the order in which errors are found soonest.

    Args:
        options: The command line.
        continues: Whether the run in --logdir continues. Of several workers the chief's value counts.
        link: Connection to the other workers.

    Raises:
        ValueError: Bad input.
        OSError: A file cannot be read or written.
    """
    parts = assemble(options, continues, link)

    import tapescope
    from tapescope.storage import captured_step
    from tapescope.storage.directory import DirectoryLock, absolute
    from tapescope_trainers.training import checkpoints

    chief = link is None or link.cluster.chief
    when = _make_schedule(options)
    steps = options.steps or options.epochs * (parts.data.count // options.batch_size)
    replicas = parts.strategy.num_replicas_in_sync
    captures = options.capture != "never"
    save_every = options.checkpoint_every or (CAPTURE_EVERY if captures else None)
    directory = resume.checkpoint_directory(options.logdir)
    if captures and not options.checkpoint_every and not continues:
        directory = captured_step.directory(options.logdir)  # where --resume does not look for a run to continue
    saved = checkpoints.Checkpoints(
        directory,
        parts.model,
        parts.optimizer,
        writes=chief,
        captured=lambda: captured_step.list_captured(options.logdir),
    )
    start = 0
    metrics: dict[str, float] = {}
    recorder_state: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        logdir: str | DirectoryLock = options.logdir
        if chief:
            # Checked, then locked; only then is anything of an earlier run changed.
            logdir = lock = DirectoryLock(absolute(options.logdir))
            stack.push(lambda kind, *_: lock.release() if kind else None)
            if resume.check(options) != continues:
                raise ValueError(f"--logdir={options.logdir} was changed by another program meanwhile: start again")
        chiefs_start = None if link is None or chief else link.receive("resume")
        if continues or chiefs_start is not None:
            start, arrays = saved.restore(chiefs_start)
            metrics, recorder_state = checkpoints.unpack(arrays)
        elif chief:
            stack.enter_context(resume.replaced(options.logdir))
            if save_every:
                # Before the first record, so that a directory with records also has a checkpoint.
                resume.begin(options, replicas, directory, parts.data, parts.model)
                saved.save(0, {})
        batches = parts.batches(options, skip=start)
        about = {"program": "tapescope-train", "steps": steps, "replicas": replicas} | flags.hparams(options)
        resumed = tapescope.Resume(start, recorder_state) if continues else None
        recorder = tapescope.Recorder(
            logdir,
            parts.probe,
            when,
            about,
            resumed,
            strict_io=options.strict_io,
            sinks=options.sink,
            capture=options.capture,
            capture_weights=False,  # the checkpoints have them
            slow_every=options.slow_every or 0,
        )
        if link and chief:
            link.send(resume=start if continues else None)
        earlier = stack.pop_all()

    return Training(
        parts=parts,
        batches=batches,
        when=when,
        recorder=recorder,
        steps=steps,
        start=start,
        metrics=metrics,
        save=_make_save(saved, recorder, options.strict_io) if save_every else None,
        save_every=save_every,
        link=link,
        earlier=earlier,
    )


def _make_schedule(options: Options) -> Any:
    import tapescope

    if options.measure_every == "auto":
        return tapescope.auto(options.max_overhead_pct)
    return tapescope.every(int(options.measure_every)) if options.measure_every else tapescope.never()


def _make_save(saved: Any, recorder: Any, strict: bool) -> Callable[[int, dict[str, float]], None]:
    """Return the loop's `save`, from the number of steps done and the metrics of the last validation."""
    from tapescope_trainers.training import checkpoints

    def save(done: int, metrics: dict[str, float]) -> None:
        try:
            saved.save(done, checkpoints.pack(metrics, recorder.state()))
        except OSError as error:
            if strict:
                raise
            logging.getLogger(__name__).warning("%s. The training goes on, and the checkpoint before stays", error)

    return save


def _load_data(options: Options) -> Any:
    from tapescope_trainers import user_code
    from tapescope_trainers.training import data, user_data

    is_reference = user_code.is_reference(options.data)
    if options.model is None:
        if is_reference:
            return data.from_arrays(options.data, user_data.load(options.data, options.seed))
        return data.load(options.data, options.data_dir, options.seed)
    if is_reference:
        return user_data.load(options.data, options.seed)
    return user_data.from_builtin(data.load(options.data, options.data_dir, options.seed))


def make_validation(options: Options, parts: Parts) -> Any:
    """Return a function that computes the validation metrics."""
    from tapescope_trainers.training import data, loop, objective, step, user_data

    pipelines: Any = user_data if parts.objective else data
    batches = parts.strategy.experimental_distribute_dataset(
        pipelines.validation_batches(parts.data, options.batch_size)
    )
    if parts.objective:
        evaluate = objective.make_evaluation(parts.model, parts.strategy, parts.objective)
        return lambda: objective.validation_metrics(evaluate, batches, parts.objective)
    evaluate = step.make_evaluation(parts.model, parts.strategy)
    return lambda: loop.validation_metrics(evaluate, batches)


def make_step(options: Options, parts: Parts) -> Any:
    """Return the compiled step that the flags describe; see `step.make`."""
    from tapescope_trainers.training import step

    return step.make(
        parts.model,
        parts.optimizer,
        parts.probe,
        parts.strategy,
        batch_size=options.batch_size,
        clip_norm=options.clip_norm,
        accumulate_steps=options.accumulate_steps,
        jit_compile=options.jit_compile,
        objective=parts.objective,
    )


def _make_optimizer(options: Options):
    import keras

    make = {
        "sgd": keras.optimizers.SGD,
        "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "rmsprop": keras.optimizers.RMSprop,
    }[options.optimizer]
    optimizer = make(options.learning_rate)
    if options.mixed_precision == "float16":  # bfloat16 has enough exponent bits for small gradients
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
