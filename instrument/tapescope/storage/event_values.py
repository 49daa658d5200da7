"""The summaries of a step, as event files hold them: points, histograms, tensors and texts."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.metadata import Family


class Value(NamedTuple):
    """One summary of a step."""

    tag: str
    tensor: tensor_pb2.TensorProto
    description: Family | summary_pb2.SummaryMetadata
    """Written with the first event of the tag."""
    array: np.ndarray | None = None
    """Content of `tensor`, for the numeric families of tapescope."""


_SCALAR_SHAPE = tensor_shape_pb2.TensorShapeProto()
_SCALARS = summary_pb2.SummaryMetadata(
    plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class=summary_pb2.DATA_CLASS_SCALAR,
)
_HISTOGRAMS = summary_pb2.SummaryMetadata(
    plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="histograms"),
    data_class=summary_pb2.DATA_CLASS_TENSOR,
)
_EMPTY_BINS = np.stack([metadata.bin_edges()[:-1], metadata.bin_edges()[1:], np.zeros(metadata.BINS)], axis=1)
"""Left, right and count of each bin, [B, 3]."""
_TYPES = {
    np.dtype(np.float32): types_pb2.DT_FLOAT,
    np.dtype(np.float64): types_pb2.DT_DOUBLE,
    np.dtype(np.int32): types_pb2.DT_INT32,
    np.dtype(np.uint8): types_pb2.DT_UINT8,
}


def scalar(tag: str, value: float) -> Value:
    """Return a point for TensorBoard's Scalars tab."""
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=_SCALAR_SHAPE, float_val=[value])
    return Value(tag=tag, tensor=tensor, description=_SCALARS)


def histogram(tag: str, counts: np.ndarray) -> Value:
    """Return a slice for TensorBoard's Histograms tab: `[k, 3]` of left, right, count, without empty outer bins.

    Args:
      tag: of the summary.
      counts: over the bins of `metadata.bin_edges`, [B].
    """
    filled = np.flatnonzero(counts)
    inside = slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 0)
    bins = _EMPTY_BINS[inside].copy()
    bins[:, 2] = counts[inside]
    return Value(tag=tag, tensor=_make_proto(bins), description=_HISTOGRAMS)


def tensor(family: Family, array: np.ndarray) -> Value:
    """Return the tensor of one of tapescope's own families."""
    return Value(tag=family.tag, tensor=_make_proto(array), description=family, array=array)


def with_columns(family: Family, array: np.ndarray, columns: tuple[str, ...]) -> Value:
    """Return the tensor of a family with other columns: those that it lacks are NaN.

    Args:
      family: what the array is.
      array: it has one or more rows for each of the family's columns.
      columns: the ones to have, in their order.
    """
    parts = dict(zip(family.columns, np.split(array, max(1, len(family.columns))), strict=True))
    absent = np.full_like(next(iter(parts.values())), np.nan)
    return tensor(family._replace(columns=columns), np.concatenate([parts.get(name, absent) for name in columns]))


def text(family: Family, texts: str | Sequence[str]) -> Value:
    """Return JSON text of one of tapescope's own families: a string, or a vector of strings."""
    shape = tensor_shape_pb2.TensorShapeProto()
    if isinstance(texts, str):
        texts = [texts]
    else:
        shape.dim.add(size=len(texts))
    proto = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[text.encode() for text in texts]
    )
    return Value(tag=family.tag, tensor=proto, description=family)


def _make_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    # tensor_util.make_tensor_proto does the same in ten times the time.
    return tensor_pb2.TensorProto(
        dtype=_TYPES[array.dtype], tensor_shape=_make_shape(array.shape), tensor_content=array.tobytes()
    )


@functools.lru_cache(maxsize=1024)
def _make_shape(sizes: tuple[int, ...]) -> tensor_shape_pb2.TensorShapeProto:
    return tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in sizes])
