"""Statistics of inputs, targets and outputs, against NumPy in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tapescope.statistics import data
from tapescope.statistics.data import DataTensor
from tapescope.statistics.reductions import run

RNG = np.random.default_rng(0)


def columns(*tensors, parts=1):
    """Return the columns by name, [D] each, of tensors that are cut into parts as by replicas."""

    def part(i, array):
        return None if array is None else tf.constant(np.array_split(array, parts)[i])

    rows = [run(data.data_rows([DataTensor(part(i, t), part(i, w), True) for t, w in tensors])) for i in range(parts)]
    return dict(zip(data.DATA_COLUMNS, data.data_columns(np.stack(rows)), strict=True))


def expected(values):
    finite = values[np.isfinite(values)].astype(np.float64)
    return {
        "data_elements": values.size,
        "data_nonfinite": values.size - finite.size,
        "data_rms": np.sqrt(np.mean(finite**2)),
        "data_mean": finite.mean(),
        "data_std": finite.std(),
        "data_min": finite.min(),
        "data_max": finite.max(),
        "data_zero": (finite == 0).mean(),
        "data_whole": (finite == np.floor(finite)).mean(),
        "data_negative": (finite < 0).mean(),
        "data_above_one": (finite > 1).mean(),
        "data_below_minus_one": (finite < -1).mean(),
    }


KINDS = {
    "normal": RNG.normal(size=[32, 5]).astype(np.float32),
    "pixels": RNG.integers(256, size=[32, 8, 8, 3]).astype(np.uint8),
    "offset": (1e6 + RNG.normal(size=[64, 4])).astype(np.float32),
    "addresses": RNG.uniform(1e9, 4e9, size=[64, 2]).astype(np.float32),
    "labels": RNG.integers(10, size=[32]),
    "flags": RNG.integers(2, size=[32, 1]).astype(bool),
    "tiny": (1e-10 * RNG.normal(size=[32, 3])).astype(np.float32),
    "zeros": np.zeros([16, 2], np.float32),
    "broken": np.where(RNG.random([32, 4]) < 0.2, np.nan, RNG.normal(size=[32, 4])).astype(np.float32),
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_those_of_numpy(kind, parts):
    found = columns((KINDS[kind], None), parts=parts)
    for name, value in expected(KINDS[kind]).items():
        np.testing.assert_allclose(found[name][0], value, rtol=2e-2 if kind == "offset" else 1e-4, err_msg=name)


def test_half_precision_is_measured_in_float32():
    values = tf.constant([[300.0, 400.0]], tf.float16)  # whose squares float16 can't hold
    assert columns((values.numpy(), None))["data_rms"][0] == pytest.approx(np.sqrt((9e4 + 16e4) / 2))


def test_rows_along_the_last_axis_have_sums_and_classes():
    found = columns((np.array([[0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32), None))
    assert [float(found[f"data_row_sum_{end}"][0]) for end in ("min", "max")] == [1, 2]
    assert [float(found[f"data_class_{end}"][0]) for end in ("min", "max")] == [0, 2]


def test_one_element_on_the_last_axis_is_not_a_class():
    assert np.isnan(columns((KINDS["flags"], None))["data_row_sum_max"][0])


def test_examples_of_weight_0_are_left_out():
    values = np.array([[1, 2], [50, 60], [3, 4]], np.float32)
    found = columns((values, np.array([1.0, 0.0, 0.5], np.float32)))
    for name, value in expected(values[[0, 2]]).items():
        assert found[name][0] == pytest.approx(value), name
    assert found["data_row_sum_max"][0] == 7


def test_a_tensor_without_a_finite_element_is_unknown():
    found = columns((np.full([4, 2], np.nan, np.float32), None))
    assert np.isnan(found["data_mean"][0])
    assert found["data_nonfinite"][0] == 8


def test_a_large_tensor_is_represented_by_its_first_examples():
    values = np.zeros([100, data.MAX_ELEMENTS // 32], np.float32)
    values[32:] = 1
    found = columns((values, None))
    assert found["data_elements"][0] == data.MAX_ELEMENTS
    assert found["data_max"][0] == 0


def test_the_first_example_is_measured_however_large_it_is():
    assert columns((np.ones([2, 2 * data.MAX_ELEMENTS], np.float32), None))["data_elements"][0] == 2 * data.MAX_ELEMENTS


def test_a_step_without_tensors_has_no_columns():
    assert data.data_columns(run(data.data_rows([])).numpy()[None]).shape == (len(data.DATA_COLUMNS), 0)
