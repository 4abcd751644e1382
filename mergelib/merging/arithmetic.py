"""Weight Averaging and Task Arithmetic (Eq. 1 and 2)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.types import State
from .registry import method
from .states import Experts, Tensors, assembled, complete, cut, empty, float_names


@method("weight_averaging", label="Weight Averaging", short="WA", paper="2203.05482")
def weight_averaging(base: State, experts: Experts) -> Tensors:
    """theta_m = (1/T) sum_t theta_t.

    Eq. 1; Wortsman et al., 2022. ``base`` contributes only its integer tensors.
    """
    names = float_names(base)
    mean = empty(base, names)
    for first, *others, out in cut([*experts, mean], names):
        total = first.to(torch.float32, copy=True)
        for theta in others:
            total += theta.float()
        out.copy_(total.div_(len(experts)))
    return complete(base, mean)


def summed_vectors(
    base: State, experts: Experts, target: State
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """sum_t tau_t with tau_t = theta_t - theta_b, piece by piece (``states.Summed``)."""
    for b, first, *others, out in cut([base, *experts, target], list(target)):
        theta_b = b.float()
        total = first.float() - theta_b
        for theta in others:
            total += theta.float() - theta_b
        yield b, total, out


def task_vector_sum(base: State, experts: Experts) -> Tensors:
    """sum_t tau_t, float32, for every floating-point tensor."""
    return assembled(summed_vectors, base, experts)


@method(
    "task_arithmetic",
    label="Task Arithmetic",
    short="TA",
    direction=task_vector_sum,
    paper="2212.04089",
)
def task_arithmetic(base: State, experts: Experts, *, lam: float = 0.3) -> Tensors:
    """theta_m = theta_b + lam * sum_t tau_t.

    Eq. 2; Ilharco et al., 2022. lam = 1/T gives Weight Averaging.
    """
    return assembled(summed_vectors, base, experts, lam)
