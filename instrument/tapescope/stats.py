"""Pure functions from tensors to numbers: no Keras, no state. Run in eager, `tf.function`, XLA and replicas alike.

All arithmetic is float32 or better whatever the tensor's dtype. A NaN or Inf element is counted and then left out, so
that one of them does not hide the rest; norms keep their digits from 1e-38 to 1e38. Both cost several passes over the
data, so everything is first computed the quick way, which reads each tensor a few times and writes little. If a sum
comes out that the quick way could have got wrong, the tensors it belongs to are done again the safe way: masked, and
summed in float64. See `tapescope.groups` for how many tensors are reduced by few nodes. XLA fuses the passes, so there
the safe way is the only one.

Letters: B bins, K statistics, L layers, M elements of a unit, N elements, R replicas, U units, V variables.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tapescope import activations, histograms
from tapescope.capture import Call
from tapescope.groups import (
    Group,
    R,
    again,
    axes,
    chunks,
    compiled,
    concat,
    constant,
    different,
    elements,
    grouped,
    in_order,
    joined,
    safely,
    spread,
)
from tapescope.guard import blaming
from tensorboard_plugin_tapescope.metadata import BINS

GRADIENT_ROWS = ("norm", "max", "zero", "nonfinite")
WEIGHT_ROWS = ("norm", "change", "nonfinite")
LAYER_ROWS = (
    "elements",
    "nonfinite",
    "mean",
    "m2",  # sum of squared differences from the mean: what merges without cancellation
    "min",
    "max",
    "zero",
    "saturated",
    "delta_norm",
    "z_norm",
    "input_norm",
    "delta_nonfinite",
    "input_nonfinite",
    "examples",
)
UNIT_ROWS = ("absolute_sum", "zero", "flat", "low", "high")

_DECADES = 30
"""A sum of squares outside of 1e-30 to 1e30 may have lost digits, or be 0 though no element is."""
_CANCELLED = 1 / 256
"""A variance below this part of the mean square has lost too many digits as a difference of the two."""


def hypot(parts: tf.Tensor) -> tf.Tensor:
    """L2 norm over axis 0 of norms, `[R, ...]` to `[...]`, without overflow. NaN where a part is NaN."""
    if parts.shape[0] == 1:
        return parts[0]
    return tf.cast(tf.sqrt(tf.reduce_sum(tf.square(tf.cast(parts, tf.float64)), 0)), tf.float32)


def finite(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`x` with 0 in place of its NaN and Inf elements, and how many there were, float32 []."""
    mask = tf.math.is_finite(x)
    return tf.where(mask, x, 0.0), tf.cast(tf.reduce_sum(tf.cast(~mask, tf.int32)), tf.float32)


def _squares(groups: Sequence[Group]) -> tf.Tensor:
    """Sum of squares of each tensor, float32 [n], in one pass where it lies alone."""
    pairs = zip(groups, axes(groups), strict=True)
    parts = [R.Sum(input=R.Square(x=g.x), axis=axis) if g.many else R.L2Loss(t=g.x) for g, axis in pairs]
    return joined(parts, groups) * constant([2.0 - g.many for g in groups for _ in g.indices])


def _safe_rows(x: tf.Tensor) -> Sequence[tf.Tensor]:
    """L2 norm and largest magnitude of the finite elements, and the number of the others: `[n, N]` to `[3, n]`."""
    last, mask = constant([1]), R.IsFinite(x=x)
    values = R.SelectV2(condition=mask, t=x, e=0.0)
    square = R.Sum(input=R.Square(x=R.Cast(x=values, DstT=tf.float64)), axis=last)
    nonfinite = R.Sum(input=R.Cast(x=R.LogicalNot(x=mask), DstT=tf.int32), axis=last)
    largest = R.Max(input=R.Abs(x=values), axis=last)
    length = R.Cast(x=R.Sqrt(x=square), DstT=tf.float32)
    return (R.Pack(values=[length, largest, R.Cast(x=nonfinite, DstT=tf.float32)]),)


def _in_range(square: tf.Tensor) -> tf.Tensor:
    """Whether a sum of squares lies where float32 keeps its digits, bool [n]; False for NaN."""
    return R.Less(x=R.Abs(x=R.Log(x=square)), y=constant(_DECADES * np.log(10)))


def _norms(groups: Sequence[Group], good: Callable[[tf.Tensor], tf.Tensor] = _in_range) -> tf.Tensor:
    """L2 norm (twice) and number of non-finite elements of each tensor, `[3, n]` in the order of `groups`."""
    if compiled():
        return safely(groups, _safe_rows)[0]
    rows = []
    for chunk in chunks(groups):
        square = _squares(chunk)
        length = R.Sqrt(x=square)
        quick = R.Pack(values=[length, length, R.ZerosLike(x=length)])
        rows += again(good(square), [quick], chunk, _safe_rows)
    return concat(rows, 1)


def norms(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """L2 norm of the finite elements of each, float32 [n]; NaN for None."""
    groups = grouped(different(tensors))
    return spread(in_order(_norms(groups), groups)[:1], tensors)[0]


def gradient_rows(gradients: Sequence[tf.Tensor | None], histogram: bool = False) -> tuple[tf.Tensor, tf.Tensor | None]:
    """GRADIENT_ROWS of each variable's gradient, float32 [K, V], NaN where there is none; counts over bins if asked,
    int32 [V, B], 0 where there is none.
    """
    there = different(gradients)
    if not there:
        nothing = tf.zeros([len(gradients), BINS], tf.int32) if histogram else None
        return tf.fill([len(GRADIENT_ROWS), len(gradients)], np.nan), nothing
    groups = grouped(there)
    rows = safely(groups, _safe_rows)[0] if compiled() else concat([_gradients(c) for c in chunks(groups)], 1)
    length, largest, nonfinite = tf.unstack(rows)
    sizes, bins = elements(groups), None
    if histogram:
        counts = histograms.codes(groups)
        zeros = histograms.zeros(counts, groups)
        bins = in_order(histograms.folded(counts, groups, sizes - nonfinite), groups)
        bins = tf.transpose(spread(bins, gradients, 0))
    else:
        zeros = histograms.compared(groups)
    rows = R.Pack(values=[length, largest, zeros / sizes, nonfinite])
    return spread(in_order(rows, groups), gradients), bins


def _gradients(groups: Sequence[Group]) -> tf.Tensor:
    inner = axes(groups)
    square = _squares(groups)
    highest = joined([R.Max(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    lowest = joined([R.Min(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    largest = R.Maximum(x=highest, y=R.Neg(x=lowest))
    length = R.Sqrt(x=square)
    quick = R.Pack(values=[length, largest, R.ZerosLike(x=length)])
    nothing = R.Cast(x=R.Equal(x=largest, y=constant(0.0)), DstT=tf.float32)
    return again(_in_range(square + nothing), [quick], groups, _safe_rows)[0]


def weight_rows(before: Sequence[tf.Tensor], after: Sequence[tf.Tensor]) -> tf.Tensor:
    """WEIGHT_ROWS of each variable, float32 [K, V]. A weight of 1e-16 is as good as 0."""
    old, new = (grouped([tf.cast(v, tf.float32) for v in values]) for values in (before, after))
    change = [g._replace(x=R.Sub(x=m.x, y=g.x)) for g, m in zip(old, new, strict=True)]
    (length, _, nonfinite), (moved, _, _) = (tf.unstack(_norms(groups, tf.math.is_finite)) for groups in (old, change))
    return in_order(R.Pack(values=[length, moved, nonfinite]), old)


def by_unit(output: tf.Tensor) -> tf.Tensor:
    """A layer's output with its units along the last axis; a scalar or a vector over the batch is one unit."""
    return output if output.shape.rank is not None and output.shape.rank > 1 else tf.reshape(output, [-1, 1])


Measured = tuple[Call, Sequence[tf.Tensor | None]]
"""A call, and the gradients of the loss with respect to its a, z and input."""


def layer_rows(
    measured: Sequence[Measured], histogram: bool = False, check_input: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """LAYER_ROWS of each call, float32 [K, L]; UNIT_ROWS of all their units, float32 [K, sum U]; counts over bins if
    asked, int32 [L, B]. `check_input` says whether the first call's input is looked at: those of the others were
    outputs, and seen before.

    The pre-activation z is not read where the output tells as much: a second reader would keep TensorFlow from fusing
    the activation into the matrix product, whose rounding differs, and a measured step must train to the same bits.
    """
    if not measured:
        return tf.zeros([len(LAYER_ROWS), 0]), tf.zeros([len(UNIT_ROWS), 0]), tf.zeros([0, BINS], tf.int32)
    calls = [call for call, _ in measured]
    outputs = [tf.cast(by_unit(call.a), tf.float32) for call in calls]
    kinds = [id(call) if call.activation.function else call.activation for call in calls]
    groups = grouped(outputs, True, kinds)
    if compiled():
        rows, sums = safely(groups, _safe_output)
    else:
        parts = [_outputs(chunk, calls) for chunk in chunks(groups)]
        rows, sums = (concat(part, 1) for part in zip(*parts, strict=True))
    flags = _flags(groups, calls)
    units = [int(a.shape[-1] or 0) for a in outputs]
    of_layer = np.repeat(np.arange(len(calls)), [units[i] for group in groups for i in group.indices])
    counts = R.Pack(values=[flags[0], flags[2] + flags[3]], axis=1)
    counts = R.UnsortedSegmentSum(data=counts, segment_ids=constant(of_layer), num_segments=constant(len(calls)))
    zero, saturated = tf.unstack(counts, axis=1)
    defined = [0.0 if calls[i].activation.defined else np.nan for group in groups for i in group.indices]
    sizes = elements(groups)
    bins = None
    if histogram:
        counted = histograms.folded(histograms.codes(groups), groups, sizes - rows[0])
        bins = tf.transpose(in_order(counted, groups))
    rows = in_order(concat([sizes[None], rows, R.Pack(values=[zero, saturated + defined])], 0), groups)
    by_unit_ = in_order(concat([sums, R.Pack(values=flags)], 0), groups, units)
    lengths, bad = _deltas(measured)
    given = constant(0.0)
    if check_input and calls[0].input is not None:
        given = finite(tf.cast(calls[0].input, tf.float32))[1]
    examples = tf.cast(tf.shape(calls[0].a)[0], tf.float32) if calls[0].a.shape.rank else constant(1.0)
    inputs = tf.pad(tf.stack([[given], [examples]]), constant([[0, 0], [0, len(calls) - 1]]))
    return concat([rows, lengths, bad[None], inputs], 0), by_unit_, bins


def _outputs(groups: Sequence[Group], calls: Sequence[Call]) -> Sequence[tf.Tensor]:
    """Non-finite elements, mean, m2, smallest and largest of each output, `[5, n]`; absolute sums `[1, sum U]`."""
    inner, first, second, end = axes(groups), constant([0]), constant([1]), constant([-1])
    across = [second if group.many else first for group in groups]
    sums = [R.Sum(input=g.x, axis=axis) for g, axis in zip(groups, across, strict=True)]
    total = joined([R.Sum(input=s, axis=end) for s in sums], groups)
    highest = joined([R.Max(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    lowest = joined([R.Min(input=g.x, axis=axis) for g, axis in zip(groups, inner, strict=True)], groups)
    square = _squares(groups)
    mean = total / elements(groups)
    m2 = square - total * mean
    same = R.Equal(x=highest, y=lowest)
    good = same | (m2 > _CANCELLED * square) & _in_range(square)
    quick = R.Pack(values=[0 * square, mean, R.SelectV2(condition=same, t=0 * square, e=m2), lowest, highest])
    for i, (group, axis) in enumerate(zip(groups, across, strict=True)):
        if not calls[group.indices[0]].activation.nonnegative:
            sums[i] = R.Sum(input=R.Abs(x=group.x), axis=axis)
    return again(good, [quick, _by_unit(sums)[None]], groups, _safe_output)


def _by_unit(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """`[sum U]` from `[U]` or `[n, U]` of each group."""
    return concat([p if p.shape.rank == 1 else R.Reshape(tensor=p, shape=constant([-1])) for p in parts], 0)


def _safe_output(x: tf.Tensor) -> Sequence[tf.Tensor]:
    """As `_outputs`, of one group, `[n, M, U]`: of the finite elements, in float64."""
    inner, mask = constant([1, 2]), R.IsFinite(x=x)
    nonfinite = R.Sum(input=R.Cast(x=R.LogicalNot(x=mask), DstT=tf.int32), axis=inner, keep_dims=True)
    wide = R.Cast(x=R.SelectV2(condition=mask, t=x, e=0.0), DstT=tf.float64)
    sane = R.Cast(x=R.Cast(x=mask, DstT=tf.int32), DstT=tf.float64)
    mean = R.DivNoNan(x=R.Sum(input=wide, axis=inner, keep_dims=True), y=R.Sum(input=sane, axis=inner, keep_dims=True))
    m2 = R.Sum(input=R.Square(x=(wide - mean) * sane), axis=inner)
    absolute = R.Cast(x=R.Sum(input=R.Abs(x=wide), axis=[1]), DstT=tf.float32)
    numbers = [
        R.Cast(x=nonfinite, DstT=tf.float32)[:, 0, 0],
        R.Cast(x=mean, DstT=tf.float32)[:, 0, 0],
        R.Cast(x=m2, DstT=tf.float32),
        R.Min(input=R.SelectV2(condition=mask, t=x, e=np.inf), axis=inner),
        R.Max(input=R.SelectV2(condition=mask, t=x, e=-np.inf), axis=inner),
    ]
    return R.Pack(values=numbers), R.Reshape(tensor=absolute, shape=[1, -1])


def _flags(groups: Sequence[Group], calls: Sequence[Call]) -> list[tf.Tensor]:
    """The UNIT_ROWS but the first: how many elements of each unit are 0, flat, saturated low and high, `[sum U]`."""
    first, second, zero, found = constant([0]), constant([1]), constant(0.0), []
    for group in groups:
        call, x = calls[group.indices[0]], group.x
        nothing = tf.zeros([*[len(group.indices)] * group.many, x.shape[-1]])

        def counted(where: tf.Tensor | None, many: bool = group.many, none: tf.Tensor = nothing) -> tf.Tensor:
            if where is None:
                return none
            return R.Sum(input=R.Cast(x=where, DstT=tf.float32), axis=second if many else first)

        with blaming(call.name):
            zeros = counted(R.Equal(x=x, y=zero))
            z = call.z if call.z is None or call.activation.function is None else tf.reshape(call.z, [-1, x.shape[-1]])
            low, high = activations.saturation(call.activation, z, x)
            relu = call.activation.nonnegative and call.activation.saturated[0] == 0  # its saturated low are its zeros
            flat = activations.flat(call.activation, x)
        found.append((zeros, counted(flat), zeros if relu else counted(low), counted(high)))
    return [_by_unit(row) for row in zip(*found, strict=True)]


def _deltas(measured: Sequence[Measured]) -> tuple[tf.Tensor, tf.Tensor]:
    """L2 norms of the gradients with respect to a, z and input, [3, L], NaN where there is none; and the number of
    their non-finite elements, [L].
    """
    deltas = [delta for _, of_call in measured for delta in of_call]
    # Along a chain, that of a layer's output is that of the next one's input: one tensor.
    there = different(deltas)
    if not there:
        return tf.fill([3, len(measured)], np.nan), tf.zeros([len(measured)])
    groups = grouped(there)
    rows = in_order(_norms(groups), groups)
    lengths, bad = (spread(rows[i : i + 1], deltas, absent) for i, absent in ((0, np.nan), (2, 0.0)))
    return tf.transpose(tf.reshape(lengths, [-1, 3])), tf.reduce_sum(tf.reshape(bad, [-1, 3]), 1)


def merge_layers(rows: tf.Tensor, sources: Sequence[int]) -> dict[str, tf.Tensor]:
    """The columns of the layers over the global batch, each [L], from every replica's LAYER_ROWS `[R, K, L]`.

    `sources` has for each layer the index of the one that feeds it, or -1; see `tapescope.flow`.
    Means and variances are merged by Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    if rows.shape[0] == 1:
        of = dict(zip(LAYER_ROWS, tf.unstack(rows[0]), strict=True))
    else:
        of = _merged(dict(zip(LAYER_ROWS, tf.unstack(rows, axis=1), strict=True)))
    sane = of["elements"] - of["nonfinite"]
    there = R.Greater(x=sane, y=constant(0.0))
    std = R.Sqrt(x=R.DivNoNan(x=of["m2"], y=sane))
    columns = {"mean": of["mean"], "std": std, "min": of["min"], "max": of["max"]}
    return {
        **{f"activation_{k}": R.SelectV2(condition=there, t=v, e=constant(np.nan)) for k, v in columns.items()},
        "activation_zero": of["zero"] / of["elements"],
        "activation_nonfinite": of["nonfinite"],
        "input_nonfinite": of["input_nonfinite"],
        "saturated": of["saturated"] / of["elements"],
        "delta_norm": of["delta_norm"],
        **_flow(of["delta_norm"], of["z_norm"], of["input_norm"], sources),
        "elements": of["elements"],
        "delta_nonfinite": of["delta_nonfinite"],
        "examples": of["examples"],
    }


def _merged(of: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Each row [L], from those of all replicas, [R, L]."""
    sane = of["elements"] - of["nonfinite"]
    mean = tf.math.divide_no_nan(tf.reduce_sum(sane * of["mean"], 0), tf.reduce_sum(sane, 0))
    special = {
        "mean": mean,
        "m2": tf.reduce_sum(of["m2"] + sane * tf.square(of["mean"] - mean), 0),
        "min": tf.reduce_min(of["min"], 0),
        "max": tf.reduce_max(of["max"], 0),
        **{name: hypot(of[name]) for name in ("delta_norm", "z_norm", "input_norm")},
    }
    return {name: special[name] if name in special else tf.reduce_sum(row, 0) for name, row in of.items()}


def _flow(delta: tf.Tensor, z: tf.Tensor, given: tf.Tensor, sources: Sequence[int]) -> dict[str, tf.Tensor]:
    """In decades, each [L]: what the gradient gains from a layer's output to z, from z to its input, and from there to
    the output of the layer that feeds it.
    """
    logs = R.Mul(x=R.Log(x=R.Pack(values=[delta, z, given])), y=constant(1 / np.log(10)))
    delta, z, given = tf.unstack(logs)
    before = tf.where(tf.math.is_nan(given), tf.where(tf.math.is_nan(z), delta, z), given)
    fed = np.asarray(sources, np.int32)
    after = R.GatherV2(params=delta, indices=constant(np.maximum(fed, 0)), axis=constant(0))
    after += constant(np.where(fed >= 0, 0.0, np.nan))
    return {"flow_gate": z - delta, "flow_weight": given - z, "flow_between": after - before}


def first(mask: tf.Tensor) -> tf.Tensor:
    """Index of the first true element of `[L]`, float32 []; -1 where none is."""
    count = mask.shape[0] or 0
    left = _largest(mask, np.arange(count, 0, -1))  # it and those behind it
    return R.SelectV2(condition=R.Greater(x=left, y=constant(0.0)), t=constant(float(count)) - left, e=constant(-1.0))


def last(mask: tf.Tensor) -> tf.Tensor:
    """Index of the last true element of `[L]`, float32 []; -1 where none is."""
    return _largest(mask, np.arange(1, 1 + (mask.shape[0] or 0))) - constant(1.0)


def _largest(mask: tf.Tensor, values: np.ndarray) -> tf.Tensor:
    """The largest of `values` where `mask` is true, or 0."""
    found = R.Mul(x=R.Cast(x=mask, DstT=tf.float32), y=constant(values, tf.float32))
    return R.Relu(features=R.Max(input=found, axis=constant([0])))  # of no element the largest is -inf
