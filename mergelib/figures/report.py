"""The one-page figure of the report: what the protocols measure, and which claims hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from ..claims import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, UNDECIDED
from ..core import paths
from ..core.names import BASE, FINE_TUNED
from ..tables import protocol_label, short_label
from ..tables.committed import AS_COMMITTED
from ..tables.paper import THREE
from ..tables.readings import load_readings
from ..tables.report import Run, alt, claim_grid, figures_folder, report_markdown
from ..tables.verdicts import NOT_RUN, ORDER
from .plots import BOUND, dots, head, looks_of, named, range_of
from .save import save_files
from .style import PAGE, protocol_style

CELL_STYLE = {
    NOT_REPRODUCED: ("#E9A58B", "✗"),
    UNDECIDED: ("#F8E9C8", "?"),
    REPRODUCED: ("#FFFFFF", "✓"),
    NOT_JUDGED: ("#EEEEEE", "·"),
    NOT_RUN: ("#EEEEEE", "–"),
}
"""Face and sign of a verdict's cell: the signs alone tell the verdicts apart."""


def plot_report(means: pd.DataFrame, rows: pd.DataFrame, *, k: int = 5) -> Figure:
    """One page: above what the protocols measure, a panel per profile, below which claims hold.

    ``means`` as from ``averages``, ``rows`` as from ``verdict_rows``.
    """
    grid = claim_grid(rows)
    groups = {
        group.title.removeprefix("The ").capitalize(): mine
        for group in load_readings().groups
        if len(mine := grid.loc[[r.claim for r in group.claims if r.claim in grid.index]])
    }
    tallest = max(map(len, groups.values()), default=1)
    fig = plt.figure(figsize=(PAGE, 2.9 + 0.24 * tallest))
    upper, lower = fig.subfigures(2, 1, height_ratios=(2.2, 0.7 + 0.24 * tallest))
    drawn = means[means.protocol.isin(THREE)].rename(columns={"mean": "accuracy"})
    encoders = drawn[drawn.protocol == "ft_classifier"].method.unique()
    profiles = list(dict.fromkeys(means.profile))
    axes = upper.subplots(1, len(profiles), sharey=True, squeeze=False)[0]
    looks = looks_of(THREE, protocol_style, protocol_label)
    for ax, profile in zip(axes, profiles, strict=True):
        mine = drawn[drawn.profile == profile]
        bound = mine[(mine.method == FINE_TUNED) & (mine.protocol == "current")].accuracy
        ax.axvline(bound.mean(), label="Fine-tuned models", **BOUND)
        shown = named(mine[mine.method.isin(encoders)])
        dots(ax, shown, [short_label(e) for e in encoders], looks, "protocol")
        ax.set_title(profile)
    upper.supxlabel(f"average accuracy (%), k = {k}")
    table = drawn.pivot_table(index=["profile", "method"], columns="protocol", values="accuracy")
    merges = table.drop(index=[BASE, FINE_TUNED], level="method", errors="ignore").dropna()
    lost = merges.index.get_level_values("profile").map(table.current.xs(FINE_TUNED, level=1))
    back = 100 * (merges.ft_classifier - merges.current) / (lost - merges.current)
    said = [f"{p.split(' ')[0]} {range_of(back[p])} %" for p in profiles if p in back]
    title = f"Lost accuracy regained by FT-Classifier, k = {k}: {', '.join(said)}"
    head(upper, title if said else "", axes, 4)
    _draw_grid(lower, groups, tallest)
    return fig


def _draw_grid(fig: SubFigure, groups: Mapping[str, pd.DataFrame], tallest: int) -> None:
    """A claim a row, a profile a column; the numbers stand in the README's table."""
    axes = fig.subplots(1, max(1, len(groups)), squeeze=False)[0]
    if not groups:
        axes[0].set_axis_off()
        axes[0].text(0, 0.5, "No claim has been judged yet.")
    look = {"cmap": ListedColormap([CELL_STYLE[v][0] for v in ORDER]), "cbar": False, "fmt": ""}
    look |= {"vmin": -0.5, "vmax": len(ORDER) - 0.5, "linewidths": 1, "linecolor": "0.6"}
    for ax, (name, grid) in zip(axes, groups.items(), strict=False):
        signs = grid.map(lambda verdict: CELL_STYLE[verdict][1])
        ink = {"annot": signs, "annot_kws": {"color": "black"}}
        sns.heatmap(grid.map(ORDER.index), ax=ax, **look, **ink)
        ax.set(xlabel="", ylabel="", ylim=(tallest, 0))
        ax.set_title(name, loc="right")
        ax.grid(visible=False)
        ax.tick_params(rotation=0, labelbottom=False, labeltop=True)
        sns.despine(ax=ax, left=True, bottom=True)
    seen = [v for v in ORDER if any((grid == v).any(axis=None) for grid in groups.values())]
    fig.supxlabel("     ".join(f"{CELL_STYLE[v][1]}  {v}" for v in seen))


def save_report(
    fig: Figure,
    stem: str,
    runs: Sequence[Run],
    means: pd.DataFrame,
    rows: pd.DataFrame,
    profile: str,
    compared: str = AS_COMMITTED,
) -> str:
    """Write the figure with its numbers and ``figures/REPORT.md``, which says ``compared``: whether
    the numbers are the committed ones; returns the PNG's place."""
    mine = next((r for r in runs if r.profile == profile), runs[0])
    place = save_files(
        fig,
        stem,
        profile,
        alt=alt(means, rows),
        data={"": means, "claims": rows},
        sidecar={
            "profile": {"name": profile, "judged": mine.judged},
            "overrides": {},
            "sources": {},
            "claims": {},
            "verdicts": [],
            "runs": {r.profile: list(r.sidecars) for r in runs},
        },
    )
    paths.write_whole(figures_folder() / "REPORT.md", report_markdown(compared=compared).encode())
    return place
