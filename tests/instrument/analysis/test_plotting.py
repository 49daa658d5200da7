"""`run.plot` draws every column with the tab's own figures, and the report is one page that needs nothing else."""

import base64
import re

import numpy as np
import pytest
from plotly import graph_objects

import tapescope
from tapescope.analysis import report
from tests.instrument.test_recorder import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("runs") / "<b>first"
    train(logdir)
    return tapescope.Run(logdir)


def numbers(typed):
    return np.frombuffer(base64.b64decode(typed["bdata"]), typed["dtype"])


def test_every_column_is_drawn(run):
    for column in run.columns:
        row = None
        if column == "unit_state" or column.endswith("_histogram"):
            row = run.layers[0] if column != "gradient_histogram" else run.variables[0]
        figure = run.plot(column, row)
        assert isinstance(figure, graph_objects.Figure)
        assert len(figure.data) >= 1


def test_one_row_is_drawn_as_a_line(run):
    figure = run.plot("gradient_norm", run.variables[1])
    np.testing.assert_allclose(numbers(figure.data[0].y), run["gradient_norm"][:, 1])


def test_the_budget_ends_at_the_ratio_of_the_delta_norms(run):
    ends = numbers(run.plot("flow_budget").data[-1].y)
    expected = np.log10(run["delta_norm"][-10:, 0] / run["delta_norm"][-10:, -1]).mean()
    np.testing.assert_allclose(ends[-1], expected, atol=1e-4)


def test_errors(run):
    with pytest.raises(ValueError, match="`row` is needed to draw 'unit_state'"):
        run.plot("unit_state")
    with pytest.raises(ValueError, match=r"`row` \('x'\) is not in the run; there are: layer0, layer1"):
        run.plot("saturated", "x")
    with pytest.raises(KeyError, match="no column 'x'"):
        run.plot("x")


def test_a_notebook_shows_a_run_in_words(run):
    text = run._repr_html_()
    assert "2 layers, 4 variables" in text
    assert "&lt;b&gt;" in text


def test_the_report_is_one_page(run, tmp_path):
    train(tmp_path / "second", steps=6)
    report.write([run, tapescope.Run(tmp_path / "second")], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in outside
    assert "<b>first" not in outside
    assert outside.count("Flow budget") == 2
    assert "Gradient norm" in outside
    assert page.count("Plotly.newPlot(document") == 2 + 2 * 7
