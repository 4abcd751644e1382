"""Pictures of the toy: frames, sliders that redraw one, and the lesson's summary. Sliders have a
static twin for pages without a kernel."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..figures import PAGE, PROTOCOL_STYLE
from ..protocols import PROTOCOLS, current_eval, fit_heads
from ..study import FINE_TUNED
from ..tables import average_of, protocol_label, short_label
from ..types import Head, State, percent
from .toy import CLASSES, RADIUS, SPREAD, Toy, make_toy, turned_by

# A class is a marker and a grey as well as a hue; what the classifier gets wrong is hollow.
CLASS_STYLE = (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#882255", "D"))
LIMIT = RADIUS + 3 * SPREAD
TASKS = tuple(CLASSES)
LAMS, ANGLES = (0.0, 1.0, 0.1), (0, 140, 10)  # least, greatest, step of the sliders
STILLS = (
    (80, 0.5),
    (20, 0.5),
    (80, 0.2),
    (80, 0.8),
)  # (angle, lambda) of the frames on a static page


def score_toy(toy: Toy, lam: float, k: int = 5) -> pd.DataFrame:
    """A row per task of the merge at ``lam``: turn against f_t in degrees, accuracies in percent of
    f_t, of f_m under Current Eval and, with k inputs per class, under FT-Classifier Eval."""
    merged, rows = toy.merge(lam), []
    for task in TASKS:
        seen, expert, labels = toy.evidence(merged, task, k), toy.expert(task), toy.labels(task)
        own = toy.features(expert.state, task)
        row = {
            "task": task,
            "turn (degrees)": turned_by(seen.student_test, own),
            short_label(FINE_TUNED): percent(current_eval(own, expert.head) == labels),
        }
        for protocol in ("current", "ft_classifier"):
            row[protocol_label(protocol)] = percent(
                PROTOCOLS[protocol].function(seen)[0, 0] == labels
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _draw_weights(ax: Axes, toy: Toy, lam: float) -> None:
    """Encoders as points of the plane: theta's first column, which for a turn and a stretch says
    all."""

    def at(state: State) -> np.ndarray:
        return state["theta"][:, 0].numpy()

    merged = at(toy.merge(lam))
    circle = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(circle), np.sin(circle), color="0.8", linewidth=0.8)
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
        arrowprops={"arrowstyle": "->", "color": "#D55E00", "linewidth": 1.6},
    )
    ax.plot(*merged, marker="*", color="#D55E00", markersize=8, linestyle="none")
    ax.annotate(
        "$f_m$",
        merged,
        xytext=(-9, -9),
        textcoords="offset points",
        ha="center",
        va="center",
        color="#D55E00",
    )
    _square(ax, 1.5, rf"weights: A's turn {toy.angle:.0f}°, $\lambda$ = {lam:.1f}")


def _square(ax: Axes, limit: float, title: str) -> None:
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_title(title)


def _draw_head(ax: Axes, head: Head, linestyle: str, colour: str) -> None:
    """Where two classes tie (lines), and where each class's vector points (its marker on the
    rim)."""
    theta = torch.linspace(0, 2 * torch.pi, 1441)
    rim = LIMIT * torch.stack([theta.cos(), theta.sin()], dim=-1)
    winner = current_eval(rim, head)
    for i in (winner[1:] != winner[:-1]).nonzero().flatten().tolist():
        # No bias worth a bend: the line between two classes is drawn straight from the origin.
        ax.plot(
            [0, rim[i, 0]],
            [0, rim[i, 1]],
            linestyle=linestyle,
            color=colour,
            linewidth=1.2,
            zorder=1,
        )
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


def _draw_features(
    ax: Axes, z: Tensor, labels: Tensor, head: Head, title: str, *, fitted: bool = False
) -> None:
    """Features ``[N, 2]`` by class, hollow where ``head`` is wrong, and the head itself."""
    right = current_eval(z, head) == labels
    _draw_head(ax, head, "-" if fitted else "--", "black" if fitted else "0.45")
    for c, (hue, marker) in enumerate(CLASS_STYLE[: len(head.weight)]):
        for mine, face in ((right, hue), (~right, "none")):
            points = z[(labels == c) & mine]
            ax.scatter(
                points[:, 0],
                points[:, 1],
                s=9,
                marker=marker,
                facecolors=face,
                edgecolors=hue,
                linewidths=0.7,
                zorder=2,
                clip_on=False,
            )
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


def draw_frames(settings: Sequence[tuple[float, float]], *, k: int | None = None) -> Figure:
    """A row per (angle, lambda): the weights, then task A's and B's merged features with the old
    head W_t, or with the head that FT-Classifier fits to k inputs per class. Hollow markers are
    classified wrongly."""
    fig, axes = plt.subplots(len(settings), 3, figsize=(PAGE, 2.25 * len(settings)), squeeze=False)
    for row, (angle, lam) in zip(axes, settings, strict=True):
        toy = make_toy(angle)
        _draw_weights(row[0], toy, lam)
        for ax, task in zip(row[1:], TASKS, strict=True):
            _draw_task(ax, toy, lam, task, k)
    return fig


def _png(fig: Figure) -> str:
    """A figure as base64 text; it is closed."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    plt.close(fig)
    return base64.b64encode(buffer.getvalue()).decode()


def describe(angle: float, lam: float, k: int | None = None) -> str:
    """Alt text of one frame, from the numbers themselves."""
    protocol = protocol_label("ft_classifier" if k else "current")
    said = [
        f"task {r['task']}: features turned by {r['turn (degrees)']:.0f} degrees, {protocol} "
        f"{r[protocol]:.0f} %"
        for _, r in score_toy(make_toy(angle), lam, k or 1).iterrows()
    ]
    return f"A's turn {angle:.0f} degrees, lambda {lam:.1f}. {'; '.join(said)}."


class Explorer(widgets.VBox):
    """A slider for the angle, one for lambda, and a frame that follows them.

    Its output carries a static picture of a few frames as well: that is what a notebook shows where
    no kernel runs.
    """

    def __init__(self, k: int | None = None, stills: Sequence[tuple[float, float]] = STILLS):
        self.k, self.stills = k, tuple(stills)
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
        picture = _png(draw_frames([(angle, lam)], k=self.k))
        alt = html.escape(describe(angle, lam, self.k), quote=True)
        self.picture.value = (
            f'<img style="max-width: 100%" alt="{alt}" src="data:image/png;base64,{picture}">'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        said = "\n".join(describe(*still, self.k) for still in self.stills)
        static = {"text/plain": said, "image/png": _png(draw_frames(self.stills, k=self.k))}
        return super()._repr_mimebundle_(**kwargs) | static, {"image/png": {"alt": said}}


def explore(k: int | None = None, stills: Sequence[tuple[float, float]] = STILLS) -> Explorer:
    """Sliders for the angle and lambda of the toy. ``k`` shows FT-Classifier's head for k inputs
    per class, else the old one. ``stills`` are the (angle, lambda) of the frames that a static page
    shows; the sliders start at the first."""
    return Explorer(k, stills)


def alt_summary(
    table: pd.DataFrame, task: str, summary: pd.DataFrame, encoders: Sequence[str], *, k: int
) -> str:
    """Alt text of ``draw_summary``, from the numbers themselves; ``table`` as of ``score_toy``."""
    row = table.set_index("task").loc[task]
    said = [
        f"{short_label(e)} {average_of(summary, e):.1f} under Current Eval and "
        f"{average_of(summary, e, 'ft_classifier', k):.1f} under "
        "FT-Classifier Eval"
        for e in encoders
    ]
    return (
        f"In the toy, merging turns the features of task {task} by {row['turn (degrees)']:.0f} "
        f"degrees against the old classifier, and accuracy "
        f"falls from {row[short_label(FINE_TUNED)]:.0f} to {row[protocol_label('current')]:.0f} "
        f"percent; re-aligned without labels, the "
        f"classifier reaches {row[protocol_label('ft_classifier')]:.0f}. Averages of "
        f"{summary.task.nunique() - 1} text tasks: fine-tuned models "
        f"{average_of(summary, FINE_TUNED):.1f}; {'; '.join(said)}."
    )


def draw_summary(
    toy: Toy, lam: float, task: str, summary: pd.DataFrame, encoders: Sequence[str], *, k: int
) -> Figure:
    """The lesson in four panels: the toy's task fine-tuned, merged with the old head, merged with
    the fitted head; and the average accuracies of real encoders, ``summary`` as of
    ``tables.mean_and_std``, under the same protocols."""
    fig, axes = plt.subplots(1, 4, figsize=(PAGE, 2.2), width_ratios=(1, 1, 1, 1.25))
    expert, merged, labels = toy.expert(task), toy.merge(lam), toy.labels(task)
    _draw_features(
        axes[0], toy.features(expert.state, task), labels, expert.head, f"$f_{task}$, own $W$:"
    )
    _draw_features(axes[1], toy.features(merged, task), labels, expert.head, "$f_m$, old $W$:")
    _draw_features(
        axes[2],
        toy.features(merged, task),
        labels,
        _refitted(toy, merged, task, k),
        "$f_m$, new $W$:",
        fitted=True,
    )
    bars = axes[3]
    bars.axhline(
        average_of(summary, FINE_TUNED),
        color="black",
        linestyle=":",
        linewidth=1.0,
        label="Fine-tuned models",
    )
    for i, protocol in enumerate(("current", "ft_classifier")):
        heights = [
            average_of(summary, e, protocol, None if protocol == "current" else k) for e in encoders
        ]
        drawn = bars.bar(
            np.arange(len(encoders)) + (i - 0.5) * 0.4,
            heights,
            0.4,
            label=protocol_label(protocol),
            edgecolor="black",
            linewidth=0.5,
            color=PROTOCOL_STYLE[protocol]["color"],
            hatch=("", "//")[i],
        )
        bars.bar_label(
            drawn,
            fmt="%.0f",
            fontsize=7,
            label_type="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    bars.set_xticks(range(len(encoders)), [short_label(e) for e in encoders])
    bars.set_ylabel("average accuracy (%)")
    bars.grid(axis="x", visible=False)
    handles = [
        Line2D([], [], color=c, linestyle=s, linewidth=1.2, label=label)
        for c, s, label in (
            ("0.45", "--", "old classifier"),
            ("black", "-", "re-aligned classifier"),
        )
    ]
    handles += [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            color="black",
            markersize=3.5,
            markerfacecolor=f,
            label=label,
        )
        for f, label in (("black", "right"), ("none", "wrong"))
    ]
    fig.legend(
        handles=[*handles, *bars.get_legend_handles_labels()[0]],
        loc="outside upper center",
        ncols=4,
    )
    return fig
