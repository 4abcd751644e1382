"""Tables about several foundations, and summaries in words."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd
import torch

from ..core.types import State
from ..merging.states import flatten, float_names
from ..tables import encoder_label, mean_std_cell, published, short_label
from ..tables import wide as table_of
from .architectures import spec_for
from .settings import (
    FT,
    LOCAL,
    NON_LOCAL,
    PERMUTED,
    RAW,
    REPAIR,
    REPAIR_LABELS,
    REPAIRS,
    SEMI_LOCAL,
    STAGES,
    TACT,
    TACT_FT,
    Nonlocality,
)


def averages(scores: pd.DataFrame) -> pd.DataFrame:
    """``Nonlocality.scores`` averaged over tasks: setting, method, repair, accuracy, expert,
    normalised (the mean over tasks of merge over expert)."""
    rows = scores.assign(normalised=scores.accuracy / scores.expert)
    groups = rows.groupby(["setting", "method", "repair"], sort=False)
    return groups[["accuracy", "expert", "normalised"]].mean().reset_index()


def wide(means: pd.DataFrame) -> pd.DataFrame:
    """``averages`` as a table: a row per setting and method, a column per repair, percent."""
    table = table_of(means, ("setting", "method"), "repair", "accuracy")
    experts = means.groupby(["setting", "method"], sort=False).expert.first().to_numpy()
    table = table.assign(experts=experts).rename(columns=REPAIR_LABELS)
    return table.rename_axis(index=["Setting", "Method"])


def lams_table(cells: Nonlocality) -> pd.DataFrame:
    """The lambda chosen on validation data, a row per stage and a column per method.

    There are several if each task has its own (a mask's threshold).
    """
    rows = []
    for stage, (setting, permuted) in STAGES.items():
        study, row = cells.study(setting, permuted=permuted), {"setting": stage}
        for m in cells.methods:
            if lams := dict.fromkeys(study.lams(m).values()):
                row[short_label(m)] = ", ".join(f"{lam:g}" for lam in lams)
        rows.append(row)
    return pd.DataFrame(rows)


def matching_table(cells: Nonlocality) -> pd.DataFrame:
    """A row per setting: the share of B's units that the matching moves, percent, and the cosine of
    A's and B's weights before and after it: of all, and of the blocks' matrices."""
    rows, a = [], cells.first.base_state
    for setting in (SEMI_LOCAL, NON_LOCAL):
        b, order = cells.second(setting).base_state, cells.permutation(setting)
        n_moved = sum(int((p != torch.arange(len(p))).sum()) for p in order.values())
        after = spec_for(cells.first.encoder.config).apply(order, b)
        rows.append(
            {
                "setting": setting,
                "units moved (%)": 100 * n_moved / sum(map(len, order.values())),
                "cosine before": _cosine(a, b),
                "cosine after": _cosine(a, after),
                "blocks before": _cosine(a, b, blocks=True),
                "blocks after": _cosine(a, after, blocks=True),
            }
        )
    return pd.DataFrame(rows)


def _cosine(a: State, b: State, *, blocks: bool = False) -> float:
    names = float_names(a)
    if blocks:  # their matrices: the ones in every norm are no likeness
        names = [n for n in names if a[n].dim() > 1 and any(map(str.isdigit, n.split(".")))]
    x, y = (flatten(s, names).double() for s in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


def samples_table(frame: pd.DataFrame) -> pd.DataFrame:
    """``Nonlocality.samples`` as a table: a row per repair, a column per k with the inputs per
    task, cells "71.8 ± 0.2" over draws."""
    columns = {}
    for (k, inputs), rows in frame.groupby(["k", "inputs"], sort=False):
        over = rows.groupby("repair", sort=False).accuracy.agg(["mean", "std"])
        columns[f"k = {k} ({inputs:.0f})"] = over.apply(lambda row: mean_std_cell(*row), axis=1)
    return pd.DataFrame(columns).rename(index=REPAIR_LABELS).rename_axis(None)


def samples_needed(frame: pd.DataFrame) -> pd.Series:
    """Per repair, the fewest unlabelled inputs per task whose average is no more than a point below
    the repair's own best."""
    means = frame.groupby(["repair", "inputs"], sort=False).accuracy.mean().reset_index()
    close = means[means.accuracy >= means.groupby("repair").accuracy.transform("max") - 1]
    fewest = close.groupby("repair", sort=False).inputs.min()
    return fewest.rename(index=REPAIR_LABELS).rename_axis(None)


def with_published(means: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The numbers in the authors' notebooks, for other networks and tasks, next to TALL-masks, our
    most similar method (what was merged -> ``averages``)."""
    rows = [dict(row) for row in published()["non_local"]]
    for name, setting in product(means, (NON_LOCAL, LOCAL)):
        cells = means[name].query("setting == @setting and method == 'tall_masks'")
        cells = cells.set_index("repair")
        rows.append(
            {
                "network": f"here, {name}",
                "method": encoder_label("tall_masks"),
                "setting": setting,
                "expert": cells.expert.iloc[0],
                "merged": cells.accuracy[PERMUTED],
                "repair": cells.accuracy[REPAIR],
                "tact": cells.accuracy[TACT],
            }
        )
    table = pd.DataFrame(rows).rename(columns={r: REPAIR_LABELS[r] for r in (REPAIR, TACT)})
    return table.astype(object).where(table.notna(), "")


def numbers_stored(cells: Nonlocality) -> pd.DataFrame:
    """How many numbers each repair stores for all tasks, in addition to one merged encoder.

    Folded TACT is an encoder per task instead.
    """
    correction = cells.correction(LOCAL, cells.methods[0], next(iter(cells.tasks)), TACT)
    widths = sum(map(len, correction.scale.values()))
    heads = sum(t.n_classes * (cells.first.encoder.width + 1) for t in cells.tasks.values())
    rows = [
        (REPAIR_LABELS[TACT], 2 * widths * len(cells.tasks), "nothing"),
        (REPAIR_LABELS[REPAIR], 2 * widths, "nothing"),
        (REPAIR_LABELS[FT], heads, "the old heads"),
    ]
    return pd.DataFrame(rows, columns=["repair", "numbers", "in place of"])


def answer(means: Mapping[str, pd.DataFrame]) -> str:
    """Markdown computed from the numbers (what was merged -> ``averages``): does an aligned
    classifier or an activation correction recover more, and do their gains add up?"""
    lines = []
    for name, frame in means.items():
        for setting, rows in frame.groupby("setting", sort=False):
            table = rows.pivot(index="method", columns="repair", values="accuracy")
            gain = {r: table[r] - table[PERMUTED] for r in (REPAIR, TACT, FT, TACT_FT)}
            first = (table[FT] > table[TACT]).sum()
            add = (table[TACT_FT] > table[[TACT, FT]].max(axis=1)).sum()
            gains = ", ".join(
                f"{REPAIR_LABELS[r]} {g.mean():+.1f} ({g.min():+.1f} to {g.max():+.1f})"
                for r, g in gain.items()
            )
            lines.append(
                f"- **{name.capitalize()}, {setting}.** Points gained over the permuted merge, "
                f"mean over {len(table)} methods and range: {gains}. FT-Classifier is above TACT "
                f"for {first} of {len(table)} methods; together they are above either alone for "
                f"{add}."
            )
    return "\n".join(lines)


def alt(means: pd.DataFrame, of: str = "texts") -> str:
    """Alt text of the figure, from the numbers themselves; ``of`` says what is classified."""
    parts = []
    for method, part in means.groupby("method", sort=False):
        accuracy = part.set_index(["setting", "repair"]).accuracy
        labels = REPAIR_LABELS | {RAW: NON_LOCAL, TACT_FT: "both"}
        cells = ", ".join(f"{labels[r]} {accuracy[NON_LOCAL, r]:.1f}" for r in REPAIRS)
        parts.append(f"{short_label(method)} local {accuracy[LOCAL, RAW]:.1f}, {cells}")
    return (
        f"Average accuracy in percent on {of}, a panel per setting from local to non-local, a row "
        f"per method: {'; '.join(parts)}; experts {means.expert.mean():.1f}."
    )


def alt_variance(frame: pd.DataFrame) -> str:
    """Alt text of the variance profile, from the numbers themselves."""
    mean = frame.groupby(["method", "stage"], sort=False).ratio.mean()
    parts = "; ".join(f"{short_label(m)}, {stage} {r:.2f}" for (m, stage), r in mean.items())
    return (
        "Activation variance of merges over the experts' from the embeddings to the last block. "
        f"Mean over sites: {parts}."
    )


def alt_samples(frame: pd.DataFrame) -> str:
    """Alt text of the figure over unlabelled inputs, from the numbers themselves."""
    parts = []
    for repaired, rows in frame.groupby("repair", sort=False):
        mean = rows.groupby("inputs", sort=False).accuracy.mean()
        parts.append(
            f"{REPAIR_LABELS[repaired]} from {mean.iloc[0]:.1f} with {mean.index[0]:.0f} inputs "
            f"per task to {mean.iloc[-1]:.1f} with {mean.index[-1]:.0f}"
        )
    method = short_label(frame.method.iloc[0])
    return (
        f"Average accuracy in percent of non-local {method} against "
        f"unlabelled inputs: {'; '.join(parts)}."
    )
