"""The symmetries of the encoders that mergelib knows: BERT-like, T5's encoder, CLIP's image tower, ViT.

Per block: the units of the feed-forward layer, the heads, and inside every head the rows of query and key ("qk", together)
and those of value (with the output's columns, "vo", on their own). For the whole network: the residual stream. A layer norm takes
mean and variance over all channels, an RMS norm the mean square, so that the residual stream may be permuted (not rotated)
exactly. Tensor names are those of the encoder's state (``encoder_state``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import UnknownNameError
from .spec import FIXED, Group, PermutationSpec, Site

RESIDUAL = "residual"


class _Draft:
    """A spec in the making: layers add their groups, axes and sites."""

    def __init__(self, width: int):
        self.groups: dict[str, Group] = {RESIDUAL: Group(width)}
        self.axes: dict[str, tuple[str, ...]] = {}
        self.sites: dict[str, list[Site]] = {RESIDUAL: []}

    def linear(self, name: str, rows: str, columns: str, *, bias: bool) -> None:
        self.axes[f"{name}.weight"] = (rows, columns)
        if bias:
            self.axes[f"{name}.bias"] = (rows,)

    def norm(self, name: str, end: str, *, bias: bool = True) -> None:
        """A norm of the residual stream, which is read at its ``end``."""
        self.axes[f"{name}.weight"] = (RESIDUAL,)
        if bias:
            self.axes[f"{name}.bias"] = (RESIDUAL,)
        self.sites[RESIDUAL].append(Site(name, end))

    def attention(
        self,
        block: int,
        query: str,
        key: str,
        value: str,
        output: str,
        *,
        heads: int,
        size: int,
        order: str = "",
        bias: bool = True,
        output_bias: bool = True,
    ) -> None:
        """``heads`` heads of ``size`` rows; ``order`` names the group of heads where blocks share one."""
        order, qk, vo = order or f"heads.{block}", f"qk.{block}", f"vo.{block}"
        self.groups.setdefault(order, Group(heads))
        self.groups[qk] = self.groups[vo] = Group(heads * size, within=order)
        for name, rows in ((query, qk), (key, qk), (value, vo)):
            self.linear(name, rows, RESIDUAL, bias=bias)
        self.linear(output, RESIDUAL, vo, bias=output_bias)
        self.sites[qk] = [Site(query, "output"), Site(key, "output")]
        self.sites[vo] = [Site(value, "output"), Site(output, "input")]

    def feed_forward(
        self, block: int, inner: Sequence[str], output: str, *, size: int, bias: bool = True
    ) -> None:
        """``inner`` layers share their units: one, or two where one gates the other. Activations are read before the non-linearity,
        behind which a unit may be silent on every input."""
        units = f"ffn.{block}"
        self.groups[units] = Group(size)
        for name in inner:
            self.linear(name, units, RESIDUAL, bias=bias)
        self.linear(output, RESIDUAL, units, bias=bias)
        self.sites[units] = [Site(name, "output") for name in inner]

    def spec(self, architecture: str, width: int, feature: str) -> PermutationSpec:
        return PermutationSpec(
            architecture,
            self.groups,
            self.axes,
            width,
            feature,
            {g: tuple(s) for g, s in self.sites.items()},
        )


def bert_spec(config: Any) -> PermutationSpec:
    """BERT and its like (``BertModel``, ``RobertaModel``), without pooler; features are averaged over tokens and permute with the
    residual stream."""
    width, heads = config.hidden_size, config.num_attention_heads
    draft = _Draft(width)
    for name in ("word", "position", "token_type"):
        draft.axes[f"embeddings.{name}_embeddings.weight"] = (FIXED, RESIDUAL)
    draft.norm("embeddings.LayerNorm", "output")
    for i in range(config.num_hidden_layers):
        block = f"encoder.layer.{i}"
        attention = f"{block}.attention"
        draft.attention(
            i,
            *(f"{attention}.self.{n}" for n in ("query", "key", "value")),
            f"{attention}.output.dense",
            heads=heads,
            size=width // heads,
        )
        draft.norm(f"{attention}.output.LayerNorm", "output")
        draft.feed_forward(
            i,
            [f"{block}.intermediate.dense"],
            f"{block}.output.dense",
            size=config.intermediate_size,
        )
        draft.norm(f"{block}.output.LayerNorm", "output")
    return draft.spec(config.model_type, width, RESIDUAL)


def t5_spec(config: Any) -> PermutationSpec:
    """T5's encoder (``T5EncoderModel``), with a plain or a gated feed-forward layer; the tied vocabulary is named once.

    The first block's relative attention bias, a column per head, serves all blocks: they share one order of heads."""
    draft = _Draft(config.d_model)
    draft.axes["shared.weight"] = (FIXED, RESIDUAL)
    inner = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
    for i in range(config.num_layers):
        first, second = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        draft.norm(f"{first}.layer_norm", "input", bias=False)
        draft.attention(
            i,
            *(f"{first}.SelfAttention.{n}" for n in "qkvo"),
            heads=config.num_heads,
            size=config.d_kv,
            order="heads",
            bias=False,
            output_bias=False,
        )
        draft.norm(f"{second}.layer_norm", "input", bias=False)
        draft.feed_forward(
            i,
            [f"{second}.DenseReluDense.{n}" for n in inner],
            f"{second}.DenseReluDense.wo",
            size=config.d_ff,
            bias=False,
        )
    draft.axes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (
        FIXED,
        "heads",
    )
    draft.norm("encoder.final_layer_norm", "input", bias=False)
    return draft.spec(config.model_type, config.d_model, RESIDUAL)


def clip_vision_spec(config: Any) -> PermutationSpec:
    """CLIP's image tower with its projection (``CLIPVisionModelWithProjection``); behind the projection features keep their order."""
    width, heads = config.hidden_size, config.num_attention_heads
    draft = _Draft(width)
    draft.axes["vision_model.embeddings.class_embedding"] = (RESIDUAL,)
    draft.axes["vision_model.embeddings.patch_embedding.weight"] = (RESIDUAL, FIXED, FIXED, FIXED)
    draft.axes["vision_model.embeddings.position_embedding.weight"] = (FIXED, RESIDUAL)
    draft.norm("vision_model.pre_layrnorm", "output")
    for i in range(config.num_hidden_layers):
        block = f"vision_model.encoder.layers.{i}"
        draft.norm(f"{block}.layer_norm1", "input")
        draft.attention(
            i,
            *(f"{block}.self_attn.{n}_proj" for n in ("q", "k", "v", "out")),
            heads=heads,
            size=width // heads,
        )
        draft.norm(f"{block}.layer_norm2", "input")
        draft.feed_forward(
            i, [f"{block}.mlp.fc1"], f"{block}.mlp.fc2", size=config.intermediate_size
        )
    draft.norm("vision_model.post_layernorm", "input")
    draft.linear("visual_projection", FIXED, RESIDUAL, bias=False)
    return draft.spec(config.model_type, config.projection_dim, FIXED)


def vit_spec(config: Any) -> PermutationSpec:
    """A plain ViT (``ViTModel``), without pooler; features permute with the residual stream."""
    width, heads = config.hidden_size, config.num_attention_heads
    draft = _Draft(width)
    draft.axes["embeddings.cls_token"] = draft.axes["embeddings.position_embeddings"] = (
        FIXED,
        FIXED,
        RESIDUAL,
    )
    draft.axes["embeddings.patch_embeddings.projection.weight"] = (RESIDUAL, FIXED, FIXED, FIXED)
    draft.axes["embeddings.patch_embeddings.projection.bias"] = (RESIDUAL,)
    for i in range(config.num_hidden_layers):
        block = f"layers.{i}"
        draft.norm(f"{block}.layernorm_before", "input")
        draft.attention(
            i,
            *(f"{block}.attention.{n}_proj" for n in "qkvo"),
            heads=heads,
            size=width // heads,
            bias=config.qkv_bias,
        )
        draft.norm(f"{block}.layernorm_after", "input")
        draft.feed_forward(
            i, [f"{block}.mlp.fc1"], f"{block}.mlp.fc2", size=config.intermediate_size
        )
    draft.norm("layernorm", "input")
    return draft.spec(config.model_type, width, RESIDUAL)


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
    """The spec of an encoder's transformers configuration. Raises ``UnknownNameError`` for an architecture without one."""
    if config.model_type not in SPECS:
        raise UnknownNameError("architecture with known permutations", config.model_type, SPECS)
    return SPECS[config.model_type](config)
