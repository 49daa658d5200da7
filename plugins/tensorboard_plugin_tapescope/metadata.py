"""The wire contract: the tags of a run, the meaning of their tensors, and its schema version.

Each recorded step has one tensor summary for each family, under the tag `tapescope/<family>`:

    family                 dtype    shape      one row for each ...
    variables              float32  [C, V]     column of ALL_VARIABLE_COLUMNS
    layers                 float32  [C, L]     column of ALL_LAYER_COLUMNS
    step                   float64  [C]        column of STEP_COLUMNS
    replicas               float32  [C R, V]   column of REPLICA_COLUMNS and replica (column-major); [C R, 1] of many
    data                   float32  [C, D]     column of DATA_COLUMNS; D inputs, targets and outputs of the model
    heads                  float32  [C, H]     column of HEAD_COLUMNS; H attention heads
    residual               float32  [C, P]     column of RESIDUAL_COLUMNS; P points of the residual stream, by depth
    gradient_histogram     int32    [V, B]     variable; B signed logarithmic bins, see `bin_edges`
    activation_histogram   int32    [L, B]     layer
    units                  uint8    [sum U]    unit, layer after layer: an index into UNIT_STATES;
                                               written only at steps where a window of examples closes
    findings               string   [n]        finding so far, as JSON; the last event has all
    status                 string   []         JSON of the run's status; first and last event
    rows                   string   []         JSON of all variables, layers and heads; written where rows are
                                               added after the first record, and the last event has all

The first event of each tag carries `Family` as JSON in its plugin content. A reader accepts every schema up to its
own `SCHEMA`, and raises `SchemaError` for a newer one. Columns are found by name and not by position, because a later
version may add some.

Rows are only ever added, behind those that are there. Where a run has the family `rows` (schema 2), its names and
details replace those of the descriptions, later tensors are wider, and earlier ones are absent in the added rows.

A finding is `{"rule", "version", "severity": "error" | "warning" | "info", "layer": name or null, "step",
"message": one sentence, "evidence": {name: number}, "advice": one sentence}`. A status is `{"state": "training" |
"ended", "reason": text, "replicas": R, "steps": planned or null, "started": seconds since 1970, ...}`. A reader decides
from the wall time of the last event whether a run whose state is "training" has stalled.

This module needs only numpy and tensorboard's protocol buffers.
"""

import json
from typing import Any, NamedTuple

import numpy as np
from tensorboard.compat.proto import summary_pb2

PLUGIN_NAME = "tapescope"
SCHEMA = 2
"""Newest schema that is read."""
FIRST_SCHEMA = 1
"""Schema of all families but `rows`."""
ROWS_SCHEMA = 2
"""Schema of the family `rows`, which a run has only if rows were added to it."""


class Column(NamedTuple):
    """A measured quantity: its name on the wire, its definition and its scale."""

    name: str
    definition: str
    """A phrase that is shown with the numbers."""
    unit: str = ""
    scale: str = "linear"
    """"log" (decades), "linear", "fraction" (0 to 1), "count" or "diverging" (about 0)."""


VARIABLE_COLUMNS = (
    Column("gradient_norm", "L2 norm of the gradient of the whole batch, before clipping", "", "log"),
    Column("applied_norm", "L2 norm of the gradient that the optimizer receives, after clipping", "", "log"),
    Column("weight_norm", "L2 norm of the weights before the update", "", "log"),
    Column("gradient_max", "largest absolute element of the gradient", "", "log"),
    Column("gradient_zero", "share of the gradient's elements that are exactly 0", "", "fraction"),
    Column("gradient_nonfinite", "number of NaN and Inf elements in the gradient", "elements", "count"),
    Column("update_ratio", "L2 norm of the optimizer's change, over the L2 norm of the weights before it", "", "log"),
    Column("update_norm", "L2 norm of the optimizer's change of the weights", "", "log"),
    Column("noise_scale", "gradient noise scale (McCandlish et al. 2018); needs two replicas", "examples", "log"),
)

LAYER_COLUMNS = (
    Column("activation_mean", "mean of the layer's output", "", "diverging"),
    Column("activation_std", "standard deviation of the layer's output", "", "log"),
    Column("activation_min", "smallest output", "", "diverging"),
    Column("activation_max", "largest output", "", "diverging"),
    Column("activation_zero", "share of outputs that are exactly 0", "", "fraction"),
    Column("activation_nonfinite", "number of NaN and Inf outputs", "elements", "count"),
    Column(
        "saturated",
        "share of outputs where the activation's derivative is below 1 % of that function's largest",
        "",
        "fraction",
    ),
    Column("delta_norm", "L2 norm of the gradient of the loss with respect to the layer's output", "", "log"),
    Column("flow_gate", "backward gain of the activation, log10 of |dL/dz| over |dL/da|", "decades", "diverging"),
    Column("flow_weight", "backward gain of the weights, log10 of |dL/dinput| over |dL/dz|", "decades", "diverging"),
    Column(
        "flow_between",
        "log10 of |dL/da of the layer that feeds this one| over |dL/dinput|: operations between, or other paths",
        "decades",
        "diverging",
    ),
    Column("units_dead", "units that never fired in the last full window of examples", "units", "count"),
    Column("units_dormant", "units whose mean output is below 2.5 % of the layer's", "units", "count"),
    Column("units_saturated", "units saturated on every example of the last full window", "units", "count"),
    Column("units_revived", "units dead in the window before the last, and not in the last", "units", "count"),
)

NARROW_FORMATS = ("bfloat16", "float16", "e4m3", "e5m2")
"""Number formats below whose smallest normal number elements are counted."""


def _below_normal(family: str, elements: str) -> tuple[Column, ...]:
    """Return the columns of the shares of elements that each narrow format would lose."""
    return tuple(
        Column(
            f"{family}_below_{name}", f"share of {elements}, not 0, below the smallest normal {name}", "", "fraction"
        )
        for name in NARROW_FORMATS
    )


SLOW_COLUMNS = (
    Column("first_moment_norm", "L2 norm of the optimizer's first moment", "", "log"),
    Column("second_moment_norm", "L2 norm of the optimizer's second moment", "", "log"),
    Column(
        "stable_rank",
        "squared Frobenius norm over squared spectral norm of a weight matrix",
        "",
        "log",
    ),
)
"""Columns of the family `variables` that the recorder measures between steps, on a slow schedule."""

DERIVED_VARIABLE_COLUMNS = (
    *_below_normal("gradient", "elements"),
    Column(
        "gradient_cosine",
        "cosine of the gradient to that of the step before; needs measured steps in a row",
        "",
        "diverging",
    ),
    *SLOW_COLUMNS,
)
"""Columns of the family `variables` that the recorder computes: of other columns, of the histograms, of a sample of the
gradient, and of the state of model and optimizer."""

DERIVED_LAYER_COLUMNS = (
    Column("activation_rms", "root mean square of the layer's output", "", "log"),
    Column("activation_kurtosis", "kurtosis of the layer's output, from its histogram; 3 if normal", "", "log"),
    *_below_normal("activation", "outputs"),
)
"""The same of the family `layers`."""

STEP_COLUMNS = (
    Column("loss", "loss of this batch, from the measured step, or as the program passed it", "", "log"),
    Column("examples_seen", "examples trained on up to and with this step", "examples", "count"),
    Column("window_examples", "examples in the last full window of the unit counts", "examples", "count"),
    Column("measure_ms", "time that measuring takes a step, from medians of measured and plain steps", "ms", "linear"),
    Column("step_ms", "duration of a step that is not measured", "ms", "linear"),
    Column("first_nonfinite_forward", "index of the first layer in forward order with a NaN or Inf, or -1", "layer"),
    Column("first_nonfinite_backward", "index of the first layer in backward order with a NaN or Inf, or -1", "layer"),
    Column("skipped", "1 if the gradient was not finite and no weight was changed, as by a loss scale; else 0"),
    Column("noise_scale_total", "gradient noise scale over all variables; needs two replicas", "examples", "log"),
    Column("optimizer_called", "1 if one of Keras' optimizers was called in a measured step; else 0"),
    Column("closer_look", "1 if every step was measured for a while because of a finding; else 0"),
    Column("loss_spike_share", "share of losses so far above six deviations of the 128 before", "", "fraction"),
    Column(
        "gradient_spike_share",
        "share of gradient norms so far above six deviations of the 128 before",
        "",
        "fraction",
    ),
    Column(
        "gradient_cosine_total",
        "cosine of the whole gradient to that of the step before; needs measured steps in a row",
        "",
        "diverging",
    ),
    Column("validation_loss", "loss of the last validation before this step, as the program recorded it", "", "log"),
)

ALL_VARIABLES = "all variables"
"""The one name of the `replicas` family where replicas are too many to be compared by variable."""
REPLICA_COLUMNS = (
    Column("replica_norm", "L2 norm of the replica's own gradient, before the all-reduce", "", "log"),
    Column("replica_cosine", "cosine of the replica's gradient to the mean over replicas", "", "diverging"),
    Column("replica_sign", "share of elements whose sign is the mean's", "", "fraction"),
    Column("replica_checksum", "checksum of the replica's weights after the update, of all their bits"),
    Column("replica_difference", "largest difference from replica 0 of 16 evenly spaced weights", "", "log"),
    Column("replica_nonfinite", "number of NaN and Inf elements of the replica's own gradient", "elements", "count"),
)

DATA_COLUMNS = (
    Column("data_elements", "number of elements that were looked at", "elements", "count"),
    Column("data_rms", "root mean square", "", "log"),
    Column("data_mean", "mean", "", "diverging"),
    Column("data_std", "standard deviation", "", "log"),
    Column("data_min", "smallest element", "", "diverging"),
    Column("data_max", "largest element", "", "diverging"),
    Column("data_zero", "share of elements that are exactly 0", "", "fraction"),
    Column("data_nonfinite", "number of NaN and Inf elements", "elements", "count"),
    Column("data_whole", "share of elements that are whole numbers", "", "fraction"),
    Column("data_negative", "share of elements below 0", "", "fraction"),
    Column("data_above_one", "share of elements above 1", "", "fraction"),
    Column("data_below_minus_one", "share of elements below -1", "", "fraction"),
    Column("data_row_sum_min", "smallest sum of a row (the last axis)", "", "diverging"),
    Column("data_row_sum_max", "largest sum of a row (the last axis)", "", "diverging"),
    Column("data_class_min", "smallest index of a row's largest element", "", "count"),
    Column("data_class_max", "largest index of a row's largest element", "", "count"),
)

HEAD_COLUMNS = (
    Column("attention_logit_max", "largest attention logit of a head, scaled, of the keys that it may look at"),
    Column(
        "attention_entropy",
        "entropy of a head's attention, over that of looking at all keys alike",
        "",
        "fraction",
    ),
    Column("attention_first", "share of a head's attention on the first token that is not padding", "", "fraction"),
    Column(
        "attention_padding",
        "share of a head's attention on padding, where a mask says what that is",
        "",
        "fraction",
    ),
    Column("attention_nonfinite", "number of NaN and Inf attention logits in the sample", "elements", "count"),
)

RESIDUAL_COLUMNS = (
    Column("residual_rms", "root mean square of the residual stream in a transformer, at this depth", "", "log"),
    Column("residual_nonfinite", "number of NaN and Inf elements of the stream in the sample", "elements", "count"),
)

ALL_VARIABLE_COLUMNS = VARIABLE_COLUMNS + DERIVED_VARIABLE_COLUMNS
ALL_LAYER_COLUMNS = LAYER_COLUMNS + DERIVED_LAYER_COLUMNS
ALL_COLUMNS = (
    *(ALL_VARIABLE_COLUMNS + ALL_LAYER_COLUMNS + STEP_COLUMNS + REPLICA_COLUMNS + DATA_COLUMNS),
    *(HEAD_COLUMNS + RESIDUAL_COLUMNS),
)
COLUMNS = {c.name: c for c in ALL_COLUMNS}

UNIT_STATES = ("unknown", "alive", "dormant", "dead", "saturated_low", "saturated_high", "always_on", "revived")

# Histogram bins: half an octave each, by sign and magnitude; |x| below 2^LOW (with exact 0) is the middle bin,
# |x| above 2^HIGH is in the outermost.
BINS_PER_OCTAVE = 2
LOW_EXPONENT = -36
HIGH_EXPONENT = 12
SIDE_BINS = (HIGH_EXPONENT - LOW_EXPONENT) * BINS_PER_OCTAVE
BINS = 2 * SIDE_BINS + 1


def bin_edges() -> np.ndarray:
    """Return the `BINS + 1` ascending edges of the histograms' bins, float64."""
    octave, half = np.divmod(np.arange(SIDE_BINS + 1), BINS_PER_OCTAVE)
    positive = np.exp2(LOW_EXPONENT + octave) * (1 + half / BINS_PER_OCTAVE)
    return np.concatenate([-positive[::-1], positive])


MAX_REPLAY_VALUES = 3072
"""Numbers of an example's input that a replay writes and the tab shows: an image of 32 x 32 in colour."""

CLIPPING_SETTINGS = ("clipnorm", "global_clipnorm", "clipvalue")
"""Kinds of replica issues that are settings of Keras' optimizers."""


class SchemaError(ValueError):
    """A tag's description that cannot be read; the message has the reason and what to do."""


class Family(NamedTuple):
    """Description of one tag's tensors, written once as JSON with the tag's first event."""

    family: str
    columns: tuple[str, ...] = ()
    """Names of the rows of one tensor, empty if it has none."""
    names: tuple[str, ...] = ()
    """Names of the variables or layers along the other axis, in forward order."""
    details: dict[str, Any] = {}
    """`layers`: "units" (U of each layer), "activations", "variables" (indices of each layer's variables),
    "sources" (indices of the layers that feed each one), "skipped";
    `units`: "units"; `replicas`: "replicas" (their number) and "faults" (issues of Keras with several replicas: lists
    of kind, layer or null, setting or null); `data`: "data_rows" (facts about each row) and "objectives" (facts about
    each output and its loss), see docs/wire.md."""
    schema: int = FIRST_SCHEMA

    @property
    def tag(self) -> str:
        """The tag of the family's summaries."""
        return tag(self.family)

    def metadata(self) -> summary_pb2.SummaryMetadata:
        """Return the summary metadata that the first event of the tag carries."""
        content = json.dumps(self._asdict(), separators=(",", ":")).encode()
        return summary_pb2.SummaryMetadata(
            plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content),
            data_class=summary_pb2.DATA_CLASS_TENSOR,
        )


def tag(family: str) -> str:
    """Return the tag of a family: `"tapescope/layers"` for `"layers"`."""
    return f"{PLUGIN_NAME}/{family}"


def parse(content: bytes) -> Family:
    """Return the Family in a tag's plugin content.

    Raises:
      SchemaError: the content is not a Family, or has a newer schema.
    """
    try:
        fields = json.loads(content)
        schema = int(fields["schema"])
        if schema <= SCHEMA:
            return _family(fields, schema)
    except Exception as error:  # the boundary of a description: a file can hold anything
        raise SchemaError(f"its description cannot be read ({type(error).__name__}: {error})") from None
    raise SchemaError(
        f"it was written with schema {schema}, and this tapescope reads up to {SCHEMA}: pip install -U tapescope"
    )


def _family(fields: dict[str, Any], schema: int) -> Family:
    family = fields["family"]
    columns = tuple(fields["columns"])
    names = tuple(fields["names"])
    details = fields["details"]
    if not all(isinstance(text, str) for text in (family, *columns, *names)):
        raise TypeError("a name must be a string")
    if not isinstance(details, dict):
        raise TypeError("details must be an object")
    return Family(family, columns, names, details, schema)
