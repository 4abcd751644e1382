"""One look for every figure: widths, palettes, markers, and the style file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

COLUMN, PAGE = 3.25, 6.75  # inches: one column, full width
WIDTHS = (COLUMN, PAGE, COLUMN + 0.6)  # the last: one column with its legend beside it
STYLE_FILE = Path(__file__).parent / "mergelib.mplstyle"

# Okabe-Ito colours, safe for colour-blind readers; marker and line differ too, so grey print works.
METHOD_STYLE: dict[str, dict[str, Any]] = {
    "f_b": {"color": "#7F7F7F", "marker": "D"},
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
PROTOCOL_STYLE: dict[str, dict[str, Any]] = {
    "current": {"color": "#7F7F7F", "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "knn": {"color": "#E69F00", "linestyle": "-.", "marker": "s"},
    "ft_classifier": {"color": "#0072B2", "linestyle": "-", "marker": "^"},
    "orthogonal_classifier": {"color": "#009E73", "linestyle": (0, (5, 1)), "marker": "D"},
    "orthogonal_procrustes": {"color": "#882255", "linestyle": (0, (3, 1, 1, 1)), "marker": "v"},
    "surgery": {"color": "#CC79A7", "linestyle": (0, (1, 1)), "marker": "X"},
}


def method_style(method: str) -> dict[str, Any]:
    """Colour and marker of a method, the same in every figure; methods of one's own get the next free ones."""
    if method not in METHOD_STYLE:
        METHOD_STYLE[method] = OTHER_STYLES[(len(METHOD_STYLE) - 7) % len(OTHER_STYLES)]
    return METHOD_STYLE[method]


def protocol_style(protocol: str) -> dict[str, Any]:
    """Colour, marker and line of a protocol; protocols of one's own get the next free colour and marker."""
    if protocol not in PROTOCOL_STYLE:
        used = {style["marker"] for style in PROTOCOL_STYLE.values()}
        free = [style for style in OTHER_STYLES if style["marker"] not in used] or OTHER_STYLES
        PROTOCOL_STYLE[protocol] = {**free[0], "linestyle": (0, (4, 2, 1, 2))}
    return PROTOCOL_STYLE[protocol]


def use_style() -> None:
    """Apply the project's style to the process."""
    plt.style.use(STYLE_FILE)


REPAIR_STYLE: dict[str, dict[str, Any]] = {
    "raw": {"color": "#7F7F7F", "linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "permuted": {"color": "#56B4E9", "linestyle": "-.", "marker": "v"},
    "repair": {"color": "#E69F00", "linestyle": (0, (3, 1, 1, 1)), "marker": "D"},
    "tact": {"color": "#009E73", "linestyle": "-", "marker": "s"},
    "ft_classifier": {"color": "#0072B2", "linestyle": "-", "marker": "^"},
    "tact_ft_classifier": {"color": "#D55E00", "linestyle": (0, (5, 1)), "marker": "X"},
}
