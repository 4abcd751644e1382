"""f_m aligned to f_t on a study's features: the ladder's maps, and FT-Classifier as released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UnknownNameError
from ..core.names import FINE_TUNED
from ..core.progress import progress
from ..core.store import Artifact
from ..core.types import head_digest, shuffled
from ..encoders.features import extract
from ..protocols import PRESETS, current_eval, ft_classifier
from ..protocols.alignment import (
    AffineMap,
    aligned_predictions,
    diagnose,
    fit_closed_form,
    fit_l1,
    get_rung,
)
from ..training.loop import seeded
from .features import precision_key
from .study import Study
from .versions import POOL_SEED, STEP_VERSIONS

N_STARTS = 3  # random starts of the paper's fit; the cost of a rung grows with their number


FITS = {"l1": fit_l1, "l1_exact": partial(fit_l1, exact=True), "closed_form": None}
SPLITS = {"test": "test", "train": "fit"}
Cell = tuple[str, str]
"""An encoder and a task."""


def aligned(
    study: Study,
    encoders: Sequence[str],
    rung: str,
    *,
    fit_on: str = "test",
    fit: str = "l1",
    n: int | None = None,
    permuted_teacher: bool = False,
) -> dict[Cell, dict[str, Tensor]]:
    """Aligned f_m (Eq. 6, 7): a map per encoder, task and random start.

    Each encoder and task is stored separately; those not yet stored are fitted in one batch per
    number of inputs.

    Args:
        study: Where features and heads come from.
        encoders: Merges or reference encoders.
        rung: A rung of the ladder. ``invertible`` adds no constraint to the fit: it is the linear
            map, with its condition number reported.
        fit_on: ``test`` fits on the scored inputs, as in the paper, ``train`` on the same number of
            training inputs.
        fit: ``l1`` (the paper's loss, from ``N_STARTS`` random starts), ``l1_exact`` (the same with
            A orthogonal throughout, one start) or ``closed_form``.
        n: Use only the first n inputs.
        permuted_teacher: Shuffle f_t's outputs across inputs, so that no information is left; one
            start.

    Returns:
        Per (encoder, task): ``predicted [S, N]`` and the diagnostics of ``alignment.diagnose [S]``.

    Raises:
        UnknownNameError: ``fit``, ``fit_on`` or ``rung`` has none of these values.
    """
    for kind, name, names in (("fit", fit, FITS), ("fit_on", fit_on, SPLITS)):
        if name not in names:
            raise UnknownNameError(kind, name, names)
    starts = N_STARTS if fit == "l1" and not permuted_teacher else 1
    seeds, split = study.profile.protocols.seeds[:starts], SPLITS[fit_on]
    settings = {
        "version": STEP_VERSIONS["align"],
        "rung": "linear" if get_rung(rung).name == "invertible" else rung,
        "fit": fit,
        "permuted": permuted_teacher,
        "seeds": list(seeds),
        "encoder": study.encoder.digest,
        **precision_key(study),
    }
    sizes = {t: len(study.split(t, split)) for t in study.tasks}
    sizes = {t: min(n or size, size) for t, size in sizes.items()}
    keys = {
        (e, t): {
            **settings,
            "size": sizes[t],
            "weights": study.weights_digest(e, t),
            "teacher": study.expert(t).info["state_digest"],
            "head": head_digest(study.head(e, t)),
            "test": study.task(t).test.inputs_digest,
            "fitted": study.split(t, split).inputs_digest,
        }
        for e in encoders
        for t in study.tasks
    }

    def make(cells: list[Cell]) -> dict[Cell, Artifact]:
        return _fitted(study, cells, split, sizes[cells[0][1]], settings)

    missing = [c for c, key in keys.items() if study.store.peek("align", key) is None]
    artifacts = {}
    for size in dict.fromkeys(sizes[t] for _, t in missing):  # tasks of equal size share a batch
        artifacts |= make([c for c in missing if sizes[c[1]] == size])
    return {
        c: study.store.get("align", key, lambda c=c: artifacts.get(c) or make([c])[c]).tensors
        for c, key in keys.items()
    }


def _fitted(
    study: Study,
    cells: list[Cell],
    split: str,
    size: int,
    settings: Mapping[str, Any],
) -> dict[Cell, Artifact]:
    """The maps of all ``cells`` in one batch, from the first ``size`` inputs of ``split``;
    ``settings`` holds the rung, the fit and its seeds as keys of the store do."""
    seeds = settings["seeds"]
    x = torch.stack([study.features(e, t, split)[:size] for e, t in cells]).to(study.device)
    y = torch.stack([study.features(FINE_TUNED, t, split)[:size] for _, t in cells])
    y = y.to(study.device)
    if settings["permuted"]:
        y = y[:, shuffled(size, POOL_SEED)]
    x, y = (z.repeat_interleave(len(seeds), 0) for z in (x, y))
    if settings["fit"] == "closed_form":
        mapping = fit_closed_form(x, y, settings["rung"])
    else:
        desc = f"{settings['rung']} map, {len(cells)} encoders and tasks"
        mapping = FITS[settings["fit"]](
            x, y, settings["rung"], seed=seeds * len(cells), progress=partial(progress, desc=desc)
        )
    measures = {name: v.view(len(cells), -1).cpu() for name, v in diagnose(mapping, x, y).items()}
    artifacts = {}
    for i, (e, t) in enumerate(cells):
        fits = slice(i * len(seeds), (i + 1) * len(seeds))
        predicted = aligned_predictions(
            study.features(e, t).to(study.device),
            study.head(e, t).to(study.device),
            AffineMap(mapping.A[fits], mapping.b[fits]),
        )
        diagnostics = {name: v[i].clone() for name, v in measures.items()}
        artifacts[e, t] = Artifact({"predicted": predicted.to("cpu", torch.int16), **diagnostics})
    return artifacts


def accuracies(study: Study, cells: dict[Cell, dict[str, Tensor]], encoder: str) -> Tensor:
    """Average accuracy over tasks of an encoder of ``aligned``, percent per start ``[S]``."""
    correct = [
        (cells[encoder, t]["predicted"] == task.test.labels).double().mean(-1)
        for t, task in study.tasks.items()
    ]
    return 100 * torch.stack(correct).mean(0)


def released_mode(study: Study, encoder: str, task: str, k: int) -> Tensor:
    """Which test inputs FT-Classifier, run as the authors released it, classifies correctly: bool
    ``[S, N]``.

    The merged encoder is in training mode (dropout on) while the head is fitted, in batches of one,
    for five epochs; it is scored without dropout.
    """
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
        with seeded(study.profile.seed):
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
