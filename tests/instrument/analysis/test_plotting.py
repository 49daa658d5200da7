"""`Run.plot` draws every column with the tab's own figures."""

import numpy as np
import pytest
from plotly import graph_objects

from tensorboard_plugin_tapescope.figures.encoding import decode


def needed_row(run, column):
    """Return the row that a column needs to be drawn, or None."""
    if column == "gradient_histogram":
        return run.variables[0]
    if column in ("activation_histogram", "unit_state"):
        return run.layers[0]
    return None


def test_every_column_is_drawn(recorded):
    for column in recorded.columns:
        figure = recorded.plot(column, needed_row(recorded, column))
        assert isinstance(figure, graph_objects.Figure)
        assert len(figure.data) >= 1


def test_one_row_is_drawn_as_a_line(recorded):
    figure = recorded.plot("gradient_norm", recorded.variables[1])
    np.testing.assert_allclose(decode(figure.data[0].y), recorded["gradient_norm"][:, 1])


def test_the_budget_ends_at_the_ratio_of_the_delta_norms(recorded):
    ends = decode(recorded.plot("flow_budget").data[-1].y)
    expected = np.log10(recorded["delta_norm"][-10:, 0] / recorded["delta_norm"][-10:, -1]).mean()
    np.testing.assert_allclose(ends[-1], expected, atol=1e-4)


@pytest.fixture
def damaged(copy):
    """Return a run whose file says that two layers feed each other."""
    layers = copy._series["layers"]
    details = {**layers.family.details, "sources": [[], [0], [3], [2]]}
    copy._series["layers"] = layers._replace(family=layers.family._replace(details=details))
    return copy


def test_the_budget_of_layers_that_feed_each_other_is_drawn(damaged):
    assert list(damaged.plot("flow_budget").data[-1].x) == ["layer3"]


def test_a_column_that_needs_a_row_is_refused_without_one(recorded):
    with pytest.raises(ValueError, match="`row` must be the name of a layer or variable to draw 'unit_state'"):
        recorded.plot("unit_state")


def test_a_row_that_the_run_does_not_have_is_refused(recorded):
    with pytest.raises(ValueError, match=r"`row` must be one of layer0, layer1, .*; got 'x'"):
        recorded.plot("saturated", "x")


def test_a_column_that_the_run_does_not_have_is_refused(recorded):
    with pytest.raises(KeyError, match="no column 'x'"):
        recorded.plot("x")
