"""The report: every claim and number that the notebooks of all profiles left under ``figures/``. Reads, computes nothing new.

``figures/REPORT.md`` is written from here, and the README's result section is a part of that file.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import paths
from .claims import (
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    claims_hash,
    load_claims,
    overall_of_parts,
    parse_condition,
)
from .errors import DataError
from .plots import PAGE, protocol_style, save_files
from .report import (
    at_k,
    encoder_label,
    mean_and_std,
    protocol_label,
    published,
    published_table2,
    short_label,
)
from .runner import manifest
from .study import BASE, FINE_TUNED

REPORT_ID = "99_report"
PAPER, NOT_RUN = (
    "paper (BERT-base)",
    "not run",
)  # the printed numbers; a profile is called paper, too
ORDER = (NOT_REPRODUCED, UNDECIDED, REPRODUCED, NOT_JUDGED, NOT_RUN)  # failing first
SHOWN_PROTOCOLS = ("current", "knn", "ft_classifier")
README_PART = ("<!-- the README shows this part -->", "<!-- /the README shows this part -->")


@dataclass(frozen=True)
class Run:
    """What a profile's notebooks left: sidecars by notebook id, in the manifest's order."""

    profile: str
    folder: Path
    sidecars: dict[str, dict]

    @property
    def settings(self) -> dict:
        """The profile as the first notebook used it."""
        return next(iter(self.sidecars.values()))["profile"]

    @property
    def judged(self) -> bool:
        return self.settings["judged"]

    @property
    def data(self) -> str:
        """Where the tasks came from."""
        return "; ".join(
            dict.fromkeys(
                source for s in self.sidecars.values() for source in s["sources"].values()
            )
        )


def read_runs(folder: Path | None = None) -> list[Run]:
    """Every profile with a sidecar under ``folder`` (``figures/``); a profile that is not judged only where no other was run.

    Raises ``DataError`` when there is none, or a sidecar cannot be read.
    """
    folder = folder or paths.output_root() / "figures"
    runs = []
    for place in sorted(p for p in folder.glob("*") if p.is_dir()):
        sidecars = {}
        for item in manifest():
            path = place / f"{item.id}.json"
            if item.id != REPORT_ID and path.is_file():
                try:
                    sidecars[item.id] = json.loads(path.read_text())
                except ValueError as error:
                    raise DataError(
                        f"{path} is not JSON ({error}); run its notebook again."
                    ) from error
        if sidecars:
            runs.append(Run(place.name, place, sidecars))
    if not runs:
        raise DataError(
            f"No notebook has left anything under {folder}; run some first: ./run_all.sh"
        )
    return [r for r in runs if r.judged] or runs


def verdict_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Every part of every claim, failing claims first: columns profile, claim, says, part, here, low, high, threshold, verdict,
    note, notebook. A claim that several notebooks judge is named once, with the first of them."""
    rows: dict[tuple, dict] = {}
    for run in runs:
        for notebook, sidecar in run.sidecars.items():
            for v in sidecar["verdicts"]:
                rows.setdefault(
                    (run.profile, v["claim"], v["part"]),
                    {"profile": run.profile, **v, "notebook": notebook},
                )
    columns = [
        "profile",
        "claim",
        "says",
        "part",
        "here",
        "low",
        "high",
        "threshold",
        "verdict",
        "note",
        "notebook",
    ]
    frame = pd.DataFrame(rows.values(), columns=[c for c in columns if c != "says"])
    says = {claim: given["says"] for claim, given in load_claims().items()}
    frame = frame.assign(says=frame.claim.map(says))[columns]
    grid = claim_grid(frame)
    return frame.sort_values(
        "claim",
        key=lambda c: c.map({name: i for i, name in enumerate(grid.index)}),
        kind="stable",
        ignore_index=True,
    )


def deciding_part(parts: pd.DataFrame) -> pd.Series:
    """The part that decides a claim: among those with the claim's verdict, the one farthest to the failing side."""
    same = parts[parts.verdict == overall_of_parts(parts.verdict)].reset_index(drop=True)
    if same.here.isna().all():
        return same.iloc[0]
    # Which side fails can be read off the comparison itself: a very large value passes ">", and fails "<".
    passes_large = parse_condition(same.threshold[0])[0](float("inf"), 0.0)
    return same.iloc[
        same.here.astype(float).idxmin() if passes_large else same.here.astype(float).idxmax()
    ]


def claim_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, failing ones first, a column per profile with its verdict (``not run`` where there is none)."""
    profiles, verdicts = list(dict.fromkeys(rows.profile)), {}
    for (claim, profile), parts in rows.groupby(["claim", "profile"], sort=False):
        verdicts.setdefault(claim, dict.fromkeys(profiles, NOT_RUN))[profile] = overall_of_parts(
            parts.verdict
        )
    claims = sorted(verdicts, key=lambda c: min(ORDER.index(v) for v in verdicts[c].values()))
    return pd.DataFrame(
        [verdicts[c] for c in claims], index=pd.Index(claims, name="claim"), columns=profiles
    )


def averages(runs: Sequence[Run], k: int = 5) -> pd.DataFrame:
    """Average accuracy over the tasks at k shots, the paper's and each profile's: columns profile, method, protocol, mean, std.

    From Table 2's rows; a profile without that notebook, or without k among its shots, has none.
    """
    paper = published_table2()
    paper = paper[(paper.task == "average") & paper.protocol.isin(SHOWN_PROTOCOLS)]
    base = next(r for r in published()["table3"] if r["method"] == BASE)
    frames = [
        pd.DataFrame([{"method": BASE, "protocol": p, "mean": base[p]} for p in SHOWN_PROTOCOLS]),
        paper,
    ]
    tables = [pd.concat(frames).assign(profile=PAPER)]
    for run in runs:
        path = run.folder / "tab02_main_scores.csv"
        if path.is_file():
            summary = mean_and_std(at_k(pd.read_csv(path), k))
            tables.append(summary[summary.task == "average"].assign(profile=run.profile))
    return pd.concat(tables, ignore_index=True)[["profile", "method", "protocol", "mean", "std"]]


def averages_wide(means: pd.DataFrame) -> pd.DataFrame:
    """``means`` for the eye: a row per model and protocol, a column per profile and the paper, percent with one decimal."""
    named = means.assign(
        model=means.method.map(encoder_label), protocol=means.protocol.map(protocol_label)
    )
    wide = named.pivot_table(
        index=["model", "protocol"], columns="profile", values="mean", sort=False
    )
    return wide.round(1).rename_axis(columns=None)


# ---- the one-page figure ------------------------------------------------------------------------------------------------


CELL_STYLE = {
    NOT_REPRODUCED: ("#8C3A00", "white", "✗"),
    UNDECIDED: ("#F3D9A4", "black", "?"),
    REPRODUCED: ("#FFFFFF", "black", "✓"),
    NOT_JUDGED: ("#EEEEEE", "black", "·"),
    NOT_RUN: ("#EEEEEE", "#555555", "–"),
}
"""Face, text and sign of a verdict's cell: the signs alone tell the verdicts apart, and so do the greys."""


def plot_summary(means: pd.DataFrame, rows: pd.DataFrame, *, k: int = 5) -> Figure:
    """One page: what the protocols measure (above, a panel per profile beside the paper's), which claims hold (below).

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
            values = [mine.get((encoder, p), np.nan) for p in SHOWN_PROTOCOLS]
            ax.plot([values[0], values[-1]], [row, row], color="0.75", linewidth=1.0, zorder=1)
            for protocol, value in zip(SHOWN_PROTOCOLS, values, strict=True):
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


def _draw_grid(ax: plt.Axes, grid: pd.DataFrame, rows: pd.DataFrame) -> None:
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


def _number(part: pd.Series, *, interval: bool) -> str:
    """ "WA: 0.41 (0.38 .. 0.44)": the deciding part with its value and, where there is room, its interval."""
    if pd.isna(part.here):
        return ""
    digits = 1 if abs(part.here) >= 10 else 2
    said = f"{part.part.replace(' Eval', '')}: {part.here:.{digits}f}"
    return said + (f" ({part.low:.{digits}f} .. {part.high:.{digits}f})" if interval else "")


def alt_summary(means: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Alt text of the one-page figure, from the numbers themselves."""
    mean = means.set_index(["profile", "method", "protocol"])["mean"]
    said = []
    for profile in dict.fromkeys(means.profile):
        merges = [
            m
            for m in dict.fromkeys(means[means.profile == profile].method)
            if (PAPER, m, "ft_classifier") in mean and m != BASE
        ]
        moves = ", ".join(
            f"{short_label(m)} from {mean[profile, m, 'current']:.1f} to {mean[profile, m, 'ft_classifier']:.1f}"
            for m in merges
            if (profile, m, "ft_classifier") in mean
        )
        name = {PAPER: "paper", "paper": "profile paper"}.get(profile, profile)
        said.append(
            f"{name}: {moves}, fine-tuned models {mean[profile, FINE_TUNED, 'current']:.1f}"
        )
    grid = claim_grid(rows)
    counts = "; ".join(
        f"{p}: " + ", ".join(f"{n} {v}" for v in ORDER if (n := int((grid[p] == v).sum())))
        for p in grid.columns
    )
    return (
        "Above, average accuracy in percent of the base model and three merges, from Current Eval to FT-Classifier Eval "
        f"({'; '.join(said)}). Below, the verdict on every claim ({counts})."
    )


def save_report(
    fig: Figure,
    stem: str,
    runs: Sequence[Run],
    means: pd.DataFrame,
    rows: pd.DataFrame,
    profile: str,
) -> str:
    """Write the figure with its numbers to ``figures/<profile>/`` and ``figures/REPORT.md``; returns the PNG's place."""
    mine = next((r for r in runs if r.profile == profile), runs[0])
    place = save_files(
        fig,
        stem,
        profile,
        alt=alt_summary(means, rows),
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
    paths.write_whole(paths.output_root() / "figures" / "REPORT.md", report_markdown().encode())
    return place


# ---- REPORT.md ----------------------------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame) -> list[str]:
    """A markdown table of texts."""
    cells = [[str(v).replace("|", "\\|") for v in row] for row in frame.itertuples(index=False)]
    return [
        "| " + " | ".join(frame.columns) + " |",
        "|" + "---|" * len(frame.columns),
        *("| " + " | ".join(row) + " |" for row in cells),
    ]


def pretty(threshold: str) -> str:
    """A threshold for people: ">= 0.90" as "≥ 0.90"."""
    return threshold.replace(">=", "≥").replace("<=", "≤")


def _bold(verdict: str) -> str:
    return f"**{verdict}**" if verdict == NOT_REPRODUCED else verdict


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """What was run: profile, base model, data, notebooks, overrides, verdicts, and whether the claims file is this one."""
    rows, grid = [], claim_grid(verdict_rows(runs))
    for run in runs:
        hashes = {s["claims_file"] for s in run.sidecars.values()}
        overrides = {
            k: v
            for s in run.sidecars.values()
            for k, v in s["overrides"].items()
            if k != "tasks.source"
        }
        counts = [
            f"{n} {v}"
            for v in ORDER
            if run.profile in grid and (n := int((grid[run.profile] == v).sum()))
        ]
        rows.append(
            {
                "profile": run.profile,
                "base model": run.settings["backbone"],
                "data": run.data,
                "notebooks": len(run.sidecars),
                "overrides": overrides or "none",
                "claims": ", ".join(counts) or "none",
                "claims file": "this one" if hashes == {claims_hash()} else "another: run it again",
            }
        )
    return pd.DataFrame(rows)


def verdict_table(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` (see ``verdict_rows``) as texts for people, profile by profile, a profile's failing claims first."""
    tables = []
    for profile, mine in rows.groupby("profile", sort=False):
        rank = {
            claim: ORDER.index(overall_of_parts(parts.verdict))
            for claim, parts in mine.groupby("claim", sort=False)
        }
        mine = mine.sort_values("claim", key=lambda c, rank=rank: c.map(rank), kind="stable")
        judged = ~mine.here.isna()
        tables.append(
            pd.DataFrame(
                {
                    "profile": profile,
                    "claim": mine.claim,
                    "says": mine.says,
                    "for": mine.part,
                    "here": mine.here.map("{:.2f}".format).where(judged, ""),
                    "95 % interval": (
                        mine.low.map("{:.2f}".format) + " .. " + mine.high.map("{:.2f}".format)
                    ).where(judged, ""),
                    "threshold": mine.threshold.map(pretty),
                    "verdict": mine.verdict + mine.note.map(lambda n: f" ({n})" if n else ""),
                    "notebook": mine.notebook,
                }
            )
        )
    return (
        pd.concat(tables, ignore_index=True)
        if tables
        else pd.DataFrame(columns=["profile", "claim", "verdict"])
    )


def results_markdown(runs: Sequence[Run], figure: str = "") -> str:
    """The part that the README shows: the one-page figure, verdicts with the number that decides them, averages of Table 2."""
    rows = verdict_rows(runs)
    grid = claim_grid(rows)
    lines = ["## What reproduces, what does not", ""]
    if figure:
        lines += [figure, ""]
    lines += [
        " ".join(f"`{r.profile}`: {r.settings['backbone']} on {r.data}." for r in runs)
        + " In brackets, the part of the claim that decides; every part and interval is in [the report](REPORT.md).",
        "",
    ]
    claims = []
    for claim in grid.index:
        mine = rows[rows.claim == claim]
        cells = {}
        for profile in grid.columns:
            parts = mine[mine.profile == profile]
            part = deciding_part(parts) if len(parts) else None
            number = (
                "" if part is None or pd.isna(part.here) else f" ({part.part}: {part.here:.2f})"
            )
            cells[profile] = _bold(grid.loc[claim, profile]) + number
        claims.append(
            {
                "claim": f"`{claim}`",
                "says": mine.says.iloc[0],
                "asks": pretty(mine.threshold.iloc[0]),
                **cells,
                "notebook": f"`{mine.notebook.iloc[0]}`",
            }
        )
    lines += _table(pd.DataFrame(claims)) if claims else ["No claim has been judged yet."]
    tables = {
        r.profile: pd.read_csv(r.folder / "tab02_main.csv")
        for r in runs
        if (r.folder / "tab02_main.csv").is_file()
    }
    if tables:
        lines += [
            "",
            "Average accuracy over the tasks in percent, k = 5, ± standard deviation over the draws' seeds (Table 2):",
            "",
            *_table(averages_table(tables)),
        ]
    return "\n".join(lines)


def averages_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Averages of Table 2, the paper's beside every profile's."""
    paper = published_table2()
    paper = {
        (encoder_label(r.method), protocol_label(r.protocol)): r.mean
        for r in paper[paper.task == "average"].itertuples()
    }
    rows = []
    for model, protocol in dict.fromkeys(
        (r.Model, r.Protocol) for t in tables.values() for r in t.itertuples()
    ):
        hits = {
            p: t[(t.Model == model) & (t.Protocol == protocol)].Average.tolist()
            for p, t in tables.items()
        }
        rows.append(
            {
                "model": model,
                "protocol": protocol,
                PAPER: paper.get((model, protocol), ""),
                **{p: hit[0] if hit else "" for p, hit in hits.items()},
            }
        )
    return pd.DataFrame(rows)


def world_line(runs: Sequence[Run]) -> str:
    """Which version of the miniature world made the numbers: a bump would make old and new ones incomparable."""
    from .tasks.miniature import WORLD_VERSION

    used = sorted({int(v) for r in runs for v in re.findall(r"miniature world (\d+)", r.data)})
    bumps = (
        "It has never been bumped."
        if WORLD_VERSION == 1
        else f"It was bumped {WORLD_VERSION - 1} time(s) since version 1."
    )
    old = [v for v in used if v != WORLD_VERSION]
    return f"The miniature world is version {WORLD_VERSION}. {bumps}" + (
        f" Numbers here come from version {', '.join(map(str, old))}: run them again."
        if old
        else ""
    )


def beyond_the_paper(runs: Sequence[Run]) -> list[str]:
    """What the figures of the extensions show, per profile, as their alt texts say it; nothing where none was run."""
    items = [i for i in manifest() if i.id.startswith("ext")]
    found = [
        f"- [{i.item}](../notebooks/{i.id}.ipynb), `{r.profile}`: {r.sidecars[i.id]['alt']}"
        for i in items
        for r in runs
        if i.id in r.sidecars
    ]
    return ["## Beyond the paper", "", *found, ""] if found else []


def report_markdown(folder: Path | None = None) -> str:
    """``figures/REPORT.md``: a function of what lies under ``figures/``, whichever profile ran last."""
    folder = folder or paths.output_root() / "figures"
    runs = read_runs(folder)
    rows = verdict_rows(runs)
    drawn = next(
        (r.profile for r in runs if (folder / r.profile / f"{REPORT_ID}.json").is_file()), None
    )
    figure = ""
    if drawn:
        alt = json.loads((folder / drawn / f"{REPORT_ID}.json").read_text())["alt"]
        figure = f"![{alt}]({drawn}/{REPORT_ID}.png)"
    lines = [
        "# The report in full",
        "",
        "<!-- written by notebooks/99_report.ipynb; do not edit by hand -->",
        "",
        README_PART[0],
        results_markdown(runs, figure),
        README_PART[1],
        "",
        "## The runs behind it",
        "",
        *_table(runs_table(runs)),
        "",
        world_line(runs),
        "",
        f"SHA-256 of the claims file (`mergelib/claims.yaml`): `{claims_hash()}`. Its thresholds were fixed before "
        "anything was run.",
        "",
    ]
    lines += beyond_the_paper(runs)
    for profile, parts in verdict_table(rows).groupby("profile", sort=False):
        parts = parts.drop(columns="profile").assign(
            claim="`" + parts.claim + "`", notebook="`" + parts.notebook + "`"
        )
        failed = parts.verdict.str.startswith(NOT_REPRODUCED)
        parts["verdict"] = parts.verdict.where(~failed, "**" + parts.verdict + "**")
        lines += [f"## Every part of every claim: `{profile}`", "", *_table(parts), ""]
    return "\n".join(lines).rstrip() + "\n"


def readme_part(report: str) -> str:
    """The README's part of ``REPORT.md``, with its links seen from the project's folder. Raises ``DataError`` without marks."""
    _, start, rest = report.partition(README_PART[0] + "\n")
    part, end, _ = rest.partition("\n" + README_PART[1])
    if not (start and end):
        raise DataError("figures/REPORT.md lost its marks; run notebooks/99_report.ipynb again.")
    return re.sub(r"\]\((?!https?:)", "](figures/", part)
