"""All that a training needs, built from its flags: bad input shows here, before there is a record."""

from typing import Any, NamedTuple

from tapescope_trainers import flags
from tapescope_trainers.distributed.link import Link
from tapescope_trainers.flags import Options
from tapescope_trainers.training import resume


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


def prepare(options: Options, go_on: bool = False, link: Link | None = None) -> Parts:
    """Builds everything, in the order in which errors are cheapest. Raises ValueError and OSError on bad input.

    `go_on`: with the run that is in --logdir; with several workers the chief's word holds.
    """
    import keras  # TensorFlow takes seconds to import: not for --help or a misspelt flag

    import tapescope
    from tapescope_trainers.distributed import strategy
    from tapescope_trainers.training import checkpoints, data, models

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


def make_step(options: Options, parts: Parts) -> Any:
    """The compiled step that the flags ask for; see `step.make`."""
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
    )


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
