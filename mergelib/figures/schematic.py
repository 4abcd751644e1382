"""Figure 3, "what is frozen, what is trained": five ways to classify merged features.

Drawn from ``schematic.yaml``. A panel is a strip: the upper row is the way of a scored input, the
lower row what happens once beforehand. The strips share their columns, so that one look down a
column shows where the protocols differ. Lengths are in inches.
"""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle

from ..core.documents import own_yaml
from .plots import head
from .style import PAGE, PROTOCOL_STYLE

DRAWING = own_yaml(__file__, "schematic.yaml")
COLUMNS, KINDS, BOXES, PANELS = (DRAWING[k] for k in ("columns", "kinds", "boxes", "panels"))
ROW, HEIGHT, STRIP = 0.56, 0.39, 0.075  # distance of rows, height of a box, width of its strip
MARGIN = 0.03  # above and below the boxes of a panel
BIG, SMALL = 10, 8.5  # points
HATCH = "////////"
DASHES = (0, (3, 1.6))  # the line of what happens once
FACTS = ["trained", "extra parameters", "uses labels", "inputs for fitting", "needs f_t to fit"]


def protocol_table() -> pd.DataFrame:
    """A row per panel: what is trained and added, use of labels, inputs fitted on, need of f_t."""
    table = pd.DataFrame([panel["facts"] for panel in PANELS], columns=FACTS)
    titles = [" ".join(panel["title"]).strip() for panel in PANELS]
    table.insert(0, "protocol", [t.replace("$\\mathbfit{f_m}$", "f_m") for t in titles])
    return table


def alt() -> str:
    """Alt text of Figure 3."""
    return DRAWING["alt"]


def draw_protocols() -> Figure:
    """Figure 3: a strip per protocol; white boxes with a strip are frozen, dark ones trained."""
    heights = [ROW * (1 + ("below" in panel)) + 2 * MARGIN for panel in PANELS]
    fig, axes = plt.subplots(
        len(PANELS), figsize=(PAGE, sum(heights) + 0.9), layout="constrained", height_ratios=heights
    )
    fig.get_layout_engine().set(h_pad=0.03, w_pad=0.02, hspace=0, wspace=0)
    for letter, ax, panel, height in zip("abcde", axes, PANELS, heights, strict=True):
        ax.set(xlim=(0, PAGE), ylim=(-height, 0))
        ax.axis("off")
        _draw_panel(ax, panel, letter)
        if ax is not axes[0]:  # half-way between two strips
            ax.axhline(0.03, color="0.75", linewidth=0.5, clip_on=False)
    for left, width, heading in COLUMNS:
        middle = left + width / 2
        axes[0].text(middle, 0.02, heading, ha="center", va="bottom", size=SMALL, color="0.3")
    trained = sum(panel["facts"][0] != "nothing" for panel in PANELS)
    head(fig, f"{len(PANELS)} protocols freeze the merged encoder; {trained} train something small")
    boxes = [
        Patch(label=kind, hatch=HATCH * (kind == "frozen"), **look["paint"])
        for kind, look in KINDS.items()
    ]
    lines = [
        Line2D([], [], label=label, linestyle=dashes, color="black", linewidth=0.8)
        for label, dashes in (("per test input", "-"), ("once, beforehand", DASHES))
    ]
    fig.legend(handles=boxes + lines, fontsize=SMALL, **DRAWING["legend"])
    return fig


def placed(panel: dict) -> dict[tuple[int, int], tuple[str, float, float, float]]:
    """(column, row) -> a box's name, centre and width; the last one above reaches to the right."""
    places = {}
    for row, names in enumerate((panel["above"], panel.get("below", []))):
        for column, name in enumerate(names):
            if name:
                last = -1 if row == 0 and column == len(names) - 1 else column
                left, right = COLUMNS[column][0], sum(COLUMNS[last][:2])
                y = -MARGIN - ROW * (row + 0.5)
                places[column, row] = (name, (left + right) / 2, y, right - left)
    return places


def arrows(panel: dict) -> list[tuple[tuple[int, int], tuple[int, int], str, bool]]:
    """(start, end, label, used once): along both rows, and from the lower row up."""
    above, below = ([p for p in placed(panel) if p[1] == row] for row in (0, 1))
    links = [(a, b, "z" * (a == (1, 0)), False) for a, b in pairwise(above)]
    links += [(a, b, "", True) for a, b in pairwise(below)]
    if below:
        loss = panel.get("loss", "")
        links.append((below[-1], (below[-1][0], 0), loss, bool(loss)))
        if "f_t" in panel["below"]:  # the fitted inputs pass through both encoders
            links.append((below[0], (1, 0), "", True))
    return links


def _draw_panel(ax: Axes, panel: dict, letter: str) -> None:
    """Title, boxes and arrows of one strip; a frozen box has a hatched strip, so that it is told
    from a white one in any print."""
    middle, places, boxes = sum(ax.get_ylim()) / 2, placed(panel), {}
    first, second = panel["title"]
    lower = middle - 0.085
    ax.text(0.0, middle + 0.085, first, **DRAWING["title"])
    ax.text(0.16, lower, f"{second} ({letter})".strip(), **DRAWING["title"])
    if "style" in panel:
        marker = PROTOCOL_STYLE[panel["style"]] | {"linestyle": "-"}
        ax.plot([0.06], [lower], markersize=5, **marker)
    for cell, (name, x, y, width) in places.items():
        kind, text, note = BOXES[name]
        look, corner = KINDS[kind], (x - width / 2, y - HEIGHT / 2)
        shape = f"round,pad=0,rounding_size={look['corner']}"
        box = FancyBboxPatch(corner, width, HEIGHT, boxstyle=shape, zorder=2, **look["paint"])
        if kind == "frozen":
            edge = look["paint"]["edgecolor"]
            strip = Rectangle(
                corner, STRIP, HEIGHT, edgecolor=edge, hatch=HATCH, **DRAWING["strip"]
            )
            ax.add_patch(strip)
            x += STRIP / 2
        boxes[cell] = ax.add_patch(box)
        ink = {"color": look["ink"], "ha": "center", "va": "center", "zorder": 4}
        ax.text(x, y + 0.075, text, size=BIG, **ink)
        ax.text(x, y - 0.09, note, size=SMALL, **ink)
    for start, end, label, once in arrows(panel):
        (_, x0, y0, width), (_, x1, y1, _) = places[start], places[end]
        upright = start[0] == end[0]  # the box above may be wider
        arrow = FancyArrowPatch(
            (x0, y0),
            (x0 if upright else x1, y1),
            patchA=boxes[start],
            patchB=boxes[end],
            linestyle=DASHES if once else "-",
            **DRAWING["arrow"],
        )
        ax.add_patch(arrow)
        if upright:
            ax.text(x0 + 0.05, (y0 + y1) / 2, label, va="center", size=SMALL)
        elif label:
            ax.text(x0 + width / 2 + 0.1, y0 + 0.03, label, ha="center", style="italic", size=SMALL)
