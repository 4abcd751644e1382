"""Permutation symmetries as plain data: which axis of which tensor lists the units of which group.

The units of a layer have no order: if they are reordered in all tensors, the network computes the
same function. A ``PermutationSpec`` says where they occur; nothing else is needed to apply, draw or
optimise a permutation. Source of the idea: Ainsworth et al., 2023 (Git Re-Basin, arXiv 2209.04836).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ..core.errors import ConfigError, StateDictError, first_five
from ..core.types import State

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
    """The symmetries of one network.

    Args:
        architecture: Its name in messages.
        groups: Units that change places together, by name.
        axes: Per tensor of the state dict, per axis, a group's name or ``FIXED``.
        width: d, the length of the features f(x).
        feature: The group that the features list, or ``FIXED``.

    Raises:
        ConfigError: The arguments do not fit together.
    """

    architecture: str
    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[str, ...]]
    width: int
    feature: str = FIXED

    def __post_init__(self) -> None:
        named = {self.feature, *(g for groups in self.axes.values() for g in groups)} - {FIXED}
        if unknown := sorted(named - self.groups.keys()):
            raise ConfigError(
                f"The spec of {self.architecture} uses {', '.join(unknown)}, which are not among "
                f"its groups."
            )
        for name, group in self.groups.items():
            outer = self.groups.get(group.within)
            if group.size < 1 or (
                group.within and (outer is None or outer.within or group.size % outer.size)
            ):
                raise ConfigError(
                    f"Group '{name}' of {self.architecture} has to hold whole blocks, one per unit "
                    f"of a group that lies in no other; it has {group.size} units within "
                    f"'{group.within}'."
                )
        for tensor, groups in self.axes.items():
            roots = [self.root(g) for g in groups if g]
            if len(set(roots)) < len(roots):
                # If two axes move together, the best permutation is a quadratic assignment problem.
                raise ConfigError(
                    f"Two axes of '{tensor}' move with the group '{roots[0]}'; leave one fixed."
                )

    def root(self, group: str) -> str:
        """The group that ``group`` lies within, or itself: what is permuted in one step."""
        return self.groups[group].within or group

    @cached_property
    def families(self) -> dict[str, tuple[str, ...]]:
        """Per root, the groups that move in one step with it, itself first."""
        members: dict[str, list[str]] = {
            name: [name] for name, group in self.groups.items() if not group.within
        }
        for name, group in self.groups.items():
            if group.within:
                members[group.within].append(name)
        return {root: tuple(names) for root, names in members.items()}

    @cached_property
    def places(self) -> dict[str, tuple[tuple[str, int], ...]]:
        """Per group, the (tensor, axis) pairs that list its units."""
        found: dict[str, list[tuple[str, int]]] = {name: [] for name in self.groups}
        for tensor, groups in self.axes.items():
            for axis, group in enumerate(groups):
                if group:
                    found[group].append((tensor, axis))
        return {name: tuple(pairs) for name, pairs in found.items()}

    def check(self, state: State, who: str = "The state") -> None:
        """Raises ``StateDictError`` naming tensors that are missing, unknown or misshapen."""
        missing, extra = self.axes.keys() - state.keys(), state.keys() - self.axes.keys()
        if missing or extra:
            lacks = [f"lacks {first_five(sorted(missing))}"] * bool(missing)
            has = [f"has unknown {first_five(sorted(extra))}"] * bool(extra)
            raise StateDictError(
                f"{who} {' and '.join(lacks + has)} for the permutations of {self.architecture}. "
                "Give the encoder's own state (encoder_state), without head or pooler, and the "
                "spec of its configuration (spec_for)."
            )
        wrong = [
            f"{name} {tuple(state[name].shape)}, not {self._shape(name)}"
            for name in sorted(self.axes)
            if not self._fits(name, state)
        ]
        if wrong:
            raise StateDictError(
                f"{who} differs in shape from the spec of {self.architecture} in "
                f"{first_five(wrong)}. Use the spec of its own configuration (spec_for)."
            )

    def _fits(self, name: str, state: State) -> bool:
        shape, groups = state[name].shape, self.axes[name]
        return len(shape) == len(groups) and all(
            not g or n == self.groups[g].size for n, g in zip(shape, groups, strict=True)
        )

    def _shape(self, name: str) -> str:
        return f"({', '.join(str(self.groups[g].size) if g else 'any' for g in self.axes[name])})"
