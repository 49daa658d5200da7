"""Plotly's typed-array encoding: arrays as base64 text, which browsers read without parsing each number."""

import base64
from typing import Any

import numpy as np


def encode(array: Any) -> dict[str, str]:
    """Return an array in Plotly's typed-array encoding.

    Integers of 64 bits become float64, because Plotly takes no 64-bit integers.
    """
    array = np.asarray(array)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        array = array.astype(np.float64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    encoded = {"dtype": array.dtype.str[1:], "bdata": base64.b64encode(array.tobytes()).decode()}
    return encoded if array.ndim == 1 else {**encoded, "shape": ", ".join(map(str, array.shape))}


def decode(value: Any) -> np.ndarray:
    """Return the array behind a figure's field, which is encoded or a list."""
    if not isinstance(value, dict):
        return np.asarray(value)
    flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
    return flat.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else flat
