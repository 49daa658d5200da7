"""The order of the layers that deserve a look."""

import numpy as np
import pytest

from tensorboard_plugin_tapescope.series.worst_layers import Reason, describe_norm, rank_layers

LAYERS = ("a", "b", "c")
NORMS = np.array([1e-9, 1.0, 0.1])


def test_findings_come_first_then_the_first_nan_then_small_gradients():
    findings = [("c", Reason("vanishing", "error")), ("a", Reason("slow_learning", "info"))]
    reasons = rank_layers(LAYERS, findings, [1.0, -1.0], NORMS)
    assert list(reasons.items()) == [
        ("c", Reason("vanishing", "error")),
        ("b", Reason("first_nonfinite", None)),
        ("a", Reason("smallest_gradient", None)),
    ]


def test_the_most_important_finding_of_a_layer_is_its_reason():
    findings = [("b", Reason("dead_units", "error")), ("b", Reason("vanishing", "warning"))]
    assert rank_layers(LAYERS, findings, [], NORMS)["b"].name == "dead_units"


@pytest.mark.parametrize("layer", [None, "w of no layer"])
def test_findings_of_no_layer_are_left_out(layer):
    assert list(rank_layers(LAYERS, [(layer, Reason("non_finite", "error"))], [], NORMS)) == ["a", "c", "b"]


@pytest.mark.parametrize("norm", [np.nan, -1.0])
def test_layers_without_a_known_gradient_are_left_out(norm):
    assert list(rank_layers(LAYERS, [], [np.nan], np.array([norm, 1.0, 0.1]))) == ["c", "b"]


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (np.inf, "gradient is not finite"),
        (0.0, "gradient is exactly 0"),
        (1e-3, "smallest gradient, 3.0 decades below the largest"),
        (0.97, "smallest gradient, 97 % of the largest"),
        (1.0, "smallest gradient, 100 % of the largest"),
    ],
)
def test_a_gradient_is_described(norm, words):
    assert describe_norm(norm, np.array([norm, 1.0])) == words
