"""The linearised encoder against finite differences, and what linearity implies for merging."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BertConfig

from mergelib import Study
from mergelib.core.errors import StateDictError
from mergelib.encoders import TextEncoder, encoder_state
from mergelib.encoders.tangent import TangentEncoder
from mergelib.merging import get_method

BATCH = {
    "input_ids": torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
}


class Tokenizer:
    class backend_tokenizer:
        to_str = staticmethod(lambda: "words")


@pytest.fixture
def setting():
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=6,
    )
    encoder = TextEncoder(config, Tokenizer(), 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = encoder_state(encoder.module().double())
        experts = [{n: t + 0.05 * torch.randn_like(t) for n, t in base.items()} for _ in range(3)]
    return encoder, TangentEncoder(encoder, base), base, experts


@torch.no_grad()
def features(encoder, state):
    return encoder.module(state).double()(**BATCH)


def test_at_the_base_it_is_f_b_and_its_slope_is_f_bs(setting):
    encoder, tangent, base, experts = setting
    at_base = features(encoder, base)
    assert_close(features(tangent, base), at_base)
    assert_close(features(tangent, None), at_base)
    small = {n: base[n] + 1e-4 * (experts[0][n] - base[n]) for n in base}
    slope = (features(encoder, small) - at_base) / 1e-4
    assert_close(features(tangent, experts[0]) - at_base, slope, atol=1e-2, rtol=1e-2)


def test_the_average_of_weights_gives_the_average_of_features(setting):
    _, tangent, base, experts = setting
    merged = get_method("weight_averaging")(base, experts)
    mean = torch.stack([features(tangent, e) for e in experts]).mean(0)
    assert_close(features(tangent, merged), mean, atol=1e-5, rtol=1e-5)


def test_only_the_weights_that_are_merged_are_trained(setting):
    _, tangent, base, _ = setting
    module = tangent.module()
    module(**BATCH).square().sum().backward()
    moved = {n for n, p in module.named_parameters() if p.grad is not None}
    assert moved and all(n.startswith("module.transformer.") for n in moved)
    assert encoder_state(module).keys() == base.keys()


def test_it_is_another_encoder_and_knows_its_keys(setting):
    encoder, tangent, base, experts = setting
    assert len({encoder.digest, tangent.digest, TangentEncoder(encoder, experts[0]).digest}) == 3
    assert (tangent.width, tangent.max_length) == (encoder.width, encoder.max_length)
    with pytest.raises(StateDictError):
        tangent.module({n: base[n] for n in list(base)[1:]})


def test_a_profile_asks_for_it(tmp_path):
    usual, tangent = (
        Study("mini", store=tmp_path, overrides=o).encoder for o in ({}, {"encoder.tangent": True})
    )
    assert isinstance(tangent, TangentEncoder) and tangent.inner.digest == usual.digest
