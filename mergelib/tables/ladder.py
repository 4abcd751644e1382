"""Tables of the ladder of transformations (Section 4.1, Figure 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch

from ..core.names import FINE_TUNED
from ..core.types import percent
from ..protocols.alignment import free_parameters, increments
from ..protocols.alignment import variance_steps as variance_explained
from ..study import Study
from ..study.aligned import accuracies, aligned
from .labels import RUNG_LABELS, short_label
from .scores import alt as alt_text

ORTHOGONAL_FITS = {
    "l1": "L1, penalty",
    "l1_exact": "L1, exactly orthogonal",
    "closed_form": "least squares (Procrustes)",
}
"""Fit of an orthogonal map -> its name in print; the first is the paper's."""


def variance_steps(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Held-out R^2 of f_t's outputs from f_m's after each step of ``alignment.variance_steps``.

    Fitted on training inputs, measured on test inputs. Columns method, task, step, r2.
    """
    rows = []
    for encoder in encoders:
        for task in study.tasks:
            z = [
                study.features(e, task, split)[None]
                for split in ("fit", "test")
                for e in (encoder, FINE_TUNED)
            ]
            steps = variance_explained(*z).items()
            rows += [(encoder, task, step, float(r2[0])) for step, r2 in steps]
    return pd.DataFrame(rows, columns=["method", "task", "step", "r2"])


def r2_increments(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """What each step adds to the held-out R^2, averaged over tasks: method, step, increment.

    Identity and translation are one step: a constant offset can make R^2 before it arbitrarily
    negative, so the chain starts at f_t's mean (R^2 = 0).
    """
    steps = variance_steps(study, encoders)
    means = steps.groupby(["method", "step"], sort=False).r2.mean().unstack("step")
    means = means.loc[list(encoders)].drop(columns="identity")
    added = increments({s: torch.tensor(means[s].to_numpy()) for s in means})
    rows = [(m, s, float(added[s][i])) for i, m in enumerate(encoders) for s in means]
    return pd.DataFrame(rows, columns=["method", "step", "increment"])


def table(study: Study, encoders: Sequence[str], **how) -> pd.DataFrame:
    """The ladder per rung and encoder, averaged over tasks.

    The identity rung is Current Eval. The invertible rung is the linear map; its condition number
    would reveal a singular one.

    Args:
        study: Where features come from.
        encoders: Merges or reference encoders.
        how: Options of ``aligned``: fit_on, fit, n, permuted_teacher.

    Returns:
        Columns method, rung, accuracy (percent, mean over random starts), std (over starts,
        ddof 1), n_seeds, max|A^T A - I| and condition (worst task and start), det > 0 (share of
        tasks and starts), L1 before, L1 after, free parameters per task.
    """
    rows = []
    for rung in RUNG_LABELS:
        cells = {} if rung == "identity" else aligned(study, encoders, rung, **how)
        for encoder in encoders:
            row = {"method": encoder, "rung": rung}
            if rung == "identity":
                found = [percent(study.correct(encoder, t, "current")[0]) for t in study.tasks]
                row |= {"accuracy": sum(found) / len(found), "n_seeds": 1, "free parameters": 0}
                rows.append(row)
                continue
            names = ("orthogonality_max", "condition", "det_sign", "l1_before", "l1_after")
            of = {
                name: torch.stack([cells[encoder, t][name] for t in study.tasks])  # [T, S]
                for name in names
            }
            accuracy = accuracies(study, cells, encoder)
            row |= {
                "accuracy": accuracy.mean().item(),
                "std": accuracy.std().item() if len(accuracy) > 1 else math.nan,
                "n_seeds": len(accuracy),
                "max|A^T A - I|": of["orthogonality_max"].max().item(),
                "condition": of["condition"].max().item(),
                "det > 0": (of["det_sign"] > 0).double().mean().item(),
                "L1 before": of["l1_before"].mean().item(),
                "L1 after": of["l1_after"].mean().item(),
                "free parameters": free_parameters(rung, study.encoder.width),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def orthogonal_fits(study: Study, encoders: Sequence[str], fit_on: str = "train") -> pd.DataFrame:
    """The two orthogonal rungs by three fits: accuracy per encoder, the worst max|A^T A - I|."""
    rows = []
    for rung in ("euclidean", "orthogonal"):
        for fit, label in ORTHOGONAL_FITS.items():
            cells = aligned(study, encoders, rung, fit_on=fit_on, fit=fit)
            row = {"rung": RUNG_LABELS[rung], "fit": label}
            row |= {
                short_label(e): round(accuracies(study, cells, e).mean().item(), 1)
                for e in encoders
            }
            worst = max(c["orthogonality_max"].max().item() for c in cells.values())
            rows.append(row | {"max|A^T A - I|": worst})
    return pd.DataFrame(rows)


def alt(frame: pd.DataFrame, fine_tuned: float) -> str:
    """Alt text of Figure 4, from the rows of ``table``."""
    values = {
        short_label(m): [rows.accuracy.iloc[0], rows.set_index("rung").accuracy["orthogonal"]]
        for m, rows in frame.groupby("method", sort=False)
    }
    shows = "Average accuracy before alignment and after each transformation of the ladder"
    return alt_text(
        f"{shows}; before and after the orthogonal one",
        values | {"fine-tuned models": [fine_tuned]},
    )
