"""Tiny random encoders of every architecture whose permutations are known, as mergelib's own
modules."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from near import normal, seeded
from torch import Tensor, nn
from transformers import BertConfig, CLIPVisionConfig, RobertaConfig, T5Config, ViTConfig

from benchmarks.permutation_matching import random_permutations
from mergelib.encoders import ImageEncoder, TextEncoder, encoder_state, load_state
from mergelib.nonlocality.architectures import spec_for
from mergelib.nonlocality.spec import PermutationSpec

VOCABULARY, INPUTS, TOKENS = 150, 14, 11
SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
}
TEXT = SHAPE | {"vocab_size": VOCABULARY, "max_position_embeddings": 20}
IMAGE = SHAPE | {"image_size": 24, "patch_size": 8}
T5 = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2}
T5 |= {
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
CONFIGS = {
    "bert": BertConfig(**TEXT),
    "roberta": RobertaConfig(**TEXT),
    "t5": T5Config(**T5),
    "t5_gated": T5Config(**T5, feed_forward_proj="gated-gelu"),
    "clip": CLIPVisionConfig(**IMAGE, projection_dim=10),
    "vit_mean": ViTConfig(**IMAGE, qkv_bias=False),
    "vit_cls": ViTConfig(**IMAGE),
}
seeds = pytest.mark.parametrize("seed", range(3))


@dataclass
class Network:
    """An architecture with its spec and one padded batch."""

    config: Any
    made: nn.Module
    batch: dict[str, Tensor]
    spec: PermutationSpec

    def state(self, seed: int) -> dict[str, Tensor]:
        """Random weights, norms and biases included: a norm of ones would hide where it belongs."""
        generator = seeded(seed)
        return {
            n: 0.2 * torch.randn(t.shape, generator=generator)
            + ("norm" in n.lower() and n.endswith("weight"))
            for n, t in encoder_state(self.made).items()
        }

    def module(self, state: dict[str, Tensor]) -> nn.Module:
        module = copy.deepcopy(self.made)
        load_state(module, state)
        return module

    @torch.no_grad()
    def features(self, state: dict[str, Tensor]) -> Tensor:
        return self.module(state)(**self.batch)


def text_batch() -> dict[str, Tensor]:
    """Texts of 3 to ``TOKENS`` tokens, padded."""
    ids = torch.randint(3, VOCABULARY, (INPUTS, TOKENS), generator=seeded(5))
    mask = (torch.arange(TOKENS) < (3 + torch.arange(INPUTS) % (TOKENS - 2))[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def make(name: str) -> Network:
    config = CONFIGS[name]
    if hasattr(config, "image_size"):
        made = ImageEncoder(config, "tiny", pooling=name.removeprefix("vit_")).module()
        batch = {"pixel_values": normal(INPUTS, 3, 24, 24, seed=5)}
    else:
        made, batch = TextEncoder(config, None, TOKENS).module(), text_batch()
    return Network(config, made, batch, spec_for(config))


def drawn(spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    return random_permutations(spec, seeded(seed))


@pytest.fixture(scope="session")
def networks() -> dict[str, Network]:
    return {name: make(name) for name in CONFIGS}


@pytest.fixture(params=CONFIGS)
def network(request, networks) -> Network:
    return networks[request.param]
