"""One look for every figure: widths, palettes and markers (``style.yaml``), and the style file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb

from ..core.documents import own_yaml

COLUMN, PAGE = 3.25, 6.75  # inches: one column, full width
WIDTHS = (COLUMN, PAGE, COLUMN + 0.6)  # the last: one column with its legend next to it
STYLE_FILE = Path(__file__).parent / "mergelib.mplstyle"

Style = dict[str, Any]
PALETTES = own_yaml(__file__, "style.yaml")
for _styles in (PALETTES["protocol"], PALETTES["repair"]):
    for _style in _styles.values():
        if isinstance(_style["linestyle"], list):
            _style["linestyle"] = (0, tuple(_style["linestyle"]))
METHOD_STYLE: dict[str, Style] = PALETTES["method"]
PROTOCOL_STYLE: dict[str, Style] = PALETTES["protocol"]
REPAIR_STYLE: dict[str, Style] = PALETTES["repair"]
STAGE_STYLES: list[Style] = PALETTES["stage"]
OTHER_STYLES: list[Style] = PALETTES["own"]
CLASS_COLOURS: list[str] = PALETTES["class"]
MARKS: dict[str, Style] = PALETTES["marks"]
CLASS_MARKERS = "os^D"
"""A class is a colour, and where few are drawn a marker as well."""


def class_colours(classes: int) -> list[tuple[float, float, float]]:
    """A colour per class; of many, one in ``classes / 10`` has one, and the others are grey."""
    colours = [(0.78, 0.78, 0.78)] * classes
    indices = np.linspace(0, classes - 1, min(classes, len(CLASS_COLOURS))).round().astype(int)
    for place, colour in zip(indices, CLASS_COLOURS, strict=False):
        colours[place] = to_rgb(colour)
    return colours


def _style_of(name: str, styles: dict[str, Style], **line: Any) -> Style:
    """The style of ``name``; a name of the reader's own gets the marker that is used least."""
    if name not in styles:
        used = [style["marker"] for style in styles.values()]
        styles[name] = min(OTHER_STYLES, key=lambda style: used.count(style["marker"])) | line
    return styles[name]


def method_style(method: str) -> Style:
    """Colour and marker of a method."""
    return _style_of(method, METHOD_STYLE)


def protocol_style(protocol: str) -> Style:
    """Colour, marker and line of a protocol."""
    return _style_of(protocol, PROTOCOL_STYLE, linestyle=(0, (4, 2, 1, 2)))


def use_style() -> None:
    """Apply the project's style to the process."""
    plt.style.use(STYLE_FILE)
