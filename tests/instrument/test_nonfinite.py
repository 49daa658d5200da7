"""A NaN at every layer in turn, forward and backward, in three types: the first layer is named at the exact step."""

import pytest
from scripts.testbed.nonfinite import AT, LAYERS, cases, poisoned_backward, poisoned_forward

POISONS = {"forward": poisoned_forward, "backward": poisoned_backward}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["float32", "mixed_bfloat16", "mixed_float16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module", params=POISONS)
def direction(request):
    return request.param


@pytest.fixture(scope="module")
def found(dtype, direction, tmp_path_factory):
    """Return a Case for each layer."""
    return list(cases(dtype, POISONS[direction], tmp_path_factory.mktemp("runs")))


def test_a_case_for_every_layer(found):
    assert [case.layer for case in found] == list(LAYERS)


def test_every_step_is_on_disk(found):
    assert [case.run.steps.tolist() for case in found] == [list(range(AT + 1))] * len(LAYERS)


def test_the_record_names_the_first_layer_at_the_exact_step(found, direction):
    named = [case.run[f"first_nonfinite_{direction}"].tolist() for case in found]
    assert named == [case.expected for case in found]


def test_a_finding_names_the_first_layer_at_the_exact_step(found):
    assert [case.findings[0] for case in found] == [(layer, AT) for layer in LAYERS]


@pytest.mark.parametrize("direction", ["backward"], indirect=True)
def test_the_forward_pass_stays_finite_where_only_the_gradient_is_not(found):
    assert [case.run["first_nonfinite_forward"].tolist() for case in found] == [[-1] * (AT + 1)] * len(LAYERS)
