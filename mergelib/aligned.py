"""f_m aligned to f_t on a study's features: the ladder's maps (Section 4.1), and FT-Classifier as released."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .errors import UnknownNameError
from .features import extract
from .protocols import PRESETS, current_eval, ft_classifier
from .protocols.alignment import (
    AffineMap,
    aligned_predictions,
    diagnose,
    fit_closed_form,
    fit_l1,
    get_rung,
)
from .store import Artifact
from .study import FINE_TUNED, POOL_SEED, STEP_VERSIONS, Study
from .types import head_digest

N_STARTS = 3  # random starts of the paper's fit; a rung costs this many times one start


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


def released_mode(study: Study, encoder: str, task: str, k: int) -> Tensor:
    """Which test inputs are right, bool ``[S, N]``, when FT-Classifier runs as the released code does: the merged
    encoder in training mode (dropout on) while the head is fitted, batches of one, five epochs; scored without dropout."""
    preset = PRESETS["released"]
    head, rows = study.head(encoder, task), study.draws(task, "stratified")[:, :, :k].flatten(1)
    pool = study.pool(task)
    key = {
        "version": STEP_VERSIONS["dropout"],
        "encoder": study.encoder.digest,
        "weights": study.weights_digest(encoder, task),
        "inputs": pool.inputs_digest,
        "rows": rows.tolist(),
        "epochs": preset.epochs,
        "seed": study.profile.seed,
        "device": study.device.type,
    }

    def make() -> Artifact:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(study.profile.seed)
            module = study.encoder.module(study.weights(encoder, task))
            passes = [
                extract(
                    study.encoder,
                    module,
                    pool.subset(seed_rows).inputs,
                    device=study.device,
                    dropout=True,
                )
                for _ in range(preset.epochs)
                for seed_rows in rows
            ]
        return Artifact({"features": torch.stack(passes).view(preset.epochs, *rows.shape, -1)})

    z = study.store.get("dropout", key, make).tensors["features"]
    teacher = study.expert(task).head.logits(study.features(FINE_TUNED, task, "pool"))[rows]
    heads = ft_classifier(z, teacher, head, preset)
    return current_eval(study.features(encoder, task), heads) == study.task(task).test.labels
