"""Arrays in Plotly's typed-array encoding."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.figures.encoding import decode, encode


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=np.int32), np.eye(3, dtype=np.float32), np.array([np.nan, -np.inf]), np.zeros((0, 4))]
)
def test_encoded_arrays_are_decoded_unchanged(array):
    np.testing.assert_array_equal(decode(encode(array)), array)


def test_integers_of_64_bits_become_floats():
    assert encode(np.arange(3))["dtype"] == "f8"


def test_lists_are_decoded_as_they_are():
    assert decode(["a", "b"]).tolist() == ["a", "b"]
