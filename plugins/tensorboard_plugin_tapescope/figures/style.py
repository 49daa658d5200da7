"""The look that all figures share: colours, axes, names shown as text, arrays in Plotly's typed encoding."""

import base64
import html
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorboard_plugin_tapescope.metadata import Column

Figure = dict[str, Any]

PALETTE = ("#12b5cb", "#e52592", "#f9ab00", "#9334e6", "#7cb342", "#e8710a", "#425066")
"""TensorBoard's own colours of runs, its grey-blue last."""

FONT = "Roboto, 'Helvetica Neue', Arial, sans-serif"

_INKS = {False: ("#202124", "#5f6368", "#e3e5e8"), True: ("#e8eaed", "#a6abb2", "#3c4043")}


def typed(array: Any) -> dict[str, str]:
    """An array in Plotly's typed-array encoding; 64-bit integers as float64, which browsers have."""
    array = np.asarray(array)
    array = array.astype(np.float64) if array.dtype.kind in "iu" and array.dtype.itemsize == 8 else array
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    encoded = {"dtype": array.dtype.str[1:], "bdata": base64.b64encode(array.tobytes()).decode()}
    return encoded if array.ndim == 1 else {**encoded, "shape": ", ".join(map(str, array.shape))}


def shown(name: str, most: int = 34) -> str:
    """A name as Plotly may draw it: markup as text, on one line, the middle of a long one left out."""
    line = " ".join(name.split()) or "(no name)"
    short = line if len(line) <= most else f"{line[: most // 2 - 1]}…{line[-(most // 2) :]}"
    return html.escape(short, quote=False)


def labels(names: Sequence[str]) -> list[str]:
    """A different label for each name: without the scope that all are in, and whatever `shown` left out of them."""
    scope = os.path.commonprefix(list(names)).rpartition("/")[0] if len(names) > 1 else ""
    texts = [shown(name[len(scope) + 1 :] if scope else name) for name in names]
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        seen[text] = seen.get(text, 0) + 1
        texts[i] = text if seen[text] == 1 else f"{text} ({seen[text]})"
    return texts


def title(column: Column) -> str:
    """`gradient norm`, with the unit where there is one."""
    words = column.name.replace("_", " ")
    return f"{words} ({column.unit})" if column.unit and column.unit not in words else words


def wrapped(sentence: str, width: int = 46) -> str:
    """A sentence in lines that fit a hover label."""
    lines = [""]
    for word in html.escape(sentence, quote=False).split():
        lines[-1:] = [f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [lines[-1], word]
    return "<br>".join(lines)


def layout(dark: bool = False, **fields: Any) -> dict[str, Any]:
    """The look that all figures share; `fields` are laid over it, axes one level deep."""
    ink, soft, grid = _INKS[dark]
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zerolinecolor": grid,
        "tickcolor": grid,
        "tickfont": {"color": soft, "size": 11},
        "automargin": True,
        "title": {"font": {"color": soft, "size": 12}, "standoff": 8},
    }
    base: dict[str, Any] = {
        "font": {"family": FONT, "color": ink, "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 16, "t": 12, "b": 44},
        "hoverlabel": {
            "align": "left",
            "font": {"family": FONT, "color": ink, "size": 12},
            "bgcolor": "#303134" if dark else "#ffffff",
            "bordercolor": grid,
        },
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"color": soft, "size": 11}},
        "colorway": list(PALETTE),
    }
    for name, value in {"xaxis": {}, "yaxis": {}, **fields}.items():
        if "axis" in name:
            head = {**axis["title"], "text": value.get("title", "")}
            base[name] = {**axis, **value, "title": head}
        else:
            base[name] = value
    return base


def soft_ink(dark: bool) -> str:
    """The colour of what is said in a low voice."""
    return _INKS[dark][1]


def faint(colour: str, alpha: float = 0.12) -> str:
    """A `#rrggbb` colour that shows what is behind it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def colour_bar(words: str, dark: bool, **fields: Any) -> dict[str, Any]:
    """A thin colour bar with its title alongside."""
    head = {"text": words, "side": "right", "font": {"color": soft_ink(dark), "size": 12}}
    ticks = {"color": soft_ink(dark), "size": 11}
    return {"thickness": 10, "outlinewidth": 0, "tickfont": ticks, "title": head, **fields}


VIRIDIS = ("#440154", "#48186a", "#424086", "#33638d", "#26828e", "#1fa088", "#3fbc73", "#84d44b", "#d8e219", "#fde725")
CIVIDIS = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838")
"""Colour scales that the colour-blind can read, dark to light: of matplotlib, in ten stops."""


def evenly(stops: Sequence[str]) -> list[list[Any]]:
    """Plotly's colour scale with the stops at equal distances."""
    return [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]
