"""From tidy scores to tables: averages over tasks, means over seeds, formatted cells.

A score is a row (task, method, protocol, k or share, draw, fit_on, seed, accuracy in percent), as
from ``Study.scores``; a summary is the result of ``mean_and_std``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from ..core.types import digest
from .labels import COLUMN_LABELS, HEADINGS, short_label

SETTINGS = ("method", "protocol", "k", "share", "draw", "fit_on")
"""The columns that describe a score, besides its task and seed."""


def stack(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate score tables; without any, an empty table."""
    # A frame without rows has no dtypes to contribute.
    return pd.concat([pd.DataFrame(), *(f for f in frames if len(f))], ignore_index=True)


def at_k(scores: pd.DataFrame, k: int) -> pd.DataFrame:
    """The rows with k shots, and those of protocols without shots."""
    return scores[scores.k.isna() | (scores.k == k)]


def with_average(scores: pd.DataFrame) -> pd.DataFrame:
    """``scores`` plus rows of task ``average``: per seed, the unweighted mean over tasks.

    If every input is drawn, k is the smallest of the tasks' numbers per class.
    """
    least = scores
    if "k" in scores:
        is_all = scores.draw == "all"
        least = scores.assign(k=scores.k.mask(is_all, scores.k[is_all].min()))
    keys = [c for c in ("backbone", *SETTINGS, "seed") if c in scores]
    groups = least.groupby(keys, dropna=False, sort=False, as_index=False)
    mean = groups.agg(accuracy=("accuracy", "mean"), n=("n", "sum")).assign(task="average")
    columns = [c for c in scores if c != "drawn"]
    return pd.concat([scores, mean], ignore_index=True)[columns]


def mean_and_std(scores: pd.DataFrame) -> pd.DataFrame:
    """A summary of scores over seeds.

    Args:
        scores: Rows as from ``Study.scores`` or ``unlabelled.scores``.

    Returns:
        The columns of ``SETTINGS`` that ``scores`` has, and task (``average`` among them), mean,
        std (ddof 1; missing without seeds), n_seeds. The average's std is that of the seeds'
        averages, not the mean of the tasks' deviations.
    """
    keys = [c for c in (*SETTINGS, "task") if c in scores]
    groups = with_average(scores).groupby(keys, dropna=False, sort=False)
    return groups.accuracy.agg(mean="mean", std="std", n_seeds="count").reset_index()


def averages(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary, or of scores ``with_average``, that are averages over tasks."""
    return summary[summary.task == "average"]


def average_of(
    summary: pd.DataFrame,
    encoder: str,
    protocol: str = "current",
    k: int | None = None,
) -> float:
    """The average over tasks of one encoder under one protocol, in percent.

    Args:
        summary: As from ``mean_and_std``.
        encoder: A name of its column ``method``.
        protocol: A protocol's name.
        k: Shots per class, drawn stratified; ``None`` takes the protocol's first row, whatever its
            k and draw.
    """
    rows = averages(summary)
    rows = rows[(rows.method == encoder) & (rows.protocol == protocol)]
    if k is not None and protocol != "current":
        rows = rows[(rows.k == k) & (rows.draw == "stratified")]
    return float(rows["mean"].iloc[0])


def mean_std_cell(mean: float, std: float) -> str:
    """ "71.8 ± 0.2", or only the mean if there is no deviation."""
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def wide(
    frame: pd.DataFrame,
    rows: str | Sequence[str] = ("method", "protocol"),
    columns: str = "task",
    values: str = "cell",
) -> pd.DataFrame:
    """A tidy frame as a table with printed names, and rows in order of appearance.

    Args:
        frame: A row per cell, such as a summary or the rows of a control.
        rows: The column, or columns, that name a table's row.
        columns: The column whose values become the table's columns; numbers are sorted.
        values: The column shown; by default "71.8 ± 0.2", or the mean if there is no deviation.
    """
    rows = [rows] if isinstance(rows, str) else list(rows)
    if values not in frame:
        means = frame["mean" if "mean" in frame else "accuracy"]
        frame = frame.assign(cell=list(map(mean_std_cell, means, frame["std"])))
    printed = {c: f for c, f in COLUMN_LABELS.items() if c in rows}
    named = frame.assign(**{c: frame[c].map(f) for c, f in printed.items()})
    table = named.pivot_table(values, rows, columns, aggfunc="first", sort=False)
    table = table.loc[named.set_index(rows).index.unique()]
    if pd.api.types.is_numeric_dtype(frame[columns]):
        table = table.sort_index(axis=1)
    across = short_label if columns == "method" else COLUMN_LABELS.get(columns, str)
    table = table.fillna("") if values == "cell" else table
    index = [HEADINGS.get(c, c) for c in rows]
    return table.rename(columns=across).rename_axis(index=index, columns=None)


def shots_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy against k: a row per model, protocol and draw, a column per k."""
    rows = averages(summary)
    return wide(rows[rows.k.notna()], ("method", "protocol", "draw"), "k")


def knn_gain(summary: pd.DataFrame, k: int) -> pd.DataFrame:
    """KNN Eval minus Current Eval in points, a row per method, a column per task."""
    tables = dict(iter(at_k(summary, k).groupby("protocol")))
    knn, current = (wide(tables[p], "method", values="mean") for p in ("knn", "current"))
    return (knn - current).loc[current.index].round(1).rename_axis("KNN - Current (points)")


def lead_table(summary: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """One protocol's average minus another's in points, a row per method, a column per k; "tie"
    where they are no further apart than the larger of their deviations over the seeds."""
    rows = averages(summary)
    rows = rows[rows.draw == "stratified"]
    one, other = (rows[rows.protocol == p].set_index(["method", "k"]) for p in (first, second))
    lead = one["mean"] - other["mean"]
    tie = lead.abs() <= one["std"].clip(other["std"])
    cells = lead.map("{:+.1f}".format).mask(tie, "tie")
    return wide(cells.rename("cell").reset_index(), "method", "k")


def show(frame: pd.DataFrame, precision: int = 2) -> Styler:
    """A table for a notebook: full texts, no index, reproducible bytes."""
    style = (
        frame.style.format(precision=precision)
        .set_uuid(digest(frame.to_csv())[:8])
        .set_properties(**{"text-align": "left"})
    )
    return style.hide() if isinstance(frame.index, pd.RangeIndex) else style


def markdown(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table."""
    cells = frame.astype(str).map(lambda cell: cell.replace("|", "\\|"))
    rows = [f"| {' | '.join(row)} |" for row in (frame.columns, *cells.itertuples(index=False))]
    return "\n".join([rows[0], "|" + "---|" * frame.shape[1], *rows[1:]])
