"""Weight Averaging and Task Arithmetic (Eq. 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..core.types import State
from .registry import method
from .states import complete, cut, direction_of, empty, float_names, merged_by, piece_size


@method("weight_averaging", label="Weight Averaging", short="WA")
def weight_averaging(base: State, experts: Sequence[State]) -> dict[str, Tensor]:
    """theta_m = (1/T) sum_t theta_t.

    Eq. 1; Wortsman et al., 2022. ``base`` contributes only its integer tensors.
    """
    names = float_names(base)
    mean, room = (
        empty(base, names),
        torch.empty(piece_size(base, names), device=base[names[0]].device),
    )
    for first, *others, out in cut([*experts, mean], names):
        total = room[: len(out)].copy_(first)
        for piece in others:
            total += piece.float()
        out.copy_(total.div_(len(experts)))
    return complete(base, mean)


def summed_vectors(
    base: State, experts: Sequence[State], target: State
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """sum_t tau_t with tau_t = theta_t - theta_b, piece by piece (``states.Summed``)."""
    room = torch.empty(
        2, piece_size(target, list(target)), device=next(iter(target.values())).device
    )
    for b, first, *others, out in cut([base, *experts, target], list(target)):
        total, tau = room[:, : len(out)]
        theta_b = b.float()
        torch.sub(first.float(), theta_b, out=total)
        for piece in others:
            total += torch.sub(piece.float(), theta_b, out=tau)
        yield b, total, out


def task_vector_sum(base: State, experts: Sequence[State]) -> dict[str, Tensor]:
    """sum_t tau_t, float32, for every floating-point tensor."""
    return direction_of(summed_vectors, base, experts)


@method("task_arithmetic", label="Task Arithmetic", short="TA", direction=task_vector_sum)
def task_arithmetic(
    base: State, experts: Sequence[State], *, lam: float = 0.3
) -> dict[str, Tensor]:
    """theta_m = theta_b + lam * sum_t tau_t.

    Eq. 2; Ilharco et al., 2022. lam = 1/T gives Weight Averaging.
    """
    return merged_by(summed_vectors, base, experts, lam)
