"""Columns, replicas and means, of tables whose description may be damaged."""

import numpy as np
import pytest
from scripts.testbed.hostile import Datum

from tensorboard_plugin_tapescope.metadata import Family
from tensorboard_plugin_tapescope.series import tables

REPLICAS = Family("replicas", ("replica_norm", "replica_cosine"), ("a", "b", "c"), {"replicas": 2})
ROWS = np.arange(24.0).reshape(2, 4, 3)


def test_rows_of_replicas_are_unpacked_column_by_column():
    cosines = tables.unpack_column(REPLICAS, ROWS, "replica_cosine")
    assert cosines[0].tolist() == [[6, 7, 8], [9, 10, 11]]


def test_a_column_of_a_table_is_unpacked_the_same_way():
    table = tables.Table(REPLICAS, np.arange(2), np.zeros(2), ROWS)
    assert tables.column(table, "replica_norm").shape == (2, 2, 3)


def test_a_column_of_variables_is_one_row():
    family = Family("variables", ("gradient_norm", "weight_norm"), ("a", "b", "c"))
    assert tables.unpack_column(family, ROWS, "weight_norm")[0].tolist() == [3, 4, 5]


def test_a_column_of_steps_is_one_number_a_record():
    assert tables.unpack_column(Family("step", ("loss", "skipped")), np.ones([5, 2]), "loss").shape == (5,)


@pytest.mark.parametrize("replicas", [None, "2", 2.0, -2, 0, True, 3])
def test_a_damaged_number_of_replicas_is_refused(replicas):
    family = REPLICAS._replace(details={"replicas": replicas})
    with pytest.raises(ValueError, match=r"tapescope/replicas must have 2 columns .* the file is damaged"):
        tables.unpack_column(family, ROWS, "replica_cosine")


def test_tensors_with_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="the file is damaged"):
        tables.unpack_column(REPLICAS, ROWS[:, :3], "replica_cosine")


def test_a_column_that_the_family_does_not_have_is_refused():
    with pytest.raises(ValueError, match="loss is not among the columns of tapescope/replicas: replica_norm"):
        tables.unpack_column(REPLICAS, ROWS, "loss")


def test_the_mean_leaves_out_what_is_not_finite():
    values = np.array([[1.0, np.nan, np.inf], [3.0, 5.0, -np.inf]])
    np.testing.assert_array_equal(tables.finite_mean(values, axis=0), [2, 5, np.nan])


def test_the_mean_of_no_records_is_not_a_number():
    np.testing.assert_array_equal(tables.finite_mean(np.zeros([0, 2])), [np.nan, np.nan])


@pytest.mark.parametrize("units", [None, "many", [4], [4, 4, 4], 7, {}])
def test_units_of_a_damaged_description_are_zero(units):
    assert tables.units(Family("layers", (), ("a", "b"), {"units": units})) == [0, 0]


@pytest.mark.parametrize("count", [None, "4", -4, 2**40, 4.0, True, [4]])
def test_a_damaged_number_of_units_is_zero(count):
    assert tables.units(Family("layers", (), ("a", "b"), {"units": [count, 3]})) == [0, 3]


@pytest.mark.parametrize("kinds", [None, "relu", ["relu"], [1, None]])
def test_activations_of_a_damaged_description_are_unknown(kinds):
    assert tables.activations(Family("layers", (), ("a", "b"), {"activations": kinds})) == ["unknown"] * 2


def test_an_activation_with_a_name_is_said_before_the_layer():
    family = Family("layers", (), ("a", "b", "c"), {"activations": ["sigmoid", "linear", "<lambda>"]})
    assert tables.activation_adjectives(family) == ["sigmoid ", "", ""]


@pytest.mark.parametrize("owned", [None, "x", [], [[]], [None, 3], [["0"], [-1, 2.0]], {}])
def test_damaged_variables_of_layers_are_left_out(owned):
    assert tables.owned_variables(Family("layers", (), ("a", "b"), {"variables": owned})) == [[], []]


def test_variables_of_layers_beyond_the_last_are_left_out():
    assert tables.owned_variables(Family("layers", (), ("a",), {"variables": [[0], [1]]})) == [[0]]


@pytest.mark.parametrize(
    ("column", "latest", "order"),
    [
        ("gradient_norm", [1.0, 0.0, np.nan, 5.0], [1, 0, 3, 2]),
        ("saturated", [1.0, 0.0, np.nan, 5.0], [3, 0, 1, 2]),
        ("activation_mean", [0.1, -9.0, 1.0], [1, 2, 0]),
        ("gradient_norm", [1e-9, np.inf], [1, 0]),
    ],
)
def test_the_worst_rows_are_on_the_column_s_bad_side(column, latest, order):
    assert tables.worst_first(column, np.array([latest])).tolist() == order


def test_a_range_of_steps_includes_both_ends():
    table = tables.Table(Family("step"), np.arange(8), np.zeros(8), np.zeros((8, 1)))
    assert tables.between(table, 2, 5).steps.tolist() == [2, 3, 4, 5]


def test_a_range_behind_the_last_step_is_empty():
    table = tables.Table(Family("step"), np.arange(8), np.zeros(8), np.zeros((8, 1)))
    assert len(tables.between(table, 9, 12).values) == 0


def test_records_of_another_shape_are_left_out():
    family = Family("layers", ("delta_norm",), ("a", "b"))
    data = [Datum(0, 0.0, np.ones((1, 2), np.float32)), Datum(1, 1.0, np.ones((1, 3), np.float32))]
    assert tables.table(family, data).steps.tolist() == [0]


def test_records_that_are_not_numbers_are_left_out():
    family = Family("layers", ("delta_norm",), ("a", "b"))
    assert tables.table(family, [Datum(0, 0.0, np.full((1, 2), b"text", object))]).values.shape == (0, 1, 2)


def test_a_share_of_dead_units_is_their_number_over_the_units():
    family = Family("layers", ("units_dead",), ("a", "b"), {"units": [4, 0]})
    table = tables.table(family, [Datum(0, 0.0, np.array([[1, 0]], np.float32))])
    np.testing.assert_array_equal(tables.column(table, "dead_share"), [[0.25, np.nan]])


def test_a_share_is_a_column_if_the_number_of_units_is_known():
    family = Family("layers", ("units_dead",), ("a", "b"), {"units": [4, 0]})
    assert "dead_share" in tables.column_names(family)
    assert "dead_share" not in tables.column_names(family._replace(details={}))


def test_values_of_another_run_are_those_of_its_last_record_so_far():
    table = tables.Table(Family("step"), np.array([10, 20, 30]), np.zeros(3), np.array([[1.0], [2.0], [3.0]]))
    found = tables.as_of(np.array([5, 10, 25, 99]), table, table.values)
    np.testing.assert_array_equal(found[:, 0], [np.nan, 1, 2, 3])


@pytest.mark.parametrize(("units", "kept"), [([3, 2], [0]), ([2**31 - 1] * 2, [])])
def test_a_claim_of_very_many_units_is_not_believed(units, kept):
    family = tables.extend(
        Family("units", (), ("a",), {"units": [3]}), {"layers": ["a", "b"], "units": units, "variables": []}
    )
    table = tables.table(family, [Datum(0, 0.0, np.ones(3, np.uint8))])
    assert table.steps.tolist() == kept


@pytest.mark.parametrize("narrow", [False, True])
def test_a_norm_of_no_finite_element_is_not_drawn_as_zero(narrow):
    family = Family("variables", ("gradient_norm", "gradient_nonfinite"), ("zero", "all NaN", "one NaN"))
    table = tables.Table(family, np.arange(1), np.zeros(1), np.array([[[0.0, 0.0, 2.0], [0.0, 6.0, 1.0]]], np.float32))
    if narrow:
        table = tables.narrow(table, "gradient_norm")
    np.testing.assert_array_equal(tables.column(table, "gradient_norm"), [[0.0, np.nan, 2.0]])
