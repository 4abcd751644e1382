"""Ours beside the paper's printed numbers, cell by cell."""

from __future__ import annotations

import pandas as pd

from .claims import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, UNDECIDED, K
from .report import (
    TASK_LABELS,
    encoder_label,
    mean_std_cell,
    protocol_label,
    published,
    published_table2,
)
from .study import Study

PAPER_ONLY = "paper only"
NO_SPREAD = 0.3
"""Points by which a cell that the paper prints without ± may differ: the released loader drops the last 48 of 7,600 shuffled rows."""


def published_table3() -> pd.DataFrame:
    """Table 3 as printed, averages only, in the same shape; its ± are those that Table 2 prints for the same cells."""
    known = {
        (r.method, r.protocol): r.std
        for r in published_table2().itertuples()
        if r.task == "average"
    }
    return pd.DataFrame(
        [
            {
                "method": row["method"],
                "protocol": p,
                "task": "average",
                "mean": row[p],
                "std": known.get((row["method"], p)),
            }
            for row in published()["table3"]
            for p in ("current", "knn", "ft_classifier")
        ]
    )


def paper_cells(summary: pd.DataFrame, paper: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Cell by cell, paper | here | difference | inside the paper's ± | verdict; ``summary`` as from ``mean_and_std``, ``paper`` as from
    ``published_table2``.

    Judged where the experts are the released ones: *reproduced* inside the paper's ±, *undecided* outside, but less than both ± away, *not
    reproduced* beyond. A cell printed without ± is reproduced within ``NO_SPREAD`` points. Few-shot cells are the paper's k, 5; other ks have
    none. Averages are compared over all of the paper's tasks only.
    """
    judged = study.profile.experts == "released" and study.profile.judged
    here = {
        (r.task, r.method, r.protocol): r
        for r in summary.itertuples()
        if pd.isna(r.k) or (r.k == K and r.draw == "stratified")
    }
    whole = set(published()["table2"]["tasks"]) == set(study.tasks)
    rows = []
    for cell in paper.itertuples():
        if cell.task not in study.tasks and not (cell.task == "average" and whole):
            continue
        ours = here.get((cell.task, cell.method, cell.protocol))
        row = {
            "Task": TASK_LABELS.get(cell.task, "Average"),
            "Model": encoder_label(cell.method),
            "Protocol": protocol_label(cell.protocol),
            "paper": mean_std_cell(cell.mean, cell.std),
            "here": "",
            "difference": "",
            "inside the paper's ±": "",
            "verdict": PAPER_ONLY,
        }
        if ours is not None:
            apart = abs(ours.mean - cell.mean)
            spread = NO_SPREAD if pd.isna(cell.std) else cell.std
            both = spread + (0 if pd.isna(ours.std) else ours.std)
            verdict = (
                REPRODUCED if apart <= spread else UNDECIDED if apart <= both else NOT_REPRODUCED
            )
            row |= {
                "here": mean_std_cell(ours.mean, ours.std),
                "difference": f"{ours.mean - cell.mean:+.1f}",
                "inside the paper's ±": "no ±"
                if pd.isna(cell.std)
                else "yes"
                if apart <= cell.std
                else "no",
                "verdict": verdict if judged else NOT_JUDGED,
            }
        rows.append(row)
    return pd.DataFrame(rows)
