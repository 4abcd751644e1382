"""One look for every figure: widths, palettes, markers, and the style file.

Methods, protocols, repairs and classes have a palette each, and a colour means the same in every
figure. Within a palette markers differ too (bars differ in lightness), so that grey print works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb

COLUMN, PAGE = 3.25, 6.75  # inches: one column, full width
WIDTHS = (COLUMN, PAGE, COLUMN + 0.6)  # the last: one column with its legend next to it
STYLE_FILE = Path(__file__).parent / "mergelib.mplstyle"

Style = dict[str, Any]
METHOD_STYLE: dict[str, Style] = {
    "f_b": {"color": "#9A9A9A", "marker": "D"},
    "weight_averaging": {"color": "#0072B2", "marker": "o"},
    "task_arithmetic": {"color": "#E69F00", "marker": "s"},
    "ties": {"color": "#009E73", "marker": "^"},
    "multi_task": {"color": "#CC79A7", "marker": "P"},
    "f_t": {"color": "#000000", "marker": "*"},
    "random": {"color": "#56B4E9", "marker": "v"},
}
OTHER_STYLES = [
    {"color": "#D55E00", "marker": "X"},
    {"color": "#882255", "marker": "<"},
    {"color": "#999933", "marker": ">"},
]
PROTOCOL_STYLE: dict[str, Style] = {
    "current": {"color": "#9DB1D6", "linestyle": (0, (4, 2)), "marker": "o"},
    "knn": {"color": "#C65D57", "linestyle": (0, (4, 1.5, 1, 1.5)), "marker": "s"},
    "ft_classifier": {"color": "#332288", "linestyle": "-", "marker": "^"},
    "orthogonal_classifier": {"color": "#2F8F9D", "linestyle": (0, (5, 1)), "marker": "D"},
    "orthogonal_procrustes": {"color": "#7A3E9D", "linestyle": (0, (3, 1, 1, 1)), "marker": "v"},
    "surgery": {"color": "#8A6D3B", "linestyle": (0, (1, 1)), "marker": "X"},
}
REPAIR_STYLE: dict[str, Style] = {
    "raw": {"color": "#B8B8B8", "linestyle": (0, (4, 2)), "marker": "o"},
    "permuted": {"color": "#88CCEE", "linestyle": (0, (4, 1.5, 1, 1.5)), "marker": "v"},
    "repair": {"color": "#CCBB44", "linestyle": (0, (3, 1, 1, 1)), "marker": "D"},
    "tact": {"color": "#117733", "linestyle": (0, (1, 1)), "marker": "s"},
    "ft_classifier": PROTOCOL_STYLE["ft_classifier"],
    "tact_ft_classifier": {"color": "#AA4499", "linestyle": (0, (5, 1)), "marker": "X"},
}
STAGE_STYLES: tuple[Style, ...] = (
    {"color": "#000000", "marker": "s"},
    {"color": "#707070", "marker": "D"},
    REPAIR_STYLE["raw"],
    REPAIR_STYLE["permuted"],
)
"""From experts of one base to permuted ones of two."""
CLASS_COLOURS = ("#3346CC", "#59930D", "#F25993", "#2CCFE0", "#7F4620")
CLASS_COLOURS += ("#A67FF2", "#CCCC0D", "#337F6C", "#7F206C", "#6CDF93")
CLASS_MARKERS = "os^D"
"""A class is a colour, and where few are drawn a marker as well."""


def class_colours(classes: int) -> list[tuple[float, float, float]]:
    """A colour per class; of many, one in ``classes / 10`` has one, and the others are grey."""
    colours = [(0.78, 0.78, 0.78)] * classes
    indices = np.linspace(0, classes - 1, min(classes, len(CLASS_COLOURS))).round().astype(int)
    for place, colour in zip(indices, CLASS_COLOURS, strict=False):
        colours[place] = to_rgb(colour)
    return colours


def method_style(method: str) -> Style:
    """Colour and marker of a method; a user's methods get the next free ones."""
    if method not in METHOD_STYLE:
        METHOD_STYLE[method] = OTHER_STYLES[(len(METHOD_STYLE) - 7) % len(OTHER_STYLES)]
    return METHOD_STYLE[method]


def protocol_style(protocol: str) -> Style:
    """Colour, marker and line of a protocol; a user's protocols get the next free ones."""
    if protocol not in PROTOCOL_STYLE:
        markers = {style["marker"] for style in PROTOCOL_STYLE.values()}
        free = [style for style in OTHER_STYLES if style["marker"] not in markers] or OTHER_STYLES
        PROTOCOL_STYLE[protocol] = {**free[0], "linestyle": (0, (4, 2, 1, 2))}
    return PROTOCOL_STYLE[protocol]


def use_style() -> None:
    """Apply the project's style to the process."""
    plt.style.use(STYLE_FILE)
