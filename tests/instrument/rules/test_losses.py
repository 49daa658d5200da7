"""Rules about the loss: records that each must report, and similar ones that it must not."""

import numpy as np
import pytest

from tapescope.rules.engine import RuleEngine
from tapescope.rules.record_view import Record, run_layout
from tests.instrument.rules.records import (
    DETAILS,
    KERNELS,
    LAYERS,
    LAYOUT,
    NAN,
    OBJECTIVE,
    VALUES,
    VARIABLES,
    both,
    find,
    healthy,
    loss_noise,
    noisy_flat,
    only_finding,
    put,
    targets,
)


def test_a_validation_loss_that_never_falls_is_reported():
    assert only_finding(find(60, validated([2.5, 2.4, 2.45, 2.4])), "validation_differs").layer is None


def test_a_validation_loss_that_never_fell_has_not_risen_by_overfitting():
    only_finding(find(60, validated([2.5, 2.4, 3.5, 4.0, 4.5, 5.0])), "validation_differs")


@pytest.mark.parametrize(
    ("losses", "rule"), [([2.0, 1.9, 1.85, 1.8], "validation_differs"), ([1.9, 1.8, 2.3, 2.4, 2.5], "overfitting")]
)
def test_a_validation_loss_that_hardly_fell_is_reported_once_the_training_loss_is_gone(losses, rule):
    only_finding(find(100, validated(losses)), rule)


def test_a_validation_loss_that_hardly_fell_may_fall_with_the_training_loss():
    assert find(60, validated([2.0, 1.9, 1.85, 1.8])) == []


def test_a_validation_loss_that_falls_with_the_other_is_not_reported():
    assert find(60, validated([2.0, 1.6, 1.2, 0.9, 0.6])) == []


def test_a_network_without_activations_is_named_where_the_loss_does_not_fall():
    layout = LAYOUT._replace(activations=("linear",) * 4)
    assert "no more than one linear layer" in only_finding(find(60, noisy_flat, layout), "loss_not_falling").advice
    assert "linear layer" not in only_finding(find(60, noisy_flat), "loss_not_falling").advice


def test_a_loss_that_does_not_fall_though_weights_move_far_is_reported():
    assert only_finding(find(60, noisy_flat), "loss_not_falling").layer is None


def test_layers_without_trained_weights_need_not_move():
    of_the_last = LAYOUT._replace(owned=(np.array([3, 3]), np.array([6, 7])))
    only_finding(find(60, noisy_flat, of_the_last), "loss_not_falling")


def test_a_loss_at_its_noise_floor_is_not_reported():
    assert find(60, both(noisy_flat, targets(2.0)), VALUES) == []


def test_a_loss_that_stands_still_at_that_of_a_constant_answer_is_reported():
    finding = only_finding(find(60, both(noisy_flat, targets(1.515)), VALUES), "loss_not_falling")
    assert "the same for every input" in finding.message
    assert "[N, N]" in finding.advice


def test_a_loss_little_but_surely_below_that_of_a_constant_answer_is_info():
    little = both(noisy_flat, targets(1.54))
    assert find(60, little, VALUES) == []
    assert "surely below" in only_finding(find(60, little, VALUES, severity="info"), "loss_not_falling").message


def test_a_loss_of_a_few_large_errors_is_not_compared_with_that_of_a_constant_answer():
    def rare(t, columns):
        columns["loss"] = np.float64(23.0 if t % 10 == 9 else 0.1 if t > 5 else 1.0)
        columns["update_ratio"][::2] = 5e-3

    assert find(60, both(rare, targets(1.515)), VALUES) == []


def test_a_loss_that_falls_to_that_of_a_constant_answer_is_reported():
    first = both(noisy_flat, lambda t, columns: columns.update(loss=columns["loss"] * (8 if t < 6 else 1)))
    assert find(60, first) == []
    only_finding(find(60, both(first, targets(1.515)), VALUES), "loss_not_falling")


def called_again(*sources):
    """Return a layout in which the last layer is hidden_2, called again on what these layers give."""
    variables = [[0, 1], [2, 3], [4, 5], [2, 3]]
    return run_layout(VARIABLES, LAYERS, {**DETAILS, "variables": variables, "sources": [[], [], [0, 1], [*sources]]})


def test_the_losses_of_a_network_and_of_one_that_judges_it_may_stand_still():
    assert find(60, noisy_flat, called_again(0)) == []


def test_the_losses_of_networks_that_are_not_connected_may_stand_still():
    assert find(60, noisy_flat, run_layout(VARIABLES, LAYERS, {**DETAILS, "sources": [[], [0], [], [2]]})) == []


def test_the_loss_of_a_cell_that_is_unrolled_may_not_stand_still():
    only_finding(find(60, noisy_flat, called_again(1)), "loss_not_falling")


@pytest.mark.parametrize(("std", "found"), [(1.53, []), (1.4, ["loss_not_falling"])])
def test_a_few_losses_that_seem_to_be_below_that_of_a_constant_answer_are_not_judged(std, found):
    rules = RuleEngine(VALUES)
    for t, step in enumerate([*range(40), *range(100, 1000, 100)]):
        columns = healthy(t)
        both(noisy_flat, targets(std), lambda t, columns: columns.update(loss=2.3 + 4 * loss_noise(t)))(t, columns)
        rules.add(Record(step, columns))
    assert [f.rule for f in rules.findings if f.severity == "warning"] == found


@pytest.mark.parametrize(("loss", "severity"), [(None, "info"), ("custom", "info"), ("poisson", "warning")])
def test_a_loss_of_ones_own_that_has_both_signs_may_stand_still(loss, severity):
    def signed(t, columns):
        noisy_flat(t, columns)
        columns["loss"] = np.float64(0.1 if t in (3, 17) else -columns["loss"])

    layout = LAYOUT._replace(objectives=(OBJECTIVE._replace(loss=loss),) if loss else ())
    findings = {f.rule: f.severity for f in find(60, signed, layout, severity="info")}
    assert findings["loss_not_falling"] == severity


@pytest.mark.parametrize(("delta", "severity"), [(NAN, "info"), (0.03, "warning")])
def test_a_network_that_makes_its_own_targets_may_have_a_loss_that_stands_still(delta, severity):
    details = {**DETAILS, "variables": [[0, 1], [2, 3], [0, 1], [2, 3]], "sources": [[], [0], [], [2]]}
    targets_of_its_own = both(noisy_flat, put("delta_norm", 2, delta))
    found = find(60, targets_of_its_own, run_layout(VARIABLES[:4], LAYERS, details), severity="info")
    assert {f.rule: f.severity for f in found}["loss_not_falling"] == severity


@pytest.mark.parametrize("objectives", [(), (VALUES.objectives[0]._replace(loss="huber"),)])
@pytest.mark.parametrize(("growth", "severity"), [(0.1, "info"), (0.01, "warning")])
def test_a_loss_may_stand_still_while_the_targets_move(growth, severity, objectives):
    def growing(t, columns):
        both(noisy_flat, targets(1.0))(t, columns)
        columns["data_mean"] = np.array([growth * t])

    findings = {f.rule: f.severity for f in find(60, growing, VALUES._replace(objectives=objectives), severity="info")}
    assert findings["loss_not_falling"] == severity


def test_a_plateau_that_ended_is_lowered_to_an_info():
    ended = both(noisy_flat, put("loss", None, 0.5, since=60))
    finding = only_finding(find(100, ended, severity="info"), "loss_not_falling")
    assert (finding.severity, "since then" in finding.message) == ("info", True)


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


def validated(losses, every=5):
    """Validate before every fifth record; the loss of the training falls by 3 % a record."""

    def change(t, columns):
        columns["validation_loss"] = np.float64(NAN if t < every else losses[min(t // every, len(losses)) - 1])

    return change


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([1.0, 0.8, 0.9, 1.0, 1.1], 40),
        ([1.0, 0.8, 1.5, 0.9, 1.2], 40),  # the median of the last three
        ([0.5, 0.8, 0.9, 1.0], 20),
        ([-1.0, -2.0, -1.5, -1.4, -1.3], 40),  # such as a likelihood
    ],
)
def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_overfitting(losses, step):
    finding = only_finding(find(60, validated(losses)), "overfitting")
    assert (finding.layer, finding.step, finding.severity) == (None, step, "warning")


@pytest.mark.parametrize(
    "losses",
    [
        [1.0, 0.8, 0.7, 0.6, 0.5],
        [1.0, 0.8, 0.9, 1.0],  # two after the lowest
        [1.0, 0.8, 1.5, 0.9, 0.9],
        [1.0, 0.8, NAN, NAN, NAN],
        [0.0, 0.8, 0.9, 1.0, 1.1],
    ],
)
def test_a_validation_loss_that_may_fall_again_is_not_reported(losses):
    assert find(60, validated(losses)) == []


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting():
    def rising(t, columns):
        columns["loss"] = np.float64(2.3 * (0.97**t if t < 10 else 0.97 ** (20 - t)))

    found = find(60, both(validated([1.0, 0.8, 0.9, 1.0, 1.1]), rising))
    assert "overfitting" not in [f.rule for f in found]


def line(fall, ratio=1e-3):
    """Return a change to a loss that falls in a line, by a share of itself a record."""

    def change(t, columns):
        columns["loss"] = np.float64(2.3 * (1 - fall * t))
        columns["update_ratio"][::2] = ratio

    return change


def test_a_loss_that_falls_slowly_in_a_line_is_info():
    finding = only_finding(find(60, line(1e-3), severity="info"), "slow_learning")
    assert (finding.severity, finding.step) == ("info", 116)


def test_a_loss_that_falls_by_less_than_counts_is_a_warning():
    assert only_finding(find(60, line(1e-6)), "slow_learning").severity == "warning"


def with_cosine(cosine, records=60):
    """Return a change to a loss that falls in a line, with the cosine of consecutive gradients in its first records."""

    def change(t, columns):
        line(1e-3)(t, columns)
        columns["gradient_cosine_total"] = np.float64(NAN if t == 0 or t >= records else cosine)

    return change


def test_gradients_that_point_the_same_way_are_evidence_for_a_rate_that_is_too_low():
    finding = only_finding(find(60, with_cosine(0.9), severity="info"), "slow_learning")
    assert "consecutive gradients point the same way (cosine 0.90)" in finding.message
    assert finding.evidence["gradient_cosine"] == 0.9


def test_gradients_that_are_mostly_noise_are_no_evidence():
    finding = only_finding(find(60, with_cosine(0.4), severity="info"), "slow_learning")
    assert "gradients" not in finding.message


def test_gradients_that_turn_round_speak_against_a_higher_rate():
    assert find(60, with_cosine(-0.6), severity="info") == []
    assert find(60, with_cosine(-0.4), severity="info") != []


def test_too_few_cosines_are_no_evidence():
    finding = only_finding(find(60, with_cosine(0.9, records=5), severity="info"), "slow_learning")
    assert "gradient_cosine" not in finding.evidence


def test_a_loss_that_falls_quickly_is_not_slow():
    assert find(60, line(8e-3), severity="info") == []


def test_a_slow_loss_with_large_updates_is_not_slow_learning():
    assert "slow_learning" not in {f.rule for f in find(60, line(1e-3, ratio=1e-2), severity="info")}


def test_a_loss_that_levels_off_is_not_slow():
    def levels_off(t, columns):
        columns["loss"] = np.float64(2.0 + 0.3 * 0.8**t)

    assert find(60, levels_off, severity="info") == []


def test_updates_that_are_warmed_up_are_not_slow():
    def warming_up(t, columns):
        line(1e-4)(t, columns)
        columns["update_ratio"][:] = 1e-6 * t

    assert "slow_learning" not in {f.rule for f in find(45, warming_up, severity="info")}


def test_a_tiny_fall_is_not_falling_though_weights_move_far():
    findings = find(60, line(1e-6, ratio=5e-3))
    assert only_finding(findings, "loss_not_falling").evidence["trend"] > 4


def objective(loss):
    """Return the layout of a model that is trained with a loss of Keras."""
    return LAYOUT._replace(objectives=(OBJECTIVE._replace(loss=loss),))


def below_0(t, columns):
    """Let the loss fall without end."""
    columns["loss"] = np.float64(1.0 - t)


def test_a_negative_cross_entropy_is_an_error():
    finding = only_finding(find(10, below_0, objective("categorical_crossentropy")), "impossible_loss")
    assert (finding.severity, finding.step) == ("error", 8)


def test_a_negative_cross_entropy_has_not_learned():
    assert "falls_regardless" not in {
        f.rule for f in find(60, below_0, objective("categorical_crossentropy"), severity="info")
    }


def test_a_negative_loss_of_ones_own_is_not_judged():
    assert find(60, below_0, objective("custom")) == []


def test_a_negative_loss_that_is_not_known_is_not_judged():
    assert find(60, below_0) == []


def test_rounding_below_0_is_not_a_negative_loss():
    assert find(10, put("loss", None, -1e-6, since=8), objective("categorical_crossentropy")) == []


def test_a_loss_of_0_from_the_first_record_on_is_a_warning():
    finding = only_finding(find(10, put("loss", None, 0)), "impossible_loss")
    assert (finding.severity, finding.step) == ("warning", 0)


def test_a_cross_entropy_that_is_0_at_once_is_a_warning():
    findings = find(20, put("loss", None, 0, since=3), objective("categorical_crossentropy"))
    assert only_finding(findings, "impossible_loss").step == 12


def test_a_loss_of_0_after_training_is_info():
    findings = find(60, put("loss", None, 0, since=40), objective("categorical_crossentropy"), severity="info")
    assert only_finding(findings, "impossible_loss").severity == "info"


def test_a_hinge_that_is_0_soon_is_info():
    findings = find(20, put("loss", None, 0, since=3), objective("hinge"), severity="info")
    assert [f.severity for f in findings if f.rule == "impossible_loss"] == ["info"]


def test_a_loss_that_is_0_now_and_then_is_not_reported():
    def now_and_then(t, columns):
        if t % 3:
            columns["loss"] = np.float64(0)

    assert find(40, now_and_then, severity="info") == []


def test_a_loss_that_is_not_recorded_is_not_0():
    assert find(40, put("loss", None, NAN), severity="info") == []
