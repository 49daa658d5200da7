"""Rules about updates, clipping and the loss: records that each must report, and similar ones that it must not."""

import numpy as np
import pytest

from tests.instrument.rules.records import (
    ALL,
    FLAT,
    KERNELS,
    LAYER,
    both,
    find,
    loss_noise,
    noisy_flat,
    only_finding,
    put,
)


def test_lasting_large_updates_of_one_layer_name_it():
    assert only_finding(find(20, put("update_ratio", 4, 0.3)), "update_too_large").layer == "hidden_3"


def test_lasting_large_updates_of_all_layers_name_none():
    assert only_finding(find(20, put("update_ratio", KERNELS, 0.3)), "update_too_large").layer is None


def test_large_updates_of_a_few_records_are_not_lasting():
    assert find(20, put("update_ratio", 4, 0.3, since=16)) == []


def first_update_is_twice_the_weights(t, columns):
    """Change hidden_3's weights by twice their norm in the first step."""
    if t == 0:
        columns["update_ratio"][4] = 2.0


SMALL_FIRST_WEIGHTS = put("weight_norm", KERNELS, 0.1)


def test_one_update_larger_than_the_weights_is_a_warning():
    assert only_finding(find(20, first_update_is_twice_the_weights), "update_too_large").severity == "warning"


def test_weights_that_start_near_0_may_be_replaced():
    assert find(20, both(first_update_is_twice_the_weights, SMALL_FIRST_WEIGHTS)) == []


def test_weights_that_start_near_0_and_a_loss_that_rises_is_an_error():
    rising = put("loss", None, 30, since=1)
    findings = find(20, both(first_update_is_twice_the_weights, SMALL_FIRST_WEIGHTS, rising))
    finding = only_finding(findings, "update_too_large")
    assert (finding.layer, finding.severity) == ("hidden_3", "error")


def test_growth_of_the_weights_between_records_counts_as_updates():
    def leaping(t, columns):
        columns["weight_norm"] *= 1 if t == 0 else 60
        columns["loss"] = np.float64(2.3 if t == 0 else 40)

    finding = only_finding(find(3, leaping), "update_too_large")
    assert (finding.layer, finding.step, finding.severity) == (None, 4, "error")
    assert finding.evidence["update_ratio"] == pytest.approx(59 / 4, rel=0.01)


def test_small_updates_of_all_layers_with_a_loss_that_does_not_fall_are_reported():
    assert only_finding(find(30, both(put("update_ratio", ALL, 1e-6), FLAT)), "update_too_small").layer is None


def test_small_updates_with_a_loss_that_falls_are_fine_tuning():
    assert find(30, put("update_ratio", ALL, 1e-6)) == []


def test_one_layer_that_does_not_change_is_named():
    assert only_finding(find(30, put("update_ratio", LAYER["hidden_2"], 0)), "update_too_small").layer == "hidden_2"


def test_updates_that_grow_are_a_warm_up():
    def warming_up(t, columns):
        columns["update_ratio"][:] = 1e-8 * t
        columns["loss"] = np.float64(2.3)

    assert find(29, warming_up) == []


def test_clipping_that_leaves_little_is_a_warning():
    assert only_finding(find(30, put("applied_norm", ALL, 1e-4)), "always_clipped").layer is None


def test_clipping_at_every_record_that_leaves_half_is_info():
    def half(t, columns):
        columns["applied_norm"] = 0.5 * columns["gradient_norm"]

    assert only_finding(find(30, half, severity="info"), "always_clipped").severity == "info"


def test_clipping_at_some_records_is_not_reported():
    def now_and_then(t, columns):
        if t % 3 == 0:
            columns["applied_norm"] = 0.01 * columns["gradient_norm"]

    assert find(30, now_and_then, severity="info") == []


def test_a_loss_that_does_not_fall_though_weights_move_far_is_reported():
    assert only_finding(find(60, noisy_flat), "loss_not_falling").layer is None


def test_a_loss_may_stand_still_at_first():
    assert find(20, noisy_flat) == []


def test_a_loss_may_stand_still_while_weights_have_not_moved_far():
    assert find(60, both(noisy_flat, put("update_ratio", KERNELS, 1e-3))) == []


def test_another_finding_explains_a_loss_that_does_not_fall():
    only_finding(find(60, both(noisy_flat, put("flow_gate", 1, -2.5))), "vanishing")


def test_a_loss_that_falls_slowly_is_not_stuck():
    def slow(t, columns):
        columns["loss"] = np.float64(2.3 - 0.003 * t + loss_noise(t))
        columns["update_ratio"][::2] = 5e-3

    assert find(60, slow) == []


def test_a_loss_that_falls_in_spite_of_a_warning_is_noted():
    findings = find(60, put("flow_gate", 1, -3.5), severity="info")
    assert [(f.rule, f.severity) for f in findings] == [("vanishing", "warning"), ("falls_regardless", "info")]
    assert findings[1].advice == "Fixing the problems above may speed up training."
