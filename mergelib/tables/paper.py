"""Our numbers next to the paper's printed ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from ..claims import NOT_JUDGED, NOT_REPRODUCED, REPRODUCED, UNDECIDED, K
from ..core.names import BASE
from ..study import Study
from .labels import printed
from .scores import average_of, averages, mean_std_cell, wide

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
    tasks = [*table["tasks"], "average"]
    for row in table["rows"]:
        stds = [*row.get("std", [None] * len(table["tasks"])), row.get("average_std")]
        cells = {"task": tasks, "mean": [*row["mean"], row["average"]], "std": stds}
        rows.append(pd.DataFrame({"method": row["method"], "protocol": row["protocol"], **cells}))
    return pd.concat(rows, ignore_index=True).astype({"std": float})


def published_table3() -> pd.DataFrame:
    """Table 3 as printed, averages only, in the same shape; ± where Table 2 has the same cell."""
    table = pd.DataFrame(published()["table3"]).set_index("method")[list(THREE)]
    rows = table.stack().rename_axis(["method", "protocol"]).rename("mean").reset_index()
    deviations = averages(published_table2())[["method", "protocol", "std"]]
    return rows.assign(task="average").merge(deviations, how="left")


def published_averages() -> pd.DataFrame:
    """The average over the tasks of every encoder in Table 2, and of f_b in Table 3."""
    table3 = published_table3()
    return pd.concat([table3[table3.method == BASE], averages(published_table2())])


def with_paper_numbers(summary: pd.DataFrame) -> pd.DataFrame:
    """The average over the study's tasks, "paper | here", of every cell that Table 2 has, too.

    The paper's backbone and data differ from those of every profile but ``paper``.
    """
    paper, tasks, name = published_table2(), set(summary.task), ["method", "protocol"]
    whole = tasks == set(paper.task)
    cells = averages(paper) if whole else paper[paper.task.isin(tasks - {"average"})]
    reported = cells.groupby(name, as_index=False)["mean"].mean()
    joined = averages(summary).merge(reported, on=name, suffixes=("", "_paper")).round(1)
    numbers = {"paper (BERT-base, real data)": joined.mean_paper, "here": joined["mean"]}
    return printed(joined, name).assign(**numbers)


def table3(summary: pd.DataFrame, methods: Sequence[str], k: int) -> pd.DataFrame:
    """Table 3, ours and the paper's: a row per protocol, a column per encoder, averages."""
    encoders, paper = [BASE, *methods], published_table3()
    ours = [(e, p, average_of(summary, e, p, k)) for p in THREE for e in encoders]
    ours = pd.DataFrame(ours, columns=["method", "protocol", "mean"])
    rows = pd.concat(
        [ours.assign(by="here"), paper[paper.method.isin(encoders)].assign(by="paper")]
    )
    return wide(rows, ("by", "protocol"), "method", "mean").round(1).rename_axis(["", "Protocol"])


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
    few_shot = (summary.k == K) & (summary.draw == "stratified")
    whole = set(published()["table2"]["tasks"]) == set(study.tasks)
    tasks, name = [*study.tasks, *["average"] * whole], ["task", "method", "protocol"]
    ours = summary[summary.k.isna() | few_shot].set_index(name)[["mean", "std"]]
    cells = paper[paper.task.isin(tasks)].join(ours, on=name, suffixes=("", "_here"))
    difference, inside = cells.mean_here - cells["mean"], cells["std"].fillna(NO_SPREAD)
    gap, close = difference.abs(), inside + cells.std_here.fillna(0)
    missing, within = gap.isna(), np.where(gap <= inside, "yes", "no")
    verdict = np.select([gap <= inside, gap <= close], [REPRODUCED, UNDECIDED], NOT_REPRODUCED)
    table = printed(cells, name).assign(
        paper=list(map(mean_std_cell, cells["mean"], cells["std"])),
        here=list(map(mean_std_cell, cells.mean_here, cells.std_here)),
        difference=difference.map("{:+.1f}".format),
        **{"inside the paper's ±": np.where(cells["std"].isna(), "no ±", within)},
        verdict=verdict if judged else NOT_JUDGED,
    )
    table.loc[missing, ["here", "difference", "inside the paper's ±", "verdict"]] = [
        *3 * [""],
        PAPER_ONLY,
    ]
    return table.reset_index(drop=True)
