"""The solver's one step: the best permutation of a group, and of the blocks within it, given what every pair of units is worth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .spec import PermutationSpec


def assign(profit: Tensor) -> Tensor:
    """For every slot the unit that it takes, such that the sum is largest: ``profit [..., n, n]`` (slot, unit) -> int64 ``[..., n]``
    on the CPU, where scipy solves the linear assignment problem exactly."""
    from scipy.optimize import linear_sum_assignment

    matrices = profit.detach().cpu().reshape(-1, *profit.shape[-2:]).numpy()
    return torch.stack(
        [torch.from_numpy(linear_sum_assignment(m, maximize=True)[1]) for m in matrices]
    ).view(profit.shape[:-1])


def best_move(
    spec: PermutationSpec, root: str, profits: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """The indices of ``root`` and of the groups within it that together are worth most, and by how much more than staying.

    ``profits``: per group ``[size, size]``, entry (i, j) for unit j going to slot i; a group without counts nothing.
    With blocks (heads), the best order inside is found for every pair of blocks first, and its worth is the pair's: so the result is
    the best of all joint permutations, which a score by block sums does not reach.
    """
    n = spec.groups[root].size
    inner = [name for name in spec.families[root][1:] if name in profits]
    if not inner and root not in profits:
        return {}, 0.0
    device = next(iter(profits.values())).device
    score = profits[root].clone() if root in profits else torch.zeros(n, n, device=device)
    inside: dict[str, Tensor] = {}
    for name in inner:
        w = len(profits[name]) // n
        pairs = (
            profits[name].reshape(n, w, n, w).transpose(1, 2)
        )  # [slot's block, unit's block, slot, unit]
        inside[name] = assign(pairs)
        score += pairs.gather(-1, inside[name].to(device)[..., None]).sum((-2, -1))
    order = assign(score)
    moves = {root: order}
    for name in spec.families[root][1:]:
        w = spec.groups[name].size // n
        places = (
            inside[name][torch.arange(n), order] if name in inside else torch.arange(w).expand(n, w)
        )
        moves[name] = (order[:, None] * w + places).flatten()
    return moves, float(
        sum(worth(p, moves[name]) - p.diagonal().double().sum() for name, p in profits.items())
    )


def worth(profit: Tensor, index: Tensor) -> Tensor:
    """What ``index [n]`` earns under ``profit [n, n]``, a float64 scalar."""
    return profit.gather(1, index.to(profit.device)[:, None]).double().sum()
