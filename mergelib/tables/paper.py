"""Our numbers next to the paper's printed ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from ..claims import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, UNDECIDED, K
from ..core.names import BASE
from ..study import Study
from .labels import encoder_label, protocol_label, short_label, task_label
from .scores import average_of, averages, mean_std_cell

PUBLISHED_FILE = Path(__file__).parent / "published.yaml"
THREE = ("current", "knn", "ft_classifier")
"""The paper's protocols."""
PAPER_ONLY = "paper only"
NO_SPREAD = 0.3
"""Points by which a cell printed without ± may differ.

The released loader drops the last 48 of 7,600 shuffled rows.
"""


def published() -> dict:
    """The paper's printed numbers."""
    return yaml.safe_load(PUBLISHED_FILE.read_text())


def published_table2() -> pd.DataFrame:
    """Table 2 as printed, in the shape of a summary: columns method, protocol, task, mean, std."""
    table, rows = published()["table2"], []
    for row in table["rows"]:
        name = {"method": row["method"], "protocol": row["protocol"]}
        stds = row.get("std", [None] * len(table["tasks"]))
        for task, mean, std in zip(table["tasks"], row["mean"], stds, strict=True):
            rows.append(name | {"task": task, "mean": mean, "std": std})
        mean, std = row["average"], row.get("average_std")
        rows.append(name | {"task": "average", "mean": mean, "std": std})
    return pd.DataFrame(rows)


def published_table3() -> pd.DataFrame:
    """Table 3 as printed, averages only, in the same shape; ± where Table 2 has the same cell."""
    rows = [
        {"method": row["method"], "protocol": p, "task": "average", "mean": row[p]}
        for row in published()["table3"]
        for p in THREE
    ]
    known = averages(published_table2())[["method", "protocol", "std"]]
    return pd.DataFrame(rows).merge(known, how="left")


def beside_paper(summary: pd.DataFrame) -> pd.DataFrame:
    """The average over the study's tasks, "paper | here", of every cell that Table 2 has, too.

    The paper's backbone and data differ from those of every profile but ``paper``.
    """
    paper, tasks = published_table2(), set(summary.task)
    whole = tasks == set(paper.task)
    cells = averages(paper) if whole else paper[paper.task.isin(tasks - {"average"})]
    theirs = cells.groupby(["method", "protocol"])["mean"].mean().round(1).rename("paper")
    both = averages(summary).merge(theirs.reset_index(), on=["method", "protocol"])
    return pd.DataFrame(
        {
            "Model": both.method.map(encoder_label),
            "Protocol": both.protocol.map(protocol_label),
            "paper (BERT-base, real data)": both.paper,
            "here": both["mean"].round(1),
        }
    )


def table3(summary: pd.DataFrame, methods: Sequence[str], k: int) -> pd.DataFrame:
    """Table 3, ours and the paper's: a row per protocol, a column per encoder, averages."""
    paper, rows = {row["method"]: row for row in published()["table3"]}, []
    for source in ("here", "paper"):
        for p in THREE:
            row = {"": source, "Protocol": protocol_label(p)}
            for e in (BASE, *methods):
                ours = round(average_of(summary, e, p, k), 1)
                row[short_label(e)] = ours if source == "here" else paper.get(e, {}).get(p)
            rows.append(row)
    return pd.DataFrame(rows).set_index(["", "Protocol"])


def paper_cells(summary: pd.DataFrame, paper: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Cell by cell: paper | here | difference | inside the paper's ± | verdict.

    Judged only for the released experts: *reproduced* inside the paper's ±, *undecided* outside but
    closer than both ± together, *not reproduced* beyond. A cell printed without ± is reproduced
    within ``NO_SPREAD`` points. Few-shot cells are those of the paper's k. Averages are compared
    over all of the paper's tasks only.

    Args:
        summary: Ours, as from ``mean_and_std``.
        paper: Theirs, as from ``published_table2`` or ``published_table3``.
        study: Whose tasks and experts they are.
    """
    judged = study.profile.experts == "released" and study.profile.judged
    few = (summary.k == K) & (summary.draw == "stratified")
    here = {(r.task, r.method, r.protocol): r for r in summary[summary.k.isna() | few].itertuples()}
    whole = set(published()["table2"]["tasks"]) == set(study.tasks)
    rows = []
    for cell in paper.itertuples():
        if cell.task not in study.tasks and not (cell.task == "average" and whole):
            continue
        row = {
            "Task": task_label(cell.task),
            "Model": encoder_label(cell.method),
            "Protocol": protocol_label(cell.protocol),
            "paper": mean_std_cell(cell.mean, cell.std),
            "here": "",
            "difference": "",
            "inside the paper's ±": "",
            "verdict": PAPER_ONLY,
        }
        ours = here.get((cell.task, cell.method, cell.protocol))
        if ours is not None:
            apart, printed = abs(ours.mean - cell.mean), not pd.isna(cell.std)
            row |= {
                "here": mean_std_cell(ours.mean, ours.std),
                "difference": f"{ours.mean - cell.mean:+.1f}",
                "inside the paper's ±": ("no", "yes")[apart <= cell.std] if printed else "no ±",
                "verdict": _within(apart, cell.std, ours.std) if judged else NOT_JUDGED,
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _within(apart: float, theirs: float, ours: float) -> str:
    """The verdict on two means at a distance ``apart``, from each one's ±."""
    theirs = NO_SPREAD if pd.isna(theirs) else theirs
    if apart <= theirs:
        return REPRODUCED
    return UNDECIDED if apart <= theirs + (0 if pd.isna(ours) else ours) else NOT_REPRODUCED
