"""One function per kind of figure: tidy scores in, a ``Figure`` out.

Nothing here computes a result or shows a window. Titles state the finding, computed from the
numbers drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..study import FINE_TUNED
from ..tables import (
    at_k,
    average_of,
    averages,
    mean_and_std,
    protocol_label,
    short_label,
    task_label,
    with_average,
)
from ..tables.labels import rung_label
from .style import COLUMN, PAGE, REPAIR_STYLE, WIDTHS, Style, method_style, protocol_style

BOUND = {"color": "black", "linewidth": 1.0, "linestyle": ":", "zorder": 1}
"""The line of the fine-tuned models, or of another upper bound."""
ACCURACY = "average accuracy (%)"
DOTS = {
    "linestyle": "none",
    "errorbar": "sd",
    "err_kws": {"linewidth": 1.0},
    "markersize": 6,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
}


def _looks(
    names: Sequence[str], style: Callable[[str], Style], label: Callable[[str], str]
) -> dict:
    """Seaborn's palette, markers and order for ``names`` in print."""
    styles = {label(n): style(n) for n in names}
    return {
        "hue_order": list(styles),
        "palette": {n: s["color"] for n, s in styles.items()},
        "markers": [s["marker"] for s in styles.values()],
    }


def _named(scores: pd.DataFrame) -> pd.DataFrame:
    """``scores`` with protocols and methods in print, methods in short."""
    names = {"protocol": protocol_label, "method": short_label, "task": task_label}
    return scores.assign(**{c: scores[c].map(f) for c, f in names.items() if c in scores})


def _line(ax: Axes, data: pd.DataFrame, x: str, style: Style, label: str, **how: Any) -> None:
    """Mean over seeds against a log ``x``, with a band of one standard deviation."""
    sns.lineplot(
        data,
        x=x,
        y="accuracy",
        errorbar="sd",
        ax=ax,
        label=label,
        err_kws={"linewidth": 0},
        **style | how,
    )
    ax.legend_.remove()


def _log_ticks(ax: Axes, ticks: Mapping[float, str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()


def _legend(fig: Figure, axes: Sequence[Axes], columns: int = 4, title: str = "") -> None:
    """What is seen, and one legend of every label once, above all panels."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        if ax.legend_:
            ax.legend_.remove()
    fig.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper left",
        ncols=min(columns, len(handles)),
        title=textwrap.fill(title, 84 if fig.get_figwidth() > WIDTHS[2] else 44),
        title_fontproperties={"weight": "bold", "size": 10},
        alignment="left",
        borderaxespad=0.1,
    )


def _range(values: pd.Series | Sequence[float]) -> str:
    """ "9 to 21", or "9" where both ends round to it."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _gain(summary: pd.DataFrame, methods: Sequence[str], protocol: str, k: int) -> str:
    """By how many points a protocol at k shots beats Current Eval: the range."""
    found = [average_of(summary, m, protocol, k) - average_of(summary, m) for m in methods]
    return _range(found)


def plot_shots(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    task: str = "average",
    fine_tuned: float | None = None,
) -> Figure:
    """Accuracy against k, a panel per encoder, a line per few-shot protocol.

    Bands are one standard deviation over seeds. Current Eval and the fine-tuned models are
    horizontal.

    Args:
        scores: As from ``Study.scores``.
        encoders: A panel each.
        protocols: A line each.
        task: A task's name, or ``average``.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
    """
    rows = with_average(scores)
    rows = rows[(rows.task == task) & rows.protocol.isin(protocols)]
    fig, axes = plt.subplots(1, len(encoders), figsize=(PAGE, 2.9), sharey=True, squeeze=False)
    for ax, encoder in zip(axes[0], encoders, strict=True):
        mine = rows[rows.method == encoder]
        if fine_tuned is not None:
            ax.axhline(fine_tuned, label="Fine-tuned models", **BOUND)
        for protocol in protocols:
            drawn, style = mine[mine.protocol == protocol], protocol_style(protocol)
            if drawn.k.isna().all():
                level = {k: v for k, v in style.items() if k != "marker"}
                ax.axhline(drawn.accuracy.mean(), label=protocol_label(protocol), **level)
                continue
            _line(ax, drawn.astype({"k": float}), "k", style, protocol_label(protocol))
        ks = sorted(mine.k.dropna().astype(int).unique())
        whole = set(mine[mine.draw == "all"].k.dropna().astype(int))
        _log_ticks(ax, {k: "all" if k in whole else str(k) for k in ks})
        ax.set(title=short_label(encoder), xlabel="k, shots per class", ylabel="")
    axes[0][0].set_ylabel(ACCURACY if task == "average" else f"{task_label(task)} accuracy (%)")
    few, title = [p for p in protocols if p != "current"], ""
    if task == "average" and "current" in protocols and few:
        summary = mean_and_std(scores)
        shots = summary[(summary.protocol == few[0]) & (summary.draw == "stratified")]
        k = int(shots.k.max())
        gain = _gain(summary, encoders, few[0], k)
        title = f"{protocol_label(few[0])} at k = {k}: {gain} points over the old classifier"
    _legend(fig, axes[0], title=title)
    return fig


def plot_protocols(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    tasks: Sequence[str],
    *,
    k: int,
    references: Sequence[str] = (FINE_TUNED,),
) -> Figure:
    """Average accuracy (left, large) and accuracy per task: a row per encoder, a dot per protocol.

    Args:
        scores: As from ``Study.scores``.
        encoders: A row each.
        tasks: A small panel each.
        k: Shots of the few-shot protocols.
        references: Encoders whose Current Eval accuracy is a vertical line.
    """
    rows = with_average(at_k(scores, k))
    protocols = [p for p in dict.fromkeys(rows.protocol) if p in set(scores.protocol)]
    fig, axes = plt.subplot_mosaic(
        [["average", *tasks[: (len(tasks) + 1) // 2]], ["average", *_padded(tasks)]],
        figsize=(PAGE, 1.5 + 0.5 * len(encoders)),
        width_ratios=[1.9, *[1] * ((len(tasks) + 1) // 2)],
        empty_sentinel="",
    )
    looks = _looks(protocols, protocol_style, protocol_label)
    for task, ax in axes.items():
        here = rows[rows.task == task]
        for encoder in references:
            bound = here[(here.method == encoder) & (here.protocol == "current")].accuracy.mean()
            name = "Fine-tuned models" if encoder == FINE_TUNED else short_label(encoder)
            ax.axvline(bound, label=name, **BOUND)
        drawn = _named(here[here.method.isin(encoders)])
        names = [short_label(e) for e in encoders]
        sns.pointplot(
            drawn, x="accuracy", y="method", hue="protocol", order=names, ax=ax, **looks, **DOTS
        )
        ax.set(title=task_label(task), xlabel="", ylabel="", xlim=(0, 100))
        ax.grid(axis="y", visible=False)
        if task != "average":
            ax.set_yticks(ax.get_yticks(), [""] * len(names))
    axes["average"].set_xlabel("accuracy (%)")
    summary = mean_and_std(at_k(scores, k))
    merges = [e for e in encoders if e != "f_b"]
    title = f"Accuracy under {len(protocols)} protocols, k = {k}"
    if "ft_classifier" in protocols:
        gain = _gain(summary, merges, "ft_classifier", k)
        title = f"{k} unlabelled inputs per class re-align the classifier: {gain} points gained"
    _legend(fig, list(axes.values()), 4, title)
    return fig


def _padded(tasks: Sequence[str]) -> list[str]:
    """The lower row of small panels."""
    upper = (len(tasks) + 1) // 2
    return [*tasks[upper:], *[""] * (2 * upper - len(tasks))]


def plot_lam(curves: pd.DataFrame, chosen: Mapping[str, float]) -> Figure:
    """Mean validation accuracy under Current Eval against lambda; the chosen values are ringed."""
    fig, ax = plt.subplots(figsize=(COLUMN, 2.5))
    mean = curves.groupby(["method", "lam"], sort=False).accuracy.mean().mul(100).reset_index()
    for method, rows in mean.groupby("method", sort=False):
        style = method_style(method)
        sns.lineplot(rows, x="lam", y="accuracy", ax=ax, label=short_label(method), **style)
        ring = rows[rows.lam == chosen[method]]
        ax.scatter(ring.lam, ring.accuracy, s=110, facecolors="none", edgecolors=style["color"])
    ax.set(xlabel=r"$\lambda$", ylabel="mean validation accuracy (%)")
    ax.legend()
    return fig


def plot_clusters(panels: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """t-SNE of f_t (blue circles) and f_m (red crosses) outputs together, shaded by label.

    Args:
        panels: (task, method) -> ``points [2, n, 2]``, ``labels [n]``, ``accuracy`` (f_m under
            Current Eval, percent) and ``note`` (the numbers in R^d, written below the panel).
    """

    def colours(panel: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(panel["labels"])
        shade = 0.35 + 0.6 * labels / max(1, labels.max())
        return plt.get_cmap("Blues")(shade), plt.get_cmap("Reds")(shade)

    return _clusters(panels, colours, ("#2171B5", "#CB181D"), "shade: label")


def plot_class_clusters(panels: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """``plot_clusters`` for tasks of many classes: hue tells the class.

    f_t's outputs are pale circles, f_m's crosses. Hues of neighbouring classes look alike: what
    counts is whether crosses of one hue lie together.
    """

    def colours(panel: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        wheel = sns.husl_palette(panel["classes"], s=0.8, l=0.55)
        hues = np.asarray(wheel)[np.asarray(panel["labels"])]
        return 0.3 * hues + 0.7, hues

    return _clusters(panels, colours, ("#B8B8B8", "#404040"), "hue: class")


def _clusters(
    panels: Mapping[tuple[str, str], Mapping[str, Any]],
    colours: Callable[[Mapping[str, Any]], tuple[np.ndarray, np.ndarray]],
    legend: tuple[str, str],
    by: str,
) -> Figure:
    """A row per task, a column per method, without axes: t-SNE has no units."""
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    fig, grid = plt.subplots(
        len(tasks), len(methods), figsize=(PAGE, 0.4 + 2.3 * len(tasks)), squeeze=False
    )
    for (task, method), panel in panels.items():
        ax = grid[tasks.index(task)][methods.index(method)]
        tuned, merged = panel["points"]
        pale, strong = colours(panel)
        sns.scatterplot(x=tuned[:, 0], y=tuned[:, 1], c=pale, marker="o", s=11, lw=0, ax=ax)
        sns.scatterplot(x=merged[:, 0], y=merged[:, 1], c=strong, marker="x", s=12, lw=0.9, ax=ax)
        ax.set_title(f"{task_label(task)}, {short_label(method)} ({panel['accuracy']:.0f} %)")
        ax.text(
            0.5,
            -0.02,
            panel["note"].replace(", ", "\n"),
            ha="center",
            va="top",
            transform=ax.transAxes,
            color="0.3",
        )
        ax.set_axis_off()
    names = ("fine-tuned outputs $f_t$", f"merged outputs $f_m$ ({by})")
    handles = [
        Line2D([], [], linestyle="none", marker=m, color=c, label=name)
        for m, c, name in zip("ox", legend, names, strict=True)
    ]
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


def plot_contact_sheet(sheets: Mapping[str, tuple[Sequence[str], Any]], columns: int = 2) -> Figure:
    """Images with their class names, a block per task.

    Args:
        sheets: Task -> the names of the rows, and uint8 images ``[rows, each, 3, H, W]``.
        columns: Blocks side by side.
    """
    lines = -(-len(sheets) // columns)
    most = max(len(names) for names, _ in sheets.values())
    size = (PAGE, lines * (0.36 + 0.28 * most))
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for ax in axes.flat[len(sheets) :]:
        ax.set_axis_off()
    for ax, (task, (names, images)) in zip(axes.flat, sheets.items(), strict=False):
        rows, each, _, height, width = np.asarray(images).shape
        gap = max(1, height // 16)
        edge = ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap))
        padded = np.pad(np.asarray(images), edge, constant_values=255)
        sheet = padded.transpose(0, 3, 1, 4, 2).reshape(
            rows * (height + gap), each * (width + gap), 3
        )
        ax.imshow(sheet, interpolation="nearest")
        centres = [r * (height + gap) + height / 2 for r in range(rows)]
        ax.set_yticks(centres, [textwrap.fill(n, 18) for n in names], fontsize=7)
        ax.set_xticks([])
        ax.set_title(task_label(task))
        ax.grid(visible=False)
        sns.despine(ax=ax, left=True, bottom=True)
    return fig


def plot_shares(
    panels: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    counts: Mapping[float, str],
    *,
    too_few: float = 0.0,
) -> Figure:
    """Accuracy against the unlabelled share of the test set, a row per panel, a column per method.

    Few-shot protocols have two lines: inputs drawn from the test set (with one standard deviation
    over seeds), and as many training inputs (thin, dotted, hollow).

    Args:
        panels: Title -> summary of ``unlabelled.scores``.
        methods: A column each.
        counts: Share -> number of inputs, for the axis.
        too_few: Up to this share some task has more classes than inputs, which is shaded.
    """
    size = (PAGE, 0.9 + 2.1 * len(panels))
    fig, axes = plt.subplots(
        len(panels), len(methods), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for row, (title, summary) in zip(axes, panels.items(), strict=True):
        rows, bound = averages(summary), average_of(summary, FINE_TUNED)
        for ax, method in zip(row, methods, strict=True):
            mine = rows[rows.method == method]
            ax.axhline(bound, label="Fine-tuned models", **BOUND)
            for protocol in dict.fromkeys(mine.protocol):
                drawn, style = mine[mine.protocol == protocol], protocol_style(protocol)
                label = protocol_label(protocol)
                if drawn.share.isna().all():
                    level = {k: v for k, v in style.items() if k != "marker"}
                    ax.axhline(drawn["mean"].iloc[0], label=label, **level)
                    continue
                test, train = (drawn[drawn.fit_on == s] for s in ("test", "train"))
                sns.lineplot(test, x="share", y="mean", ax=ax, label=label, **style)
                low, high = test["mean"] - test["std"], test["mean"] + test["std"]
                ax.fill_between(test.share, low, high, color=style["color"], alpha=0.2, lw=0)
                thin = {"linestyle": ":", "linewidth": 1, "markerfacecolor": "white"}
                thin |= {"markeredgecolor": style["color"]}
                if len(train):
                    label += ", train inputs"
                    sns.lineplot(train, x="share", y="mean", ax=ax, label=label, **style | thin)
            _log_ticks(ax, {s: f"{s:g} %\n{n}" for s, n in counts.items()})
            if too_few:
                ax.axvspan(
                    min(counts) / 1.3,
                    too_few * 1.15,
                    color="0.93",
                    zorder=0,
                    label="fewer inputs than classes",
                )
            ax.set(xlim=(min(counts) / 1.3, max(counts) * 1.3), xlabel="", ylabel="")
        row[0].set_ylabel(textwrap.fill(title, 26))
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(short_label(method))
    fig.supxlabel("share of the test set; inputs per task")
    fig.supylabel(ACCURACY)
    share = sorted(counts)[len(counts) // 2]
    gains = []
    for summary in panels.values():
        rows = averages(summary).query("share == @share and fit_on == 'test'")
        rows = rows[rows.protocol == "ft_classifier"].set_index("method")["mean"]
        gains += [rows[m] - average_of(summary, m) for m in methods if m in rows]
    title = (
        f"{share:g} % of the test set, unlabelled: {_range(gains)} points gained" if gains else ""
    )
    _legend(fig, axes.flat, 3, title)
    return fig


def plot_ladder(
    accuracies: pd.DataFrame,
    r2: pd.DataFrame,
    *,
    fine_tuned: float,
    closed_form: pd.DataFrame | None = None,
    margin: float = 2.0,
) -> Figure:
    """The ladder: accuracy per rung (left), and what each step explains of f_t's variance (right).

    Args:
        accuracies: Columns method, rung, accuracy and std over random starts.
        r2: Columns method, step, increment.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
        closed_form: The same columns for maps in least squares, drawn as rings.
        margin: The paper's claim: points below them that an alignment may cost, a grey band.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 3.1), width_ratios=(1.5, 1))
    left.axvspan(fine_tuned - margin, fine_tuned, color="0.9", zorder=0)
    left.axvline(fine_tuned, label="Fine-tuned models", **BOUND)
    methods = list(dict.fromkeys(accuracies.method))
    rungs, ring = list(dict.fromkeys(accuracies.rung)), {"facecolors": "none", "s": 60}
    for i, method in enumerate(methods):
        rows = accuracies[accuracies.method == method].set_index("rung").loc[rungs]
        y = np.arange(len(rungs)) + (i - (len(methods) - 1) / 2) * 0.16
        if closed_form is not None:
            closed = closed_form[closed_form.method == method].set_index("rung").accuracy
            colour = method_style(method)["color"]
            left.scatter(closed.reindex(rungs), y, edgecolors=colour, zorder=1, **ring)
        error = {"xerr": rows["std"].fillna(0), "elinewidth": 1.0, "linestyle": "none"}
        left.errorbar(rows.accuracy, y, label=short_label(method), **error, **method_style(method))
    if closed_form is not None:
        left.scatter([], [], edgecolors="0.3", label="closed form", **ring)
    left.set(xlim=(0, 100), ylim=(len(rungs) - 0.5, -0.5), xlabel=ACCURACY)
    left.set_yticks(range(len(rungs)), map(rung_label, rungs))
    steps = list(dict.fromkeys(r2.step))
    bottom = np.zeros(len(methods := list(dict.fromkeys(r2.method))))
    names = [short_label(m) for m in methods]
    for step, grey in zip(steps, np.linspace(0.88, 0.2, len(steps)), strict=True):
        values = r2[r2.step == step].set_index("method").loc[methods].increment.to_numpy()
        right.bar(names, values, bottom=bottom, color=str(grey), label=step, width=0.7)
        bottom += values
    right.axhline(1.0, **BOUND)
    right.set_ylabel("held-out $R^2$ of $f_t$")
    left.grid(axis="y", visible=False)
    right.grid(axis="x", visible=False)
    right.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2)
    rung = "orthogonal" if "orthogonal" in rungs else rungs[-1]
    mapped = accuracies[(accuracies.rung == rung) & (accuracies.method != "f_b")].accuracy
    missing = _range(fine_tuned - mapped)
    title = f"{rung_label(rung)} map: the merges stay {missing} points below the fine-tuned models"
    _legend(fig, [left], 6, title)
    return fig


def plot_controls(rows: pd.DataFrame) -> Figure:
    """What a control changes: a panel per fit, a row per encoder, a dot per condition.

    Args:
        rows: Columns fit, condition, method, accuracy, as from ``controls.fitted_on``.
    """
    fits, conditions = list(dict.fromkeys(rows.fit)), list(dict.fromkeys(rows.condition))
    methods = [short_label(m) for m in dict.fromkeys(rows.method)]
    size = (PAGE, 1.5 + 0.3 * len(methods))
    fig, axes = plt.subplots(1, len(fits), figsize=size, sharex=True, sharey=True, squeeze=False)
    names = {"none": "no alignment", "train": "fitted on training inputs"}
    names |= {"test": "fitted on the scored inputs"}
    named = _named(rows).assign(condition=rows.condition.map(lambda c: names.get(c, c)))
    looks = {
        "hue_order": [names.get(c, c) for c in conditions],
        "palette": ["#B8B8B8", "#D55E00", "#000000", "#882255"][: len(conditions)],
        "markers": ["o", "s", "^", "D"][: len(conditions)],
    }
    for ax, fit in zip(axes[0], fits, strict=True):
        mine = named[named.fit == fit]
        ends = mine.groupby("method").accuracy.agg(["min", "max"]).loc[methods]
        ax.hlines(range(len(methods)), ends["min"], ends["max"], color="0.8", zorder=0)
        sns.pointplot(
            mine, x="accuracy", y="method", hue="condition", order=methods, ax=ax, **looks, **DOTS
        )
        ax.set(
            title=textwrap.fill(fit.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"), 14),
            xlabel="",
            ylabel="",
            xlim=(0, 100),
        )
        ax.grid(axis="y", visible=False)
    fig.supxlabel(ACCURACY)
    leak = rows.pivot_table(index=["fit", "method"], columns="condition", values="accuracy")
    title = ""
    if {"train", "test"} <= set(leak):
        most = (leak.test - leak.train).max()
        title = f"Fitting on the scored inputs flatters an alignment by up to {most:.0f} points"
    _legend(fig, axes[0], 3, title)
    return fig


def plot_ranking(means: pd.DataFrame, fine_tuned: float, *, mark: float = 4) -> Figure:
    """Left: ranks from Current to FT-Classifier Eval. Right: accuracy, a dot per protocol.

    Args:
        means: As from ``ranking.means``, in the order of the rows.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
        mark: Methods that move by as many ranks or more are drawn in colour.
    """
    first, last = "current", "ft_classifier"
    size = (PAGE, 1.5 + 0.21 * len(means))
    fig, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1, 1.35))
    # Equal ranks would lie on one line.
    ranks = means[[first, last]].rank(ascending=False).rank(method="first")
    moved = ranks[first] - ranks[last]
    looks = {
        "up": (moved >= mark, {"color": "#0072B2", "linestyle": "-", "linewidth": 1.8}),
        "down": (moved <= -mark, {"color": "#D55E00", "linestyle": "--", "linewidth": 1.8}),
        "": (moved.abs() < mark, {"color": "#9A9A9A", "linewidth": 0.9}),
    }
    for word, (which, style) in looks.items():
        label = f"{word} by {mark:g} or more" if word else None
        for i, method in enumerate(ranks.index[which]):
            how = {"label": label if i == 0 else None, "marker": "o", "markersize": 3.5}
            left.plot([0, 1], ranks.loc[method], **style, **how)
    for x, column, side in ((-0.06, first, "right"), (1.06, last, "left")):
        for method, place in ranks[column].items():
            left.text(x, place, short_label(method), ha=side, va="center", fontsize=8)
    left.set(xlim=(-0.75, 1.75), ylim=(len(ranks) + 0.6, 0.4), yticks=[])
    left.set_xticks([0, 1], ["rank under\nCurrent Eval", "rank under\nFT-Classifier Eval"])
    left.grid(visible=False)
    sns.despine(ax=left, left=True, bottom=True)
    places = range(1, len(means) + 1)
    for protocol in means:
        style = protocol_style(protocol) | {"linestyle": "none"}
        right.plot(means[protocol], places, label=protocol_label(protocol), **style)
    right.axvline(fine_tuned, label="Fine-tuned models", **BOUND)
    right.set_yticks(places, [short_label(m) for m in means.index], fontsize=8)
    right.set(xlim=(0, 100), ylim=(len(means) + 0.6, 0.4), xlabel=ACCURACY)
    best = [short_label(means[p].idxmax()) for p in (first, last)]
    same = best[0] == best[1]
    won = f"{best[0]} is first" if same else f"{best[0]} is first, or {best[1]} once re-aligned,"
    _legend(fig, (left, right), 4, f"{won} of {len(means)} merging methods")
    return fig


def plot_cost(costs: pd.DataFrame, kinds: Mapping[str, str], apart: Sequence[str] = ()) -> Figure:
    """Accuracy under FT-Classifier Eval, seconds and megabytes of a merge, a row per method.

    Args:
        costs: As from ``ranking.cost_table``; the most accurate are drawn on top.
        kinds: Method -> what it needs, a marker each.
        apart: Methods in a block of their own, below a line.
    """
    rows = costs.assign(below=costs.method.isin(apart), kind=costs.method.map(kinds)).sort_values(
        ["below", "ft_classifier"], ascending=[True, False], ignore_index=True
    )
    rows = rows.assign(place=rows.index + 1)
    columns = {
        "ft_classifier": "FT-Classifier accuracy (%)",
        "seconds": "seconds for one merge",
        "peak_mb": "peak MB of tensors",
    }
    fig, axes = plt.subplots(1, 3, figsize=(PAGE, 1.4 + 0.21 * len(rows)), sharey=True)
    every = list(dict.fromkeys(kinds.values()))
    palette = dict(zip(every, sns.color_palette("colorblind"), strict=False))
    markers = dict(zip(every, "os^DvP", strict=False))
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        sns.scatterplot(
            rows,
            x=column,
            y="place",
            hue="kind",
            style="kind",
            hue_order=every,
            style_order=every,
            palette=palette,
            markers=markers,
            s=36,
            ax=ax,
        )
        if rows.below.any():
            ax.axhline((~rows.below).sum() + 0.5, color="black", linewidth=0.8)
        ax.set(xlabel=label, ylabel="")
        if column == "ft_classifier":
            continue
        ax.set_xscale("log")
        wide = rows[column].max() > 30 * rows[column].min()
        ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_yticks(rows.place, [short_label(m) for m in rows.method], fontsize=8)
    axes[0].set_ylim(len(rows) + 0.6, 0.4)
    _legend(fig, axes, 3)
    return fig


COMPARED = ("permuted", "tact", "ft_classifier", "tact_ft_classifier")
"""Where a merge starts, once its units are permuted, and the repairs of both papers."""


def plot_non_locality(means: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """What a correction and an aligned classifier give back: a panel per setting, a row per method.

    Args:
        means: Columns setting, method, repair, accuracy, expert.
        labels: Repair -> its name; ``COMPARED`` are drawn, the others are for the table.
    """
    settings = list(dict.fromkeys(means.setting))
    methods = [short_label(m) for m in dict.fromkeys(means.method)]
    size = (PAGE, 1.5 + 0.36 * len(methods))
    fig, axes = plt.subplots(1, len(settings), figsize=size, sharey=True, squeeze=False)
    looks = _looks([r for r in COMPARED if r in set(means.repair)], REPAIR_STYLE.get, labels.get)
    for ax, setting in zip(axes[0], settings, strict=True):
        mine = _named(means[(means.setting == setting) & means.repair.isin(COMPARED)])
        mine = mine.assign(repair=mine.repair.map(labels))
        ax.axvline(mine.expert.mean(), label="experts", **BOUND)
        sns.pointplot(
            mine, x="accuracy", y="method", hue="repair", order=methods, ax=ax, **looks, **DOTS
        )
        ax.set(title=setting, xlabel="", ylabel="", xlim=(0, 100))
        ax.grid(axis="y", visible=False)
    fig.supxlabel(ACCURACY)
    last = means[means.setting == settings[-1]].pivot(
        index="method", columns="repair", values="accuracy"
    )
    title = ""
    if set(COMPARED) <= set(last):
        gains = {labels[r]: _range(last[r] - last.permuted) for r in ("tact", "ft_classifier")}
        said = ", ".join(f"{name} gives back {points}" for name, points in gains.items())
        title = f"{settings[-1].capitalize()} merges: {said} points"
    _legend(fig, axes[0], 5, title)
    return fig


def plot_variance(frame: pd.DataFrame) -> Figure:
    """Variance of merged activations over the experts', at the end of each block.

    Args:
        frame: Columns method, stage, kind, block, ratio; a panel per method, a line per stage.
    """
    ends = frame[frame.kind.isin(("embeddings", "block"))]
    methods, stages = list(dict.fromkeys(ends.method)), list(dict.fromkeys(ends.stage))
    fig, axes = plt.subplots(1, len(methods), figsize=(PAGE, 2.8), sharey=True, squeeze=False)
    looks = zip(
        ("#000000", "#CCBB44", "#B8B8B8", "#88CCEE"), "oDsv", ("-", "-.", "--", ":"), strict=True
    )
    looks = dict(zip(stages, looks, strict=False))
    for ax, method in zip(axes[0], methods, strict=True):
        ax.axhline(1.0, **BOUND)
        for stage, rows in ends[ends.method == method].groupby("stage", sort=False):
            color, marker, linestyle = looks[stage]
            how = {"color": color, "marker": marker, "linestyle": linestyle, "label": stage}
            sns.lineplot(rows, x="block", y="ratio", ax=ax, errorbar=None, **how)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        blocks = sorted(ends.block.unique())
        ax.set_xticks(blocks, ["emb." if b == 0 else str(b) for b in blocks])
        ax.set(title=short_label(method), xlabel="end of block", ylabel="")
    axes[0][0].set_ylabel("variance, merged over expert")
    _legend(fig, axes[0])
    return fig


def plot_samples(
    frame: pd.DataFrame, labels: Mapping[str, str], *, start: float, experts: float
) -> Figure:
    """Average accuracy against unlabelled inputs per task, a line per repair.

    Args:
        frame: Columns repair, inputs, accuracy; bands are one standard deviation over draws.
        labels: Repair -> its name.
        start: The permuted merge, horizontal.
        experts: The experts, horizontal.
    """
    fig, ax = plt.subplots(figsize=(WIDTHS[2], 2.6))
    ax.axhline(experts, label="experts", **BOUND)
    level = {k: v for k, v in REPAIR_STYLE["permuted"].items() if k != "marker"}
    ax.axhline(start, label=labels["permuted"], **level)
    for repair, rows in frame.groupby("repair", sort=False):
        _line(ax, rows, "inputs", REPAIR_STYLE[repair], labels[repair])
    _log_ticks(ax, {n: f"{n:.0f}" for n in sorted(set(frame.inputs))})
    ax.set(xlabel="unlabelled inputs per task (mean)", ylabel=ACCURACY)
    _legend(fig, [ax], 2)
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
    """Average accuracy of each encoder under each protocol, with chance and an upper bound."""
    fig, ax = plt.subplots(figsize=(WIDTHS[2], 2.8))
    _bars(ax, scores, encoders, protocols, k=k, chance=chance, fine_tuned=fine_tuned)
    _legend(fig, [ax], 2)
    return fig


def plot_sizes(
    panels: Mapping[str, pd.DataFrame],
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int,
    chance: float,
) -> Figure:
    """``plot_base_model`` side by side, a panel per title and its scores, f_t's among them."""
    fig, axes = plt.subplots(1, len(panels), figsize=(PAGE, 2.8), sharey=True, squeeze=False)
    for ax, (title, scores) in zip(axes[0], panels.items(), strict=True):
        bound = average_of(mean_and_std(scores), FINE_TUNED)
        _bars(ax, scores, encoders, protocols, k=k, chance=chance, fine_tuned=bound)
        ax.set_title(title)
    axes[0][-1].set_ylabel("")
    _legend(fig, axes[0], 5)
    return fig


def _bars(
    ax: Axes,
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int,
    chance: float,
    fine_tuned: float,
) -> None:
    """A group of bars per encoder, a bar per protocol, whiskers over seeds; two bounds."""
    rows = with_average(at_k(scores, k))
    rows = rows[(rows.task == "average") & rows.method.isin(encoders)]
    looks = _looks(protocols, protocol_style, protocol_label)
    looks.pop("markers")
    sns.barplot(
        _named(rows[rows.protocol.isin(protocols)]),
        x="method",
        y="accuracy",
        hue="protocol",
        order=[short_label(e) for e in encoders],
        errorbar="sd",
        err_kws={"linewidth": 1.0},
        saturation=1,
        ax=ax,
        **looks,
    )
    ax.axhline(fine_tuned, label="Fine-tuned models", **BOUND)
    ax.axhline(chance, label="chance", **BOUND | {"linestyle": "--"})
    ax.set(xlabel="", ylabel=f"{ACCURACY}, k = {k}", ylim=(0, 100))
    ax.grid(axis="x", visible=False)
