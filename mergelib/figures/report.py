"""The one-page figure of the report: what the protocols measure, and which claims hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure

from ..claims import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, UNDECIDED
from ..core import paths
from ..core.names import BASE, FINE_TUNED
from ..tables.paper import THREE
from ..tables.readings import load_readings
from ..tables.report import Run, alt, claim_grid, figures_folder, report_markdown
from ..tables.verdicts import NOT_RUN, ORDER
from .plots import BOUND, dots, head, heat, of_protocols, range_of
from .save import save_files
from .style import PAGE

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

    Args:
        means: As from ``averages``.
        rows: As from ``verdict_rows``.
        k: Shots per class of ``means``, for the labels.
    """
    grid, groups = claim_grid(rows), {}
    for group in load_readings()["groups"]:
        claims = [r["claim"] for r in group["claims"] if r["claim"] in grid.index]
        if claims:
            groups[group["title"].removeprefix("The ").capitalize()] = grid.loc[claims]
    tallest = max(map(len, groups.values()), default=1)
    fig = plt.figure(figsize=(PAGE, 3.0 + 0.26 * tallest))
    upper, lower = fig.subfigures(2, 1, height_ratios=(2.2, 0.8 + 0.26 * tallest))
    drawn = means[means.protocol.isin(THREE)].rename(columns={"mean": "accuracy"})
    table = drawn.pivot_table("accuracy", ["profile", "method"], "protocol", sort=False)
    profiles = list(means.profile.unique())
    encoders = table.dropna(subset="ft_classifier").droplevel(0).index.unique()
    axes = upper.subplots(1, len(profiles), sharey=True, squeeze=False)[0]
    shares = []
    for ax, profile in zip(axes, profiles, strict=True):
        cells, top = table.loc[profile], table.current[profile, FINE_TUNED]
        ax.axvline(top, **BOUND)
        dots(ax, drawn[drawn.profile == profile], "method", encoders, of_protocols(THREE))
        ax.set_title(profile)
        merges = cells.drop([BASE, FINE_TUNED], errors="ignore").dropna(subset="ft_classifier")
        regained = 100 * (merges.ft_classifier - merges.current) / (top - merges.current)
        shares += [f"{profile.split(' ')[0]} {range_of(regained)} %"] if len(regained) else []
    upper.supxlabel(f"average accuracy (%), k = {k}")
    title = f"Lost accuracy regained by FT-Classifier, k = {k}: {', '.join(shares)}"
    head(upper, title if shares else "")
    _draw_grid(lower, groups, tallest)
    return fig


def _draw_grid(fig: SubFigure, groups: Mapping[str, pd.DataFrame], tallest: int) -> None:
    """A claim a row, a profile a column; the numbers stand in the README's table."""
    axes = fig.subplots(1, max(1, len(groups)), squeeze=False)[0]
    if not groups:
        axes[0].set_axis_off()
        axes[0].text(0, 0.5, "No claim has been judged yet.")
    signs = {v: sign for v, (_, sign) in CELL_STYLE.items()}
    faces = ListedColormap([CELL_STYLE[v][0] for v in ORDER])
    ends = {"vmin": -0.5, "vmax": len(ORDER) - 0.5}
    how = {"linecolor": "0.6", "annot_kws": {"color": "black"}} | ends
    for ax, (name, grid) in zip(axes, groups.items(), strict=False):
        heat(ax, grid.map(ORDER.index), faces, "", grid.map(signs.get), **how)
        ax.set_ylim(tallest, 0)
        ax.set_yticklabels([fill(claim, 16) for claim in grid.index])  # wraps at hyphens
        ax.set_title(name, loc="right")
        ax.grid(visible=False)
        ax.tick_params(labelbottom=False, labeltop=True)
    present = [v for v in ORDER if any((grid == v).any(axis=None) for grid in groups.values())]
    fig.supxlabel("     ".join(f"{signs[v]}  {v}" for v in present))


def save_report(
    fig: Figure,
    stem: str,
    runs: Sequence[Run],
    means: pd.DataFrame,
    rows: pd.DataFrame,
    profile: str,
    compared: str,
) -> str:
    """Write the figure with its numbers, and ``figures/REPORT.md``.

    Args:
        fig: As from ``plot_report``.
        stem: The files' name.
        runs: As from ``read_runs``.
        means: As from ``averages``.
        rows: As from ``verdict_rows``.
        profile: In whose folder the figure goes.
        compared: Whether the numbers are the committed ones, in words.

    Returns:
        The PNG's path in the project.
    """
    run = next((r for r in runs if r.profile == profile), runs[0])
    place = save_files(
        fig,
        stem,
        profile,
        alt=alt(means, rows),
        data={"": means, "claims": rows},
        sidecar={
            "profile": {"name": profile, "judged": run.judged},
            "overrides": {},
            "sources": {},
            "claims": {},
            "verdicts": [],
            "runs": {r.profile: list(r.sidecars) for r in runs},
        },
    )
    paths.write_whole(figures_folder() / "REPORT.md", report_markdown(compared=compared).encode())
    return place
