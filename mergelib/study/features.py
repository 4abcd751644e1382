"""Splits, and the features of their inputs: everything after them is computed from these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.errors import UnknownNameError
from ..core.names import FINE_TUNED
from ..core.store import Artifact
from ..core.types import Inputs, Split, inputs_digest, shuffled, state_digest
from ..encoders.features import extract_prepared
from .clustering import tsne
from .versions import POOL_SEED, STEP_VERSIONS

if TYPE_CHECKING:
    from .study import Study

REMEMBERED = 100_000  # inputs whose token ids a study keeps in memory
REMEMBERED_BYTES = 1 << 26  # of a task's pool of images


def pool(study: Study, task: str) -> Split:
    """The training rows few-shot draws come from: a seeded random subset of ``pool_per_class``
    * C rows."""
    if task not in study._pools:
        data = study.task(task)
        n = study.profile.tasks.pool_per_class * data.n_classes
        drawn = data.train.subset(shuffled(len(data.train), POOL_SEED)[:n])
        if isinstance(drawn.inputs, Tensor) and drawn.inputs.nbytes > REMEMBERED_BYTES:
            return drawn
        study._pools[task] = drawn
    return study._pools[task]


def split(study: Study, task: str, split: str) -> Split:
    """``train``, ``validation``, ``test``, ``pool``, or ``fit`` (as many training rows as there
    are test rows)."""
    data = study.task(task)
    if split == "pool":
        return pool(study, task)
    if split == "fit":
        return data.train.subset(shuffled(len(data.train), POOL_SEED + 1)[: len(data.test)])
    if split not in ("train", "validation", "test"):
        raise UnknownNameError("split", split, ("train", "validation", "test", "pool", "fit"))
    return getattr(data, split)


def precision_key(study: Study) -> dict[str, str]:
    """What a key holds for features in another precision than float32."""
    return {} if study.precision == "float32" else {"dtype": study.precision}


def _prepared(study: Study, inputs: Inputs) -> Sequence[Any]:
    """``encoder.prepare(inputs)``; texts are remembered, because every encoder of the study reads
    the same ones."""
    if study.profile.tasks.modality != "text":
        return study.encoder.prepare(inputs)
    key = study.encoder.digest, inputs_digest(inputs)
    if key not in study._read:
        if sum(map(len, study._read.values())) + len(inputs) > REMEMBERED:
            study._read.clear()
        study._read[key] = study.encoder.prepare(inputs)
    return study._read[key]


def extracted(study: Study, module: nn.Module, inputs: Inputs, desc: str | None = None) -> Tensor:
    """Features ``[N, d]`` of N inputs as the profile computes them; nothing is stored."""
    return extract_prepared(
        study.encoder,
        module,
        _prepared(study, inputs),
        device=study.device,
        batch_size=study.profile.encoder.batch_size,
        desc=desc,
        precision=study.precision,
    )


def features(study: Study, encoder: str, task: str, split: str = "test") -> Tensor:
    """Z ``[N, d]``: an encoder's features of a task's split, float32 (computed in
    ``encoder.precision``), in the split's order; computed once.

    Args:
        study: Whose store keeps them.
        encoder: A merging method, a reference encoder, or what ``Study.adopt`` named.
        task: A task's name.
        split: As of ``split``: ``test``, ``pool``, ``fit``, ``train`` or ``validation``.
    """
    inputs = study.split(task, split).inputs
    key = {
        "version": STEP_VERSIONS["features"],
        "encoder": study.encoder.digest,
        "weights": study.weights_digest(encoder, task),
        "inputs": inputs_digest(inputs),
        "dtype": study.precision,
    }

    def make() -> Artifact:
        desc = f"features {encoder} {task} {split}"
        z = extracted(study, study._loaded(encoder, task), inputs, desc)
        return Artifact({"features": z})

    return study.store.get("features", key, make).tensors["features"]


def embedding(study: Study, method: str, task: str, n: int = 400) -> tuple[Tensor, Tensor]:
    """t-SNE of the first n test inputs' f_t and f_m outputs together: points ``[2, n, 2]``
    (f_t, f_m), labels ``[n]``."""
    labels = study.task(task).test.labels[:n]
    outputs = torch.cat([study.features(encoder, task)[:n] for encoder in (FINE_TUNED, method)])
    key = {"version": STEP_VERSIONS["tsne"], "features": state_digest({"z": outputs})}
    artifact = study.store.get("tsne", key, lambda: Artifact({"points": tsne(outputs)}))
    return artifact.tensors["points"].view(2, len(labels), 2), labels
