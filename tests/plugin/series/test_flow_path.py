"""The path of the gradient, and that every damaged description of the layers still has one."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.series import flow_path

CHAIN = [[], [0], [1], [2]]


def test_a_chain_is_followed_from_the_last_layer_to_the_first():
    assert flow_path.backward_path(CHAIN, 4) == [3, 2, 1, 0]


def test_the_last_source_in_forward_order_is_followed():
    assert flow_path.backward_path([[], [0], [0, 1], [2]], 4) == [3, 2, 1, 0]


def test_a_side_branch_is_not_on_the_path():
    assert flow_path.backward_path([[], [0], [0], [2]], 4) == [3, 2, 0]


def test_the_path_ends_at_a_layer_that_reads_the_data():
    assert flow_path.backward_path([[], [], [1], [2]], 4) == [3, 2, 1]


def test_layers_whose_sources_are_not_recorded_are_a_chain():
    assert flow_path.backward_path(None, 3) == [2, 1, 0]


def test_a_run_without_layers_has_no_path():
    assert flow_path.backward_path([], 0) == []


@pytest.mark.parametrize(
    ("sources", "path"),
    [
        ([[], [2], [1]], [2, 1]),  # a cycle of two layers
        ([[0], [1], [2]], [2]),  # each layer feeds itself
        ([[2], [2], [2]], [2]),
        ([[], [0], [99]], [2]),
        ([[], [0], [-1]], [2]),
        ([[], [0], [10**30, 1]], [2, 1, 0]),
        ([[], [0], ["1"]], [2]),
        ([[], [0], [1.0]], [2]),
        ([[], [0], [True]], [2]),
        ([[], [0], [None, [1]]], [2]),
        ([[], [0], 1], [2]),
        ([[], [0], "1"], [2]),
        ([[]], [2, 1, 0]),  # entries are missing
        ([[], [0], [1], [2], [3]], [2, 1, 0]),  # entries are too many
        ("chain", [2, 1, 0]),
        (7, [2, 1, 0]),
        ({"0": []}, [2, 1, 0]),
    ],
)
def test_damaged_sources_still_have_a_path_that_ends(sources, path):
    assert flow_path.backward_path(sources, 3) == path


def test_numpy_integers_are_indices():
    assert flow_path.backward_path([[], [np.int64(0)]], 2) == [1, 0]


def columns(*layers):
    """One record of gates, weights and what lies between, by layer."""
    return {part: np.array([[layer[i] for layer in layers]]) for i, part in enumerate(flow_path.FLOW_PARTS)}


def test_the_budget_leaves_the_end_of_the_path_out():
    budget = flow_path.flow_budget(columns((9, 9, 9), (-1, 0.5, 0), (-2, 0, 0.25)), CHAIN)
    assert budget.path == [2, 1]
    assert budget.total == pytest.approx(-2.25)


def test_the_budget_ends_at_the_layer_asked_for():
    assert flow_path.flow_budget(columns(*[(-1, 0, 0)] * 4), CHAIN, first=1).path == [3, 2]


def test_an_undefined_gain_counts_as_nothing():
    budget = flow_path.flow_budget(columns((0, 0, 0), (np.nan, -1.0, 0.5)), CHAIN)
    assert budget.total == -0.5


def test_gains_are_averaged_over_the_records_that_have_one():
    gates = {"flow_gate": np.array([[0, -1.0], [0, -3.0], [0, np.nan]])}
    assert flow_path.flow_budget(gates, None).gains["flow_gate"].tolist() == [-2]


def test_a_column_that_was_not_measured_has_no_part():
    assert list(flow_path.flow_budget({"flow_weight": np.zeros([1, 2])}, None).gains) == ["flow_weight"]


def test_the_budget_of_a_cycle_is_returned():
    assert flow_path.flow_budget(columns(*[(-1, 0, 0)] * 3), [[], [2], [1]]).total == -1


def test_the_budget_without_columns_is_empty():
    assert flow_path.flow_budget({}, CHAIN) == flow_path.FlowBudget([], {})
