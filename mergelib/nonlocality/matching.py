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

from ..core.errors import ConfigError, StateDictError
from ..core.types import State, not_finite
from .permute import Permutations, apply, identity
from .spec import PermutationSpec

ROUNDING = 1e-6
"""A gain below this share of a family's largest possible one is rounding, not a reason to move."""

Progress = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class Matching:
    """``permutations`` take B to A: compare A with ``apply(spec, permutations, b)``.

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
        profits: Per group ``[size, size]``, entry (i, j) for unit j going to slot i; a group
            without an entry counts as 0.

    Returns:
        An index per group, and their gain over staying in place.
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
        # [slot's block, unit's block, slot, unit]
        pairs = profits[name].reshape(n, w, n, w).transpose(1, 2)
        inside[name] = assign(pairs)
        score += pairs.gather(-1, inside[name].to(device)[..., None]).sum((-2, -1))
    order = assign(score)
    moves = {root: order}
    for name in spec.families[root][1:]:
        w = spec.groups[name].size // n
        places = torch.arange(w).expand(n, w)
        if name in inside:
            places = inside[name][torch.arange(n), order]
        moves[name] = (order[:, None] * w + places).flatten()
    gain = sum(
        p.gather(1, moves[name].to(device)[:, None]).double().sum() - p.diagonal().double().sum()
        for name, p in profits.items()
    )
    return moves, float(gain)


def weight_matching(
    spec: PermutationSpec,
    a: State,
    b: State,
    *,
    seed: int = 0,
    sweeps: int = 100,
    start: Permutations | None = None,
    progress: Progress = iter,
) -> Matching:
    """Permutations of B's units after which its weights are as near to A's as the ascent finds.

    Without ``start`` the first sweep begins with the family that has most weights in tensors no
    other family touches (the residual stream, by the embeddings), and ignores tensors shared with
    families not placed yet: their order, still arbitrary, would only pull towards the identity. If
    the result is worse than the identity, the ascent starts from there. The result is the same for
    the same arguments and threads; it is a local optimum, so other seeds and starts can be better.

    Args:
        spec: The symmetries of both.
        a: A's encoder state.
        b: B's encoder state.
        seed: Orders the families of later sweeps.
        sweeps: The largest number of sweeps.
        start: Permutations to start from.
        progress: Wraps the families of a sweep, as ``progress.progress`` does.

    Raises:
        StateDictError: States do not match the spec, differ in shape, or hold NaN or inf.
            ConfigError: ``sweeps`` is below 1, or ``start`` is not a permutation of the spec.
    """
    if sweeps < 1:
        raise ConfigError(f"weight_matching: sweeps must be at least 1, not {sweeps}.")
    _check(spec, a, b)
    pair = _Pair(spec, a, b, identity(spec) if start is None else start)
    generator = torch.Generator().manual_seed(seed)
    objective = [pair.objective()]
    stale = set(spec.families)
    if start is None:
        stale = _place(pair, progress)
        reached = pair.objective()
        if reached < objective[0]:
            pair, reached = _Pair(spec, a, b, identity(spec)), objective[0]
            stale = set(spec.families)
        objective.append(reached)
    while stale and len(objective) <= sweeps:
        families = list(spec.families)
        order = torch.randperm(len(families), generator=generator)
        for root in progress([families[i] for i in order]):
            if root in stale:
                stale.discard(root)
                if pair.improve(root):
                    stale |= pair.neighbours[root]
        objective.append(pair.objective())
    return Matching(pair.permutations, tuple(objective), not stale)


def _check(spec: PermutationSpec, a: State, b: State) -> None:
    for who, state in (("Network A", a), ("Network B", b)):
        spec.check(state, who)
        if bad := not_finite(state):
            raise StateDictError(
                f"{who} holds NaN or inf in {', '.join(bad[:5])}; create it again."
            )
    if wrong := [
        f"{n} ({tuple(a[n].shape)}, {tuple(b[n].shape)})"
        for n in spec.axes
        if a[n].shape != b[n].shape
    ]:
        raise StateDictError(
            f"The networks differ in shape in {', '.join(wrong[:5])}. Match networks of one "
            "configuration, with one vocabulary."
        )


def _place(pair: _Pair, progress: Progress) -> set[str]:
    """The first sweep: families in order of the share of their weights that is anchored in placed
    ones. Returns those that were placed before one of their neighbours."""
    order: list[str] = []
    while len(order) < len(pair.spec.families):
        left = [r for r in pair.spec.families if r not in order]
        order.append(max(left, key=lambda root: pair.anchored(root, order)))
    for i, root in enumerate(progress(order)):
        pair.improve(root, order[:i])
    return {root for i, root in enumerate(order) if pair.neighbours[root] - set(order[:i])}


class _Pair:
    """A and B as permuted so far. Profits are relative to that: staying is the diagonal."""

    def __init__(self, spec: PermutationSpec, a: State, b: State, permutations: Permutations):
        self.spec = spec
        self.permutations = dict(permutations)
        self.a = {n: t.float() for n, t in a.items()}
        self.b = apply(spec, permutations, {n: t.float() for n, t in b.items()})
        self.roots = {n: {spec.root(g) for g in groups if g} for n, groups in spec.axes.items()}
        self.tensors = {
            root: [n for n, roots in self.roots.items() if root in roots] for root in spec.families
        }
        self.neighbours = {
            root: set().union(*(self.roots[n] for n in names)) - {root}
            for root, names in self.tensors.items()
        }
        # No permutation exceeds this (Cauchy-Schwarz), and none changes it.
        bound = {n: float(self.a[n].norm() * self.b[n].norm()) for n in spec.axes}
        self.bound = {root: sum(bound[n] for n in names) for root, names in self.tensors.items()}
        self.kept: dict[str, Tensor] = {}

    def objective(self) -> float:
        return float(sum((self.a[n] * self.b[n]).sum(dtype=torch.float64) for n in self.spec.axes))

    def anchored(self, root: str, placed: Sequence[str]) -> float:
        """Share of the root's weights in tensors whose other axes are fixed or placed."""
        sizes = {n: self.a[n].numel() for n in self.tensors[root]}
        anchored = sum(size for n, size in sizes.items() if self.roots[n] <= {root, *placed})
        return anchored / max(1, sum(sizes.values()))

    def improve(self, root: str, placed: Sequence[str] | None = None) -> bool:
        """Make the root's best move, if it gains; with ``placed``, by these families' tensors."""
        profits = {
            g: p for g in self.spec.families[root] if (p := self.profit(g, placed)) is not None
        }
        moves, gain = best_move(self.spec, root, profits)
        if gain <= ROUNDING * self.bound[root]:
            return False
        for group, index in moves.items():
            self.permutations[group] = self.permutations[group][index]
            places = [(self.b, name, axis) for name, axis in self.spec.places[group]]
            if group in self.kept:
                places.append((self.kept, group, 1))
            for tensors, name, axis in places:
                t = tensors[name]
                tensors[name] = t.index_select(axis, index.to(t.device))
        return True

    def profit(self, group: str, placed: Sequence[str] | None) -> Tensor | None:
        """Entry (i, j) of ``[size, size]``: the profit of B's unit j in slot i, summed over the
        group's tensors; None if there are none."""
        size, root, total = self.spec.groups[group].size, self.spec.root(group), None
        kept, rest = [], []
        for name, axis in self.spec.places[group]:
            if self._keep(name, group):
                kept.append((name, axis))
            elif placed is None or self.roots[name] <= {root, *placed}:
                rest.append((name, axis))
        if kept:
            if group not in self.kept:
                self.kept[group] = self._product(kept, size)
            total = self.kept[group].clone()
        return self._product(rest, size, total) if rest else total

    def _keep(self, name: str, group: str) -> bool:
        """Whether the tensor's product with itself changes only with this group and is smaller than
        the tensor, as for the vocabulary."""
        size = self.spec.groups[group].size
        return len(self.roots[name]) == 1 and self.a[name].numel() > size * size

    def _product(
        self, places: Sequence[tuple[str, int]], size: int, total: Tensor | None = None
    ) -> Tensor:
        for name, axis in places:
            left, right = (t[name].movedim(axis, 0).reshape(size, -1) for t in (self.a, self.b))
            total = left @ right.mT if total is None else total.addmm_(left, right.mT)
        return total
