"""The report is one page that needs nothing else."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import tapescope
from tapescope import cli
from tapescope.analysis import report
from tests.instrument.analysis import runs
from tests.instrument.analysis.runs import record_run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the text of a page about two runs, the first of which has markup in its name."""
    directory = tmp_path_factory.mktemp("runs")
    first = record_run(directory / "<b>first")
    second = record_run(directory / "second", steps=6)
    tapescope.write_report([first, second], directory / "page.html")
    return (directory / "page.html").read_text()


@pytest.fixture(scope="module")
def markup(page):
    """Return the page without its scripts."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_loads_nothing(markup):
    assert "http" not in markup


def test_names_are_shown_as_text(markup):
    assert "<b>first" not in markup
    assert "&lt;b&gt;first" in markup


def test_every_run_has_its_figures(markup):
    assert markup.count("Flow budget") == 2
    assert markup.count("<h3>Gradient norm</h3>") == 2


def test_the_comparison_states_its_steps(markup):
    assert "<p class=secondary>At the 3 steps that all runs recorded.</p>" in markup


def test_every_figure_is_drawn(page, markup):
    assert page.count("Plotly.newPlot(document") == markup.count("<h3>") == 2 + 2 * 7


def test_gradients_without_a_finite_element_are_not_drawn_as_0(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "Y", np.full_like(runs.Y, np.nan))
    run = record_run(tmp_path / "nan", steps=4)
    tapescope.write_report([run], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h3>Gradient norm</h3>" not in page
    assert "<h3>Flow budget</h3>" not in page
    assert "<h3>Saturated</h3>" in page


def test_a_finding_is_a_sentence():
    finding = {"severity": "error", "message": "the loss is NaN", "step": 3, "advice": "Lower it."}
    items = report._render_findings(SimpleNamespace(findings=[finding]))
    assert "<li class=error>The loss is NaN. <span class=secondary>Step 3. Lower it.</span></li>" in items


def test_names_between_backticks_are_code():
    finding = {"severity": "info", "message": "`a<b` is slow", "step": 3, "advice": "Look at `c`."}
    items = report._render_findings(SimpleNamespace(findings=[finding]))
    assert "<code>a&lt;b</code> is slow. " in items
    assert "Look at <code>c</code>." in items


def test_notes_are_counted():
    found = [{"severity": severity} for severity in ("info", "error", "info")]
    assert report._count_findings(SimpleNamespace(findings=found)) == "1 error, 2 notes"


def test_grey_cells_are_explained(markup):
    assert "Grey cells are absent or not finite." in markup  # no window of examples has closed at the first records


def test_the_command_line_writes_the_page(recorded, tmp_path):
    assert cli.main(["report", recorded.logdir, f"--output={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").stat().st_size > 1e6
