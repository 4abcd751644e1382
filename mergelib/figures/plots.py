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
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator

from ..core.names import BASE, FINE_TUNED
from ..tables import (
    at_k,
    average_of,
    averages,
    labelled,
    mean_and_std,
    protocol_label,
    short_label,
    task_label,
    with_average,
)
from ..tables.labels import COLUMN_LABELS, RUNG_LABELS
from .style import (
    CLASS_COLOURS,
    COLUMN,
    MARKS,
    PAGE,
    REPAIR_STYLE,
    STAGE_STYLES,
    WIDTHS,
    Style,
    class_colours,
    method_style,
    protocol_style,
)

BOUND, DOT, RING, WHISKERS, BOLD = (
    MARKS[name] for name in ("bound", "dot", "ring", "whiskers", "title")
)
ACCURACY = "average accuracy (%)"
APART = 1.25  # on a log axis, from one line's marks to the next one's
NAMES = COLUMN_LABELS | {"method": short_label}
"""Column -> how its values are printed in a figure."""


# ---- parts of figures ----------------------------------------------------------------------------


def looks(hue: str, styles: Mapping[str, Style]) -> dict:
    """Seaborn's order, palette and markers of a hue, from the style of each printed name."""
    return {
        "hue": hue,
        "hue_order": list(styles),
        "palette": {name: style["color"] for name, style in styles.items()},
        "markers": [style["marker"] for style in styles.values()],
    }


def of_methods(methods: Sequence[str]) -> dict:
    """A hue per method."""
    return looks("method", {short_label(m): method_style(m) for m in methods})


def of_protocols(protocols: Sequence[str]) -> dict:
    """A hue per protocol."""
    return looks("protocol", {protocol_label(p): protocol_style(p) for p in protocols})


def side_by_side(
    names: Sequence[str], height: float, width: float = PAGE
) -> tuple[Figure, list[tuple[Axes, str]]]:
    """A panel per name, with one vertical axis."""
    fig, axes = plt.subplots(1, len(names), figsize=(width, height), sharey=True, squeeze=False)
    return fig, list(zip(axes[0], names, strict=True))


def _take_legend(ax: Axes) -> dict:
    """Label -> what has it in ``ax``, whose own legend goes."""
    if ax.legend_:
        ax.legend_.remove()
    handles, labels = ax.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def head(fig: Figure | SubFigure, title: str, columns: int = 4) -> None:
    """What is seen, and below it one legend of what is labelled, unless it has no ``columns``."""
    title = title.replace(" %", "\N{NO-BREAK SPACE}%")
    title = textwrap.fill(title, round(11.7 * fig.bbox.width / fig.dpi))
    handles = {}
    for ax in fig.axes if columns else []:
        handles |= _take_legend(ax)
    if not handles:
        fig.suptitle(title, x=0.01, ha="left", **BOLD)
        return
    fig.legend(
        handles.values(),
        handles.keys(),
        ncols=columns,
        title=title,
        title_fontproperties=BOLD,
        **MARKS["legend"],
    )


def name_lines(ax: Axes, gap: float = 9.0) -> None:
    """Name every labelled line of a 0-100 axis at its right end, ``gap`` apart, for a legend."""
    lines = _take_legend(ax)
    ends = pd.Series({label: line.get_ydata()[-1] for label, line in lines.items()})
    ends = ends.sort_values(kind="stable")
    steps = gap * np.arange(len(ends))
    places = (ends - steps).cummax() + steps
    places -= (places - ends).mean()
    for label, y in ends.items():
        colour = lines[label].get_color()
        ax.annotate(
            label,
            (1, y),
            (1.12, places[label]),
            xycoords=ax.get_yaxis_transform(),
            arrowprops={"arrowstyle": "-", "color": colour, "relpos": (0, 0.5), "shrinkB": 0},
            va="center",
            size=9,
        )


def dots(
    ax: Axes, rows: pd.DataFrame, y: str, order: Sequence[str], look: dict, joined=True, **how
) -> None:
    """A row per ``y`` in ``order``, a dot per hue; a grey line may join them."""
    rows, order = labelled(rows), list(map(NAMES.get(y, str), order))
    if joined:
        ends = rows.groupby([y, look["hue"]]).accuracy.mean().groupby(y).agg(["min", "max"])
        ax.hlines(range(len(order)), *ends.reindex(order).to_numpy().T, color="0.8", zorder=0)
    sns.pointplot(rows, x="accuracy", y=y, order=order, ax=ax, **DOT | WHISKERS | look | how)
    ax.set(xlabel="", ylabel="", xlim=(0, 100))
    ax.grid(axis="y", visible=False)


def bars(ax: Axes, rows: pd.DataFrame, x: str, hue: str, colours: Mapping[str, str]) -> None:
    """A group of bars per ``x``, a bar per ``hue`` with its height inside, whiskers over rows."""
    hues = {"hue": hue, "hue_order": colours, "palette": colours, "saturation": 1}
    sns.barplot(rows, x=x, y="accuracy", ax=ax, **hues, **WHISKERS)
    for i, group in enumerate(ax.containers):
        ax.bar_label(group, fmt="%.0f", label_type="center", color="white" if i else "black")
    ax.set(xlabel="", ylim=(0, 100))
    ax.grid(axis="x", visible=False)


def curves(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    ticks: Mapping[float, str],
    by: str = "protocol",
    style: Callable[[str], Style] = protocol_style,
    label: Callable[[str], str] = protocol_label,
) -> None:
    """A line per ``by`` against a log ``x``, with a band of one standard deviation over the rows;
    a horizontal one for what does not depend on ``x``. Marks of one ``x`` lie side by side."""
    fixed = rows[x].isna()
    for name, part in rows[fixed].groupby(by, sort=False):
        ax.axhline(part.accuracy.mean(), label=label(name), **style(name) | {"marker": ""})
    sloped = rows[~fixed].groupby(by, sort=False)
    first = (sloped.ngroups - 1) / -2
    for place, (name, part) in enumerate(sloped):
        shifted = part.assign(**{x: part[x].astype(float) * APART ** (first + place)})
        look = {"label": label(name), "errorbar": "sd", "err_kws": {"linewidth": 0}} | style(name)
        sns.lineplot(shifted, x=x, y="accuracy", ax=ax, legend=False, **look)
    ax.set_xscale("log")
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()
    ax.set(xlabel="", ylabel="", ylim=(0, 100))


def lines(ax: Axes, rows: pd.DataFrame, x: str, y: str, look: dict) -> None:
    """A line per hue against ``x``."""
    look = {"style": look["hue"], "style_order": look["hue_order"], "dashes": False} | look
    sns.lineplot(labelled(rows), x=x, y=y, ax=ax, errorbar=None, **look)


def heat(ax: Axes, table: pd.DataFrame, cmap: Any, fmt: str, annot: Any = True, **how) -> None:
    """Numbers, or other texts, in coloured cells."""
    how = {"cbar": False, "linewidths": 1} | how
    sns.heatmap(table, ax=ax, cmap=cmap, fmt=fmt, annot=annot, **how)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(rotation=0)


def range_of(values: pd.Series | Sequence[float]) -> str:
    """ "9 to 21", or "9" where both ends round to it."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _points(
    summary: pd.DataFrame, methods: Sequence[str], protocol: str = "current", k: int | None = None
) -> pd.Series:
    """``average_of`` per method."""
    return pd.Series({m: average_of(summary, m, protocol, k) for m in methods})


# ---- figures -------------------------------------------------------------------------------------


def plot_shots(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    fine_tuned: float,
) -> Figure:
    """Average accuracy against k, a panel per encoder, a line per protocol.

    Bands are one standard deviation over seeds. Current Eval and the fine-tuned models are
    horizontal.

    Args:
        scores: As from ``Study.scores``.
        encoders: A panel each.
        protocols: Current Eval, then those with shots.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
    """
    rows, summary = averages(with_average(scores)), mean_and_std(scores)
    fig, panels = side_by_side(encoders, 3.1)
    few_shot = [p for p in protocols if p != "current"]
    shots = rows[rows.protocol.isin(few_shot)]
    ks = sorted(shots.k[shots.draw == "stratified"].unique())
    k = 5 if 5 in ks else max(ks)
    ticks = {k: str(k) for k in ks} | dict.fromkeys(shots.k[shots.draw == "all"], "\nall")
    old, new = _points(summary, encoders), {p: _points(summary, encoders, p, k) for p in few_shot}
    for ax, m in panels:
        ax.axhline(fine_tuned, **BOUND)
        curves(ax, rows[(rows.method == m) & rows.protocol.isin(protocols)], "k", ticks)
        ax.set(title=short_label(m), xlabel="k, shots per class")
        text = f"k = {k}: {old[m]:.0f} → {new[few_shot[0]][m]:.0f} %"
        ax.text(0.5, 0.2, text, ha="center", transform=ax.transAxes)
    fig.axes[0].set_ylabel(ACCURACY)
    name_lines(fig.axes[-1])
    lost = fine_tuned - old
    words = [
        f"{protocol_label(p).removesuffix(' Eval')} {range_of(100 * (new[p] - old) / lost)} %"
        for p in few_shot
    ]
    regained = f"Lost accuracy regained at k = {k}: {', '.join(words)}"
    head(fig, regained if lost.min() > 0 else "", 0)
    return fig


def plot_protocols(
    scores: pd.DataFrame, encoders: Sequence[str], tasks: Sequence[str], *, k: int
) -> Figure:
    """Average accuracy (left, a dot per protocol) and what a protocol gains per task (right).

    Args:
        scores: As from ``Study.scores``.
        encoders: A row each.
        tasks: A column each, on the right.
        k: Shots of the few-shot protocols.
    """
    rows, summary = with_average(at_k(scores, k)), mean_and_std(at_k(scores, k))
    protocols = list(rows.protocol.unique())
    best = "ft_classifier" if "ft_classifier" in protocols else protocols[-1]
    size = (PAGE, 1.3 + 0.34 * len(encoders))
    fig, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.15, 1))
    left.axvline(average_of(summary, FINE_TUNED), **BOUND)
    drawn = averages(rows)
    drawn = drawn[drawn.method.isin(encoders)]
    dots(left, drawn, "method", encoders, of_protocols(protocols), dodge=0.45)
    left.set(xlabel=f"{ACCURACY}, k = {k}")
    means = rows.pivot_table("accuracy", ["method", "task"], "protocol")
    gains = (means[best] - means.current).unstack().loc[list(encoders), list(tasks)]
    gains = gains.rename(columns=task_label).round() + 0.0  # no "-0"
    heat(right, gains, sns.light_palette(protocol_style(best)["color"], as_cmap=True), "+.0f")
    right.set_title(f"points from Current to {protocol_label(best)}")
    right.set_yticks([])
    title = f"Accuracy under {len(protocols)} protocols, k = {k}"
    if best == "ft_classifier":
        gain = _points(summary, encoders, best, k) - _points(summary, encoders)
        title = f"{k} unlabelled inputs per class re-align the classifier: "
        title += f"{range_of(gain.drop(BASE, errors='ignore'))} points gained"
    head(fig, title, 3)
    return fig


def plot_lam(curves: pd.DataFrame, chosen: Mapping[str, float]) -> Figure:
    """Mean validation accuracy under Current Eval against lambda; the chosen values are ringed.

    Args:
        curves: Columns method, lam, task, accuracy (0 to 1), as from ``Study.lam_curve``.
        chosen: Method -> its lambda; a line each, in this order.
    """
    fig, ax = plt.subplots(figsize=(COLUMN, 2.5))
    mean = curves.groupby(["method", "lam"], sort=False).accuracy.mean().mul(100).reset_index()
    lines(ax, mean, "lam", "accuracy", of_methods(chosen))
    ring = mean[mean.lam == mean.method.map(chosen)]
    ax.scatter(ring.lam, ring.accuracy, s=110, facecolors="none", edgecolors="0.3")
    ax.set(xlabel=r"$\lambda$", ylabel="mean validation accuracy (%)", ylim=(0, 100))
    ax.legend()
    return fig


def plot_clusters(panels: Mapping[tuple[str, str], tuple], table: pd.DataFrame) -> Figure:
    """t-SNE of f_t (pale circles) and f_m (triangles) outputs together, a colour per class.

    A row per task, a column per method, without axes: t-SNE has no units. Of more than ten classes
    ten have a colour, the others are grey.

    Args:
        panels: As from ``tables.cluster_panels``.
        table: The numbers from there.
    """
    tasks, methods = table.task.unique(), table.method.unique()
    size = (PAGE, 0.6 + 2.3 * len(tasks))
    fig, axes = plt.subplots(len(tasks), len(methods), figsize=size, squeeze=False)
    for ax, row in zip(axes.flat, table.to_dict("records"), strict=True):
        points, labels, classes = panels[row["task"], row["method"]]
        hues = np.asarray(class_colours(classes))[np.asarray(labels)]
        order = np.argsort(np.ptp(hues, axis=1) > 0)  # colours lie above grey
        for z, marker, shades in zip(points, "o^", (0.35 * hues + 0.65, hues), strict=True):
            ax.scatter(*z[order].T, c=shades[order], marker=marker, s=11, lw=0)
        names = f"{task_label(row['task'])}, {short_label(row['method'])}"
        ax.set_title(f"{names}: {row['Current Eval (%)']:.0f} %")
        text = f"label purity {row['label purity f_t']:.2f} → {row['label purity f_m']:.2f}"
        text += f"\nsource purity {row['source purity']:.2f}"
        ax.text(0.5, -0.02, text, ha="center", va="top", transform=ax.transAxes, color="0.3")
        ax.set_axis_off()
    most, coloured = max(classes for *_, classes in panels.values()), len(CLASS_COLOURS)
    note = f", {coloured} of up to {most} classes in colour" * (most > coloured)
    for marker, colour, label in (
        ("o", "0.75", "fine-tuned outputs $f_t$"),
        ("^", "0.25", f"merged outputs $f_m$ (colour: class{note})"),
        (r"$\%$", "0.25", "Current Eval of $f_m$"),
    ):
        ax.scatter([], [], marker=marker, color=colour, label=label)
    kept = range_of(100 * table["label purity f_m"] / table["label purity f_t"])
    head(fig, f"Merged outputs keep {kept} % of the label purity of fine-tuned ones", 2)
    return fig


def plot_contact_sheet(sheets: Mapping[str, tuple[Sequence[str], Any]]) -> Figure:
    """Images with their class names, a block per task, two side by side.

    Args:
        sheets: Task -> the names of the rows, and uint8 images ``[rows, each, 3, H, W]``.
    """
    lines = -(-len(sheets) // 2)
    most = max(len(names) for names, _ in sheets.values())
    size = (PAGE, lines * (0.36 + 0.3 * most))
    fig, axes = plt.subplots(lines, 2, figsize=size, squeeze=False)
    for ax in axes.flat[len(sheets) :]:
        ax.set_axis_off()
    for ax, (task, (names, images)) in zip(axes.flat, sheets.items(), strict=False):
        gap = max(1, images.shape[-1] // 16)
        tiles = np.pad(images, [(0, 0)] * 3 + [(0, gap)] * 2, constant_values=255)
        ax.imshow(
            np.block([list(row) for row in tiles]).transpose(1, 2, 0), interpolation="nearest"
        )
        middles = tiles.shape[-2] * (np.arange(len(names)) + 0.5)
        ax.set_yticks(middles, [textwrap.fill(n, 22) for n in names], size=7)
        ax.set(title=task_label(task), xticks=[])
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

    Inputs are drawn from the test set; bands are one standard deviation over seeds.

    Args:
        panels: Title -> ``unlabelled.scores``.
        methods: A column each.
        counts: Share -> number of inputs, named below the axis.
        too_few: Up to this share some task has more classes than inputs, which is shaded.
    """
    size = (PAGE, 0.9 + 2.0 * len(panels))
    shared = {"squeeze": False, "sharex": True, "sharey": True}
    fig, axes = plt.subplots(len(panels), len(methods), figsize=size, **shared)
    middle, gains = sorted(counts)[len(counts) // 2], []
    left, right = min(counts) / 1.3, max(counts) * 1.3
    for row, (title, scores) in zip(axes, panels.items(), strict=True):
        rows = averages(with_average(scores[scores.fit_on != "train"]))
        for ax, method in zip(row, methods, strict=True):
            ax.axhline(rows.accuracy[rows.method == FINE_TUNED].mean(), **BOUND)
            part = rows[rows.method == method]
            curves(ax, part, "share", {s: f"{s:g}" for s in counts})
            if too_few:
                ax.axvspan(left, too_few * 1.15, color="0.93", zorder=0)
            ax.set_xlim(left, right)
            shown = part[part.share.isna() | (part.share == middle)]
            means = shown.groupby("protocol").accuracy.mean()
            gains.append(means.ft_classifier - means.current)
        row[0].set_ylabel(title.replace(" (", "\n("))
        name_lines(ax, 11)
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(short_label(method))
    few, *_, many = counts.values()
    grey = "; grey: in some task fewer than classes" if too_few else ""
    fig.supxlabel(f"share of the test set in % ({few} to {many} inputs per task{grey})")
    fig.supylabel(ACCURACY)
    head(fig, f"{middle:g} % of the test set, unlabelled: {range_of(gains)} points gained", 0)
    return fig


def plot_ladder(
    ladders: Mapping[str, tuple[pd.DataFrame, pd.DataFrame, float]],
    r2: pd.DataFrame,
) -> Figure:
    """The ladder: accuracy per rung, and what each step explains of f_t's variance: beside it, or
    below the panels of several base models. A grey band is what the paper says an alignment costs.

    Args:
        ladders: A panel per base model: accuracies by the paper's fit (columns method, rung and
            accuracy), the same in closed form, drawn as rings, and the accuracy of the fine-tuned
            models in percent.
        r2: Columns method, step, increment, with the first base model.
    """
    several = len(ladders) > 1
    rows = [[*ladders], ["r2"] * len(ladders)] if several else [[*ladders, "r2"]]
    ratios = {"height_ratios": (3.3, 1.2)} if several else {"width_ratios": (1.35, 1)}
    fig, axes = plt.subplot_mosaic(rows, figsize=(PAGE, 5.6 if several else 3.3), **ratios)
    titles = []
    for base, (paper, closed, fine_tuned) in ladders.items():
        ax = axes[base]
        ax.axvspan(fine_tuned - 2, fine_tuned, color="0.88", label="up to 2 points below")
        ax.axvline(fine_tuned, **BOUND)
        place = ("rung", paper.rung.unique(), of_methods(paper.method.unique()), False)
        rings = closed[closed.rung != "identity"]
        dots(ax, rings, *place, dodge=0.6, markers="o", legend=False, **RING)
        ax.plot([], [], "o", color="0.3", label="in closed form", **RING)
        dots(ax, paper, *place, dodge=0.6)
        ax.set(xlabel=ACCURACY, title=textwrap.fill(base, 28) if several else "")
        rung = "orthogonal" if "orthogonal" in set(paper.rung) else paper.rung.iloc[-1]
        left, closed_left = (
            range_of(fine_tuned - f[(f.rung == rung) & (f.method != BASE)].accuracy)
            for f in (paper, closed)
        )
        titles.append(f"{left} points below f_t ({closed_left} in closed form)")
        if len(titles) > 1:
            ax.set_yticklabels([])
    table = labelled(r2).pivot_table("increment", "step", "method", sort=False)
    table.loc["together"] = table.sum()
    greys = sns.light_palette("0.2", as_cmap=True)
    heat(axes["r2"], table.T if several else table, greys, ".2f")
    axes["r2"].set_title("held-out $R^2$ of $f_t$ by step" + ", first base" * several)
    title = f"{RUNG_LABELS[rung]} map: merges stay {titles[0]}"
    head(fig, "; other base: ".join([title, *titles[1:]]))
    return fig


def plot_controls(rows: pd.DataFrame) -> Figure:
    """Left: accuracy of alignments fitted on training inputs. Right: points that inputs to be
    scored add to it. A row per fit, a dot per encoder.

    Args:
        rows: Columns fit, condition, method, accuracy, as from ``controls.fitted_on``.
    """
    rows = rows.assign(fit=rows.fit.map(lambda fit: textwrap.fill(fit, 20)))
    fits, first = rows.fit.unique(), "no alignment"
    cells = rows.pivot_table("accuracy", ["fit", "method"], "condition", sort=False)
    none, train = cells.none[fits[0]], cells.train.reset_index(name="accuracy")
    drawn = pd.concat([none.reset_index(name="accuracy").assign(fit=first), train])
    leak = (cells.test - cells.train).reset_index(name="accuracy")
    size = (PAGE, 1.4 + 0.36 * len(fits))
    fig, axes = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(1.6, 1))
    look = of_methods(rows.method.unique())
    for ax, part in zip(axes, (drawn, leak), strict=True):
        dots(ax, part, "fit", [first, *fits], look, False, dodge=0.5)
    axes[0].set_title(f"{ACCURACY}, fitted on training inputs")
    axes[1].set(title="points that scored inputs add", xlim=(None, None))
    axes[1].autoscale(axis="x")
    axes[1].axvline(0, **BOUND | {"label": None})
    most = f"{leak.accuracy.max():.0f}"
    head(fig, f"Fitting on the scored inputs flatters an alignment by up to {most} points", 5)
    return fig


def plot_ranking(means: pd.DataFrame, fine_tuned: float) -> Figure:
    """Left: ranks from Current to FT-Classifier Eval, moves by four or more in black. Right:
    accuracy, a dot per protocol.

    Args:
        means: As from ``ranking.means``, in the order of FT-Classifier Eval, which the rows share.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
    """
    first, last = "current", "ft_classifier"
    size, n = (PAGE, 1.5 + 0.21 * len(means)), len(means)
    fig, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1, 1.35))
    # Equal ranks would lie on one line.
    ranks = means[[first, last]].rank(ascending=False).rank(method="first") - 1
    for method, (start, end) in ranks.iterrows():
        line = {"color": "0.7", "linewidth": 0.9}
        if abs(start - end) >= 4:
            way, dashes = ("up", "-") if start > end else ("down", "--")
            line = {"color": "black", "linewidth": 1.8, "linestyle": dashes}
            line["label"] = f"{way} by 4 ranks or more"
        left.plot([0, 1], [start, end], marker="o", markersize=3.5, **line)
        for x, y, side in ((-0.06, start, "right"), (1.06, end, "left")):
            left.text(x, y, short_label(method), ha=side, va="center", size=9)
    left.set(xlim=(-0.75, 1.75), ylim=(n - 0.5, -0.5), yticks=[])
    left.set_xticks([0, 1], ["rank under\nCurrent Eval", "rank under\nFT-Classifier"])
    left.grid(visible=False)
    sns.despine(ax=left, left=True, bottom=True)
    rows = means.melt(ignore_index=False, var_name="protocol", value_name="accuracy").reset_index()
    dots(right, rows, "method", ranks[last].sort_values().index, of_protocols(means))
    right.axvline(fine_tuned, **BOUND)
    right.set(xlabel=ACCURACY, yticks=[])
    old, new = map(short_label, means[[first, last]].idxmax())
    won = f"{old} is first" if old == new else f"{old} is first, or {new} once re-aligned,"
    head(fig, f"{won} of {n} merging methods", 3)
    return fig


def plot_cost(costs: pd.DataFrame, kinds: Mapping[str, str], apart: Sequence[str] = ()) -> Figure:
    """Accuracy under FT-Classifier Eval, seconds and megabytes of a merge, a row per method.

    Args:
        costs: As from ``ranking.cost_table``; the most accurate are drawn on top.
        kinds: Method -> what it needs, a marker each.
        apart: Methods in a block of their own, below a line.
    """
    rows = costs.assign(below=costs.method.isin(apart), kind=costs.method.map(kinds))
    rows = rows.sort_values(["below", "ft_classifier"], ascending=[True, False])
    columns = {
        "ft_classifier": "FT-Classifier accuracy (%)",
        "seconds": "seconds for one merge",
        "peak_mb": "peak MB of tensors",
    }
    fig, panels = side_by_side(columns, 1.4 + 0.21 * len(rows))
    labels = list(dict.fromkeys(kinds.values()))
    markers = dict(zip(labels, "os^DvP", strict=False))
    look = {"style": "kind", "style_order": labels, "markers": markers, "color": "0.25", "s": 36}
    for ax, column in panels:
        sns.scatterplot(labelled(rows), x=column, y="method", ax=ax, **look)
        if rows.below.any():
            ax.axhline((~rows.below).sum() - 0.5, color="black", linewidth=0.8)
        ax.set(xlabel=columns[column], ylabel="")
        if column != "ft_classifier":
            ax.set_xscale("log")
            wide = rows[column].max() > 30 * rows[column].min()
            ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.minorticks_off()
    ax.set_ylim(len(rows) - 0.4, -0.6)
    best = rows.iloc[0]
    title = (
        f"{short_label(best.method)}, the most accurate single merge, takes "
        f"{best.seconds:.1f} s, the slowest {rows.seconds.max():.0f} s"
    )
    head(fig, title, 3)
    return fig


COMPARED = ("permuted", "tact", "ft_classifier", "tact_ft_classifier")
"""Where a merge starts, once its units are permuted, and the repairs of both papers."""


def plot_non_locality(means: pd.DataFrame, labels: Mapping[str, str]) -> Figure:
    """What a correction and an aligned classifier give back: a panel per setting, a row per method.

    Args:
        means: Columns setting, method, repair, accuracy, expert.
        labels: Repair -> its name; ``COMPARED`` are drawn, the others are for the table.
    """
    drawn = means[means.repair.isin(COMPARED)]
    methods, settings = drawn.method.unique(), means.setting.unique()
    fig, panels = side_by_side(settings, 1.3 + 0.3 * len(methods))
    shown = [r for r in COMPARED if r in set(drawn.repair)]
    look = looks("repair", {labels[r]: REPAIR_STYLE[r] for r in shown})
    for ax, setting in panels:
        part = drawn[drawn.setting == setting]
        ax.axvline(part.expert.mean(), **BOUND | {"label": "experts"})
        dots(ax, part.assign(repair=part.repair.map(labels)), "method", methods, look)
        ax.set_title(setting)
    fig.supxlabel(ACCURACY)
    last = part.pivot_table("accuracy", "method", "repair")
    title = ""
    if set(COMPARED) <= set(last):
        ft, tact = (range_of(last[r] - last.permuted) for r in ("ft_classifier", "tact"))
        title = f"Points regained by {setting} merges: {labels['ft_classifier']} {ft}, "
        title += f"{labels['tact']} {tact}"
    head(fig, title, 5)
    return fig


def plot_variance(frame: pd.DataFrame) -> Figure:
    """Variance of merged activations over the experts', at the end of each block.

    Args:
        frame: Columns method, stage, kind, block, ratio; a panel per method, a line per stage.
    """
    ends = frame[frame.kind.isin(("embeddings", "block"))]
    stages = ends.stage.unique()
    fig, panels = side_by_side(ends.method.unique(), 2.8)
    look = looks("stage", dict(zip(stages, STAGE_STYLES, strict=False)))
    blocks = {b: str(b) if b else "emb." for b in sorted(ends.block.unique())}
    for ax, method in panels:
        ax.axhline(1.0, **BOUND | {"label": "as in the experts"})
        lines(ax, ends[ends.method == method], "block", "ratio", look)
        ax.set_xticks(list(blocks), blocks.values())
        ax.set(title=short_label(method), xlabel="end of block", ylabel="variance over experts'")
    last = ends[ends.block == ends.block.max()].groupby("stage").ratio.agg(["min", "max"])
    span = [f"{last['min'][s]:.1f} to {last['max'][s]:.1f} ({s})" for s in (stages[0], stages[-1])]
    head(fig, f"Variance over the experts' after the last block: {', '.join(span)}", 3)
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
    ax.axhline(experts, **BOUND | {"label": "experts"})
    level = pd.DataFrame({"repair": ["permuted"], "inputs": np.nan, "accuracy": start})
    ticks = {n: f"{n:.0f}" for n in sorted(frame.inputs.unique())}
    rows = pd.concat([level, frame])
    curves(ax, rows, "inputs", ticks, "repair", REPAIR_STYLE.get, labels.get)
    ax.set(xlabel="unlabelled inputs per task (mean)", ylabel=ACCURACY)
    name_lines(ax)
    most = max(ticks)
    means = frame[frame.inputs == most].groupby("repair", sort=False).accuracy.mean()
    words = ", ".join(f"{labels[r]} {mean:.0f}" for r, mean in means.items())
    head(fig, f"{most:.0f} inputs: {words} % (experts {experts:.0f})", 0)
    return fig


def plot_sizes(
    panels: Mapping[str, pd.DataFrame],
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    k: int,
    chance: float,
) -> Figure:
    """Average accuracy of each encoder under each protocol, with chance and f_t as bounds.

    Args:
        panels: Title -> scores as from ``Study.scores``, f_t's among them.
        encoders: A group of bars each.
        protocols: A bar each.
        k: Shots of the few-shot protocols.
        chance: Accuracy of guessing, in percent.
    """
    width, columns = (PAGE, 5) if len(panels) > 1 else (WIDTHS[2], 2)
    fig, axes = side_by_side(panels, 3.1, width)
    colours, last, gains = of_protocols(protocols)["palette"], protocols[-1], []
    for ax, title in axes:
        scores = at_k(panels[title], k)
        summary, rows = mean_and_std(scores), averages(with_average(scores))
        rows = rows[rows.protocol.isin(protocols)].set_index("method").loc[list(encoders)]
        bars(ax, labelled(rows.reset_index()), "method", "protocol", colours)
        ax.axhline(average_of(summary, FINE_TUNED), **BOUND)
        ax.axhline(chance, **BOUND | {"label": "chance", "linestyle": "--", "zorder": 0.5})
        ax.set(title=textwrap.fill(title, 30), ylabel=f"{ACCURACY}, k = {k}")
        gains.append(_points(summary, encoders, last, k) - _points(summary, encoders))
    gains = pd.concat(gains)
    merges = range_of(gains.drop(BASE, errors="ignore"))
    title = f"{protocol_label(last)}: merges gain {merges} points"
    title += f", f_b {range_of(gains[[BASE]])}" if BASE in gains else ""
    head(fig, title, columns)
    return fig
