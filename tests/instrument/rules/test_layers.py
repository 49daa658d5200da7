"""Rules about one layer: records that each must report, and similar ones that it must not."""

import numpy as np
import pytest

from tests.instrument.rules.records import (
    FLAT,
    LAYOUT,
    NAN,
    VALUES,
    both,
    find,
    only_finding,
    put,
    targets,
)

NORMS = "`norm` and 2 more use moving averages that are never updated"


def test_dead_units_are_counted_since_the_step_at_which_they_were_too_many():
    finding = only_finding(find(20, put("units_dead", 0, 12.0, since=8)), "dead_units")
    assert (finding.layer, finding.step) == ("hidden_1", 32)
    assert finding.message == "12 of the 20 units of `hidden_1` never fired on 512 examples; at first it was 2"
    assert finding.evidence == {"dead": 12.0, "share": 0.6, "window_examples": 512.0}


def test_fewer_dead_units_than_half_are_not_reported():
    assert find(20, put("units_dead", 0, 9.0)) == []


def test_units_that_die_in_training_are_info():
    finding = only_finding(find(20, put("units_dead", 0, 9.0, since=8), severity="info"), "dying_units")
    assert finding.severity == "info"


def test_half_of_the_units_dead_from_the_start_is_not_a_warning_where_the_loss_falls():
    assert find(60, put("units_dead", 0, 12.0, since=4)) == []


def test_half_of_the_units_dead_from_the_start_is_a_warning_where_the_loss_does_not_fall():
    assert only_finding(find(60, both(put("units_dead", 0, 12.0), FLAT)), "dead_units").severity == "warning"


def test_all_units_dead_is_an_error():
    assert only_finding(find(20, put("units_dead", 0, 20.0)), "dead_units").severity == "error"


@pytest.mark.parametrize(("dead", "reported"), [(9.0, []), (12.0, ["hidden_1", "hidden_3"])])
def test_units_are_dead_if_they_are_in_every_call_of_their_layer(dead, reported):
    """Layer 2 is a further call of layer 0, as that of a discriminator on what the generator made."""
    layout = LAYOUT._replace(first_call=np.array([0, 1, 0, 3]))
    calls = both(put("units_dead", 0, dead, since=8), put("units_dead", 2, 13.0, since=8))
    assert [finding.layer for finding in find(20, calls, layout)] == reported


def test_all_units_dead_in_one_call_of_a_layer_is_an_error():
    layout = LAYOUT._replace(first_call=np.array([0, 1, 0, 3]))
    assert only_finding(find(20, put("units_dead", 2, 20.0), layout), "dead_units").layer == "hidden_3"


def test_a_small_window_of_examples_proves_no_dead_units():
    assert find(20, both(put("units_dead", 0, 20.0), put("window_examples", None, 100))) == []


RELU_OUTPUT = LAYOUT._replace(activations=("relu", "tanh", "elu", "relu"))


def test_one_of_five_dead_outputs_is_a_warning():
    assert only_finding(find(20, put("units_dead", 3, 1.0), RELU_OUTPUT), "dead_units").layer == "output"


def test_dead_outputs_of_a_network_that_learned_are_lowered_to_info():
    def learns(t, columns):
        columns["loss"] = np.float64(2.3 * 0.9**t)

    finding = find(60, both(learns, put("units_dead", 3, 1.0)), RELU_OUTPUT, severity="info")[0]
    assert (finding.rule, finding.severity) == ("dead_units", "info")


def test_classes_that_a_softmax_never_gives_are_info():
    finding = only_finding(find(20, put("units_dead", 3, 2.0), severity="info"), "dead_units")
    assert (finding.severity, finding.message) == (
        "info",
        "2 of the 5 units of `output` gave exactly 0 on 512 examples",
    )
    assert finding.advice.startswith("Check whether these classes occur")


def test_classes_that_a_softmax_never_gives_are_a_warning_where_the_loss_does_not_fall():
    assert only_finding(find(60, both(put("units_dead", 3, 2.0), FLAT)), "dead_units").severity == "warning"


def test_units_of_a_bounded_activation_are_stuck_and_not_silent():
    finding = only_finding(find(20, put("units_dead", 1, 18.0)), "dead_units")
    assert "are stuck at an end of tanh" in finding.message
    assert "ReLU" not in finding.advice


def test_four_fifths_dead_from_the_start_is_a_warning_though_the_loss_falls():
    assert only_finding(find(60, put("units_dead", 0, 16.0, since=4)), "dead_units").severity == "warning"


def test_layers_with_dead_units_that_follow_each_other_are_one_finding():
    finding = only_finding(find(20, put("units_dead", slice(0, 3), 19.0)), "dead_units")
    assert (finding.layer, finding.evidence["layers"]) == ("hidden_1", 3.0)
    assert finding.message.endswith("the same holds in 3 layers that follow each other, from `hidden_1` to `hidden_3`")


def test_layers_with_dead_units_around_a_sound_one_are_two_findings():
    dead = both(put("units_dead", 0, 19.0), put("units_dead", 2, 19.0))
    assert [finding.layer for finding in find(20, dead)] == ["hidden_1", "hidden_3"]


def test_a_layer_that_joins_a_run_of_layers_is_no_new_finding():
    dead = both(put("units_dead", 1, 19.0), put("units_dead", slice(0, 3), 19.0, since=12))
    assert only_finding(find(40, dead), "dead_units").layer == "hidden_2"


def test_the_first_of_the_layers_without_a_living_unit_is_named():
    dead = both(put("units_dead", 0, 19.0), put("units_dead", slice(1, 3), 20.0))
    finding = only_finding(find(20, dead), "dead_units")
    assert (finding.layer, finding.severity) == ("hidden_2", "error")


def constant(low, high):
    """Return a change that sets the smallest and the largest output of the last layer."""

    def change(t, columns):
        columns["activation_min"] = np.array([-1, -1, -1, low])
        columns["activation_max"] = np.array([1, 1, 1, high])
        columns["examples_seen"] = np.float64(32 * (4 * t + 1))

    return change


def test_an_output_that_is_the_same_for_all_examples_is_a_warning():
    finding = only_finding(find(10, constant(40.0, 40.0)), "constant_output")
    assert (finding.layer, finding.step) == ("output", 0)
    assert finding.message == "the softmax layer `output` gives 40 for every example"


def test_an_output_that_varies_a_little_is_not_constant():
    assert find(10, constant(40.0, 40.001)) == []


def test_an_output_that_is_constant_at_first_is_not_reported():
    starts = constant(0.2, 0.2)
    assert find(10, lambda t, columns: (starts if t < 3 else constant(0.1, 0.3))(t, columns)) == []


def test_the_output_of_one_example_is_not_constant():
    def one_example(t, columns):
        constant(t / 10, t / 10)(t, columns)
        columns["examples_seen"] = np.float64(4 * t + 1)

    assert find(10, one_example) == []


def test_a_sigmoid_that_is_always_1_is_constant_and_not_dead():
    always = both(constant(1.0, 1.0), put("units_dead", 3, 5.0))
    finding = only_finding(find(20, always, SIGMOID_OUTPUT), "constant_output")
    assert finding.advice.startswith("Check that the targets lie in its range")


def test_a_dead_output_without_any_gradient_is_one_finding():
    dead = both(put("units_dead", 3, 5.0), put("gradient_norm", slice(0, 8), 0))
    only_finding(find(20, dead, RELU_OUTPUT), "no_gradient")


NOTHING_ARRIVES = put("delta_norm", 0, 0.0)
"""What weights of 0 do to the layers before them."""


def narrow(units, source):
    """Return the layout with other numbers of units in hidden_2 and in the layer that feeds it."""
    return LAYOUT._replace(units=np.array([source, units, 20, 5]))


def test_the_weights_of_a_narrow_layer_may_be_small_by_chance():
    assert find(1, put("flow_weight", 1, -1.8), narrow(units=1, source=2)) == []


def test_the_weights_of_a_wide_layer_are_not_small_by_chance():
    assert only_finding(find(1, put("flow_weight", 1, -1.8)), "poor_initialization").layer == "hidden_2"


def test_weights_of_0_in_a_narrow_layer_are_reported():
    only_finding(find(1, both(put("flow_weight", 1, -np.inf), NOTHING_ARRIVES), narrow(1, 2)), "poor_initialization")


def test_the_first_outputs_of_a_narrow_layer_may_be_small_by_chance():
    assert find(1, put("activation_std", 0, 1e-3), narrow(units=20, source=2)) == []


def test_of_dead_layers_the_first_is_named():
    dead = both(
        put("units_dead", slice(1, 3), 20.0), put("activation_zero", slice(1, 3), 1.0), put("flow_gate", 2, -np.inf)
    )
    findings = {(finding.rule, finding.layer) for finding in find(20, dead)}
    assert findings == {("vanishing", "hidden_2"), ("dead_units", "hidden_2")}


def test_a_bounded_activation_that_is_saturated_from_the_start_is_a_warning():
    assert only_finding(find(20, put("saturated", 1, 0.7)), "saturation").layer == "hidden_2"


def test_saturation_that_comes_with_learning_is_not_a_warning():
    assert find(20, put("saturated", 1, 0.7, since=1)) == []


def test_nearly_complete_saturation_is_a_warning():
    assert only_finding(find(20, put("saturated", 1, 0.95, since=1)), "saturation").layer == "hidden_2"


def test_a_one_sided_activation_may_be_saturated_on_most_of_its_inputs():
    assert find(20, put("saturated", 2, 0.7)) == []


def test_a_one_sided_activation_that_is_nearly_all_saturated_is_a_warning():
    assert only_finding(find(20, put("saturated", 2, 0.95)), "saturation").layer == "hidden_3"


def test_relu_is_never_saturated():
    assert find(20, put("saturated", 0, 1.0)) == []


SIGMOID_OUTPUT = LAYOUT._replace(activations=("relu", "tanh", "elu", "sigmoid"))
CONFIDENT = both(put("saturated", 3, 0.99), put("flow_gate", 3, -2.0))


def test_outputs_may_saturate_where_the_loss_falls():
    assert find(40, CONFIDENT, SIGMOID_OUTPUT) == []


def test_saturated_outputs_are_reported_where_the_loss_does_not_fall():
    assert "saturation" in {finding.rule for finding in find(40, both(CONFIDENT, FLAT), SIGMOID_OUTPUT)}


def test_first_weights_that_are_too_large_are_reported():
    assert only_finding(find(1, put("flow_weight", 2, 1.3)), "poor_initialization").layer == "hidden_3"


def test_first_weights_of_0_that_the_gradient_gets_around_are_not_reported():
    assert find(1, put("flow_weight", 1, -np.inf)) == []


def test_first_weights_of_0_are_reported():
    finding = only_finding(find(1, both(put("flow_weight", 1, -np.inf), NOTHING_ARRIVES)), "poor_initialization")
    assert finding.layer == "hidden_2"
    assert finding.message == "the first weights of `hidden_2` make the gradient that passes them 0"


def test_first_weights_of_an_output_may_be_0():
    assert find(1, put("flow_weight", 3, -np.inf)) == []


def test_first_weights_within_one_decade_are_not_reported():
    assert find(1, put("flow_weight", 1, 0.9)) == []


def test_a_normalization_compensates_for_the_first_weights_before_it():
    assert find(1, both(put("flow_weight", 2, 1.3), put("flow_between", 3, -1.3))) == []


def test_later_weights_are_not_an_initialization():
    assert find(30, put("flow_weight", 2, 1.3, since=1)) == []


def test_first_weights_of_all_layers_are_judged_as_one():
    finding = only_finding(find(1, put("flow_weight", slice(1, 4), -0.8)), "poor_initialization")
    assert (finding.layer, finding.evidence["decades_weights"]) == ("hidden_2", pytest.approx(-2.4))


def test_layers_that_narrow_change_the_gradient_by_design():
    narrowing = LAYOUT._replace(expected_weight_gain=np.array([0, -0.8, -0.8, -0.8]))
    assert find(1, put("flow_weight", slice(1, 4), -0.8), narrowing) == []


@pytest.mark.parametrize(("other_std", "reported"), [(1.0, []), (1e-3, ["dense"])])
def test_a_call_of_zeros_is_not_reported_beside_a_usual_one_of_the_same_layer(other_std, reported):
    """Layer 1 is a further call of layer 0: both read the data."""
    layout = LAYOUT._replace(
        groups=("dense", "dense#2", *LAYOUT.groups[2:]), is_input=np.array([True, True, False, False])
    )
    findings = find(1, both(put("activation_std", 0, other_std), put("activation_std", 1, 0.0)), layout)
    assert [finding.layer for finding in findings] == reported


@pytest.mark.parametrize("std", [150.0, 1e-3])
def test_outputs_of_the_first_layer_on_an_unusual_scale_are_reported(std):
    assert only_finding(find(1, put("activation_std", 0, std)), "poor_initialization").layer == "hidden_1"


def test_a_frozen_first_layer_may_be_made_for_data_of_another_scale():
    assert find(1, both(put("activation_std", 0, 150.0), put("delta_norm", 0, NAN))) == []


def test_a_normalization_compensates_for_an_unusual_scale():
    assert find(1, both(put("activation_std", 0, 1e-3), put("flow_between", 1, 3.0))) == []


def test_a_later_layer_may_have_an_unusual_scale():
    assert find(1, put("activation_std", 1, 1e-3)) == []


EQUAL = put("gradient_norm", 3, 0.01 * 20**0.5), put("gradient_max", 3, 0.01)
"""All 20 elements of a bias's gradient have the same size."""


def test_units_with_the_same_first_weights_are_reported():
    finding = only_finding(find(1, both(*EQUAL)), "poor_initialization")
    assert (finding.layer, finding.evidence) == ("hidden_2", {"units": 20.0})


def test_units_whose_gradients_differ_a_little_are_not_equal():
    assert find(1, both(*EQUAL, put("gradient_max", 3, 0.0101))) == []


def test_units_of_a_linear_layer_may_have_equal_gradients():
    assert find(1, both(*EQUAL), LAYOUT._replace(activations=("relu", "linear", "elu", "softmax"))) == []


def test_a_layer_whose_weights_are_all_0_is_named_by_that():
    empty = both(put("activation_std", 0, 0.0), put("weight_norm", 0, 0.0))
    assert "are 0" in only_finding(find(1, empty), "poor_initialization").message


def test_a_steep_activation_may_have_small_weights():
    assert find(1, both(put("flow_weight", 1, -1.3), put("flow_gate", 1, 1.3))) == []


@pytest.mark.parametrize(("std", "severities"), [(4.0, []), (1.0, ["warning"])])
def test_half_a_layer_may_die_if_the_loss_is_below_that_of_a_constant_answer(std, severities):
    dying = both(targets(std), put("units_dead", 0, 12.0, since=20), put("loss", None, 1.3, since=20))
    assert [f.severity for f in find(60, dying, VALUES)] == severities


@pytest.mark.parametrize(
    ("layers", "effects"),
    [
        ([("drop", "Dropout")], "`drop` changes nothing"),
        ([("norm", "BatchNormalization"), ("norm_1", "BatchNormalization"), ("norm_2", "BatchNormalization")], NORMS),
    ],
)
def test_layers_that_run_as_in_inference_are_named(layers, effects):
    finding = only_finding(find(60, layout=LAYOUT._replace(inference_layers=tuple(layers))), "inference_mode")
    assert finding.message.endswith(f"no call says `training=True`: {effects}")
    assert (finding.layer, finding.step) == (layers[0][0], 0)


HALF_OF_FEW = ("drop", 0.5, 20)


@pytest.mark.parametrize("dropout", [HALF_OF_FEW, ("drop", 0.8, 1024), ("drop", 0.2, 5)])
@pytest.mark.parametrize(("change", "severity"), [(FLAT, "warning"), (None, "info")])
def test_strong_dropout_is_a_warning_where_the_loss_stands(dropout, change, severity):
    found = find(60, change, LAYOUT._replace(dropouts=(dropout,)), severity="info")
    finding = only_finding([f for f in found if f.rule == "strong_dropout"], "strong_dropout")
    assert (finding.layer, finding.severity) == ("drop", severity)


def test_strong_dropout_says_what_it_leaves():
    finding = only_finding(find(60, FLAT, LAYOUT._replace(dropouts=(HALF_OF_FEW,))), "strong_dropout")
    assert finding.message.startswith("`drop` drops 50 % of 20 units, which changes their mean by 22 % from example")
    assert finding.message.endswith(", and the loss does not fall any more")


@pytest.mark.parametrize("dropout", [("drop", 0.5, 21), ("drop", 0.79, 1024), ("drop", 0.2, 6), ("drop", 0.1, 4)])
def test_usual_dropout_is_not_reported(dropout):
    found = find(60, FLAT, LAYOUT._replace(dropouts=(dropout,)), severity="info")
    assert "strong_dropout" not in [f.rule for f in found]
