"""The command line of `tapescope-train`: flags, their bounds, and one-line errors. TensorFlow is not imported here."""

import difflib
import json
import math
import os
import re
import time
from typing import Any, NamedTuple

from absl import flags

from tapescope_trainers import user_code

EXAMPLE_PRESETS = ("relu_sigmoid", "sigmoid_relu", "parallel_branches")
"""Examples 1 to 3 of the text that the study tests."""
PRESETS = (*EXAMPLE_PRESETS, "mlp", "cnn", "resnet", "transformer")
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
ACTIVATIONS = (
    "relu",
    "elu",
    "leaky_relu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "relu6",
    "tanh",
    "sigmoid",
    "hard_sigmoid",
    "softplus",
    "softsign",
    "linear",
)
INITIALIZERS = (
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "random_normal",
    "random_uniform",
    "truncated_normal",
    "zeros",
    "ones",
)
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")
STRATEGIES = ("default", "one_device", "mirrored", "multi_worker", "tpu")
CLUSTERS = ("tf_config", "slurm", "kubernetes")
COLLECTIVES = ("auto", "ring", "nccl")
ON_FINDING = ("continue", "stop")
CAPTURE = ("never", "on_finding")
PRECISIONS = ("none", "float16", "bfloat16")
RESUME = ("auto", "never", "must")
HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
"""Arguments that ask for the help text."""
VERSION = "--version"


class Options(NamedTuple):
    """The parsed command line; every field is the flag of the same name."""

    preset: str
    model: str | None
    model_args: str | None
    loss: str | None
    metrics: str | None
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
    measure_every: int | str | None
    """A number of steps, `auto`, or None: never."""
    max_overhead_pct: float
    on_finding: str
    capture: str
    slow_every: int | None
    """None: never."""
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
    sink: list[str]


NOT_HPARAMS = {
    "logdir",
    "data_dir",
    "validate_every",
    "max_overhead_pct",
    "histograms",
    "layers",
    "serve",
    "port",
    "progress",
    "checkpoint_every",
    "resume",
    "collective",
    "cluster",
    "workers",
    "on_finding",
    "capture",
    "slow_every",
    "strict_io",
    "sink",
}
"""Flags that do not change a result."""


NEEDS: dict[str, tuple[str, Any]] = {
    "max_overhead_pct": ("measure_every", "auto"),
    "port": ("serve", True),
    "workers": ("cluster", "kubernetes"),
    "cluster": ("strategy", "multi_worker"),
}
"""Flags that would do nothing without a value of another flag."""


def hparams(options: Options) -> dict[str, bool | int | float | str]:
    """Return the options that can change a result, for TensorBoard's HParams tab. Unset ones are left out."""
    fields = {name: value for name, value in options._asdict().items() if name not in NOT_HPARAMS}
    fields["measure_every"] = options.measure_every or "never"
    if options.model is not None:
        del fields["preset"]
    return {name: value for name, value in fields.items() if value is not None}


class _Choice(flags.EnumParser):
    """absl's parser of an enumeration, whose error also suggests the nearest value."""

    def __init__(self, choices: tuple[str, ...]):
        super().__init__(choices)
        self.syntactic_help = f"one of {', '.join(choices)}"

    def parse(self, argument: str) -> str:
        if argument in self.enum_values:
            return argument
        nearest = difflib.get_close_matches(argument, self.enum_values, 1)
        suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"must be {self.syntactic_help}{suggestion}")


class _Number(flags.ArgumentParser):
    """absl's parser of a bounded number, with one message for all that is not allowed.

    By itself that parser accepts NaN, and its message for a text that is not a number does not name the bounds.
    """

    def __init__(self, parser: flags.IntegerParser | flags.FloatParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: str | float) -> float:
        try:
            value = self._parser.parse(argument)  # pyright: ignore[reportArgumentType]
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ValueError(f"must be {self.syntactic_help}")
        return value


class _NumberOrNever(_Number):
    """A bounded number, or `never`, which becomes None."""

    def __init__(self, parser: flags.IntegerParser):
        super().__init__(parser)
        self.syntactic_help += ", or never"

    def parse(self, argument: str | float) -> float | None:
        return None if argument == "never" else super().parse(argument)


class _NumberAutoOrNever(_NumberOrNever):
    """A bounded number, `auto`, or `never`, which becomes None."""

    def __init__(self, parser: flags.IntegerParser):
        super().__init__(parser)
        self.syntactic_help = self.syntactic_help.replace(", or never", ", auto, or never")

    def parse(self, argument: str | float) -> float | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return "auto" if argument == "auto" else super().parse(argument)


class _Boolean(flags.BooleanParser):
    """absl's parser of a truth value, with a message as the others have."""

    syntactic_help = "true or false"

    def parse(self, argument: str | int) -> bool:
        try:
            return super().parse(argument)
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None


class _Data(_Choice):
    """The name of a data set, `npz:PATH`, or a reference to a function."""

    def __init__(self):
        super().__init__((*DATASETS, "npz:PATH", "MODULE:FUNCTION", "FILE.py:FUNCTION"))

    def parse(self, argument: str) -> str:
        if not argument.startswith("npz:") and user_code.is_reference(argument):
            return argument
        if not argument.startswith("npz:"):
            return super().parse(argument)
        if not os.path.isfile(argument.removeprefix("npz:")):
            raise ValueError("there is no such file; write one with numpy.savez(path, x_train=..., y_train=...)")
        return argument


def check_data(value: str) -> None:
    """Raise ValueError unless a text can be the value of --data."""
    try:
        _Data().parse(value)
    except ValueError as error:
        raise ValueError(f"--data={value} {error}") from None


class _Reference(flags.ArgumentParser):
    """The place of a function."""

    syntactic_help = user_code.FORM

    def parse(self, argument: str) -> str:
        if not user_code.is_reference(argument):
            raise ValueError(f"must be {self.syntactic_help}")
        return argument


class _JsonObject(flags.ArgumentParser):
    """A JSON object, kept as text."""

    syntactic_help = "a JSON object"

    def parse(self, argument: str) -> str:
        try:
            value = json.loads(argument)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"must be {self.syntactic_help}, such as '{{\"width\": 64}}' ({error})") from None
        if not isinstance(value, dict):
            raise ValueError(f"must be {self.syntactic_help}, such as '{{\"width\": 64}}'; got {type(value).__name__}")
        return argument


class _Devices(flags.ArgumentParser):
    """A kind of device and how many of it."""

    syntactic_help = "all, cpu, gpu, cpu:N or gpu:N"

    def parse(self, argument: str) -> str:
        if not re.fullmatch(r"all|(cpu|gpu)(:[1-9]\d{0,2})?", argument):
            raise ValueError(f"must be {self.syntactic_help}, N from 1 to 999")
        return argument


class _Pattern(flags.ArgumentParser):
    """A regular expression."""

    syntactic_help = "a regular expression"

    def parse(self, argument: str) -> str:
        try:
            re.compile(argument)
        except re.error as error:
            raise ValueError(f"must be a valid regular expression ({error}); write .* to match any text") from None
        return argument


FLAGS = flags.FlagValues()
"""Our own, because TensorBoard takes over absl's global flags when it runs in the same process."""


def _define(
    parser: flags.ArgumentParser, name: str, default: Any, meaning: str, values: flags.FlagValues = FLAGS
) -> None:
    flags.DEFINE(parser, name, default, meaning, values, flags.ArgumentSerializer())


def _choice(name: str, default: str | None, choices: tuple[str, ...], meaning: str) -> None:
    _define(_Choice(choices), name, default, meaning)


def integer(
    name: str, default: int | None, meaning: str, low: int = 1, high: int = 10**9, values: flags.FlagValues = FLAGS
) -> None:
    """Define a flag with a bounded integer."""
    _define(_Number(flags.IntegerParser(low, high)), name, default, meaning, values)


def _integer_or_never(name: str, default: int | None, meaning: str) -> None:
    _define(_NumberOrNever(flags.IntegerParser(1, 10**9)), name, default, meaning)


def _float(name: str, default: float | None, meaning: str, low: float, high: float) -> None:
    _define(_Number(flags.FloatParser(low, high)), name, default, meaning)


def boolean(name: str, default: bool, meaning: str, values: flags.FlagValues = FLAGS) -> None:
    """Define a flag that is true or false, as `--name` or `--noname`."""
    flag = flags.BooleanFlag(name, default, meaning)
    flag.parser = _Boolean()
    flags.DEFINE_flag(flag, values)


def text(name: str, default: str | None, meaning: str, values: flags.FlagValues = FLAGS) -> None:
    """Define a flag with any text."""
    flags.DEFINE_string(name, default, meaning, values)


_choice("preset", "relu_sigmoid", PRESETS, "network; the first three take no shape flags")
_define(_Reference(), "model", None, "a function that returns your own Keras model, in place of --preset")
_define(_JsonObject(), "model_args", None, "arguments of that function by name")
text("loss", None, "loss of your own model: a name of Keras, or module:name; default: that with which it is compiled")
text("metrics", None, "metrics of your own model, separated by commas: names of Keras, or module:name")
text("logdir", None, "directory of the records; default runs/PRESET-DATE-TIME")
_define(
    _Data(),
    "data",
    "digits",
    "data set; npz:PATH has x_train, y_train and optionally x_test, y_test; MODULE:FUNCTION returns (x, y) or a "
    "tf.data.Dataset of examples",
)
flags.DEFINE_alias("dataset", "data", FLAGS)
text("data_dir", None, "directory with a copy of the data set (mnist.npz, ...); default: download it")
integer("batch_size", 64, "examples in a step, over all replicas; the last, smaller batch of an epoch is left out")
integer("epochs", 20, "passes over the training data")
integer("steps", None, "training steps, in place of --epochs")
integer("validate_every", None, "steps between validations; default: one epoch")
_choice("optimizer", "adam", OPTIMIZERS, "optimizer")
_float("learning_rate", 1e-3, "step size", 1e-12, 1e6)
_float("clip_norm", None, "largest global gradient norm; default: no clipping", 1e-12, 1e12)
integer("accumulate_steps", 1, "parts of a batch, computed in sequence: the same step in less memory", high=10**4)
_choice("mixed_precision", "none", PRECISIONS, "compute type; variables and the output stay float32")
boolean("jit_compile", False, "compile forward pass, backward pass and measuring with XLA")
integer("seed", 0, "seed of the initial weights, the split and the order of examples", 0, 2**31 - 1)
_choice("activation", None, ACTIVATIONS, "activation of the hidden layers; default relu")
integer("depth", None, "number of hidden layers or blocks; default by preset", high=1000)
integer("width", None, "units, filters or features of a hidden layer; default by preset", high=65536)
_choice("initializer", None, INITIALIZERS, "initializer of the kernels; default glorot_uniform")
_choice("strategy", "default", STRATEGIES, "mirrored: a replica a device; multi_worker: on several machines")
_define(_Devices(), "devices", "all", "devices to use; cpu:4 makes four logical devices of one processor")
_choice("collective", "auto", COLLECTIVES, "all-reduce algorithm: ring is for multi_worker, nccl for GPUs")
_choice("cluster", "tf_config", CLUSTERS, "source of the list of workers for multi_worker")
integer("workers", None, "number of pods to wait for with --cluster=kubernetes", high=10**4)
_define(
    _NumberAutoOrNever(flags.IntegerParser(1, 10**9)),
    "measure_every",
    "auto",
    "steps from one measured step to the next; auto: dense at first, then as often as --max_overhead_pct allows; with "
    "--strategy=multi_worker every 10",
)
_float("max_overhead_pct", 2, "time that measuring may take with --measure_every=auto, in per cent", 0.01, 100)
_choice("on_finding", "continue", ON_FINDING, "stop: end the training when the rules find an error")
_choice(
    "capture",
    "never",
    CAPTURE,
    "on_finding: keep what is needed to run a measured step again if it shows a spike, a NaN or an error; see "
    "`tapescope replay`",
)
_integer_or_never(
    "slow_every", 1000, "steps from one record with the slow columns, such as the stable rank, to the next; or never"
)
integer("window_examples", 1024, "examples over which a unit must be silent to count as dead")
_define(_Pattern(), "layers", None, "measure only the layers whose name has a match; default: all")
boolean("histograms", True, "record histograms of gradients and activations as well")
boolean("serve", False, "start TensorBoard during the training and print its address")
integer("port", 0, "port of --serve; 0: any free one", 0, 65535)
boolean("progress", True, "show progress on stderr: a bar in a terminal, otherwise a line every few seconds")
_integer_or_never("checkpoint_every", None, "steps between checkpoints; default: none")
_choice(
    "resume",
    "auto",
    RESUME,
    "auto: continue from the last checkpoint if there is one; never: start over and remove the earlier run from "
    "--logdir; must: fail if there is no checkpoint",
)
flags.DEFINE_multi_string("sink", [], "tool that gets some numbers: wandb, mlflow, trackio or webhook:URL", FLAGS)
boolean("strict_io", False, "end when a record cannot be written; by default it is counted and training goes on")


def parse(argv: list[str]) -> Options:
    """Return the options of a command line.

    Args:
        argv: The arguments; the first is the program.

    Raises:
        ValueError: An argument is not allowed. The message is one line with the flag, its value, and what is allowed.
    """
    FLAGS.unparse_flags()
    try:
        rest = FLAGS(argv)[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}: write every argument as --flag=value")
    options = Options(**{name: getattr(FLAGS, name) for name in Options._fields})
    _check_model(options)
    for name in ("activation", "depth", "width", "initializer"):
        if options.preset in EXAMPLE_PRESETS and getattr(options, name) is not None:
            raise ValueError(
                f"--{name}={getattr(options, name)} does not apply to --preset={options.preset}, whose shape is fixed: "
                f"leave it out, or use --preset=mlp, cnn, resnet or transformer"
            )
    for name, (other, value) in NEEDS.items():
        if FLAGS[name].present and getattr(options, name) is not None and getattr(options, other) != value:
            raise ValueError(
                f"{_as_argument(name, getattr(options, name))} applies to {_as_argument(other, value)} only; got "
                f"{_as_argument(other, getattr(options, other))}: leave one of them out"
            )
    if options.measure_every == "auto" and options.strategy == "multi_worker":
        for name in ("measure_every", "max_overhead_pct"):
            if FLAGS[name].present:
                raise ValueError(
                    f"--{name}={getattr(options, name)} depends on each worker's own clock, but all workers must "
                    "measure the same steps: use --measure_every=N with --strategy=multi_worker"
                )
        options = options._replace(measure_every=10)
    name = user_code.short_name(options.model) if options.model else options.preset
    logdir = options.logdir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    make_directory("logdir", logdir, logdir)
    return options._replace(logdir=logdir)


def _as_argument(name: str, value: Any) -> str:
    """Return a flag as it is written on the command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={'never' if value is None else format(value, 'g') if isinstance(value, float) else value}"


def _check_model(options: Options) -> None:
    if options.model is None:
        for name in ("model_args", "loss", "metrics"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name}={getattr(options, name)} is of your own model: leave it out, or add "
                    f"--model={user_code.FORM}"
                )
        return
    for name in ("preset", "activation", "depth", "width", "initializer"):
        if FLAGS[name].present:
            raise ValueError(
                f"--{name}={getattr(options, name)} does not apply to --model={options.model}: leave it out, or pass "
                "--model_args"
            )


def model_arguments(options: Options) -> dict[str, Any]:
    """Return the arguments of the function of --model."""
    return json.loads(options.model_args or "{}")


def make_directory(flag: str, value: str, directory: str) -> None:
    """Create the directory of a flag, so that a wrong one is reported before anything slow happens.

    Raises:
        ValueError: It cannot be created, or not written to.
    """
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--{flag}={value} cannot be created ({error.strerror}): use another directory") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ValueError(f"--{flag}={value} is not writable: use another directory")


def help_text() -> str:
    """Return what --help prints about the flags."""
    return FLAGS.module_help(__name__)
