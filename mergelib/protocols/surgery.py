"""Representation Surgery, version 1: a low-rank correction of f_m's outputs per task (the rival of
Figure 7)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .adam import Adam


@dataclass(frozen=True)
class SurgeryModule:
    """z' = z - Up(ReLU(Down(z))) for B fits: ``down [B, r, d]``, ``up [B, d, r]``."""

    down: Tensor
    up: Tensor

    def apply(self, features: Tensor) -> Tensor:
        """``features [B, n, d]`` or ``[n, d]`` (shared by the B modules) ``-> [B, n, d]``."""
        return features - (features @ self.down.mT).relu() @ self.up.mT


def trainable_parameters(d: int, rank: int = 16) -> int:
    """Parameters that Surgery adds per task: 2 d r."""
    return 2 * d * rank


def start(n_fits: int, d: int, rank: int = 16, seed: int = 0) -> SurgeryModule:
    """The untrained module: Down uniform within 1/sqrt(d), the same for every fit of a seed; Up
    zero, so z' = z bitwise.

    That bound is ``nn.Linear``'s default, Kaiming-uniform with a = sqrt(5).
    """
    draw = torch.rand(rank, d, generator=torch.Generator().manual_seed(seed))
    return SurgeryModule(
        ((2 * draw - 1) / d**0.5).repeat(n_fits, 1, 1), torch.zeros(n_fits, d, rank)
    )


def surgery(
    features: Tensor,
    teacher: Tensor,
    *,
    steps: int,
    rank: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
) -> SurgeryModule:
    """Fit one module per leading index to the mean ``|z' - f_t(x)|``, without labels.

    Rank, initialisation, loss and Adam's rate are the authors'. They take 1000 steps on minibatches
    of 16 test inputs; here ``steps`` full-batch steps, so that FT-Classifier and Surgery have the
    same budget. Fits share only the start.

    Args:
        features: f_m's outputs ``[B, n, d]``.
        teacher: f_t's outputs on the same inputs, ``[B, n, d]``.
        steps: Of Adam, each on all n inputs.
        rank: Width of the module.
        lr: Adam's rate.
        seed: Of the start.
    """
    n_fits, n, d = features.shape
    module = start(n_fits, d, rank, seed)
    down, up = module.down.to(features), module.up.to(features)
    adam = Adam([down, up], lr)
    features = features.detach()
    gap = features - teacher.detach()
    for _ in range(steps):
        # Gradients by hand: only the residual's sign flows back from the loss, and it is computed
        # in place.
        hidden = (features @ down.mT).relu_()
        side = torch.baddbmm(gap, hidden, up.mT, alpha=-1).sign_()  # of |z' - f_t(x)|
        by_hidden = (side @ up).mul_(hidden > 0)
        adam.step((by_hidden.mT @ features).div_(-n * d), (side.mT @ hidden).div_(-n * d))
    return SurgeryModule(down, up)
