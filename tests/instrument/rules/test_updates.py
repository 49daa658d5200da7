"""Rules about updates: records that each must report, and similar ones that it must not."""

import math

import numpy as np
import pytest

from tapescope.rules.record_view import run_layout
from tests.instrument.rules.records import (
    ALL,
    DETAILS,
    FLAT,
    KERNELS,
    LAYER,
    LAYERS,
    LAYOUT,
    NAN,
    OBJECTIVE,
    VARIABLES,
    both,
    find,
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


def without_layers(_, columns):
    """Leave the columns of variables."""
    columns |= {name: np.zeros(0) for name, values in columns.items() if np.shape(values) == (len(LAYERS),)}


@pytest.mark.parametrize(("row", "rules"), [(5, []), (4, ["update_too_large"])])
def test_without_layers_biases_that_start_at_0_may_change_by_much(row, rules):
    """Row 5 is a bias, and row 4 a kernel: each variable is a group of its own."""
    findings = find(20, both(put("update_ratio", row, 0.3, since=1), without_layers), run_layout(VARIABLES, (), {}))
    assert [finding.rule for finding in findings] == rules


def test_without_layers_a_single_number_may_pass_0_while_the_loss_falls():
    def one_number(_, columns):
        columns["gradient_max"][4] = columns["gradient_norm"][4]

    changing = both(both(put("update_ratio", 4, 0.3, since=1), one_number), without_layers)
    assert find(20, changing, run_layout(VARIABLES, (), {})) == []
    stuck = both(changing, put("loss", None, 2.3))
    assert [f.rule for f in find(100, stuck, run_layout(VARIABLES, (), {}))] == ["update_too_large"]


def test_without_layers_a_variable_whose_best_value_is_0_may_go_on_changing():
    """Its norm shrinks with its updates, and the network learns."""
    learned = both(put("update_ratio", 4, 0.3, since=1), without_layers)
    assert find(100, learned, run_layout(VARIABLES, (), {})) == []


def first_update_is_twice_the_weights(t, columns):
    """Change hidden_3's weights by twice their norm in the first step."""
    if t == 0:
        columns["update_ratio"][4] = 2.0


def learns(t, columns):
    """Let nearly all of the loss go."""
    columns["loss"] = np.float64(2.3 * 0.9**t)


def test_one_large_update_of_a_network_that_then_learns_is_lowered_to_info():
    finding = find(60, both(first_update_is_twice_the_weights, learns), severity="info")[0]
    assert (finding.rule, finding.severity, finding.step) == ("update_too_large", "info", 0)


def test_lasting_large_updates_of_a_network_that_learns_stay_a_warning():
    assert only_finding(find(60, both(put("update_ratio", 4, 0.3), learns)), "update_too_large").severity == "warning"


def test_an_error_about_updates_is_not_lowered():
    def rises_and_learns(t, columns):
        first_update_is_twice_the_weights(t, columns)
        columns["loss"] = np.float64(40 if 1 <= t < 12 else 2.3 * 0.8**t)

    assert find(60, rises_and_learns)[0].severity == "error"


def starts_at_0(ratio, since):
    """Return a change in which hidden_3 starts at 0, and then changes by a ratio in a step."""

    def change(t, columns):
        columns["weight_norm"][4:6] = 0 if t < since else 1.0
        columns["update_ratio"][4:6] = np.inf if t < since else ratio

    return change


def test_a_layer_that_starts_at_0_has_a_pace_from_its_second_record_on():
    findings = find(20, both(starts_at_0(0.3, since=1), FLAT))
    assert [(f.rule, f.layer) for f in findings] == [("update_too_large", "hidden_3")]


def test_a_layer_that_starts_at_0_and_slows_down_is_not_reported():
    def slows_down(t, columns):
        columns["weight_norm"][4:6] = t
        columns["update_ratio"][4:6] = 1 / (4 * t) if t else np.inf

    assert find(30, slows_down) == []


def test_a_loss_that_rises_from_the_first_step_on_hints_at_the_sign():
    rising = put("update_ratio", KERNELS, 0.3)

    def climbs(t, columns):
        rising(t, columns)
        columns["loss"] = np.float64(2.3 * 2**t)

    assert "a negative one climbs" in only_finding(find(20, climbs), "update_too_large").advice


@pytest.mark.parametrize("sums_examples", [True, False])
def test_a_summed_loss_is_named_where_updates_are_too_large(sums_examples):
    layout = LAYOUT._replace(objectives=(OBJECTIVE._replace(sums_examples=sums_examples),))
    found = only_finding(find(20, put("update_ratio", KERNELS, 0.3), layout), "update_too_large")
    assert ("sum over the batch" in found.advice) == sums_examples


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
    finding = only_finding(find(30, both(put("update_ratio", ALL, 1e-6), FLAT)), "update_too_small")
    assert (finding.layer, "`epsilon`" in finding.advice) == (None, True)


def test_small_updates_with_a_loss_that_falls_are_fine_tuning():
    assert find(30, put("update_ratio", ALL, 1e-6)) == []


def test_one_layer_that_does_not_change_is_named():
    assert only_finding(find(30, put("update_ratio", LAYER["hidden_2"], 0)), "update_too_small").layer == "hidden_2"


def test_all_layers_that_do_not_change_are_named():
    still = both(put("weight_norm", ALL, 8.0), put("update_ratio", ALL, 1e-3), put("update_ratio", slice(0, 6), 0))
    message = only_finding(find(30, still), "update_too_small").message
    assert "`hidden_1`, `hidden_2`, `hidden_3` do not change although a gradient arrives" in message
    assert "by up to 0.001 of their norm" in message


def test_updates_that_grow_are_a_warm_up():
    def warming_up(t, columns):
        columns["update_ratio"][:] = 1e-8 * t
        columns["loss"] = np.float64(2.3)

    assert find(29, warming_up) == []


def test_updates_that_only_drift_upwards_are_no_warm_up():
    def drifting(t, columns):
        columns["update_ratio"][:] = 1e-6 if t == 0 else 2e-5 * (1 + t / 25)
        columns["loss"] = np.float64(2.3)

    assert only_finding(find(26, drifting), "update_too_small").layer is None


def test_clipping_that_leaves_little_is_a_warning():
    clipped = both(put("applied_norm", ALL, 1e-4), put("update_ratio", ALL, 3e-4))
    assert only_finding(find(30, clipped), "always_clipped").layer is None


def test_clipping_that_leaves_the_updates_their_size_is_info():
    assert find(30, put("applied_norm", ALL, 1e-4)) == []


def stopping(t, columns):
    """Let updates die away after ten records, of a loss that does not fall."""
    noisy_flat(t, columns)
    columns["update_ratio"][:] = 2e-3 if t < 10 else 1e-6


def test_updates_that_stop_before_the_loss_has_fallen_are_reported():
    assert "schedule" in only_finding(find(60, stopping), "update_too_small").advice


def test_updates_may_stop_once_the_loss_has_fallen():
    def learned(t, columns):
        columns["update_ratio"][:] = 2e-3 if t < 40 else 1e-6

    assert find(60, learned) == []


@pytest.mark.parametrize(
    ("last_loss", "rest", "end", "named"),
    [(1.8, 0, 20, True), (1.8, 1e-6, 20, False), (0.3, 0, 20, False), (NAN, 0, 20, False), (1.8, 0, 40, False)],
)
def test_weights_that_do_not_move_any_more_are_reported_before_half_of_the_loss_is_gone(last_loss, rest, end, named):
    def halting(t, columns):
        columns["update_ratio"][:] = 2e-3 if t < end else rest
        columns["weight_norm"][:] = [8, 0.001] * 4
        columns["loss"] = np.float64(last_loss + max(0, 20 - t) * 0.03)

    found = [f.message for f in find(60, halting) if f.rule == "update_too_small"]
    assert ["only" in message for message in found] == [True] * named


def shrinking(t, columns):
    columns["weight_norm"][::2] *= 0.95**t


def test_weights_that_decay_while_nothing_is_learned_are_reported():
    found = find(60, both(noisy_flat, shrinking, put("update_ratio", KERNELS, 5e-2)))
    assert ("decayed_weights", 0) in [(f.rule, f.step) for f in found]


def test_outputs_that_shrink_are_not_decayed():
    """Check that outputs which learn to give nothing, as of inputs that say nothing, are no sign of a decay."""

    def outputs_shrink(t, columns):
        columns["weight_norm"][[4, 6]] *= 0.95**t

    layout = run_layout(VARIABLES, LAYERS, {**DETAILS, "sources": [[], [0], [1], [1]]})
    found = find(60, both(noisy_flat, outputs_shrink, put("update_ratio", KERNELS, 5e-2)), layout)
    assert "decayed_weights" not in [f.rule for f in found]


UNTRAINED = run_layout(VARIABLES, LAYERS, {**DETAILS, "variables": [[0, 1], [], [4, 5], [6, 7]]})


"""A layout of which hidden_2 has no trained variable."""


def test_a_frozen_layer_is_noted():
    finding = only_finding(find(60, layout=UNTRAINED, severity="info"), "frozen_layers")
    assert (finding.severity, finding.layer) == ("info", "hidden_2")


OF_CLASSES = OBJECTIVE._replace(loss="sparse_categorical_crossentropy")


"""Objective of the example network with five classes, whose labels are their indices."""


@pytest.mark.parametrize(("loss", "severity"), [(math.log(5), "warning"), (0.88 * math.log(5), "info")])
def test_a_frozen_layer_is_a_warning_if_the_loss_is_that_of_a_constant_answer(loss, severity):
    layout = UNTRAINED._replace(objectives=(OF_CLASSES,))
    findings = {f.rule: f for f in find(60, put("loss", None, loss), layout, severity="info")}
    assert findings["frozen_layers"].severity == severity


@pytest.mark.parametrize("change", [{"sums_examples": True}, {"weighted": True}])
def test_a_loss_on_another_scale_is_not_compared_with_a_constant_answer(change):
    layout = UNTRAINED._replace(objectives=(OF_CLASSES._replace(**change),))
    findings = {f.rule: f for f in find(60, put("loss", None, math.log(5)), layout, severity="info")}
    assert findings["frozen_layers"].severity == "info"


def test_a_layer_without_weights_is_not_frozen():
    assert find(60, put("flow_weight", 1, 1e-6), UNTRAINED, severity="info") == []


def test_weights_may_shrink_while_the_loss_falls():
    assert find(60, shrinking) == []


def test_clipping_at_every_record_that_leaves_half_is_info():
    def half(t, columns):
        columns["applied_norm"] = 0.5 * columns["gradient_norm"]

    assert only_finding(find(30, half, severity="info"), "always_clipped").severity == "info"


def test_clipping_at_some_records_is_not_reported():
    def now_and_then(t, columns):
        if t % 3 == 0:
            columns["applied_norm"] = 0.01 * columns["gradient_norm"]

    assert find(30, now_and_then, severity="info") == []


def test_a_learning_rate_below_0_is_said():
    layout = LAYOUT._replace(objectives=(OBJECTIVE._replace(learning_rate=-3.0),))

    def climbing(t, columns):
        columns["loss"] = np.float64(2.0 * 2**t)
        columns["update_ratio"][KERNELS] = 30.0

    assert "The learning rate is -3" in only_finding(find(3, climbing, layout), "update_too_large").advice
    unknown = LAYOUT._replace(objectives=(OBJECTIVE._replace(learning_rate=NAN),))
    assert "Lower the learning rate" in only_finding(find(3, climbing, unknown), "update_too_large").advice


def unmoved(since=0, until=99, gradient=None, called=True):
    """Return a change in which no weight moves in the records from `since` to `until`."""

    def change(t, columns):
        columns["optimizer_called"] = np.float64(called)
        if since <= t < until:
            columns["update_ratio"][:] = 0
            columns["weight_norm"] = np.full(8, 3.0)
            if gradient is not None:
                columns["gradient_norm"][:] = columns["applied_norm"][:] = gradient

    return change


def test_weights_that_never_move_are_a_warning_after_ten_records():
    assert find(9, unmoved()) == []
    assert only_finding(find(10, unmoved()), "update_not_applied").severity == "warning"


def test_weights_that_never_move_are_an_error_in_the_end():
    finding = only_finding(find(60, unmoved()), "update_not_applied")
    assert (finding.severity, finding.layer, finding.step) == ("error", None, 0)


def test_a_learning_rate_that_is_0_at_first_is_lowered_to_an_info():
    assert find(60, unmoved(until=12)) == []
    assert only_finding(find(60, unmoved(until=12), severity="info"), "update_not_applied").severity == "info"


def test_a_learning_rate_that_becomes_0_is_no_finding():
    assert "update_not_applied" not in [f.rule for f in find(60, unmoved(since=20), severity="info")]


def test_frozen_layers_are_no_update_that_is_not_applied():
    frozen = both(put("update_ratio", slice(0, 6), 0.0), put("weight_norm", slice(0, 6), 3.0))
    assert "update_not_applied" not in [f.rule for f in find(60, frozen, severity="info")]


def test_a_gradient_of_0_is_no_reason_to_move():
    assert "update_not_applied" not in [f.rule for f in find(60, unmoved(gradient=0.0), severity="info")]


def test_steps_that_a_loss_scale_skips_are_no_reason_to_move():
    skipped = both(unmoved(), put("gradient_nonfinite", 0, 5.0), put("skipped", None, 1.0))
    assert "update_not_applied" not in [f.rule for f in find(60, skipped, severity="info")]


def test_weights_that_move_between_the_records_are_no_finding():
    def between(t, columns):
        unmoved()(t, columns)
        columns["weight_norm"] = np.full(8, 3.0 + 1e-4 * t)

    assert "update_not_applied" not in [f.rule for f in find(60, between, severity="info")]


def test_a_known_learning_rate_of_0_stays_a_warning():
    layout = LAYOUT._replace(objectives=(OBJECTIVE._replace(learning_rate=0.0),))
    finding = only_finding(find(60, unmoved(), layout), "update_not_applied")
    assert finding.severity == "warning"


def test_a_step_without_an_optimizer_is_no_reason_to_move():
    assert "update_not_applied" not in [f.rule for f in find(60, unmoved(called=False), severity="info")]


def set_back(period):
    """Return a change in which all weights become those of the first record again, of a loss that does not fall."""

    def change(t, columns):
        noisy_flat(t, columns)
        columns["weight_norm"] = np.array([8, 0] * 4) + 0.01 * (t % period)

    return change


def test_weights_that_are_set_back_time_and_again_are_reported():
    found = only_finding(find(37, set_back(12)), "update_not_applied")
    assert "again at steps 48, 96" in found.message


@pytest.mark.parametrize(
    "change",
    [
        set_back(40),
        both(set_back(25), put("loss", None, 0.1, since=10)),
        both(set_back(12), lambda t, columns: columns.update(weight_norm=columns["weight_norm"] + 1e-9 * t)),
        lambda t, columns: set_back(5 if t < 12 else 100)(t, columns),
    ],
    ids=["once", "after it has learned", "not to the bit", "at the beginning only"],
)
def test_weights_may_be_set_back_once_or_after_learning(change):
    assert "update_not_applied" not in [f.rule for f in find(60, change, severity="info")]
