"""The one-page figure of the report: what the protocols measure, and which claims hold."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..claims import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, UNDECIDED, Verdict
from ..core import paths
from ..study import FINE_TUNED
from ..tables import protocol_label, short_label
from ..tables.committed import AS_COMMITTED
from ..tables.paper import THREE
from ..tables.report import (
    Run,
    alt,
    claim_grid,
    deciding_part,
    figures_folder,
    report_markdown,
)
from ..tables.verdicts import NOT_RUN, pretty
from .save import save_files
from .style import PAGE, protocol_style

CELL_STYLE = {
    NOT_REPRODUCED: ("#E9A58B", "black", "✗"),
    UNDECIDED: ("#F8E9C8", "black", "?"),
    REPRODUCED: ("#FFFFFF", "black", "✓"),
    NOT_JUDGED: ("#EEEEEE", "black", "·"),
    NOT_RUN: ("#EEEEEE", "#555555", "–"),
}
"""Face, text and sign of a verdict's cell: the signs alone tell the verdicts apart."""


def plot_report(means: pd.DataFrame, rows: pd.DataFrame, *, k: int = 5) -> Figure:
    """One page: above what the protocols measure, a panel per profile, below which claims hold.

    ``means`` as from ``averages``, ``rows`` as from ``verdict_rows``.
    """
    grid = claim_grid(rows)
    height = 1.9 + 0.55 + 0.31 * len(grid)
    fig = plt.figure(figsize=(PAGE, height))
    upper, lower = fig.subfigures(2, 1, height_ratios=(1.9, height - 1.9))
    profiles = list(dict.fromkeys(means.profile))
    encoders = [
        e
        for e in dict.fromkeys(means.method)
        if ((means.method == e) & (means.protocol == "ft_classifier")).any()
    ]
    axes = upper.subplots(1, len(profiles), sharex=True, sharey=True, squeeze=False)[0]
    for ax, profile in zip(axes, profiles, strict=True):
        mine = means[means.profile == profile].set_index(["method", "protocol"])["mean"]
        ax.axvline(
            mine[FINE_TUNED, "current"],
            color="black",
            linewidth=1.0,
            linestyle=":",
            label="Fine-tuned models $f_t$",
        )
        for row, encoder in enumerate(encoders):
            values = [mine.get((encoder, p), np.nan) for p in THREE]
            ax.plot([values[0], values[-1]], [row, row], color="0.75", linewidth=1.0, zorder=1)
            for protocol, value in zip(THREE, values, strict=True):
                style = {
                    key: v for key, v in protocol_style(protocol).items() if key != "linestyle"
                }
                ax.plot([value], [row], linestyle="none", label=protocol_label(protocol), **style)
        ax.set_title(profile)
        ax.set_yticks(range(len(encoders)), [short_label(e) for e in encoders])
        ax.grid(axis="y", visible=False)
    axes[0].set_ylim(len(encoders) - 0.5, -0.5)
    upper.supxlabel(f"average accuracy (%), k = {k}", fontsize=8)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    upper.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    _draw_grid(lower.subplots(), grid, rows)
    return fig


def _draw_grid(ax: Axes, grid: pd.DataFrame, rows: pd.DataFrame) -> None:
    ax.set_axis_off()
    if grid.empty:
        ax.text(0, 0.5, "No claim has been judged yet.", fontsize=8)
        return
    left, width = 0.5, 0.5 / len(grid.columns)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(grid) - 0.45, -1.0)
    for j, profile in enumerate(grid.columns):
        ax.text(left + (j + 0.5) * width, -0.62, profile, ha="center", va="center", fontsize=8)
    ax.text(0, -0.62, "Claim, and what it asks of the number on the right", va="center", fontsize=8)
    for i, claim in enumerate(grid.index):
        mine = rows[rows.claim == claim]
        # No line may end between a comparison and its number.
        asks = pretty(mine.threshold.iloc[0]).replace(" ", "\N{NO-BREAK SPACE}")
        label = "\n".join(
            textwrap.wrap(f"{claim}: {mine.says.iloc[0]}, {asks}", 66, break_on_hyphens=False)
        )
        ax.text(0, i, label, va="center", fontsize=6.5, linespacing=1.05)
        for j, profile in enumerate(grid.columns):
            face, ink, sign = CELL_STYLE[grid.loc[claim, profile]]
            ax.add_patch(
                plt.Rectangle(
                    (left + j * width, i - 0.44),
                    width * 0.97,
                    0.88,
                    facecolor=face,
                    edgecolor="0.4",
                    linewidth=0.5,
                )
            )
            parts = mine[mine.profile == profile]
            said = f"{sign}  {grid.loc[claim, profile]}" + (
                f"\n{_number(deciding_part(parts), interval=len(grid.columns) < 3)}"
                if len(parts)
                else ""
            )
            ax.text(
                left + (j + 0.485) * width,
                i,
                said,
                ha="center",
                va="center",
                fontsize=6.2,
                color=ink,
                linespacing=1.1,
            )


def _number(part: Verdict, *, interval: bool) -> str:
    """ "WA: 0.41 (0.38 .. 0.44)": the deciding part, its value and, given room, its interval."""
    if part.here is None:
        return ""
    digits = 1 if abs(part.here) >= 10 else 2
    said = f"{part.part.replace(' Eval', '')}: {part.here:.{digits}f}"
    return said + (f" ({part.low:.{digits}f} .. {part.high:.{digits}f})" if interval else "")


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
