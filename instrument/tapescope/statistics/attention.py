"""Attention heads and the residual stream: their statistics, of a sample of the batch.

The logits are computed here once more, in float32, from query and key as the layer has projected them: Keras may leave
them to a fused kernel, and the step's own result stays. A sample is enough for numbers that say how a head attends:
the first EXAMPLES examples, and at most QUERIES of their queries, evenly spaced.

Letters: B examples, C columns, D features of a head, G layers of equal shapes, H heads of all layers, K statistics,
N heads of a layer, P points of the residual stream, S keys, T queries; M parts of the batch, of a replica or a small
batch each.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tapescope.capture.attention import AttentionCall
from tapescope.failsafe import attribute_errors_to
from tapescope.statistics import single_pass
from tapescope.statistics.batched_ops import (
    MAX_GROUP_SIZE,
    concat,
    constant,
    element_counts,
    for_gpu,
    group_by_shape,
    restore_order,
)
from tapescope.statistics.reductions import Reduction
from tensorboard_plugin_tapescope import metadata

EXAMPLES = 4
"""Examples of a batch that are looked at."""
QUERIES = 64
"""Most queries of an example that are looked at."""
MAX_LOGITS = 1 << 22
"""Most logits of a layer: with more keys and heads there are fewer queries, but at least one of each example."""

HEAD_ROWS = ("logit_max", "queries", "entropy", "first", "padding", "nonfinite")
"""Largest logit; queries that count, and sums over them; number of logits that are not finite."""
RESIDUAL_ROWS = ("elements", "rms", "nonfinite")
"""Finite elements, their root mean square, and the number of the others."""

HEAD_COLUMNS = tuple(c.name for c in metadata.HEAD_COLUMNS)
RESIDUAL_COLUMNS = tuple(c.name for c in metadata.RESIDUAL_COLUMNS)


def head_rows(calls: Sequence[AttentionCall]) -> tf.Tensor:
    """Return HEAD_ROWS of the heads of all calls, float32 [K, H].

    A query counts if it is not padding, may look at two keys or more, and none of its logits is NaN or Inf.
    """
    if not calls:
        return tf.zeros([len(HEAD_ROWS), 0], tf.float32)
    groups: dict[Hashable, list[int]] = {}
    for i, call in enumerate(calls):
        kind = _kind(call) or i
        group = groups.setdefault(kind, [])
        group.append(i)
        if len(group) * _logits(call) >= MAX_GROUP_SIZE:  # together they would all be in memory at once
            groups[i, "full"] = groups.pop(kind)
    found = []
    for group in groups.values():
        with attribute_errors_to(calls[group[0]].name):
            found.append(_group_rows([calls[i] for i in group]))
    rows = concat(found, 1)
    heads = np.cumsum([0] + [call.query.shape[2] for call in calls])
    order = [head for group in groups.values() for i in group for head in range(heads[i], heads[i + 1])]
    return rows if order == sorted(order) else tf.gather(rows, constant(np.argsort(order).astype(np.int32)), axis=1)


def _kind(call: AttentionCall) -> Hashable:
    """Return a key that is equal for calls that are reduced together; None for one that is reduced alone."""
    shapes = call.query.shape, call.key.shape
    if call.mask is not None or call.keys_in_use or not all(shape.is_fully_defined() for shape in shapes):
        return None
    return tuple(shapes[0]), tuple(shapes[1]), call.is_causal


def _logits(call: AttentionCall) -> int:
    """Return the number of logits that are looked at; 0 where it is not known, as in a call that is reduced alone."""
    if _kind(call) is None:
        return 0
    examples, queries, heads, _ = call.query.shape
    return min(examples, EXAMPLES) * -(-queries // _stride(call)) * heads * call.key.shape[1]


def _stride(call: AttentionCall) -> Any:
    """Return the distance of the sampled queries; a tensor where their number is not known yet."""
    (queries, heads), keys = call.query.shape[1:3], call.key.shape[1]
    if queries is None or keys is None:
        queries = tf.shape(call.query)[1]
        most = tf.clip_by_value(MAX_LOGITS // (EXAMPLES * heads * tf.maximum(tf.shape(call.key)[1], 1)), 1, QUERIES)
        return tf.maximum((queries + most - 1) // most, 1)
    most = min(max(MAX_LOGITS // (EXAMPLES * heads * max(keys, 1)), 1), QUERIES)
    return max(1, -(-queries // most))


def _group_rows(calls: Sequence[AttentionCall]) -> tf.Tensor:
    """Return HEAD_ROWS of calls of equal shapes, float32 [K, G N]; several have no masks."""
    first = calls[0]
    heads = first.query.shape[2]
    stride = _stride(first)
    query = tf.stack([tf.cast(c.query[:EXAMPLES, ::stride], tf.float32) * c.scale for c in calls])
    key = tf.stack([tf.cast(c.key[:EXAMPLES], tf.float32) for c in calls])
    if first.key.shape[2] != heads:  # that share a key
        key = tf.repeat(key, heads // first.key.shape[2], axis=3)
    logits = tf.einsum("gbtnd,gbsnd->gbnts", query, key)
    finite = tf.math.is_finite(logits)
    allowed = _allowed(first, stride, tf.shape(query)[2], tf.shape(key)[2])
    used = finite if allowed is None else finite & allowed
    nonfinite = ~finite if allowed is None else ~finite & allowed

    zero = constant(0.0)
    highest = tf.reduce_max(tf.where(used, logits, constant(-np.inf)), -1)
    offset = tf.expand_dims(tf.where(tf.math.is_finite(highest), highest, zero), -1)
    shifted = tf.where(used, logits - offset, zero)
    weights = tf.where(used, tf.exp(shifted), zero)
    total = tf.reduce_sum(weights, -1)
    keys = _count(used, [-1])
    counts = (keys >= 2) & (_count(nonfinite, [-1]) == 0)
    # H = log sum_j w_j - sum_j w_j l_j / sum_j w_j for weights w_j = exp(l_j).
    entropy = tf.math.log(total) - tf.reduce_sum(weights * shifted, -1) / total
    in_use, is_known = _keys_in_use(first, query)
    if in_use is None:
        of_first = weights[:, :, :, :, 0]
        of_padding = tf.fill(tf.shape(total), constant(math.nan))
    else:
        of_first = tf.reduce_sum(tf.where(in_use * tf.cumsum(in_use, -1) == 1, weights, zero), -1)
        of_padding = tf.reduce_sum(tf.where(in_use == 0, weights, zero), -1)
        of_padding = tf.where(is_known, of_padding, constant(math.nan))
        if first.is_self:
            counts &= in_use[:, 0, :, ::stride] > 0
    over = [1, 3]  # examples and queries
    sums = [
        tf.reduce_sum(tf.where(counts, values, zero), over)
        for values in (entropy / tf.math.log(keys), of_first / total, of_padding / total)
    ]
    rows = [tf.reduce_max(highest, over), _count(counts, over), *sums, _count(nonfinite, [1, 3, 4])]
    return tf.reshape(tf.stack(rows), [len(HEAD_ROWS), len(calls) * heads])


def _count(mask: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.float32), axes)


def _allowed(call: AttentionCall, stride: Any, queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor | None:
    """Return which keys the sampled queries may look at, broadcastable to [G, B, N, T, S]; None if at all."""
    allowed = None
    if call.mask is not None:
        mask = tf.cast(call.mask, tf.bool)
        while mask.shape.rank < 4:  # as Keras does
            mask = tf.expand_dims(mask, -3)
        allowed = mask[:EXAMPLES, :, ::stride][None]
    if call.is_causal:
        earlier = tf.range(queries)[:, None] * stride >= tf.range(keys)[None, :]
        allowed = earlier if allowed is None else allowed & earlier
    return allowed


def _keys_in_use(call: AttentionCall, query: tf.Tensor) -> tuple[tf.Tensor | None, Any]:
    """Return which keys are not padding, float32 [B, 1, 1, S], and whether that is known; None where no mask says it.

    A mask from elsewhere in the model may be of another number of examples. It then says nothing.
    """
    in_use = None
    is_known: Any = True
    for mask in call.keys_in_use:
        mine = tf.cast(tf.cast(mask[:EXAMPLES], tf.bool), tf.float32)
        if mask.shape[0] is None or mask.shape[0] != call.query.shape[0]:
            is_known = tf.shape(mask)[0] == tf.shape(call.query)[0]
            padded = tf.pad(mine, [[0, EXAMPLES], [0, 0]])[: tf.shape(query)[1]]
            mine = tf.where(is_known, padded, constant(1.0))
        in_use = mine if in_use is None else in_use * mine
    return None if in_use is None else in_use[:, None, None, :], is_known


def residual_rows(tensors: Sequence[tf.Tensor]) -> Reduction[tf.Tensor]:
    """Return RESIDUAL_ROWS of the first examples of each tensor, float32 [K, P]."""
    if not tensors:
        return tf.zeros([len(RESIDUAL_ROWS), 0], tf.float32)
    groups = group_by_shape([tf.cast(t[:EXAMPLES] if t.shape.rank else t, tf.float32) for t in tensors])
    if for_gpu():
        norm, nonfinite = yield from single_pass.norm_rows(groups, ("norm", "nonfinite"))
        elements = element_counts(groups) - nonfinite
        rms = tf.math.divide_no_nan(norm, tf.sqrt(elements))
        return restore_order(tf.stack([elements, rms, nonfinite]), groups)
    columns = []
    for group in groups:
        x = tf.reshape(group.tensor, [len(group.indices), -1])
        finite = tf.math.is_finite(x)
        x = tf.where(finite, x, constant(0.0))
        elements = _count(finite, [1])
        largest = tf.reduce_max(tf.abs(x), 1, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(tf.square(tf.math.divide_no_nan(x, largest)), 1), elements)
        columns.append(tf.stack([elements, largest[:, 0] * tf.sqrt(mean), _count(~finite, [1])]))
    return restore_order(concat(columns, 1), groups)


def _parts(rows: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    parts = rows.astype(np.float64).reshape(math.prod(rows.shape[:-2]), *rows.shape[-2:])
    return dict(zip(names, parts.swapaxes(0, 1), strict=True))


def head_columns(rows: np.ndarray) -> np.ndarray:
    """Return the heads' columns over the global batch, float32 [C, H].

    Args:
      rows: HEAD_ROWS of every replica and small batch, float32 [..., K, H].
    """
    part = _parts(rows, HEAD_ROWS)
    highest = part["logit_max"].max(0)
    queries = part["queries"].sum(0)
    queries[queries == 0] = np.nan
    known = {name: part[name].sum(0) / queries for name in ("entropy", "first", "padding")}
    known |= {"logit_max": np.where(np.isfinite(highest), highest, np.nan), "nonfinite": part["nonfinite"].sum(0)}
    return np.stack([known[name.removeprefix("attention_")] for name in HEAD_COLUMNS]).astype(np.float32)


def residual_columns(rows: np.ndarray) -> np.ndarray:
    """Return the columns of the residual stream over the global batch, float32 [C, P].

    Args:
      rows: RESIDUAL_ROWS of every replica and small batch, float32 [..., K, P].
    """
    part = _parts(rows, RESIDUAL_ROWS)
    elements = part["elements"].sum(0)
    elements[elements == 0] = np.nan
    rms = np.sqrt((part["elements"] * part["rms"] ** 2).sum(0) / elements)
    return np.stack([rms, part["nonfinite"].sum(0)]).astype(np.float32)
