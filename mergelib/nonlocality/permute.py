"""Permutations as index tensors, one per group, applied to states, features and heads.

``permutations[group][i]`` is the old index of the unit that ends up in slot i: along every axis of
the group, new = old.index_select(axis, permutations[group]).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.errors import ConfigError, StateDictError
from ..core.types import Head, State
from .spec import PermutationSpec

Permutations = Mapping[str, Tensor]
"""Per group of a spec, int64 ``[size]``."""


def identity(spec: PermutationSpec) -> dict[str, Tensor]:
    """The identity: every unit stays in its place."""
    return {name: torch.arange(group.size) for name, group in spec.groups.items()}


def random_permutations(spec: PermutationSpec, generator: torch.Generator) -> dict[str, Tensor]:
    """Random permutations; every composition of the symmetries is equally likely."""
    drawn: dict[str, Tensor] = {}
    for root, family in spec.families.items():
        n = spec.groups[root].size
        drawn[root] = torch.randperm(n, generator=generator)
        for name in family[1:]:
            w = spec.groups[name].size // n
            inside = torch.stack([torch.randperm(w, generator=generator) for _ in range(n)])
            drawn[name] = (drawn[root][:, None] * w + inside).flatten()
    return {name: drawn[name] for name in spec.groups}


def check_permutations(spec: PermutationSpec, permutations: Permutations) -> None:
    """Raises ``ConfigError`` for an index that is not a permutation or breaks its group's
    blocks."""
    if permutations.keys() != spec.groups.keys():
        wrong = sorted(permutations.keys() ^ spec.groups.keys())[:5]
        raise ConfigError(
            f"Permutations of {spec.architecture} have one index per group; wrong or missing here: "
            f"{', '.join(wrong)}. Take them from the same spec."
        )
    for name, group in spec.groups.items():
        index = permutations[name]
        if (
            index.dtype != torch.int64
            or index.shape != (group.size,)
            or not torch.equal(index.sort().values, torch.arange(group.size, device=index.device))
        ):
            raise ConfigError(
                f"The index of group '{name}' must hold each of 0..{group.size - 1} once, as "
                f"int64; this one is {index.dtype} {list(index.shape)}."
            )
    for name, group in spec.groups.items():
        if group.within:
            outer = permutations[group.within]
            block = permutations[name].view(len(outer), -1) // (group.size // len(outer))
            if not (block == outer[:, None]).all():
                raise ConfigError(
                    f"The index of group '{name}' does not follow '{group.within}': units of one "
                    f"block must stay together, in the place that group gives them."
                )


def permuted(t: Tensor, groups: tuple[str, ...], permutations: Permutations) -> Tensor:
    """One tensor with the units along each axis reordered."""
    for axis, group in enumerate(groups):
        if group:
            t = t.index_select(axis, permutations[group].to(t.device))
    return t


def apply(spec: PermutationSpec, permutations: Permutations, state: State) -> dict[str, Tensor]:
    """The state of the same function with its units reordered.

    Features change by ``feature_index`` alone. Raises ``StateDictError`` for a state that does not
    match the spec, ``ConfigError`` for permutations that do not.
    """
    spec.check(state)
    check_permutations(spec, permutations)
    return {name: permuted(t, spec.axes[name], permutations) for name, t in state.items()}


def inverse(permutations: Permutations) -> dict[str, Tensor]:
    """The inverse of ``permutations``."""
    return {name: index.argsort() for name, index in permutations.items()}


def feature_index(spec: PermutationSpec, permutations: Permutations) -> Tensor:
    """Int64 ``[d]``: features of the permuted encoder are ``f(x)[..., feature_index]``."""
    return permutations[spec.feature] if spec.feature else torch.arange(spec.width)


def permute_head(head: Head, spec: PermutationSpec, permutations: Permutations) -> Head:
    """(W_t, b_t) for the permuted encoder: the same logits from its features."""
    if head.weight.shape[-1] != spec.width:
        raise StateDictError(
            f"This head takes features of {head.weight.shape[-1]} numbers, but the encoder "
            f"({spec.architecture}) gives {spec.width}; use the head that was fine-tuned with it."
        )
    index = feature_index(spec, permutations).to(head.weight.device)
    return Head(head.weight.index_select(-1, index), head.bias)
