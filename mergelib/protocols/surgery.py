"""Representation Surgery, version 1: a low-rank correction of f_m's outputs per task (the rival of Figure 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SurgeryModule:
    """z' = z - Up(ReLU(Down(z))) for B fits, without biases: ``down [B, r, d]``, ``up [B, d, r]``."""

    down: Tensor
    up: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """``features [B, n, d]`` or ``[n, d]`` (shared by the B modules) ``-> [B, n, d]``."""
        return features - (features @ self.down.mT).relu() @ self.up.mT


def trainable_parameters(d: int, rank: int = 16) -> int:
    """Parameters that Surgery adds per task: 2 d r."""
    return 2 * d * rank


def start(n_fits: int, d: int, rank: int = 16, seed: int = 0) -> SurgeryModule:
    """The untrained module: Down uniform within 1/sqrt(d), the same for every fit of a seed; Up zero, so z' = z
    bitwise.

    That bound is ``nn.Linear``'s own default, Kaiming-uniform with a = sqrt(5).
    """
    draw = torch.rand(rank, d, generator=torch.Generator().manual_seed(seed))
    return SurgeryModule(((2 * draw - 1) / d**0.5).repeat(n_fits, 1, 1), torch.zeros(n_fits, d, rank))


def surgery(features: Tensor, teacher: Tensor, *, steps: int, rank: int = 16, lr: float = 1e-3,
            seed: int = 0) -> SurgeryModule:
    """Fit one module per leading index: ``features`` (f_m), ``teacher`` (f_t) ``[B, n, d]``; mean |z' - f_t(x)|, no
    labels.

    Rank, initialisation, loss and Adam's rate are the authors'. They take 1000 steps on minibatches of 16 test inputs;
    here ``steps`` full-batch steps, so that FT-Classifier and Surgery get one budget. Fits share nothing but the start.
    """
    n_fits, _, d = features.shape
    module = start(n_fits, d, rank, seed)
    module = SurgeryModule(*(p.to(features).requires_grad_() for p in (module.down, module.up)))
    optimizer = torch.optim.Adam([module.down, module.up], lr=lr)
    features, teacher = features.detach(), teacher.detach()
    for _ in range(steps):
        loss = (module.apply(features) - teacher).abs().mean((-2, -1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return SurgeryModule(module.down.detach(), module.up.detach())
