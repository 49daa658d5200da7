"""The report: one HTML page about runs, readable without a server or a network.

The figures are those of the tab. The script of plotly, from its Python package, is inside the page.
"""

import html
import json
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from plotly import offline

from tapescope.analysis import plotting
from tapescope.storage.printable import describe_error
from tapescope.storage.run import Run, check_list
from tapescope.storage.text_file import write_whole
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.series import flow_path
from tensorboard_plugin_tapescope.series.findings import at_least, count_severities

_FLOW_COLUMNS = ("gradient_norm", "delta_norm", "update_ratio", "saturated", "units_dead")

_BUDGET_DEFINITION = (
    "gain of each layer on the way of the gradient from the loss to the input, over the last ten records"
)

_STYLE = """
body { font: 15px/1.5 Roboto, "Helvetica Neue", Arial, sans-serif; color: #202124; max-width: 1100px; margin: 40px auto;
  padding: 0 24px; overflow-wrap: break-word; }
td:first-child { overflow-wrap: anywhere; }
h1 { font-weight: 400; margin-bottom: 4px; }
h2 { font-weight: 500; margin-top: 44px; border-bottom: 1px solid #e3e5e8; padding-bottom: 6px; }
h3 { font-weight: 500; margin: 26px 0 2px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid #e3e5e8; font-weight: 400; }
th { color: #5f6368; font-size: 13px; }
li { margin: 6px 0; }
code { padding: 0 4px; border-radius: 3px; background: #f1f3f4; color: #202124; }
.secondary { color: #5f6368; }
.error { color: #b3261e; }
.warning { color: #8a5a00; }
"""


def write_report(runs: Sequence[Run], path: str | os.PathLike[str]) -> None:
    """Write one HTML page about `runs`, which needs neither a server nor a network.

    Args:
      runs: the runs, each with a record or more.
      path: file to write, such as "report.html". A file of that name is replaced once the new page is complete.

    Raises:
      OSError: the file cannot be written.
      ValueError: there is no run.
    """
    write_whole(os.path.realpath(path), render_page(check_list(runs)))  # a link stays one


def render_page(runs: Sequence[Run]) -> str:
    """Return the whole page as text."""
    names = short_names([run.logdir for run in runs])
    title = _escape(", ".join(names))
    body = [
        f"<h1>{title}</h1><p class=secondary>Gradients, activations and units, measured by Tapescope.</p>",
        _render_overview(runs, names),
    ]
    if len(runs) > 1:
        body += ["<h2>Comparison</h2>", *_render_comparison(runs, names)]
    for run, name in zip(runs, names, strict=True):
        body += [f"<h2>{_escape(name)}</h2>", _render_problems(run), _render_findings(run), _render_figures(run)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} - Tapescope</title>'
        f"<style>{_STYLE}</style><script>{offline.get_plotlyjs()}</script><body>{''.join(body)}</body></html>"
    )


def short_names(logdirs: Sequence[str]) -> list[str]:
    """Return the directories without their common part; a single one as its last part."""
    paths = [os.path.abspath(logdir) for logdir in logdirs]
    if len(set(paths)) < 2:
        return [os.path.basename(path) for path in paths]
    return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def _render_overview(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = []
    for run, name in zip(runs, names, strict=True):
        state = ": ".join(str(text) for text in (run.status.get("state"), run.status.get("reason")) if text)
        loss = _last(run, "loss")
        cost = _last(run, "measure_ms")
        cells = (
            name,
            state,
            f"{run.steps[-1]}",
            f"{loss:.4g}",
            _count_findings(run),
            "" if math.isnan(cost) else f"{max(0.0, cost):.2f} ms",
        )
        rows.append("".join(f"<td>{_escape(cell)}</td>" for cell in cells))
    titles = ("run", "state", "last step", "loss", "findings", "cost of a measured step")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _last(run: Run, column: str) -> float:
    return float(run[column][-1]) if column in run.columns else math.nan


def _count_findings(run: Run) -> str:
    """Return the numbers of errors, warnings and notes as text."""
    counts = count_severities(finding["severity"] for finding in run.findings)
    counted = [(counts[severity], "note" if severity == "info" else severity) for severity in at_least("info")]
    return ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for n, severity in counted if n) or "none"


def _render_comparison(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Return figures of the loss and of the first variable's gradient, at the steps that all runs recorded."""
    common = sorted(set.intersection(*(set(run.steps.tolist()) for run in runs)))
    if not common:
        return ["<p>The runs have no recorded step in common.</p>"]
    at = [np.searchsorted(run.steps, common) for run in runs]
    count = "one step" if len(common) == 1 else f"{len(common):,} steps"
    figures = [f"<p class=secondary>At the {count} that all runs recorded.</p>"]
    for title, name in (("Loss", "loss"), ("Gradient of the first variable", "gradient_norm")):
        if not all(name in run.columns for run in runs):
            continue
        columns = [plotting.read_column(run, name)[rows] for run, rows in zip(runs, at, strict=True)]
        values = [column if column.ndim == 1 else column[:, 0] for column in columns]
        column = metadata.COLUMNS[name]
        figure = basic.line_chart(np.array(common), names, np.stack(values, axis=1), column)
        figures.append(_render_figure(title, column.definition, figure))
    return figures


def _render_problems(run: Run) -> str:
    if not run.problems:
        return ""
    return f"<ul>{''.join(f'<li class=warning>{_escape(problem)}</li>' for problem in run.problems)}</ul>"


def _render_findings(run: Run) -> str:
    if not run.findings:
        return "<p>No findings were recorded while it trained.</p>"
    items = []
    for finding in run.findings:
        message = finding["message"]
        place = f"Step {finding['step']}" + (f", layer {_escape(finding['layer'])}" if finding.get("layer") else "")
        items.append(
            f"<li class={_escape(finding['severity'])}>{_mark_names(message[:1].upper() + message[1:])}. "
            f"<span class=secondary>{place}. {_mark_names(finding.get('advice', ''))}</span></li>"
        )
    return f"<ul>{''.join(items)}</ul>"


def _render_figures(run: Run) -> str:
    try:
        return "".join(_draw_figures(run))
    except Exception as error:  # the boundary of a run: a damaged one must not cost the others' figures
        return f"<p class=error>The figures of this run cannot be drawn: {_escape(describe_error(error))}.</p>"


def _draw_figures(run: Run) -> list[str]:
    figures = []
    for name in ("loss", *_FLOW_COLUMNS):
        if name in run.columns and np.isfinite(plotting.read_column(run, name)).any():
            column = metadata.COLUMNS[name]
            title = style.column_title(column).capitalize()
            absent = run[name].ndim == 2 and not np.isfinite(plotting.read_column(run, name)).all()
            definition = f"{column.definition}. {basic.ABSENT_NOTE}" if absent else column.definition
            figures.append(_render_figure(title, definition, plotting.plot(run, name)))
    gains = [run[part][-plotting.BUDGET_RECORDS :] for part in flow_path.FLOW_PARTS if part in run.columns]
    if len(run.layers) > 1 and any(np.isfinite(gain).any() for gain in gains):
        figures.append(_render_figure("Flow budget", _BUDGET_DEFINITION, plotting.plot_budget(run)))
    return figures


def _render_figure(title: str, definition: str, figure: style.Figure) -> str:
    data = json.dumps(figure).replace("<", "\\u003c")  # "</script>" or "<!--" in a name must not end the script
    sentence = definition[:1].upper() + definition[1:]
    return (
        f"<h3>{_escape(title)}</h3><div class=secondary>{_escape(sentence)}.</div><div></div>"
        "<script>(f=>Plotly.newPlot(document.currentScript.previousElementSibling,f.data,f.layout,"
        f"{{displayModeBar:false,responsive:true}}))({data})</script>"
    )


def _mark_names(text: str) -> str:
    """Return a text with the names between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", _escape(text))


def _escape(value: Any) -> str:
    return html.escape(str(value))
