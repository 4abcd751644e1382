"""One function per kind of figure: tidy scores in, a ``Figure`` out. Nothing here computes a result or shows a window."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..study import FINE_TUNED
from ..tables import (
    at_k,
    average_of,
    mean_and_std,
    protocol_label,
    short_label,
    task_label,
)
from .style import COLUMN, PAGE, PROTOCOL_STYLE, REPAIR_STYLE, WIDTHS, method_style, protocol_style


def plot_shots(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    task: str = "average",
    fine_tuned: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Accuracy against k, a panel per encoder: a line per few-shot protocol with its mean and standard deviation over
    seeds, Current Eval and the fine-tuned models as horizontal lines. ``task`` is a task's name or ``average``."""
    summary = mean_and_std(scores)
    summary = summary[summary.task == task]
    if axes is None:
        _, axes = plt.subplots(1, len(encoders), figsize=(PAGE, 2.4), sharey=True, squeeze=False)
        axes = axes[0]
    for ax, encoder in zip(axes, encoders, strict=True):
        mine = summary[summary.method == encoder]
        if fine_tuned is not None:
            ax.axhline(
                fine_tuned, color="black", linewidth=1.0, linestyle=":", label="Fine-tuned models"
            )
        for protocol in protocols:
            rows = mine[mine.protocol == protocol].sort_values("k")
            style = protocol_style(protocol)
            if rows.k.isna().all():
                ax.axhline(
                    rows["mean"].iloc[0],
                    label=protocol_label(protocol),
                    color=style["color"],
                    linestyle=style["linestyle"],
                )
                continue
            k, mean, std = (
                rows.k.astype(int).to_numpy(),
                rows["mean"].to_numpy(),
                rows["std"].to_numpy(),
            )
            ax.plot(k, mean, label=protocol_label(protocol), **style)
            ax.fill_between(
                k,
                mean - np.nan_to_num(std),
                mean + np.nan_to_num(std),
                color=style["color"],
                alpha=0.2,
                linewidth=0,
            )
        ax.set_xscale("log")
        drawn = mine[mine.protocol.isin(protocols)]
        everything = set(drawn[drawn.draw == "all"].k.dropna().astype(int))
        ks = sorted(drawn.k.dropna().astype(int).unique())
        ax.set_xticks(ks, ["all" if k in everything else str(k) for k in ks])
        ax.minorticks_off()
        ax.set_title(short_label(encoder))
        ax.set_xlabel("k, shots per class")
    axes[0].set_ylabel(
        "average accuracy (%)" if task == "average" else f"{task_label(task)} accuracy (%)"
    )
    _shared_legend(axes[0].figure, axes[0])
    return axes[0].figure


def plot_protocols(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    tasks: Sequence[str],
    *,
    k: int,
    references: Mapping[str, str] | None = None,
) -> Figure:
    """Accuracy per task and on average: a panel each, a row per encoder, a marker per protocol at k shots.

    ``references`` maps an encoder to a line style; its Current Eval accuracy is drawn as a vertical line."""
    summary = mean_and_std(at_k(scores, k))
    panels = [*tasks, "average"]
    fig, axes = plt.subplots(
        1, len(panels), figsize=(PAGE, 0.9 + 0.32 * len(encoders)), sharey=True
    )
    for ax, task in zip(axes, panels, strict=True):
        here = summary[summary.task == task]
        for encoder, linestyle in (references or {}).items():
            value = here[(here.method == encoder) & (here.protocol == "current")]["mean"]
            ax.axvline(
                value.iloc[0],
                color="black",
                linewidth=1.0,
                linestyle=linestyle,
                label=f"{short_label(encoder)} models"
                if encoder == FINE_TUNED
                else short_label(encoder),
            )
        for row, encoder in enumerate(encoders):
            for protocol in dict.fromkeys([*PROTOCOL_STYLE, *here.protocol]):
                cell = here[(here.method == encoder) & (here.protocol == protocol)]
                if cell.empty:
                    continue
                style = {
                    key: value
                    for key, value in protocol_style(protocol).items()
                    if key != "linestyle"
                }
                ax.errorbar(
                    cell["mean"].iloc[0],
                    row,
                    xerr=np.nan_to_num(cell["std"].iloc[0]),
                    linestyle="none",
                    elinewidth=1.0,
                    label=protocol_label(protocol),
                    **style,
                )
        ax.set_title(task_label(task))
        ax.set_yticks(range(len(encoders)), [short_label(e) for e in encoders])
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.18)
    axes[0].set_ylim(len(encoders) - 0.5, -0.5)
    fig.supxlabel("accuracy (%)", fontsize=8)
    _shared_legend(fig, axes[0])
    return fig


def plot_lam(curves: pd.DataFrame, chosen: Mapping[str, float]) -> Figure:
    """Mean validation accuracy under Current Eval against lambda, a line per method; the chosen value is ringed."""
    fig, ax = plt.subplots(figsize=(COLUMN, 2.2))
    for method, rows in curves.groupby("method", sort=False):
        mean = 100 * rows.groupby("lam").accuracy.mean()
        style = method_style(method)
        ax.plot(mean.index, mean.values, label=short_label(method), **style)
        ax.plot(
            [chosen[method]],
            [mean[chosen[method]]],
            marker="o",
            markersize=10,
            markerfacecolor="none",
            markeredgecolor=style["color"],
            linestyle="none",
        )
    ax.set_xlabel(r"$\lambda$")
    ax.set_ylabel("mean validation accuracy (%)")
    ax.legend()
    return fig


def plot_clusters(panels: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """t-SNE of f_t (blue circles) and f_m (red crosses) outputs together, a panel per (task, method), shade by label.

    Each panel needs ``points [2, n, 2]``, ``labels [n]``, ``accuracy`` (f_m under Current Eval, percent) and ``note`` (the
    numbers in R^d, written below the panel)."""
    fig, axes = _cluster_axes(panels, height=2.35)
    for at, panel in panels.items():
        ax, labels = axes[at], np.asarray(panel["labels"])
        shade = 0.35 + 0.6 * labels / max(1, labels.max())
        for points, colours, marker, size in zip(
            panel["points"], ("Blues", "Reds"), ("o", "x"), (7, 9), strict=True
        ):
            filled = {"linewidths": 0} if marker == "o" else {"linewidths": 0.7}
            ax.scatter(
                points[:, 0],
                points[:, 1],
                c=plt.get_cmap(colours)(shade),
                marker=marker,
                s=size,
                **filled,
            )
    legend = [
        Line2D([], [], linestyle="none", marker=m, color=c, label=l, markersize=4)
        for m, c, l in (
            ("o", "#2171B5", "fine-tuned outputs f_t (shade: label)"),
            ("x", "#CB181D", "merged outputs f_m"),
        )
    ]
    fig.legend(handles=legend, loc="outside upper center", ncols=2)
    return fig


def plot_class_clusters(panels: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """``plot_clusters`` for tasks of many classes: hue tells the class, around the wheel in the order of their labels; f_t's outputs are
    pale circles, f_m's crosses. Hues of neighbouring classes look alike: what counts is whether crosses of one hue lie together."""
    fig, axes = _cluster_axes(panels, height=2.2)
    for at, panel in panels.items():
        ax, labels = axes[at], np.asarray(panel["labels"])
        colours = plt.get_cmap("hsv")(labels / panel["classes"])
        colours[:, :3] *= 0.85  # pure yellow is lost on white
        tuned, merged = panel["points"]
        ax.scatter(tuned[:, 0], tuned[:, 1], c=colours, marker="o", s=9, alpha=0.3, linewidths=0)
        ax.scatter(merged[:, 0], merged[:, 1], c=colours, marker="x", s=9, linewidths=0.8)
    legend = [
        Line2D([], [], linestyle="none", marker=m, color="#404040", alpha=a, label=l, markersize=4)
        for m, a, l in (
            ("o", 0.4, "fine-tuned outputs f_t"),
            ("x", 1.0, "merged outputs f_m (hue: class)"),
        )
    ]
    fig.legend(handles=legend, loc="outside upper center", ncols=2)
    return fig


def _cluster_axes(
    panels: Mapping[tuple[str, str], Mapping[str, Any]], *, height: float
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A row per task, a column per method: the axes of each panel, titled and without ticks. ``height`` of a row in inches."""
    tasks = list(dict.fromkeys(task for task, _ in panels))
    methods = list(dict.fromkeys(method for _, method in panels))
    fig, grid = plt.subplots(
        len(tasks), len(methods), figsize=(PAGE, height * len(tasks)), squeeze=False
    )
    axes = {
        (task, method): grid[tasks.index(task)][methods.index(method)] for task, method in panels
    }
    for (task, method), ax in axes.items():
        panel = panels[task, method]
        ax.set_title(f"{task_label(task)}, {short_label(method)} ({panel['accuracy']:.1f} %)")
        ax.set_xlabel(panel["note"], fontsize=7)
        ax.set_xticks([])
        ax.set_yticks([])
    return fig, axes


def plot_contact_sheet(sheets: Mapping[str, tuple[Sequence[str], Any]], columns: int = 2) -> Figure:
    """Images with their class names, a block per task: ``sheets`` maps a task to the names of the rows and uint8 images
    ``[rows, each, 3, H, W]``."""
    lines = -(-len(sheets) // columns)
    most = max(len(names) for names, _ in sheets.values())
    fig, axes = plt.subplots(
        lines, columns, figsize=(PAGE, lines * (0.36 + 0.28 * most)), squeeze=False
    )
    for ax in axes.flat[len(sheets) :]:
        ax.set_axis_off()
    for ax, (task, (names, images)) in zip(axes.flat, sheets.items(), strict=False):
        images = np.asarray(images)
        rows, each, _, height, width = images.shape
        gap = max(1, height // 16)
        sheet = np.full(
            (rows * (height + gap) - gap, each * (width + gap) - gap, 3), 255, dtype=np.uint8
        )
        for r in range(rows):
            for i in range(each):
                sheet[
                    r * (height + gap) : r * (height + gap) + height,
                    i * (width + gap) : i * (width + gap) + width,
                ] = images[r, i].transpose(1, 2, 0)
        ax.imshow(sheet, interpolation="nearest")
        ax.set_yticks(
            [r * (height + gap) + height / 2 for r in range(rows)],
            [textwrap.fill(n, 18) for n in names],
            fontsize=6,
        )
        ax.set_xticks([])
        ax.tick_params(length=0)
        ax.set_title(task_label(task))
        ax.grid(visible=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
    return fig


def plot_shares(
    panels: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    counts: Mapping[float, str],
    *,
    too_few: float = 0.0,
) -> Figure:
    """Accuracy against the unlabelled share of the test set, a row per panel (title -> ``shares.mean_and_std``), a column per method.

    Few-shot protocols have two lines: inputs drawn from the test set (filled markers, with one standard deviation over seeds) and as many
    training inputs (dotted, open). Current Eval and the fine-tuned models are horizontal. ``counts``: share -> number of inputs, for the
    axis; up to the share ``too_few`` some task has more classes than inputs, which is shaded."""
    fig, axes = plt.subplots(
        len(panels),
        len(methods),
        figsize=(PAGE, 0.5 + 2.1 * len(panels)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, (title, summary) in zip(axes, panels.items(), strict=True):
        bound = summary[(summary.method == FINE_TUNED) & (summary.protocol == "current")][
            "mean"
        ].iloc[0]
        for ax, method in zip(row, methods, strict=True):
            mine = summary[summary.method == method]
            ax.axhline(
                bound, color="black", linewidth=1.0, linestyle=":", label="Fine-tuned models"
            )
            for protocol in dict.fromkeys(mine.protocol):
                style, rows = protocol_style(protocol), mine[mine.protocol == protocol]
                if rows.share.isna().all():
                    ax.axhline(
                        rows["mean"].iloc[0],
                        label=protocol_label(protocol),
                        color=style["color"],
                        linestyle=style["linestyle"],
                    )
                    continue
                for fit_on, lines in rows.sort_values("share").groupby("fit_on", sort=False):
                    share, mean, std = (lines[c].to_numpy() for c in ("share", "mean", "std"))
                    if fit_on == "test":
                        ax.plot(share, mean, label=protocol_label(protocol), **style)
                        ax.fill_between(
                            share,
                            mean - np.nan_to_num(std),
                            mean + np.nan_to_num(std),
                            color=style["color"],
                            alpha=0.2,
                            linewidth=0,
                        )
                    else:
                        ax.plot(
                            share,
                            mean,
                            label=f"{protocol_label(protocol)}, train inputs",
                            **style | {"linestyle": ":", "markerfacecolor": "white"},
                        )
            ax.set_xscale("log")
            ax.set_xticks(list(counts), [f"{s:g} %\n{n}" for s, n in counts.items()])
            ax.minorticks_off()
            if too_few:
                ax.axvspan(min(counts) / 1.3, too_few * 1.15, color="0.92", zorder=0)
            ax.set_xlim(min(counts) / 1.3, max(counts) * 1.3)
        row[0].set_ylabel(f"{textwrap.fill(title, 30)}\naverage accuracy (%)")
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(short_label(method))
    fig.supxlabel("share of the test set; inputs per task", fontsize=8)
    _shared_legend(fig, axes[0][0], columns=3)
    return fig


def plot_ladder(accuracies: pd.DataFrame, r2: pd.DataFrame, *, fine_tuned: float) -> Figure:
    """The ladder: average accuracy per rung (left), and what each step explains of f_t's variance (right).

    ``accuracies``: columns method, rung (a label), accuracy, std (over random starts), in drawing order. ``r2``: columns
    method, step, increment."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.9), width_ratios=(1.7, 1))
    rungs, methods = list(dict.fromkeys(accuracies.rung)), list(dict.fromkeys(accuracies.method))
    width = 0.8 / len(methods)
    left.axhline(fine_tuned, color="black", linestyle=":", linewidth=1.0, label="Fine-tuned models")
    for i, method in enumerate(methods):
        rows = accuracies[accuracies.method == method].set_index("rung").loc[rungs]
        x = np.arange(len(rungs)) + (i - (len(methods) - 1) / 2) * width
        left.bar(
            x,
            rows.accuracy,
            width,
            yerr=np.nan_to_num(rows["std"]),
            error_kw={"elinewidth": 0.8},
            label=short_label(method),
            color=method_style(method)["color"],
            edgecolor="black",
            linewidth=0.4,
            hatch=("", "//", "..", "xx")[i % 4],
        )
    left.set_xticks(range(len(rungs)), rungs, rotation=30, ha="right")
    left.set_ylabel("average accuracy (%)")
    left.grid(axis="x", visible=False)
    steps, methods = list(dict.fromkeys(r2.step)), list(dict.fromkeys(r2.method))
    bottom = np.zeros(len(methods))
    greys = plt.get_cmap("Greys")(np.linspace(0.15, 0.85, len(steps)))
    for i, step in enumerate(steps):
        values = r2[r2.step == step].set_index("method").loc[methods].increment.to_numpy()
        right.bar(
            range(len(methods)),
            values,
            bottom=bottom,
            label=step,
            color=greys[i],
            edgecolor="black",
            linewidth=0.4,
            hatch=("", "//", "..", "xx")[i % 4],
            width=0.7,
        )
        bottom += values
    right.axhline(1.0, color="black", linestyle=":", linewidth=1.0)
    right.set_xticks(range(len(methods)), [short_label(m) for m in methods])
    right.set_ylabel("held-out $R^2$ of $f_t$ beyond $f_t$'s mean")
    right.grid(axis="x", visible=False)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3)
    right.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.01), ncols=2)
    return fig


def plot_controls(rows: pd.DataFrame) -> Figure:
    """Accuracy by condition: a panel per fit, a line per encoder. Columns fit, condition, method, accuracy."""
    fits, conditions = list(dict.fromkeys(rows.fit)), list(dict.fromkeys(rows.condition))
    fig, axes = plt.subplots(1, len(fits), figsize=(PAGE, 2.7), sharey=True)
    for ax, fit in zip(axes, fits, strict=True):
        for method, mine in rows[rows.fit == fit].groupby("method", sort=False):
            mine = mine.set_index("condition").reindex(conditions)
            style = method_style(method)
            ax.plot(
                range(len(conditions)),
                mine.accuracy,
                color=style["color"],
                marker=style["marker"],
                label=short_label(method),
            )
        ax.set_title(
            fit.replace(", ", ",\n")
            .replace("Orthogonal classifier", "Orthogonal\nclassifier")
            .replace(" map", "\nmap")
        )
        ax.set_xticks(range(len(conditions)), conditions, rotation=30, ha="right")
    axes[0].set_ylabel("average accuracy (%)")
    _shared_legend(fig, axes[0])
    return fig


def plot_ranking(means: pd.DataFrame, fine_tuned: float, *, mark: float = 4) -> Figure:
    """Left: each method's rank under Current Eval and FT-Classifier Eval, those that move by ``mark`` ranks or more drawn in colour. Right: points missing to the fine-tuned models, a row per method, a marker per protocol. ``means`` as from ``ranking.means``."""
    ranks, gaps = means.rank(ascending=False), fine_tuned - means
    first, last = "current", "ft_classifier"
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(PAGE, 1.3 + 0.19 * len(gaps)), width_ratios=(1, 1.35)
    )
    ranks = ranks.rank(method="first")  # equal ranks would lie on one line
    up, down = (
        {"color": "#0072B2", "linestyle": "-", "linewidth": 1.6},
        {"color": "#D55E00", "linestyle": "--", "linewidth": 1.6},
    )
    for _, row in ranks.sort_values(last).iterrows():
        moved = row[first] - row[last]
        style = (
            up
            if moved >= mark
            else down
            if moved <= -mark
            else {"color": "#7F7F7F", "linewidth": 0.8}
        )
        left.plot([0, 1], [row[first], row[last]], marker="o", markersize=3, **style)
    for x, column, side in ((0, first, "right"), (1, last, "left")):
        for method, place in ranks[column].items():
            left.text(
                x + (-0.06 if x == 0 else 0.06),
                place,
                short_label(method),
                ha=side,
                va="center",
                fontsize=7,
            )
    left.set_xlim(-0.75, 1.75)
    left.set_ylim(len(ranks) + 0.6, 0.4)
    left.set_xticks([0, 1], ["rank under\nCurrent Eval", "rank under\nFT-Classifier Eval"])
    left.set_yticks([])
    left.grid(visible=False)
    for spine in left.spines.values():
        spine.set_visible(False)
    legend = [
        Line2D([], [], label=f"{word} by {mark:g} or more", **style)
        for word, style in (("up", up), ("down", down))
    ]
    left.legend(handles=legend, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1)
    for protocol in gaps:
        style = {k: v for k, v in protocol_style(protocol).items() if k != "linestyle"}
        right.plot(
            gaps[protocol],
            range(1, len(gaps) + 1),
            linestyle="none",
            label=protocol_label(protocol),
            **style,
        )
    right.axvline(0, color="black", linewidth=1.0, linestyle=":")
    right.set_yticks(range(1, len(gaps) + 1), [short_label(m) for m in gaps.index], fontsize=7)
    right.set_ylim(len(gaps) + 0.6, 0.4)
    right.set_xlabel("points below the fine-tuned models")
    right.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)
    return fig


def plot_cost(costs: pd.DataFrame, kinds: Mapping[str, str], apart: Sequence[str] = ()) -> Figure:
    """A row per method, the most accurate on top, the methods ``apart`` in a block of their own below a line: accuracy under FT-Classifier Eval, seconds and megabytes (both log) of a merge.
    ``kinds`` says per method what it needs, a marker each."""
    rows = costs.assign(below=costs.method.isin(apart)).sort_values(
        ["below", "ft_classifier"], ascending=[True, False], ignore_index=True
    )
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 1.1 + 0.19 * len(rows)), sharey=True)
    looks = zip(
        ("o", "s", "^", "D", "v", "P"),
        ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"),
        strict=True,
    )
    for kind, (marker, colour) in zip(dict.fromkeys(kinds.values()), looks, strict=False):
        mine = rows[rows.method.map(kinds) == kind]
        for ax, column in zip(axes, ("ft_classifier", "seconds", "peak_mb"), strict=True):
            ax.plot(
                mine[column],
                mine.index + 1,
                linestyle="none",
                marker=marker,
                color=colour,
                label=kind,
            )
    if rows.below.any():
        for ax in axes:
            ax.axhline((~rows.below).sum() + 0.5, color="black", linewidth=0.8)
    for ax, label in zip(
        axes,
        ("FT-Classifier accuracy (%)", "seconds for one merge", "peak MB of tensors"),
        strict=True,
    ):
        ax.set_xlabel(label)
    for ax, column in zip(axes[1:], ("seconds", "peak_mb"), strict=True):
        ax.set_xscale("log")
        wide = rows[column].max() > 30 * rows[column].min()
        ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_yticks(range(1, len(rows) + 1), [short_label(m) for m in rows.method], fontsize=7)
    axes[0].set_ylim(len(rows) + 0.6, 0.4)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def plot_non_locality(means: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """Average accuracy against non-locality: a panel per method, a line per repair (``labels``: repair -> name), the experts dotted. Columns
    setting, method, repair, accuracy, expert."""
    methods, settings = list(dict.fromkeys(means.method)), list(dict.fromkeys(means.setting))
    fig, axes = plt.subplots(1, len(methods), figsize=(PAGE, 2.6), sharey=True, squeeze=False)
    for ax, method in zip(axes[0], methods, strict=True):
        mine = means[means.method == method]
        ax.plot(
            range(len(settings)),
            mine.groupby("setting", sort=False).expert.first().loc[settings],
            color="black",
            linestyle=":",
            linewidth=1.0,
            label="experts",
        )
        for repair, rows in mine.groupby("repair", sort=False):
            ax.plot(
                range(len(settings)),
                rows.set_index("setting").accuracy.loc[settings],
                label=labels[repair],
                **REPAIR_STYLE[repair],
            )
        ax.set_title(short_label(method))
        ax.set_xticks(range(len(settings)), settings, rotation=30, ha="right")
        ax.margins(x=0.12)
    axes[0][0].set_ylabel("average accuracy (%)")
    _shared_legend(fig, axes[0][0], columns=4)
    return fig


def plot_variance(frame: pd.DataFrame) -> Figure:
    """Variance of merged activations over the experts', site by site: a panel per method, a line per stage. Columns method, stage, place,
    kind, block, ratio; the axis names the blocks, whose last site is marked."""
    methods = list(dict.fromkeys(frame.method))
    fig, axes = plt.subplots(1, len(methods), figsize=(PAGE, 2.5), sharey=True, squeeze=False)
    looks = (
        ("#000000", "-", "o"),
        ("#009E73", "-.", "D"),
        ("#D55E00", "--", "v"),
        ("#0072B2", (0, (5, 1)), "s"),
    )
    ends = (
        frame[frame.kind.isin(("embeddings", "block"))]
        .drop_duplicates("place")
        .sort_values("place")
    )
    for ax, method in zip(axes[0], methods, strict=True):
        ax.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        for (color, linestyle, marker), (stage, rows) in zip(
            looks, frame[frame.method == method].groupby("stage", sort=False), strict=False
        ):
            marked = [i for i, place in enumerate(rows.place) if place in set(ends.place)]
            ax.plot(
                rows.place,
                rows.ratio,
                color=color,
                linestyle=linestyle,
                marker=marker,
                markevery=marked,
                label=stage,
            )
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xticks(ends.place, ["emb." if b == 0 else str(b) for b in ends.block])
        ax.set_title(short_label(method))
        ax.set_xlabel("end of block")
    axes[0][0].set_ylabel("variance, merged over expert")
    _shared_legend(fig, axes[0][0], columns=4)
    return fig


def plot_samples(
    frame: pd.DataFrame, labels: Mapping[str, str], *, start: float, experts: float
) -> Figure:
    """Average accuracy against unlabelled inputs per task, a line per repair with one standard deviation over draws; horizontal, the permuted
    merge (``start``) and the experts. Columns repair, inputs, accuracy."""
    fig, ax = plt.subplots(figsize=(WIDTHS[2], 2.3))
    ax.axhline(experts, color="black", linewidth=1.0, linestyle=":", label="experts")
    ax.axhline(
        start,
        color=REPAIR_STYLE["permuted"]["color"],
        linestyle=REPAIR_STYLE["permuted"]["linestyle"],
        label=labels["permuted"],
    )
    for repair, rows in frame.groupby("repair", sort=False):
        found = rows.groupby("inputs").accuracy.agg(["mean", "std"])
        inputs, mean, std = (
            found.index.to_numpy(),
            found["mean"].to_numpy(),
            np.nan_to_num(found["std"].to_numpy()),
        )
        ax.plot(inputs, mean, label=labels[repair], **REPAIR_STYLE[repair])
        ax.fill_between(
            inputs,
            mean - std,
            mean + std,
            color=REPAIR_STYLE[repair]["color"],
            alpha=0.2,
            linewidth=0,
        )
    ax.set_xscale("log")
    ticks = sorted(set(frame.inputs))
    ax.set_xticks(ticks, [f"{n:.0f}" for n in ticks])
    ax.minorticks_off()
    ax.set_xlabel("unlabelled inputs per task (mean)")
    ax.set_ylabel("average accuracy (%)")
    fig.legend(loc="outside right upper")
    return fig


def plot_base_model(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int,
    chance: float,
    fine_tuned: float,
) -> Figure:
    """Average accuracy of each encoder under each protocol as grouped bars, with chance and the fine-tuned bound."""
    fig, ax = plt.subplots(figsize=(WIDTHS[2], 2.3))
    _protocol_bars(ax, scores, encoders, protocols, k=k, chance=chance, fine_tuned=fine_tuned)
    ax.set_ylabel("average accuracy (%)")
    fig.legend(loc="outside right upper")
    return fig


def plot_sizes(
    panels: Mapping[str, pd.DataFrame],
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int,
    chance: float,
) -> Figure:
    """``plot_base_model`` side by side, a panel per title and its scores; each holds f_t under Current Eval, its upper bound."""
    fig, axes = plt.subplots(1, len(panels), figsize=(PAGE, 2.5), sharey=True, squeeze=False)
    for ax, (title, scores) in zip(axes[0], panels.items(), strict=True):
        _protocol_bars(
            ax,
            scores,
            encoders,
            protocols,
            k=k,
            chance=chance,
            fine_tuned=average_of(mean_and_std(scores), FINE_TUNED),
        )
        ax.set_title(title)
    axes[0][0].set_ylabel("average accuracy (%)")
    _shared_legend(fig, axes[0][0])
    return fig


def _protocol_bars(
    ax: Axes,
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int,
    chance: float,
    fine_tuned: float,
) -> None:
    """A group of bars per encoder, a bar per protocol, whiskers over seeds; lines for chance and the fine-tuned models."""
    summary = mean_and_std(at_k(scores, k))
    summary = summary[summary.task == "average"]
    width = 0.8 / len(protocols)
    for i, protocol in enumerate(protocols):
        rows = summary[summary.protocol == protocol].set_index("method").loc[list(encoders)]
        x = np.arange(len(encoders)) + (i - (len(protocols) - 1) / 2) * width
        ax.bar(
            x,
            rows["mean"],
            width,
            yerr=np.nan_to_num(rows["std"]),
            label=protocol_label(protocol),
            edgecolor="black",
            linewidth=0.5,
            color=protocol_style(protocol)["color"],
            hatch=("", "//", "..")[i % 3],
            error_kw={"elinewidth": 0.8},
        )
    ax.axhline(fine_tuned, color="black", linestyle=":", linewidth=1.0, label="Fine-tuned models")
    ax.axhline(chance, color="black", linestyle="--", linewidth=0.8, label="chance")
    ax.set_xticks(range(len(encoders)), [short_label(e) for e in encoders])
    ax.grid(axis="x", visible=False)


def _shared_legend(fig: Figure, ax: Axes, columns: int | None = None) -> None:
    """One legend above all panels, each label once."""
    handles = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    fig.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=columns or len(handles)
    )
