"""Distil a real sentence encoder into a miniature one: the f_b of the text profiles.

The student reads the documents of a corpus; a linear map of its mean-pooled output is trained to
point at the teacher's sentence vector of the same document. Nothing else is learned, no label is
seen, and the map is discarded. The student then knows about these sentences what the teacher knew;
masked language modelling on a corpus of templates would teach it the templates instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders import Encoder, encoder_state
from ..encoders.features import extract
from ..training.loop import train


def sentence_vectors(
    encoder: Encoder, module: nn.Module, texts: Sequence[str], *, device: torch.device
) -> Tensor:
    """The student's targets: the teacher's unit sentence vectors, minus their mean.

    Args:
        encoder: The teacher's architecture and tokenizer, with mean pooling.
        module: The teacher itself.
        texts: N documents.
        device: Where the teacher runs.

    Returns:
        Unit vectors ``[N, d']`` (float32, CPU).
    """
    vectors = F.normalize(extract(encoder, module, texts, device=device, desc="teacher"), dim=-1)
    return F.normalize(vectors - vectors.mean(0), dim=-1)


class Distillation(nn.Module):
    """A student and a linear map to the teacher's space; the loss is 1 - their mean cosine."""

    def __init__(self, student: nn.Module, width: int, teacher_width: int):
        super().__init__()
        self.student, self.map = student, nn.Linear(width, teacher_width)

    def forward(self, batch: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        predicted = self.map(self.student(**batch))
        return {"loss": 1 - F.cosine_similarity(predicted.float(), target).mean()}


def distil(
    encoder: Encoder, module: nn.Module, texts: Sequence[str], vectors: Tensor, **training: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train a student on N documents.

    Args:
        encoder: The student's architecture and tokenizer.
        module: Its random start; trained in place.
        texts: N documents.
        vectors: ``sentence_vectors`` of the same documents ``[N, d']``.
        training: ``config``, ``device``, ``scratch`` and ``desc`` of ``train``.

    Returns:
        theta_b (float32, CPU) and training info.
    """
    rows = list(zip(encoder.prepare(texts), vectors, strict=True))

    def collate(batch: list[tuple[Any, Tensor]]) -> dict[str, Any]:
        documents, targets = zip(*batch, strict=True)
        return {"batch": encoder.collate(documents), "target": torch.stack(targets)}

    model = Distillation(module, encoder.width, vectors.shape[1]).train()
    info = train(model, rows, collate, **training)
    return encoder_state(model.student), info
