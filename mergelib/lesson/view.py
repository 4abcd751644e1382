"""Pictures of the toy: frames, sliders that redraw one, and the lesson's summary. The sliders also
leave static pictures, for pages without a kernel."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..core.names import FINE_TUNED
from ..core.types import Head, State, percent
from ..figures import plots
from ..figures.style import CLASS_COLOURS, CLASS_MARKERS, OTHER_STYLES, PAGE, PROTOCOL_STYLE
from ..protocols import PROTOCOLS, current_eval, fit_heads
from ..tables import average_of, protocol_label, short_label
from .toy import CLASSES, RADIUS, SPREAD, Toy, make_toy, turned_by

# Classes differ in marker and lightness as well as in hue; misclassified points are hollow.
CLASS_STYLE = tuple(zip(CLASS_COLOURS, CLASS_MARKERS, strict=False))
# colours of the classifiers, as in every figure
OLD, NEW = PROTOCOL_STYLE["current"], PROTOCOL_STYLE["ft_classifier"]
MERGED = OTHER_STYLES[0]["color"]
LIMIT = RADIUS + 3 * SPREAD
TASKS = tuple(CLASSES)
LAMS, ANGLES = (0.0, 1.0, 0.1), (0, 140, 10)  # minimum, maximum and step of the sliders
STILLS = ((80, 0.5), (80, 0.2))  # (angle, lambda) of the frames on a static page


def score_toy(toy: Toy, lam: float, k: int = 5) -> pd.DataFrame:
    """A row per task of the merge at ``lam``: turn against f_t in degrees (not where f_B mirrors),
    accuracies in percent of f_t, of f_m under Current Eval and, with k inputs per class, under
    FT-Classifier Eval, and the ``best possible`` of any classifier on f_m's features."""
    merged, rows = toy.merge(lam), []
    for task in TASKS:
        seen, expert, labels = toy.evidence(merged, task, k), toy.expert(task), toy.labels(task)
        own = toy.features(expert.state, task)
        row: dict[str, Any] = {"task": task}
        if not toy.mirrored:
            row["turn (degrees)"] = turned_by(seen.student_test, own)
        row[short_label(FINE_TUNED)] = percent(current_eval(own, expert.head) == labels)
        for protocol in ("current", "ft_classifier"):
            row[protocol_label(protocol)] = percent(
                PROTOCOLS[protocol].function(seen)[0, 0] == labels
            )
        row["best possible"] = toy.ceiling(merged, task)
        rows.append(row)
    return pd.DataFrame(rows)


def _draw_weights(ax: Axes, toy: Toy, lam: float) -> None:
    """Where each encoder sends (1, 0), which is theta's first column, and f_m's image of the
    circle."""

    def at(state: State) -> np.ndarray:
        return state["theta"][:, 0].numpy()

    theta_m = toy.merge(lam)
    merged = at(theta_m)
    angles = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    ax.plot(*circle, color="0.8", linewidth=0.8)
    ax.plot(*(theta_m["theta"].numpy() @ circle), color=MERGED, linewidth=0.9, alpha=0.6)
    places = {"f_b": at(toy.base), **{f"f_{e.task}": at(e.state) for e in toy.experts}}
    for name, place in places.items():
        if name != "f_b":
            ax.annotate(
                "",
                place,
                places["f_b"],
                arrowprops={"arrowstyle": "->", "color": "0.4", "linewidth": 0.9},
            )
        ax.plot(*place, marker="o", color="black", markersize=4)
        ax.annotate(f"${name}$", 1.25 * place, ha="center", va="center")
    ax.annotate(
        "",
        merged,
        places["f_b"],
        arrowprops={"arrowstyle": "->", "color": MERGED, "linewidth": 1.6},
    )
    ax.plot(*merged, marker="*", color=MERGED, markersize=8, linestyle="none")
    ax.annotate(
        "$f_m$",
        merged,
        xytext=(-9, -9),
        textcoords="offset points",
        ha="center",
        va="center",
        color=MERGED,
    )
    mirrored = ", B mirrors" if toy.mirrored else ""
    _square(ax, 1.5, rf"A turns {toy.angle:.0f}°{mirrored}, $\lambda$ = {lam:.1f}")


def _square(ax: Axes, limit: float, title: str) -> None:
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


def tie_lines(head: Head, reach: float = LIMIT) -> list[Tensor]:
    """The lines where two classes tie and no third wins: ``[n, 2]`` per pair, NaN beyond their
    ends."""
    W, b = head.weight.double(), head.bias.double()
    along, lines = torch.linspace(-reach, reach, 801).double(), []
    for i, j in itertools.combinations(range(len(W)), 2):
        normal, offset = W[i] - W[j], b[i] - b[j]
        foot = -offset * normal / normal.square().sum()
        across = torch.stack([-normal[1], normal[0]]) / normal.norm()
        line = foot + along[:, None] * across
        logits = line @ W.mT + b
        tied = (logits.amax(-1) - logits[:, i] < 1e-6) & (line.norm(dim=-1) < reach)
        if tied.any():
            lines.append(line.masked_fill(~tied[:, None], torch.nan))
    return lines


def _draw_head(ax: Axes, head: Head, style: dict[str, Any]) -> None:
    """Draw where two classes tie (lines) and where each class vector points (its marker on the
    rim)."""
    for line in tie_lines(head):
        ax.plot(*line.mT, color=style["color"], linestyle=style["linestyle"], zorder=1)
    for c, vector in enumerate(head.weight):
        tip = 0.94 * LIMIT * vector / vector.norm()
        hue, marker = CLASS_STYLE[c]
        ax.plot(
            *tip.tolist(),
            marker=marker,
            color=hue,
            markersize=8,
            markeredgecolor="black",
            zorder=3,
            clip_on=False,
        )


def _draw_clouds(ax: Axes, z: Tensor, labels: Tensor, right: Tensor) -> None:
    """Draw the points ``[N, 2]`` of the first classes, hollow if misclassified."""
    for c, (hue, marker) in enumerate(CLASS_STYLE):
        for mine, face in ((right, hue), (~right, "none")):
            ax.scatter(
                *z[(labels == c) & mine].mT,
                s=9,
                marker=marker,
                facecolors=face,
                edgecolors=hue,
                linewidths=0.7,
                zorder=2,
                clip_on=False,
            )


def _draw_features(
    ax: Axes, z: Tensor, labels: Tensor, head: Head, title: str, *, fitted: bool = False
) -> None:
    """Draw features ``[N, 2]`` by class, hollow if ``head`` is wrong, and the head itself."""
    right = current_eval(z, head) == labels
    _draw_head(ax, head, NEW if fitted else OLD)
    _draw_clouds(ax, z, labels, right)
    _square(ax, 1.05 * LIMIT, f"{title} {percent(right):.0f} %")


def _draw_task(ax: Axes, toy: Toy, lam: float, task: str, k: int | None) -> None:
    merged, head = toy.merge(lam), toy.expert(task).head
    if k is not None:
        head = _refitted(toy, merged, task, k)
    _draw_features(
        ax,
        toy.features(merged, task),
        toy.labels(task),
        head,
        f"task {task}, {'new' if k else 'old'} $W$:",
        fitted=k is not None,
    )


def _refitted(toy: Toy, encoder: State, task: str, k: int) -> Head:
    batch = fit_heads(toy.evidence(encoder, task, k))[0]
    return Head(batch.weight[0], batch.bias[0])


def draw_frames(
    settings: Sequence[tuple[float, float]], *, k: int | None = None, mirrored: bool = False
) -> Figure:
    """A row per (angle, lambda): the weights, then task A's and B's merged features with the old
    head W_t, or with the head that FT-Classifier fits to k inputs per class. Hollow markers are
    classified wrongly. ``mirrored`` takes the toy whose f_B mirrors the plane."""
    fig, axes = plt.subplots(len(settings), 3, figsize=(PAGE, 2.25 * len(settings)), squeeze=False)
    for row, (angle, lam) in zip(axes, settings, strict=True):
        toy = make_toy(angle, mirrored)
        _draw_weights(row[0], toy, lam)
        for ax, task in zip(row[1:], TASKS, strict=True):
            _draw_task(ax, toy, lam, task, k)
    return fig


def _png(fig: Figure) -> str:
    """A figure as base64 text; closes the figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    plt.close(fig)
    return base64.b64encode(buffer.getvalue()).decode()


def describe(angle: float, lam: float, k: int | None = None, mirrored: bool = False) -> str:
    """Alt text of one frame, from the numbers themselves."""
    protocol = protocol_label("ft_classifier" if k else "current")
    said = [
        f"task {row['task']}: "
        + ("" if mirrored else f"features turned by {row['turn (degrees)']:.0f} degrees, ")
        + f"{protocol} {row[protocol]:.0f} %, best possible {row['best possible']:.0f} %"
        for _, row in score_toy(make_toy(angle, mirrored), lam, k or 1).iterrows()
    ]
    mirror = ", B mirrors" if mirrored else ""
    return f"A's turn {angle:.0f} degrees{mirror}, lambda {lam:.1f}. {'; '.join(said)}."


class Explorer(widgets.VBox):
    """A slider for the angle, one for lambda, and a frame that follows them.

    Its output also holds a static picture of a few frames, which a notebook shows when no kernel
    runs.
    """

    def __init__(
        self,
        k: int | None = None,
        stills: Sequence[tuple[float, float]] = STILLS,
        mirrored: bool = False,
    ):
        self.stills, self.world = tuple(stills), {"k": k, "mirrored": mirrored}
        angle, lam = self.stills[0]
        wide = {"style": {"description_width": "9em"}, "layout": widgets.Layout(width="34em")}
        low, high, step = ANGLES
        self.angle = widgets.IntSlider(
            angle, low, high, step, description="A's turn (degrees)", **wide
        )
        low, high, step = LAMS
        self.lam = widgets.FloatSlider(
            lam, min=low, max=high, step=step, description="lambda", readout_format=".1f", **wide
        )
        self.picture = widgets.HTML()
        super().__init__([self.angle, self.lam, self.picture])
        self.angle.observe(self.redraw, "value")
        self.lam.observe(self.redraw, "value")
        self.redraw()

    def redraw(self, change: Any = None) -> None:
        """Draw the frame of the sliders' values."""
        angle, lam = self.angle.value, self.lam.value
        picture = _png(draw_frames([(angle, lam)], **self.world))
        alt = html.escape(describe(angle, lam, **self.world), quote=True)
        self.picture.value = (
            f'<img style="max-width: 100%" alt="{alt}" src="data:image/png;base64,{picture}">'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        said = "\n".join(describe(*still, **self.world) for still in self.stills)
        static = {"text/plain": said, "image/png": _png(draw_frames(self.stills, **self.world))}
        return super()._repr_mimebundle_(**kwargs) | static, {"image/png": {"alt": said}}


def explore(
    k: int | None = None,
    stills: Sequence[tuple[float, float]] = STILLS,
    mirrored: bool = False,
) -> Explorer:
    """Sliders for the angle and lambda of the toy. ``k`` shows FT-Classifier's head for k inputs
    per class, else the old one; ``mirrored`` the toy whose f_B mirrors the plane. ``stills`` are
    the (angle, lambda) of the frames that a static page shows; the sliders start at the first."""
    return Explorer(k, stills, mirrored)


def draw_real(
    features: Mapping[str, Tensor], labels: Tensor, head: Head, reference: str, finding: str = ""
) -> Figure:
    """Features of several encoders in one plane, a panel each, hollow if ``head`` is wrong.

    Args:
        features: Panel -> the same inputs' features ``[N, d]``.
        labels: Classes ``[N]``; the first four are drawn, accuracies count all.
        head: The classifier ``[C, d]`` for all panels.
        reference: The panel whose first two principal components, of the classes drawn, span the
            plane.
        finding: The finding, written above the panels.
    """
    drawn = labels < len(CLASS_STYLE)
    centre = features[reference][drawn].mean(0)
    plane = torch.linalg.svd(features[reference][drawn] - centre, full_matrices=False)[2][:2]
    flat = {name: (z - centre) @ plane.mT for name, z in features.items()}
    corners = torch.cat([points[drawn] for points in flat.values()])
    fig, axes = plt.subplots(1, len(features), figsize=(PAGE, 2.2), squeeze=False)
    for ax, (name, points) in zip(axes[0], flat.items(), strict=True):
        right = current_eval(features[name], head) == labels
        _draw_clouds(ax, points, labels, right)
        _square(ax, 1.0, f"{name}: {percent(right):.0f} %")
        ax.set(
            **{
                f"{a}lim": (corners[:, i].min().item(), corners[:, i].max().item())
                for i, a in enumerate("xy")
            }
        )
    fig.suptitle(finding, x=0.01, ha="left", weight="bold", size=10)
    return fig


def alt_summary(
    intact: pd.DataFrame,
    destroyed: pd.DataFrame,
    task: str,
    summary: pd.DataFrame,
    encoders: Sequence[str],
    *,
    k: int,
) -> str:
    """Alt text of ``draw_summary``, from the numbers themselves; the first two are ``score_toy`` of
    its two toys."""
    turned, lost = (table.set_index("task").loc[task] for table in (intact, destroyed))
    current, fitted = (protocol_label(p) for p in ("current", "ft_classifier"))
    said = [
        f"{short_label(e)} {average_of(summary, e):.1f} under Current Eval and "
        f"{average_of(summary, e, 'ft_classifier', k):.1f} under FT-Classifier Eval"
        for e in encoders
    ]
    return (
        f"In the toy, merging turns the features of task {task} by "
        f"{turned['turn (degrees)']:.0f} degrees against the old classifier, which then gets "
        f"{turned[current]:.0f} percent right; re-aligned without labels it gets "
        f"{turned[fitted]:.0f}. Where the other expert mirrors the plane, the merge presses it "
        f"onto a line, and the re-aligned classifier stays at {lost[fitted]:.0f}. Averages of "
        f"{summary.task.nunique() - 1} text tasks: fine-tuned models "
        f"{average_of(summary, FINE_TUNED):.1f}; {'; '.join(said)}."
    )


def draw_summary(
    intact: tuple[Toy, float],
    destroyed: tuple[Toy, float],
    task: str,
    summary: pd.DataFrame,
    encoders: Sequence[str],
    *,
    k: int,
) -> Figure:
    """The lesson in four panels: a toy and lambda whose merged features are intact, behind the old
    and the re-aligned head; one where they are destroyed; and the average accuracies of real
    encoders, ``summary`` as of ``tables.mean_and_std``, under the same protocols."""
    fig, axes = plt.subplots(1, 4, figsize=(PAGE, 2.6), width_ratios=(1, 1, 1, 1.2))
    for ax, (toy, lam), fitted, title in zip(
        axes,
        (intact, intact, destroyed),
        (False, True, True),
        ("misaligned:", "re-aligned:", "destroyed:"),
        strict=False,
    ):
        merged = toy.merge(lam)
        head = _refitted(toy, merged, task, k) if fitted else toy.expert(task).head
        z, labels = toy.features(merged, task), toy.labels(task)
        _draw_features(ax, z, labels, head, title, fitted=fitted)
    bars, top = axes[3], average_of(summary, FINE_TUNED)
    bars.axhline(top, color="black", linestyle=":", linewidth=1.0)
    bars.text(-0.45, top + 1.5, f"fine-tuned models: {top:.0f}", fontsize=9)
    for i, (protocol, style) in enumerate((("current", OLD), ("ft_classifier", NEW))):
        heights = [
            average_of(summary, e, protocol, None if protocol == "current" else k) for e in encoders
        ]
        places = np.arange(len(encoders)) + (i - 0.5) * 0.4
        drawn = bars.bar(places, heights, 0.4, color=style["color"])
        colour = ("black", "white")[i]
        bars.bar_label(drawn, fmt="%.0f", label_type="center", fontsize=9, color=colour)
    bars.set_xticks(range(len(encoders)), [short_label(e) for e in encoders])
    bars.set_ylim(0, 100)
    bars.set_title("BERT: accuracy (%)")
    bars.grid(axis="x", visible=False)
    for style, label in ((OLD, "old classifier"), (NEW, "re-aligned classifier")):
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 3}
        bars.plot([], [], label=label, **line)
    hollow = {"linestyle": "none", "marker": "o", "color": "black", "markerfacecolor": "none"}
    bars.plot([], [], markersize=4, label="classified wrongly", **hollow)
    old, new = (
        average_of(summary, encoders[-1]),
        average_of(summary, encoders[-1], "ft_classifier", k),
    )
    title = f"Of the {top - old:.0f} points that {short_label(encoders[-1])} loses, a re-aligned "
    plots.head(fig, f"{title}classifier regains {new - old:.0f}", [bars], 3)
    return fig
