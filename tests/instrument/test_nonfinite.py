"""A NaN put at every layer in turn, forward and backward, in three types: the first layer is named at the very step."""

import pytest
from scripts.testbed.nonfinite import AT, cases, poisoned_backward, poisoned_forward


@pytest.mark.parametrize("poison", [poisoned_forward, poisoned_backward], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_the_first_layer_is_named_at_the_very_step_and_on_disk(dtype, poison, tmp_path):
    way = "forward" if poison is poisoned_forward else "backward"
    for case in cases(dtype, poison, tmp_path):
        assert case.run.steps.tolist() == list(range(AT + 1))
        assert case.run[f"first_nonfinite_{way}"].tolist() == case.expected, case.layer
        if way == "backward":
            assert case.run["first_nonfinite_forward"].tolist() == [-1] * (AT + 1)
        assert case.findings[:1] == [(case.layer, AT)]
