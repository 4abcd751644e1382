"""The report: every claim and number that the notebooks of all profiles left under ``figures/``.

Reads, computes nothing new. ``figures/REPORT.md`` is written from here, and the README's result
section is a part of that file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..claims import NOT_REPRODUCED, claims_hash, overall_of_parts
from ..core import paths
from ..core.errors import DataError
from ..core.manifest import manifest
from ..core.names import BASE, FINE_TUNED
from ..tasks.miniature import WORLD_VERSION
from .committed import AS_COMMITTED, Compared, compare
from .labels import short_label
from .paper import published_averages
from .readings import asks, base_gains, load_readings, names_in, paragraph, symbols
from .scores import at_k, markdown, mean_and_std, wide
from .scores import averages as averages_of
from .verdicts import NOT_RUN, ORDER, deciding, failing_first, with_words

REPORT_ID = "99_report"
PAPER = "paper (BERT-base)"  # the printed numbers; a profile is called paper, too
README_PART = ("<!-- the README shows this part -->", "<!-- /the README shows this part -->")
LABORATORY = (
    "`mini` is a laboratory, not a benchmark: generated tasks, and small encoders; those of texts "
    "hold what a real sentence encoder knows of them. It tests what happens when they are merged; "
    "its accuracies say nothing about real data."
)
RULE = (
    "*Reproduced*: the whole 95 % bootstrap interval lies on the claim's side of its threshold; "
    "*not reproduced*: on the other side; *undecided*: neither. A claim about several parts needs "
    "all of them."
)
ROWS = ["profile", "claim", "says", "part", "here", "low", "high"]
ROWS += ["threshold", "verdict", "note", "notebook"]


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
        """Whether the profile's numbers mean anything."""
        return self.settings["judged"]

    @property
    def compared_with(self) -> str:
        """Of a check, the profile that it repeats with one thing changed; else empty."""
        return self.settings.get("compared_with", "")

    @property
    def data(self) -> str:
        """Where the tasks came from."""
        sources = [source for s in self.sidecars.values() for source in s["sources"].values()]
        return "; ".join(dict.fromkeys(sources))


def figures_folder() -> Path:
    """Where notebooks leave their figures and numbers."""
    return paths.output_root() / "figures"


def read_runs(folder: Path | None = None, *, checks: bool = False) -> list[Run]:
    """Every profile with a sidecar under ``folder`` (``figures/``), or those that check another.

    A profile that is not judged is among them only where no other was run.

    Raises:
        DataError: There is none, or a sidecar cannot be read.
    """
    folder = folder or figures_folder()
    runs = []
    for place in sorted(folder.glob("*/")):
        sidecars = {
            i.id: _read(path)
            for i in manifest()
            if i.id != REPORT_ID and (path := place / f"{i.id}.json").is_file()
        }
        if sidecars:
            runs.append(Run(place.name, place, sidecars))
    if not runs:
        raise DataError(
            f"No notebook has left anything under {folder}; run some first: ./run_all.sh"
        )
    runs = [r for r in runs if r.judged] or runs
    return [r for r in runs if bool(r.compared_with) == checks] or ([] if checks else runs)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); run its notebook again.") from error


def verdict_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Every part of every claim, claims that fail anywhere first.

    Returns:
        Columns profile, claim, says, part, here, low, high, threshold, verdict, note, notebook. A
        claim that several notebooks judge is named once, with the first of them.
    """
    rows = [
        {"profile": run.profile, **verdict, "notebook": notebook}
        for run in runs
        for notebook, sidecar in run.sidecars.items()
        for verdict in sidecar["verdicts"]
    ]
    frame = pd.DataFrame(rows, columns=ROWS).drop_duplicates(["profile", "claim", "part"])
    return failing_first(with_words(frame))


def claim_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, in the order of ``rows``, a column per profile with its verdict."""
    cells = rows.groupby(["claim", "profile"], sort=False).verdict.agg(overall_of_parts)
    return cells.unstack(sort=False, fill_value=NOT_RUN).rename_axis(columns=None)


def averages(runs: Sequence[Run], k: int = 5) -> pd.DataFrame:
    """Average accuracy over the tasks at k shots, the paper's and each profile's, from Table 2.

    A profile without that notebook, or without k among its shots, has none.

    Returns:
        Columns profile, method, protocol, mean, std.
    """
    tables = [published_averages().assign(profile=PAPER)]
    for run in runs:
        path = run.folder / "tab02_main_scores.csv"
        if path.is_file():
            summary = mean_and_std(at_k(pd.read_csv(path), k))
            tables.append(averages_of(summary).assign(profile=run.profile))
    return pd.concat(tables, ignore_index=True)[["profile", "method", "protocol", "mean", "std"]]


def alt(means: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Alt text of the one-page figure, from the numbers themselves."""
    table = means.pivot_table("mean", ["profile", "method"], "protocol", sort=False)
    parts = []
    for profile, cells in table.groupby("profile", sort=False):
        cells = cells.droplevel("profile")
        merges = cells.drop([BASE, FINE_TUNED], errors="ignore").dropna(subset="ft_classifier")
        moves = ", ".join(
            f"{short_label(m)} from {cell.current:.1f} to {cell.ft_classifier:.1f}"
            for m, cell in merges.iterrows()
        )
        name = {PAPER: "paper", "paper": "profile paper"}.get(profile, profile)
        parts.append(f"{name}: {moves}, fine-tuned models {cells.current[FINE_TUNED]:.1f}")
    grid = claim_grid(rows)
    counts = "; ".join(f"{p}: {_counts(grid[p])}" for p in grid)
    return (
        "Above, average accuracy in percent of the base model and three merges, from Current Eval "
        f"to FT-Classifier Eval ({'; '.join(parts)}). Below, the verdict on every claim ({counts})."
    )


def _counts(verdicts: pd.Series) -> str:
    """ "2 not reproduced, 1 reproduced"."""
    return ", ".join(f"{n} {v}" for v in ORDER if (n := int((verdicts == v).sum())))


# ---- REPORT.md ----------------------------------------------------------------------------------


def compared(runs: Sequence[Run]) -> list[Compared]:
    """The runs' numbers next to the committed ones."""
    return [compare(r.profile, i) for r in runs for i in manifest() if i.id in r.sidecars]


def runs_table(runs: Sequence[Run]) -> pd.DataFrame:
    """What was run: profile, base model, data, notebooks, overrides, claims, which claims file."""
    rows, grid = [], claim_grid(verdict_rows(runs))
    for run in runs:
        sidecars = run.sidecars.values()
        overrides = {k: v for s in sidecars for k, v in s["overrides"].items()}
        overrides.pop("tasks.source", None)
        is_current = {s["claims_file"] for s in sidecars} == {claims_hash()}
        rows.append(
            {
                "profile": run.profile,
                "base model": run.settings["backbone"],
                "data": run.data,
                "notebooks": len(sidecars),
                "overrides": overrides or "none",
                "claims": _counts(grid[run.profile]) if run.profile in grid else "none",
                "claims file": "this one" if is_current else "another: run it again",
            }
        )
    return pd.DataFrame(rows)


def claims_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per claim with its verdict and deciding number in each profile, in Markdown; the index
    is the claims' ids."""

    def cell(parts: pd.DataFrame) -> str:
        part = deciding(parts)
        verdict = f"**{part.verdict}**" if part.verdict == NOT_REPRODUCED else part.verdict
        return verdict + ("" if pd.isna(part.here) else f" ({part.part}: {part.here:.2f})")

    cells = {c: cell(parts) for c, parts in rows.groupby(["claim", "profile"], sort=False)}
    cells = pd.Series(cells).unstack(sort=False, fill_value=NOT_RUN)
    words = rows.assign(asks=asks(rows)).drop_duplicates("claim").set_index("claim")
    table = words[["says", "asks"]].join(cells).join("`" + words[["notebook"]] + "`")
    return table.assign(claim="`" + table.index + "`")[["claim", *table]]


def averages_markdown(means: pd.DataFrame) -> list[str]:
    """``averages`` as a table, a row per model and protocol, the paper beside each profile; nothing
    where no profile has Table 2."""
    if set(means.profile) == {PAPER}:
        return []
    table = wide(means[means.profile != PAPER], columns="profile")
    paper = wide(means[means.profile == PAPER], columns="profile")
    table = paper.reindex(table.index).join(table).fillna("").reset_index()
    return [markdown(table.rename(columns={"Model": "model", "Protocol": "protocol"}))]


def differing(grid: pd.DataFrame) -> str:
    """The claims of ``claim_grid`` whose verdicts differ between its columns, in words."""
    return ", ".join(f"`{c}`" for c in grid.index[grid.nunique(axis=1) > 1]) or "none"


def finding(means: pd.DataFrame) -> str:
    """The finding in one sentence: Weight Averaging behind old and behind re-aligned heads."""
    accuracy = means.set_index(["profile", "method", "protocol"])["mean"]
    parts = [
        f"{accuracy[p, 'weight_averaging', 'current']:.1f} and "
        f"{accuracy[p, 'weight_averaging', 'ft_classifier']:.1f} % in `{p}` (fine-tuned models: "
        f"{accuracy[p, FINE_TUNED, 'current']:.1f} %)"
        for p in means.profile.unique()
        if p != PAPER
    ]
    return (
        "With old, then with re-aligned classifiers, Weight Averaging has "
        f"{', '.join(parts)}. The un-merged base gains, too: read every gain beside that."
    )


def claims_markdown(rows: pd.DataFrame) -> list[str]:
    """The claims with their verdicts, a table per group, failing ones first in each."""
    table, blocks = claims_table(rows), []
    for group in load_readings()["groups"]:
        part = table[table.index.isin([r["claim"] for r in group["claims"]])]
        blocks += [f"**{group['title']}**", markdown(part)] if len(part) else []
    return blocks


def results_markdown(runs: Sequence[Run]) -> str:
    """The README's part: the figure, verdicts with their deciding numbers, averages of Table 2;
    links are seen from the report."""
    rows, means = verdict_rows(runs), averages(runs)
    pages = [page for r in runs if (page := r.folder / f"{REPORT_ID}.json").is_file()]
    figure = link = ""
    if pages:
        place, csv = f"{pages[0].parent.name}/{REPORT_ID}", f"{REPORT_ID}_claims.csv"
        figure = f"![{_read(pages[0])['alt']}]({place}.png)"
        link = f"; every part and interval: [{csv}]({place}_claims.csv)"
    where = " ".join(f"`{r.profile}`: {r.settings['backbone']} on {r.data}." for r in runs)
    legend = (
        f"{where} A claim *asks* that all its numbers meet a threshold; the one in brackets "
        f"decides{link}. What they mean, claim by claim: [REPORT.md](REPORT.md)."
    )
    claims = claims_markdown(rows) if len(rows) else ["No claim has been judged yet."]
    caption = (
        "Average accuracy over the tasks in percent, k = 5, ± standard deviation over the draws' "
        "seeds (Table 2):"
    )
    tables = averages_markdown(means)
    blocks = ["## What reproduces, what does not", figure, finding(means) if tables else "", legend]
    blocks += [names_in("\n".join(claims)), *claims, caption if tables else "", *tables]
    return "\n\n".join(filter(None, blocks))


def claim_by_claim(runs: Sequence[Run]) -> list[str]:
    """A paragraph per judged claim, in the order of their groups."""
    rows = verdict_rows(runs)
    grid, by_profile = claim_grid(rows), {r.profile: r for r in runs}
    blocks = []
    for group in load_readings()["groups"]:
        paragraphs = [
            paragraph(reading, by_profile, rows[rows.claim == claim], grid.loc[claim])
            for reading in group["claims"]
            if (claim := reading["claim"]) in grid.index
        ]
        blocks += [f"### {group['title']}", group["text"], *paragraphs] if paragraphs else []
    return ["## Claim by claim", RULE, *blocks] if blocks else []


def other_bases(runs: Sequence[Run]) -> list[str]:
    """Claims that were judged with several base models, a column each, and what f_b gains there."""
    rows, gains, differences = [], [], []
    for run in runs:
        for notebook, sidecar in run.sidecars.items():
            others = sidecar.get("other_bases", {})
            judged = {sidecar["profile"]["backbone"]: sidecar["verdicts"], **others}
            for base, verdicts in judged.items() if others else ():
                name = f"`{run.profile}`: {base}"
                rows += [{"profile": name, **v, "notebook": notebook} for v in verdicts]
        with suppress(FileNotFoundError):  # Table 3 alone leaves them
            gains += base_gains(run)
    if not rows:
        return []
    frame = with_words(pd.DataFrame(rows, columns=ROWS))
    grid = claim_grid(frame)
    for run in runs:
        columns = grid.filter(like=f"`{run.profile}`: ")
        differences += [f"in `{run.profile}`: {differing(columns)}"] if columns.shape[1] else []
    texts = load_readings()["bases"]
    why = f"Claims whose verdict differs, {'; '.join(differences)}. {texts['why']}"
    return [texts["title"], texts["text"], *gains, why, markdown(claims_table(frame))]


def checks_markdown(runs: Sequence[Run], checks: Sequence[Run]) -> list[str]:
    """Profiles that repeat another with one thing changed, each beside that one."""
    texts = load_readings()["checks"]
    blocks = [texts["title"]] if checks else []
    for check in checks:
        first = next((r for r in runs if r.profile == check.compared_with), check)
        rows = verdict_rows([first, check])
        rows = rows[rows.claim.isin(verdict_rows([check]).claim)]
        words = {
            "check": check.profile,
            "first": first.profile,
            "here": check.settings["backbone"],
            "there": first.settings["backbone"],
            "differ": differing(claim_grid(rows)),
        }
        blocks += [texts["text"].format(**words), markdown(claims_table(rows))]
        blocks += averages_markdown(averages([first, check]))
    return blocks


def world_line(runs: Sequence[Run]) -> str:
    """Which version of the miniature world made the numbers: others cannot be compared with it."""
    versions = {int(v) for r in runs for v in re.findall(r"miniature world (\d+)", r.data)}
    bumps = "It has never been bumped."
    if WORLD_VERSION > 1:
        bumps = f"It was bumped {WORLD_VERSION - 1} time(s) since version 1."
    line = f"The miniature world is version {WORLD_VERSION}. {bumps}"
    old = ", ".join(str(v) for v in sorted(versions) if v != WORLD_VERSION)
    return f"{line} Numbers here come from version {old}: run them again." if old else line


def beyond_the_paper(runs: Sequence[Run]) -> list[str]:
    """What the extensions ask, and in which profiles they were run."""
    lines = [
        f"- [{i.item}](../notebooks/{i.id}.ipynb), {', '.join(f'`{p}`' for p in ran)}: {i.title}."
        for i in manifest()
        if i.id.startswith("ext")
        if (ran := [r.profile for r in runs if i.id in r.sidecars])
    ]
    return ["## Beyond the paper", "\n".join(lines)] if lines else []


def report_markdown(folder: Path | None = None, compared: str = AS_COMMITTED) -> str:
    """``figures/REPORT.md``: a function of what lies under ``figures/``, whoever ran last.

    Args:
        folder: That folder.
        compared: How these numbers and the committed ones compare.
    """
    folder = folder or figures_folder()
    runs, checks = read_runs(folder), read_runs(folder, checks=True)
    start, end = README_PART
    blocks = [
        "# The report",
        "<!-- written by notebooks/99_report.ipynb; do not edit by hand -->",
        *[LABORATORY] * any(r.profile == "mini" for r in runs),
        symbols(),
        f"{start}\n{results_markdown(runs)}\n{end}",
        *claim_by_claim(runs),
        *other_bases(runs),
        *checks_markdown(runs, checks),
        *beyond_the_paper(runs),
        "## The runs behind it",
        markdown(runs_table([*runs, *checks])),
        compared,
        world_line(runs),
        f"SHA-256 of the claims file (`mergelib/claims/claims.yaml`): `{claims_hash()}`. "
        "Its thresholds were fixed before anything was run.",
    ]
    return "\n\n".join(blocks) + "\n"


def readme_part(report: str) -> str:
    """The README's part of ``REPORT.md``, with its links seen from the project's folder.

    Raises:
        DataError: The report has lost its marks.
    """
    _, start, rest = report.partition(README_PART[0] + "\n")
    part, end, _ = rest.partition("\n" + README_PART[1])
    if not (start and end):
        raise DataError("figures/REPORT.md lost its marks; run notebooks/99_report.ipynb again.")
    return re.sub(r"\]\((?!https?:)", "](figures/", part)
