"""One record as the rules see it: by layer, and along the path of the gradient.

Letters: L layers, V variables, G groups, R replicas. A group is trained as a unit: the variables of one layer, or one
variable that no measured layer owns. The layers are the first L groups. The columns of a layer without variables are
NaN.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapescope.rules.data_view import DataRow, OutputObjective, data_layout
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import flow_path, tables

NEVER_SATURATED = {"linear", "relu", "leaky_relu"}
"""Activations that take a part of the gradient by design. On the wire every zero of ReLU counts as saturated; what
matters there is whether units are dead."""


class Record(NamedTuple):
    """One measured step, as it is on the wire."""

    step: int
    columns: Mapping[str, np.ndarray]
    """By name: [V], [L], [] or, for the replicas', [R, V]."""


class RunLayout(NamedTuple):
    """Meaning of the rows of a run's records."""

    groups: tuple[str, ...]
    """Names of the layers, then of the variables that no measured layer owns."""
    owned: tuple[np.ndarray, np.ndarray]
    """Pairs of a group and one of its variables, as two arrays of indices."""
    variable_names: tuple[str, ...]
    activations: tuple[str, ...]
    """Of each layer."""
    units: np.ndarray
    """Number of units of each layer, [L]."""
    path: tuple[int, ...]
    """Layers on the path of the gradient from the last one back; see `series.flow_path`."""
    is_output: np.ndarray
    """Whether no measured layer reads the layer, bool [L]."""
    is_input: np.ndarray
    """Whether the layer reads the data, bool [L]: no measured layer feeds it, and no other trained variable, such as an
    embedding, comes before it."""
    source: tuple[int, ...]
    """The layer that feeds each one along the path; -1 for none."""
    reader: np.ndarray
    """The last layer that reads each one, [L]; -1 for none."""
    first_call: np.ndarray
    """The first layer with the same variables as each one: itself, unless that is a further call of a layer, [L]."""
    expected_weight_gain: np.ndarray
    """Decades by which Glorot initialization changes the gradient's length in a layer of these units, [L]."""
    data: tuple[DataRow, ...] = ()
    """The inputs, targets and outputs that were measured."""
    objectives: tuple[OutputObjective, ...] = ()
    """The outputs, and what they are trained for."""
    repeated_activation: tuple[str, ...] = ()
    """Activation that a loss applies to its logits, and the one that made these, which may be ReLU; else empty."""
    compares_all_pairs: bool = False
    """True if the graph of the loss combines each output with the targets of all examples."""
    taken_for_probabilities: tuple[str, ...] = ()
    """Names of the outputs of which a loss takes logarithms as of probabilities."""
    inference_layers: tuple[tuple[str, str], ...] = ()
    """Name and class of each layer that acts otherwise in training, and was not told that it trains."""
    dropouts: tuple[tuple[str, float, int], ...] = ()
    """Name of each layer that drops units, the share that it drops, and the size of the last axis of its input."""
    replica_issues: tuple[Sequence[Any], ...] = ()
    """What Keras does differently with several replicas: kind, layer and setting of each issue."""

    @property
    def layer_count(self) -> int:
        """Number of layers, L."""
        return len(self.activations)

    @property
    def variable_count(self) -> int:
        """Number of variables, V."""
        return len(self.variable_names)

    def describe_layer(self, layer: int) -> str:
        """Return a layer's name with its activation where that has a name: ``the tanh layer `hidden` ``."""
        kind = self.activations[layer]
        return f"the {'' if kind in ('linear', 'unknown') else kind + ' '}layer `{self.groups[layer]}`"


def run_layout(variables: Sequence[str], layers: Sequence[str], details: Mapping[str, Any]) -> RunLayout:
    """Return the layout of a run from the names and details in its files, which may be damaged.

    Args:
      variables: names of the V variables.
      layers: names of the L layers in forward order.
      details: `Run.details`. Layers are a chain where it does not say what feeds them.
    """
    family = Family("layers", names=tuple(layers), details=dict(details))
    owned = [[v for v in of_layer if v < len(variables)] for of_layer in tables.owned_variables(family)]
    unowned = sorted(set(range(len(variables))) - {v for of_layer in owned for v in of_layer})
    pairs = [(group, v) for group, of_group in enumerate([*owned, *([v] for v in unowned)]) for v in of_group]
    sources = flow_path.valid_sources(details.get("sources"), len(layers))
    followed = flow_path.followed_sources(details.get("sources"), len(layers))
    reader = np.full(len(layers), -1)
    for layer, indices in enumerate(sources):
        reader[indices] = layer
    units = np.array(tables.units(family), float)
    data, objectives = data_layout(details)
    first_unowned = min(unowned, default=len(variables) + 1)
    return RunLayout(
        groups=(*layers, *(variables[v] for v in unowned)),
        owned=(np.array([group for group, _ in pairs], int), np.array([v for _, v in pairs], int)),
        variable_names=tuple(variables),
        activations=tuple(tables.activations(family)),
        units=units,
        path=tuple(flow_path.backward_path(details.get("sources"), len(layers))),
        is_output=reader < 0,
        is_input=np.array(
            [source < 0 and min(own, default=0) < first_unowned for source, own in zip(followed, owned, strict=True)],
            bool,
        ),
        source=tuple(followed),
        reader=reader,
        first_call=np.array([owned.index(of_layer) if of_layer else n for n, of_layer in enumerate(owned)], int),
        expected_weight_gain=np.array(
            [_glorot_gain(units[source], units[n]) if source >= 0 else 0.0 for n, source in enumerate(followed)]
        ),
        data=data,
        objectives=objectives,
        repeated_activation=_repeated_activation(details),
        compares_all_pairs=details.get("compares_all_pairs") is True,
        taken_for_probabilities=tuple(map(str, tables.json_array(details.get("taken_for_probabilities")))),
        inference_layers=_inference_layers(details),
        dropouts=_dropouts(details),
        replica_issues=_issues(details),
    )


def _repeated_activation(details: Mapping[str, Any]) -> tuple[str, ...]:
    names = tables.json_array(details.get("repeated_activation"))
    return tuple(names) if len(names) == 2 and all(name in ("relu", "sigmoid", "softmax") for name in names) else ()


def _inference_layers(details: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    given = map(tables.json_array, tables.json_array(details.get("inference_layers")))
    return tuple((str(layer[0]), str(layer[1])) for layer in given if len(layer) == 2)


def _dropouts(details: Mapping[str, Any]) -> tuple[tuple[str, float, int], ...]:
    given = map(tables.json_array, tables.json_array(details.get("dropouts")))
    return tuple(
        (str(layer[0]), layer[1], layer[2])
        for layer in given
        if len(layer) == 3 and isinstance(layer[1], float) and 0 < layer[1] < 1 and tables.is_index(layer[2])
    )


def _issues(details: Mapping[str, Any]) -> tuple[tuple[Any, ...], ...]:
    issues = [tables.json_array(issue) for issue in tables.json_array(details.get("faults"))]  # the name on the wire
    return tuple(tuple(issue) for issue in issues if _is_issue(issue))


def _is_issue(issue: Sequence[Any]) -> bool:
    if len(issue) != 3:
        return False
    kind, layer, value = issue
    return isinstance(kind, str) and isinstance(layer, str | None) and isinstance(value, int | float | None)


def _glorot_gain(inputs: float, outputs: float) -> float:
    """Return log10 of the gain: its square is the number of inputs times a weight's variance 2 / (inputs + outputs)."""
    return 0.5 * math.log10(2 * inputs / (inputs + outputs)) if inputs > 0 else 0.0


class RecordView(NamedTuple):
    """One record by group and along the path. Decades are log10."""

    step: int
    columns: Mapping[str, np.ndarray]
    loss: float
    gradient: np.ndarray
    """L2 norm of each group's gradient, [G]; NaN where it has none."""
    weight: np.ndarray
    """L2 norm of each group's weights, [G]."""
    update_ratio: np.ndarray
    """Norm of the update over that of the weights, [G]. A variable that is still all 0 is left out."""
    gate_gain: np.ndarray
    """Decades that the layer's activation adds to the gradient, [L]; 0 where undefined, and for an output."""
    weight_gain: np.ndarray
    """Decades that the layer's weights add, [L]; 0 where undefined."""
    between_gain: np.ndarray
    """Decades added between the layer and its source, [L]; 0 where undefined."""
    path_losses: np.ndarray
    """Decades that each layer on the path takes, [L], NaN off it. What lies between two layers may compensate for a
    loss, but not add to it: pooling divides a gradient, and takes nothing from it."""
    path_gains: np.ndarray
    """Decades that each layer on the path adds, [L], NaN off it. What lies between two layers, such as a normalization,
    may reduce a gain, but not add to it."""
    total_loss: float
    """Sum of `path_losses`."""
    total_gain: float
    """Sum of `path_gains`."""
    dead_share: np.ndarray
    """Share of the layer's units that never fired, [L]. A unit is alive that fired in any call of its layer, so it is
    the least share of these; but 1 where nothing fired in a call."""
    activation_zero: np.ndarray
    """As on the wire, [L]; so are the next two."""
    saturated: np.ndarray
    flow_gate: np.ndarray
    norm: float
    """L2 norm of the whole gradient."""
    share_kept: float
    """Norm of the gradient that the optimizer got, over that of the whole gradient."""

    @property
    def gradient_gone(self) -> bool:
        """True if every known gradient is finite and exactly 0."""
        nonfinite = np.nansum(np.asarray(self.columns.get("gradient_nonfinite", 0.0), float))
        return bool(self.norm == 0 and np.any(self.gradient == 0) and nonfinite == 0)

    def column(self, name: str, size: int) -> np.ndarray:
        """Return a column of that size; NaN where the run does not have it."""
        return np.asarray(self.columns.get(name, np.full(size, np.nan)), float)

    def layer_column(self, name: str) -> np.ndarray:
        """Return a column of the layers, [L]; NaN where the run does not have it."""
        return self.column(name, len(self.gate_gain))

    def number(self, name: str, absent: float = math.nan) -> float:
        """Return a number of the step."""
        return float(self.columns.get(name, absent))


_LAYER_COLUMNS = ("activation_zero", "saturated", "flow_gate", "flow_weight", "flow_between")


def view_record(layout: RunLayout, record: Record, before: RecordView | None) -> RecordView:
    """Return a record by group and along the path.

    Args:
      layout: of the run.
      record: the record.
      before: the record before. Between two records weights change at least as much as their norms do.
    """
    columns = record.columns
    absent = np.full(layout.variable_count, np.nan)
    gradient, applied, weight, ratio = (
        np.asarray(columns.get(name, absent), float)
        for name in ("gradient_norm", "applied_norm", "weight_norm", "update_ratio")
    )
    with np.errstate(all="ignore"):
        update = np.where(weight > 0, ratio * weight, np.nan)
        group_gradient, group_weight, group_update = _group_norms(layout, np.stack([gradient, weight, update]))
        update_ratio = group_update / group_weight
        if before is not None and record.step > before.step:
            distance = np.where(before.weight > 0, np.abs(group_weight - before.weight), np.nan)
            drift = distance / (before.weight * (record.step - before.step))
            update_ratio = np.fmax(update_ratio, drift)
        unmeasured = np.full(layout.layer_count, np.nan)
        zero, saturated, flow_gate, flow_weight, flow_between = (
            np.asarray(columns.get(name, unmeasured), float) for name in _LAYER_COLUMNS
        )
        undefined = np.isnan(flow_weight)
        gate_gain = np.where(layout.is_output | np.isnan(flow_gate), 0.0, flow_gate)
        weight_gain = np.where(undefined, 0.0, flow_weight)
        between_gain = np.where(np.isnan(flow_between), 0.0, flow_between)
        compensating = np.where(undefined, between_gain, np.maximum(between_gain, 0))
        reducing = np.where(undefined, between_gain, np.minimum(between_gain, 0))
        path_losses = _along_path(layout, gate_gain, weight_gain + compensating)
        path_gains = _along_path(layout, gate_gain, weight_gain + reducing)
        norm = float(np.sqrt(np.nansum(np.square(gradient))))
        comparable = np.where(np.isnan(applied), np.nan, gradient)
        share_kept = np.sqrt(np.nansum(np.square(applied)) / np.nansum(np.square(comparable)))
        return RecordView(
            step=record.step,
            columns=columns,
            loss=float(columns.get("loss", np.nan)),
            gradient=group_gradient,
            weight=group_weight,
            update_ratio=update_ratio,
            gate_gain=gate_gain,
            weight_gain=weight_gain,
            between_gain=between_gain,
            path_losses=path_losses,
            path_gains=path_gains,
            total_loss=float(np.nansum(path_losses)),
            total_gain=float(np.nansum(path_gains)),
            dead_share=_dead_share(layout, columns.get("units_dead", unmeasured)),
            activation_zero=zero,
            saturated=saturated,
            flow_gate=flow_gate,
            norm=norm,
            share_kept=float(share_kept),
        )


def _dead_share(layout: RunLayout, dead: np.ndarray) -> np.ndarray:
    share = dead / np.where(layout.units > 0, layout.units, np.nan)
    least = np.full(layout.layer_count, np.inf)
    np.fmin.at(least, layout.first_call, share)
    return np.where(share < 1, least[layout.first_call], share)


_LAYER_FIELDS = ("path_losses", "path_gains", "dead_share", "activation_zero", "saturated", "flow_gate")
_LAYER_GAINS = ("gate_gain", "weight_gain", "between_gain")
_COLUMN_SIZES = {
    **{column.name: "variables" for column in (*metadata.ALL_VARIABLE_COLUMNS, *metadata.REPLICA_COLUMNS)},
    **{column.name: "layers" for column in metadata.ALL_LAYER_COLUMNS},
}


def extend_groups(values: np.ndarray, before: RunLayout, layout: RunLayout, absent: float = math.nan) -> np.ndarray:
    """Return values by group, [G], for a layout with further groups, in which they are `absent`."""
    known = dict(zip(before.groups, values.tolist(), strict=True))
    return np.array([known.get(name, absent) for name in layout.groups], values.dtype)


def extend_layers(values: np.ndarray, layout: RunLayout, absent: float = math.nan) -> np.ndarray:
    """Return values by layer, [L], for a layout with further layers, in which they are `absent`."""
    return _pad_last_axis(values, layout.layer_count, absent)


def extend_view(view: RecordView, before: RunLayout, layout: RunLayout) -> RecordView:
    """Return a record for a layout that has further variables or layers: those were absent from it."""
    sizes = {"variables": layout.variable_count, "layers": layout.layer_count}
    columns = {
        name: _pad_last_axis(np.asarray(values, float), sizes[_COLUMN_SIZES[name]], math.nan)
        if name in _COLUMN_SIZES
        else values
        for name, values in view.columns.items()
    }
    fields = {
        name: extend_groups(getattr(view, name), before, layout) for name in ("gradient", "weight", "update_ratio")
    }
    fields |= {name: extend_layers(getattr(view, name), layout) for name in _LAYER_FIELDS}
    fields |= {name: extend_layers(getattr(view, name), layout, 0.0) for name in _LAYER_GAINS}
    return view._replace(columns=columns, **fields)


def _pad_last_axis(values: np.ndarray, size: int, absent: float) -> np.ndarray:
    missing = size - values.shape[-1]
    return np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, missing)], constant_values=absent)


def _along_path(layout: RunLayout, gate: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the decades of the layers on the path, [L], NaN off it.

    inf - inf counts as 0: one part takes the whole gradient, and another one brings it.
    """
    decades = np.full(layout.layer_count, np.nan)
    path = list(layout.path)
    along = gate[path]
    # The gradient of the first layer's input trains nothing, so what that layer's weights do to it does not count.
    along[:-1] += weights[path[:-1]]
    decades[path] = np.where(np.isnan(along), 0, along)
    return decades


def _group_norms(layout: RunLayout, values: np.ndarray) -> np.ndarray:
    """Return L2 norms of groups, [N, G], from those of variables, [N, V]; NaN where all of a group's are."""
    groups, variables = layout.owned
    size = len(layout.groups)
    squares = np.square(values[:, variables])
    known = ~np.isnan(squares)
    cells = (groups + size * np.arange(len(values))[:, None])[known]
    sums = np.bincount(cells, squares[known], size * len(values))
    has_any = np.bincount(cells, minlength=size * len(values)) > 0
    return np.where(has_any, np.sqrt(sums), np.nan).reshape(len(values), size)


def replica_differences(view: RecordView, layout: RunLayout) -> np.ndarray:
    """Return how each replica's whole gradient differs from the median of the others', [2, R].

    The first row is log10 of the ratio of their norms, the second the difference of their cosines to the mean.
    """
    norms = np.asarray(view.columns["replica_norm"], float)
    cosines = np.asarray(view.columns["replica_cosine"], float)
    total = view.column("gradient_norm", layout.variable_count)
    with np.errstate(all="ignore"):
        whole = np.sqrt(np.nansum(np.square(total)))
        if norms.shape[1] == 1:  # of all variables together
            total = whole
        length = np.sqrt(np.nansum(np.square(norms), axis=1))
        cosine = np.nansum(cosines * norms * total, axis=1) / (length * whole)
        values = np.stack([np.log10(length), cosine])
        return values - np.stack([_medians_of_others(row) for row in values])


def _medians_of_others(values: np.ndarray) -> np.ndarray:
    """Return for each of [R] values the lower median of the others; NaN counts nowhere."""
    known = ~np.isnan(values)
    ascending = np.append(np.sort(values[known]), np.nan)
    rank = np.argsort(np.argsort(np.where(known, values, np.inf), kind="stable"), kind="stable")
    others = known.sum() - known
    middle = np.maximum(others - 1, 0) // 2
    return ascending[middle + (known & (rank <= middle))]


def index_of_largest(values: np.ndarray) -> int:
    """Return the index of the largest value; NaN counts as the smallest."""
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def lower_median(values: np.ndarray) -> np.ndarray:
    """Return the median along axis 0 of what is not NaN.

    Of two middle values it is the lower one, so that -inf and a number have a median.
    """
    count = (~np.isnan(values)).sum(0)
    middle = np.maximum(count - 1, 0) // 2
    ascending = np.sort(values, 0)
    if ascending.ndim == 1:
        return ascending[middle]
    flat = ascending.reshape(len(ascending), -1)
    return flat[middle.reshape(-1), np.arange(flat.shape[1])].reshape(ascending.shape[1:])
