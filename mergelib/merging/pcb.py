"""PCB-Merging (parameter competition balancing): Du et al., 2024 (arXiv 2410.02396)."""

import torch
from torch import Tensor

from ..core.types import State
from .options import BelowHalf, ShareAboveZero
from .registry import method
from .states import Experts, Tensors, flat_task_vectors, float_names, unflatten


def _quantile(row: Tensor, q: float) -> Tensor:
    """The (1 + int(q * (D - 1)))-th smallest, 0-d: a quantile without interpolation."""
    return row.kthvalue(1 + int(q * (len(row) - 1))).values


def _min_max(row: Tensor) -> Tensor:
    """The row scaled to [0, 1]; a constant row becomes 1, so that it takes part like any other."""
    low, high = row.amin(), row.amax()
    return torch.where(
        high > low, (row - low) / (high - low).clamp(min=torch.finfo(row.dtype).tiny), 1.0
    )


def competition_weight(
    tau_t: Tensor, magnitude: Tensor, tau_sum: Tensor, n_tasks: int, ratio: float
) -> Tensor:
    """The weight of each entry of one task, ``[D]`` in [0, 1].

    Within the task, large (clamped) magnitudes win (intra); between tasks, entries that agree with
    the sum win (inter). The lowest 1 - ratio of them get 0, and so does a task that changed
    nothing.
    """
    balance = torch.exp(n_tasks * _min_max(magnitude) ** 2) * torch.tanh(tau_t * tau_sum)
    return _min_max(balance.clamp(min=_quantile(balance, 1 - ratio))) * (tau_t != 0).any()


@method("pcb_merging", label="PCB-Merging", short="PCB", lam=1.0, paper="2410.02396")
def pcb_merging(
    base: State, experts: Experts, *, ratio: ShareAboveZero = 0.1, clamp: BelowHalf = 0.01
) -> Tensors:
    """The weighted mean of task vectors, over the whole encoder at once.

    The authors released three versions that differ in the clamp (0.0001 or 0.01) and in the
    inter-task term; this is that of their root script and language experiments, tanh(tau_t * sum_s
    tau_s), with one lambda for all tasks (1; their fixed one is 1.2) instead of an evolutionary
    search over T of them.
    """
    names = float_names(base)
    tau_sum = sum(flat_task_vectors(base, experts, names))
    weighted, weights = torch.zeros_like(tau_sum), torch.zeros_like(tau_sum)
    # Computed twice rather than kept: T of them are large.
    for tau_t in flat_task_vectors(base, experts, names):
        magnitude = tau_t.abs()
        magnitude = magnitude.clamp(_quantile(magnitude, clamp), _quantile(magnitude, 1 - clamp))
        weight = competition_weight(tau_t, magnitude, tau_sum, len(experts), ratio)
        weighted += weight * tau_t.sign() * magnitude
        weights += weight
    return unflatten(weighted / weights.clamp(min=1e-12), base, names)
