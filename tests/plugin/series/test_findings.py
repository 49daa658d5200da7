"""Findings read from JSON: their order, their counts, and what cannot be read."""

import json

import pytest

from tensorboard_plugin_tapescope.series import findings

FIELDS = {"rule": "r", "severity": "warning", "layer": "a", "step": 3, "message": "m", "evidence": {}, "advice": "d"}


def parse(**changes):
    return findings.parse_findings([json.dumps({**FIELDS, **changes})])


def test_the_most_severe_and_then_the_earliest_is_first():
    texts = [json.dumps({**FIELDS, "severity": s, "step": n}) for s, n in (("info", 1), ("error", 9), ("error", 2))]
    readable, _ = findings.parse_findings(texts)
    assert [(f["severity"], f["step"]) for f in readable] == [("error", 2), ("error", 9), ("info", 1)]


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", "3", '{"rule": 1}', "[" * 99999, json.dumps({**FIELDS, "step": float("inf")})]
)
def test_a_text_that_is_not_a_finding_is_counted(text):
    assert findings.parse_findings([text, json.dumps(FIELDS)])[1] == 1


def test_an_unknown_severity_is_info():
    assert parse(severity="fatal")[0][0]["severity"] == "info"


def test_evidence_that_is_not_a_number_is_left_out():
    assert parse(evidence={"a": 1, "b": "2", "c": [3]})[0][0]["evidence"] == {"a": 1.0}


def test_evidence_that_is_not_finite_is_text():
    assert parse(evidence={"a": float("nan")})[0][0]["evidence"] == {"a": "nan"}


@pytest.mark.parametrize("evidence", [None, [], "x", 3])
def test_damaged_evidence_is_empty(evidence):
    assert parse(evidence=evidence)[0][0]["evidence"] == {}


def test_findings_are_counted_by_severity():
    assert findings.count_severities(["error", "info", "error"]) == {"error": 2, "warning": 0, "info": 1}


def test_an_unknown_severity_is_counted_as_info():
    assert findings.count_severities(["fatal"]) == {"error": 0, "warning": 0, "info": 1}


def test_severities_that_are_at_least_a_warning():
    assert findings.at_least("warning") == ("error", "warning")
