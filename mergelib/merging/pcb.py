"""PCB-Merging (parameter competition balancing): Du et al., 2024 (arXiv 2410.02396)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import State
from . import method
from .states import add_scaled, check_fraction, flat_task_vectors, float_names, unflatten


def _row_quantile(rows: Tensor, q: float) -> Tensor:
    """The (1 + int(q * (D - 1)))-th smallest of each row, ``[T, 1]``: a quantile without interpolation."""
    return rows.kthvalue(1 + int(q * (rows.shape[1] - 1)), dim=1, keepdim=True).values


def _min_max(rows: Tensor) -> Tensor:
    """Each row stretched to [0, 1]; a constant row becomes 1, so that it takes part like any other."""
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return torch.where(high > low, (rows - low) / (high - low).clamp(min=torch.finfo(rows.dtype).tiny), 1.0)


def competition_weights(tau: Tensor, clamped: Tensor, ratio: float) -> Tensor:
    """``[T, D] -> [T, D]`` in [0, 1]: how much each task's entry counts. Within a task large (clamped) magnitudes win (intra),
    between tasks entries that agree with the sum win (inter); the lower 1 - ratio of each row gets 0, and so does a task that
    moved nothing."""
    intra = torch.exp(len(tau) * _min_max(clamped.abs()) ** 2)
    inter = torch.tanh(tau * tau.sum(0))
    balance = intra * inter
    weights = _min_max(balance.clamp(min=_row_quantile(balance, 1 - ratio)))
    return weights * (tau != 0).any(1, keepdim=True)


def pcb_direction(base: State, experts: Sequence[State], *, ratio: float = 0.1, clamp: float = 0.01) -> dict[str, Tensor]:
    """The weighted mean of task vectors, over the whole encoder at once."""
    check_fraction("PCB-Merging", "ratio", ratio, open_low=True)
    check_fraction("PCB-Merging", "clamp", clamp, high=0.5, open_high=True)
    names = float_names(base)
    tau = torch.stack(list(flat_task_vectors(base, experts, names)))
    magnitude = tau.abs()
    magnitude = magnitude.clamp(_row_quantile(magnitude, clamp), _row_quantile(magnitude, 1 - clamp))
    clamped = tau.sign() * magnitude
    weights = competition_weights(tau, clamped, ratio)
    return unflatten((weights * clamped).sum(0) / weights.sum(0).clamp(min=1e-12), base, names)


@method("pcb_merging", label="PCB-Merging", short="PCB", direction=pcb_direction)
def pcb_merging(base: State, experts: Sequence[State], *, lam: float = 1.0, ratio: float = 0.1, clamp: float = 0.01) -> dict[str, Tensor]:
    """theta_m = theta_b + lam * tau_m. The authors released three versions that differ in the clamp (0.0001 or 0.01) and in
    the inter-task term; here that of their root script and language experiments, tanh(tau_t * sum_s tau_s), with one lambda
    for all tasks instead of an evolutionary search over T of them."""
    return add_scaled(base, pcb_direction(base, experts, ratio=ratio, clamp=clamp), lam)
