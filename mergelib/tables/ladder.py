"""Tables of the ladder of transformations (Section 4.1, Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd
import torch

from ..core.names import FINE_TUNED
from ..protocols.alignment import TABLE_1, free_parameters
from ..protocols.alignment import variance_steps as variance_explained
from ..study import Study
from ..study.aligned import accuracies, aligned
from .labels import HEADINGS, RUNG_LABELS, short_label
from .scores import average_of, mean_and_std

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
    for encoder, task in product(encoders, study.tasks):
        pairs = product(("fit", "test"), (encoder, FINE_TUNED))
        r2 = variance_explained(*(study.features(e, task, split)[None] for split, e in pairs))
        rows += [(encoder, task, step, float(r2[step])) for step in r2]
    return pd.DataFrame(rows, columns=["method", "task", "step", "r2"])


def r2_increments(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """What each step adds to the held-out R^2, averaged over tasks: method, step, increment.

    Identity and translation are one step: a constant offset can make R^2 before it arbitrarily
    negative, so the chain starts at f_t's mean (R^2 = 0).
    """
    steps = variance_steps(study, encoders)
    steps = steps[steps.step != "identity"]
    means = steps.groupby(["method", "step"], sort=False, as_index=False).r2.mean()
    increments = means.groupby("method", sort=False).r2.diff().fillna(means.r2)
    return means.drop(columns="r2").assign(increment=increments)


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
    current = mean_and_std(study.scores(encoders, ["current"]))
    rows = [
        {
            "method": e,
            "rung": "identity",
            "accuracy": average_of(current, e),
            "n_seeds": 1,
            "free parameters": 0,
        }
        for e in encoders
    ]
    for rung in TABLE_1:
        cells = aligned(study, encoders, rung, **how)
        for encoder in encoders:
            fits = [cells[encoder, t] for t in study.tasks]
            stats = {n: torch.stack([c[n] for c in fits]) for n in fits[0] if n != "predicted"}
            accuracy = pd.Series(accuracies(study, cells, encoder).numpy())
            rows.append(
                {
                    "method": encoder,
                    "rung": rung,
                    "accuracy": accuracy.mean(),
                    "std": accuracy.std(),
                    "n_seeds": len(accuracy),
                    "max|A^T A - I|": stats["orthogonality_max"].max().item(),
                    "condition": stats["condition"].max().item(),
                    "det > 0": (stats["det_sign"] > 0).double().mean().item(),
                    "L1 before": stats["l1_before"].mean().item(),
                    "L1 after": stats["l1_after"].mean().item(),
                    "free parameters": free_parameters(rung, study.encoder.width),
                }
            )
    return pd.DataFrame(rows)


def orthogonal_fits(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """The two orthogonal rungs by three fits on training inputs: accuracy per encoder, the worst
    max|A^T A - I|."""
    rows, worst = [], "max|A^T A - I|"
    for rung, (fit, label) in product(("euclidean", "orthogonal"), ORTHOGONAL_FITS.items()):
        cells = aligned(study, encoders, rung, fit_on="train", fit=fit)
        largest = max(c["orthogonality_max"].max().item() for c in cells.values())
        row = {HEADINGS["rung"]: RUNG_LABELS[rung], "fit": label, worst: largest}
        means = {short_label(e): accuracies(study, cells, e).mean().item() for e in encoders}
        rows.append(row | means)
    return pd.DataFrame(rows).round(dict.fromkeys(means, 1))
