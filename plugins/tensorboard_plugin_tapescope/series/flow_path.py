"""The path of the gradient from the loss to the input, and the flow budget along it.

With z the pre-activation, a the output and `input` the input of layer l, and s the layer that feeds it,

    flow_gate(l)    = log10 |dL/dz| / |dL/da|          the backward gain of the activation
    flow_weight(l)  = log10 |dL/dinput| / |dL/dz|      the backward gain of the weights
    flow_between(l) = log10 |dL/da of s| / |dL/dinput| pooling, normalization and reshaping between the two layers,
                                                       and gradient that arrives at s around l

so that the parts add up to log10 of the ratio of the delta norms at both ends of any path. On a chain of layers
`flow_between` is 0. A skip connection around a layer makes its `flow_between` positive. All norms are taken over the
global batch.

A branching network has many paths. The library, the rules and the tab follow the same one: see `backward_path`, and
docs/decisions/0009-flow-path.md for the reason.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tensorboard_plugin_tapescope.series import tables

FLOW_PARTS = ("flow_gate", "flow_weight", "flow_between")
"""Columns of the budget, in the order in which the gradient passes them."""


class FlowBudget(NamedTuple):
    """Backward gain of each layer on the path of the gradient."""

    path: list[int]
    """Indices of K layers, the one nearest to the loss first. The end of the path is left out: what its gate and
    weights take is not lost on the way to it."""
    gains: dict[str, np.ndarray]
    """Decades by part, float64 [K]; negative is a loss, and an undefined gain counts as 0."""

    @property
    def total(self) -> float:
        """Sum of all parts: log10 of the ratio of the delta norms at both ends of the path."""
        return float(sum(gains.sum() for gains in self.gains.values()))


def valid_sources(sources: Any, layers: int) -> list[list[int]]:
    """Return for each of `layers` layers the earlier layers that feed it.

    Args:
      sources: `details["sources"]` of the `layers` family: a list of indices for each layer. A damaged file can hold
        anything.
      layers: number of layers.

    Returns:
      One list for each layer, with valid indices below the layer's own only. A layer without an entry is fed by the
      one before it.
    """
    chain = [[layer - 1] if layer else [] for layer in range(layers)]
    entries = tables.json_array(sources)[:layers]
    valid = [[int(i) for i in tables.json_array(e) if tables.is_index(i) and i < n] for n, e in enumerate(entries)]
    return valid + chain[len(valid) :]


def followed_sources(sources: Any, layers: int) -> list[int]:
    """Return for each layer the source that the path follows, -1 for none: the last one in forward order.

    In a residual block this is the main branch and not the skip connection.
    """
    return [max(indices, default=-1) for indices in valid_sources(sources, layers)]


def backward_path(sources: Any, layers: int) -> list[int]:
    """Return the layers from the last one back to a layer that no measured layer feeds, both ends included."""
    if layers < 1:
        return []
    followed = followed_sources(sources, layers)
    path = [layers - 1]
    while followed[path[-1]] >= 0:  # ends, because each source is below its layer
        path.append(followed[path[-1]])
    return path


def flow_budget(columns: Mapping[str, np.ndarray], sources: Any, first: int | None = None) -> FlowBudget:
    """Return the backward gain of each layer on the path, averaged over records.

    Args:
      columns: the columns of FLOW_PARTS that were measured, [T, L] each, in decades.
      sources: as in `valid_sources`.
      first: the layer at which the path ends; without it, or off the path, the path's own end.
    """
    held = {part: columns[part] for part in FLOW_PARTS if part in columns}
    layers = min((values.shape[1] for values in held.values()), default=0)
    path = backward_path(sources, layers)
    path = path[: path.index(first)] if first in path else path[:-1]
    gains = {part: np.nan_to_num(tables.finite_mean(values, axis=0)[path]) for part, values in held.items()}
    return FlowBudget(path, gains)
