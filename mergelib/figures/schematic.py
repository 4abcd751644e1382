"""Figure 3, "what is frozen, what is trained": five ways to classify merged features.

Drawn from ``schematic.yaml``. A panel is a strip: the upper row is the way of a scored input, the
lower row what happens once beforehand. The strips share their columns, so that one look down a
column shows where the protocols differ. Lengths are in inches.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle

from .plots import head
from .style import PAGE, PROTOCOL_STYLE

DRAWING = yaml.safe_load((Path(__file__).parent / "schematic.yaml").read_text())
COLUMNS, KINDS, BOXES, PANELS = (DRAWING[k] for k in ("columns", "kinds", "boxes", "panels"))
ROW, HEIGHT, STRIP = 0.56, 0.39, 0.075  # distance of rows, height of a box, width of its strip
MARGIN = 0.03  # above and below the boxes of a panel
BIG, SMALL = 10, 8.5  # points
HATCH = "////////"
DASHES = (0, (3, 1.6))  # the line of what happens once
FACTS = ["trained", "extra parameters", "uses labels", "inputs for fitting", "needs f_t to fit"]


def protocol_table() -> pd.DataFrame:
    """A row per panel: what is trained and added, use of labels, inputs fitted on, need of f_t."""
    rows = []
    for panel in PANELS:
        title = " ".join(panel["title"]).replace("$\\mathbfit{f_m}$", "f_m").strip()
        rows.append([title, *panel["facts"]])
    return pd.DataFrame(rows, columns=["protocol", *FACTS])


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
    line = {"color": "black", "linewidth": 0.8}
    boxes = [Patch(label=kind, **_paint(kind), hatch=HATCH * (kind == "frozen")) for kind in KINDS]
    per_input = Line2D([], [], label="per test input", **line)
    once = Line2D([], [], label="once, beforehand", linestyle=DASHES, **line)
    fig.legend(
        handles=[*boxes, per_input, once],
        loc="outside lower center",
        ncols=6,
        fontsize=SMALL,
        handlelength=2,
        handleheight=1.1,
    )
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
    """Title, boxes and arrows of one strip."""
    middle, places = sum(ax.get_ylim()) / 2, placed(panel)
    first, second = panel["title"]
    for y, line in ((0.085, first), (-0.085, f"{second} ({letter})".strip())):
        left = 0.0 if y > 0 else 0.16
        ax.text(left, middle + y, line, fontweight="bold", va="center", size=9)
    if "style" in panel:
        marker = {k: v for k, v in PROTOCOL_STYLE[panel["style"]].items() if k != "linestyle"}
        ax.plot([0.06], [middle - 0.085], markersize=5, **marker)
    boxes = {}
    for cell, (name, x, y, width) in places.items():
        kind, text, note = BOXES[name]
        boxes[cell] = _draw_box(ax, kind, x - width / 2, y - HEIGHT / 2, width)
        x += STRIP / 2 * (kind == "frozen")
        ink = {"color": KINDS[kind]["ink"], "ha": "center", "va": "center", "zorder": 4}
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
            shrinkA=0,
            shrinkB=0.6,
            arrowstyle="-|>,head_length=2.6,head_width=1.4",
            mutation_scale=1.4,
            color="black",
            linewidth=0.8,
            linestyle=DASHES if once else "-",
            zorder=1,
        )
        ax.add_patch(arrow)
        if upright:
            ax.text(x0 + 0.05, (y0 + y1) / 2, label, va="center", size=SMALL)
        elif label:
            ax.text(x0 + width / 2 + 0.1, y0 + 0.03, label, ha="center", style="italic", size=SMALL)


def _paint(kind: str) -> dict[str, Any]:
    style = KINDS[kind]
    return {"facecolor": style["face"], "edgecolor": style["edge"], "linewidth": style["linewidth"]}


def _draw_box(ax: Axes, kind: str, x: float, y: float, width: float) -> FancyBboxPatch:
    """A box; a frozen one has a strip, so that it is told from a white one in any print."""
    style = f"round,pad=0,rounding_size={KINDS[kind]['corner']}"
    box = FancyBboxPatch((x, y), width, HEIGHT, boxstyle=style, zorder=2, **_paint(kind))
    if kind == "frozen":
        strip = Rectangle(
            (x, y),
            STRIP,
            HEIGHT,
            facecolor="white",
            edgecolor=KINDS[kind]["edge"],
            linewidth=0.5,
            hatch=HATCH,
            zorder=3,
        )
        ax.add_patch(strip)
    return ax.add_patch(box)
