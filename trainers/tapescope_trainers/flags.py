"""The command line of `tapescope-train`: flags, their bounds, and one-line errors. TensorFlow is not imported here."""

import difflib
import os
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from absl import flags

GIVEN_PRESETS = ("relu_sigmoid", "sigmoid_relu", "parallel_branches")
PRESETS = (*GIVEN_PRESETS, "mlp", "cnn", "resnet", "transformer")
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
ACTIVATIONS = (
    *("relu", "elu", "leaky_relu", "selu", "gelu", "silu", "mish", "relu6"),
    *("tanh", "sigmoid", "hard_sigmoid", "softplus", "softsign", "linear"),
)
INITIALIZERS = (
    *("glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal"),
    *("orthogonal", "random_normal", "random_uniform", "truncated_normal", "zeros", "ones"),
)
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")
STRATEGIES = ("default", "one_device", "mirrored", "multi_worker", "tpu")
CLUSTERS = ("tf_config", "slurm", "kubernetes")
COLLECTIVES = ("auto", "ring", "nccl")
ON_FINDING = ("continue", "stop")
PRECISIONS = ("none", "float16", "bfloat16")


class Options(NamedTuple):
    """What the command line asks for; every field is the flag of the same name."""

    preset: str
    logdir: str
    data: str
    data_dir: str | None
    batch_size: int
    epochs: int
    steps: int | None
    validate_every: int | None
    optimizer: str
    learning_rate: float
    clip_norm: float | None
    accumulate_steps: int
    mixed_precision: str
    jit_compile: bool
    seed: int
    activation: str | None
    depth: int | None
    width: int | None
    initializer: str | None
    strategy: str
    devices: str
    collective: str
    cluster: str
    workers: int | None
    measure_every: int | None
    """None: never."""
    max_overhead_pct: float | None
    on_finding: str
    window_examples: int
    layers: str | None
    histograms: bool
    serve: bool
    port: int
    progress: bool
    checkpoint_every: int | None
    """None: never."""
    resume: str
    strict_io: bool


def hparams(options: Options) -> dict[str, bool | int | float | str]:
    """The options that can change a result, for TensorBoard's HParams tab; absent ones are left out."""
    silent = {"logdir", "data_dir", "validate_every", "histograms", "layers", "serve", "port", "progress"}
    silent |= {"checkpoint_every", "resume", "collective", "cluster", "workers", "on_finding", "strict_io"}
    fields = {name: value for name, value in options._asdict().items() if name not in silent}
    fields["measure_every"] = options.measure_every or "never"
    return {name: value for name, value in fields.items() if value is not None}


class _Choice(flags.ArgumentParser):
    """One of `choices`; the error suggests the nearest."""

    def __init__(self, choices: Iterable[str]):
        self.choices = tuple(choices)
        self.syntactic_help = f"one of {', '.join(self.choices)}"

    def parse(self, argument: str) -> str:
        if argument in self.choices:
            return argument
        near = difflib.get_close_matches(argument, self.choices, 1)
        raise ValueError(f"must be {self.syntactic_help}" + (f"; did you mean {near[0]}?" if near else ""))


class _Number(flags.ArgumentParser):
    """A number from `low` to `high`; where `never` is allowed it is None."""

    def __init__(self, kind: type, low: float, high: float, *, never: bool = False):
        self.kind, self.low, self.high, self.never = kind, low, high, never
        noun = "an integer" if kind is int else "a number"
        low_text, high_text = (str(n) if kind is int else f"{n:g}" for n in (low, high))
        self.syntactic_help = f"{noun} from {low_text} to {high_text}" + (", or never" if never else "")

    def parse(self, argument: str | float) -> float | None:
        if self.never and argument == "never":
            return None
        try:
            value = self.kind(argument)
        except ValueError:
            value = None
        if value is None or not self.low <= value <= self.high:
            raise ValueError(f"must be {self.syntactic_help}")
        return value


class _Data(_Choice):
    """A data set's name, or `npz:PATH`."""

    def __init__(self):
        super().__init__((*DATASETS, "npz:PATH"))

    def parse(self, argument: str) -> str:
        if not argument.startswith("npz:"):
            return super().parse(argument)
        if not os.path.isfile(argument[4:]):
            raise ValueError("there is no such file; write one with numpy.savez(path, x_train=..., y_train=...)")
        return argument


class _Devices(flags.ArgumentParser):
    syntactic_help = "all, cpu, gpu, cpu:N or gpu:N"

    def parse(self, argument: str) -> str:
        if not re.fullmatch(r"all|(cpu|gpu)(:[1-9]\d{0,2})?", argument):
            raise ValueError(f"must be {self.syntactic_help}, N from 1 to 999")
        return argument


class _Pattern(flags.ArgumentParser):
    syntactic_help = "a regular expression"

    def parse(self, argument: str) -> str:
        try:
            re.compile(argument)
        except re.error as error:
            raise ValueError(f"is no regular expression ({error}); to match any text write .* and not *") from None
        return argument


def _define(parser: flags.ArgumentParser, name: str, default: Any, text: str) -> None:
    flags.DEFINE(parser, name, default, text, FLAGS, flags.ArgumentSerializer())


RESUME = ("auto", "never", "must")
FLAGS = flags.FlagValues()
"""Our own and not absl's global one, all of which TensorBoard takes over where it runs in the same process."""
_count = _Number(int, 1, 10**9)
_define(_Choice(PRESETS), "preset", "relu_sigmoid", "the network; the first three take no shape flags")
flags.DEFINE_string("logdir", None, "where the records go; default runs/PRESET-DATE-TIME", FLAGS)
_define(_Data(), "data", "digits", "the data set; npz:PATH has x_train, y_train and maybe x_test, y_test")
flags.DEFINE_alias("dataset", "data", FLAGS)
flags.DEFINE_string("data_dir", None, "folder with a copy of the data set: mnist.npz, ...; default: download", FLAGS)
_define(_count, "batch_size", 64, "examples in a step, over all replicas; an epoch's last, smaller batch is left out")
_define(_count, "epochs", 20, "passes over the training data")
_define(_count, "steps", None, "training steps, in place of --epochs")
_define(_count, "validate_every", None, "steps between validations; default: one epoch")
_define(_Choice(OPTIMIZERS), "optimizer", "adam", "the optimizer")
_define(_Number(float, 1e-12, 1e6), "learning_rate", 1e-3, "step size")
_define(_Number(float, 1e-12, 1e12), "clip_norm", None, "largest global gradient norm; default: no clipping")
_define(
    _Number(int, 1, 10**4), "accumulate_steps", 1, "parts of a batch, one after another: less memory, the same step"
)
_define(_Choice(PRECISIONS), "mixed_precision", "none", "compute type; variables and the output stay float32")
flags.DEFINE_bool("jit_compile", False, "compile forward, backward and measuring with XLA", FLAGS)
_define(_Number(int, 0, 2**31 - 1), "seed", 0, "fixes the initial weights, the split and the order of examples")
_define(_Choice(ACTIVATIONS), "activation", None, "of the hidden layers; default relu")
_define(_Number(int, 1, 1000), "depth", None, "hidden layers or blocks; default by preset")
_define(_Number(int, 1, 65536), "width", None, "units, filters or features; default by preset")
_define(_Choice(INITIALIZERS), "initializer", None, "of the kernels; default glorot_uniform")
_define(_Choice(STRATEGIES), "strategy", "default", "mirrored: a replica a device; multi_worker: on several machines")
_define(_Devices(), "devices", "all", "devices to use; cpu:4 makes four logical devices of one processor")
_define(_Choice(COLLECTIVES), "collective", "auto", "how replicas sum: ring is for multi_worker, nccl for GPUs")
_define(_Choice(CLUSTERS), "cluster", "tf_config", "where multi_worker finds out who the workers are")
_define(_Number(int, 1, 10**4), "workers", None, "how many pods to wait for with --cluster=kubernetes")
_define(_Number(int, 1, 10**9, never=True), "measure_every", 10, "steps from one measured step to the next")
_define(
    _Number(float, 0.01, 100), "max_overhead_pct", None, "measure as often as this share of the time allows instead"
)
_define(_Choice(ON_FINDING), "on_finding", "continue", "stop: end once the rules find an error")
_define(_count, "window_examples", 1024, "examples over which a unit must be silent to count as dead")
_define(_Pattern(), "layers", None, "measure only the layers whose name has a match; default: all")
flags.DEFINE_bool("histograms", True, "record histograms of gradients and activations as well", FLAGS)
flags.DEFINE_bool("serve", False, "start TensorBoard beside the training and print its address", FLAGS)
_define(_Number(int, 0, 65535), "port", 0, "port of --serve; 0: any free one")
flags.DEFINE_bool("progress", True, "report on stderr: a bar in a terminal, else a line now and then", FLAGS)
_define(_Number(int, 1, 10**9, never=True), "checkpoint_every", None, "steps between checkpoints; default: none")
_define(
    _Choice(RESUME),
    *("resume", "auto"),
    "auto goes on from the last checkpoint where there is one; never starts over and removes what --logdir has of "
    "an earlier run; must goes on or ends",
)
flags.DEFINE_bool("strict_io", False, "end where a record cannot be written; else that is counted", FLAGS)


def parse(argv: list[str]) -> Options:
    """The options in `argv`, whose first item is the program. Raises ValueError of one line on anything wrong."""
    FLAGS.unparse_flags()
    try:
        rest = FLAGS(argv)[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}: everything is given as --flag=value")
    options = Options(**{name: getattr(FLAGS, name) for name in Options._fields})
    given = options.preset in GIVEN_PRESETS
    for name in ("activation", "depth", "width", "initializer"):
        if given and getattr(options, name) is not None:
            raise ValueError(
                f"--{name}={getattr(options, name)} does not apply to --preset={options.preset}, which is a given "
                f"network: leave it out, or take --preset=mlp, cnn, resnet or transformer"
            )
    if options.max_overhead_pct and options.strategy == "multi_worker":
        raise ValueError(
            f"--max_overhead_pct={options.max_overhead_pct:g} goes by each worker's own clock, and all must measure "
            "the same steps: take --measure_every with --strategy=multi_worker"
        )
    logdir = options.logdir or f"runs/{options.preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    return options._replace(logdir=_writable(logdir))


def _writable(logdir: str) -> str:
    """Makes the folder, so that a wrong one is told of before anything slow happens."""
    try:
        os.makedirs(logdir, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--logdir={logdir} cannot be made ({error.strerror}): give a folder of your own") from None
    if not os.access(logdir, os.W_OK | os.X_OK):
        raise ValueError(f"--logdir={logdir} cannot be written: give a folder of your own")
    return logdir


def help_text() -> str:
    """What --help prints."""
    return FLAGS.module_help(__name__)
