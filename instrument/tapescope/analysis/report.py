"""One HTML page about one or several runs, readable without a server or a network.

The figures are the tab's; plotly's script, from its Python package, is inside the page.
"""

import html
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from plotly import offline

from tapescope.analysis import plotting
from tapescope.storage.run import Run
from tensorboard_plugin_tapescope import metadata
from tensorboard_plugin_tapescope.figures import basic, style
from tensorboard_plugin_tapescope.metadata import Column

_FLOW = ("gradient_norm", "delta_norm", "update_ratio", "saturated", "units_dead")

_STYLE = """
body { font: 15px/1.5 Roboto, "Helvetica Neue", Arial, sans-serif; color: #202124; max-width: 1100px; margin: 40px auto;
  padding: 0 24px; }
h1 { font-weight: 400; margin-bottom: 4px; }
h2 { font-weight: 500; margin-top: 44px; border-bottom: 1px solid #e3e5e8; padding-bottom: 6px; }
h3 { font-weight: 500; margin: 26px 0 2px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid #e3e5e8; font-weight: 400; }
th { color: #5f6368; font-size: 13px; }
li { margin: 6px 0; }
.soft { color: #5f6368; }
.error { color: #b3261e; }
.warning { color: #8a5a00; }
"""


def write(runs: Sequence[Run], path: str | os.PathLike[str]) -> None:
    """Writes the page on `runs` to `path`. Raises OSError where it cannot."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(page(runs))


def page(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    names = short_names([run.logdir for run in runs])
    body = [f"<h1>{_text(', '.join(names))}</h1><p class=soft>Gradients, activations and units, by tapescope.</p>"]
    body.append(_table(runs, names))
    if len(runs) > 1:
        body += ["<h2>Compared</h2>", *_compared(runs, names)]
    for run, name in zip(runs, names, strict=True):
        body += [f"<h2>{_text(name)}</h2>", _findings(run), *_figures(run)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(", ".join(names))} - tapescope</title>'
        f"<style>{_STYLE}</style><script>{offline.get_plotlyjs()}</script><body>{''.join(body)}</body></html>"
    )


def short_names(logdirs: Sequence[str]) -> list[str]:
    """The directories without what they have in common; a single one by its last part."""
    paths = [os.path.abspath(logdir) for logdir in logdirs]
    if len(set(paths)) < 2:
        return [os.path.basename(path) for path in paths]
    return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def _table(runs: Sequence[Run], names: Sequence[str]) -> str:
    rows = []
    for run, name in zip(runs, names, strict=True):
        worst = {severity: sum(f["severity"] == severity for f in run.findings) for severity in ("error", "warning")}
        found = ", ".join(f"{n} {severity}{'s' * (n > 1)}" for severity, n in worst.items() if n) or "none"
        state = f"{run.status.get('state', '')} {run.status.get('reason', '')}".strip()
        loss, cost = run["loss"][-1], run["measure_ms"][-1]
        costs = "" if math.isnan(cost) else f"{cost:.2f} ms"
        cells = (name, state, f"{run.steps[-1]}", f"{loss:.4g}", found, costs)
        rows.append("".join(f"<td>{_text(cell)}</td>" for cell in cells))
    head = "".join(
        f"<th>{h}</th>" for h in ("run", "state", "last step", "loss", "findings", "cost of a measured step")
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _compared(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Loss, and the gradient that reaches the first layer, over the steps that all the runs recorded."""
    common = sorted(set.intersection(*(set(run.steps.tolist()) for run in runs)))
    if not common:
        return ["<p>The runs have no recorded step in common.</p>"]
    at = [np.searchsorted(run.steps, common) for run in runs]
    columns = {
        "Loss": (metadata.COLUMNS["loss"], [run["loss"][i] for run, i in zip(runs, at, strict=True)]),
        "Gradient of the first variable": (
            metadata.COLUMNS["gradient_norm"],
            [run["gradient_norm"][i, 0] for run, i in zip(runs, at, strict=True)],
        ),
    }
    return [
        _figure(title, column, basic.line_chart(np.array(common), names, np.stack(values, 1), column))
        for title, (column, values) in columns.items()
    ]


def _findings(run: Run) -> str:
    if not run.findings:
        return "<p>Nothing was found while it trained.</p>"
    rows = (
        f"<li class={_text(f['severity'])}>{_text(f['message'])} <span class=soft>Step {f['step']}"
        f"{', layer ' + _text(f['layer']) if f.get('layer') else ''}. {_text(f.get('advice', ''))}</span></li>"
        for f in run.findings
    )
    return f"<ul>{''.join(rows)}</ul>"


def _figures(run: Run) -> list[str]:
    found = [_figure("Loss", metadata.COLUMNS["loss"], plotting.plot(run, "loss"))]
    for name in _FLOW:
        if name in run.columns and np.isfinite(run[name]).any():
            column = metadata.COLUMNS[name]
            found.append(_figure(style.column_title(column).capitalize(), column, plotting.plot(run, name)))
    if len(run.layers) > 1 and "flow_gate" in run.columns:
        about = Column("", "what each layer cost the gradient on its way from the loss to the input; last ten records")
        found.append(_figure("Flow budget", about, plotting.budget(run)))
    return found


def _figure(title: str, column: Column, figure: style.Figure) -> str:
    # "</" in a name must not end the script.
    drawn = json.dumps(figure).replace("</", "<\\/")
    sentence = column.definition[:1].upper() + column.definition[1:]
    return (
        f"<h3>{_text(title)}</h3><div class=soft>{_text(sentence)}.</div><div></div><script>(f=>Plotly.newPlot("
        "document.currentScript.previousElementSibling,f.data,f.layout,{displayModeBar:false,responsive:true}))"
        f"({drawn})</script>"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))
