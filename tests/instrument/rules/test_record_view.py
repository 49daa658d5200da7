"""The layout of a run, healthy or damaged, and medians."""

import numpy as np
import pytest

from tapescope.rules.record_view import lower_median, run_layout
from tests.instrument.rules.records import DETAILS, LAYERS, VARIABLES


def test_a_run_without_sources_is_a_chain():
    layout = run_layout(["k", "l"], ["a", "b"], {"variables": [[0], [1]]})
    assert (layout.path, layout.source) == ((1, 0), (-1, 0))
    assert layout.is_output.tolist() == [False, True]
    assert layout.is_input.tolist() == [True, False]


def test_a_branch_is_not_on_the_path():
    sources = [[], [0], [0], [1, 2]]
    assert run_layout(VARIABLES, LAYERS, {**DETAILS, "sources": sources}).path == (3, 2, 0)


def test_variables_of_no_layer_are_groups_of_their_own():
    layout = run_layout(VARIABLES, LAYERS, {**DETAILS, "variables": [[0, 1], [], [], []]})
    assert layout.groups == (*LAYERS, *VARIABLES[2:])


def test_a_layer_behind_an_embedding_does_not_read_the_data():
    details = {"variables": [[1, 2], [4]], "sources": [[], [0]]}
    layout = run_layout(["embedding", "k1", "b1", "gamma", "k2"], ["a", "b"], details)
    assert layout.is_input.tolist() == [False, False]


def test_a_layer_behind_an_unmeasured_variable_does_not_read_the_data():
    details = {"variables": [[0, 1], [3, 4]], "sources": [[], []]}
    layout = run_layout(["k1", "b1", "gamma", "k2", "b2"], ["a", "b"], details)
    assert layout.is_input.tolist() == [True, False]


@pytest.mark.parametrize("damage", [None, 7, "x", [], [None], [[99], ["1"], [-1], 3], {"a": 1}])
@pytest.mark.parametrize("detail", ["units", "activations", "variables", "sources", "faults"])
def test_damaged_details_still_give_a_layout(detail, damage):
    layout = run_layout(VARIABLES, LAYERS, {**DETAILS, detail: damage})
    assert layout.layer_count == len(LAYERS)
    assert layout.units.shape == layout.is_output.shape == layout.is_input.shape == (len(LAYERS),)


def test_a_cycle_of_sources_still_gives_a_path():
    assert run_layout([], ["a", "b", "c"], {"sources": [[], [2], [1]]}).path == (2, 1)


def test_the_median_of_infinity_and_a_number_is_the_lower():
    np.testing.assert_array_equal(lower_median(np.array([[-np.inf, 3], [2, np.nan]])), [-np.inf, 3])
