"""Ties: trim, elect signs, merge what agrees (Eq. 3; Yadav et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..types import State
from . import method
from .states import add_scaled, flat_task_vectors, float_names, unflatten


def trim(tau: Tensor, keep: float) -> Tensor:
    """``tau [D]`` with all but the int(D * keep) largest magnitudes set to 0.

    Entries that tie with the smallest kept magnitude are kept too, so that the result does not depend on their order.
    (The original code keeps one entry more: it compares with the next smaller magnitude.)
    """
    n_keep = int(tau.numel() * keep)
    if n_keep == 0:
        return torch.zeros_like(tau)
    magnitude = tau.abs()
    threshold = magnitude.kthvalue(tau.numel() - n_keep + 1).values
    return torch.where(magnitude >= threshold, tau, 0.0)


def trim_all(base: State, experts: Sequence[State], keep: float, names: Sequence[str]) -> Tensor:
    """Each tau_t over the whole encoder, trimmed, ``[T, D]`` float32. Raises ``ConfigError`` for ``keep`` outside (0, 1]."""
    if not 0 < keep <= 1:
        raise ConfigError(f"Ties: keep is a fraction in (0, 1], not {keep}.")
    return torch.stack([trim(tau, keep) for tau in flat_task_vectors(base, experts, names)])


def elect(trimmed: Tensor) -> Tensor:
    """``trimmed [T, D] -> signs [D]`` in {-1, 0, 1}: the sign of the summed values, not a vote.

    A column that sums to exactly 0 takes the network's overall sign, that of the sum of all elected signs, as in the
    original code.
    """
    signs = trimmed.sum(0).sign()
    return torch.where(signs == 0, signs.sum().sign(), signs)


def agreeing(trimmed: Tensor, signs: Tensor) -> Tensor:
    """``[T, D], [D] -> [T, D]`` bool: the entries that carry the elected sign. An elected sign of 0, possible only when the
    overall sign is 0, keeps the negatives, as upstream."""
    return torch.where(signs > 0, trimmed > 0, trimmed < 0)


def disjoint_merge(trimmed: Tensor, signs: Tensor, combine: Literal["sum", "mean"]) -> Tensor:
    """``[T, D], [D] -> [D]``: of each column the entries that carry the elected sign, summed or averaged (over the kept
    non-zero entries)."""
    agrees = agreeing(trimmed, signs)
    total = torch.where(agrees, trimmed, 0.0).sum(0)
    return total if combine == "sum" else total / agrees.sum(0).clamp(min=1)


def ties_direction(base: State, experts: Sequence[State], *, keep: float = 0.2,
                   combine: Literal["sum", "mean"] = "sum") -> dict[str, Tensor]:
    """The merged task vector before scaling, float32. ``keep``: kept fraction of each tau_t, over the whole encoder at
    once. ``combine="sum"`` is the paper's form (the original's dis-sum), ``"mean"`` the original's default."""
    if combine not in ("sum", "mean"):
        raise ConfigError(f"Ties: combine is 'sum' or 'mean', not '{combine}'.")
    names = float_names(base)
    trimmed = trim_all(base, experts, keep, names)
    return unflatten(disjoint_merge(trimmed, elect(trimmed), combine), base, names)


@method("ties", label="Ties", short="Ties", direction=ties_direction)
def ties(base: State, experts: Sequence[State], *, lam: float = 0.3, keep: float = 0.2,
         combine: Literal["sum", "mean"] = "sum") -> dict[str, Tensor]:
    """theta_m = theta_b + lam * sum_t tau_t^Ties. Eq. 3. Raises ``ConfigError`` for options out of range."""
    return add_scaled(base, ties_direction(base, experts, keep=keep, combine=combine), lam)
