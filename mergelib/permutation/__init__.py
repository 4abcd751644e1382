"""Permutation symmetries of transformers, and matching: which units of two networks are the same.

A spec (``spec_for``) says which axis of which tensor lists which units; ``weight_matching`` and ``activation_matching`` find
permutations of network B, ``apply`` puts them to work on its state, ``permute_head`` on the classifiers behind it::

    spec = spec_for(encoder.config)
    matching = weight_matching(spec, state_a, state_b, seed=0)
    aligned = apply(spec, matching.permutations, state_b)
"""

from .activations import activation_matching, collect_activations, correlation
from .architectures import SPECS, bert_spec, clip_vision_spec, spec_for, t5_spec, vit_spec
from .matching import Matching, weight_matching
from .permute import (
    Permutations,
    apply,
    check_permutations,
    compose,
    feature_index,
    identity,
    inverse,
    permute_head,
    random_permutations,
)
from .spec import FIXED, Group, PermutationSpec, Site

__all__ = [
    "FIXED",
    "SPECS",
    "Group",
    "Matching",
    "PermutationSpec",
    "Permutations",
    "Site",
    "activation_matching",
    "apply",
    "bert_spec",
    "check_permutations",
    "clip_vision_spec",
    "collect_activations",
    "compose",
    "correlation",
    "feature_index",
    "identity",
    "inverse",
    "permute_head",
    "random_permutations",
    "spec_for",
    "t5_spec",
    "vit_spec",
    "weight_matching",
]
