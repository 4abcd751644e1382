"""FT-Classifier Eval: re-align the head to the merged features with a few unlabelled inputs (Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UnknownNameError
from ..types import Head


@dataclass(frozen=True)
class FTPreset:
    """How W' is fitted with Adam. ``batch_size=None`` is full batch, then one epoch is one step."""

    lr: float
    epochs: int
    batch_size: int | None = None

    def steps(self, n: int) -> int:
        """Optimiser steps on n samples."""
        return self.epochs * -(-n // (self.batch_size or n))


PRESETS = {
    # From the plateau that `python -m benchmarks.choose_ft_preset` prints: validation data of one task, then the same for all.
    "default": FTPreset(lr=3e-3, epochs=200),
    # For heads of CLIP, whose rows are unit vectors times a logit scale of 100: "default" in the units of these vectors.
    "clip": FTPreset(lr=0.3, epochs=200),
    # The authors' code: argparse defaults, and a loader built with batches of one.
    "released": FTPreset(lr=5e-4, epochs=5, batch_size=1),
}


def get_preset(name: str) -> FTPreset:
    """The named preset. Raises ``UnknownNameError`` naming the nearest."""
    if name not in PRESETS:
        raise UnknownNameError("FT-Classifier preset", name, PRESETS)
    return PRESETS[name]


def kl_to_teacher(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) ``[...]``, summed over the class axis of ``[..., C]`` logits. The g of Eq. 8."""
    teacher = teacher_logits.log_softmax(-1)
    return (teacher.exp() * (teacher - student_logits.log_softmax(-1))).sum(-1)


def ft_classifier(features: Tensor, teacher_logits: Tensor, head: Head, preset: FTPreset, seed: int = 0) -> Head:
    """Fit one head per leading index: ``features [B, n, d]``, ``teacher_logits [B, n, C]`` -> ``W' [B, C, d], b' [B, C]``.

    ``features`` are f_m's outputs, ``teacher_logits`` those of f_t through (W_t, b_t); no labels. Every fit starts at
    ``head`` (W_t ``[C, d]``, b_t ``[C]``) and minimises the mean KL(teacher || student), Eq. 8. The B fits share nothing:
    Adam works per entry and the loss is a sum of their means, so a batch equals B single fits. ``seed`` orders minibatches.
    Features that change from epoch to epoch (dropout) come as ``[epochs, B, n, d]``.
    """
    n_fits, n, _ = features.shape[-3:]
    weight = head.weight.expand(n_fits, *head.weight.shape).clone().requires_grad_()
    bias = head.bias.expand(n_fits, *head.bias.shape).clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=preset.lr)
    size = preset.batch_size or n
    generator = torch.Generator().manual_seed(seed)
    teacher_logits = teacher_logits.detach()
    for epoch in range(preset.epochs):
        seen = features[epoch] if features.dim() == 4 else features
        order = torch.randperm(n, generator=generator).to(features.device) if size < n else None
        for start in range(0, n, size):
            rows = slice(None) if order is None else order[start : start + size]
            student = torch.baddbmm(bias.unsqueeze(1), seen[:, rows], weight.mT)
            loss = kl_to_teacher(student, teacher_logits[:, rows]).mean(-1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Head(weight.detach(), bias.detach())
