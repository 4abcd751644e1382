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
    mean_and_std,
    protocol_label,
    short_label,
    task_label,
    with_average,
)
from ..tables.labels import rung_label
from .style import (
    CLASS_COLOURS,
    COLUMN,
    PAGE,
    REPAIR_STYLE,
    WIDTHS,
    Style,
    class_colours,
    method_style,
    protocol_style,
)

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


def looks_of(
    names: Sequence[str], style: Callable[[str], Style], label: Callable[[str], str]
) -> dict:
    """Seaborn's palette, markers and order for ``names`` in print."""
    styles = {label(n): style(n) for n in names}
    return {
        "hue_order": list(styles),
        "palette": {n: s["color"] for n, s in styles.items()},
        "markers": [s["marker"] for s in styles.values()],
    }


def named(scores: pd.DataFrame) -> pd.DataFrame:
    """``scores`` with protocols and methods in print, methods in short."""
    names = {"protocol": protocol_label, "method": short_label, "task": task_label}
    return scores.assign(**{c: scores[c].map(f) for c, f in names.items() if c in scores})


def head(fig: Figure | SubFigure, title: str, axes: Sequence[Axes] = (), columns: int = 4) -> None:
    """What is seen, and below it one legend of what is labelled in ``axes``."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        if ax.legend_:
            ax.legend_.remove()
    title = title.replace(" %", "\N{NO-BREAK SPACE}%")
    title, bold = textwrap.fill(title, round(11.7 * fig.bbox.width / fig.dpi)), {"weight": "bold"}
    if not handles:
        fig.suptitle(title, x=0.01, ha="left", size=10, **bold)
        return
    fig.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper left",
        ncols=min(columns, len(handles)),
        title=title,
        title_fontproperties={"size": 10} | bold,
        alignment="left",
        borderaxespad=0.1,
    )


def name_lines(ax: Axes, gap: float = 9.0) -> None:
    """Name every labelled line of a 0-100 axis at its right end, ``gap`` apart, for a legend."""
    lines = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    lines = sorted(lines.items(), key=lambda line: line[1].get_ydata()[-1])
    ends, steps = np.array([y.get_ydata()[-1] for _, y in lines]), gap * np.arange(len(lines))
    places = np.maximum.accumulate(ends - steps) + steps
    places -= (places - ends).mean()
    for (label, line), y, place in zip(lines, ends, places, strict=True):
        leader = {"arrowstyle": "-", "color": line.get_color(), "relpos": (0, 0.5), "shrinkB": 0}
        across = {"xycoords": ax.get_yaxis_transform(), "textcoords": ax.get_yaxis_transform()}
        ax.annotate(label, (1, y), (1.12, place), va="center", size=9, arrowprops=leader, **across)
    if ax.legend_:
        ax.legend_.remove()


def dots(ax: Axes, rows: pd.DataFrame, order: Sequence[str], looks: Mapping, hue: str) -> None:
    """A row per method in ``order``, a dot per ``hue``, a grey line from the first to the last."""
    ends = rows.groupby(["method", hue]).accuracy.mean().groupby("method").agg(["min", "max"])
    ax.hlines(range(len(order)), *ends.reindex(order).to_numpy().T, color="0.8", zorder=0)
    sns.pointplot(rows, x="accuracy", y="method", hue=hue, order=order, ax=ax, **looks, **DOTS)
    ax.set(xlabel="", ylabel="", xlim=(0, 100))
    ax.grid(axis="y", visible=False)


def bars(ax: Axes, rows: pd.DataFrame, x: str, hue: str, colours: Mapping[str, str]) -> None:
    """A group of bars per ``x``, a bar per ``hue`` with its height inside, whiskers over rows."""
    how = {"errorbar": "sd", "err_kws": {"linewidth": 1.0}, "saturation": 1, "ax": ax}
    sns.barplot(rows, x=x, y="accuracy", hue=hue, hue_order=colours, palette=colours, **how)
    for i, group in enumerate(ax.containers):
        ax.bar_label(group, fmt="%.0f", padding=-11, color="white" if i else "black")
    ax.set(xlabel="", ylim=(0, 100))
    ax.grid(axis="x", visible=False)


def _heat(ax: Axes, table: pd.DataFrame, colour: str, fmt: str) -> None:
    """Numbers in cells, darker where greater."""
    cmap = sns.light_palette(colour, as_cmap=True)
    sns.heatmap(table, annot=True, fmt=fmt, cmap=cmap, cbar=False, linewidths=1, ax=ax)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(rotation=0)


def _line(ax: Axes, data: pd.DataFrame, x: str, style: Style, label: str) -> None:
    """Mean over seeds against a log ``x``, with a band of one standard deviation."""
    how = {"errorbar": "sd", "err_kws": {"linewidth": 0}, "label": label, "ax": ax}
    sns.lineplot(data, x=x, y="accuracy", **how, **style)
    ax.legend_.remove()


def _level(ax: Axes, y: float, style: Style, label: str) -> None:
    """What does not depend on x."""
    ax.axhline(y, label=label, color=style["color"], linestyle=style["linestyle"])


def _log_ticks(ax: Axes, ticks: Mapping[float, str]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.minorticks_off()


def range_of(values: pd.Series | Sequence[float]) -> str:
    """ "9 to 21", or "9" where both ends round to it."""
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _gain(summary: pd.DataFrame, methods: Sequence[str], protocol: str, k: int) -> list[float]:
    """Points that a protocol at k shots is above Current Eval, per method."""
    return [average_of(summary, m, protocol, k) - average_of(summary, m) for m in methods]


def _regained(
    summary: pd.DataFrame, methods: Sequence[str], protocols: Sequence[str], k: int, top: float
) -> str:
    """Which part of the accuracy that merging cost each protocol gives back."""
    lost = np.array([top - average_of(summary, m) for m in methods])
    if lost.min() <= 0:
        return ""
    said = [
        f"{protocol_label(p).removesuffix(' Eval')} "
        f"{range_of(100 * np.array(_gain(summary, methods, p, k)) / lost)} %"
        for p in protocols
    ]
    return f"Lost accuracy regained at k = {k}: {', '.join(said)}"


def _row(panels: int, height: float, width: float = PAGE) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side with one vertical axis."""
    fig, axes = plt.subplots(1, panels, figsize=(width, height), sharey=True, squeeze=False)
    return fig, axes[0]


def plot_shots(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    protocols: Sequence[str],
    *,
    fine_tuned: float | None = None,
) -> Figure:
    """Average accuracy against k, a panel per encoder, a line per few-shot protocol.

    Bands are one standard deviation over seeds. Current Eval and the fine-tuned models are
    horizontal.

    Args:
        scores: As from ``Study.scores``.
        encoders: A panel each.
        protocols: A line each.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
    """
    rows = with_average(scores)
    rows = rows[(rows.task == "average") & rows.protocol.isin(protocols)]
    fig, axes = _row(len(encoders), 3.1)
    for ax, encoder in zip(axes, encoders, strict=True):
        mine = rows[rows.method == encoder]
        if fine_tuned is not None:
            ax.axhline(fine_tuned, label="Fine-tuned models", **BOUND)
        for protocol in protocols:
            drawn, style = mine[mine.protocol == protocol], protocol_style(protocol)
            if drawn.k.isna().all():
                _level(ax, drawn.accuracy.mean(), style, protocol_label(protocol))
            else:
                _line(ax, drawn.astype({"k": float}), "k", style, protocol_label(protocol))
        ks = sorted(mine.k.dropna().astype(int).unique())
        whole = set(mine[mine.draw == "all"].k.dropna().astype(int))
        _log_ticks(ax, {k: "\nall" if k in whole else str(k) for k in ks})
        ax.set(title=short_label(encoder), xlabel="k, shots per class", ylabel="", ylim=(0, 100))
    axes[0].set_ylabel(ACCURACY)
    name_lines(axes[-1])
    few, title, summary = [p for p in protocols if p != "current"], "", mean_and_std(scores)
    if "current" in protocols and fine_tuned is not None:
        ks = scores[scores.protocol.isin(few) & (scores.draw == "stratified")].k.unique()
        k = 5 if 5 in ks else max(ks)
        title = _regained(summary, encoders, few, k, fine_tuned)
        for ax, encoder in zip(axes, encoders, strict=True):
            old, new = average_of(summary, encoder), average_of(summary, encoder, few[0], k)
            said = f"k = {k}: {old:.0f} → {new:.0f} %"
            ax.text(0.5, 0.2, said, ha="center", transform=ax.transAxes)
    head(fig, title)
    return fig


def plot_protocols(
    scores: pd.DataFrame,
    encoders: Sequence[str],
    tasks: Sequence[str],
    *,
    k: int,
) -> Figure:
    """Average accuracy (left, a dot per protocol) and what a protocol gains per task (right).

    Args:
        scores: As from ``Study.scores``.
        encoders: A row each.
        tasks: A column each, on the right.
        k: Shots of the few-shot protocols.
    """
    rows = with_average(at_k(scores, k))
    protocols = [p for p in dict.fromkeys(rows.protocol) if p in set(scores.protocol)]
    best = "ft_classifier" if "ft_classifier" in protocols else protocols[-1]
    order = [short_label(e) for e in encoders]
    size = (PAGE, 1.3 + 0.34 * len(encoders))
    fig, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.15, 1))
    average = rows[rows.task == "average"]
    summary = mean_and_std(at_k(scores, k))
    left.axvline(average_of(summary, FINE_TUNED), label="Fine-tuned models", **BOUND)
    looks = looks_of(protocols, protocol_style, protocol_label)
    dots(left, named(average[average.method.isin(encoders)]), order, looks, "protocol")
    left.set(xlabel=f"{ACCURACY}, k = {k}")
    means = named(rows).groupby(["protocol", "method", "task"]).accuracy.mean()
    gains = (means[protocol_label(best)] - means[protocol_label("current")]).unstack()
    gains = gains.loc[order, [task_label(t) for t in tasks]].round() + 0.0  # no "-0"
    _heat(right, gains, protocol_style(best)["color"], "+.0f")
    right.set_title(f"points from Current to {protocol_label(best)}")
    right.set_yticks([])
    title = f"Accuracy under {len(protocols)} protocols, k = {k}"
    if best == "ft_classifier":
        gain = range_of(_gain(summary, [e for e in encoders if e != BASE], best, k))
        title = f"{k} unlabelled inputs per class re-align the classifier: {gain} points gained"
    head(fig, title, [left], 3)
    return fig


def plot_lam(curves: pd.DataFrame, chosen: Mapping[str, float]) -> Figure:
    """Mean validation accuracy under Current Eval against lambda; the chosen values are ringed."""
    fig, ax = plt.subplots(figsize=(COLUMN, 2.5))
    mean = curves.groupby(["method", "lam"], sort=False).accuracy.mean().mul(100).reset_index()
    looks = looks_of(list(chosen), method_style, short_label)
    how = {"hue": "method", "style": "method", "style_order": looks["hue_order"], "dashes": False}
    sns.lineplot(named(mean), x="lam", y="accuracy", ax=ax, **how, **looks)
    ring = mean[mean.lam == mean.method.map(chosen)]
    ax.scatter(ring.lam, ring.accuracy, s=110, facecolors="none", edgecolors="0.3")
    ax.set(xlabel=r"$\lambda$", ylabel="mean validation accuracy (%)", ylim=(0, 100))
    ax.legend()
    return fig


def plot_clusters(panels: Mapping[tuple[str, str], Mapping[str, Any]]) -> Figure:
    """t-SNE of f_t (pale circles) and f_m (triangles) outputs together, a colour per class.

    A row per task, a column per method, without axes: t-SNE has no units. Of more than ten classes
    ten have a colour, the others are grey.

    Args:
        panels: As from ``tables.cluster_panels``.
    """
    tasks, methods = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    fig, grid = plt.subplots(
        len(tasks), len(methods), figsize=(PAGE, 0.6 + 2.3 * len(tasks)), squeeze=False
    )
    for (task, method), panel in panels.items():
        ax = grid[tasks.index(task)][methods.index(method)]
        hues = np.asarray(class_colours(panel["classes"]))[np.asarray(panel["labels"])]
        order = np.argsort(np.ptp(hues, axis=1) > 0)  # colours lie above grey
        for points, marker, shades in zip(
            panel["points"], "o^", (0.35 * hues + 0.65, hues), strict=True
        ):
            ax.scatter(*points[order].T, c=shades[order], marker=marker, s=11, lw=0)
        ax.set_title(f"{task_label(task)}, {short_label(method)} ({panel['accuracy']:.0f} %)")
        said = f"label purity {panel['purity_t']:.2f} → {panel['purity_m']:.2f}"
        said += f"\nsource purity {panel['source']:.2f}"
        ax.text(0.5, -0.02, said, ha="center", va="top", transform=ax.transAxes, color="0.3")
        ax.set_axis_off()
    most = max(p["classes"] for p in panels.values())
    some = f", {len(CLASS_COLOURS)} of up to {most} classes in colour" * (most > len(CLASS_COLOURS))
    names = ("fine-tuned outputs $f_t$", f"merged outputs $f_m$ (colour: class{some})")
    for marker, colour, name in zip("o^", ("0.75", "0.25"), names, strict=True):
        ax.scatter([], [], marker=marker, color=colour, label=name)
    kept = range_of([100 * p["purity_m"] / p["purity_t"] for p in panels.values()])
    head(fig, f"Merged outputs keep {kept} % of the label purity of fine-tuned ones", [ax], 2)
    return fig


def plot_contact_sheet(sheets: Mapping[str, tuple[Sequence[str], Any]], columns: int = 2) -> Figure:
    """Images with their class names, a block per task.

    Args:
        sheets: Task -> the names of the rows, and uint8 images ``[rows, each, 3, H, W]``.
        columns: Blocks side by side.
    """
    lines = -(-len(sheets) // columns)
    most = max(len(names) for names, _ in sheets.values())
    size = (PAGE, lines * (0.36 + 0.3 * most))
    fig, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for ax in axes.flat[len(sheets) :]:
        ax.set_axis_off()
    for ax, (task, (names, images)) in zip(axes.flat, sheets.items(), strict=False):
        rows, _, _, height, _ = np.asarray(images).shape
        gap = max(1, height // 16)
        edge = ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap))
        sheet = np.pad(images, edge, constant_values=255).transpose(0, 3, 1, 4, 2)
        ax.imshow(sheet.reshape(rows * (height + gap), -1, 3), interpolation="nearest")
        centres = [r * (height + gap) + height / 2 for r in range(rows)]
        ax.set_yticks(centres, [textwrap.fill(n, 16) for n in names])
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

    Inputs are drawn from the test set; bands are one standard deviation over seeds.

    Args:
        panels: Title -> summary of ``unlabelled.scores``.
        methods: A column each.
        counts: Share -> number of inputs, named below the axis.
        too_few: Up to this share some task has more classes than inputs, which is shaded.
    """
    size = (PAGE, 0.9 + 2.0 * len(panels))
    fig, axes = plt.subplots(
        len(panels), len(methods), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    middle, gains = sorted(counts)[len(counts) // 2], []
    for row, (title, summary) in zip(axes, panels.items(), strict=True):
        rows, bound = averages(summary), average_of(summary, FINE_TUNED)
        for ax, method in zip(row, methods, strict=True):
            mine = rows[(rows.method == method) & (rows.fit_on != "train")]
            ax.axhline(bound, label="Fine-tuned models", **BOUND)
            for protocol, drawn in mine.groupby("protocol", sort=False):
                style, label = protocol_style(protocol), protocol_label(protocol)
                if drawn.share.isna().all():
                    _level(ax, drawn["mean"].iloc[0], style, label)
                    continue
                sns.lineplot(drawn, x="share", y="mean", ax=ax, label=label, **style)
                low, high = drawn["mean"] - drawn["std"], drawn["mean"] + drawn["std"]
                ax.fill_between(drawn.share, low, high, color=style["color"], alpha=0.2, lw=0)
                if protocol == "ft_classifier":
                    here = drawn.set_index("share")["mean"][middle]
                    gains.append(here - average_of(summary, method))
            _log_ticks(ax, {s: f"{s:g}" for s in counts})
            if too_few:
                ax.axvspan(min(counts) / 1.3, too_few * 1.15, color="0.93", zorder=0)
            ax.set(xlim=(min(counts) / 1.3, max(counts) * 1.3), ylim=(0, 100), xlabel="")
        row[0].set_ylabel(title.replace(" (", "\n("))
        name_lines(row[-1], 11)
        for ax in row[:-1]:
            ax.legend_.remove()
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(short_label(method))
    few, *_, many = counts.values()
    grey = "; grey: in some task fewer than classes" if too_few else ""
    fig.supxlabel(f"share of the test set in % ({few} to {many} inputs per task{grey})")
    fig.supylabel(ACCURACY)
    title = f"{middle:g} % of the test set, unlabelled: {range_of(gains)} points gained"
    head(fig, title if gains else "")
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
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 3.3), width_ratios=(1.35, 1))
    left.axvspan(fine_tuned - margin, fine_tuned, color="0.88", label=f"{margin:g} points below")
    left.axvline(fine_tuned, label="Fine-tuned models", **BOUND)
    methods = list(dict.fromkeys(accuracies.method))
    rungs, ring = list(dict.fromkeys(accuracies.rung)), {"facecolors": "none", "s": 60}
    closed_form = accuracies[:0] if closed_form is None else closed_form
    for i, method in enumerate(methods):
        rows = accuracies[accuracies.method == method].set_index("rung").loc[rungs]
        y = np.arange(len(rungs)) + (i - (len(methods) - 1) / 2) * 0.2
        closed = closed_form[closed_form.method == method].set_index("rung").accuracy
        colour = method_style(method)["color"]
        left.scatter(closed.reindex(rungs), y, edgecolors=colour, zorder=1, **ring)
        error = {"xerr": rows["std"].fillna(0), "elinewidth": 1.0, "linestyle": "none"}
        left.errorbar(rows.accuracy, y, label=short_label(method), **error, **method_style(method))
    left.set(xlim=(0, 100), ylim=(len(rungs) - 0.5, -0.5), xlabel=ACCURACY)
    left.set_yticks(range(len(rungs)), map(rung_label, rungs))
    left.grid(axis="y", visible=False)
    table = r2.assign(method=r2.method.map(short_label)).pivot(
        index="step", columns="method", values="increment"
    )
    table = table.loc[r2.step.unique(), [short_label(m) for m in r2.method.unique()]]
    table.loc["together"] = table.sum()
    _heat(right, table, "0.2", ".2f")
    right.set_title("held-out $R^2$ of $f_t$ by step")

    def missing(found: pd.DataFrame) -> str:
        mapped = found[(found.rung == rung) & (found.method != BASE)].accuracy
        return range_of(fine_tuned - mapped)

    rung = "orthogonal" if "orthogonal" in rungs else rungs[-1]
    title = f"{rung_label(rung)} map: merges stay {missing(accuracies)} points below $f_t$"
    if len(closed_form):
        left.scatter([], [], edgecolors="0.3", label="in closed form", **ring)
        title += f" ({missing(closed_form)} in closed form)"
    head(fig, title, [left], 4)
    return fig


def plot_controls(rows: pd.DataFrame) -> Figure:
    """Left: accuracy of alignments fitted on training inputs. Right: points that inputs to be
    scored add to it. A row per fit, a dot per encoder.

    Args:
        rows: Columns fit, condition, method, accuracy, as from ``controls.fitted_on``.
    """
    rows = rows.assign(fit=rows.fit.map(lambda fit: textwrap.fill(fit, 20)))
    methods, fits = list(dict.fromkeys(rows.method)), list(dict.fromkeys(rows.fit))
    first = rows[(rows.fit == fits[0]) & (rows.condition == "none")].assign(fit="no alignment")
    train, test = (rows[rows.condition == c] for c in ("train", "test"))
    keys = ["fit", "method"]
    leak = (test.set_index(keys).accuracy - train.set_index(keys).accuracy).dropna().reset_index()
    size = (PAGE, 1.4 + 0.36 * len(fits))
    fig, axes = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(1.6, 1))
    looks = looks_of(methods, method_style, short_label)
    for ax, drawn in zip(axes, (pd.concat([first, train]), leak), strict=True):
        how = {"order": ["no alignment", *fits], "dodge": 0.5, "ax": ax}
        sns.pointplot(named(drawn), x="accuracy", y="fit", hue="method", **how, **looks, **DOTS)
        ax.set(xlabel="", ylabel="")
    axes[0].set(xlim=(0, 100), title=f"{ACCURACY}, fitted on training inputs")
    axes[1].set_title("points that scored inputs add")
    axes[1].axvline(0, **BOUND)
    title = ""
    if len(leak):
        most = leak.accuracy.max()
        title = f"Fitting on the scored inputs flatters an alignment by up to {most:.0f} points"
    head(fig, title, axes, 5)
    return fig


def plot_ranking(means: pd.DataFrame, fine_tuned: float, *, mark: float = 4) -> Figure:
    """Left: ranks from Current to FT-Classifier Eval. Right: accuracy, a dot per protocol.

    Args:
        means: As from ``ranking.means``, in the order of FT-Classifier Eval, which the rows share.
        fine_tuned: Accuracy of the fine-tuned models, in percent.
        mark: Methods that move by as many ranks or more are drawn in black.
    """
    first, last = "current", "ft_classifier"
    size = (PAGE, 1.5 + 0.21 * len(means))
    fig, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1, 1.35))
    # Equal ranks would lie on one line.
    ranks = means[[first, last]].rank(ascending=False).rank(method="first")
    moved = ranks[first] - ranks[last]
    for method, place in ranks.iterrows():
        far = abs(moved[method]) >= mark
        word = "up" if moved[method] > 0 else "down"
        how = {"color": "black", "linewidth": 1.8} if far else {"color": "0.7", "linewidth": 0.9}
        how |= {"linestyle": "--" if far and word == "down" else "-", "markersize": 3.5}
        label = f"{word} by {mark:g} or more" if far else None
        left.plot([0, 1], place, marker="o", label=label, **how)
        left.text(-0.06, place[first], short_label(method), ha="right", va="center", size=9)
        left.text(1.06, place[last], short_label(method), va="center", size=9)
    left.set(xlim=(-0.75, 1.75), ylim=(len(ranks) + 0.6, 0.4), yticks=[])
    left.set_xticks([0, 1], ["rank under\nCurrent Eval", "rank under\nFT-Classifier"])
    left.grid(visible=False)
    sns.despine(ax=left, left=True, bottom=True)
    for protocol in means:
        style = protocol_style(protocol) | {"linestyle": "none"}
        right.plot(means[protocol], ranks[last], label=protocol_label(protocol), **style)
    right.axvline(fine_tuned, label="Fine-tuned models", **BOUND)
    right.set_yticks(ranks[last], [])
    right.set(xlim=(0, 100), ylim=(len(means) + 0.6, 0.4), xlabel=ACCURACY)
    best = [short_label(means[p].idxmax()) for p in (first, last)]
    same = best[0] == best[1]
    won = f"{best[0]} is first" if same else f"{best[0]} is first, or {best[1]} once re-aligned,"
    head(fig, f"{won} of {len(means)} merging methods", (left, right), 3)
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
    fig, axes = _row(len(columns), 1.4 + 0.21 * len(rows))
    every = list(dict.fromkeys(kinds.values()))
    looks = {"style": "kind", "style_order": every, "color": "0.25", "s": 36}
    looks["markers"] = dict(zip(every, "os^DvP", strict=False))
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        sns.scatterplot(rows, x=column, y="place", ax=ax, **looks)
        if rows.below.any():
            ax.axhline((~rows.below).sum() + 0.5, color="black", linewidth=0.8)
        ax.set(xlabel=label, ylabel="")
        if column == "ft_classifier":
            ax.set_xlim(0, 100)
            continue
        ax.set_xscale("log")
        wide = rows[column].max() > 30 * rows[column].min()
        ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    axes[0].set_yticks(rows.place, [short_label(m) for m in rows.method])
    axes[0].set_ylim(len(rows) + 0.6, 0.4)
    best = rows[~rows.below].iloc[0]
    title = f"{short_label(best.method)}, the most accurate single merge, takes "
    title += f"{best.seconds:.1f} s, the slowest {rows.seconds.max():.0f} s"
    head(fig, title, axes, 3)
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
    fig, axes = _row(len(settings), 1.3 + 0.3 * len(methods))
    looks = looks_of([r for r in COMPARED if r in set(means.repair)], REPAIR_STYLE.get, labels.get)
    for ax, setting in zip(axes, settings, strict=True):
        mine = named(means[(means.setting == setting) & means.repair.isin(COMPARED)])
        ax.axvline(mine.expert.mean(), label="experts", **BOUND)
        dots(ax, mine.assign(repair=mine.repair.map(labels)), methods, looks, "repair")
        ax.set_title(setting)
    fig.supxlabel(ACCURACY)
    last = means[means.setting == settings[-1]].pivot(
        index="method", columns="repair", values="accuracy"
    )
    title = ""
    if set(COMPARED) <= set(last):
        gains = {labels[r]: range_of(last[r] - last.permuted) for r in ("ft_classifier", "tact")}
        said = ", ".join(f"{name} {points}" for name, points in gains.items())
        title = f"Points regained by {settings[-1]} merges: {said}"
    head(fig, title, axes, 5)
    return fig


def plot_variance(frame: pd.DataFrame) -> Figure:
    """Variance of merged activations over the experts', at the end of each block.

    Args:
        frame: Columns method, stage, kind, block, ratio; a panel per method, a line per stage.
    """
    ends = frame[frame.kind.isin(("embeddings", "block"))]
    methods, stages = list(dict.fromkeys(ends.method)), list(dict.fromkeys(ends.stage))
    fig, axes = _row(len(methods), 2.8)
    plain = {"color": "black", "marker": "o", "linestyle": "-"}
    looks = (plain, plain | {"color": "0.45", "marker": "D", "linestyle": "-."})
    looks += (REPAIR_STYLE["raw"], REPAIR_STYLE["permuted"])
    for ax, method in zip(axes, methods, strict=True):
        ax.axhline(1.0, label="as in the experts", **BOUND)
        for stage, look in zip(stages, looks, strict=False):
            rows = ends[(ends.method == method) & (ends.stage == stage)]
            sns.lineplot(rows, x="block", y="ratio", ax=ax, errorbar=None, label=stage, **look)
        blocks = sorted(ends.block.unique())
        ax.set_xticks(blocks, ["emb." if b == 0 else str(b) for b in blocks])
        ax.set(title=short_label(method), xlabel="end of block", ylabel="")
    axes[0].set_ylabel("variance over experts'")
    last = ends[ends.block == ends.block.max()].groupby("stage").ratio.agg(["min", "max"])
    said = [f"{last['min'][s]:.1f} to {last['max'][s]:.1f} ({s})" for s in (stages[0], stages[-1])]
    head(fig, f"Last block, times the experts' variance: {', '.join(said)}", axes, 3)
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
    _level(ax, start, REPAIR_STYLE["permuted"], labels["permuted"])
    for repair, rows in frame.groupby("repair", sort=False):
        _line(ax, rows, "inputs", REPAIR_STYLE[repair], labels[repair])
    _log_ticks(ax, {n: f"{n:.0f}" for n in sorted(set(frame.inputs))})
    ax.set(xlabel="unlabelled inputs per task (mean)", ylabel=ACCURACY, ylim=(0, 100))
    name_lines(ax)
    most = frame[frame.inputs == frame.inputs.max()].groupby("repair", sort=False).accuracy.mean()
    said = ", ".join(f"{labels[r]} {most[r]:.0f}" for r in most.index)
    head(fig, f"{frame.inputs.max():.0f} inputs: {said} % (experts {experts:.0f})")
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
    fig, axes = _row(len(panels), 3.1, width)
    gains, base = [], []
    colours = {protocol_label(p): protocol_style(p)["color"] for p in protocols}
    for ax, (title, scores) in zip(axes, panels.items(), strict=True):
        rows, summary = with_average(at_k(scores, k)), mean_and_std(at_k(scores, k))
        rows = rows[(rows.task == "average") & rows.protocol.isin(protocols)]
        rows = pd.concat([rows[rows.method == e] for e in encoders])
        bars(ax, named(rows), "method", "protocol", colours)
        ax.axhline(average_of(summary, FINE_TUNED), label="Fine-tuned models", **BOUND)
        ax.axhline(chance, label="chance", **BOUND | {"linestyle": "--", "zorder": 0.5})
        ax.set(title=title, ylabel="" if gains else f"{ACCURACY}, k = {k}")
        found = dict(zip(encoders, _gain(summary, encoders, protocols[-1], k), strict=True))
        base += [found.pop(BASE)] if BASE in found else []
        gains += found.values()
    title = f"{protocol_label(protocols[-1])}: merges gain {range_of(gains)} points"
    title += f", f_b {range_of(base)}" if base else ""
    head(fig, title, axes, columns)
    return fig
