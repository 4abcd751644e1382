"""Weight matching: put the units of one network in the order of another's, by their weights alone.

Maximises, over all permutations that leave the second network's function unchanged, the sum over tensors of <A, P(B)>, which
minimises the distance |A - P(B)|. All groups at once are out of reach; one family of groups with the others held is a linear
assignment problem, so coordinate ascent solves these in turn. Source: Ainsworth et al., 2023 (Git Re-Basin, arXiv 2209.04836,
algorithm 1). Differences: heads are scored by the best order inside them, a move is made only where it gains, a family is solved
again only after a neighbour has moved, and the first sweep goes from what is anchored to what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, StateDictError
from ..types import State, not_finite
from .assignment import best_move
from .permute import Permutations, apply, identity
from .spec import PermutationSpec

ROUNDING = 1e-6
"""A gain below this share of what a family could earn at most is rounding, and no reason to move."""

Progress = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True)
class Matching:
    """``permutations`` bring B to A: compare A with ``apply(spec, permutations, b)``. ``objective``: what is maximised, at the start
    and after every sweep; it never falls. ``converged``: no family can gain by moving alone."""

    permutations: dict[str, Tensor]
    objective: tuple[float, ...]
    converged: bool

    @property
    def sweeps(self) -> int:
        return len(self.objective) - 1


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
    """Permutations of ``b``'s units after which its weights are as near to ``a``'s as coordinate ascent finds.

    ``a`` and ``b`` are encoder states of ``spec``; no data is used. Without ``start`` the first sweep begins with the family that has
    most weights in tensors no other family touches (the residual stream, by the embeddings), and leaves out of account what lies
    towards families not placed yet: their order, so far arbitrary, would only pull towards the identity. Should that earn less
    than the identity, the identity is where the ascent begins. Later sweeps go in an order drawn from ``seed``. The result is the
    same for the same arguments and threads; it is a local optimum, so other seeds and starts can be better.

    ``progress`` wraps the families of a sweep, as in ``functools.partial(mergelib.progress.progress, desc="match")``. Raises
    ``StateDictError`` for states that are not the spec's, differ in shape or hold NaN or inf; ``ConfigError`` for ``sweeps`` below 1 and
    a ``start`` that is no permutation of the spec.
    """
    if sweeps < 1:
        raise ConfigError(f"weight_matching: sweeps is at least 1, not {sweeps}.")
    _check(spec, a, b)
    pair = _Pair(spec, a, b, identity(spec) if start is None else start)
    generator = torch.Generator().manual_seed(seed)
    objective = [pair.objective()]
    stale = set(spec.families)
    if start is None:
        stale = _place(pair, progress)
        reached = pair.objective()
        if reached < objective[0]:
            pair, stale, reached = (
                _Pair(spec, a, b, identity(spec)),
                set(spec.families),
                objective[0],
            )
        objective.append(reached)
    while stale and len(objective) <= sweeps:
        order = [
            list(spec.families)[i] for i in torch.randperm(len(spec.families), generator=generator)
        ]
        for root in progress(order):
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
            raise StateDictError(f"{who} holds NaN or inf in {', '.join(bad[:5])}; make it again.")
    if wrong := [
        f"{n} ({tuple(a[n].shape)}, {tuple(b[n].shape)})"
        for n in spec.axes
        if a[n].shape != b[n].shape
    ]:
        raise StateDictError(
            f"The networks differ in shape in {', '.join(wrong[:5])}. Match networks of one configuration, with one vocabulary."
        )


def _place(pair: _Pair, progress: Progress) -> set[str]:
    """The first sweep: families by the share of their weights that is anchored in what is placed. Returns those that were placed
    before one of their neighbours."""
    order: list[str] = []
    while len(order) < len(pair.spec.families):
        order.append(
            max(
                (r for r in pair.spec.families if r not in order),
                key=lambda root: pair.anchored(root, order),
            )
        )
    for i, root in enumerate(progress(order)):
        pair.improve(root, order[:i])
    return {root for i, root in enumerate(order) if pair.neighbours[root] - set(order[:i])}


class _Pair:
    """A and B as permuted so far. Profits are taken relative to that, so that staying is the diagonal."""

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
        # No permutation earns more (Cauchy-Schwarz), and none changes it.
        bound = {n: float(self.a[n].norm() * self.b[n].norm()) for n in spec.axes}
        self.bound = {root: sum(bound[n] for n in names) for root, names in self.tensors.items()}
        self.kept: dict[str, Tensor] = {}

    def objective(self) -> float:
        return float(sum((self.a[n] * self.b[n]).sum(dtype=torch.float64) for n in self.spec.axes))

    def anchored(self, root: str, placed: Sequence[str]) -> float:
        """Share of the root's weights in tensors whose other axes are fixed or placed."""
        sizes = {n: self.a[n].numel() for n in self.tensors[root]}
        return sum(size for n, size in sizes.items() if self.roots[n] <= {root, *placed}) / max(
            1, sum(sizes.values())
        )

    def improve(self, root: str, placed: Sequence[str] | None = None) -> bool:
        """Make the root's best move, if it gains; with ``placed``, by the tensors of these families alone."""
        profits = {
            g: p for g in self.spec.families[root] if (p := self.profit(g, placed)) is not None
        }
        moves, gain = best_move(self.spec, root, profits)
        if gain <= ROUNDING * self.bound[root]:
            return False
        for group, index in moves.items():
            self.permutations[group] = self.permutations[group][index]
            if group in self.kept:
                self.kept[group] = self.kept[group].index_select(
                    1, index.to(self.kept[group].device)
                )
            for name, axis in self.spec.places[group]:
                self.b[name] = self.b[name].index_select(axis, index.to(self.b[name].device))
        return True

    def profit(self, group: str, placed: Sequence[str] | None) -> Tensor | None:
        """``[size, size]``: entry (i, j) is what B's unit j earns in slot i, summed over the group's tensors; None without any."""
        size, root = self.spec.groups[group].size, self.spec.root(group)
        total = None
        if kept := [(n, axis) for n, axis in self.spec.places[group] if self._keep(n, group)]:
            if group not in self.kept:
                self.kept[group] = self._product(kept, size)
            total = self.kept[group].clone()
        rest = [
            (n, axis)
            for n, axis in self.spec.places[group]
            if not self._keep(n, group) and (placed is None or self.roots[n] <= {root, *placed})
        ]
        return self._product(rest, size, total) if rest else total

    def _keep(self, name: str, group: str) -> bool:
        """Whether the tensor's product with itself changes with this group alone and is smaller than the tensor: the vocabulary's."""
        size = self.spec.groups[group].size
        return len(self.roots[name]) == 1 and self.a[name].numel() > size * size

    def _product(
        self, places: Sequence[tuple[str, int]], size: int, total: Tensor | None = None
    ) -> Tensor:
        for name, axis in places:
            left, right = (t[name].movedim(axis, 0).reshape(size, -1) for t in (self.a, self.b))
            total = left @ right.mT if total is None else total.addmm_(left, right.mT)
        return total
