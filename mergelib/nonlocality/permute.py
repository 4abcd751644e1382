"""Permutations as index tensors, one per group, applied to states, features and heads.

``permutations[group][i]`` is the old index of the unit that ends up in slot i: along every axis of
the group, new = old.index_select(axis, permutations[group]).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core.errors import StateDictError, first_five
from ..core.types import Head, State
from .spec import PermutationSpec

Permutations = Mapping[str, Tensor]
"""Per group of a spec, int64 ``[size]``."""


def identity(spec: PermutationSpec) -> dict[str, Tensor]:
    """The identity: every unit stays in its place."""
    return {name: torch.arange(group.size) for name, group in spec.groups.items()}


def apply(spec: PermutationSpec, permutations: Permutations, state: State) -> dict[str, Tensor]:
    """The state of the same function with its units reordered; features change by
    ``feature_index`` alone.

    Raises ``StateDictError`` for a state of another architecture.
    """
    if names := sorted(state.keys() ^ spec.axes.keys()):
        raise StateDictError(
            f"A state of {spec.architecture} and its permutations differ in {first_five(names)}. "
            "Give the encoder's own state (encoder_state), without head or pooler."
        )
    permuted = dict(state)
    for group, index in permutations.items():
        for name, axis in spec.places[group]:
            permuted[name] = permuted[name].index_select(axis, index.to(permuted[name].device))
    return permuted


def feature_index(spec: PermutationSpec, permutations: Permutations) -> Tensor:
    """Int64 ``[d]``: features of the permuted encoder are ``f(x)[..., feature_index]``."""
    return permutations[spec.feature] if spec.feature else torch.arange(spec.width)


def permute_head(head: Head, spec: PermutationSpec, permutations: Permutations) -> Head:
    """(W_t, b_t) for the permuted encoder: the same logits from its features."""
    index = feature_index(spec, permutations).to(head.weight.device)
    return Head(head.weight.index_select(-1, index), head.bias)
