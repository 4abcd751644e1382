"""Protocols with an unlabelled share of the test set, as in the paper's vision appendix (A.2.4, Figure 11), and their controls.

A share is n inputs as they come, 0.5 % to 10 % of the test set's size. ``fit_on="test"`` draws them from the scored inputs, as the paper
does; ``fit_on="train"`` draws as many training inputs. FT-Classifier sees no label. KNN Eval names its anchors by their class, and a class
of which the share holds no input can never be predicted: ``coverage`` counts that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from .protocols import get_protocol
from .report import TASK_LABELS, encoder_label, protocol_label, short_label, with_cells
from .study import FINE_TUNED, Study
from .types import percent

COLUMNS = [
    "backbone",
    "task",
    "method",
    "protocol",
    "share",
    "drawn",
    "fit_on",
    "seed",
    "accuracy",
    "n",
]


def scores(
    study: Study, encoders: Sequence[str], protocols: Sequence[str], *, fit_on: str = "test"
) -> pd.DataFrame:
    """Tidy accuracies (percent): a row per (task, method, protocol, share, seed), with the number of inputs ``drawn`` and scored, ``n``.

    Share, drawn, fit_on and seed are missing for a protocol without shots.
    """
    rows = []
    for encoder in encoders:
        for task in study.tasks.values():
            for name in protocols:
                common = {
                    "backbone": study.profile.backbone,
                    "task": task.name,
                    "method": encoder,
                    "protocol": name,
                    "n": len(task.test),
                }
                if not get_protocol(name).few_shot:
                    rows += [
                        common | {"accuracy": percent(right)}
                        for right in study.correct(encoder, task.name, name)
                    ]
                    continue
                for share, drawn in study.share_counts(task.name).items():
                    right = study.correct(
                        encoder, task.name, name, k=share, draw="share", fit_on=fit_on
                    )
                    rows += [
                        common
                        | {
                            "share": share,
                            "drawn": drawn,
                            "fit_on": fit_on,
                            "seed": seed,
                            "accuracy": percent(row),
                        }
                        for seed, row in zip(study.profile.protocols.seeds, right, strict=True)
                    ]
    return pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"drawn": "Int64", "seed": "Int64"})


def mean_and_std(frame: pd.DataFrame) -> pd.DataFrame:
    """Averages over tasks, then mean and standard deviation over seeds: columns method, protocol, fit_on, share, mean, std."""
    by = ["method", "protocol", "fit_on", "share"]
    per_seed = frame.groupby([*by, "seed"], dropna=False, sort=False).accuracy.mean()
    return per_seed.groupby(by, dropna=False, sort=False).agg(mean="mean", std="std").reset_index()


def coverage(study: Study, *, fit_on: str = "test") -> pd.DataFrame:
    """Which classes a share's anchors leave out: a row per (task, share) with the inputs drawn, the classes C, the ``covered`` percent
    of classes with an anchor (mean over seeds) and the ``reachable`` percent of test inputs whose class has one."""
    rows = []
    for task in study.tasks.values():
        labels = study.split(task.name, study.fit_split(fit_on)).labels
        draws = study.draws(task.name, "share", fit_on)[:, 0]
        for share, drawn in study.share_counts(task.name).items():
            seen = [labels[row[:drawn]].bincount(minlength=task.n_classes) > 0 for row in draws]
            rows.append(
                {
                    "task": task.name,
                    "share": share,
                    "drawn": drawn,
                    "classes": task.n_classes,
                    "covered": sum(percent(s) for s in seen) / len(seen),
                    "reachable": sum(percent(s[task.test.labels]) for s in seen) / len(seen),
                }
            )
    return pd.DataFrame(rows)


def coverage_table(frame: pd.DataFrame) -> pd.DataFrame:
    """``coverage`` for the eye: a row per task with C, a column per share, cells "50: 98 %" for n and the covered classes; a star where
    n < C."""
    cells = frame.assign(
        cell=[
            f"{r.drawn}: {r.covered:.0f} %{' *' if r.drawn < r.classes else ''}"
            for r in frame.itertuples()
        ],
        task=frame.task.map(lambda t: TASK_LABELS.get(t, t)),
    )
    return _by_share(cells, ["task", "classes"])


def counted(frame: pd.DataFrame) -> dict[float, str]:
    """Share -> the number of inputs it is, over the tasks of ``coverage``: "50", or "20-50" where the test sets' sizes differ."""
    ends = frame.groupby("share").drawn.agg(["min", "max"])
    return {
        share: f"{low}" if low == high else f"{low}-{high}"
        for share, low, high in ends.itertuples()
    }


def too_few(frame: pd.DataFrame) -> float:
    """The largest share of ``coverage`` that is fewer inputs than classes in some task; 0 for none."""
    return max(frame.share[frame.drawn < frame.classes], default=0.0)


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """Averages for the eye: a row per (method, protocol, where the share is drawn), a column per share, cells "71.8 ± 0.2"."""
    rows = summary[summary.share.notna()]
    cells = with_cells(rows).assign(
        Model=rows.method.map(encoder_label),
        Protocol=rows.protocol.map(protocol_label),
        drawn=rows.fit_on,
    )
    return _by_share(cells, ["Model", "Protocol", "drawn"]).rename_axis(
        index=["Model", "Protocol", "inputs from"]
    )


def _by_share(cells: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    wide = cells.pivot(index=keys, columns="share", values="cell")
    order = list(dict.fromkeys(cells[keys].itertuples(index=False, name=None)))
    return wide.loc[order].rename(columns=lambda s: f"{s:g} %").rename_axis(columns=None)


def alt(panels: Mapping[str, pd.DataFrame], methods: Sequence[str]) -> str:
    """Alt text of the figure over shares, from the numbers themselves, at the middle share; ``panels``: title -> ``mean_and_std``."""
    said, share = [], 0.0
    for title, summary in panels.items():
        known = sorted(summary.share.dropna().unique())
        share = known[len(known) // 2]
        rows = summary[
            summary.share.isna() | ((summary.share == share) & (summary.fit_on == "test"))
        ].set_index(["method", "protocol"])["mean"]
        parts = [
            f"{short_label(m)} {rows[m, 'current']:.1f} under Current Eval, {rows[m, 'knn']:.1f} under KNN Eval and "
            f"{rows[m, 'ft_classifier']:.1f} under FT-Classifier Eval"
            for m in methods
        ]
        said.append(
            f"{title}: {'; '.join(parts)}; fine-tuned models {rows[FINE_TUNED, 'current']:.1f}"
        )
    return f"Average accuracy in percent against the unlabelled share of the test set, at {share:g} %. {'. '.join(said)}."
