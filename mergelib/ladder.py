"""Aligned f_m: the ladder of Section 4.1 and Figure 4 on a study's features, and its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch

from .errors import UnknownNameError
from .protocols.alignment import (
    TABLE_1,
    AffineMap,
    aligned_predictions,
    diagnose,
    fit_closed_form,
    fit_l1,
    free_parameters,
    get_rung,
    increments,
)
from .protocols.alignment import (
    variance_steps as variance_explained,
)
from .report import encoder_label, mean_std_cell, short_label
from .store import Artifact
from .study import FINE_TUNED, POOL_SEED, STEP_VERSIONS, Study
from .types import head_digest, percent

N_STARTS = 3  # random starts of the paper's fit; a rung costs this many times one start
RUNG_LABELS = {
    "identity": "Identity (Current)",
    **{name: rung.label for name, rung in TABLE_1.items()},
}


def aligned(
    study: Study,
    encoders: Sequence[str],
    rung: str,
    *,
    fit_on: str = "test",
    fit: str = "l1",
    n: int | None = None,
    permuted_teacher: bool = False,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Aligned f_m (Eq. 6, 7) per (encoder, task): ``predicted [S, N]`` and the diagnostics of ``alignment.diagnose``, each ``[S]``.

    A map per encoder, task and random start, all fitted as one batch. "l1" starts from the first ``N_STARTS`` of the
    profile's ``protocols.seeds``, the dearer "l1_exact" and the control below from the first alone; a closed form has no start. ``fit_on`` "test" fits on the scored inputs, as in the paper, "train" on as many
    training inputs; ``n`` takes the first n of them. ``fit`` is "l1" (the paper's loss), "l1_exact" (the same loss, A
    orthogonal throughout; the two orthogonal rungs only) or "closed_form". ``permuted_teacher`` shuffles f_t's outputs
    between inputs: a control that carries no information.
    """
    fits = {"l1": fit_l1, "l1_exact": partial(fit_l1, exact=True), "closed_form": None}
    if fit not in fits:
        raise UnknownNameError("fit", fit, fits)
    seeds = study.profile.protocols.seeds[: N_STARTS if fit == "l1" and not permuted_teacher else 1]
    # The invertible rung has no constraint of its own to fit; it is the linear map, whose condition is reported.
    rung = "linear" if get_rung(rung).name == "invertible" else rung
    split = {"test": "test", "train": "fit"}.get(fit_on)
    if split is None:
        raise UnknownNameError("fit_on", fit_on, ("train", "test"))
    results: dict[tuple[str, str], dict[str, Any]] = {}
    sizes = {
        t: min(n or len(study.split(t, split)), len(study.split(t, split))) for t in study.tasks
    }
    for size in dict.fromkeys(sizes.values()):  # tasks of equal size share a batch
        cells = [(e, t) for e in encoders for t in study.tasks if sizes[t] == size]
        key = {
            "version": STEP_VERSIONS["align"],
            "rung": rung,
            "fit": fit,
            "size": size,
            "permuted": permuted_teacher,
            "seeds": list(seeds),
            "encoder": study.encoder.digest,
            **study.precision_key,
            "cells": [
                [
                    study.weights_digest(e, t),
                    study.expert(t).info["state_digest"],
                    head_digest(study.head(e, t)),
                    study.task(t).test.inputs_digest,
                    study.split(t, split).inputs_digest,
                ]
                for e, t in cells
            ],
        }

        def make(cells=cells, size=size) -> Artifact:
            x = torch.stack([study.features(e, t, split)[:size] for e, t in cells]).to(study.device)
            y = torch.stack([study.features(FINE_TUNED, t, split)[:size] for _, t in cells]).to(
                study.device
            )
            if permuted_teacher:
                y = y[:, torch.randperm(size, generator=torch.Generator().manual_seed(POOL_SEED))]
            x, y = (z.repeat_interleave(len(seeds), 0) for z in (x, y))
            mapping = (
                fit_closed_form(x, y, rung)
                if fit == "closed_form"
                else fits[fit](x, y, rung, seed=seeds * len(cells))
            )
            # Tasks differ in C and may differ in N: predictions cell by cell.
            predicted = {}
            for i, (e, t) in enumerate(cells):
                of_cell = slice(i * len(seeds), (i + 1) * len(seeds))
                predicted[f"predicted.{i}"] = aligned_predictions(
                    study.features(e, t).to(study.device),
                    study.head(e, t).to(study.device),
                    AffineMap(mapping.A[of_cell], mapping.b[of_cell]),
                ).to("cpu", torch.int16)
            found = {
                name: v.view(len(cells), len(seeds)).cpu()
                for name, v in diagnose(mapping, x, y).items()
            }
            return Artifact({**predicted, **found})

        made = study.store.get("align", key, make).tensors
        for i, cell in enumerate(cells):
            results[cell] = {
                name: v[i] for name, v in made.items() if not name.startswith("predicted.")
            }
            results[cell]["predicted"] = made[f"predicted.{i}"]
    return results


def accuracies(
    study: Study, cells: dict[tuple[str, str], dict[str, Any]], encoder: str
) -> torch.Tensor:
    """Average accuracy over tasks in percent, one per random start ``[S]``, of an encoder of ``aligned``."""
    right = [
        (cells[encoder, t]["predicted"] == task.test.labels).double().mean(-1)
        for t, task in study.tasks.items()
    ]
    return 100 * torch.stack(right).mean(0)


def variance_steps(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Held-out R^2 of f_t's outputs from f_m's, per encoder and task, after each step of ``alignment.variance_steps``;
    fitted on training inputs, measured on test inputs. Columns method, task, step, r2."""
    rows = []
    for encoder in encoders:
        for task in study.tasks:
            z = [
                study.features(e, task, split)[None]
                for split in ("fit", "test")
                for e in (encoder, FINE_TUNED)
            ]
            rows += [
                {"method": encoder, "task": task, "step": step, "r2": float(v[0])}
                for step, v in variance_explained(*z).items()
            ]
    return pd.DataFrame(rows)


def table(
    study: Study,
    encoders: Sequence[str],
    *,
    fit_on: str = "test",
    fit: str = "l1",
    permuted_teacher: bool = False,
    n: int | None = None,
) -> pd.DataFrame:
    """The ladder per rung and encoder, averaged over tasks: accuracy (percent), and what to know of the maps.

    The identity rung is Current Eval. The invertible rung is the linear map; a singular one would be flagged by its condition
    number. Columns method, rung, accuracy (mean over random starts), std (over starts, ddof 1), n_seeds, max|A^T A - I| and
    condition (worst task and start), det > 0 (share of tasks and starts), L1 before, L1 after, free parameters per task.
    """
    rows = []
    for rung in RUNG_LABELS:
        cells = (
            {}
            if rung == "identity"
            else aligned(
                study,
                encoders,
                rung,
                fit_on=fit_on,
                fit=fit,
                n=n,
                permuted_teacher=permuted_teacher,
            )
        )
        for encoder in encoders:
            if rung == "identity":
                accuracy = [percent(study.correct(encoder, t, "current")[0]) for t in study.tasks]
                rows.append(
                    {
                        "method": encoder,
                        "rung": rung,
                        "accuracy": sum(accuracy) / len(accuracy),
                        "n_seeds": 1,
                        "free parameters": 0,
                    }
                )
                continue
            found = {
                name: torch.stack([cells[encoder, t][name] for t in study.tasks])  # [T, S]
                for name in ("orthogonality_max", "condition", "det_sign", "l1_before", "l1_after")
            }
            accuracy = accuracies(study, cells, encoder)
            rows.append(
                {
                    "method": encoder,
                    "rung": rung,
                    "accuracy": accuracy.mean().item(),
                    "std": accuracy.std().item() if len(accuracy) > 1 else math.nan,
                    "n_seeds": len(accuracy),
                    "max|A^T A - I|": found["orthogonality_max"].max().item(),
                    "condition": found["condition"].max().item(),
                    "det > 0": (found["det_sign"] > 0).double().mean().item(),
                    "L1 before": found["l1_before"].mean().item(),
                    "L1 after": found["l1_after"].mean().item(),
                    "free parameters": free_parameters(rung, study.encoder.width),
                }
            )
    return pd.DataFrame(rows)


def orthogonal_fits(study: Study, encoders: Sequence[str], fit_on: str = "train") -> pd.DataFrame:
    """The two orthogonal rungs by three fits: penalised L1 (the paper's), L1 with A exactly orthogonal, closed form.

    A row per rung and fit: accuracy (percent) per encoder, and the largest max|A^T A - I|."""
    rows = []
    for rung in ("euclidean", "orthogonal"):
        for fit, label in (
            ("l1", "L1, penalty"),
            ("l1_exact", "L1, exactly orthogonal"),
            ("closed_form", "least squares (Procrustes)"),
        ):
            cells = aligned(study, encoders, rung, fit_on=fit_on, fit=fit)
            row = {"rung": RUNG_LABELS[rung], "fit": label}
            for encoder in encoders:
                row[short_label(encoder)] = round(
                    accuracies(study, cells, encoder).mean().item(), 1
                )
            rows.append(
                row
                | {
                    "max|A^T A - I|": max(
                        c["orthogonality_max"].max().item() for c in cells.values()
                    )
                }
            )
    return pd.DataFrame(rows)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of ``table`` with a row per encoder and a column per rung, cells such as "71.8 ± 0.2" (over random starts)."""
    rows = rows.assign(
        cell=[mean_std_cell(m, s) for m, s in zip(rows.accuracy, rows["std"], strict=True)]
    )
    cells = rows.pivot(index="method", columns="rung", values="cell").loc[
        list(dict.fromkeys(rows.method)), list(RUNG_LABELS)
    ]
    return cells.rename(index=encoder_label, columns=RUNG_LABELS).rename_axis(
        index=None, columns=None
    )


def r2_increments(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """What each step adds to the held-out R^2, averaged over tasks: columns method, step, increment.

    The identity and the translation are one step: a constant offset makes R^2 before it as negative as one likes, so the
    chain starts at f_t's mean (R^2 = 0) and counts from there."""
    cumulative = (
        variance_steps(study, encoders)
        .groupby(["method", "step"], sort=False)
        .r2.mean()
        .unstack("step")
    )
    steps = [s for s in cumulative if s != "identity"]
    added = increments(
        {s: torch.tensor(cumulative.loc[list(encoders), s].to_numpy()) for s in steps}
    )
    return pd.DataFrame(
        [
            {"method": m, "step": s, "increment": float(added[s][i])}
            for i, m in enumerate(encoders)
            for s in steps
        ]
    )


def alt(frame: pd.DataFrame, fine_tuned: float) -> str:
    """Alt text of Figure 4, from the numbers themselves."""
    said = [
        f"{short_label(m)} from {rows.accuracy.iloc[0]:.1f} to {rows.set_index('rung').accuracy['orthogonal']:.1f}"
        for m, rows in frame.groupby("method", sort=False)
    ]
    return (
        f"Average accuracy before alignment and after each transformation of the ladder. With an orthogonal map, in percent: "
        f"{'; '.join(said)}; fine-tuned models {fine_tuned:.1f}."
    )
