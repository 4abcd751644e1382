"""Weight Averaging and Task Arithmetic (Eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..types import State
from . import method
from .states import add_scaled, complete, float_names


@method("weight_averaging", label="Weight Averaging", short="WA")
def weight_averaging(base: State, experts: Sequence[State]) -> dict[str, Tensor]:
    """theta_m = (1/T) sum_t theta_t. Eq. 1; Wortsman et al., 2022. ``base`` only lends its integer tensors."""
    n_experts = len(experts)
    mean = {}
    for name in float_names(base):
        total = experts[0][name].float().clone()
        for expert in experts[1:]:
            total += expert[name].float()
        mean[name] = (total / n_experts).to(base[name].dtype)
    return complete(base, mean)


def task_vector_sum(base: State, experts: Sequence[State]) -> dict[str, Tensor]:
    """sum_t tau_t with tau_t = theta_t - theta_b, float32, for every floating-point tensor."""
    total = {}
    for name in float_names(base):
        b = base[name].float()
        tau = experts[0][name].float() - b
        for expert in experts[1:]:
            tau += expert[name].float() - b
        total[name] = tau
    return total


@method("task_arithmetic", label="Task Arithmetic", short="TA", direction=task_vector_sum)
def task_arithmetic(base: State, experts: Sequence[State], *, lam: float = 0.3) -> dict[str, Tensor]:
    """theta_m = theta_b + lam * sum_t tau_t. Eq. 2; Ilharco et al., 2022. lam = 1/T gives Weight Averaging."""
    return add_scaled(base, task_vector_sum(base, experts), lam)
