"""Weight matching: put the units of one network into the order of another's, using weights alone.

Maximises, over all permutations that leave the second network's function unchanged, the sum over
tensors of <A, P(B)>, which minimises the distance |A - P(B)|. All groups at once are out of reach;
one family of groups with the others held is a linear assignment problem, so coordinate ascent
solves these in turn. Source: Ainsworth et al., 2023 (Git Re-Basin, arXiv 2209.04836, algorithm 1).
Differences: heads are scored by the best order inside them, a move is made only if it gains, a
family is solved again only after a neighbour has moved, and the first sweep proceeds from anchored
families to unanchored ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core.types import State
from .spec import PermutationSpec

ROUNDING = 1e-6
"""A gain below this share of a family's largest possible one is rounding, not a reason to move."""

Progress = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class Matching:
    """``permutations`` take B to A: compare A with ``spec.apply(permutations, b)``.

    ``objective`` is what is maximised, at the start and after every sweep; it never falls.
    ``converged``: no single family can still gain by moving.
    """

    permutations: dict[str, Tensor]
    objective: tuple[float, ...]
    converged: bool

    @property
    def sweeps(self) -> int:
        return len(self.objective) - 1


def assign(profit: Tensor) -> Tensor:
    """The unit for every slot with the largest sum of ``profit [..., n, n]`` (slot, unit), exactly;
    int64 ``[..., n]`` on the CPU."""
    matrices = profit.detach().cpu().reshape(-1, *profit.shape[-2:]).numpy()
    return torch.stack(
        [torch.from_numpy(linear_sum_assignment(m, maximize=True)[1]) for m in matrices]
    ).view(profit.shape[:-1])


def best_move(
    spec: PermutationSpec, root: str, profits: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """The best joint permutation of ``root`` and the groups within it, given each pair's profit.

    With blocks (heads), the best order inside is found for every pair of blocks first, and its
    profit is the pair's; a score by block sums would miss it.

    Args:
        spec: The symmetries.
        root: The group that moves.
        profits: Per group of the family ``[size, size]``, entry (i, j) for unit j going to slot i.

    Returns:
        An index per group, and their gain over staying in place.
    """
    score, n = profits[root].clone(), spec.groups[root].size
    inside = {}
    for name in spec.families[root][1:]:
        w = len(profits[name]) // n
        # [slot's block, unit's block, slot, unit]
        pairs = profits[name].reshape(n, w, n, w).transpose(1, 2)
        inside[name] = assign(pairs)
        score += pairs.gather(-1, inside[name].to(score.device)[..., None]).sum((-2, -1))
    order = assign(score)
    moves = {root: order}
    for name, places in inside.items():
        w = places.shape[-1]
        moves[name] = (order[:, None] * w + places[torch.arange(n), order]).flatten()
    gain = 0.0
    for name, p in profits.items():
        moved = p.gather(1, moves[name].to(p.device)[:, None])
        gain += moved.double().sum() - p.diagonal().double().sum()
    return moves, float(gain)


def weight_matching(
    spec: PermutationSpec,
    a: State,
    b: State,
    *,
    seed: int = 0,
    sweeps: int = 100,
    progress: Progress = iter,
) -> Matching:
    """Permutations of B's units after which its weights are as near to A's as the ascent finds.

    The first sweep begins with the family that has most weights in tensors no other family touches
    (the residual stream, by the embeddings), and ignores tensors shared with families not placed
    yet: their order, still arbitrary, would only pull towards the identity. If the result is worse
    than the identity, the ascent starts from there. The result is the same for the same arguments
    and threads; it is a local optimum, so other seeds can be better.

    Args:
        spec: The symmetries of both.
        a: A's encoder state.
        b: B's encoder state, of the same shapes.
        seed: Orders the families of later sweeps.
        sweeps: The largest number of sweeps.
        progress: Wraps the families of a sweep, as ``progress.progress`` does.

    Raises:
        StateDictError: A state is of another architecture.
    """
    pair = _Pair(spec, a, b)
    objective = [pair.objective()]
    stale = pair.place(progress)
    if pair.objective() < objective[0]:
        pair, stale = _Pair(spec, a, b), set(spec.families)
    objective.append(pair.objective())
    families, generator = list(spec.families), torch.Generator().manual_seed(seed)
    while stale and len(objective) <= sweeps:
        order = torch.randperm(len(families), generator=generator)
        for root in progress([families[i] for i in order]):
            if root in stale:
                stale.discard(root)
                if pair.improve(root, pair.tensors(root)):
                    stale |= pair.neighbours(root)
        objective.append(pair.objective())
    return Matching(pair.permutations, tuple(objective), not stale)


class _Pair:
    """A and B as permuted so far. Profits are relative to that: staying is the diagonal."""

    def __init__(self, spec: PermutationSpec, a: State, b: State):
        self.spec, self.permutations = spec, spec.identity()
        self.a, self.b = (
            spec.apply(self.permutations, {n: t.float() for n, t in s.items()}) for s in (a, b)
        )
        self.roots = {n: {spec.root(g) for g in groups if g} for n, groups in spec.axes.items()}
        # No permutation exceeds this (Cauchy-Schwarz), and none changes it.
        bound = {n: float(self.a[n].norm() * self.b[n].norm()) for n in spec.axes}
        self.bound = {r: sum(bound[n] for n in self.tensors(r)) for r in spec.families}

    def tensors(self, root: str) -> list[str]:
        """The tensors with units of the root's family."""
        return [n for n, roots in self.roots.items() if root in roots]

    def neighbours(self, root: str) -> set[str]:
        """The other roots of these tensors."""
        return set().union(*(self.roots[n] for n in self.tensors(root))) - {root}

    def anchored(self, root: str, placed: Sequence[str]) -> list[str]:
        """The root's tensors whose other axes are fixed or placed."""
        return [n for n in self.tensors(root) if self.roots[n] <= {root, *placed}]

    def objective(self) -> float:
        return float(sum((self.a[n] * self.b[n]).sum(dtype=torch.float64) for n in self.spec.axes))

    def place(self, progress: Progress) -> set[str]:
        """The first sweep: families in order of the share of their weights that is anchored in
        placed ones. Returns those that were placed before one of their neighbours."""

        def share(root: str) -> float:
            anchored, whole = (
                sum(self.a[n].numel() for n in names)
                for names in (self.anchored(root, order), self.tensors(root))
            )
            return anchored / max(1, whole)

        order: list[str] = []
        while left := [r for r in self.spec.families if r not in order]:
            order.append(max(left, key=share))
        for i, root in enumerate(progress(order)):
            self.improve(root, self.anchored(root, order[:i]))
        return {root for i, root in enumerate(order) if self.neighbours(root) - set(order[:i])}

    def improve(self, root: str, counted: Sequence[str]) -> bool:
        """Make the root's best move, by the tensors that count, if it gains."""
        profits = {group: self.profit(group, counted) for group in self.spec.families[root]}
        moves, gain = best_move(self.spec, root, profits)
        if gain <= ROUNDING * self.bound[root]:
            return False
        self.permutations |= {g: self.permutations[g][index] for g, index in moves.items()}
        self.b = self.spec.apply(moves, self.b)
        return True

    def profit(self, group: str, counted: Sequence[str]) -> Tensor:
        """Entry (i, j) of ``[size, size]``: the profit of B's unit j in slot i, summed over the
        group's tensors that count."""
        size = self.spec.groups[group].size
        total = torch.zeros(size, size, device=next(iter(self.a.values())).device)
        for name, axis in self.spec.places[group]:
            if name in counted:
                left, right = (t[name].movedim(axis, 0).reshape(size, -1) for t in (self.a, self.b))
                total.addmm_(left, right.mT)
        return total
