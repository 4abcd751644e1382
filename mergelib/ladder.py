"""Aligned f_m: the ladder of Section 4.1 and Figure 4 on a study's features, and its tables."""

from __future__ import annotations

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
from .report import encoder_label, short_label
from .store import Artifact
from .study import FINE_TUNED, POOL_SEED, STEP_VERSIONS, Study, percent
from .types import digest, head_digest

RUNG_LABELS = {"identity": "Identity (Current)", **{name: rung.label for name, rung in TABLE_1.items()}}


def aligned(study: Study, encoders: Sequence[str], rung: str, *, fit_on: str = "test", fit: str = "l1", n: int | None = None,
            permuted_teacher: bool = False) -> dict[tuple[str, str], dict[str, Any]]:
    """Aligned f_m (Eq. 6, 7) per (encoder, task): ``predicted [N]`` and the diagnostics of ``alignment.diagnose``.

    One map per encoder and task, all fitted as one batch. ``fit_on`` "test" fits on the scored inputs, as in the paper,
    "train" on as many training inputs; ``n`` takes the first n of them. ``fit`` is "l1" (the paper's loss), "l1_exact" (the
    same loss, A orthogonal throughout; the two orthogonal rungs only) or "closed_form". ``permuted_teacher`` shuffles f_t's
    outputs between inputs: a control that carries no information.
    """
    fits = {"l1": fit_l1, "l1_exact": partial(fit_l1, exact=True), "closed_form": fit_closed_form}
    if fit not in fits:
        raise UnknownNameError("fit", fit, fits)
    # The invertible rung has no constraint of its own to fit; it is the linear map, whose condition is reported.
    rung = "linear" if get_rung(rung).name == "invertible" else rung
    split = {"test": "test", "train": "fit"}.get(fit_on)
    if split is None:
        raise UnknownNameError("fit_on", fit_on, ("train", "test"))
    results: dict[tuple[str, str], dict[str, Any]] = {}
    sizes = {t: min(n or len(study.split(t, split)), len(study.split(t, split))) for t in study.tasks}
    for size in dict.fromkeys(sizes.values()):  # tasks of equal size share a batch
        cells = [(e, t) for e in encoders for t in study.tasks if sizes[t] == size]
        key = {"version": STEP_VERSIONS["align"], "rung": rung, "fit": fit, "size": size, "permuted": permuted_teacher,
               "encoder": study.encoder.digest,
               "cells": [[study.weights(e, t)[1], study.expert(t).info["state_digest"], head_digest(study.head(e, t)),
                          study.task(t).test.inputs_digest, digest(*study.split(t, split).inputs)] for e, t in cells]}

        def make(cells=cells, size=size) -> Artifact:
            x = torch.stack([study.features(e, t, split)[:size] for e, t in cells]).to(study.device)
            y = torch.stack([study.features(FINE_TUNED, t, split)[:size] for _, t in cells]).to(study.device)
            if permuted_teacher:
                y = y[:, torch.randperm(size, generator=torch.Generator().manual_seed(POOL_SEED))]
            mapping = fits[fit](x, y, rung)
            # Tasks differ in C and may differ in N: predictions one by one.
            predicted = {f"predicted.{i}": aligned_predictions(
                study.features(e, t)[None].to(study.device), study.head(e, t).to(study.device),
                AffineMap(mapping.A[i : i + 1], mapping.b[i : i + 1]))[0].to("cpu", torch.int16)
                for i, (e, t) in enumerate(cells)}
            found = diagnose(mapping, x, y)
            return Artifact({**predicted, **{name: v.cpu() for name, v in found.items()}})

        made = study.store.get("align", key, make).tensors
        for i, cell in enumerate(cells):
            results[cell] = {name: v[i].item() for name, v in made.items() if not name.startswith("predicted.")}
            results[cell]["predicted"] = made[f"predicted.{i}"]
    return results


def variance_steps(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """Held-out R^2 of f_t's outputs from f_m's, per encoder and task, after each step of ``alignment.variance_steps``;
    fitted on training inputs, measured on test inputs. Columns method, task, step, r2."""
    rows = []
    for encoder in encoders:
        for task in study.tasks:
            z = [study.features(e, task, split)[None] for split in ("fit", "test") for e in (encoder, FINE_TUNED)]
            rows += [{"method": encoder, "task": task, "step": step, "r2": float(v[0])}
                     for step, v in variance_explained(*z).items()]
    return pd.DataFrame(rows)


def table(study: Study, encoders: Sequence[str], *, fit_on: str = "test", fit: str = "l1",
                 permuted_teacher: bool = False, n: int | None = None) -> pd.DataFrame:
    """The ladder per rung and encoder, averaged over tasks: accuracy (percent), and what to know of the maps.

    The identity rung is Current Eval. The invertible rung is the linear map; a singular one would be flagged by its condition
    number. Columns method, rung, accuracy, max|A^T A - I|, condition, det > 0 (share of tasks), L1 before, L1 after, free
    parameters per task.
    """
    rows = []
    for rung in RUNG_LABELS:
        cells = {} if rung == "identity" else aligned(study, encoders, rung, fit_on=fit_on, fit=fit, n=n,
                                                            permuted_teacher=permuted_teacher)
        for encoder in encoders:
            if rung == "identity":
                accuracy = [percent(study.correct(encoder, t, "current")[0]) for t in study.tasks]
                rows.append({"method": encoder, "rung": rung, "accuracy": sum(accuracy) / len(accuracy), "free parameters": 0})
                continue
            mine = pd.DataFrame([cells[encoder, t] | {"accuracy": percent(
                cells[encoder, t]["predicted"] == study.task(t).test.labels)} for t in study.tasks])
            rows.append({"method": encoder, "rung": rung, "accuracy": mine.accuracy.mean(),
                         "max|A^T A - I|": mine.orthogonality_max.max(), "condition": mine.condition.max(),
                         "det > 0": (mine.det_sign > 0).mean(), "L1 before": mine.l1_before.mean(),
                         "L1 after": mine.l1_after.mean(), "free parameters": free_parameters(rung, study.encoder.width)})
    return pd.DataFrame(rows)


def orthogonal_fits(study: Study, encoders: Sequence[str], fit_on: str = "train") -> pd.DataFrame:
    """The two orthogonal rungs by three fits: penalised L1 (the paper's), L1 with A exactly orthogonal, closed form.

    A row per rung and fit: accuracy (percent) per encoder, and the largest max|A^T A - I|."""
    rows = []
    for rung in ("euclidean", "orthogonal"):
        for fit, label in (("l1", "L1, penalty"), ("l1_exact", "L1, exactly orthogonal"), ("closed_form", "least squares (Procrustes)")):
            cells = aligned(study, encoders, rung, fit_on=fit_on, fit=fit)
            row = {"rung": RUNG_LABELS[rung], "fit": label}
            for encoder in encoders:
                right = [percent(cells[encoder, t]["predicted"] == study.task(t).test.labels) for t in study.tasks]
                row[short_label(encoder)] = round(sum(right) / len(right), 1)
            rows.append(row | {"max|A^T A - I|": max(c["orthogonality_max"] for c in cells.values())})
    return pd.DataFrame(rows)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of ``table`` with a row per encoder and a column per rung."""
    cells = rows.pivot(index="method", columns="rung", values="accuracy").loc[list(dict.fromkeys(rows.method)), list(RUNG_LABELS)]
    return cells.round(1).rename(index=encoder_label, columns=RUNG_LABELS).rename_axis(index=None, columns=None)


def r2_increments(study: Study, encoders: Sequence[str]) -> pd.DataFrame:
    """What each step adds to the held-out R^2, averaged over tasks: columns method, step, increment.

    The identity and the translation are one step: a constant offset makes R^2 before it as negative as one likes, so the
    chain starts at f_t's mean (R^2 = 0) and counts from there."""
    cumulative = variance_steps(study, encoders).groupby(["method", "step"], sort=False).r2.mean().unstack("step")
    steps = [s for s in cumulative if s != "identity"]
    added = increments({s: torch.tensor(cumulative.loc[list(encoders), s].to_numpy()) for s in steps})
    return pd.DataFrame([{"method": m, "step": s, "increment": float(added[s][i])} for i, m in enumerate(encoders) for s in steps])


def alt(frame: pd.DataFrame, fine_tuned: float) -> str:
    """Alt text of Figure 4, from the numbers themselves."""
    said = [f"{short_label(m)} from {rows.accuracy.iloc[0]:.1f} to {rows.set_index('rung').accuracy['orthogonal']:.1f}"
            for m, rows in frame.groupby("method", sort=False)]
    return (f"Average accuracy before alignment and after each transformation of the ladder. With an orthogonal map, in percent: "
            f"{'; '.join(said)}; fine-tuned models {fine_tuned:.1f}.")
