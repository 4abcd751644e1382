"""Protocols with an unlabelled share of the test set (A.2.4, Figure 11), and their controls.

A share is n randomly drawn inputs, 0.5 % to 10 % of the test set's size. ``fit_on="test"`` draws
them from the scored inputs, as the paper does; ``fit_on="train"`` draws the same number of training
inputs. FT-Classifier sees no label. KNN Eval's anchors have classes, and a class without an input
in the share can never be predicted: ``coverage`` counts these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd
from torch.nn.functional import one_hot

from ..core.types import percent
from ..protocols import get_protocol
from ..study import SCORE_COLUMNS, Study
from ..study.scores import correct_at
from .scores import averages, wide

COLUMNS = [c for c in SCORE_COLUMNS if c not in ("k", "draw")] + ["share", "drawn"]


def scores(
    study: Study, encoders: Sequence[str], protocols: Sequence[str], *, fit_on: str = "test"
) -> pd.DataFrame:
    """Tidy accuracies (percent), a row per (task, method, protocol, share, seed).

    Args:
        study: Whose profile names the shares.
        encoders: Merges or reference encoders.
        protocols: One without shots has no share, drawn, fit_on and seed.
        fit_on: ``test`` draws a share from the scored inputs, ``train`` the same number from the
            pool.

    Returns:
        Columns as of ``Study.scores``, with the share in percent and the number of inputs
        ``drawn`` in place of k and draw.
    """
    rows = []
    for encoder, task, name in product(encoders, study.tasks.values(), protocols):
        cell = {
            "backbone": study.profile.backbone,
            "task": task.name,
            "method": encoder,
            "protocol": name,
            "n": len(task.test),
        }
        if not get_protocol(name).few_shot:
            right = study.correct(encoder, task.name, name)
            rows += [cell | {"accuracy": percent(r)} for r in right]
            continue
        counts = study.share_counts(task.name)
        is_right = correct_at(
            study, encoder, task.name, name, tuple(counts), draw="share", fit_on=fit_on
        )
        for (share, drawn), right in zip(counts.items(), is_right, strict=True):
            cell |= {"share": share, "drawn": drawn, "fit_on": fit_on}
            seeds = zip(study.profile.protocols.seeds, right, strict=True)
            rows += [cell | {"seed": seed, "accuracy": percent(r)} for seed, r in seeds]
    return pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"drawn": "Int64", "seed": "Int64"})


def coverage(study: Study) -> pd.DataFrame:
    """How many classes a share's anchors cover, where it is drawn from the scored inputs.

    Returns:
        A row per (task, share): the inputs drawn, classes C, ``covered`` percent of classes with an
        anchor (mean over seeds), ``reachable`` percent of test inputs whose class has one.
    """
    rows = []
    for task in study.tasks.values():
        labels = task.test.labels
        for share, drawn in study.share_counts(task.name).items():
            anchors = study.draws(task.name, "share", "test")[:, 0, :drawn]
            seen = one_hot(labels[anchors].long(), task.n_classes).amax(1).bool()  # [S, C]
            covered, reachable = (percent(s.flatten()) for s in (seen, seen[:, labels]))
            rows.append((task.name, share, drawn, task.n_classes, covered, reachable))
    return pd.DataFrame(rows, columns=["task", "share", "drawn", "classes", "covered", "reachable"])


def coverage_table(frame: pd.DataFrame) -> pd.DataFrame:
    """``coverage`` as a table: n and the covered classes, "50: 98 %"; a star where n < C."""
    cells = [
        f"{r.drawn}: {r.covered:.0f} %{' *' if r.drawn < r.classes else ''}"
        for r in frame.itertuples()
    ]
    return wide(frame.assign(cell=cells), ("task", "classes"), "share")


def counted(frame: pd.DataFrame) -> dict[float, str]:
    """Share -> its number of inputs over the tasks of ``coverage``: "50", or "20-50" if unequal."""
    ends = frame.groupby("share").drawn.agg(["min", "max"]).itertuples()
    return {share: f"{low}" if low == high else f"{low}-{high}" for share, low, high in ends}


def too_few(frame: pd.DataFrame) -> float:
    """The largest share of ``coverage`` with fewer inputs than classes in some task; 0 for none."""
    return max(frame.share[frame.drawn < frame.classes], default=0.0)


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """Averages: a row per method, protocol and where the share is drawn, a column per share."""
    rows = averages(summary)
    return wide(rows[rows.share.notna()], ("method", "protocol", "fit_on"), "share")


def gains(summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """FT-Classifier, aligned on test inputs, minus Current Eval in points: a row per panel and
    method, a column per share."""
    rows = averages(pd.concat(summaries, names=["panel"]).reset_index("panel"))
    name = ["panel", "method"]
    current = rows[rows.protocol == "current"].set_index(name)["mean"]
    aligned = rows[(rows.protocol == "ft_classifier") & (rows.fit_on == "test")].set_index(name)
    gain = (aligned["mean"] - current.reindex(aligned.index)).rename("gain")
    return wide(aligned.assign(gain=gain).reset_index(), name, "share", "gain").round(1)
