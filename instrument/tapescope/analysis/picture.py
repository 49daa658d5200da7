"""A heatmap as a picture, drawn by Pillow, for tools that take pictures and no figures."""

from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tapescope.storage.heatmap import Heatmap
from tensorboard_plugin_tapescope.figures.colour_scale import ZERO_COLOUR, colour_range
from tensorboard_plugin_tapescope.figures.style import VIRIDIS
from tensorboard_plugin_tapescope.metadata import COLUMNS

WIDTH = 640
"""Pixels of the steps."""
ROW_HEIGHT = 14
MAX_HEIGHT = 1400
MARGIN = 6
ABSENT = "#d0d3d6"
TEXT = "#202124"
NAME_LENGTH = 30


def draw_heatmap(heatmap: Heatmap) -> Any:
    """Return a `PIL.Image.Image`: a row for each layer, the first at the top, and steps from left to right.

    The colours are those of the Gradients tab. Absent values are grey.
    """
    column = COLUMNS[heatmap.column]
    colours = colour_range(column, heatmap.values)
    is_log = colours.scale == "log"
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = heatmap.values.T
        z = np.log10(raw) if is_log else raw
    share = np.clip((z - colours.low) / (colours.high - colours.low), 0, 1)
    palette = np.array([ImageColor.getrgb(colour) for colour in VIRIDIS], np.float64)
    position = np.nan_to_num(share) * (len(palette) - 1)
    below = np.minimum(position.astype(int), len(palette) - 2)
    part = (position - below)[..., None]
    pixels = (palette[below] * (1 - part) + palette[below + 1] * part).astype(np.uint8)
    pixels[~np.isfinite(raw)] = ImageColor.getrgb(ABSENT)
    if is_log:
        pixels[raw == 0] = ImageColor.getrgb(ZERO_COLOUR)

    count = len(heatmap.layers)
    height = max(1, min(ROW_HEIGHT * count, MAX_HEIGHT))
    font = ImageFont.load_default()
    labels = [_label(name) for name in heatmap.layers]
    left = 2 * MARGIN + max((int(font.getlength(label)) for label in labels), default=0)
    top = ROW_HEIGHT + 2 * MARGIN
    picture = Image.new("RGB", (left + WIDTH + MARGIN, top + height + ROW_HEIGHT + 2 * MARGIN), "white")
    picture.paste(Image.fromarray(pixels).resize((WIDTH, height), Image.Resampling.NEAREST), (left, top))
    write = ImageDraw.Draw(picture)
    ends = f"10^{colours.low:.0f} to 10^{colours.high:.0f}" if is_log else f"{colours.low:.3g} to {colours.high:.3g}"
    write.text((left, MARGIN), f"{heatmap.column}, dark to light: {ends}", TEXT, font)
    every = -(-ROW_HEIGHT * count // height)
    for i in range(0, count, every):
        write.text((MARGIN, top + i * height // count), labels[i], TEXT, font)
    write.text((left, top + height + MARGIN), f"step {heatmap.steps[0]} to {heatmap.steps[-1]}", TEXT, font)
    return picture


def _label(name: str) -> str:
    """Return a name of characters that Pillow's own font has, with the middle of a long one left out."""
    text = name.encode("ascii", "replace").decode()
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH // 2 - 1]}..{text[-(NAME_LENGTH // 2 - 1) :]}"
