"""Rules about where the gradient goes: records that each must report, and similar ones that it must not."""

import numpy as np
import pytest

from tapescope.rules.record_view import run_layout
from tests.instrument.rules.records import (
    ALL,
    DETAILS,
    FLAT,
    LAYER,
    LAYERS,
    LAYOUT,
    NAN,
    OBJECTIVE,
    VALUES,
    VARIABLES,
    both,
    find,
    noisy_flat,
    only_finding,
    put,
    targets,
)

DEEP = slice(1, 4)


@pytest.mark.parametrize("replicas", [0, 4])
def test_a_healthy_run_has_no_findings(replicas):
    assert find(replicas=replicas, severity="info") == []


def test_vanishing_names_the_layer_that_takes_most():
    finding = only_finding(find(20, put("flow_gate", 1, -3.5, since=8)), "vanishing")
    assert (finding.layer, finding.step, finding.severity) == ("hidden_2", 32, "warning")
    assert finding.evidence["decades_gate"] == -3.5


def test_vanishing_says_how_much_arrives_and_what_the_optimizer_makes_of_it():
    finding = only_finding(find(20, put("flow_gate", 1, -3.5, since=8)), "vanishing")
    assert finding.message.startswith(
        "the tanh layer `hidden_2` makes the gradient 2,200 times shorter, mostly by its activation; `hidden_1` gets "
    )
    assert finding.message.endswith(", yet its weights change by 0.001 of their norm per step, where 0.001 is usual")


@pytest.mark.parametrize(("ratio", "word"), [(4e-5, "and"), (8e-4, "yet")])
def test_vanishing_says_yet_only_of_weights_that_change_as_usual(ratio, word):
    slower = put("update_ratio", LAYER["hidden_1"], ratio)
    finding = only_finding(find(20, both(put("flow_gate", 1, -3.5, since=8), slower)), "vanishing")
    assert f", {word} its weights change by " in finding.message


@pytest.mark.parametrize(("decades", "advice"), [(-1.7, "Initialize these weights larger"), (-2.5, "Lower the")])
def test_relu_units_that_are_silent_are_not_a_matter_of_the_first_weights(decades, advice):
    layout = LAYOUT._replace(activations=("relu", "relu", "relu", "softmax"))
    silent = both(put("flow_gate", 1, decades), put("flow_gate", 2, -1.0))
    assert only_finding(find(20, silent, layout), "vanishing").advice.startswith(advice)


@pytest.mark.parametrize(("examples", "named"), [(1, True), (2, False)])
def test_batch_normalization_of_one_example_is_named(examples, named):
    layout = LAYOUT._replace(variable_names=(*LAYOUT.variable_names[:3], "normalization/gamma", *VARIABLES[4:]))

    def normalized(t, columns):
        columns["examples_seen"] = np.float64(examples * (4 * t + 1))
        columns["gradient_norm"][3] = 0
        columns["flow_gate"][1] = -np.inf

    finding = only_finding(find(20, normalized, layout), "vanishing")
    assert ("batch normalization" in finding.advice) == named


def test_vanishing_is_an_error_where_the_first_layer_stands_still():
    finding = find(8, both(put("flow_gate", 1, -2.5), put("update_ratio", LAYER["hidden_1"], 1e-6)))[0]
    assert (finding.rule, finding.severity) == ("vanishing", "error")
    assert ", and its weights change by 1e-06 of their norm per step, where 0.001 is usual" in finding.message


@pytest.mark.parametrize(("first", "severity"), [(0.0, "info"), (0.1, "warning")])
def test_weights_that_start_at_zero_pass_more_as_they_grow(first, severity):
    def starts(t, columns):
        columns["flow_weight"][1] = -2.8
        if t == 0:
            columns["weight_norm"][2] = first

    found = find(16, starts, severity="info")
    assert [f.severity for f in found if f.rule == "vanishing"] == [severity]


def test_vanishing_is_info_where_the_loss_falls():
    finding = find(60, put("flow_gate", 1, -2.5), severity="info")[0]
    assert (finding.rule, finding.severity) == ("vanishing", "info")


def test_vanishing_is_a_warning_where_the_loss_does_not_fall():
    assert only_finding(find(60, both(put("flow_gate", 1, -2.5), FLAT)), "vanishing").severity == "warning"


def test_vanishing_after_most_of_the_loss_is_gone_is_not_a_warning():
    assert find(60, put("flow_gate", 1, -3.5, since=40)) == []


def test_a_gradient_that_is_cut_off_is_a_warning_even_after_learning():
    assert only_finding(find(60, put("flow_gate", 1, -np.inf, since=40)), "vanishing").layer == "hidden_2"


def test_a_gradient_that_is_cut_off_between_two_layers_is_not_the_activations_fault():
    cut = both(put("flow_weight", 2, NAN), put("flow_between", 2, -np.inf))
    finding = only_finding(find(20, cut), "vanishing")
    assert "has a gradient, and none of it passes to `hidden_2` before it" in finding.message
    assert "stop_gradient" in finding.advice


def test_vanishing_by_weights_is_reported():
    finding = only_finding(find(20, put("flow_weight", 2, -3.4, since=1)), "vanishing")
    assert finding.layer == "hidden_3"
    assert "mostly by its weights" in finding.message


def test_a_skip_connection_compensates_for_weak_weights():
    assert find(20, both(put("flow_weight", 2, -3.4, since=1), put("flow_between", 2, 3.4))) == []


def test_pooling_takes_nothing_from_the_weights_before_it():
    assert find(20, put("flow_between", 2, -4.0)) == []


def test_a_confident_softmax_with_a_loss_near_0_is_not_vanishing():
    tiny = {"gradient_norm": 1e-9, "applied_norm": 1e-9, "delta_norm": 1e-9, "update_ratio": 1e-7}

    def converged(t, columns):
        if t > 20:
            for name, factor in tiny.items():
                columns[name] = np.abs(columns[name]) * factor
            columns["loss"] = np.float64(1e-9)
            columns["flow_gate"][3] = -7.0

    assert find(60, converged, severity="info") == []


def test_exploding_over_the_depth_is_reported():
    assert only_finding(find(20, put("flow_weight", DEEP, 0.9, since=1)), "exploding").layer in LAYERS[1:]


def test_normalization_compensates_for_large_weights():
    assert find(20, both(put("flow_weight", DEEP, 0.9, since=1), put("flow_between", DEEP, -0.9))) == []


def test_exploding_over_the_depth_after_learning_is_not_a_warning():
    assert find(60, put("flow_weight", DEEP, 0.9, since=40)) == []


def growing(t, columns):
    """Let the gradient grow, most in hidden_3, and the loss with it."""
    columns["gradient_norm"] *= 10.0 ** (t / 5)
    columns["gradient_norm"][4] *= 10.0 ** (t / 20)
    columns["loss"] = np.float64(2.3 + t)


def test_exploding_over_time_is_an_error():
    (finding,) = (finding for finding in find(40, growing) if finding.rule == "exploding")
    assert (finding.layer, finding.severity) == ("hidden_3", "error")


@pytest.mark.parametrize(
    ("growth", "loss", "expected"),
    [
        (20, (2, 60), ["error"]),
        (20, (2, 10), []),
        (1000, (-2, -60), ["warning"]),
        (20, (-2, -6), []),
        (1000, (2, -60), []),
    ],
)
def test_a_gradient_that_grows_explodes_where_the_loss_is_lost(growth, loss, expected):
    """A loss that begins below 0 and is tenfold is lost as well; one that begins above 0 may be a likelihood's."""

    def grows(t, columns):
        columns["gradient_norm"] *= float(growth) ** (t / 39)
        columns["loss"] = np.interp(t, [0, 39], loss)

    assert [f.severity for f in find(40, grows) if f.rule == "exploding"] == expected


@pytest.mark.parametrize(("growth", "severity"), [(0.1, "warning"), (0.0, "error")])
def test_a_gradient_that_grows_with_the_targets_is_no_error(growth, severity):
    """The values of Q-learning grow from what the network gave at first to a sum of rewards."""

    def moving(t, columns):
        targets(1.0)(t, columns)
        columns["data_mean"] = np.array([growth * t])
        columns["gradient_norm"] *= 20 ** (t / 39)
        columns["loss"] = np.interp(t, [0, 39], (2, 60))

    (finding,) = (finding for finding in find(40, moving, VALUES) if finding.rule == "exploding")
    assert finding.severity == severity


def test_a_growing_gradient_with_a_falling_loss_is_not_exploding():
    def growing_gradient(t, columns):
        growing(t, columns)
        columns["loss"] = np.float64(2.3 * 0.97**t)

    assert "exploding" not in {finding.rule for finding in find(40, growing_gradient)}


def spikes(*at):
    """Return a change that multiplies the gradient at some records, most in hidden_2."""

    def change(t, columns):
        if t in at:
            columns["gradient_norm"] *= 100
            columns["gradient_norm"][2] *= 10
            columns["applied_norm"] = columns["gradient_norm"]

    return change


def test_one_spike_is_info():
    assert only_finding(find(40, spikes(20), severity="info"), "gradient_spike").severity == "info"


def test_two_spikes_are_a_warning():
    finding = only_finding(find(40, spikes(20, 30)), "gradient_spike")
    assert (finding.layer, finding.step) == ("hidden_2", 80)
    assert "and again at step 120" in finding.message


def test_spikes_do_not_explain_a_loss_that_does_not_fall():
    found = find(60, both(noisy_flat, spikes(8, 20)))
    assert [f.rule for f in found] == ["gradient_spike", "loss_not_falling"]


def test_a_rise_that_lasts_is_not_a_spike():
    assert find(40, spikes(*range(20, 40))) == []


def bad_from_record_7(t, columns):
    """Put NaN into the outputs from hidden_2 on, and into the gradient from the output on."""
    if t >= 7:
        columns["first_nonfinite_forward"] = np.float64(1)
        columns["first_nonfinite_backward"] = np.float64(3)
        columns["gradient_nonfinite"][:] = 3
        columns["loss"] = np.float64(NAN)


def test_non_finite_names_the_first_layer_forward_and_backward():
    finding = only_finding(find(8, bad_from_record_7), "non_finite")
    assert (finding.layer, finding.step, finding.severity) == ("hidden_2", 28, "error")
    assert finding.message.endswith("in the backward pass the first is `output`, between steps 25 and 28")


@pytest.mark.parametrize(
    ("bad", "named"), [([1], "; only on replica 1"), ([0, 2], "; only on replica 0, 2"), ([0, 1, 2, 3], "")]
)
def test_non_finite_names_the_replicas_that_alone_have_it(bad, named):
    def bad_replicas(t, columns):
        bad_from_record_7(t, columns)
        columns["replica_nonfinite"] = np.zeros([4, 8])
        if t >= 7:
            columns["replica_nonfinite"][bad, 2] = 5

    finding = only_finding(find(8, bad_replicas, replicas=4), "non_finite")
    assert finding.message.partition("; only")[1:] == named.partition("; only")[1:]
    assert finding.evidence.get("replica") == (bad[0] if named else None)


def test_non_finite_stays_the_only_finding():
    assert find(60, bad_from_record_7) == find(8, bad_from_record_7)


def test_a_gradient_that_is_not_finite_names_its_layer():
    def bad_gradient(t, columns):
        if t >= 5:
            columns["gradient_nonfinite"][[0, 1, 2, 4]] = [1, 2, 3, 9]

    finding = only_finding(find(8, bad_gradient), "non_finite")
    assert (finding.layer, finding.severity) == ("hidden_3", "error")
    assert "all outputs are finite, but the gradient is not from `hidden_3` backwards" in finding.message


@pytest.mark.parametrize(("layer", "of_loss"), [("output", True), ("hidden_3", False)])
def test_a_gradient_that_is_not_finite_behind_the_last_layer_is_the_losss_fault(layer, of_loss):
    def bad_gradient(t, columns):
        if t >= 5:
            columns["first_nonfinite_backward"] = np.float64(LAYERS.index(layer))
            columns["gradient_nonfinite"][: 2 * LAYERS.index(layer) + 2] = 1

    finding = only_finding(find(8, bad_gradient), "non_finite")
    assert (finding.layer, finding.advice.startswith("Look into the loss function")) == (layer, of_loss)


def overflow_at_record_5(t, columns):
    """Let one step have a gradient that is not finite, and change no weights."""
    if t == 5:
        columns["first_nonfinite_backward"] = np.float64(3)
        columns["gradient_nonfinite"][:] = 1
        columns["update_ratio"][:] = 0


def test_a_step_that_a_loss_scale_skipped_is_info():
    finding = only_finding(find(8, overflow_at_record_5, severity="info"), "non_finite")
    assert (finding.layer, finding.step, finding.severity) == ("output", 20, "info")


def test_a_step_that_a_loss_scale_skipped_is_info_though_steps_between_the_records_changed_weights():
    def moving(t, columns):
        columns["weight_norm"] = columns["weight_norm"] * (1 + 0.01 * t)

    finding = only_finding(find(8, both(overflow_at_record_5, moving), severity="info"), "non_finite")
    assert (finding.step, finding.severity) == (20, "info")


def test_an_update_that_made_weights_nan_is_no_skipped_step():
    """Variables without layers have no output that would show it; their ratio is not known then."""
    ruined = both(overflow_at_record_5, put("update_ratio", None, NAN, since=5))
    assert only_finding(find(8, ruined, severity="info"), "non_finite").severity == "error"


def test_a_skipped_step_after_which_the_weights_are_not_finite_is_an_error():
    ruined = both(put("first_nonfinite_forward", None, 0, since=6), put("loss", None, NAN, since=6))
    finding = only_finding(find(8, both(overflow_at_record_5, ruined), severity="info"), "non_finite")
    assert (finding.layer, finding.step, finding.severity) == ("output", 20, "error")


def test_a_loss_that_is_recorded_now_and_then_is_finite():
    def sometimes(t, columns):
        if t % 2:
            columns["loss"] = np.float64(NAN)

    assert find(40, sometimes, severity="info") == []


def test_a_loss_that_is_never_recorded_is_finite():
    assert find(40, put("loss", None, NAN), severity="info") == []


def test_an_infinite_loss_is_reported_without_a_layer():
    assert only_finding(find(40, put("loss", None, np.inf, since=20)), "non_finite").layer is None


CUT_OFF = both(put("gradient_norm", LAYER["hidden_1"], NAN), put("gradient_nonfinite", LAYER["hidden_1"], NAN))


def test_a_variable_without_a_path_to_the_loss_is_an_error():
    unmoved = both(put("update_ratio", LAYER["hidden_1"], 0), put("weight_norm", LAYER["hidden_1"], 1))
    finding = only_finding(find(10, both(CUT_OFF, unmoved)), "no_gradient")
    assert (finding.layer, finding.severity) == ("hidden_1", "error")


def test_a_variable_that_the_program_sets_itself_needs_no_gradient():
    assert find(60, CUT_OFF) == []  # it moves, as a moving average of other weights does


def test_a_gradient_of_exactly_0_is_a_warning():
    finding = only_finding(find(10, put("gradient_norm", LAYER["hidden_1"], 0)), "no_gradient")
    assert (finding.layer, finding.severity) == ("hidden_1", "warning")


NO_GRADIENT = put("gradient_norm", ALL, 0)


def test_a_gradient_of_0_in_every_layer_is_an_error_at_once():
    finding = only_finding(find(1, NO_GRADIENT), "no_gradient")
    assert (finding.layer, finding.severity, finding.step) == ("output", "error", 0)
    assert finding.message.startswith("the gradient is exactly 0 in every layer, since the softmax layer `output`")


@pytest.mark.parametrize(("called", "falls", "rules"), [(1, False, ["no_gradient"]), (0, False, []), (1, True, [])])
def test_an_optimizer_that_gets_no_gradient_is_reported(called, falls, rules):
    def no_variables(t, columns):
        if not falls:
            columns["loss"] = np.float64(2.3)
        columns["optimizer_called"] = np.float64(called)
        columns["weight_norm"][:] = [8, 0] * 4
        columns["update_ratio"][:] = [0, NAN] * 4
        for name in ("gradient_norm", "applied_norm", "gradient_nonfinite"):
            columns[name][:] = NAN

    assert [f.rule for f in find(80, no_variables) if f.severity == "error"] == rules


def test_a_layer_with_a_penalty_alone_is_named():
    finding = only_finding(find(60, put("delta_norm", [0, 1], NAN)), "no_gradient")
    assert (finding.layer, finding.severity) == ("hidden_2", "warning")
    assert "arrives at `hidden_3` and not at `hidden_2` before it" in finding.message


def test_weights_that_are_all_0_are_named_where_nothing_has_a_gradient():
    finding = only_finding(find(1, both(NO_GRADIENT, put("weight_norm", ALL, 0))), "no_gradient")
    assert finding.message == "the gradient is exactly 0 in every layer, since all weights are 0: nothing is trained"


def test_a_loss_that_does_not_change_with_the_output_is_named():
    finding = only_finding(find(1, both(NO_GRADIENT, put("delta_norm", ALL, 0))), "no_gradient")
    assert "since the loss does not change with the output of `output`" in finding.message


def test_a_loss_of_0_is_not_a_missing_gradient():
    assert {f.rule for f in find(10, both(NO_GRADIENT, put("loss", None, 0)))} == {"impossible_loss"}


def test_one_batch_without_a_loss_is_not_a_missing_gradient():
    assert find(1, both(NO_GRADIENT, put("loss", None, 0))) == []


def test_a_gradient_that_is_gone_after_learning_is_not_reported():
    assert "no_gradient" not in {f.rule for f in find(60, put("gradient_norm", ALL, 0, since=40))}


def test_a_gradient_that_is_gone_for_good_without_learning_is_an_error():
    findings = find(30, both(put("gradient_norm", ALL, 0, since=5), FLAT))
    assert ("no_gradient", "error", 20) in {(f.rule, f.severity, f.step) for f in findings}


def test_a_step_without_a_gradient_amid_others_is_not_reported():
    def now_and_then(t, columns):
        if t % 4 == 3:
            columns["gradient_norm"][:] = 0

    assert find(30, now_and_then) == []


def test_a_first_step_that_a_loss_scale_skipped_is_not_a_missing_gradient():
    def skipped(t, columns):
        if t == 0:
            columns["gradient_norm"][:] = 0
            columns["gradient_nonfinite"][:] = 1
            columns["update_ratio"][:] = 0

    assert find(10, skipped) == []


WITH_LOSS = LAYOUT._replace(objectives=(OBJECTIVE,))


def test_a_loss_that_is_nan_from_the_first_record_on_is_an_error():
    finding = only_finding(find(10, put("loss", None, NAN), WITH_LOSS), "non_finite")
    assert (finding.layer, finding.step, finding.severity) == (None, 0, "error")


def ruined_by_an_update(growth):
    """Return a change after which the weights are not finite; hidden_3's gradient grows before."""

    def change(t, columns):
        columns["gradient_norm"][4] *= growth**t
        if t >= 7:
            bad_from_record_7(t, columns)
            columns["first_nonfinite_forward"] = np.float64(0)
            columns["weight_norm"][:] = 0

    return change


def test_weights_that_an_update_made_nan_name_what_grew_before():
    finding = find(8, ruined_by_an_update(3))[0]
    assert (finding.rule, finding.layer, finding.step) == ("non_finite", "hidden_3", 28)
    assert "an update made them so, between steps 25 and 28; before it the gradient of `hidden_3`" in finding.message
    assert finding.advice.startswith("Lower the learning rate")


def test_a_gradient_that_grew_before_it_overflowed_is_named_beside_the_layer():
    def overflows(t, columns):
        columns["gradient_norm"][4] *= 3.0**t
        if t >= 7:
            bad_from_record_7(t, columns)

    finding = find(8, overflows)[0]
    assert finding.layer == "hidden_2"
    assert "before it the gradient of `hidden_3` grew from" in finding.message
    assert finding.advice.startswith("Lower the learning rate")


def test_weights_that_an_update_made_nan_name_no_layer_where_nothing_grew():
    finding = find(8, ruined_by_an_update(1))[0]
    assert (finding.rule, finding.layer) == ("non_finite", None)


def test_variables_of_no_measured_layer_that_follow_each_other_are_one_finding():
    def lost(t, columns):
        columns["gradient_norm"][[3, 4, 5, 7]] = NAN
        columns["update_ratio"][[3, 4, 5, 7]] = 0

    details = {**DETAILS, "variables": [[0, 1], [], [], [2]]}
    found = find(20, lost, run_layout(VARIABLES, LAYERS, details))
    assert [(f.layer, f.evidence["variables"]) for f in found] == [("hidden_2/bias", 3), ("output/bias", 1)]
    assert found[0].message.endswith(
        "; the same holds in 3 variables that follow each other, from `hidden_2/bias` to `hidden_3/bias`"
    )
