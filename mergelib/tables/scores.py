"""From tidy scores to tables: averages over tasks, means over seeds, formatted cells.

A score is a row (task, method, protocol, k or share, draw, fit_on, seed, accuracy in percent), as
from ``Study.scores``; a summary is the result of ``mean_and_std``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
from pandas.io.formats.style import Styler

from ..core.names import FINE_TUNED
from ..core.types import digest
from .labels import COLUMN_LABELS, HEADINGS, protocol_label, short_label

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
    by = [c for c in ("backbone", *SETTINGS, "seed") if c in scores]
    extra = {"k": ("k", "min")} if "k" in scores else {}
    if extra:
        scores = scores.assign(shots=scores.k.mask(scores.draw == "all"))
        by[by.index("k")] = "shots"
    groups = scores.groupby(by, dropna=False, sort=False, as_index=False)
    mean = groups.agg(accuracy=("accuracy", "mean"), n=("n", "sum"), **extra)
    columns = [c for c in scores if c not in ("shots", "drawn")]
    return pd.concat([scores, mean.assign(task="average")], ignore_index=True)[columns]


def mean_and_std(scores: pd.DataFrame) -> pd.DataFrame:
    """A summary of scores over seeds.

    Args:
        scores: Rows as from ``Study.scores`` or ``unlabelled.scores``.

    Returns:
        The columns of ``SETTINGS`` that ``scores`` has, and task (``average`` among them), mean,
        std (ddof 1; missing without seeds), n_seeds. The average's std is that of the seeds'
        averages, not the mean of the tasks' deviations.
    """
    by = [c for c in (*SETTINGS, "task") if c in scores]
    groups = with_average(scores).groupby(by, dropna=False, sort=False)
    return groups.accuracy.agg(mean="mean", std="std", n_seeds="count").reset_index()


def averages(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of a summary that are averages over tasks."""
    return summary[summary.task == "average"]


def average_of(
    summary: pd.DataFrame,
    encoder: str,
    protocol: str = "current",
    k: int | None = None,
    draw: str = "stratified",
) -> float:
    """The average over tasks of one encoder under one protocol, in percent."""
    rows = averages(summary)
    rows = rows[(rows.method == encoder) & (rows.protocol == protocol)]
    if k is not None and protocol != "current":
        rows = rows[(rows.k == k) & (rows.draw == draw)]
    return float(rows["mean"].iloc[0])


def mean_std_cell(mean: float, std: float) -> str:
    """ "71.8 ± 0.2", or only the mean if there is no deviation."""
    return f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"


def with_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` plus a column ``cell``, "71.8 ± 0.2", of its std and its mean (or accuracy)."""
    means = frame["mean" if "mean" in frame else "accuracy"]
    cells = [mean_std_cell(m, s) for m, s in zip(means, frame["std"], strict=True)]
    return frame.assign(cell=cells)


def wide(
    frame: pd.DataFrame,
    rows: str | Sequence[str] = ("method", "protocol"),
    columns: str = "task",
    values: str = "",
) -> pd.DataFrame:
    """A tidy frame as a table with printed names, and rows in order of appearance.

    Args:
        frame: A row per cell, such as a summary or the rows of a control.
        rows: The column, or columns, that name a table's row.
        columns: The column whose values become the table's columns; numbers are sorted.
        values: The column shown; by default "71.8 ± 0.2", or the mean if there is no deviation.
    """
    rows = [rows] if isinstance(rows, str) else list(rows)
    values = values or "cell"
    frame = with_cells(frame) if values == "cell" and "cell" not in frame else frame
    heads = frame[columns].drop_duplicates().tolist()
    heads = sorted(heads) if pd.api.types.is_numeric_dtype(frame[columns]) else heads
    across = short_label if columns == "method" else COLUMN_LABELS.get(columns, str)
    down = {c: f for c, f in COLUMN_LABELS.items() if c in rows and c != "k"}
    named = frame.assign(**{c: frame[c].map(f) for c, f in down.items()})
    order = list(dict.fromkeys(named[rows].itertuples(index=False, name=None)))
    table = named.pivot(index=rows, columns=columns, values=values)[heads]
    table = table.loc[order if len(rows) > 1 else [row for (row,) in order]]
    table = table.fillna("") if values == "cell" else table
    return table.rename(columns=across).rename_axis(
        index=[HEADINGS.get(c, c) for c in rows], columns=None
    )


def shots_table(summary: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy against k: a row per model, protocol and draw, a column per k."""
    rows = averages(summary)
    return wide(rows[rows.k.notna()], ("method", "protocol", "draw"), "k")


def knn_gain(summary: pd.DataFrame, k: int) -> pd.DataFrame:
    """KNN Eval minus Current Eval in points, a row per method, a column per task."""
    cells = at_k(summary, k).set_index(["method", "task", "protocol"])["mean"].unstack("protocol")
    gain = (cells.knn - cells.current).rename("gain")
    order = summary[["method", "task"]].drop_duplicates()
    table = wide(order.merge(gain.reset_index()), "method", values="gain").round(1)
    return table.rename_axis(index="KNN - Current (points)")


def lead_table(summary: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """One protocol's average minus another's in points, a row per method, a column per k; "tie"
    where they are no further apart than the larger of their deviations over the seeds."""
    rows = averages(summary)
    rows = rows[rows.draw == "stratified"].set_index(["method", "k", "protocol"])
    mean, std = (rows[c].unstack(sort=False) for c in ("mean", "std"))
    lead = mean[first] - mean[second]
    tie = lead.abs() <= std[[first, second]].max(axis=1)
    return wide(
        lead.map("{:+.1f}".format).mask(tie, "tie").rename("cell").reset_index(), "method", "k"
    )


def alt(shows: str, values: Mapping[str, Sequence[float]]) -> str:
    """Alt text of a figure, from the numbers themselves.

    Args:
        shows: What is drawn, and what each entry of ``values`` lists, in order.
        values: Name of a series, or of a bound -> its numbers, in percent.
    """
    said = [f"{name} {', '.join(f'{v:.1f}' for v in row)}" for name, row in values.items()]
    return f"{shows}. In percent: {'; '.join(said)}."


def alt_protocols(
    summaries: pd.DataFrame | Mapping[str, pd.DataFrame],
    encoders: Sequence[str],
    k: int,
    **bounds: float,
) -> str:
    """Alt text of a figure of three protocols at k shots; ``summaries`` may be one per panel."""
    panels = summaries if isinstance(summaries, Mapping) else {"": summaries}
    values = {}
    for title, summary in panels.items():
        protocols = ("current", "knn", "ft_classifier")
        rows = {short_label(e): [average_of(summary, e, p, k) for p in protocols] for e in encoders}
        rows["fine-tuned models"] = [average_of(summary, FINE_TUNED)]
        values |= {f"{title} {name}".strip(): row for name, row in rows.items()}
    values |= {name: [value] for name, value in bounds.items()}
    return alt(f"Average accuracy under Current, KNN and FT-Classifier Eval, k = {k}", values)


def alt_shots(
    summary: pd.DataFrame, encoders: Sequence[str], protocol: str, ks: Sequence[int]
) -> str:
    """Alt text of a figure of one protocol over ``ks``, from the first to the last of them."""
    values = {
        short_label(e): [
            average_of(summary, e),
            *(average_of(summary, e, protocol, k) for k in (ks[0], ks[-1])),
        ]
        for e in encoders
    }
    values["fine-tuned models"] = [average_of(summary, FINE_TUNED)]
    label = protocol_label(protocol)
    shows = (
        f"Average accuracy against the samples per class, a panel per merge: Current Eval, {label}"
    )
    return alt(f"{shows} at k = {ks[0]} and at k = {ks[-1]}", values)


def show(frame: pd.DataFrame, precision: int = 2) -> Styler:
    """A table for a notebook: full texts, no index, reproducible bytes."""
    style = (
        frame.style.format(precision=precision)
        .set_uuid(digest(frame.to_csv())[:8])
        .set_properties(**{"text-align": "left"})
    )
    return style.hide() if isinstance(frame.index, pd.RangeIndex) else style


def markdown(frame: pd.DataFrame) -> list[str]:
    """A frame of texts as the lines of a Markdown table."""
    cells = frame.astype(str).map(lambda cell: cell.replace("|", "\\|"))
    rows = [f"| {' | '.join(row)} |" for row in (frame.columns, *cells.itertuples(index=False))]
    return [rows[0], "|" + "---|" * frame.shape[1], *rows[1:]]
