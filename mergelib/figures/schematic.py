"""Figure 3, "what is frozen, what is trained": five ways to classify merged features.

Drawn from the table ``PANELS``. A panel is a strip: the upper row is the way of a scored input,
the lower row what happens once beforehand. The strips share their columns, so that one look down a
column shows where the protocols differ. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch, Rectangle

from .style import PAGE, PROTOCOL_STYLE


@dataclass(frozen=True)
class Box:
    """A box in a column of ``COLUMNS`` and a row (0 above); ``note`` is its small second line."""

    text: str
    column: int
    row: int
    kind: str
    note: str = ""
    span: int = 1


@dataclass(frozen=True)
class Arrow:
    """From one box to another, by (column, row); ``once``: used while fitting only, and dashed."""

    start: tuple[int, int]
    end: tuple[int, int]
    label: str = ""
    once: bool = False


@dataclass(frozen=True)
class Facts:
    """What the table says of a protocol; C classes, d features, k inputs per class, rank r."""

    trained: str
    extra_parameters: str
    labels: str
    fitted_on: str
    teacher: str


@dataclass(frozen=True)
class Panel:
    """One protocol: ``style`` is its key in ``style.PROTOCOL_STYLE``, empty where it has none."""

    title: str
    style: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    facts: Facts


@dataclass(frozen=True)
class Kind:
    """How a kind of box looks: fill, edge, corner and hatched strip tell it, never hue alone."""

    face: str
    edge: str
    ink: str
    linewidth: float
    corner: float
    strip: bool = False


KINDS = {
    "data": Kind("#ECECEC", "#8C8C8C", "black", 0.5, 0.12),
    "frozen": Kind("white", "#333333", "black", 0.8, 0.015, strip=True),
    "trained": Kind("#A84300", "black", "white", 1.6, 0.015),
    "decision": Kind("white", "black", "black", 1.2, 0.17),
}

# Left edge, width, heading.
COLUMNS = (
    (0.98, 0.94, "input"),
    (2.14, 0.86, "encoder"),
    (3.24, 1.24, "on the features"),
    (4.72, 0.96, "classifier"),
    (5.90, 0.78, "class"),
)
ROW, HEIGHT, STRIP = (
    0.50,
    0.35,
    0.075,
)  # distance of rows, height of a box, width of the hatched strip
MARGIN = 0.03  # above and below the boxes of a panel
BIG, TITLE, SMALL = 8.0, 7.5, 6.5  # points
DASHES = (0, (3, 1.6))  # the line of what happens once

X = Box("$x$", 0, 0, "data", "a test input")
F_M = Box("$f_m$", 1, 0, "frozen", "merged")
F_T = Box("$f_t$", 1, 1, "frozen", "fine-tuned")
TARGET = Box("$f_t(x)$", 2, 1, "data", "the target")
W_T = Box("$W_t$", 3, 0, "frozen", "fine-tuned")
LARGEST = Box("largest", 4, 0, "decision", "logit")
INTO = Arrow((0, 0), (1, 0))
OUT = Arrow((3, 0), (4, 0))
TEACH = (Arrow((0, 1), (1, 0), once=True), Arrow((0, 1), (1, 1), once=True))

PANELS = (
    Panel(
        "Current\nEval",
        "current",
        (X, F_M, W_T, LARGEST),
        (INTO, Arrow((1, 0), (3, 0), "$z$"), OUT),
        Facts("nothing", "0", "no", "nothing", "no"),
    ),
    Panel(
        "KNN\nEval",
        "knn",
        (
            X,
            F_M,
            Box("nearest class", 3, 0, "decision", "by mean distance to its anchors", span=2),
            Box("$k$ per class", 0, 1, "data", "labelled inputs"),
            Box("$f_m$", 1, 1, "frozen", "merged"),
            Box("anchors", 3, 1, "data", "stored features"),
        ),
        (
            INTO,
            Arrow((1, 0), (3, 0), "$z$"),
            Arrow((0, 1), (1, 1), once=True),
            Arrow((1, 1), (3, 1), once=True),
            Arrow((3, 1), (3, 0)),
        ),
        Facts(
            "nothing",
            "C·k anchors of d numbers, stored",
            "yes",
            "k labelled inputs per class, as anchors",
            "no",
        ),
    ),
    Panel(
        "Aligned\n$\\mathbfit{f_m}$",
        "",
        (
            X,
            F_M,
            Box("$G(z) = A\\,z + b$", 2, 0, "trained", "starts at random"),
            W_T,
            LARGEST,
            Box("all inputs", 0, 1, "data", "unlabelled"),
            F_T,
            TARGET,
        ),
        (
            INTO,
            Arrow((1, 0), (2, 0), "$z$"),
            Arrow((2, 0), (3, 0)),
            OUT,
            *TEACH,
            Arrow((1, 1), (2, 1), once=True),
            Arrow((2, 1), (2, 0), "L1 distance", once=True),
        ),
        Facts(
            "A, b",
            "d² + d",
            "no",
            "all inputs, unlabelled (the paper: of the test set)",
            "yes, its features",
        ),
    ),
    Panel(
        "FT-Classifier\nEval",
        "ft_classifier",
        (
            X,
            F_M,
            Box("$W_t'$", 3, 0, "trained", "starts at $W_t$"),
            LARGEST,
            Box("$k$ per class", 0, 1, "data", "unlabelled"),
            F_T,
            Box("$W_t$", 3, 1, "frozen", "fine-tuned"),
        ),
        (
            INTO,
            Arrow((1, 0), (3, 0), "$z$"),
            OUT,
            *TEACH,
            Arrow((1, 1), (3, 1), once=True),
            Arrow((3, 1), (3, 0), "KL divergence", once=True),
        ),
        Facts(
            "W′ and its bias, in place of W",
            "0",
            "only to balance a stratified draw",
            "k inputs per class, unlabelled",
            "yes, its logits",
        ),
    ),
    Panel(
        "Surgery",
        "surgery",
        (
            X,
            F_M,
            Box("$z - U\\,\\mathrm{ReLU}(D\\,z)$", 2, 0, "trained", "rank $r$, starts at $z$"),
            W_T,
            LARGEST,
            Box("few or all", 0, 1, "data", "unlabelled"),
            F_T,
            TARGET,
        ),
        (
            INTO,
            Arrow((1, 0), (2, 0), "$z$"),
            Arrow((2, 0), (3, 0)),
            OUT,
            *TEACH,
            Arrow((1, 1), (2, 1), once=True),
            Arrow((2, 1), (2, 0), "L1 distance", once=True),
        ),
        Facts(
            "U (up), D (down)",
            "2dr",
            "no",
            "k inputs per class to all, unlabelled",
            "yes, its features",
        ),
    ),
)


def protocol_table() -> pd.DataFrame:
    """A row per panel: what is trained and added, use of labels, inputs fitted on, need of f_t."""
    return pd.DataFrame(
        [
            {
                "protocol": panel.title.replace("\n", " ").replace("$\\mathbfit{f_m}$", "f_m"),
                "trained": panel.facts.trained,
                "extra parameters": panel.facts.extra_parameters,
                "uses labels": panel.facts.labels,
                "inputs for fitting": panel.facts.fitted_on,
                "needs f_t to fit": panel.facts.teacher,
            }
            for panel in PANELS
        ]
    )


def draw_protocols() -> Figure:
    """Figure 3: a strip per protocol; white, hatched boxes are frozen, dark ones are trained."""
    rows = [1 + max(box.row for box in panel.boxes) for panel in PANELS]
    heights = [ROW * n + 2 * MARGIN for n in rows]
    fig, axes = plt.subplots(
        len(PANELS),
        1,
        figsize=(PAGE, sum(heights) + 0.6),
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    fig.get_layout_engine().set(h_pad=0.03, w_pad=0.02, hspace=0, wspace=0)
    for i, (ax, panel, height) in enumerate(zip(axes, PANELS, heights, strict=True)):
        ax.set(xlim=(0, PAGE), ylim=(-height, 0))
        ax.axis("off")
        _draw_panel(ax, panel, "abcde"[i])
        if i:
            ax.axhline(
                0.03, color="0.75", linewidth=0.5, clip_on=False
            )  # half-way between two strips
    for left, width, heading in COLUMNS:
        axes[0].annotate(
            heading,
            (left + width / 2, 0),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=SMALL + 0.5,
            color="0.3",
        )
    fig.legend(
        handles=list(_legend()),
        loc="outside lower center",
        ncols=6,
        fontsize=SMALL + 0.5,
        frameon=False,
        handlelength=2.2,
        handleheight=1.1,
        columnspacing=1.6,
        handler_map={Patch: _BoxHandler()},
    )
    return fig


def alt() -> str:
    """Alt text of Figure 3."""
    return (
        "Five schematics in which the merged encoder is always frozen: (a) Current Eval also "
        "freezes the classifier and (b) KNN Eval replaces it by stored labelled anchors, so both "
        "train nothing; (c) Aligned f_m trains an affine map of the features and (e) Surgery a "
        "low-rank correction of them, each before the frozen classifier and towards the fine-tuned "
        "features; (d) FT-Classifier Eval trains the classifier alone, towards the fine-tuned "
        "model's predictions."
    )


def _centre(box: Box) -> tuple[float, float, float]:
    """Centre of a box and its width."""
    left = COLUMNS[box.column][0]
    last = COLUMNS[box.column + box.span - 1]
    return (left + last[0] + last[1]) / 2, -MARGIN - ROW * (box.row + 0.5), last[0] + last[1] - left


def _draw_panel(ax: Axes, panel: Panel, letter: str) -> None:
    """Title, boxes and arrows of one strip."""
    upper, lower = (sum(ax.get_ylim()) / 2 + lift for lift in (0.075, -0.075))
    ax.text(0.0, upper, f"({letter})", fontsize=TITLE, va="center")
    for y, line in zip((upper, lower), panel.title.split("\n"), strict=False):
        ax.text(0.19, y, line, fontsize=TITLE, fontweight="bold", va="center")
    if panel.style:
        style = {
            key: value for key, value in PROTOCOL_STYLE[panel.style].items() if key != "linestyle"
        }
        ax.plot([0.09], [lower], linestyle="none", markersize=4.5, **style)
    places = {(box.column, box.row): box for box in panel.boxes}
    for box in panel.boxes:
        _draw_box(ax, box)
    for arrow in panel.arrows:
        _draw_arrow(ax, arrow, places[arrow.start], places[arrow.end])


def _draw_box(ax: Axes, box: Box) -> None:
    kind = KINDS[box.kind]
    x, y, width = _centre(box)
    left, bottom = x - width / 2, y - HEIGHT / 2
    ax.add_patch(_rounded(left, bottom, width, HEIGHT, kind, kind.corner))
    if kind.strip:
        ax.add_patch(_strip(left, bottom, STRIP, HEIGHT, kind))
        x += STRIP / 2
    lift = 0.065 if box.note else 0
    ax.text(x, y + lift, box.text, fontsize=BIG, color=kind.ink, ha="center", va="center", zorder=4)
    if box.note:
        ax.text(
            x,
            y - 0.085,
            box.note,
            fontsize=SMALL,
            color=kind.ink,
            ha="center",
            va="center",
            zorder=4,
        )


def _rounded(
    x: float, y: float, width: float, height: float, kind: Kind, corner: float
) -> FancyBboxPatch:
    return FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle=f"round,pad=0,rounding_size={corner}",
        facecolor=kind.face,
        edgecolor=kind.edge,
        linewidth=kind.linewidth,
        zorder=2,
    )


def _strip(x: float, y: float, width: float, height: float, kind: Kind) -> Rectangle:
    """The mark of a frozen box, so that it is told from a white one in any print."""
    return Rectangle(
        (x, y),
        width,
        height,
        facecolor="white",
        edgecolor=kind.edge,
        linewidth=0.5,
        hatch="////////",
        zorder=3,
    )


def _draw_arrow(ax: Axes, arrow: Arrow, start: Box, end: Box) -> None:
    (x0, y0, width0), (x1, y1, width1) = _centre(start), _centre(end)
    if start.column == end.column:
        tail, head = (x0, y0 + HEIGHT / 2), (x0, y1 - HEIGHT / 2)
        label = {"xy": (x0 + 0.05, (tail[1] + head[1]) / 2), "ha": "left", "va": "center"}
    else:
        slope = 0.07 if y1 > y0 else 0  # an arrow from the lower row leaves high and arrives low
        tail, head = (x0 + width0 / 2, y0 + slope), (x1 - width1 / 2, y1 - slope)
        label = {"xy": (tail[0] + 0.1, y0 + 0.03), "ha": "center", "va": "bottom"}
    ax.add_patch(
        FancyArrowPatch(
            tail,
            head,
            arrowstyle="-|>,head_length=2.6,head_width=1.4",
            mutation_scale=1.4,
            shrinkA=0,
            shrinkB=0.6,
            color="black",
            linewidth=0.8,
            linestyle=DASHES if arrow.once else "-",
            zorder=1,
        )
    )
    if arrow.label:
        ax.annotate(arrow.label, label.pop("xy"), fontsize=SMALL, **label)


class _BoxHandler(HandlerBase):
    """A small box of the kind that the handle's label names."""

    def create_artists(
        self, legend, orig_handle, xdescent, ydescent, width, height, fontsize, trans
    ) -> list[Patch]:
        """As matplotlib calls it; lengths are in points here."""
        kind, x, y = KINDS[orig_handle.get_label()], -xdescent, -ydescent
        artists = [_rounded(x, y, width, height, kind, corner=min(72 * kind.corner, height / 2))]
        if kind.strip:
            artists.append(_strip(x, y, 72 * STRIP, height, kind))
        for artist in artists:
            artist.set_transform(trans)
        return artists


def _legend() -> Iterator[Patch | Line2D]:
    for name in KINDS:
        yield Patch(label=name)
    yield Line2D([], [], color="black", linewidth=0.8, label="for every test input")
    yield Line2D([], [], color="black", linewidth=0.8, linestyle=DASHES, label="once, beforehand")
