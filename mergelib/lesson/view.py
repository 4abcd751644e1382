"""Pictures of the toy: frames, sliders that redraw one, and the lesson's summary. The sliders also
leave static pictures, for pages without a kernel."""

from __future__ import annotations

import base64
import html
import io
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
from ..core.types import Head, percent
from ..figures import plots
from ..figures.style import CLASS_COLOURS, CLASS_MARKERS, OTHER_STYLES, PAGE, PROTOCOL_STYLE, Style
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
ANGLES = (0, 140, 10)  # minimum, maximum and step of the slider
MIRRORS = ", B mirrors"
STILLS = ((80, 0.5), (80, 0.2))  # (angle, lambda) of the frames on a static page


def score_toy(toy: Toy, lam: float, k: int = 5) -> pd.DataFrame:
    """A row per task of the merge at ``lam``: turn against f_t in degrees (not where f_B mirrors),
    accuracies in percent of f_t, of f_m under Current Eval and, with k inputs per class, under
    FT-Classifier Eval, and the ``best possible`` of any classifier on f_m's features."""
    merged, rows = toy.merge(lam), []
    for task in TASKS:
        evidence, expert, labels = toy.evidence(merged, task, k), toy.expert(task), toy.labels(task)
        outputs = toy.features(expert.state, task)
        row = {"task": task}
        if not toy.mirrored:
            row["turn (degrees)"] = turned_by(evidence.student_test, outputs)
        row[short_label(FINE_TUNED)] = percent(current_eval(outputs, expert.head) == labels)
        for protocol in ("current", "ft_classifier"):
            row[protocol_label(protocol)] = percent(
                PROTOCOLS[protocol].function(evidence)[0, 0] == labels
            )
        row["best possible"] = toy.ceiling(merged, task)
        rows.append(row)
    return pd.DataFrame(rows)


def _draw_weights(ax: Axes, toy: Toy, lam: float) -> None:
    """Where each encoder sends (1, 0), which is theta's first column, and f_m's image of the
    circle."""
    merged, angles = toy.merge(lam), np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    ax.plot(*circle, color="0.8", linewidth=0.8)
    ax.plot(*(merged["theta"].numpy() @ circle), color=MERGED, linewidth=0.9, alpha=0.6)
    start = toy.base["theta"][:, 0].tolist()
    ax.plot(*start, marker="o", color="black", markersize=4)
    ax.annotate("$f_b$", np.multiply(1.25, start), ha="center", va="center")
    experts = {f"f_{task}": expert.state for task, expert in toy.experts.items()}
    for name, state in {**experts, "f_m": merged}.items():
        marker, size, colour, grey, width = "o", 4, "black", "0.4", 0.9
        if name == "f_m":
            marker, size, colour, grey, width = "*", 8, MERGED, MERGED, 1.6
        end = state["theta"][:, 0].tolist()
        ax.annotate("", end, start, arrowprops=dict(arrowstyle="->", color=grey, linewidth=width))
        ax.plot(*end, marker=marker, color=colour, markersize=size)
        place = np.multiply(0.7 if name == "f_m" else 1.25, end)
        ax.annotate(f"${name}$", place, ha="center", va="center", color=colour)
    _square(ax, 1.5, rf"A turns {toy.angle:.0f}°{MIRRORS * toy.mirrored}, $\lambda$ = {lam:.1f}")


def _bare(ax: Axes, title: str) -> None:
    ax.set(aspect="equal", xticks=[], yticks=[], title=title)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _square(ax: Axes, limit: float, title: str) -> None:
    _bare(ax, title)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))


def _draw_head(ax: Axes, head: Head, style: Style) -> None:
    """Draw where two classes tie (lines) and where each class vector points (its marker on the
    rim)."""
    side = torch.linspace(-LIMIT, LIMIT, 600)
    points = torch.cartesian_prod(side, side)
    classes = current_eval(points, head).double()
    classes[points.norm(dim=-1) > LIMIT] = torch.nan
    ties = np.arange(len(head.bias) - 1) + 0.5
    ax.contour(
        side,
        side,
        classes.view(len(side), -1).mT,
        ties,
        colors=style["color"],
        linestyles=[style["linestyle"]],
        zorder=1,
    )
    for vector, (hue, marker) in zip(head.weight, CLASS_STYLE, strict=False):
        tip = 0.94 * LIMIT * vector / vector.norm()
        ax.plot(
            *tip.tolist(),
            marker=marker,
            markersize=8,
            markeredgecolor="black",
            color=hue,
            zorder=3,
            clip_on=False,
        )


def _draw_clouds(ax: Axes, z: Tensor, labels: Tensor, right: Tensor) -> None:
    """Draw the points ``[N, 2]`` of the first classes, hollow if misclassified."""
    for c, (hue, marker) in enumerate(CLASS_STYLE):
        for mask, face in ((right, hue), (~right, "none")):
            points = z[(labels == c) & mask].mT
            ax.scatter(
                *points,
                s=9,
                marker=marker,
                facecolors=face,
                edgecolors=hue,
                linewidths=0.7,
                zorder=2,
                clip_on=False,
            )


def _draw_task(ax: Axes, toy: Toy, lam: float, task: str, k: int | None, title: str) -> None:
    """Draw a task's merged features by class, hollow where the head is wrong, and the head: W_t, or
    what FT-Classifier fits to k inputs per class."""
    merged, head = toy.merge(lam), toy.expert(task).head
    if k:
        fitted = fit_heads(toy.evidence(merged, task, k))[0]
        head = Head(fitted.weight[0], fitted.bias[0])
    z, labels = toy.features(merged, task), toy.labels(task)
    right = current_eval(z, head) == labels
    _draw_head(ax, head, NEW if k else OLD)
    _draw_clouds(ax, z, labels, right)
    _square(ax, 1.05 * LIMIT, f"{title} {percent(right):.0f} %")


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
            _draw_task(ax, toy, lam, task, k, f"task {task}, {'new' if k else 'old'} $W$:")
    return fig


def _png(fig: Figure) -> str:
    """A figure as base64 text; closes the figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    plt.close(fig)
    return base64.b64encode(buffer.getvalue()).decode()


def describe(angle: float, lam: float, k: int | None = None, mirrored: bool = False) -> str:
    """Alt text of one frame, from the numbers themselves."""
    toy, protocol = make_toy(angle, mirrored), protocol_label("ft_classifier" if k else "current")
    parts = [
        f"task {row['task']}: "
        + ("" if mirrored else f"features turned by {row['turn (degrees)']:.0f} degrees, ")
        + f"{protocol} {row[protocol]:.0f} %, best possible {row['best possible']:.0f} %"
        for _, row in score_toy(toy, lam, k or 1).iterrows()
    ]
    return (
        f"A's turn {angle:.0f} degrees{MIRRORS * mirrored}, lambda {lam:.1f}. {'; '.join(parts)}."
    )


class Explorer(widgets.VBox):
    """Sliders for the angle and lambda of the toy, and a frame that follows them.

    Its output also holds a static picture of a few frames, which a notebook shows when no kernel
    runs.

    Args:
        k: Show FT-Classifier's head for k inputs per class; without it, the old one.
        stills: The (angle, lambda) of the static frames; the sliders start at the first.
        mirrored: Show the toy whose f_B mirrors the plane.
    """

    def __init__(
        self,
        k: int | None = None,
        stills: Sequence[tuple[float, float]] = STILLS,
        mirrored: bool = False,
    ):
        self.stills, self.world = stills, {"k": k, "mirrored": mirrored}
        layout = {"style": {"description_width": "9em"}, "layout": widgets.Layout(width="34em")}
        angle, lam = self.stills[0]
        self.angle = widgets.IntSlider(angle, *ANGLES, description="A's turn (degrees)", **layout)
        self.lam = widgets.FloatSlider(
            lam, min=0.0, max=1.0, step=0.1, description="lambda", readout_format=".1f", **layout
        )
        self.picture = widgets.HTML()
        super().__init__([self.angle, self.lam, self.picture])
        for slider in (self.angle, self.lam):
            slider.observe(self.redraw, "value")
        self.redraw()

    def redraw(self, change: Any = None) -> None:
        """Draw the frame of the sliders' values."""
        frame = self.angle.value, self.lam.value
        alt = html.escape(describe(*frame, **self.world))
        picture = _png(draw_frames([frame], **self.world))
        self.picture.value = (
            f'<img style="max-width: 100%" alt="{alt}" src="data:image/png;base64,{picture}">'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        text = "\n".join(describe(*still, **self.world) for still in self.stills)
        static = {"text/plain": text, "image/png": _png(draw_frames(self.stills, **self.world))}
        return super()._repr_mimebundle_(**kwargs) | static, {"image/png": {"alt": text}}


explore = Explorer


def draw_real(
    features: Mapping[str, Tensor], labels: Tensor, head: Head, reference: str, finding: str
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
    mask = labels < len(CLASS_STYLE)
    centre = features[reference][mask].mean(0)
    plane = torch.linalg.svd(features[reference][mask] - centre, full_matrices=False)[2][:2]
    fig, axes = plt.subplots(1, len(features), figsize=(PAGE, 2.2), sharex=True, sharey=True)
    for ax, (name, z) in zip(np.ravel(axes), features.items(), strict=True):
        right = current_eval(z, head) == labels
        _draw_clouds(ax, (z - centre) @ plane.mT, labels, right)
        _bare(ax, f"{name}: {percent(right):.0f} %")
    plots.head(fig, finding)
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
    parts = [
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
        f"{average_of(summary, FINE_TUNED):.1f}; {'; '.join(parts)}."
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
    encoders under the same protocols.

    Args:
        intact, destroyed: A toy and lambda each.
        task: Of the toys.
        summary: As from ``tables.mean_and_std``.
        encoders: Real ones, a group of bars each; the title speaks of the last.
        k: Shots per class of the re-aligned heads.
    """
    fig, (*panels, bars) = plt.subplots(1, 4, figsize=(PAGE, 2.6), width_ratios=(1, 1, 1, 1.2))
    _draw_task(panels[0], *intact, task, None, "misaligned:")
    _draw_task(panels[1], *intact, task, k, "re-aligned:")
    _draw_task(panels[2], *destroyed, task, k, "destroyed:")
    colours = {"old classifier": OLD["color"], "re-aligned classifier": NEW["color"]}
    rows = [
        (short_label(e), head, average_of(summary, e, *protocol))
        for head, protocol in zip(colours, [("current",), ("ft_classifier", k)], strict=True)
        for e in encoders
    ]
    heights = pd.DataFrame(rows, columns=["encoder", "head", "accuracy"])
    plots.bars(bars, heights, "encoder", "head", colours)
    top = average_of(summary, FINE_TUNED)
    bars.axhline(top, color="black", linestyle=":", linewidth=1.0)
    bars.text(-0.45, top + 1.5, f"fine-tuned models: {top:.0f}", fontsize=9)
    bars.set(title="BERT: accuracy (%)", ylabel="")
    bars.plot([], [], "ok", markersize=4, markerfacecolor="none", label="classified wrongly")
    old, new = heights[heights.encoder == short_label(encoders[-1])].accuracy
    title = f"Of the {top - old:.0f} points that {short_label(encoders[-1])} loses, a re-aligned "
    plots.head(fig, f"{title}classifier regains {new - old:.0f}", 3)
    return fig
