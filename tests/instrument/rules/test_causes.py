"""The order of findings: a cause before what follows from it."""

import graphlib

from tapescope.rules import causes
from tapescope.rules.finding import Finding


def found(rule, severity="warning", layer=None, step=0):
    return Finding(rule, 1, severity, layer, step, "a message", {}, "an advice")


def order(*findings):
    return [(f.rule, cause and cause.rule) for f, cause in causes.by_cause(findings)]


def test_no_rule_follows_from_itself():
    assert set(graphlib.TopologicalSorter(causes.CAUSES).static_order()) >= set(causes.CAUSES)


def test_a_cause_is_before_an_error_that_follows_from_it():
    assert order(found("vanishing", "error"), found("unscaled_data", layer="input")) == [
        ("unscaled_data", None),
        ("vanishing", "unscaled_data"),
    ]


def test_a_chain_of_causes_is_in_order():
    chain = [found("loss_not_falling", step=90), found("update_too_large", "error"), found("poor_initialization")]
    assert order(*chain) == [
        ("poor_initialization", None),
        ("update_too_large", "poor_initialization"),
        ("loss_not_falling", "update_too_large"),
    ]


def test_the_likeliest_cause_explains():
    findings = [found("output_activation", "error"), found("unscaled_data", layer="input"), found("no_gradient")]
    assert dict(order(*findings))["no_gradient"] == "output_activation"
    findings[2] = found("saturation")
    assert dict(order(*findings))["saturation"] == "unscaled_data"


def test_targets_do_not_explain_the_outputs_of_the_first_layer():
    findings = [found("unscaled_data", layer="target"), found("poor_initialization")]
    assert dict(order(*findings))["poor_initialization"] is None


def test_an_info_explains_nothing():
    assert dict(order(found("unscaled_data", "info"), found("vanishing")))["vanishing"] is None


def test_what_came_later_explains_nothing():
    assert dict(order(found("update_too_large", step=5), found("saturation", step=4)))["saturation"] is None


def test_errors_without_a_cause_are_first():
    findings = [found("slow_learning", "info"), found("saturation"), found("non_finite", "error", step=70)]
    assert [rule for rule, _ in order(*findings)] == ["non_finite", "saturation", "slow_learning"]


def test_decayed_weights_are_before_a_vanishing_gradient_that_came_first():
    assert order(found("vanishing", step=5), found("decayed_weights", step=9))[0] == ("decayed_weights", None)


def test_every_finding_is_listed_once():
    rules = list(causes.CAUSES)
    assert sorted(rule for rule, _ in order(*map(found, rules))) == sorted(rules)
