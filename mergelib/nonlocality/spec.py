"""Permutation symmetries as plain data: which axis of which tensor lists the units of which group.

The units of a layer have no order: if they are reordered in all tensors, the network computes the
same function. A ``PermutationSpec`` says where they occur; nothing else is needed to apply, draw or
optimise a permutation. Source of the idea: Ainsworth et al., 2023 (Git Re-Basin, arXiv 2209.04836).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..core.errors import StateDictError, first_five
from ..core.types import Head, State

Permutations = Mapping[str, Tensor]
"""Per group of a spec, int64 ``[size]``."""
FIXED = ""
"""An axis whose entries keep their order: a vocabulary, positions, pixels, a projection's rows."""


@dataclass(frozen=True)
class Group:
    """``size`` units that may change places.

    With ``within``, units form equal blocks, one per unit of that other group: a block moves with
    its unit, and inside a block units change places freely (as the rows of a head, with heads as
    the other group).
    """

    size: int
    within: str = ""


@dataclass(frozen=True)
class PermutationSpec:
    """The symmetries of one network, and what permutations of its units do.

    Permutations are index tensors, one per group: ``permutations[group][i]`` is the old index of
    the unit that ends up in slot i. Along every axis of the group,
    ``new = old.index_select(axis, permutations[group])``.

    Args:
        architecture: Its name in messages.
        groups: Units that change places together, by name.
        axes: Per tensor of the state dict, per axis, a group's name or ``FIXED``. No two axes of
            a tensor move together: the best permutation would be a quadratic assignment problem.
        width: d, the length of the features f(x).
        feature: The group that the features list, or ``FIXED``.
    """

    architecture: str
    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[str, ...]]
    width: int
    feature: str = FIXED

    def root(self, group: str) -> str:
        """The group that ``group`` lies within, or itself: what is permuted in one step."""
        return self.groups[group].within or group

    @cached_property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Per root, the groups that move in one step with it, itself first."""
        return {
            root: (root, *(name for name, group in self.groups.items() if group.within == root))
            for root in self.groups
            if not self.groups[root].within
        }

    @cached_property
    def places(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Per group, the (tensor, axis) pairs that list its units."""
        return {
            group: tuple(
                (tensor, axis)
                for tensor, groups in self.axes.items()
                for axis, listed in enumerate(groups)
                if listed == group
            )
            for group in self.groups
        }

    def identity(self) -> dict[str, Tensor]:
        """The identity: every unit stays in its place."""
        return {name: torch.arange(group.size) for name, group in self.groups.items()}

    def apply(self, permutations: Permutations, state: State) -> dict[str, Tensor]:
        """The state of the same function with its units reordered; features change by
        ``feature_index`` alone.

        Raises ``StateDictError`` for a state of another architecture.
        """
        if names := sorted(state.keys() ^ self.axes.keys()):
            raise StateDictError(
                f"A state of {self.architecture} and its permutations differ in "
                f"{first_five(names)}. Give the encoder's own state (encoder_state), without head "
                "or pooler."
            )
        permuted = dict(state)
        for group, index in permutations.items():
            for name, axis in self.places[group]:
                permuted[name] = permuted[name].index_select(axis, index.to(permuted[name].device))
        return permuted

    def feature_index(self, permutations: Permutations) -> Tensor:
        """Int64 ``[d]``: features of the permuted encoder are ``f(x)[..., feature_index]``."""
        return permutations[self.feature] if self.feature else torch.arange(self.width)

    def permute_head(self, head: Head, permutations: Permutations) -> Head:
        """(W_t, b_t) for the permuted encoder: the same logits from its features."""
        index = self.feature_index(permutations).to(head.weight.device)
        return Head(head.weight.index_select(-1, index), head.bias)
