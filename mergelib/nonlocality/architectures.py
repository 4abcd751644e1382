"""The symmetries of the encoders here: BERT-like, T5's encoder, CLIP's image tower, ViT.

Per block: the units of the feed-forward layer, the heads, and inside every head the rows of query
and key ("qk", together) and those of value (with the output's columns, "vo", on their own). For the
whole network: the residual stream. A layer norm takes mean and variance over all channels, an RMS
norm the mean square, so that the residual stream may be permuted (not rotated) exactly. Tensor
names are those of the encoder's state (``encoder_state``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.errors import UnknownNameError
from .spec import FIXED, Group, PermutationSpec

RESIDUAL = "residual"


class _Draft:
    """A spec in the making: layers add their groups and axes."""

    def __init__(self, width: int):
        self.groups: dict[str, Group] = {RESIDUAL: Group(width)}
        self.axes: dict[str, tuple[str, ...]] = {}

    def linear(self, name: str, rows: str, columns: str, *, bias: bool) -> None:
        self.axes[f"{name}.weight"] = (rows, columns)
        if bias:
            self.axes[f"{name}.bias"] = (rows,)

    def norm(self, name: str, *, bias: bool = True) -> None:
        """A norm of the residual stream."""
        self.axes |= {f"{name}.{n}": (RESIDUAL,) for n in ("weight", "bias")[: 1 + bias]}

    def attention(
        self,
        block: int,
        layers: Sequence[str],
        *,
        heads: int,
        size: int,
        order: str = "",
        bias: bool = True,
        output_bias: bool = True,
    ) -> None:
        """``layers`` are those of query, key, value and output, with ``heads`` heads of ``size``
        rows; ``order`` names the group of heads where blocks share one."""
        order, qk, vo = order or f"heads.{block}", f"qk.{block}", f"vo.{block}"
        self.groups.setdefault(order, Group(heads))
        self.groups[qk] = self.groups[vo] = Group(heads * size, within=order)
        *inner, output = layers
        for name, rows in zip(inner, (qk, qk, vo), strict=True):
            self.linear(name, rows, RESIDUAL, bias=bias)
        self.linear(output, RESIDUAL, vo, bias=output_bias)

    def feed_forward(
        self, block: int, inner: Sequence[str], output: str, *, size: int, bias: bool = True
    ) -> None:
        """``inner`` layers share their units: one, or two where one gates the other."""
        units = f"ffn.{block}"
        self.groups[units] = Group(size)
        for name in inner:
            self.linear(name, units, RESIDUAL, bias=bias)
        self.linear(output, RESIDUAL, units, bias=bias)

    def vit_blocks(
        self,
        config: Any,
        layers: str,
        norms: Sequence[str],
        attention: Sequence[str],
        *,
        bias: bool = True,
    ) -> None:
        """The blocks of an image encoder, by the names of its norms and attention layers."""
        heads = config.num_attention_heads
        for i in range(config.num_hidden_layers):
            block = f"{layers}.{i}"
            self.norm(f"{block}.{norms[0]}")
            self.attention(
                i,
                [f"{block}.{n}" for n in attention],
                heads=heads,
                size=config.hidden_size // heads,
                bias=bias,
            )
            self.norm(f"{block}.{norms[1]}")
            mlp = f"{block}.mlp"
            self.feed_forward(i, [f"{mlp}.fc1"], f"{mlp}.fc2", size=config.intermediate_size)

    def spec(self, config: Any, width: int, feature: str = RESIDUAL) -> PermutationSpec:
        return PermutationSpec(config.model_type, self.groups, self.axes, width, feature)


def bert_spec(config: Any) -> PermutationSpec:
    """BERT and its like (``BertModel``, ``RobertaModel``), without pooler.

    Features are averaged over tokens and permute with the residual stream.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    draft = _Draft(width)
    for name in ("word", "position", "token_type"):
        draft.axes[f"embeddings.{name}_embeddings.weight"] = (FIXED, RESIDUAL)
    draft.norm("embeddings.LayerNorm")
    for i in range(config.num_hidden_layers):
        block = f"encoder.layer.{i}"
        layers = ("self.query", "self.key", "self.value", "output.dense")
        draft.attention(
            i, [f"{block}.attention.{n}" for n in layers], heads=heads, size=width // heads
        )
        draft.norm(f"{block}.attention.output.LayerNorm")
        dense = (f"{block}.intermediate.dense", f"{block}.output.dense")
        draft.feed_forward(i, dense[:1], dense[1], size=config.intermediate_size)
        draft.norm(f"{block}.output.LayerNorm")
    return draft.spec(config, width)


def t5_spec(config: Any) -> PermutationSpec:
    """T5's encoder (``T5EncoderModel``), with a plain or a gated feed-forward layer.

    The tied vocabulary is named once. The first block's relative attention bias, a column per
    head, serves all blocks: they share one order of heads.
    """
    draft = _Draft(config.d_model)
    draft.axes["shared.weight"] = (FIXED, RESIDUAL)
    inner = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
    for i in range(config.num_layers):
        first, second = (f"encoder.block.{i}.layer.{n}" for n in (0, 1))
        draft.norm(f"{first}.layer_norm", bias=False)
        draft.attention(
            i,
            [f"{first}.SelfAttention.{n}" for n in "qkvo"],
            heads=config.num_heads,
            size=config.d_kv,
            order="heads",
            bias=False,
            output_bias=False,
        )
        draft.norm(f"{second}.layer_norm", bias=False)
        dense = f"{second}.DenseReluDense"
        draft.feed_forward(
            i, [f"{dense}.{n}" for n in inner], f"{dense}.wo", size=config.d_ff, bias=False
        )
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    draft.axes[bias] = (FIXED, "heads")
    draft.norm("encoder.final_layer_norm", bias=False)
    return draft.spec(config, config.d_model)


def clip_vision_spec(config: Any) -> PermutationSpec:
    """CLIP's image tower with its projection, behind which features keep their order."""
    draft, at = _Draft(config.hidden_size), "vision_model"
    draft.axes[f"{at}.embeddings.class_embedding"] = (RESIDUAL,)
    draft.axes[f"{at}.embeddings.patch_embedding.weight"] = (RESIDUAL, FIXED, FIXED, FIXED)
    draft.axes[f"{at}.embeddings.position_embedding.weight"] = (FIXED, RESIDUAL)
    draft.norm(f"{at}.pre_layrnorm")
    attention = [f"self_attn.{n}_proj" for n in ("q", "k", "v", "out")]
    draft.vit_blocks(config, f"{at}.encoder.layers", ("layer_norm1", "layer_norm2"), attention)
    draft.norm(f"{at}.post_layernorm")
    draft.linear("visual_projection", FIXED, RESIDUAL, bias=False)
    return draft.spec(config, config.projection_dim, FIXED)


def vit_spec(config: Any) -> PermutationSpec:
    """A plain ViT (``ViTModel``), without pooler; features permute with the residual stream."""
    draft, patches = _Draft(config.hidden_size), "embeddings.patch_embeddings.projection"
    for name in ("cls_token", "position_embeddings"):
        draft.axes[f"embeddings.{name}"] = (FIXED, FIXED, RESIDUAL)
    draft.axes[f"{patches}.weight"] = (RESIDUAL, FIXED, FIXED, FIXED)
    draft.axes[f"{patches}.bias"] = (RESIDUAL,)
    norms = ("layernorm_before", "layernorm_after")
    attention = [f"attention.{n}_proj" for n in "qkvo"]
    draft.vit_blocks(config, "layers", norms, attention, bias=config.qkv_bias)
    draft.norm("layernorm")
    return draft.spec(config, config.hidden_size)


SPECS: dict[str, Callable[[Any], PermutationSpec]] = {
    "bert": bert_spec,
    "roberta": bert_spec,
    "xlm-roberta": bert_spec,
    "t5": t5_spec,
    "clip_vision_model": clip_vision_spec,
    "vit": vit_spec,
}
"""By the ``model_type`` of a transformers configuration."""


def spec_for(config: Any) -> PermutationSpec:
    """The spec of an encoder's configuration. Raises ``UnknownNameError`` where there is none."""
    if config.model_type not in SPECS:
        raise UnknownNameError("architecture with known permutations", config.model_type, SPECS)
    return SPECS[config.model_type](config)
