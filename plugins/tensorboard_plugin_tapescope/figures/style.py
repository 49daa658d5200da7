"""Style shared by all figures: colours, axes, margins and the text of labels."""

import html
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.metadata import Column

Figure = dict[str, Any]

PALETTE = ("#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a", "#425066")
"""TensorBoard's own colours of runs, its grey-blue last."""

DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross")
"""Lines and markers of the same colour, which repeats where there are more than PALETTE has."""

FONT = "Roboto, 'Helvetica Neue', Arial, sans-serif"
MINUS = "\N{MINUS SIGN}"
TEXT_SIZE = 12
TICK_SIZE = 11

FEW_STEPS = 4
"""Most steps over which Plotly would place ticks between two."""

POWER_TICK_SIZE = TICK_SIZE / 1.25
"""Font size of an axis with `exponentformat="power"`, whose labels plotly.js enlarges by 1.25."""

LEFT_MARGIN = 64
"""Pixels left of the plot where no row labels need more, so that figures below each other are aligned."""

HEATMAP_MARGIN = {"r": 104, "t": 8, "b": 44, "autoexpand": False}
"""Margins in pixels of every heatmap. They are fixed, so that heatmaps side by side are equally wide."""

LABEL_LIMIT = 34
"""Most characters of a label."""

COLOUR_BAR_PIXELS = 12
"""Pixels between a plot and its colour bar; by default they grow with the plot, until labels have no place."""

_LIGHT = {"text": "#202124", "secondary": "#5f6368", "grid": "#e3e5e8"}
_DARK = {"text": "#e8eaed", "secondary": "#a6abb2", "grid": "#3c4043"}

VIRIDIS = ("#440154", "#48186a", "#424086", "#33638d", "#26828e", "#1fa088", "#3fbc73", "#84d44b", "#d8e219", "#fde725")
CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
"""Colour scales for colour-blind readers, dark to light: matplotlib's, in ten stops."""


def display_name(name: str, limit: int = LABEL_LIMIT) -> str:
    """Return a name as Plotly may draw it: markup escaped, on one line, the middle of a long one left out."""
    line = " ".join(name.split()) or "(no name)"
    short = line if len(line) <= limit else f"{line[: limit // 2 - 1]}…{line[-(limit // 2) :]}"
    return html.escape(short, quote=False)


def unique_labels(names: Sequence[str], parts: int = 1, limit: int = LABEL_LIMIT) -> list[str]:
    """Return a different label for each name.

    Args:
      names: names with "/" between their parts.
      parts: the scope that all names share is left out, except for so many last parts of a name. With 2, the
        variables of a single layer keep the layer's name.
      limit: most characters of a label.
    """
    scope = os.path.commonprefix(list(names)).split("/")[:-1] if len(names) > 1 else []
    dropped = min([len(scope), *(max(0, name.count("/") + 1 - parts) for name in names)])
    texts = [display_name("/".join(name.split("/")[dropped:]), limit) for name in names]
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        seen[text] = seen.get(text, 0) + 1
        texts[i] = text if seen[text] == 1 else f"{text} ({seen[text]})"
    return texts


def column_title(column: Column) -> str:
    """Return a column's name as text, with the unit if it has one: `step ms`, `noise scale (examples)`."""
    text = column.name.replace("_", " ")
    return f"{text} ({column.unit})" if column.unit and column.unit not in text else text


def wrap_lines(sentence: str, width: int = 46) -> str:
    """Return a sentence with line breaks, so that it fits a hover label; markup is escaped."""
    lines = [""]
    for word in html.escape(sentence, quote=False).split():
        if len(lines[-1]) + len(word) < width:
            lines[-1] = f"{lines[-1]} {word}".strip()
        else:
            lines.append(word)
    return "<br>".join(lines)


def layout(dark: bool = False, **fields: Any) -> dict[str, Any]:
    """Return a figure's layout.

    Args:
      dark: whether the page is dark.
      **fields: fields of the layout that replace the defaults. Those of an axis are merged into its defaults, and an
        axis' title is a text.
    """
    colours = _DARK if dark else _LIGHT
    axis = {
        "gridcolor": colours["grid"],
        "linecolor": colours["grid"],
        "zerolinecolor": colours["grid"],
        "tickcolor": colours["grid"],
        "tickfont": {"color": colours["secondary"], "size": TICK_SIZE},
        "automargin": True,
        "title": {"font": {"color": colours["secondary"], "size": TEXT_SIZE}, "standoff": 8},
    }
    base: dict[str, Any] = {
        "font": {"family": FONT, "color": colours["text"], "size": TEXT_SIZE},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": LEFT_MARGIN, "r": 16, "t": 12, "b": 44},
        "hoverlabel": {
            "align": "left",
            "font": {"family": FONT, "color": colours["text"], "size": TEXT_SIZE},
            "bgcolor": "#303134" if dark else "#ffffff",
            "bordercolor": colours["grid"],
        },
        "legend": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "font": {"color": colours["secondary"], "size": TICK_SIZE},
        },
        "colorway": list(PALETTE),
    }
    for name, value in {"xaxis": {}, "yaxis": {}, **fields}.items():
        if not name.endswith("axis"):
            base[name] = value
            continue
        title = {**axis["title"], "text": value.get("title", "")}
        tickfont = {**axis["tickfont"], **value.get("tickfont", {})}
        base[name] = {**axis, **value, "title": title, "tickfont": tickfont}
    return base


def step_axis(steps: np.ndarray, **fields: Any) -> dict[str, Any]:
    """Return the x axis of a figure over ascending steps; few of them have a tick each, and none between."""
    few = {"dtick": 1} if len(steps) and steps[-1] - steps[0] <= FEW_STEPS else {}
    return {"title": "step", "separatethousands": True, **few, **fields}


def run_colours(runs: Iterable[str], all_runs: Iterable[str]) -> list[str]:
    """Return the colour of each run: by its place among all runs, as TensorBoard assigns its palette."""
    places = {run: place for place, run in enumerate(all_runs)}
    return [PALETTE[places[run] % len(PALETTE)] for run in runs]


def mark_repeated(colours: Sequence[str], marks: Sequence[str]) -> list[str]:
    """Return one of DASHES or SYMBOLS for each colour: another one where the same colour came before."""
    return [marks[colours[:i].count(colour) % len(marks)] for i, colour in enumerate(colours)]


def secondary_text_colour(dark: bool) -> str:
    """Return the colour of secondary text, such as tick labels."""
    return (_DARK if dark else _LIGHT)["secondary"]


def with_opacity(colour: str, alpha: float = 0.12) -> str:
    """Return a `#rrggbb` colour as a translucent one."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def colour_bar(title: str, dark: bool, **fields: Any) -> dict[str, Any]:
    """Return a thin colour bar with its title to the right."""
    colour = secondary_text_colour(dark)
    return {
        "x": 1,
        "xpad": COLOUR_BAR_PIXELS,
        "thickness": 10,
        "outlinewidth": 0,
        "tickfont": {"color": colour, "size": TICK_SIZE},
        "title": {"text": title, "side": "right", "font": {"color": colour, "size": TEXT_SIZE}},
        **fields,
    }


def even_stops(colours: Sequence[str]) -> list[list[Any]]:
    """Return Plotly's colour scale with the colours at equal distances."""
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]
